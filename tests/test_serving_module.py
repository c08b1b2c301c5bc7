"""The container's program under both contracts, run from the file tree that the Dockerfile builds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from concordct import __version__
from concordct.errors import ConcordctError
from concordct.serving.module import settings_of
from serving_parts import SECRETS, series, write_model

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "container" / "Dockerfile"


def copied() -> list[tuple[list[str], str]]:
    """(sources, target) of each COPY of the Dockerfile."""
    lines = DOCKERFILE.read_text().replace("${MODELS}", "models").splitlines()
    words = [line.split()[1:] for line in lines if line.startswith("COPY ")]
    return [(one[:-1], one[-1]) for one in words]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's files below a folder: COPY as the Dockerfile says it; `concordct` and `python` are this machine's."""
    place = tmp_path_factory.mktemp("image")
    context = tmp_path_factory.mktemp("context")
    write_model(context / "made")
    shutil.copytree(context / "made" / "br40-to-bl64", context / "models" / "br40-to-bl64")
    for sources, target in copied():
        for source in sources:
            found = context / source if source == "models" else ROOT / source
            to = place / target.lstrip("/")
            if found.is_dir():
                shutil.copytree(found, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                to = to / found.name if target.endswith("/") else to
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(found, to)
    (place / "bin").mkdir()
    (place / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (place / "bin" / "concordct").write_text(f'#!/bin/sh\nexec {sys.executable} -m concordct.cli "$@"\n')
    for path in (place / "bin").iterdir():
        path.chmod(0o755)
    return place


def enter(image: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the entry script of the tree, with its source and nothing of ours in the environment."""
    given = {
        "PATH": f"{image / 'bin'}:/usr/bin:/bin", "PYTHONPATH": str(image / "opt/concordct/src"), "HOME": "/tmp",
        "CONCORDCT_MODELS": str(image / "opt/monai/models"), "CONCORDCT_ETC": str(image / "etc"),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    entry = str(image / "opt/monai/app/entry.sh")
    return subprocess.run([entry, *arguments], env=given | environment, capture_output=True, text=True, timeout=120)


def arrived(folder: Path, *, task: dict[str, object] | None = None) -> Path:
    """What mercure lays down: two series in one folder, one of them of another kernel."""
    folder.mkdir()
    for one in (*series(seed=1, slices=4), *series(seed=2, slices=2, kernel="Hr60")):
        one.save_as(folder / f"{one.SeriesInstanceUID}#{one.SOPInstanceUID}.dcm", enforce_file_format=True)
    if task is not None:
        (folder / "task.json").write_text(json.dumps(task))
    return folder


def results(folder: Path) -> list[pydicom.Dataset]:
    found = []
    for path in sorted(folder.glob("*.dcm")):
        dataset = pydicom.dcmread(path)
        assert path.name == f"{dataset.SeriesInstanceUID}#{dataset.SOPInstanceUID}.dcm"
        found.append(dataset)
    return found


def test_as_a_mercure_module(image: Path, tmp_path: Path) -> None:
    task = {"id": "1", "process": {"module_name": "concordct", "settings": {"mode": "mean", "structured_report": True}}}
    source, target = arrived(tmp_path / "in", task=task), tmp_path / "out"
    target.mkdir()
    done = enter(image, MERCURE_IN_DIR=str(source), MERCURE_OUT_DIR=str(target))
    assert done.returncode == 0, done.stderr
    made = results(target)
    assert sorted(one.Modality for one in made) == ["CT"] * 4 + ["SR"]
    assert {one.StudyInstanceUID for one in made} == {"1.2.826.0.1.1.1"}
    said = json.loads((target / "result.json").read_text())
    assert [row["status"] for row in said["series"]] == ["done", "skipped"]
    assert said["series"][0]["series_uid"] == next(one for one in made if one.Modality == "CT").SeriesInstanceUID
    assert said["__mercure_notification"]["requested"] is False
    assert sorted(path.suffix for path in target.iterdir()) == [".dcm"] * 5 + [".json"]
    text = (target / "result.json").read_text() + done.stdout + done.stderr
    assert not [secret for secret in SECRETS if secret in text]


@pytest.mark.slow
def test_both_contracts_give_the_same_bytes(image: Path, tmp_path: Path) -> None:
    task = {"process": [{"module_name": "other", "settings": {}}, {"settings": {"mode": "mean"}}]}
    source, plain = arrived(tmp_path / "in", task=task), arrived(tmp_path / "plain")
    one, other = tmp_path / "one", tmp_path / "other"
    assert enter(image, MERCURE_IN_DIR=str(source), MERCURE_OUT_DIR=str(one)).returncode == 0
    monai = {
        "MONAI_INPUTPATH": "",
        "HOLOSCAN_INPUT_PATH": str(plain),
        "HOLOSCAN_OUTPUT_PATH": str(other),
        "CONCORDCT_MODE": "mean",
    }
    assert enter(image, **monai).returncode == 0
    assert len(results(other)) == 4
    assert {path.name: path.read_bytes() for path in one.glob("*.dcm")} == {
        path.name: path.read_bytes() for path in other.glob("*.dcm")
    }


@pytest.mark.slow
def test_a_series_that_fails_is_told_to_mercure(image: Path, tmp_path: Path) -> None:
    source = arrived(tmp_path / "in", task={"process": {"settings": {"mode": "mean"}}})
    next(source.glob("1.2.826.0.1.1.2#1.2.826.0.1.1.3.2.dcm")).unlink()
    done = enter(image, MONAI_INPUTPATH=str(source), MONAI_OUTPUTPATH=str(tmp_path / "out"))
    assert done.returncode == 1
    said = json.loads((tmp_path / "out" / "result.json").read_text())["__mercure_notification"]
    assert said["requested"] is True
    assert "spacing is not even" in said["text"]
    assert str(tmp_path) not in said["text"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"colour": "red"}, "expected settings of model, mode"),
        ({"mode": "best"}, "mode: expected sample or mean, found 'best'"),
        ({"seed": "x"}, "seed: expected int, found 'x'"),
        ({"any_kernel": "perhaps"}, "any_kernel: expected bool"),
        ({"allow": ["nonsense"]}, "allow: expected"),
    ],
)
def test_a_wrong_setting_is_refused(tmp_path: Path, settings: dict[str, object], said: str) -> None:
    (tmp_path / "task.json").write_text(json.dumps({"process": {"settings": settings}}))
    with pytest.raises(ConcordctError, match=re.escape(said)):
        settings_of(tmp_path, {})


def test_nothing_to_do_is_an_error_in_one_line(image: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    done = enter(image, MONAI_INPUTPATH=str(tmp_path / "in"), MONAI_OUTPUTPATH=str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_the_manifests_say_where_things_lie(image: Path) -> None:
    shown = enter(image, "show").stdout
    app, package = (json.loads((image / "etc" / "monai" / name).read_text()) for name in ("app.json", "pkg.json"))
    assert json.dumps(app["input"]["path"]) in shown
    assert json.loads(app["command"]) == [json.loads(_entry())[0]]
    assert app["version"] == package["version"] == __version__
    assert (image / package["applicationRoot"].lstrip("/") / "entry.sh").is_file()
    assert (image / package["modelRoot"].lstrip("/") / "br40-to-bl64").is_dir()
    assert app["environment"]["CONCORDCT_MODELS"] == package["modelRoot"]
    assert (image / "etc" / "holoscan" / "app.json").is_file()


def _entry() -> str:
    found = re.search(r"^ENTRYPOINT (.+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert found is not None
    return found.group(1)


def test_the_entry_passes_every_other_word_on(image: Path) -> None:
    assert f"concordct {__version__}" in enter(image, "--version").stdout


def test_the_image_runs_as_anybody() -> None:
    text = DOCKERFILE.read_text()
    assert re.search(r"^USER 65534$", text, re.MULTILINE)
    assert "NUMBA_CACHE_DIR=/tmp" in text
    assert os.access(ROOT / "container" / "entry.sh", os.X_OK)


def test_podman_builds_the_image(tmp_path: Path) -> None:
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed; the tests above run the image's file tree")
    base = "docker.io/library/python:3.11-slim"
    if subprocess.run(["podman", "image", "exists", base]).returncode != 0:
        pytest.skip(f"podman has no {base} here; the tests above run the image's file tree")
    context = tmp_path / "context"
    shutil.copytree(ROOT, context, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__"))
    write_model(context / "made")
    shutil.copytree(context / "made" / "br40-to-bl64", context / "models" / "br40-to-bl64")
    subprocess.run(
        ["podman", "build", "-f", "container/Dockerfile", "-t", "concordct-test", "."], cwd=context, check=True
    )
