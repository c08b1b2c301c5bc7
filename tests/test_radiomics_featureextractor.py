"""PyRadiomics' call signature: the same script under both packages, files and images in memory."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from typer.testing import CliRunner

import parity_pyradiomics
from concordct.cli.common import app
from concordct.errors import ConcordctError
from concordct.pipelines.pyradiomics_batch import run_batch
from concordct.radiomics import featureextractor
from reference_pyradiomics import SPACING, phantom

#: A script of a PyRadiomics user; `MODULE` is where the extractor comes from.
SCRIPT = """
import json, sys
MODULE
import SimpleITK as sitk
folder = sys.argv[1]
found = []
extractor = featureextractor.RadiomicsFeatureExtractor(folder + "/params.yaml")
found.append(extractor.execute(folder + "/image.nrrd", folder + "/mask.nrrd"))
found.append(extractor.execute(folder + "/image.nrrd", folder + "/mask.nrrd", label=2))
extractor = featureextractor.RadiomicsFeatureExtractor(binWidth=20, force2D=True, label=3)
extractor.disableAllFeatures()
extractor.enableFeatureClassByName("glcm")
extractor.enableFeaturesByName(firstorder=["Mean", "Kurtosis"])
extractor.enableImageTypes(Original={}, LoG={"sigma": [2.0]})
found.append(extractor.execute(sitk.ReadImage(folder + "/image.nrrd"), sitk.ReadImage(folder + "/mask.nrrd")))
extractor = featureextractor.RadiomicsFeatureExtractor({"setting": {"correctMask": True, "binWidth": 25},
                                                        "featureClass": {"shape": [], "ngtdm": []}})
extractor.addProvenance(False)
found.append(extractor.execute(folder + "/image.nrrd", folder + "/coarse.nrrd"))
json.dump([[(k, repr(v) if k.startswith("diagnostics_Conf") else v) for k, v in one.items()] for one in found],
          open(sys.argv[2], "w"), default=lambda v: v.tolist())
"""
PARAMS = """
setting:
  binWidth: 25
  label: 1
  resampledPixelSpacing: [1.1, 1.1, 2.0]
  interpolator: sitkBSpline
imageType:
  Original: {}
  Wavelet: {}
featureClass:
  shape:
  firstorder:
  glszm: ["ZoneEntropy", "SmallAreaEmphasis"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hu, labels = phantom()
    image, mask = sitk.GetImageFromArray(hu), sitk.GetImageFromArray(labels.astype(np.uint8))
    for one in (image, mask):
        one.SetSpacing(SPACING[::-1])
        one.SetOrigin((-20.0, 5.0, 100.0))
    coarse = sitk.Shrink(mask, (2, 2, 1))
    for name, one in (("image", image), ("mask", mask), ("coarse", coarse)):
        sitk.WriteImage(one, str(tmp_path / f"{name}.nrrd"))
    (tmp_path / "params.yaml").write_text(PARAMS)
    return tmp_path


@pytest.mark.skipif(
    not (parity_pyradiomics.PYTHON.parents[1] / "installed").exists(),
    reason="no PyRadiomics 3.0.1: `make reference` installs it in .venv/pyradiomics, or says why it cannot",
)
def test_one_script_gives_the_same_under_both(folder: Path) -> None:
    import sys

    rows = []
    for python, module in (
        (parity_pyradiomics.PYTHON, "from radiomics import featureextractor"),
        (sys.executable, "from concordct.radiomics import featureextractor"),
    ):
        script, out = folder / "script.py", folder / "out.json"
        script.write_text(SCRIPT.replace("MODULE", module))
        subprocess.run([python, "-W", "ignore", script, folder, out], check=True, capture_output=True)
        rows.append(json.loads(out.read_text()))
    for theirs, ours in zip(*rows, strict=True):
        wanted = [(key, value) for key, value in theirs if not key.startswith("diagnostics_")]
        found = [(key, value) for key, value in ours if not key.startswith("diagnostics_")]
        assert [key for key, _ in found] == [key for key, _ in wanted]
        np.testing.assert_allclose([v for _, v in found], [v for _, v in wanted], rtol=1e-6, atol=1e-9)
    told = [
        {k: v for k, v in rows[side][0] if k.startswith(("diagnostics_Image", "diagnostics_Mask"))} for side in (0, 1)
    ]
    for key, value in told[1].items():
        if isinstance(value, str):
            assert value == told[0][key], key
        else:
            assert value == pytest.approx(told[0][key]), key
    assert len(told[1]) > 12


def test_settings_may_be_changed_as_in_pyradiomics(folder: Path) -> None:
    extractor = featureextractor.RadiomicsFeatureExtractor(folder / "params.yaml", binWidth=10)
    assert extractor.settings["binWidth"] == 10
    assert list(extractor.enabledImagetypes) == ["Original", "Wavelet"]
    extractor.disableAllImageTypes()
    extractor.enableImageTypeByName("Original")
    extractor.disableAllFeatures()
    extractor.enableFeaturesByName(firstorder=["Mean"])
    extractor.addProvenance(False)
    hu, labels = phantom()
    found = extractor.execute(str(folder / "image.nrrd"), folder / "mask.nrrd", label=3)
    assert list(found) == ["original_firstorder_Mean"]
    assert abs(found["original_firstorder_Mean"] - hu[labels == 3].mean()) < 20  # resampled
    extractor.loadJSONParams('{"setting": {"label": 2}, "featureClass": {"shape": ["MeshVolume"]}}')
    assert extractor.settings["label"] == 2


@pytest.mark.parametrize(("change", "message"), [
    (lambda e, f: e.execute(f / "image.nrrd", f / "mask.nrrd", label=9), "no label 9 in the mask; it holds 1, 2, 3"),
    (lambda e, f: e.execute(f / "image.nrrd", f / "coarse.nrrd"), "another geometry"),
    (lambda e, f: e.execute(f / "nothing.nrrd", f / "mask.nrrd"), "no such file"),
    (lambda e, f: e.execute(f / "image.nrrd", f / "mask.nrrd", voxelBased=True), "voxel by voxel"),
    (lambda e, f: e.enableFeatureClassByName("glcmx"), "no feature class glcmx"),
    (lambda e, f: featureextractor.RadiomicsFeatureExtractor({"setting": {"binWith": 3}}), "unknown setting binWith"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(folder: Path, change: object, message: str) -> None:
    with pytest.raises(ConcordctError, match=message):
        change(featureextractor.RadiomicsFeatureExtractor(), folder)  # type: ignore[operator]


def test_a_batch_keeps_its_columns_and_goes_on_after_a_bad_row(folder: Path) -> None:
    (folder / "cases.csv").write_text(
        "ID,Image,Mask,Label\na,image.nrrd,mask.nrrd,\nb,image.nrrd,mask.nrrd,3\nc,gone.nrrd,mask.nrrd,1\n"
    )
    (folder / "small.yaml").write_text("featureClass:\n  firstorder: [Mean]\n")
    out = folder / "out.csv"
    arguments = ["pyradiomics", str(folder / "cases.csv"), "-p", str(folder / "small.yaml"), "-o", str(out)]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 1
    assert "gone.nrrd" in found.output
    with out.open(newline="") as stream:
        first, second, third = csv.DictReader(stream)
    hu, labels = phantom()
    assert (first["ID"], second["Label"]) == ("a", "3")
    assert float(first["original_firstorder_Mean"]) == pytest.approx(hu[labels == 1].mean())
    assert float(second["original_firstorder_Mean"]) == pytest.approx(hu[labels == 3].mean())
    assert third["original_firstorder_Mean"] == ""
    (folder / "wrong.csv").write_text("Image\nimage.nrrd\n")
    with pytest.raises(ConcordctError, match="no column Mask"):
        run_batch(folder / "wrong.csv", folder / "x.csv")
