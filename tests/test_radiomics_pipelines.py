"""The verbs features, agree, rois and ibsi, end to end on small files."""

import json
import re

import numpy as np
import pytest
import SimpleITK as sitk
from typer.testing import CliRunner

from concordct import cli  # hangs the verbs into the application
from concordct.errors import ConcordctError
from concordct.pipelines.agree import agree
from concordct.pipelines.engines import Local
from concordct.pipelines.features import extract_features, jobs_of_manifest, one_job
from concordct.pipelines.ibsi_table import ibsi_page, write_ibsi_table
from concordct.radiomics.presets import preset_names
from concordct.radiomics.table import FeatureRows, read_rows, write_rows
from concordct.volumes.files import open_volume_file
from concordct.volumes.manifest import PairRow, write_manifest
from concordct.volumes.masks import read_regions, to_labels


def _write(path, values):
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.8, 0.8, 2.0))
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def study(tmp_path):
    """Four pairs of two subjects: the source is the target with more noise; six ROIs in each."""
    generator = np.random.default_rng(0)
    labels = np.zeros((6, 32, 32), np.uint8)
    for place in range(6):
        labels[1:5, 4 + 9 * (place // 3) : 12 + 9 * (place // 3), 2 + 10 * (place % 3) : 10 + 10 * (place % 3)] = (
            place + 1
        )
    rows = []
    for number in range(4):
        target = 40 * generator.normal(size=labels.shape) + 20 * labels + 30 * number
        source = target + 15 * generator.normal(size=labels.shape)
        rows.append(
            PairRow(
                pair=f"pair{number}",
                subject=f"subject{number // 2}",
                split="test",
                source=_write(tmp_path / f"source{number}.nii.gz", np.round(source).astype(np.int16)),
                target=_write(tmp_path / f"target{number}.nii.gz", np.round(target).astype(np.int16)),
                mask=_write(tmp_path / f"mask{number}.nii.gz", labels),
            )
        )
    write_manifest(tmp_path / "pairs.csv", rows)
    return tmp_path


def test_workers_and_interruptions_change_no_byte(study):
    jobs = jobs_of_manifest(study / "pairs.csv", role="source")
    plain = extract_features(jobs, "pyradiomics-default", study / "plain.csv")
    assert [one.status for one in plain] == ["done"] * 4
    assert [one.rois for one in plain] == [6] * 4
    extract_features(jobs, "pyradiomics-default", study / "two.csv", engine=Local(2))
    assert (study / "two.csv").read_bytes() == (study / "plain.csv").read_bytes()

    def stop(done, _):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_features(jobs, "pyradiomics-default", study / "again.csv", progress=stop)
    assert not (study / "again.csv").exists()
    resumed = extract_features(jobs, "pyradiomics-default", study / "again.csv")
    assert [one.status for one in resumed] == ["resumed", "resumed", "done", "done"]
    assert (study / "again.csv").read_bytes() == (study / "plain.csv").read_bytes()
    assert list(study.glob(".*")) == []


def test_other_settings_never_resume_from_these(study):
    jobs = one_job(study / "source0.nii.gz", study / "mask0.nii.gz")

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_features(jobs, "pyradiomics-default", study / "a.csv", progress=stop)
    (study / "own.yaml").write_text("setting: {binWidth: 10}\nfeatureClass: {firstorder: [Mean, Entropy]}\n")
    (result,) = extract_features(jobs, str(study / "own.yaml"), study / "a.csv")
    assert result.status == "done"
    assert read_rows(study / "a.csv").names == ("original_firstorder_Mean", "original_firstorder_Entropy")


def test_one_image_that_fails_is_named_and_stops_no_other(study):
    (study / "mask2.nii.gz").write_bytes(b"no volume")
    run = CliRunner().invoke(
        cli.common.app,
        ["features", "--pairs", str(study / "pairs.csv"), "-p", "ibsi", "-o", str(study / "f.csv"), "--json"],
    )
    found = json.loads(run.stdout)
    assert run.exit_code == 1
    assert found["rois"] == 18
    assert [one["image"] for one in found["failed"]] == ["pair2"]
    assert "mask2" in found["failed"][0]["reason"]
    rows = read_rows(study / "f.csv")
    assert rows.names == preset_names("ibsi")
    assert rows.keys[:2] == (("pair0", "1"), ("pair0", "2"))
    with pytest.raises(ConcordctError, match="output exists"):
        extract_features(one_job(study / "source0.nii.gz", None), "ibsi", study / "f.csv")


def test_agreement_of_files_is_what_the_noise_leaves(study):
    runner = CliRunner()
    for role in ((), ("--target",)):
        output = study / ("target.csv" if role else "source.csv")
        command = ["features", "--pairs", str(study / "pairs.csv"), "-p", "pyradiomics-default", "-o", str(output)]
        run = runner.invoke(cli.common.app, [*command, *role])
        assert run.exit_code == 0, run.output
    same = agree(study / "target.csv", study / "target.csv", study / "same", repeats=50)
    for row in same["agreement"]["per_class"]:
        if row["standardized_ccc_mean"] is not None:
            assert row["standardized_ccc_mean"] == pytest.approx(1)
            assert row["standardized_re_share"] == 1
    constant = [one for one in same["agreement"]["undefined"] if one.startswith("original_shape_")]
    assert "original_shape_VoxelVolume: constant" in constant  # all ROIs are one box
    files = [str(study / "target.csv"), str(study / "target.csv"), "--before", str(study / "source.csv")]
    run = runner.invoke(cli.common.app, ["agree", *files, "-o", str(study / "report"), "--repeats", "50"])
    assert run.exit_code == 0, run.output
    results = json.loads((study / "report" / "results.json").read_text())
    classes = {row["class"]: row for row in results["agreement"]["per_class"]}
    assert classes["glcm"]["source_ccc_mean"] < 0.9 < classes["glcm"]["standardized_ccc_mean"]
    assert classes["glcm"]["source_re_share"] < 1
    low, high = classes["glcm"]["source_ccc_interval"]
    assert low <= high
    page = (study / "report" / "report.html").read_text()
    assert "Reproducible features: glcm" in page
    assert not re.search(r"(src|href)=.https?:", page)
    assert (study / "report" / "features.csv").read_text().count("\n") == 108


def test_a_repeat_of_the_target_is_the_yardstick(tmp_path):
    """A repeat with noise of SD 2, a source three times as far, a standardized image half as far, on 400 ROIs."""
    generator = np.random.default_rng(5)
    keys = tuple(("scan", str(roi)) for roi in range(400))
    true = generator.normal(100, 30, (400, 1))
    tables = {"target": 2.0, "again": 2.0, "before": 6.0, "after": 1.0}
    for name, sd in tables.items():
        values = true + generator.normal(0, sd, true.shape)
        rows = FeatureRows(keys, ("subject",) * 400, ("original_firstorder_Mean",), ("firstorder",), values)
        write_rows(tmp_path / f"{name}.csv", rows)
    files = [str(tmp_path / f"{name}.csv") for name in ("after", "target")]
    options = ["--before", str(tmp_path / "before.csv"), "--retest", str(tmp_path / "again.csv"), "--repeats", "10"]
    run = CliRunner().invoke(cli.common.app, ["agree", *files, *options, "-o", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    (feature,) = json.loads((tmp_path / "out" / "results.json").read_text())["agreement"]["features"]
    assert feature["repeat_within_sd"] == pytest.approx(2.0, rel=0.1)
    assert feature["repeat_within_low"] < 2.0 < feature["repeat_within_high"]
    assert feature["repeat_coefficient"] == pytest.approx(1.96 * 2**0.5 * 2.0, rel=0.1)
    # Source and target differ by noise of 6 and 2: sqrt((36 + 4) / 2) = 4.47 over 2.
    assert feature["source_to_repeat"] == pytest.approx(2.24, rel=0.1)
    assert feature["standardized_to_repeat"] == pytest.approx((5 / 2) ** 0.5 / 2, rel=0.1)
    assert feature["source_within_repeat"] < 0.8 < 0.95 < feature["standardized_within_repeat"]
    assert "as good as a repeat" in (tmp_path / "out" / "report.html").read_text()


def test_files_without_a_common_row_are_refused(study):
    (study / "mean.yaml").write_text("featureClass: {firstorder: [Mean]}\n")
    settings = str(study / "mean.yaml")
    jobs = {name: one_job(study / "source0.nii.gz", study / "mask0.nii.gz", name=name) for name in "abcd"}
    extract_features([*jobs["a"], *jobs["b"]], settings, study / "ab.csv")
    extract_features([*jobs["c"], *jobs["d"]], settings, study / "cd.csv")
    with pytest.raises(ConcordctError, match=r"found none \(ab.csv: a, b; cd.csv: c, d\); match by ROI"):
        agree(study / "ab.csv", study / "cd.csv", study / "out")
    run = CliRunner().invoke(
        cli.common.app, ["agree", str(study / "ab.csv"), str(study / "cd.csv"), "-o", str(study / "out")]
    )
    assert "(--by)" in str(run.exception)
    with pytest.raises(ConcordctError, match="expected every row once, found ROI 1 2 times"):
        agree(study / "ab.csv", study / "cd.csv", study / "out", by="roi")


def test_files_of_one_image_each_are_matched_by_roi(study):
    for name in ("source0", "target0"):
        extract_features(one_job(study / f"{name}.nii.gz", study / "mask0.nii.gz"), "ibsi", study / f"{name}.csv")
    found = agree(study / "source0.csv", study / "target0.csv", study / "out", repeats=20)
    assert (found["rois"], found["matched_by"]) == (6, "ROI")


def test_thousands_of_rois_take_the_memory_of_a_few(tmp_path):
    labels = np.zeros((4, 256, 256), np.uint16)
    corners = [(z, y, x) for z in range(4) for y in range(0, 256, 8) for x in range(0, 256, 8)]
    for number, (z, y, x) in enumerate(corners, start=1):
        labels[z, y : y + 6, x : x + 6] = number
    path = _write(tmp_path / "rois.nii.gz", labels)
    volume = open_volume_file(path)
    regions = read_regions(path, affine=volume.affine, shape=volume.shape)
    assert len(regions) == 4096
    assert sum(region.inside.nbytes for region in regions) < 1e6  # whole masks: 1.07e9
    assert np.array_equal(to_labels(regions), labels)


def test_drawn_rois_are_measured_where_they_lie(study):
    hu = np.full((4, 64, 64), -1000, np.int16)
    hu[:, :, :20], hu[:, :, 20:44], hu[:, :, 44:] = -500, 60, 500
    image = _write(study / "bands.nii.gz", hu)
    runner = CliRunner()
    run = runner.invoke(
        cli.common.app, ["rois", str(image), "-o", str(study / "rois.nii.gz"), "--size", "8", "--random", "3"]
    )
    assert "0 of 3 ROIs fit where HU are -800 to -300" in run.output  # that band counts as air around the body
    command = ["rois", str(image), "-o", str(study / "rois.nii.gz"), "--size", "8", "--random", "3", "--everywhere"]
    run = runner.invoke(cli.common.app, [*command, "--overwrite"])
    assert run.exit_code == 0, run.output
    assert "12 ROIs (3, 3, 3, 3 by HU range)" in run.output
    (study / "mean.yaml").write_text("featureClass: {firstorder: [Mean]}\n")
    extract_features(one_job(image, study / "rois.nii.gz"), str(study / "mean.yaml"), study / "mean.csv")
    means = read_rows(study / "mean.csv").values[:, 0]
    assert len(means) == 12
    low, high = np.array([(-800, -300), (-100, 250), (10, 250), (300, 800)] * 3).T
    assert ((means >= low) & (means <= high)).all()


def test_the_ibsi_page_counts_every_value(shared_data, tmp_path):
    found = write_ibsi_table(shared_data / "ibsi_1", tmp_path / "ibsi.md")
    page = (tmp_path / "ibsi.md").read_text()
    assert len(found) == 1804
    assert "| all | 482/482 | 346/346 | 346/346 | 210/210 | 210/210 | 210/210 |" in page
    missed = [one.__class__(one.configuration, one.tag, 1e9, one.reference, one.tolerance) for one in found[:1]]
    assert "| digital | morph_volume | 1e+09 | 556 | 4 |" in ibsi_page(missed)
