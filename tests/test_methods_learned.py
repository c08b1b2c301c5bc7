"""The learned methods as Standardizers: what they see, what they must not see, what comes back unharmed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.exposure import match_histograms

from concordct.errors import ConcordctError
from concordct.methods.models import OWN_KERNEL, kernel_mismatch, load_model
from concordct.methods.network import FADE_HU, HIGH_HU, LOW_HU, NetworkStandardizer, from_unit, to_bundle, to_unit
from concordct.methods.paired import diffusionct, histogram, ltdiffpp
from concordct.methods.paired.conditional import ConditionalDiffusion, Sampling, detail_window, pack, unpack
from concordct.nets.denoisers import ScalesUNet
from concordct.pipelines.train import train
from concordct.training.bundle import save_bundle
from concordct.training.engine import Run
from concordct.volumes.manifest import read_manifest
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume
from learning import CHAIN, FITS, awaken, cohort, data, pair, recipes

SEEDS = SliceSeeds(3, "series")


def _standardizer(name: str, **sampling) -> NetworkStandardizer:
    """Random weights at work."""
    recipe = recipes()[name]
    torch.manual_seed(1)
    classes = {"ltdiffpp": "LTDiffPlusPlus", "diffusionct": "DiffusionCT", "ddpm": "ImageDDPM"}
    system = getattr(FITS[name], classes.get(name, "Regressor"))(recipe.config)
    awaken(system)
    return FITS[name].load(to_bundle(FITS[name].METHOD, system, recipe, {}), "sample", sampling=sampling)


def test_the_window_is_fixed_and_invertible() -> None:
    hu = torch.linspace(LOW_HU, HIGH_HU, 1001)
    torch.testing.assert_close(from_unit(to_unit(hu)), hu, atol=1e-3, rtol=0)
    assert to_unit(torch.tensor([LOW_HU, HIGH_HU])).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("name", FITS)
def test_slabs_and_company_change_no_byte(name: str) -> None:
    volume, _ = pair(0, depth=3, size=72)  # neither a multiple of what the networks divide by nor of a tile
    method = _standardizer(name)
    whole = method(volume, generator=SEEDS)
    slabs = [method(volume.slab(start, stop), generator=SEEDS).hu for start, stop in ((0, 1), (1, 3))]
    assert np.array_equal(whole.hu, np.concatenate(slabs))
    assert np.array_equal(whole.affine, volume.affine)
    assert np.array_equal(whole.hu, method(volume, generator=SEEDS).hu)
    sampled = name in ("ltdiffpp", "diffusionct", "ddpm")
    assert sampled != np.array_equal(whole.hu, method(volume, generator=SliceSeeds(4, "series")).hu)


@pytest.mark.parametrize("name", FITS)
def test_bone_metal_and_padding_come_back_unharmed(name: str) -> None:
    soft, _ = pair(0)
    hu = soft.hu.copy()
    hu[:, 20:24, 20:24] = 3071.0
    hu[:, 30:32, 30:32] = HIGH_HU
    hu[:, 0, 0] = -2000.0
    padding = np.zeros(hu.shape, bool)
    padding[:, -1] = True
    volume = Volume(np.where(padding, np.float32(-1000), hu), soft.affine, padding)
    out = _standardizer(name)(volume, generator=SEEDS).hu
    assert np.isfinite(out).all()
    assert (out[:, 20:24, 20:24] == 3071.0).all()
    assert (out[:, 30:32, 30:32] == HIGH_HU).all()
    assert (out[:, 0, 0] == -2000.0).all()
    assert (out[padding] == -1000.0).all()
    assert not np.array_equal(out[:, 25:30, 25:30], volume.hu[:, 25:30, 25:30])


def test_the_target_never_reaches_inference(tmp_path: Path) -> None:
    """Poison B after training: its file, its stored voxels and every latent of it. The output stays, byte for byte."""
    manifest = cohort(tmp_path / "cohort")
    train("histogram", manifest, tmp_path / "model-h")
    row = read_manifest(manifest)[-1]
    assert row.target is not None
    recipe = recipes()["ltdiffpp"]
    bundle = ltdiffpp.fit(data(tmp_path / "v"), recipe, Run(tmp_path / "run"))
    save_bundle(bundle, tmp_path / "model", card="")
    from concordct.volumes.scans import one_scan

    method = load_model(tmp_path / "model").standardizer(mode="sample")
    before = method(one_scan(row.source).read(), generator=SEEDS).hu
    for path in (*tmp_path.glob("cohort/target*"), *tmp_path.glob("v/*.npy")):
        path.write_bytes(b"poison")

    def poisoned(*args: object, **options: object) -> None:
        raise AssertionError("the target was asked for at inference")

    again = load_model(tmp_path / "model").standardizer(mode="sample")
    again.system.diffusion.loss = poisoned  # type: ignore[attr-defined]
    assert np.array_equal(before, again(one_scan(row.source).read(), generator=SEEDS).hu)


@pytest.mark.parametrize("start", ["noise", "source"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
@pytest.mark.parametrize("predicts", ["noise", "residual"])
def test_a_perfect_network_gives_the_target_back(start: str, sampler: str, predicts: str) -> None:
    """The oracle's prediction through scaling, chain, sampler and both starts."""
    torch.manual_seed(0)
    a = [torch.randn(2, 2, 8, 8), torch.randn(2, 3, 4, 4)]
    b = [one + 0.3 * torch.randn_like(one) for one in a]
    chain = dataclasses.replace(CHAIN, steps=20, predicts=predicts)

    class Oracle(torch.nn.Module):
        def forward(self, x, time, condition):
            alpha_bar = diffusion.schedule.alpha_bar[round(float(time[0]) * 20)].float()
            alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
            if predicts == "noise":
                return [(one - alpha * other) / sigma for one, other in zip(x, b, strict=True)]
            rest = [(other - one) / 0.3 for one, other in zip(a, b, strict=True)]
            return [alpha * (y - alpha * r) / sigma - sigma * r for y, r in zip(x, rest, strict=True)]

    diffusion = ConditionalDiffusion(Oracle(), chain, (2, 3))
    if predicts == "residual":
        diffusion.set_spread([torch.full((2,), 0.3), torch.full((3,), 0.3)])
    losses, estimate = diffusion.loss(a, b, [1, 1])
    assert losses["loss"] < 1e-6
    generator = torch.Generator().manual_seed(0)
    made = diffusion.sample(
        a,
        Sampling(steps=5, sampler=sampler, start=start),  # type: ignore[arg-type]
        lambda shape: torch.randn(shape, generator=generator),
    )
    for found in (estimate, made):
        for one, other in zip(found, b, strict=True):
            torch.testing.assert_close(one, other, atol=2e-3, rtol=1e-3)


def test_a_network_that_says_nothing_leaves_the_source() -> None:
    """Residual prediction of zero has its mean at the source: what the start of training looks like."""
    net = ScalesUNet((2,), (8, 8))
    diffusion = ConditionalDiffusion(net, CHAIN, (2,))
    a = [torch.randn(1, 2, 8, 8)]
    torch.testing.assert_close(diffusion.mean(a)[0], a[0], atol=1e-3, rtol=1e-3)


def test_detail_is_what_differs_from_the_surroundings_in_units_of_the_residual() -> None:
    seen = []

    class Net(torch.nn.Module):
        def forward(self, x, time, condition):
            seen.append(condition[0])
            return [torch.zeros_like(one) for one in x]

    diffusion = ConditionalDiffusion(Net(), CHAIN, (2,), detail=detail_window(4))
    diffusion.set_spread([torch.tensor([0.5, 0.1])])
    texture = torch.randn(1, 2, 12, 12)
    ramp = torch.linspace(-1, 1, 12)[None, None, :, None]
    for added in (0.0, 3.0, ramp):
        diffusion.mean([texture + added])
        source, detail = seen[-1].chunk(2, dim=1)
        assert torch.equal(source, texture + added)
        inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
        around = torch.nn.functional.avg_pool2d(texture, 3, 1)
        wanted = (texture[inside] - around) / torch.tensor([0.5, 0.1])[:, None, None]
        torch.testing.assert_close(detail[inside], wanted, atol=1e-4, rtol=1e-4)
    assert [detail_window(fold) for fold in (1, 2, 4)] == [13, 7, 3]


def test_packing_is_a_round_trip() -> None:
    state = [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2)]
    assert all(torch.equal(a, b) for a, b in zip(unpack(pack(state), state), state, strict=True))


def test_the_draws_of_a_sample_do_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    diffusion = ConditionalDiffusion(ScalesUNet((2,), (8, 8)), CHAIN, (2,))
    awaken(diffusion)
    a, b = torch.randn(2, 2, 8, 8), torch.randn(2, 2, 8, 8)
    together = diffusion.loss([a], [b], [11, 12])[0]["loss"]
    alone = [diffusion.loss([a[i : i + 1]], [b[i : i + 1]], [11 + i])[0]["loss"] for i in range(2)]
    torch.testing.assert_close(together, sum(alone) / 2)


def test_pruning_is_a_setting_of_inference() -> None:
    volume, _ = pair(0)
    recipe = recipes()["unetpp"]
    torch.manual_seed(1)
    system = FITS["unetpp"].Regressor(recipe.config)
    awaken(system)
    bundle = to_bundle("encoder-decoder", system, recipe, {})
    outputs = system.outputs(to_unit(torch.from_numpy(volume.hu)[:, None]))
    for depth in (1, 2):
        made = FITS["unetpp"].load(bundle, "sample", sampling={"depth": depth})(volume, generator=SEEDS)
        inside = (volume.hu >= LOW_HU) & (volume.hu < HIGH_HU - FADE_HU)
        expected = from_unit(outputs[depth - 1])[:, 0].detach().numpy()
        np.testing.assert_allclose(made.hu[inside], expected[inside], atol=0.01)


def test_ablations_leave_out_what_they_name() -> None:
    recipe = ltdiffpp.RECIPES["small"]
    assert ltdiffpp.without(recipe, "skips").config.latents[:-1] == (0, 0)
    assert [name for name, _ in ltdiffpp.without(recipe, "integration").phases] == ["autoencoder", "diffusion"]
    config = ltdiffpp.without(recipe, "supervision").config
    outputs = [torch.randn(1, 1, 8, 8) for _ in range(2)]
    wanted = torch.randn(1, 1, 8, 8)
    last = [torch.zeros_like(wanted), outputs[1]]
    assert torch.equal(ltdiffpp.supervised(outputs, wanted, config), ltdiffpp.supervised(last, wanted, config))
    assert not torch.equal(
        ltdiffpp.supervised(outputs, wanted, recipe.config), ltdiffpp.supervised(last, wanted, recipe.config)
    )


def test_readings_of_diffusionct_differ_in_what_they_name() -> None:
    whole = diffusionct.RECIPES["common"]
    printed, large, alone, asked = (
        diffusionct.ABLATIONS[name](whole) for name in ("skips", "bottleneck", "integration", "idle")
    )
    assert [name for name, _ in printed.phases] == [name for name, _ in alone.phases] == ["autoencoder", "diffusion"]
    assert [phase.steps for _, phase in printed.phases] == [2 * phase.steps for _, phase in whole.phases[:2]]
    assert alone.phases == whole.phases[:2]
    assert (printed.config.skips, printed.config.drop, alone.config) == (False, 0.0, whole.config)
    assert (large.config.channels, large.config.skips) == (4 * whole.config.channels, False)
    assert (asked.config.conditioned, asked.config.drop, asked.config.skips) == (True, 0.0, True)
    assert asked.phases == whole.phases


def test_the_printed_loss_is_not_least_at_the_truth() -> None:
    """Why recipe and printed segmentation loss part: BCE without its second half pulls every intensity up."""
    truth = torch.full((1, 1, 2, 2), -0.4)  # 0.3 in [0, 1]
    assert ltdiffpp.bce_dice(truth + 0.2, truth) < ltdiffpp.bce_dice(truth, truth)


@pytest.mark.parametrize("part", ["skips", "supervision", "integration"])
def test_every_ablation_trains(tmp_path: Path, part: str) -> None:
    recipe = ltdiffpp.without(recipes()["ltdiffpp"], part)
    bundle = ltdiffpp.fit(data(tmp_path / "v"), recipe, Run(tmp_path / "run"))
    out = ltdiffpp.load(bundle, "sample")(pair(5)[0], generator=SEEDS)
    assert np.isfinite(out.hu).all()


def test_the_paper_s_shape_of_ltdiffpp_runs() -> None:
    """One-dimensional latent, raw skips, start from Z_A + noise; tiles."""
    recipe = recipes()["ltdiffpp"]
    config = ltdiffpp.Config(
        widths=(8, 8, 8), latents=(0, 0, 4), chain=CHAIN, denoiser=(8, 8), leak=True, vector=True, tile=64
    )
    torch.manual_seed(0)
    system = ltdiffpp.LTDiffPlusPlus(config)
    awaken(system)
    bundle = to_bundle("ltdiffpp", system, dataclasses.replace(recipe, config=config), {})
    stored = json.loads(json.dumps(dict(bundle.metadata)))
    again = ltdiffpp.load(dataclasses.replace(bundle, metadata=stored), "sample", sampling={"start": "source"})
    assert np.isfinite(again(pair(5, size=80)[0], generator=SEEDS).hu).all()


@pytest.mark.parametrize("name", FITS)
def test_training_lowers_the_loss_and_the_bundle_comes_back(name: str, tmp_path: Path) -> None:
    recipe = recipes()[name]
    last = recipe.phases[-1][0]
    phases = tuple(
        (key, dataclasses.replace(phase, steps=30 if key == last else 6, every=30, learning_rate=3e-3))
        for key, phase in recipe.phases
    )
    bundle = FITS[name].fit(data(tmp_path / "v"), dataclasses.replace(recipe, phases=phases), Run(tmp_path / "run"))
    losses = [
        line["loss"]
        for line in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
        if line["phase"] == last
    ]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert list((tmp_path / "run" / "pictures").glob("*.png"))
    save_bundle(bundle, tmp_path / "model", card="# card\n")
    volume, _ = pair(9)
    direct = FITS[name].load(bundle, "sample")(volume, generator=SEEDS)
    model = load_model(tmp_path / "model")
    assert np.array_equal(direct.hu, model.standardizer(mode="sample")(volume, generator=SEEDS).hu)
    assert model.source_kernels == ("soft",)
    mean = model.standardizer(mode="mean")(volume, generator=SEEDS).hu
    assert np.array_equal(mean, model.standardizer(mode="mean")(volume, generator=SliceSeeds(8, "x")).hu)


def test_bundles_open_as_monai_bundles(tmp_path: Path) -> None:
    parser_of = pytest.importorskip("monai.bundle").ConfigParser
    recipe = recipes()["unetpp"]
    torch.manual_seed(1)
    system = FITS["unetpp"].Regressor(recipe.config)
    save_bundle(to_bundle("encoder-decoder", system, recipe, {}), tmp_path / "model", card="")
    parser = parser_of()
    parser.read_config(str(tmp_path / "model" / "configs" / "inference.json"))
    parser.read_meta(str(tmp_path / "model" / "configs" / "metadata.json"))
    parser["bundle_root"] = str(tmp_path / "model")
    volume, _ = pair(0)
    out = parser.get_parsed_content("standardizer")(volume, generator=SEEDS)
    assert out.hu.shape == volume.shape
    assert parser["_meta_"]["network_data_format"]["inputs"]["image"]["modality"] == "CT"


def test_weights_of_another_method_and_tampered_files_are_one_line(tmp_path: Path) -> None:
    recipe = recipes()["unetpp"]
    bundle = to_bundle("encoder-decoder", FITS["unetpp"].Regressor(recipe.config), recipe, {})
    with pytest.raises(ConcordctError, match="expected a model of method 'ltdiffpp', found 'encoder-decoder'"):
        ltdiffpp.load(bundle, "sample")
    swapped = dataclasses.replace(bundle, metadata={**bundle.metadata, "method": "ddpm"})
    with pytest.raises(ConcordctError, match="does not fit") as found:
        FITS["ddpm"].load(swapped, "sample")
    assert "\n" not in str(found.value)
    save_bundle(bundle, tmp_path / "model", card="")
    file = tmp_path / "model" / "models" / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(bytes(raw))
    with pytest.raises(ConcordctError, match="changed or damaged"):
        load_model(tmp_path / "model")


def test_imagenet_weights_are_read_as_tensors_and_never_unpickled(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    system = diffusionct.DiffusionCT(diffusionct.Config(4, CHAIN, (8, 8), 64))
    names = system.autoencoder.encoder.state_dict()
    given = {name: torch.randn_like(one) for name, one in names.items()}
    given["conv1.weight"] = torch.randn(64, 3, 7, 7)
    torch.save(given, tmp_path / "resnet18.pth")
    diffusionct.load_imagenet(system, tmp_path / "resnet18.pth")
    assert torch.equal(system.autoencoder.encoder.layer1[0].conv1.weight, given["layer1.0.conv1.weight"])
    save_file(given, tmp_path / "resnet18.safetensors")
    diffusionct.load_imagenet(system, tmp_path / "resnet18.safetensors")
    torch.save({"model": Path("whatever")}, tmp_path / "evil.pth")
    for name in ("evil.pth", "none.safetensors"):
        with pytest.raises(ConcordctError) as found:
            diffusionct.load_imagenet(system, tmp_path / name)
        assert "\n" not in str(found.value)


def test_histogram_matching_is_scikit_image_s(tmp_path: Path) -> None:
    soft, sharp = pair(0)
    a, b = (volume.hu.astype(np.int16) for volume in (soft, sharp))
    method = histogram.fit_histogram([(a, b)])
    made = method(soft, generator=SEEDS).hu
    np.testing.assert_allclose(made, match_histograms(a, b), atol=0.51)
    assert method.context_slices == 0
    bundle = method.to_bundle({})
    again = histogram.load(bundle, "mean")(soft, generator=SEEDS)
    assert np.array_equal(made, again.hu)
    metal = soft.with_hu(np.full(soft.shape, 3071.0))
    assert np.ptp(method(metal, generator=SEEDS).hu) == 0
    assert np.isfinite(method(metal, generator=SEEDS).hu).all()


def test_train_refuses_with_one_line(tmp_path: Path) -> None:
    manifest = cohort(tmp_path / "cohort", 2)
    cases = {
        "expected a recipe": {"method": "ltdiffpp", "recipe": "huge"},
        "expected to leave out": {"method": "ddpm", "without": "skips"},
        "expected no file of pre-trained weights": {"method": "ddpm", "imagenet": tmp_path},
        "split 'nobody'": {"method": "histogram", "split": "nobody"},
        "found 'gan'": {"method": "gan"},
    }
    for text, options in cases.items():
        with pytest.raises(ConcordctError, match=text) as found:
            train(pairs=manifest, output=tmp_path / "m", **options)
        assert "\n" not in str(found.value)
    train("histogram", manifest, tmp_path / "m")
    with pytest.raises(ConcordctError, match="exists"):
        train("histogram", manifest, tmp_path / "m")
    with pytest.raises(ConcordctError, match="another method"):
        train("unetpp", manifest, tmp_path / "m", overwrite=True, most_steps=1)
    bad = tmp_path / "bad.csv"
    bad.write_text("pair,subject\nx,y\n")
    with pytest.raises(ConcordctError, match="columns"):
        train("histogram", bad, tmp_path / "n")


def test_tiles_cover_a_slice_that_is_longer_than_wide() -> None:
    """A network that changes nothing gives the slice back, whatever its shape: every tile lies where it was cut."""

    class Same(torch.nn.Module):
        tile, divisor = 64, 1

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def translate(self, image, sampling, draw, *, mean):
            assert image.shape[2:] == (64, 64)
            return image

    method = NetworkStandardizer(Same(), "same", Sampling(steps=1))
    for shape in ((1, 41, 97), (1, 150, 30)):
        hu = np.random.default_rng(0).uniform(-900, 300, shape).astype(np.float32)
        np.testing.assert_allclose(method(Volume(hu, np.eye(4)[[2, 1, 0, 3]]), generator=SEEDS).hu, hu, atol=1e-2)


def test_what_concordct_standardized_is_no_source_but_of_models_for_it(tmp_path: Path) -> None:
    recipe = recipes()["unetpp"]
    bundle = to_bundle("encoder-decoder", FITS["unetpp"].Regressor(recipe.config), recipe, {"source_kernels": ["B30"]})
    save_bundle(bundle, tmp_path / "model", card="")
    model = load_model(tmp_path / "model")
    own = f"{OWN_KERNEL}x"
    assert kernel_mismatch(model, "B30") is None
    assert kernel_mismatch(model, None) is None
    assert "already" in str(kernel_mismatch(model, own))
    assert "converts from B30" in str(kernel_mismatch(model, "B70"))
