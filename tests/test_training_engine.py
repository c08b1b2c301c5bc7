"""The training loop: resuming to the bit, batches that follow from their step, NaN, two processes as one."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from concordct.errors import ConcordctError
from concordct.methods.paired import ltdiffpp
from concordct.training import engine
from concordct.training.bundle import load_bundle
from concordct.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from concordct.training.data import Patches
from concordct.training.engine import Paused, Phase, Run, train_phase
from learning import FITS, QUICK, cohort, data, images, pair, recipes


class Line(torch.nn.Module):
    """One weight, a loss that needs no image; NaN at a chosen call."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0]))
        self.calls, self.fails_at = 0, fails_at

    def forward(self, source, target, seeds):
        self.calls += 1
        loss = ((source / 1000 * self.weight - target / 1000) ** 2).mean()
        return {"loss": loss * float("nan") if self.calls - 1 == self.fails_at else loss}


def test_a_batch_follows_from_its_step_and_place(tmp_path: Path) -> None:
    patches = Patches(images(tmp_path), 32, seed=5)
    whole = patches.batch(3, range(4))
    parts = [patches.batch(3, range(rank, 4, 2)) for rank in range(2)]
    assert np.array_equal(whole.source[0::2], parts[0].source)
    assert np.array_equal(whole.target[1::2], parts[1].target)
    assert whole.seeds[0::2] == parts[0].seeds
    assert not np.array_equal(whole.source, patches.batch(4, range(4)).source)


def test_augmentation_turns_source_and_target_alike(tmp_path: Path) -> None:
    """Flips and quarter turns only: the sorted values of a patch stand in the volume, and target follows source."""
    (soft, sharp), stored = pair(0), images(tmp_path, 1)
    batch = Patches(stored, 32, seed=1).batch(0, range(8))
    for source, target, place in zip(batch.source, batch.target, batch.places, strict=True):
        z, y, x = (int(part) for part in place.replace("p0 slice ", "").replace(" at (", ",").rstrip(")").split(","))
        window = (slice(z, z + 1), slice(y, y + 32), slice(x, x + 32))
        turns = [
            (np.rot90(soft.hu[window][0], k)[:, :: 1 - 2 * f], np.rot90(sharp.hu[window][0], k)[:, :: 1 - 2 * f])
            for k in range(4)
            for f in (0, 1)
        ]
        assert any(np.array_equal(source[0], a) and np.array_equal(target[0], b) for a, b in turns)


def test_every_image_is_its_own_target_in_phase_one(tmp_path: Path) -> None:
    stored = images(tmp_path, 1)
    batch = Patches(stored, 32, seed=1, either=True).batch(0, range(16))
    assert np.array_equal(batch.source, batch.target)
    rough = [np.abs(np.diff(one[0])).mean() for one in batch.source]
    assert max(rough) > 2 * min(rough)  # both kernels are among them


@pytest.mark.parametrize("after", [1, 5, 9])
def test_killed_then_paused_then_resumed_ends_with_the_same_bits(tmp_path: Path, after: int) -> None:
    """A kill falls back to the last checkpoint, a pause writes one where it is; in any of the three phases."""
    recipe, stored = recipes()["ltdiffpp"], data(tmp_path / "v")
    undisturbed = ltdiffpp.fit(stored, recipe, Run(tmp_path / "a"))
    steps = 0

    def killed(name: str, step: int, total: int) -> None:
        nonlocal steps
        steps += 1
        if steps == after:
            raise KeyboardInterrupt

    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == after

    with pytest.raises(KeyboardInterrupt):
        ltdiffpp.fit(stored, recipe, Run(tmp_path / "b", progress=killed))
    with pytest.raises(Paused):
        ltdiffpp.fit(stored, recipe, Run(tmp_path / "b", stop=stop))
    resumed = ltdiffpp.fit(stored, recipe, Run(tmp_path / "b"))
    assert resumed.sha256 == undisturbed.sha256
    assert all(np.array_equal(undisturbed.tensors[name], one) for name, one in resumed.tensors.items())


def test_what_remains_is_the_moving_average(tmp_path: Path) -> None:
    """At step k it is d times itself and (1 - d) times the weight, d = min(decay, (1 + k) / (10 + k))."""
    patches = Patches(images(tmp_path / "v"), 32, seed=5)
    phase = dataclasses.replace(QUICK, steps=6, ema=0.3, learning_rate=0.1)
    path = []

    class Kept(Line):
        def forward(self, source, target, seeds):
            path.append(float(self.weight.detach()))
            return super().forward(source, target, seeds)

    line = Kept()
    train_phase("one", line, patches, phase, Run(tmp_path))
    tensors, _ = load_checkpoint(checkpoints(tmp_path / "checkpoints" / "one")[-1])
    path.append(float(tensors["weight/weight"]))
    average = path[0]
    for k, weight in enumerate(path[1:]):
        decay = min(0.3, (1 + k) / (10 + k))
        average = decay * average + (1 - decay) * weight
    assert float(line.weight.detach()) == pytest.approx(average, rel=1e-5)
    assert abs(average - path[-1]) > 1e-4


@pytest.mark.parametrize("kill", [2, 5])
def test_muon_resumes_to_the_bit(tmp_path: Path, kill: int) -> None:
    recipe, stored = recipes()["unetpp"], data(tmp_path / "v")
    phase = dataclasses.replace(QUICK, optimizer="muon", learning_rate=0.02)
    recipe = dataclasses.replace(recipe, phases=(("regression", phase),))
    whole = FITS["unetpp"].fit(stored, recipe, Run(tmp_path / "a"))

    def die(name: str, step: int, total: int) -> None:
        if step == kill:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FITS["unetpp"].fit(stored, recipe, Run(tmp_path / "b", progress=die))
    assert FITS["unetpp"].fit(stored, recipe, Run(tmp_path / "b")).sha256 == whole.sha256


def test_metrics_have_each_step_once_after_a_resume(tmp_path: Path) -> None:
    patches = Patches(images(tmp_path / "v"), 32, seed=5)
    phase = dataclasses.replace(QUICK, steps=5, every=2)

    def die(name: str, step: int, total: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_phase("one", Line(), patches, phase, Run(tmp_path, progress=die))
    train_phase("one", Line(), patches, phase, Run(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert {"phase", "step", "rate", "gradient", "loss", "seconds"} <= set(lines[0])


def test_a_loss_that_is_not_finite_names_step_batch_and_checkpoint(tmp_path: Path) -> None:
    patches = Patches(images(tmp_path / "v"), 32, seed=5)
    with pytest.raises(
        ConcordctError, match=r"step 5: .*finite loss, found nan; batch: p\d slice .*step-00000004"
    ) as found:
        train_phase("one", Line(fails_at=4), patches, QUICK, Run(tmp_path))
    assert "\n" not in str(found.value)
    assert checkpoints(tmp_path / "checkpoints" / "one")[-1].name == "step-00000004"


def test_warm_up_grows_and_the_average_follows(tmp_path: Path) -> None:
    patches = Patches(images(tmp_path / "v"), 32, seed=5)
    phase = Phase(steps=8, batch=2, learning_rate=0.1, warmup=4, ema=0.5, every=8)
    line = Line()
    train_phase("one", line, patches, phase, Run(tmp_path))
    rates = [json.loads(text)["rate"] for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    tensors, info = load_checkpoint(checkpoints(tmp_path / "checkpoints" / "one")[-1])
    assert info["step"] == 8
    assert torch.equal(tensors["average/weight"], line.weight.data)
    assert not torch.equal(tensors["weight/weight"], line.weight.data)


def test_checkpoints_stay_under_the_file_limit_and_refuse_damage(tmp_path: Path) -> None:
    tensors = {str(i): torch.full((2_000_000,), float(i)) for i in range(4)}
    path = save_checkpoint(tmp_path, 3, tensors, {})
    files = list(path.glob("*.safetensors"))
    assert len(files) == 4
    assert max(file.stat().st_size for file in files) < 16_000_000
    assert all(torch.equal(tensors[name], one) for name, one in load_checkpoint(path)[0].items())
    files[0].write_bytes(files[0].read_bytes()[:100])
    with pytest.raises(ConcordctError, match="damage"):
        load_checkpoint(path)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    recipe = recipes()["ltdiffpp"]
    ltdiffpp.fit(data(tmp_path / "v"), recipe, Run(tmp_path / "a"))
    other = dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, widths=(8, 16)))
    with pytest.raises(ConcordctError, match="another's"):
        ltdiffpp.fit(data(tmp_path / "v"), other, Run(tmp_path / "a"))


TINY = Path(__file__).parent / "tiny_cli.py"


def _train(manifest: Path, output: Path, *launcher: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, *launcher, str(TINY), "train", "ltdiffpp", str(manifest), "-o", str(output), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_ENVIRONMENT)


def _finished(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()


_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A manifest, and what one process trains on it from the command line."""
    folder = tmp_path_factory.mktemp("alone")
    manifest = cohort(folder / "cohort")
    _finished(_train(manifest, folder / "model"))
    return manifest, folder / "model"


def test_a_run_killed_at_a_random_step_ends_with_the_same_bits(alone: tuple[Path, Path], tmp_path: Path) -> None:
    """SIGKILL, which no handler sees; the run that goes on falls back to its last checkpoint."""
    manifest, model = alone
    metrics = tmp_path / "model.run" / "metrics.jsonl"
    after = random.SystemRandom().randint(1, 30)
    process = _train(manifest, tmp_path / "model")
    while process.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= after):
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL, f"ended before step {after}: {process.communicate()[1].decode()}"
    assert not (tmp_path / "model").exists()
    _finished(_train(manifest, tmp_path / "model"))
    killed, undisturbed = load_bundle(tmp_path / "model"), load_bundle(model)
    for name, one in undisturbed.tensors.items():
        assert np.array_equal(killed.tensors[name], one), f"{name}, killed after step {after}"
    assert killed.sha256 == undisturbed.sha256


def test_two_processes_are_one_at_the_same_global_batch(alone: tuple[Path, Path], tmp_path: Path) -> None:
    """`torchrun` with gloo; sums in another order are all that may differ."""
    manifest, model = alone
    _finished(_train(manifest, tmp_path / "two", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"))
    both, one = load_bundle(tmp_path / "two"), load_bundle(model)
    assert set(both.tensors) == set(one.tensors)
    for name, tensor in one.tensors.items():
        np.testing.assert_allclose(both.tensors[name], tensor, atol=1e-3, rtol=5e-3, err_msg=name)


@pytest.mark.parametrize("name", sorted(FITS))
def test_mixed_precision_trains_and_leaves_whole_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU with bfloat16 does, on a CPU: the last loss is that of float32 within bfloat16's eight bits or so."""
    last = []
    for mixed in (False, True):
        monkeypatch.setattr(engine, "_has_bfloat16", lambda device, mixed=mixed: mixed)
        folder = tmp_path / str(mixed)
        bundle = FITS[name].fit(data(folder / "v"), recipes()[name], Run(folder))
        last.append(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["loss"])
        assert all(np.isfinite(one).all() for one in bundle.tensors.values())
        assert {str(one.dtype) for one in bundle.tensors.values()} == {"float32"}
    assert last[0] != last[1]
    assert last[1] == pytest.approx(last[0], rel=0.1)


def test_tensorboard_gets_every_step_where_it_is_installed(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    patches = Patches(images(tmp_path / "v"), 32, seed=5)
    train_phase("one", Line(), patches, QUICK, Run(tmp_path))
    found = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [one.step for one in found.Scalars("one/loss")] == list(range(1, QUICK.steps + 1))
