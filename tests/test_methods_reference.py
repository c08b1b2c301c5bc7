"""Two kernels of one scan, each brought to a reference by itself, agree in resolution and noise; limits are marked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from concordct.errors import ConcordctError
from concordct.methods.models import open_reference
from concordct.methods.spectral.reference import (
    EDGE_LP_CM,
    Condition,
    Reference,
    half_at,
    load_reference,
    measure,
    model_to,
    shipped,
)
from concordct.methods.spectral.refined import bring
from concordct.methods.spectral.transfer import SpectralStandardizer
from concordct.pipelines.standardize import Settings, plan, run
from concordct.signal.signature import RINGS, Signature, ring_centres_lp_cm
from concordct.volumes.files import write_volume_file
from concordct.volumes.scans import one_scan
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume
from synthetic import pair, volume

SIZE = 288


@pytest.fixture(scope="module")
def kernels() -> tuple[Volume, Volume]:
    soft, sharp = pair(size=SIZE, slices=2, seed=5, noise_hu=100.0)
    return volume(soft), volume(sharp)


@pytest.fixture(scope="module")
def between(kernels: tuple[Volume, Volume]) -> Reference:
    """The condition of the soft kernel on another subject."""
    other, _ = pair(size=SIZE, slices=2, seed=8, noise_hu=100.0)
    found = measure([volume(other)]).signature
    assert found.edge is not None
    assert found.noise_hu2_mm2 is not None
    return Reference("soft", "another subject", found.edge, found.noise_hu2_mm2)


def test_both_kernels_come_to_the_reference(kernels: tuple[Volume, Volume], between: Reference) -> None:
    power, halves = [], []
    f = ring_centres_lp_cm()
    for scan in kernels:
        model = model_to(between, measure([scan]))
        assert not model.info["below_reference"]
        made = measure([SpectralStandardizer(model, "sample")(scan, generator=SliceSeeds(0, "a"))]).signature
        assert made.edge is not None
        assert made.noise_hu2_mm2 is not None
        halves.append(half_at(made.edge))
        power.append(float(made.noise_hu2_mm2[(f > 2) & (f < 4)].sum()))
    before = [half_at(measure([scan]).signature.edge) for scan in kernels]  # type: ignore[arg-type]
    assert before[1] > 1.4 * before[0]
    assert halves == pytest.approx([between.mtf50_lp_cm] * 2, rel=0.05)
    assert power[0] == pytest.approx(power[1], rel=0.15)


def test_quiet_tissue_gets_the_noise_of_the_reference(kernels: tuple[Volume, Volume], between: Reference) -> None:
    """The level of the whole body says little of quiet tissue: how much noise arrives there is seen on a result."""
    scan = kernels[0]
    louder = replace(between, noise_hu2_mm2=between.noise_hu2_mm2 * 9)
    f = ring_centres_lp_cm()
    ends = (f > 2) & (f < 5)
    wanted = louder.noise_hu2_mm2[ends].sum()
    arrived = []
    for model in (model_to(louder, measure([scan])), bring(louder, [scan])):
        made = measure([SpectralStandardizer(model, "sample")(scan, generator=SliceSeeds(0, "a"))]).signature
        assert made.noise_hu2_mm2 is not None
        arrived.append(made.noise_hu2_mm2[ends].sum() / wanted)
    assert arrived[1] == pytest.approx(1, abs=0.12)
    assert abs(arrived[0] - 1) > 0.12


def test_a_gain_is_corrected_by_what_results_show(kernels: tuple[Volume, Volume]) -> None:
    """A kernel that passes little at its end seems to pass more; its result lacks power there, and says so."""
    soft, sharp = kernels
    found = measure([sharp]).signature
    assert found.edge is not None
    assert found.noise_hu2_mm2 is not None
    reference = Reference("sharp", "", found.edge, found.noise_hu2_mm2)
    f = ring_centres_lp_cm()
    band = (f > 2) & (f < 3.5)  # further out the largest gain ends what is known
    off = []
    for model in (model_to(reference, measure([soft])), bring(reference, [soft])):
        made = measure([SpectralStandardizer(model, "mean")(soft, generator=SliceSeeds(0, "a"))]).signature
        assert made.noise_hu2_mm2 is not None
        off.append(float(np.mean(np.log(made.noise_hu2_mm2[band] / found.noise_hu2_mm2[band]))))
    assert off[0] < -0.35
    assert abs(off[1]) < 0.2


def test_a_scan_below_the_reference_is_brought_to_what_is_possible_and_marked(kernels: tuple[Volume, Volume]) -> None:
    soft, sharp = kernels
    found = measure([sharp]).signature
    assert found.edge is not None
    assert found.noise_hu2_mm2 is not None
    # Twice as fine as the sharp scan: no scan here holds that.
    beyond = np.interp(EDGE_LP_CM / 2, EDGE_LP_CM, found.edge)
    model = model_to(Reference("beyond", "", beyond, found.noise_hu2_mm2), measure([soft]))
    assert model.info["below_reference"]
    assert "below the reference's resolution" in model.info["caution"]
    assert model.info["mtf50_lp_cm"] < model.info["mtf50_reached_lp_cm"] < model.info["mtf50_reference_lp_cm"]


def test_the_verb_writes_what_was_measured(kernels: tuple[Volume, Volume], tmp_path: Path) -> None:
    source = write_volume_file(tmp_path / "in.nii", kernels[1])
    model, settings = open_reference("soft"), Settings()
    output = tmp_path / "out.nii"
    (record,) = run(plan(source, output, model, settings), model, output, settings)
    assert record.status == "done", record.reason
    assert any("own MTF50" in note and "reference 3.8" in note for note in record.notes)
    assert not np.array_equal(one_scan(output).read().hu, kernels[1].hu)
    assert run(plan(source, output, model, settings), model, output, settings)[0].stood
    empty = np.full(kernels[0].shape, -1000.0)
    empty[:, 100:108, 100:108] = 40
    flat = write_volume_file(tmp_path / "flat.nii", kernels[0].with_hu(empty))
    (record,) = run(plan(flat, tmp_path / "x.nii", model, settings), model, tmp_path / "x.nii", settings)
    assert record.status == "failed"
    assert "surfaces between body and air" in (record.reason or "")


def test_references_are_small_files_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    assert shipped() == ("sharp", "soft")
    sharp = load_reference("sharp")
    assert sharp.mtf50_lp_cm > 1.3 * load_reference("soft").mtf50_lp_cm
    path = tmp_path / "own.json"
    path.write_text(json.dumps(sharp.to_json()))
    np.testing.assert_allclose(load_reference(str(path)).response, sharp.response)
    path.write_text(json.dumps({**sharp.to_json(), "mtf": [0.5] * len(EDGE_LP_CM)}))
    with pytest.raises(ConcordctError, match="MTF of 1 at 0"):
        load_reference(str(path))
    with pytest.raises(ConcordctError, match="sharp, soft, found 'none'"):
        load_reference("none")


def _signature(noise: float) -> Signature:
    rings = ring_centres_lp_cm()
    return Signature(noise * rings * np.exp(-2 * (rings / 4) ** 2), 0.8, np.exp(-((EDGE_LP_CM / 4) ** 2)), 0.7, 99, 9)


def test_a_scan_that_is_louder_than_the_reference_says_by_how_much() -> None:
    """The same resolution at 2.25 times the noise power: nothing to filter, half as much again in amplitude."""
    quiet = _signature(20.0)
    assert quiet.edge is not None
    assert quiet.noise_hu2_mm2 is not None
    model = model_to(Reference("own", "", quiet.edge, quiet.noise_hu2_mm2), Condition(_signature(45.0), None))
    assert model.info["unpaired"] is True
    # Where edges are known badly the curve is held near level, and passes a little less.
    assert model.info["noise_over_reference"] == pytest.approx(1.5, rel=0.07)
    assert "1.5 times the reference's noise" in model.info["caution"]
    assert model.info["mtf50_error"] is None
    assert not model.info["below_reference"]
    known = (model.frequency_lp_cm > 0) & (model.frequency_lp_cm < 3)
    np.testing.assert_allclose(model.single[known], 1, atol=0.03)


def test_a_scan_without_noise_is_known_by_its_edges_alone() -> None:
    """A response r stands above its error of 0.015 by r^2 / (r^2 + 0.015^2)."""
    plain = replace(_signature(20.0), noise_hu2_mm2=None, tail=None)
    assert plain.edge is not None
    model = model_to(Reference("own", "", plain.edge, np.full(RINGS, np.nan)), Condition(plain, 0.1))
    assert model.noise is None
    at = int(np.flatnonzero(np.isclose(model.frequency_lp_cm, 6.0))[0])
    response = np.exp(-((6.0 / 4) ** 2))
    assert model.coherence[at] == pytest.approx(response**2 / (response**2 + 0.015**2), rel=1e-3)
    assert model.coherence[-1] == 0
    assert "noise not measured" in model.info["caution"]


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"mtf": [1.0, 0.5]}, "ascending frequencies"),
        ({"noise_hu2_mm2": [1.0]}, "ascending frequencies"),
        ({"noise_hu2_mm2": [-1.0]}, None),
        ({"mtf": "steep"}, "one without"),
        ({"frequency_lp_cm": None}, "ascending frequencies"),
    ],
)
def test_curves_that_do_not_fit_are_no_reference(changed: dict[str, object], match: str | None) -> None:
    whole = load_reference("soft").to_json()
    if match is None:
        power = list(whole["noise_hu2_mm2"])
        known = [index for index, one in enumerate(power) if one is not None]
        power[known[-1]] = 0.4  # little noise is noise
        assert Reference.from_json({**whole, "noise_hu2_mm2": power}).noise_hu2_mm2[known[-1]] == 0.4
        power[known[-1]] = -0.4
        changed, match = {"noise_hu2_mm2": power}, "nowhere negative"
    with pytest.raises(ConcordctError, match=match):
        Reference.from_json({**whole, **changed})


def test_what_would_be_amplified_more_than_eight_times_is_half_trusted_and_less() -> None:
    """A gain of exp(0.2 f^2) that edges and noise both show: at 16 times a quarter is taken to be known."""
    rings = ring_centres_lp_cm()
    own, gain = (np.exp(-0.3 * EDGE_LP_CM**2), np.exp(0.2 * EDGE_LP_CM**2))
    noise = np.full(RINGS, 5000.0)
    scan = Signature(noise, 0.8, own, 0.5, 99, 9)
    model = model_to(Reference("sharp", "", own * gain, noise * np.exp(0.4 * rings**2)), Condition(scan, None))
    f = model.frequency_lp_cm
    for times, known in ((4.0, 1.0), (16.0, 0.25)):
        at = float(np.sqrt(np.log(times) / 0.2))
        assert np.interp(at, f, model.coherence) == pytest.approx(known, rel=0.1)
    assert model.single.max() <= 8
