"""The package from Python: its surface, arrays in and out, and that it says what the command line says."""

from __future__ import annotations

import html
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import concordct as cc
from concordct import cli
from concordct.volumes.new_series import SimulatedScan, write_new_series
from concordct.volumes.scans import one_scan
from synthetic import pair, volume

#: What a minor version may not change. A new name or keyword is added here; one that goes is a major version.
SURFACE = {
    "calibrate": "(source, target, *, method, width, learned, output, allow, overwrite, progress)",
    "describe": "(model)",
    "evaluate": "(source, standardized, target, *, output, model, mask, preset, origin, allow, overwrite)",
    "from_numpy": "(hu, affine, *, axes, world, kernel, slice_thickness_mm)",
    "inspect": "(path)",
    "load": "(path)",
    "read": "(path, *, allow)",
    "reference": "(name)",
    "standardize": "(source, model, output, *, mode, seed, any_kernel, allow, overwrite, workers, progress)",
    "to_numpy": "(volume, *, axes, world)",
    "write": "(volume, path, *, overwrite)",
}
CLASSES = {
    "ConcordctError": "",
    "Model": "card describe loaded save sha256 source_kernels standardize target_kernels warnings",
    "Volume": "affine first_slice reach_hu hu kernel padding shape slab slice_thickness_mm spacing_mm with_hu",
}


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """exam/Br40 and exam/Bl64, and the same of another patient."""
    root = tmp_path_factory.mktemp("api")
    for number, name in enumerate(("exam", "other")):
        for series, (kernel, hu) in enumerate(zip(("Br40", "Bl64"), pair(seed=number, size=96), strict=True)):
            scan = SimulatedScan(name, f"scan-{number}", f"Chest {kernel}", series + 1, 120.0, 100.0)
            write_new_series(volume(hu, kernel=kernel), root / name / kernel, scan)
    return root


@pytest.fixture(scope="module")
def model(exam: Path) -> cc.Model:
    return cc.calibrate(exam / "exam/Br40", str(exam / "exam/Bl64"))


def _shape(function: object) -> str:
    text: list[str] = []
    for parameter in inspect.signature(function).parameters.values():  # type: ignore[arg-type]
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in text:
            text.append("*")
        text.append(parameter.name)
    return f"({', '.join(text)})"


def test_the_surface_stays() -> None:
    assert set(cc.__all__) == {*SURFACE, *CLASSES, "__version__"} == set(dir(cc))
    assert {name: _shape(getattr(cc, name)) for name in SURFACE} == SURFACE
    for name, members in CLASSES.items():
        found = getattr(cc, name)
        public = {one for one in {*vars(found), *getattr(found, "__dataclass_fields__", ())} if one[0] != "_"}
        assert public == set(members.split()), name
    assert all(getattr(cc, name).__doc__ for name in (*SURFACE, *CLASSES))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cc.nothing  # noqa: B018


def test_an_import_brings_nothing_along() -> None:
    code = (
        "import sys, concordct; print([m for m in ('numpy', 'pydicom', 'scipy', 'concordct.api') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_arrays_go_in_and_come_out(exam: Path, model: cc.Model) -> None:
    read = cc.read(exam / "other/Br40")
    hu, affine = cc.to_numpy(read, axes="xyz", world="RAS")
    assert hu.shape == read.shape[::-1]
    again = cc.from_numpy(hu, affine, axes="xyz", world="RAS", kernel=read.kernel, slice_thickness_mm=3.0)
    assert np.array_equal(again.hu, read.hu)
    assert np.allclose(again.affine, read.affine)
    # A voxel is where it was, in the other world.
    assert np.allclose(affine @ [7, 5, 2, 1], read.affine @ [2, 5, 7, 1] * [-1, -1, 1, 1])
    out = model.standardize(again, mode="mean")
    assert np.array_equal(out.hu, model.standardize(exam / "other/Br40", mode="mean").hu)
    assert np.array_equal(out.affine, again.affine)
    with pytest.raises(cc.ConcordctError, match="kernel Bl64"):
        model.standardize(exam / "other/Bl64")
    with pytest.raises(cc.ConcordctError, match=r"affine of shape \(4, 4\)"):
        cc.from_numpy(hu, np.eye(3))


def test_memory_and_disk_agree(exam: Path, model: cc.Model, tmp_path: Path) -> None:
    said, steps = [], []
    model.save(tmp_path / "m")
    loaded = cc.load(tmp_path / "m")
    assert loaded.sha256 == model.sha256
    assert loaded.card.startswith("# Spectral transfer with transport of texture, Br40 to Bl64")
    records = cc.standardize(exam / "other", loaded, tmp_path / "out", progress=lambda *step: said.append(step))
    assert [(record["input"], record["status"]) for record in records] == [("Br40", "done"), ("Bl64", "skipped")]
    assert said[-1] == ("scan 1 of 1", 6, 6)
    out = model.standardize(exam / "other/Br40", progress=lambda *step: steps.append(step))
    assert np.array_equal(out.hu, one_scan(tmp_path / "out/Br40").read().hu)
    assert steps[-1] == ("standardizing", 6, 6)
    found = cc.evaluate(
        exam / "other/Br40", out, exam / "other/Bl64", model=model, output=tmp_path / "judged", origin="simulated"
    )
    # What a paper says of model and judgement stands on the page, and names what is left to the author.
    page = (tmp_path / "judged" / "report.html").read_text(encoding="utf-8")
    paragraph = found["methods"]["paragraph"]
    assert "judged against the target on 6 slices of 1 subject (simulated data)" in paragraph
    assert html.escape(paragraph[-60:]) in page
    assert "[to be filled in]" in page
    measured = ["CLEAR", "discretization method and its parameters", found["agreement"]["settings"]]
    assert measured in found["methods"]["items"]
    assert found["image_quality"]["standardized"]["rmse_hu"] < found["image_quality"]["source"]["rmse_hu"]
    cc.write(out, tmp_path / "out.nii.gz")
    assert np.array_equal(cc.read(tmp_path / "out.nii.gz").hu, out.hu)
    assert {scan["kernel"] for scan in cc.inspect(exam)["scans"]} == {"Br40", "Bl64"}


def test_volumes_calibrate_as_their_files_do(exam: Path) -> None:
    volumes = [cc.read(exam / "exam" / kernel) for kernel in ("Br40", "Bl64")]
    found = cc.calibrate([volumes[0]], [volumes[1]], method="spectral")
    assert (found.source_kernels, found.target_kernels) == (("Br40",), ("Bl64",))
    with pytest.raises(cc.ConcordctError, match="as many targets as sources, found 1 and 2"):
        cc.calibrate(volumes, volumes[:1])


def test_both_kernels_come_to_one_reference_in_memory_and_on_disk(exam: Path, tmp_path: Path) -> None:
    soft = cc.reference("soft")
    before = [cc.read(exam / "exam" / kernel) for kernel in ("Br40", "Bl64")]
    after = [soft.standardize(one, mode="mean") for one in before]
    spread = [float(np.std(pair[0].hu - pair[1].hu)) for pair in (before, after)]
    assert spread[1] < 0.5 * spread[0]
    records = cc.standardize(exam / "exam" / "Bl64", soft, tmp_path / "out", mode="mean")
    assert [record["status"] for record in records] == ["done"]
    assert np.array_equal(cc.read(tmp_path / "out").hu, soft.standardize(exam / "exam" / "Bl64", mode="mean").hu)
    with pytest.raises(cc.ConcordctError, match="nowhere"):
        cc.reference("nowhere")


def test_a_model_describes_itself_for_a_paper(model: cc.Model, tmp_path: Path) -> None:
    text = cc.describe(model)
    assert (
        f"kernel Br40 were standardized to kernel Bl64 before feature extraction with concordct {cc.__version__}"
        in (text.paragraph)
    )
    assert model.sha256[:12] in text.paragraph
    assert "1 scan reconstructed with both kernels (6 slices, 3 mm thick, pixels of 0.8 mm)" in text.paragraph
    cited = re.findall(r"@(\w+)", text.paragraph)
    assert cited
    assert all(f"{{{key}," in text.bibtex for key in cited)
    assert {guideline for guideline, _, _ in text.items} == {"CLEAR", "METRICS", "IBSI", "CLAIM"}
    model.save(tmp_path / "m")
    said = CliRunner().invoke(cli.common.app, ["describe", str(tmp_path / "m"), "--json"])
    assert json.loads(said.stdout)["bibtex"] == text.bibtex
