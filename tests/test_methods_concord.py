"""The flagship: arcs keep power, transport has the target's spectrum at little error, the network keeps its bounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from concordct.diffusion.residual_flow import sample, weights
from concordct.errors import ConcordctError
from concordct.methods.concord.bundle import PREFIX, SHIPPED, WEIGHTS, shipped_weights, to_bundle
from concordct.methods.concord.inputs import CONDITION, MAPS, curves
from concordct.methods.concord.network import network_of
from concordct.methods.concord.standardizer import ConcordStandardizer, held, load
from concordct.methods.concord.training import FlowTask, RemainderPatches, Scanned
from concordct.methods.concord.transport import Transport, fit_transport
from concordct.methods.spectral.fit import fit_pairs
from concordct.methods.spectral.transfer import SpectralModel, SpectralStandardizer
from concordct.nets.remainder import RemainderConfig, RemainderUNet
from concordct.signal.body import material_mask
from concordct.signal.spectra import cosine_frequencies, noise_power, power_ratio, to_cosines
from concordct.training.bundle import load_bundle, save_bundle
from concordct.training.engine import Phase, Run, train_phase
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume
from learning import awaken
from synthetic import PIXEL_MM, filtered, frequency, object_hu, pair, soft, volume

SEEDS = SliceSeeds(0, "test")
SMALL = RemainderConfig(MAPS, CONDITION, widths=(8, 12), embedding=16)


@pytest.fixture(scope="module")
def pairs() -> tuple[tuple[Volume, Volume], tuple[Volume, Volume]]:
    """Two bodies: one to calibrate on, one to judge on."""
    first, second = pair(seed=1), pair(seed=2)
    return (volume(first[0]), volume(first[1])), (volume(second[0]), volume(second[1]))


@pytest.fixture(scope="module")
def calibrated(pairs: tuple[tuple[Volume, Volume], tuple[Volume, Volume]]) -> tuple[SpectralModel, Transport]:
    model = fit_pairs(lambda: [pairs[0]])
    transport = fit_transport(model, lambda: [pairs[0]])
    assert transport is not None
    return model, transport


def silent() -> RemainderUNet:
    torch.manual_seed(0)
    return RemainderUNet(SMALL).eval()


def awake() -> RemainderUNet:
    network = silent()
    awaken(network)
    return network.eval()


def nothing_added(transport: Transport) -> Transport:
    """Without the noise for bands that the network may not write in."""
    return replace(transport, added_mm2=0 * transport.added_mm2)


def test_arcs_keep_the_power_and_their_velocity_is_uncorrelated_with_the_state() -> None:
    theta = np.linspace(0, np.pi / 2, 7)
    rho = np.cos(theta)
    for shift in (0.0, 0.3, 0.5, 1.0):
        t, n, dt, dn = weights(theta, shift)
        np.testing.assert_allclose(t**2 + n**2 + 2 * t * n * rho, 1, atol=1e-5)
        np.testing.assert_allclose(t * dt + n * dn + rho * (t * dn + n * dt), 0, atol=1e-5)
    np.testing.assert_allclose(weights(theta, 0.0)[:2], (np.ones(7), np.zeros(7)), atol=1e-9)
    np.testing.assert_allclose(weights(theta, 1.0)[:2], (np.zeros(7), np.ones(7)), atol=1e-9)


def test_the_velocity_is_the_derivative_of_the_state() -> None:
    theta, step = np.array([0.2, 0.9, 1.5]), 1e-5
    for shift in (0.2, 0.7):
        after, before = weights(theta, shift + step), weights(theta, shift - step)
        for which in (0, 1):
            slope = (after[which] - before[which]) / (2 * step)
            np.testing.assert_allclose(slope, weights(theta, shift)[2 + which], rtol=1e-6)


def test_an_exact_velocity_leads_to_the_target_and_a_silent_one_stays() -> None:
    theta, start, target = np.array([1.1]), np.array([0.8]), np.array([-0.5])

    def exact(x: NDArray[np.float64], shift: float) -> NDArray[np.float64]:
        return weights(theta, shift)[2] * target + weights(theta, shift)[3] * start

    errors = [abs(float((sample(exact, start, steps=steps) - target)[0])) for steps in (2, 3, 5, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.1
    assert errors[-1] < 0.002
    assert sample(lambda x, shift: 0 * x, start, steps=4) == start


def test_transport_has_the_targets_power_with_less_error_than_noise_has(
    pairs: tuple[tuple[Volume, Volume], tuple[Volume, Volume]], calibrated: tuple[SpectralModel, Transport]
) -> None:
    source, target = pairs[1]
    model, transport = calibrated
    body = material_mask(source.hu, source.spacing_mm[1:])
    moved = ConcordStandardizer(model, transport)(source, generator=SEEDS)
    without = ConcordStandardizer(model, nothing_added(transport))(source, generator=SEEDS)
    noisy = SpectralStandardizer(model, "sample")(source, generator=SEEDS)
    errors = [float(np.sqrt(np.mean((one.hu - target.hu)[body] ** 2))) for one in (without, noisy)]
    assert errors[0] < errors[1]
    powers = [noise_power(one.hu, body, spacing_mm=source.spacing_mm[1:]) for one in (moved, target)]
    ratio, _ = power_ratio(*powers)
    np.testing.assert_allclose(ratio, 1, atol=0.1)


def test_noise_that_tissue_lacks_is_added_where_edges_are_known() -> None:
    """A source whose noise was shrunk inside the body, edges untouched, as iterative reconstruction does."""
    made = [pair(seed=seed, slices=2) for seed in (1, 2)]
    quiet, plain = [], []
    for soft_hu, sharp_hu in made:
        smooth = ndimage.gaussian_filter(soft_hu, (0, 1.5, 1.5))
        detail = soft_hu - smooth
        shrunk = smooth + detail * (1 - 0.6 * np.exp(-((detail / 25) ** 2)))
        quiet.append((volume(np.rint(shrunk)), volume(sharp_hu)))
        plain.append((volume(soft_hu), volume(sharp_hu)))
    shares = []
    for pairs_of_two in (quiet, plain):
        model = fit_pairs(lambda p=pairs_of_two: [p[0]])
        transport = fit_transport(model, lambda p=pairs_of_two: [p[0]])
        assert transport is not None
        shares.append(float(transport.added_mm2.sum() / transport.power_mm2.sum()))
        source, target = pairs_of_two[1]
        body = material_mask(source.hu, source.spacing_mm[1:])
        ratios = []
        for one in (transport, nothing_added(transport)):
            found = ConcordStandardizer(model, one)(source, generator=SEEDS)
            powers = [noise_power(image.hu, body, spacing_mm=source.spacing_mm[1:]) for image in (found, target)]
            ratios.append(power_ratio(*powers)[0])
        assert np.abs(ratios[0] - 1).mean() <= np.abs(ratios[1] - 1).mean() + 0.01
    assert shares[0] > 1.3 * shares[1]


def test_noise_that_the_target_has_not_is_lowered() -> None:
    """A target whose noise was shrunk inside the body, edges untouched."""
    made = [pair(seed=seed, slices=2) for seed in (1, 2)]
    slabs = []
    for soft_hu, sharp_hu in made:
        smooth = ndimage.gaussian_filter(soft_hu, (0, 1.5, 1.5))
        detail = soft_hu - smooth
        shrunk = smooth + detail * (1 - 0.6 * np.exp(-((detail / 25) ** 2)))
        slabs.append((volume(sharp_hu), volume(np.rint(shrunk))))
    model = fit_pairs(lambda: [slabs[0]])
    source, target = slabs[1]
    body = material_mask(source.hu, source.spacing_mm[1:])
    ratios = []
    for work in (
        ConcordStandardizer(model, fit_transport(model, lambda: [slabs[0]])),
        SpectralStandardizer(model, "sample"),
    ):
        found = work(source, generator=SEEDS)
        powers = [noise_power(image.hu, body, spacing_mm=source.spacing_mm[1:]) for image in (found, target)]
        ratios.append(np.abs(np.log(power_ratio(*powers)[0][:6])).mean())
    assert ratios[0] < ratios[1]


def test_a_silent_network_is_the_transport(
    pairs: tuple[tuple[Volume, Volume], tuple[Volume, Volume]], calibrated: tuple[SpectralModel, Transport]
) -> None:
    model, transport = calibrated
    source = pairs[1][0]
    expected = ConcordStandardizer(model, transport, silent(), steps=0)(source, generator=SEEDS)
    for steps in (1, 2, 4):
        found = ConcordStandardizer(model, transport, silent(), steps=steps)(source, generator=SEEDS)
        np.testing.assert_allclose(found.hu, expected.hu, atol=2e-3)


def test_what_the_scan_knows_the_network_cannot_overrule(
    pairs: tuple[tuple[Volume, Volume], tuple[Volume, Volume]], calibrated: tuple[SpectralModel, Transport]
) -> None:
    """Under 0.5 HU where the coherence exceeds 0.99, and the transport's power elsewhere, whatever the network says."""
    model, transport = calibrated[0], nothing_added(calibrated[1])
    source = pairs[1][0]
    wild = awake()
    for parameter in wild.head.parameters():
        parameter.data.normal_(0, 5)
    found = ConcordStandardizer(model, transport, wild, steps=2)(source, generator=SEEDS)
    moved = ConcordStandardizer(model, transport, wild, steps=0)(source, generator=SEEDS)
    base = SpectralStandardizer(model, "mean")(source, generator=SEEDS)
    assert np.abs(found.hu - moved.hu).max() > 20  # it did say something
    frequency = cosine_frequencies(source.shape[1:], source.spacing_mm[1:])
    known = np.interp(frequency, model.frequency_lp_cm, model.coherence) > 0.99
    for made, plain in zip(found.hu, base.hu, strict=True):
        written = to_cosines((made - plain - 1000).astype(np.float32))
        assert np.sqrt(np.mean((written * known) ** 2)) < 0.5
    body = material_mask(source.hu, source.spacing_mm[1:])
    powers = [noise_power(one.hu, body, spacing_mm=source.spacing_mm[1:]) for one in (found, moved)]
    assert power_ratio(*powers)[0].max() < 1.1


def test_a_texture_is_held_to_the_power_of_another(calibrated: tuple[SpectralModel, Transport]) -> None:
    on = curves(*calibrated, (128, 128), (0.75, 0.75))
    rng = np.random.default_rng(0)
    body = np.ones((128, 128), bool)
    loud, quiet = (rng.standard_normal((128, 128)).astype(np.float32) * scale for scale in (9, 1))
    kept = to_cosines(held(loud, quiet, on, body) - 1000)
    wanted = to_cosines(quiet - 1000)
    np.testing.assert_allclose(kept[on.free == 0], wanted[on.free == 0], atol=1e-3)
    free = on.free > 0
    assert np.mean(kept[free] ** 2) == pytest.approx(np.mean(wanted[free] ** 2), rel=0.05)


def test_same_seed_same_bytes_whatever_the_slab(
    pairs: tuple[tuple[Volume, Volume], tuple[Volume, Volume]], calibrated: tuple[SpectralModel, Transport]
) -> None:
    source = pairs[1][0]
    work = ConcordStandardizer(*calibrated, awake(), steps=2)
    whole = work(source, generator=SEEDS)
    again = work(source, generator=SEEDS)
    assert whole.hu.tobytes() == again.hu.tobytes()
    if work.context_slices == 0:
        one = replace(source, hu=source.hu[1:2], first_slice=source.first_slice + 1)
        assert work(one, generator=SEEDS).hu.tobytes() == whole.hu[1:2].tobytes()
    other = work(source, generator=SliceSeeds(1, "test"))
    assert not np.array_equal(other.hu, whole.hu)


def test_threads_change_nothing_that_is_stored(
    pairs: tuple[tuple[Volume, Volume], tuple[Volume, Volume]], calibrated: tuple[SpectralModel, Transport]
) -> None:
    source, work = replace(pairs[1][0], hu=pairs[1][0].hu[:1]), ConcordStandardizer(*calibrated, awake(), steps=2)
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(np.rint(work(source, generator=SEEDS).hu))
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(*found)


def test_mean_is_the_transfer_and_needs_no_noise_part(
    pairs: tuple[tuple[Volume, Volume], tuple[Volume, Volume]], calibrated: tuple[SpectralModel, Transport]
) -> None:
    model, transport = calibrated
    source = pairs[1][0]
    expected = SpectralStandardizer(model, "mean")(source, generator=SEEDS)
    for one in (transport, None):
        found = ConcordStandardizer(model, one, silent(), mode="mean")(source, generator=SEEDS)
        assert found.hu.tobytes() == expected.hu.tobytes()
    with pytest.raises(ConcordctError, match="use mode 'mean'"):
        ConcordStandardizer(replace(model, noise=None), None)


def test_texture_that_was_not_measured_is_the_filters(
    pairs: tuple[tuple[Volume, Volume], tuple[Volume, Volume]], calibrated: tuple[SpectralModel, Transport]
) -> None:
    model, source = calibrated[0], pairs[1][0]
    found = ConcordStandardizer(model, None)(source, generator=SEEDS)
    assert found.hu.tobytes() == SpectralStandardizer(model, "sample")(source, generator=SEEDS).hu.tobytes()


@pytest.mark.parametrize("noise_hu", [30.0, 120.0])
def test_noise_follows_the_dose_of_the_scan(calibrated: tuple[SpectralModel, Transport], noise_hu: float) -> None:
    source, target = (volume(one) for one in pair(seed=5, slices=3, noise_hu=noise_hu))
    body = material_mask(source.hu, source.spacing_mm[1:])
    found = ConcordStandardizer(*calibrated)(source, generator=SEEDS)
    powers = [noise_power(one.hu, body, spacing_mm=source.spacing_mm[1:]) for one in (found, target)]
    np.testing.assert_allclose(power_ratio(*powers)[0], 1, atol=0.2)


def fine_pair(seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[z, y, x] soft and very sharp on pixels of half the usual size, inside which both kernels end."""
    size, pixel_mm = 384, PIXEL_MM / 2
    rng, f = np.random.default_rng(seed), frequency(size, pixel_mm)
    raw = np.repeat(np.repeat(object_hu(size // 2, 1, seed), 2, axis=1), 2, axis=2)
    scanned = ndimage.gaussian_filter(raw[0], 1.5) + 1000 + 120 * filtered(rng.standard_normal((size, size)), f / 5.0)
    responses = soft(f), np.exp(-((f / 9.0) ** 6))
    made = [np.rint(filtered(scanned, response) - 1000)[None] for response in responses]
    return made[0], made[1]


def test_pixels_wider_than_the_calibrated_ones_fold_noise_back() -> None:
    """Every other pixel of a fine image is a scan with wide pixels; much of the sharp kernel's noise lies beyond."""
    first, second = fine_pair(1), fine_pair(2)
    slabs = [(volume(first[0], pixel_mm=PIXEL_MM / 2), volume(first[1], pixel_mm=PIXEL_MM / 2))]
    model = fit_pairs(lambda: slabs)
    transport = fit_transport(model, lambda: slabs)
    source, target = (volume(one[:, ::2, ::2]) for one in second)
    body = material_mask(source.hu, source.spacing_mm[1:])
    found, filters = (
        work(source, generator=SEEDS)
        for work in (ConcordStandardizer(model, transport), SpectralStandardizer(model, "sample"))
    )
    wanted = noise_power(target.hu, body, spacing_mm=source.spacing_mm[1:], band_width=0.1)
    off = [
        np.abs(np.log(power_ratio(noise_power(one.hu, body, spacing_mm=(0.8, 0.8), band_width=0.1), wanted)[0]))
        for one in (found, filters)
    ]
    assert off[0].mean() < 0.15
    assert off[0].mean() < 0.5 * off[1].mean()


def test_a_transport_of_before_is_refused(calibrated: tuple[SpectralModel, Transport]) -> None:
    tensors = calibrated[1].to_tensors()
    again = Transport.from_tensors(tensors)
    assert again.laws == calibrated[1].laws
    assert {name: one.tobytes() for name, one in again.to_tensors().items()} == {
        name: one.tobytes() for name, one in tensors.items()
    }
    with pytest.raises(ConcordctError, match="calibrate again"):
        Transport.from_tensors({name: one for name, one in tensors.items() if name != "laws"})
    with pytest.raises(ConcordctError, match="laws of the level"):
        Transport.from_tensors({**tensors, "laws": tensors["laws"][:, :2]})


def test_air_alone_comes_back(calibrated: tuple[SpectralModel, Transport]) -> None:
    empty = volume(np.full((1, 64, 64), -1000.0))
    found = ConcordStandardizer(*calibrated, awake(), steps=2)(empty, generator=SEEDS)
    np.testing.assert_allclose(found.hu, -1000, atol=0.01)


def test_a_model_survives_the_disk(
    tmp_path: Path,
    pairs: tuple[tuple[Volume, Volume], tuple[Volume, Volume]],
    calibrated: tuple[SpectralModel, Transport],
) -> None:
    bundle = to_bundle(*calibrated, shipped_weights())
    save_bundle(bundle, tmp_path / "model", card="")
    read = load_bundle(tmp_path / "model")
    source = pairs[1][0]
    for sampling in ({}, {"steps": 2}):
        before, after = (load(one, "sample", True, sampling)(source, generator=SEEDS) for one in (bundle, read))
        assert before.hu.tobytes() == after.hu.tobytes()
    lacking = {name: one for name, one in bundle.tensors.items() if name != f"{PREFIX}stem.weight"}
    with pytest.raises(ConcordctError, match="does not fit"):
        load(replace(bundle, tensors=lacking), "sample", True, {"steps": 1})
    with pytest.raises(ConcordctError, match="and a network"):
        ConcordStandardizer(*calibrated, steps=2)


def test_the_shipped_weights_are_small_and_whole() -> None:
    bundle = shipped_weights()
    assert bundle.method == WEIGHTS
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 16e6
    network = network_of(bundle)
    assert network.config.maps == MAPS
    assert network.config.condition == CONDITION


def test_training_learns_a_level_that_calibration_did_not_see(tmp_path: Path) -> None:
    """Studies whose second body has twice the noise that its level says: the network finds out."""
    rng = np.random.default_rng(0)
    images = np.zeros((2, 4, 160, 160), np.int16)
    for index in range(4):
        made = pair(seed=20 + index, size=160, slices=1)
        images[1, index], images[0, index] = (np.rint(one[0]) for one in made)
        images[0, index] += np.rint(rng.normal(0, 25, (160, 160))).astype(np.int16)
    data = RemainderPatches([Scanned("t", list(images), 2, 0.75, 1.0)], size=64, seed=0)
    torch.manual_seed(0)
    task = FlowTask(RemainderUNet(SMALL))
    phase = Phase(steps=30, batch=4, learning_rate=3e-3, warmup=5, ema=0.9, every=1000)
    batch = data.batch(1000, range(8))
    args = [torch.from_numpy(one) for one in (batch.source, batch.target)]

    def share() -> float:
        with torch.no_grad():
            return float(task(*args, batch.seeds)["share"])

    assert share() == pytest.approx(1.0)
    train_phase("flow", task, data, phase, Run(tmp_path))
    assert share() < 0.99


def test_a_model_is_refined_on_pairs_of_ones_own(tmp_path: Path) -> None:
    from concordct.pipelines.models import load_model
    from concordct.pipelines.refine import refine_model
    from concordct.volumes.files import write_volume_file
    from concordct.volumes.manifest import PairRow, write_manifest

    rows = []
    for number in (1, 2):
        made = pair(seed=30 + number, slices=2)
        for name, hu in zip(("soft", "sharp"), made, strict=True):
            write_volume_file(tmp_path / f"{number}-{name}.nii", [volume(hu)])
        paths = {"source": tmp_path / f"{number}-soft.nii", "target": tmp_path / f"{number}-sharp.nii"}
        rows.append(PairRow(pair=f"p{number}", subject=f"s{number}", split="train", **paths))
    manifest = write_manifest(tmp_path / "pairs.csv", rows)
    assert refine_model(manifest, tmp_path / "model", most_steps=2)
    first = load_model(tmp_path / "model")
    assert refine_model(manifest, tmp_path / "further", pretrained=tmp_path / "model", most_steps=2)
    further = load_model(tmp_path / "further")
    moved = [f"{PREFIX}stem.weight", f"{PREFIX}head.2.weight"]
    for name in moved:
        assert not np.array_equal(first.bundle.tensors[name], further.bundle.tensors[name])
    assert further.standardizer(mode="sample").context_slices in (0, 1)
    with pytest.raises(ConcordctError, match="exists"):
        refine_model(manifest, tmp_path / "further", most_steps=2)


def test_without_quiet_tissue_a_sample_is_the_filters(shared_data: Path) -> None:
    """The hollow head phantom: its texture is edges, which must not be raised or taken for missing noise."""
    from concordct.volumes.find import find_series

    scans = [find_series(shared_data / "philips_head_phantom" / f"{k}_1mm").series[0] for k in ("UB", "YA")]
    model = fit_pairs(lambda: [(scans[0].read(2, 3), scans[1].read(2, 3))])
    transport = fit_transport(model, lambda: [(scans[0].read(2, 3), scans[1].read(2, 3))])
    source = scans[0].read(8, 9)
    found = ConcordStandardizer(model, transport)(source, generator=SEEDS)
    expected = SpectralStandardizer(model, "sample")(source, generator=SEEDS)
    assert found.hu.tobytes() == expected.hu.tobytes()
