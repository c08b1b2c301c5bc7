"""Networks: shapes, the wiring of UNet++, pruning, what a codec lets through, locality."""

from __future__ import annotations

import pytest
import torch

from concordct.nets.blocks import customary
from concordct.nets.codec import LatentCodec, latent_statistics
from concordct.nets.denoisers import LatentUNet1d, ScalesUNet
from concordct.nets.resnet import ResNet18Encoder, ResNetAutoencoder
from concordct.nets.unetpp import UNetPlusPlus

SMALL = (8, 8, 16, 16, 32)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _image(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 1, size, size)


@torch.no_grad()
def _awaken(net: torch.nn.Module) -> None:
    """Layers that start at zero hide what is behind them."""
    for parameter in net.parameters():
        if not parameter.any():
            parameter.normal_(0, 0.1)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("residual", [True, False])
def test_pruned_unetpp_is_the_sub_network(depth: int, residual: bool) -> None:
    net = UNetPlusPlus(1, 1, (4, 6, 8, 10), residual=residual)
    _awaken(net)
    image = _image()
    small = net.pruned(depth)
    whole, pruned = net(image), small(image)
    assert len(pruned) == depth
    assert all(torch.equal(a, b) for a, b in zip(pruned, whole, strict=False))
    assert all(torch.equal(a, b) for a, b in zip(pruned, net(image, depth=depth), strict=True))
    assert (small.depth == net.depth) == (depth == 3)


def test_identity_starts_where_it_is_asked_for_and_nowhere_else() -> None:
    image = _image()
    for output in UNetPlusPlus(1, 1, (4, 6, 8), identity=True)(image):
        torch.testing.assert_close(output, image)
    for output in UNetPlusPlus(1, 1, (4, 6, 8))(image):
        assert (output - image).abs().mean() > 0.1
    codec = LatentCodec((8, 8, 8), (4, 2, 2), fold=2)
    assert (codec.decode(*codec.encode(image))[-1] - image).abs().mean() > 0.1
    with pytest.raises(ValueError, match="identity"):
        UNetPlusPlus(1, 1, (4, 6, 8), dense=False, identity=True)


def test_customary_weights_are_torch_s_own() -> None:
    """Nothing of ours is left: no silent layer, no copied one."""
    net = customary(UNetPlusPlus(1, 1, (4, 6, 8), identity=True))
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d):
            bound = 1 / (layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]) ** 0.5
            assert 0.5 * bound < layer.weight.abs().max() <= bound


@pytest.mark.parametrize("resampling", ["pool", "learned"])
def test_a_decoder_node_is_h_of_all_before_it_and_what_comes_up(resampling: str) -> None:
    """Zhou 2018, eq. 1, written out for depth 2: X(0, 2) = H([X(0, 0), X(0, 1), U(X(1, 1))])."""
    net = UNetPlusPlus(1, 1, (4, 6, 8), resampling=resampling)  # type: ignore[arg-type]
    _awaken(net)
    x00, x10, x20 = net.encode(_image())

    def up(name: str, x: torch.Tensor) -> torch.Tensor:
        if resampling == "learned":
            return net.up[name](x)
        return torch.nn.functional.interpolate(x, scale_factor=2.0)

    x01 = net.nodes["0_1"](torch.cat([x00, up("0_1", x10)], dim=1))
    x11 = net.nodes["1_1"](torch.cat([x10, up("1_1", x20)], dim=1))
    x02 = net.nodes["0_2"](torch.cat([x00, x01, up("0_2", x11)], dim=1))
    first, second = net.decode([x00, x10, x20])
    torch.testing.assert_close(first, net.heads[0](x01))
    torch.testing.assert_close(second, net.heads[1](x02))


def test_every_node_holds_all_nodes_before_it() -> None:
    # Zhou 2018, Fig. 1a: X(0, 3) takes X(0, 0), X(0, 1), X(0, 2) and U(X(1, 2)).
    net = UNetPlusPlus(1, 1, (4, 6, 8, 10), residual=False)
    widths = {name: node.layers[0].in_channels for name, node in net.nodes.items()}
    assert widths["0_1"] == 4 + 6
    assert widths["0_2"] == 2 * 4 + 6
    assert widths["0_3"] == 3 * 4 + 6
    assert widths["1_2"] == 2 * 6 + 8
    assert set(widths) == {"0_0", "1_0", "2_0", "3_0", "0_1", "1_1", "2_1", "0_2", "1_2", "0_3"}


def test_without_skips_only_the_deepest_features_matter() -> None:
    net = UNetPlusPlus(1, 1, (4, 6, 8), dense=False)
    _awaken(net)
    features = net.encode(_image())
    before = net.decode(features)[-1]
    changed = net.decode([torch.randn_like(features[0]), torch.randn_like(features[1]), features[2]])[-1]
    assert torch.equal(before, changed)


def test_networks_see_a_patch_as_they_see_it_in_the_slice() -> None:
    net = UNetPlusPlus(1, 1, (4, 6))
    _awaken(net)
    image = _image(64)
    whole = net(image)[-1][..., 24:40, 24:40]
    patch = net(image[..., 8:56, 8:56])[-1][..., 16:32, 16:32]
    torch.testing.assert_close(whole, patch, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"latents": (2, 3, 4)},
        {"latents": (0, 0, 4), "leak": True},
        {"latents": (0, 0, 4)},
        {"latents": (0, 0, 4), "vector": True, "leak": True},
        {"latents": (4, 4, 4), "fold": 2},
        {"latents": (1, 3, 5), "fold": 2, "resampling": "learned", "detail": 0.03},
        {"latents": (1, 3, 5), "fold": 2, "resampling": "learned", "detail": 0.03, "straight": True},
    ],
)
def test_codec_round_trip_of_shapes_and_statistics(options: dict) -> None:
    codec = LatentCodec((4, 6, 8), **options)
    _awaken(codec)
    image = _image()
    latents, leaks = codec.encode(image)
    before = codec.decode(latents, leaks)
    assert [tuple(one.shape) for one in before] == [(2, 1, 32, 32)] * 2
    codec.set_statistics(latent_statistics([latents]))
    normal, leaks = codec.encode(image)
    for one in normal:
        by_channel = one.transpose(0, 1).flatten(1)
        torch.testing.assert_close(by_channel.mean(dim=1), torch.zeros(len(by_channel)), atol=1e-4, rtol=0)
        torch.testing.assert_close(by_channel.std(dim=1), torch.ones(len(by_channel)), atol=1e-3, rtol=0)
    torch.testing.assert_close(codec.decode(normal, leaks)[-1], before[-1], atol=1e-4, rtol=1e-3)


def test_a_pruned_codec_and_denoiser_compute_their_scales_alone() -> None:
    codec = LatentCodec((4, 6, 8), (2, 3, 4), resampling="learned", detail=0.03, straight=True)
    net = ScalesUNet((2, 3, 4), (8, 8, 8), resampling="learned")
    _awaken(codec)
    _awaken(net)
    image, time = _image(), torch.tensor([0.5, 0.5])
    latents, leaks = codec.encode(image)
    outputs = codec.decode(latents, leaks)
    # What lies below the depth is broken: nobody may come across it.
    for name, part in [*codec.named_parameters(), *net.named_parameters()]:
        deep = ("nodes.2_0", "nodes.1_1", "nodes.0_2", "into.2", "out_of.2", "down.2", "up.2", "enter.2", "leave.2")
        if any(one in name for one in (*deep, "see.2", "say.2", "between.1", "straight.2")):
            part.data.fill_(float("nan"))
    shallow, none = codec.encode(image, depth=1)
    assert len(shallow) == 2
    assert all(torch.equal(one, other) for one, other in zip(shallow, latents, strict=False))
    (pruned,) = codec.decode(shallow, none, depth=1)
    assert torch.equal(pruned, outputs[0])
    made = net(shallow, time, shallow)
    assert [one.shape for one in made] == [one.shape for one in shallow]
    assert all(one.isfinite().all() for one in made)
    assert codec.compression == pytest.approx(2 + 3 / 4 + 4 / 16)


def test_a_pruned_codec_with_the_paper_s_latent_has_none() -> None:
    codec = LatentCodec((4, 6, 8), (0, 0, 4), leak=True, vector=True)
    _awaken(codec)
    latents, leaks = codec.encode(_image(), depth=1)
    assert latents == []
    assert codec.decode(latents, leaks, depth=1)[-1].shape == (2, 1, 32, 32)


def test_a_coarse_latent_carries_texture_through_one_matrix() -> None:
    """With a basis to see with and its transpose to say, the detail returns, whatever the network around it says."""
    codec = LatentCodec((4, 4), (0, 64), fold=4, detail=0.5, straight=True)
    for part in (codec.out_of["1"], codec.into["1"], *codec.net.heads):
        part.weight.data.zero_()
        part.bias.data.zero_()
    basis = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
    codec.see["1"].weight.data[:] = basis[:, :, None, None]
    codec.say["1"].weight.data[:] = basis.T[:, :, None, None]
    image = _image()
    around = torch.nn.functional.avg_pool2d(image, 13, 1, 6, count_include_pad=False)
    torch.testing.assert_close(codec.decode(*codec.encode(image))[-1], image - around, atol=1e-5, rtol=0)


def test_standardizing_every_scale_closes_the_leak() -> None:
    """Two images with each other's latents: what moves the output is what the latents carry."""
    images = _image()
    swapped = {}
    for name, options in {"leak": {"latents": (0, 0, 4), "leak": True}, "scales": {"latents": (4, 4, 4)}}.items():
        codec = LatentCodec((4, 6, 8), **options)
        _awaken(codec)
        latents, leaks = codec.encode(images)
        plain = codec.decode(latents, leaks)[-1]
        out = codec.decode([one.flip(0) for one in latents], leaks)[-1]
        swapped[name] = ((out - plain.flip(0)).square().mean() / (plain - plain.flip(0)).square().mean()).item()
    assert swapped["scales"] < 1e-10
    assert swapped["leak"] > 0.1


def test_resnet_takes_torchvision_names_and_shapes() -> None:
    encoder = ResNet18Encoder()
    names = encoder.state_dict()
    # torchvision 0.20, resnet18().state_dict(): 122 tensors, of which fc.* and 20 num_batches_tracked are not used.
    assert len(names) == 122 - 2 - 20
    assert names["layer4.1.conv2.weight"].shape == (512, 512, 3, 3)
    given = {name: torch.randn_like(tensor) for name, tensor in names.items()}
    given["conv1.weight"] = torch.randn(64, 3, 7, 7)
    encoder.load_torchvision({**given, "fc.weight": torch.zeros(1000, 512)})
    assert torch.equal(encoder.conv1.weight, given["conv1.weight"].sum(1, keepdim=True))
    with pytest.raises(ValueError, match=r"bn1\.weight"):
        encoder.load_torchvision({"conv1.weight": given["conv1.weight"]})


def test_the_last_skip_is_the_image_s_pixels() -> None:
    net = ResNetAutoencoder(6, widths=SMALL, skips=True, resampling="learned", detail=0.5)
    image = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    latents, leaks = net.encode(image)
    around = torch.nn.functional.avg_pool2d(image, 13, 1, 6, count_include_pad=False)
    shown = torch.nn.functional.pixel_shuffle(leaks[4], 2)
    torch.testing.assert_close(shown, torch.cat([image, (image - around) / 0.5], dim=1))
    assert not torch.equal(net.decode(latents, leaks)[0], net.decode(latents, [*leaks[:4], 0 * leaks[4]])[0])


@pytest.mark.parametrize("skips", [False, True])
def test_autoencoder_of_resnet(skips: bool) -> None:
    net = ResNetAutoencoder(6, widths=SMALL, skips=skips)
    _awaken(net)
    latents, leaks = net.encode(_image(64))
    assert latents[0].shape == (2, 6, 4)
    assert net.decode(latents, leaks)[0].shape == (2, 1, 64, 64)
    moved = net.decode([one.flip(0) for one in latents], leaks)[0] - net.decode(latents, leaks)[0].flip(0)
    assert (moved.abs().max() < 1e-5) == (not skips)


def test_denoisers_keep_shapes_and_use_condition_and_time() -> None:
    odd = torch.randn(2, 3, 9)
    sequence = LatentUNet1d(3, (8, 8, 8))
    maps = [torch.randn(2, 2, 16, 16), torch.randn(2, 4, 4, 4)]
    scales = ScalesUNet((2, 0, 4), (8, 8, 8))
    image = ScalesUNet((1,), (8, 8), fold=2)
    for net, state in ((sequence, [odd]), (scales, maps), (image, [_image(16)])):
        _awaken(net)
        early, late = torch.tensor([0.1, 0.1]), torch.tensor([0.9, 0.9])
        out = net(state, early, state)
        assert [one.shape for one in out] == [one.shape for one in state]
        assert not torch.equal(out[0], net(state, late, state)[0])
        assert not torch.equal(out[0], net(state, early, [one + 1 for one in state])[0])
