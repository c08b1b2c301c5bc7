"""A learned residual: found where a neighbourhood tells of what is left over, switched off where it does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from typer.testing import CliRunner

from concordct.cli.common import app
from concordct.errors import ConcordctError
from concordct.methods.concord import fit
from concordct.methods.concord import learned as module
from concordct.methods.concord.bundle import parts, to_bundle
from concordct.methods.concord.learned import Learned, fit_learned
from concordct.methods.concord.standardizer import load
from concordct.methods.models import load_model
from concordct.methods.spectral.fit import fit_pairs
from concordct.volumes.files import open_volume_file, write_volume_file
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume
from synthetic import denoised, volume
from synthetic import pair as linear_scans

SIZE, PIXEL = 128, 0.75


def pair(seed: int, *, linear: bool) -> tuple[Volume, Volume]:
    """Noise in a body; of the target's fine noise a neighbourhood tells much where it is not linear."""
    rng = np.random.default_rng(seed)
    inside = np.hypot(*(np.mgrid[:SIZE, :SIZE] - SIZE / 2)) < 56
    raw = ndimage.gaussian_filter(rng.normal(0, 30, (1, SIZE, SIZE)), (0, 0.7, 0.7))
    told = 0 if linear else 20 * np.sign(raw - ndimage.uniform_filter(raw, (0, 3, 3)))
    own = rng.normal(0, 20 if linear else 10, raw.shape)
    source, target = (np.where(inside, 40 + one, -1000) for one in (raw, raw + told + own))
    return volume(np.rint(source), pixel_mm=PIXEL), volume(np.rint(target), pixel_mm=PIXEL)


def cohort(*, linear: bool) -> list[tuple[str, tuple[Volume, Volume]]]:
    return [(str(seed), pair(seed, linear=linear)) for seed in range(4)]


@pytest.fixture(scope="module", autouse=True)
def shorter() -> Iterator[None]:
    """A training that is enough for these bodies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STEPS", 400)
        patch.setattr(module, "PIXELS", 20_000)
        patch.setattr(fit, "STEPS", 500)
        patch.setattr(fit, "PIXELS", 20_000)
        yield


@pytest.fixture(scope="module")
def found() -> tuple[Learned, float]:
    learned, explained = fit_learned(lambda: iter(cohort(linear=False)), lambda volume: volume)
    assert learned is not None
    return learned, explained


def error(made: NDArray[np.float32], target: Volume) -> float:
    inside = np.hypot(*(np.mgrid[:SIZE, :SIZE] - SIZE / 2)) < 50
    return float(np.sqrt(np.mean((made - target.hu[0])[inside] ** 2)))


def test_what_a_neighbourhood_tells_is_written_on_patients_that_were_not_seen(found: tuple[Learned, float]) -> None:
    learned, explained = found
    assert explained > 0.1
    assert learned.explained == explained
    source, target = pair(9, linear=False)
    body = np.hypot(*(np.mgrid[:SIZE, :SIZE] - SIZE / 2)) < 56
    written = learned.written(source.hu[0], source.hu[0], body, (PIXEL, PIXEL))
    assert error(source.hu[0] + written, target) < 0.95 * error(source.hu[0], target)
    assert not written[~body].any()
    # It says nothing of pixels that it was not fitted on.
    assert not learned.written(source.hu[0], source.hu[0], body, (1.0, 1.0)).any()


def test_it_switches_itself_off_where_nothing_is_told() -> None:
    learned, explained = fit_learned(lambda: iter(cohort(linear=True)), lambda volume: volume)
    assert learned is None
    assert explained < module.LEAST_EXPLAINED


def test_patients_held_out_are_not_learned_from() -> None:
    whole = cohort(linear=False)
    spoilt = [*whole[:-1], (whole[-1][0], (whole[-1][1][0], replace(whole[-1][1][1], hu=whole[-1][1][0].hu)))]
    kept = [fit_learned(lambda c=c: iter(c), lambda volume: volume) for c in (whole, spoilt)]
    assert kept[0][0] is not None
    assert kept[0][1] > module.LEAST_EXPLAINED > kept[1][1]
    assert kept[1][0] is None


def test_it_survives_the_disk(found: tuple[Learned, float]) -> None:
    learned, _ = found
    model = fit_pairs(lambda: [pair(9, linear=True)])
    again = parts(to_bundle(model, None, learned=learned))[4]
    assert again is not None
    source, _ = pair(9, linear=False)
    body = source.hu[0] > -500
    made = [one.written(source.hu[0], source.hu[0], body, (PIXEL, PIXEL)) for one in (learned, again)]
    assert made[0].tobytes() == made[1].tobytes()
    tensors = learned.to_tensors()
    for name in ("weight_0", "scalars", "share"):
        with pytest.raises(ConcordctError, match="learned residual"):
            Learned.from_tensors({key: one for key, one in tensors.items() if key != name})
    with pytest.raises(ConcordctError, match="finite numbers"):
        Learned.from_tensors({**tensors, "centre": tensors["centre"] * np.nan})


def by_verb(folder: Path, source: Volume, target: Volume) -> str:
    """`calibrate --learned` as users call it: a model beside both scans; what was said of the residual."""
    folder.mkdir()
    write_volume_file(folder / "source.mha", source)
    write_volume_file(folder / "target.mha", target)
    places = [str(folder / name) for name in ("source.mha", "target.mha", "model")]
    done = CliRunner().invoke(app, ["calibrate", *places[:2], "-o", places[2], "--learned", "--json"])
    assert done.exit_code == 0, done.output
    return str(json.loads(done.stdout)["learned"])


def test_by_the_verb_it_is_stored_and_written(tmp_path: Path) -> None:
    source, target = denoised(1, slices=3)
    assert "it is written" in by_verb(tmp_path / "pair", source, target)
    model, out = tmp_path / "pair" / "model", tmp_path / "out.mha"
    learned = parts(load_model(model).bundle)[4]
    assert learned is not None
    assert learned.explained > module.LEAST_EXPLAINED
    words = [str(tmp_path / "pair" / "source.mha"), "-m", str(model), "-o", str(out), "--mode", "mean"]
    done = CliRunner().invoke(app, ["standardize", *words])
    assert done.exit_code == 0, done.output
    work = load(load_model(model).bundle, "mean")
    without = replace(work, learned=None)(source, generator=SliceSeeds(0, "")).hu
    body = np.hypot(*(np.mgrid[:192, :192] - 96)) < 75
    made = [hu[:, body] for hu in (open_volume_file(out).read().hu, np.rint(without))]
    errors = [float(np.sqrt(np.mean((hu - target.hu[:, body]) ** 2))) for hu in made]
    assert np.abs(made[0] - made[1]).mean() > 0.1
    assert errors[0] < errors[1]


def test_by_the_verb_a_linear_pair_has_none(tmp_path: Path) -> None:
    source, target = (volume(hu) for hu in linear_scans(size=128, slices=2))
    assert "No learned residual" in by_verb(tmp_path / "pair", source, target)
    assert parts(load_model(tmp_path / "pair" / "model").bundle)[4] is None
