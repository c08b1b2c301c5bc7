"""Bundles: what was saved comes back, what was changed is found out, nothing half written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.training.bundle import Bundle, load_bundle, save_bundle

BUNDLE = Bundle({"h": np.arange(6.0).reshape(2, 3)}, {"method": "spectral", "info": {"kernels": ["Br40"]}})


def test_a_bundle_comes_back_with_its_digest(tmp_path: Path) -> None:
    save_bundle(BUNDLE, tmp_path / "m", card="# card\n")
    found = load_bundle(tmp_path / "m")
    np.testing.assert_array_equal(found.tensors["h"], BUNDLE.tensors["h"])
    assert found.method == "spectral"
    assert found.metadata["info"] == {"kernels": ["Br40"]}
    assert found.sha256 == BUNDLE.sha256
    assert (tmp_path / "m" / "docs" / "README.md").read_text() == "# card\n"


def test_the_digest_knows_tensors_and_metadata() -> None:
    other = Bundle({"h": BUNDLE.tensors["h"] + 1}, BUNDLE.metadata)
    renamed = Bundle(BUNDLE.tensors, {**BUNDLE.metadata, "info": {}})
    assert len({BUNDLE.sha256, other.sha256, renamed.sha256}) == 3


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    save_bundle(BUNDLE, tmp_path / "m", card="")
    tensors = tmp_path / "m" / "models" / "model.safetensors"
    metadata = tmp_path / "m" / "configs" / "metadata.json"
    whole, text = tensors.read_bytes(), metadata.read_text()
    tensors.write_bytes(whole[:-1] + b"\x01")
    with pytest.raises(ConcordctError, match="changed or damaged"):
        load_bundle(tmp_path / "m")
    tensors.write_bytes(whole)
    metadata.write_text(text[:-10])
    with pytest.raises(ConcordctError, match="syntax error"):
        load_bundle(tmp_path / "m")
    metadata.write_text(json.dumps({**json.loads(text), "schema": 99}))
    with pytest.raises(ConcordctError, match="schema 1, found 99"):
        load_bundle(tmp_path / "m")
    with pytest.raises(ConcordctError, match="found none"):
        load_bundle(tmp_path / "nowhere")


def test_metadata_edited_by_hand_is_found_out(tmp_path: Path) -> None:
    save_bundle(BUNDLE, tmp_path / "m", card="")
    path = tmp_path / "m" / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["info"]["kernels"] = ["Bl64"]
    path.write_text(json.dumps(metadata))
    with pytest.raises(ConcordctError, match="the file was changed"):
        load_bundle(tmp_path / "m")


def test_an_existing_model_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    save_bundle(BUNDLE, tmp_path / "m", card="first")
    with pytest.raises(ConcordctError):
        save_bundle(BUNDLE, tmp_path / "m", card="second")
    assert (tmp_path / "m" / "docs" / "README.md").read_text() == "first"
    save_bundle(BUNDLE, tmp_path / "m", card="second", overwrite=True)
    assert (tmp_path / "m" / "docs" / "README.md").read_text() == "second"
