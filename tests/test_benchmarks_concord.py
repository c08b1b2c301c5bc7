"""Variants of the flagship's network, and its bound: what holds for a silent network, and for white noise."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from concordct.methods.concord.inputs import CONDITION, MAPS
from concordct.methods.concord.standardizer import ConcordStandardizer
from concordct.methods.concord.training import FlowTask, Scanned
from concordct.methods.concord.transport import fit_transport
from concordct.methods.spectral.fit import fit_pairs
from concordct.nets.remainder import RemainderConfig, RemainderUNet
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume
from learning import awaken
from synthetic import pair, volume

# The benchmarks are no part of the package and stand beside the tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.concord_variants import (
    LEAST_POWER,
    SOURCE_NOISE,
    TRAININGS,
    WINDOW,
    Without,
    band_powers,
    served,
    window_energies,
)
from benchmarks.flagship_bound import bound_table

SEEDS = SliceSeeds(0, "test")
SMALL = RemainderConfig(MAPS, CONDITION, widths=(8, 12), embedding=16)


def silent() -> RemainderUNet:
    torch.manual_seed(0)
    return RemainderUNet(SMALL).eval()


@pytest.fixture(scope="module")
def slabs() -> tuple[Volume, Volume]:
    made = pair(seed=2)
    return volume(made[0]), volume(made[1])


@pytest.fixture(scope="module")
def work(slabs: tuple[Volume, Volume]) -> ConcordStandardizer:
    """A calibration with a silent network."""
    first = pair(seed=1)
    pairs = [(volume(first[0]), volume(first[1]))]
    model = fit_pairs(lambda: pairs)
    transport = fit_transport(model, lambda: pairs)
    assert transport is not None
    return ConcordStandardizer(model, transport, silent(), steps=1)


def test_a_silent_regression_is_the_transfer(slabs: tuple[Volume, Volume], work: ConcordStandardizer) -> None:
    made = served("regression", replace(work, bound=False))(slabs[0], generator=SEEDS).hu
    np.testing.assert_allclose(made, replace(work, mode="mean")(slabs[0], generator=SEEDS).hu, atol=0.05)


def test_a_silent_network_from_the_source_adds_its_noise(
    slabs: tuple[Volume, Volume], work: ConcordStandardizer
) -> None:
    made = served("source", work)(slabs[0], generator=SEEDS).hu - slabs[0].hu
    inside = np.abs(made) > 0
    assert 0.2 < inside.mean() < 1
    body = made[inside]
    assert abs(body.mean()) < 0.1 * body.std()
    again = served("source", replace(work, steps=3))(slabs[0], generator=SEEDS).hu - slabs[0].hu
    np.testing.assert_allclose(again, made, atol=0.01)
    assert SOURCE_NOISE > 0


@pytest.mark.parametrize(("what", "position"), [("condition", 2), ("maps", 1)])
def test_what_a_network_is_not_told_changes_nothing(what: str, position: int) -> None:
    network = silent()
    Without(network, what)
    generator = torch.Generator().manual_seed(0)
    awaken(network)
    Without(network, what)  # awaken() fills every weight
    given = [torch.randn(2, n, 16, 16, generator=generator) for n in (1, MAPS)]
    given += [torch.randn(2, CONDITION, generator=generator), torch.rand(2, generator=generator)]
    other = list(given)
    other[position] = torch.randn(given[position].shape, generator=generator)
    if what == "maps":
        other[position][:, -1] = given[position][:, -1]
    assert torch.equal(network(*given), network(*other))
    other[0] = given[0] + 1
    assert not torch.equal(network(*given), network(*other))


def test_statistics_of_white_noise_are_those_of_white_noise() -> None:
    noise = torch.randn(32, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    wanted = np.log(4 + LEAST_POWER)
    assert np.abs(band_powers(2 * noise).mean(0).numpy() - wanted).max() < 0.1
    energies = window_energies(2 * noise)
    assert energies.shape == (32, 15, (93 - WINDOW) // (WINDOW // 2) + 1, (93 - WINDOW) // (WINDOW // 2) + 1)
    assert np.abs(energies.mean((0, 2, 3)).numpy() - wanted).max() < 0.1


@pytest.mark.parametrize("name", list(TRAININGS))
def test_every_variant_starts_at_the_error_of_a_silent_network(name: str) -> None:
    made = pair(seed=20, size=160, slices=4)
    images = [np.rint(one).astype(np.int16) for one in (made[1], made[0])]
    data = TRAININGS[name].patches([Scanned("t", images, 2, 0.75, 1.0)], size=64, seed=0)
    batch = data.batch(0, range(8))
    torch.manual_seed(0)
    task = TRAININGS[name].task(RemainderUNet(SMALL))
    assert isinstance(task, FlowTask)
    found = task(torch.from_numpy(batch.source), torch.from_numpy(batch.target), batch.seeds)
    assert float(found["share"].detach()) == pytest.approx(1.0)
    if "statistic" in found:
        assert 0 < float(found["statistic"].detach()) < 2
    found["loss"].backward()
    assert any(one.grad is not None and bool(one.grad.any()) for one in task.parameters())


def test_the_bound_of_a_silent_network_is_nothing(slabs: tuple[Volume, Volume], work: ConcordStandardizer) -> None:
    rows = [line.split(" | ") for line in bound_table({"t": (work, [slabs])}).splitlines()[2:]]
    for *_, allowed, without, network in rows[:-1]:
        assert float(network.rstrip(" |")) < 1e-9
        assert 0 <= float(without) <= 1.2 * float(allowed) + 1e-3
    assert rows[-1][-1].startswith("0.00 HU")
