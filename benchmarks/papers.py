"""The whole table of the two papers on the virtual scanner's small cohort, Br40 to Bl64, in pieces that resume.

python -m benchmarks.papers                       # cohort, second scans, every row, comparison; writes docs/results.md
python -m benchmarks.papers --minutes 9           # one piece; run it again to go on
python -m benchmarks.papers --most-steps 200      # a rehearsal
python -m benchmarks.papers --study diffusionct   # latent size, T and schedule of DiffusionCT

Everything goes to `runs/papers` (not kept in the repository): the cohort, the models with their runs, the comparison.

What `small` spends, seconds of one core: cohort and second scans 400; encoder-decoder 80, UNet++ 100, DDPM 130, each
2,000 steps of 8 patches of 64 pixels; LTDiff++ the same 2,000 for its diffusion (150) beside 100 for an autoencoder
that starts as the identity and 200 for the integration (20); without skips 90, without supervision 170; without phase 3
nothing, since its first two phases are LTDiff++'s to the bit and are taken over; DiffusionCT 2,000 + 2,000 steps, as
many pixels in each (260); comparison 400, curve, speed and leak 200. Half an hour of one core in all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import papers_diffusionct
from benchmarks.results import ROOT, table, write_section
from concordct.agreement import concordance as agreement
from concordct.judging.regions import RANDOM
from concordct.methods.models import load_model
from concordct.methods.network import TrainingData, seeded, to_unit
from concordct.methods.paired import ltdiffpp
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_manifest
from concordct.pipelines.compare import CEILING, INPUT, compare, peak_mb
from concordct.pipelines.simulate import plan_recipe, simulate
from concordct.pipelines.train import train
from concordct.radiomics.extract import extract
from concordct.radiomics.presets import settings_for
from concordct.radiomics.regions.rois import PAPER_RANGES_HU, random_rois
from concordct.scanner.cohorts import Job
from concordct.training.data import Images, Patches, store
from concordct.training.engine import Run, train_phase
from concordct.volumes.manifest import read_manifest, write_manifest
from concordct.volumes.scans import one_scan
from concordct.volumes.seeds import SliceSeeds

SEED = 7
#: Rows of the table: name -> method and what is left out. The order is that of the papers.
ROWS: dict[str, tuple[str, str | None]] = {
    "histogram matching": ("histogram", None),
    "spectral": ("spectral", None),
    "encoder-decoder": ("encoder-decoder", None),
    "UNet++": ("unetpp", None),
    "DDPM (image)": ("ddpm", None),
    "DiffusionCT": ("diffusionct", None),
    "LTDiff++": ("ltdiffpp", None),
    "LTDiff++ without skips": ("ltdiffpp", "skips"),
    "LTDiff++ without deep supervision": ("ltdiffpp", "supervision"),
    "LTDiff++ without phase 3": ("ltdiffpp", "integration"),
}
#: Sampling steps of the curve.
STEPS = (1, 2, 4, 6, 10, 20)
#: Steps of the two autoencoders that the leak is measured on.
LEAK_STEPS = 200
#: LTDiff++ without phase 3 is LTDiff++ before phase 3.
WHOLE, CUT_SHORT = "LTDiff++", "LTDiff++ without phase 3"
#: A slice is standardized this often; the fastest counts.
SPEED_REPEATS = 5
#: Slices of each validation pair that the curve is measured on.
CURVE_SLICES = 1


def jobs_of_cohort() -> tuple[Job, ...]:
    """The small cohort without the subjects of other kernels that it holds back."""
    return tuple(job for job in plan_recipe("small", seed=SEED) if job.split != "held-out")


def second_scans(folder: Path, cohort: Path) -> Path:
    """The test subjects scanned again with other noise: a manifest with the names of the first scans' pairs."""
    jobs = [dataclasses.replace(job, scan=1) for job in jobs_of_cohort() if job.split == "test"]
    made = simulate(jobs, folder, file_format="nifti")
    rows = [
        row.model_copy(update={"pair": row.pair.replace("scan-1", "scan-0")}) for row in read_manifest(made.manifest)
    ]
    known = {row.pair for row in read_manifest(cohort)}
    if not {row.pair for row in rows} <= known:
        raise SystemExit(f"{folder}: its pairs are not those of {cohort}")
    return write_manifest(folder / "ceiling.csv", rows, overwrite=True)


def take_over(whole: Path, cut_short: Path) -> None:
    """Give the ablation the finished phases that it shares with the whole."""
    for phase in ("autoencoder", "diffusion"):
        place = cut_short / "checkpoints" / phase
        if not place.exists() and (whole / "checkpoints" / phase).exists():
            shutil.copytree(whole / "checkpoints" / phase, place)


def stored(pairs: Path, folder: Path, split: str) -> list[Images]:
    """The pairs of a split, memory-mapped."""
    rows = [row for row in read_manifest(pairs) if row.split == split and row.target is not None]
    return [store(folder, row.pair, one_scan(row.source), one_scan(row.target)) for row in rows]  # type: ignore[arg-type]


def steps_against_quality(model: Path, pairs: Path) -> list[list[str]]:
    """Sampling steps, RMSE, CCC of GLCM and GLRLM in random ROIs of the validation pairs, processor seconds a slice."""
    settings = settings_for("ibex-1401")
    loaded = load_model(model)
    judged = []
    for row in read_manifest(pairs):
        if row.split != "validation" or row.target is None:
            continue
        source, target = one_scan(row.source), one_scan(row.target)
        middle = source.shape[0] // 2
        volume, wanted = (scan.read(middle, middle + CURVE_SLICES) for scan in (source, target))
        random = np.random.default_rng(SEED)
        rois = random_rois(
            wanted, ranges_hu=PAPER_RANGES_HU, count=12, size=16, least_share=0.5, generator=random
        ).labels
        judged.append((SliceSeeds(SEED, source.key), volume, wanted, rois, extract(wanted, rois, settings)))
    classes = judged[0][-1].classes
    targets = np.concatenate([of_target.values for *_, of_target in judged])
    ways = [*(("dpmpp", n, 0) for n in STEPS), *(("ddim", n, 0) for n in STEPS[3:4]), ("ddpm", STEPS[-1], 0)]
    ways.append(("dpmpp", loaded.bundle.metadata["sampling"]["steps"], 1))
    found = []
    for sampler, steps, depth in ways:
        sampling = {"steps": steps, "sampler": sampler, "depth": depth}
        standardizer = loaded.standardizer(mode="sample", sampling=sampling)
        values, seconds, squares = [], [], []
        for seeds, volume, wanted, rois, _ in judged:
            began = time.process_time()
            made = standardizer(volume, generator=seeds)
            seconds.append((time.process_time() - began) / CURVE_SLICES)
            squares.append(float(((made.hu - wanted.hu) ** 2).mean()))
            values.append(extract(made.with_hu(np.clip(np.rint(made.hu), -1024, 3071)), rois, settings).values)
        ccc = agreement.mean_by_class(agreement.ccc_per_feature(np.concatenate(values), targets), classes)
        found.append(
            [
                sampler + (f", pruned to depth {depth}" if depth else ""),
                str(steps),
                f"{np.sqrt(np.mean(squares)):.1f}",
                f"{ccc['GLCM'].mean:.3f}",
                f"{ccc['GLRLM'].mean:.3f}",
                f"{np.median(seconds):.2f}",
            ]
        )
    return found


def speed(models: dict[str, Path], pairs: Path) -> list[list[str]]:
    """Seconds, memory and parameters for a slice of 512 x 512: each model, as it comes and pruned, by itself."""
    (row, *_) = [row for row in read_manifest(pairs) if row.split == "validation"]
    rows = []
    for name, path in models.items():
        for depth in range(2 if name in (WHOLE, "UNet++") else 1):
            if name.startswith(f"{WHOLE} "):
                continue
            # Spawned, so that the peak of memory is its own.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                found = pool.submit(_speed_of_one, path, row.source, depth).result()
            rows.append([name + (f", pruned to depth {depth}" if depth else ""), *found])
    return rows


def _speed_of_one(path: Path, source: Path, depth: int) -> list[str]:
    scan, model = one_scan(source), load_model(path)
    volume = scan.read(0, 1)
    standardizer = model.standardizer(mode="sample", sampling={"depth": depth} if depth else None)
    found = {}
    for threads, clock in ((1, time.process_time), (2, time.perf_counter)):
        torch.set_num_threads(threads)
        found[threads] = []
        for _ in range(SPEED_REPEATS):
            began = clock()
            standardizer(volume, generator=SliceSeeds(SEED, scan.key))
            found[threads].append(clock() - began)
    steps = standardizer.settings.get("sampling", {}).get("steps", 1)
    parameters = model.bundle.metadata.get("parameters", sum(one.size for one in model.bundle.tensors.values()))
    times = [f"{min(found[2]):.2f}", f"{min(found[1]):.2f}"]
    return [str(steps), *times, str(peak_mb() or "?"), f"{parameters / 1e6:.2f} M"]


def leak(folder: Path, pairs: Path, steps: int) -> list[list[str]]:
    """How far the output moves toward B when A's latents are replaced by B's: raw skips against latents at every scale.

    The share is 1 - |D(Z_B; skips of A) - D(E(B))|^2 / |D(E(A)) - D(E(B))|^2: 1 when the latents carry everything, 0
    when the skips do.
    """
    images = {split: stored(pairs, folder / "voxels", split) for split in ("train", "validation")}
    recipe = ltdiffpp.RECIPES["small"]
    variants = {
        "raw skips, latent at the deepest scale (as printed)": dataclasses.replace(
            recipe.config, latents=(0, 0, recipe.config.latents[-1]), leak=True
        ),
        "latents at every scale (ours)": recipe.config,
    }
    found = []
    phase = dataclasses.replace(recipe.phase("autoencoder"), steps=steps)
    for index, (name, config) in enumerate(variants.items()):
        system = seeded(lambda config=config: ltdiffpp.LTDiffPlusPlus(config), 0)  # type: ignore[misc]
        assert isinstance(system, ltdiffpp.LTDiffPlusPlus)
        system.requires_grad_(False)
        system.codec.requires_grad_(True)
        data = TrainingData(images["train"], [], {})
        patches = Patches(data.pairs, recipe.patch, 0, either=True)
        task = ltdiffpp.AutoencoderTask(system)
        train_phase("autoencoder", task, patches, phase, Run(folder / str(index)))
        batch = Patches(images["validation"], 128, 1).batch(0, range(32))
        with torch.no_grad():
            a, b = (to_unit(torch.from_numpy(image)) for image in (batch.source, batch.target))
            (za, skips_a), (zb, skips_b) = system.codec.encode(a), system.codec.encode(b)
            d = [system.codec.decode(*given)[-1] for given in ((za, skips_a), (zb, skips_b), (zb, skips_a))]
            share = 1 - float((d[2] - d[1]).square().mean() / (d[0] - d[1]).square().mean())
            error = float((d[1] - b).square().mean().sqrt()) * 1350
        found.append([name, f"{share:.2f}", f"{error:.1f}"])
    return found


def main() -> None:
    """Run what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "papers")
    parser.add_argument("--recipe", default="small", choices=("small", "gpu", "paper"))
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--minutes", type=float, help="stop with a checkpoint after this long")
    parser.add_argument("--most-steps", type=int)
    parser.add_argument("--study", choices=("diffusionct",))
    parser.add_argument("--workers", type=int, default=1, help="processes that simulate the cohort")
    parser.add_argument("--models", action="store_true", help="train only, compare nothing")
    given = parser.parse_args()
    began = time.monotonic()
    folder: Path = given.folder
    cohort = simulate(jobs_of_cohort(), folder / "cohort", file_format="nifti", workers=given.workers).manifest
    if given.study:
        steps = min(papers_diffusionct.STEPS, given.most_steps or papers_diffusionct.STEPS)
        images = [stored(cohort, folder / "study" / "voxels", split) for split in ("train", "validation")]
        rows, given_text = papers_diffusionct.study(*images, folder / "study", steps)
        body = [
            "## DiffusionCT: what the paper does not print",
            "",
            f"Small cohort, {steps} + {steps} steps each, validation patches, 10 sampling steps. {given_text}",
            "",
            table(papers_diffusionct.HEADER, rows),
        ]
        write_section("diffusionct", "python -m benchmarks.papers --study diffusionct", "\n".join(body), seed="0")
        return
    models = {}
    for name in given.rows:
        method, without = ROWS[name]
        path = _place(folder, name)
        models[name] = path
        if path.exists():
            continue
        if method == "spectral":
            calibrate_pairs(pairs_of_manifest(cohort), path, method="spectral")
            continue
        if name == CUT_SHORT:
            take_over(Path(f"{_place(folder, WHOLE)}.run"), Path(f"{path}.run"))
        left = None if given.minutes is None else given.minutes - (time.monotonic() - began) / 60
        if left is not None and left <= 0:
            raise SystemExit(f"paused before {name}; run it again to go on")
        done = train(
            method,
            cohort,
            path,
            recipe=given.recipe,
            without=without,  # type: ignore[arg-type]
            most_steps=given.most_steps,
            minutes=left,
            progress=lambda phase, step, total, name=name: (  # type: ignore[misc]
                print(f"{name}, {phase}: {step} of {total}", flush=True) if step % 500 == 0 else None
            ),
        )
        if not done.done:
            raise SystemExit(f"paused in {name}; run it again to go on")
    if given.models:
        return
    ceiling = second_scans(folder / "second-scans", cohort)
    results = compare(cohort, models, folder / "comparison", ceiling=ceiling, seed=SEED, overwrite=True)
    body = [_section(results, given.recipe, given.most_steps)]
    body += [
        "",
        "One slice of 512 x 512, the fastest of five (the papers: 30 s): clock with two threads, processor time with",
        "one, since other work shared the cores; memory is the peak of a process that does nothing else, with torch.",
        "",
        table(["", "steps", "s, two threads", "processor s, one thread", "MiB", "parameters"], speed(models, cohort)),
    ]
    if "LTDiff++" in models:
        header = ["sampler", "steps", "RMSE, HU", "GLCM", "GLRLM", "processor s a slice"]
        body += ["", "Sampling steps of LTDiff++ against quality, validation pairs:", ""]
        body += [table(header, steps_against_quality(models["LTDiff++"], cohort))]
        steps = min(LEAK_STEPS, given.most_steps or LEAK_STEPS)
        body += ["", f"The leak, autoencoders of {steps} steps, validation patches:", ""]
        body += [
            table(["what passes", "moved by the latents", "error of D(E(B)), HU"], leak(folder / "leak", cohort, steps))
        ]
    command = f"python -m benchmarks.papers --recipe {given.recipe}"
    command += f" --most-steps {given.most_steps}" if given.most_steps else ""
    write_section("papers", command, "\n".join(body), seed=str(SEED))
    print(json.dumps({"report": str(folder / "comparison" / "report.html")}))


def _place(folder: Path, name: str) -> Path:
    return folder / "models" / name.replace(" ", "-").replace("(", "").replace(")", "").lower()


def _section(results: dict[str, Any], recipe: str, most_steps: int | None) -> str:
    classes = results["classes"]
    best = "Lin's CCC of each feature across ROIs, mean of a class (95 % interval over subjects); best model in bold."
    cut = f", every phase cut to {most_steps} steps" if most_steps else ""
    lines = [
        "## The papers' table on the virtual scanner",
        "",
        f"Br40 to Bl64, small cohort, recipe `{recipe}`{cut}. {results['pairs']} test pairs of {results['subjects']} "
        f"subjects, {results['rois'][RANDOM]} random ROIs in the papers' four HU ranges, preset {results['preset']}. "
        f"Simulated data. {best}",
        "",
    ]
    rows = []
    for row in results["table"][RANDOM]:
        cells = []
        for name in classes:
            cell = row["classes"][name]
            text = "?" if cell["ccc"] is None else f"{cell['ccc']:.2f}"
            low, high = cell["interval"]
            text = f"**{text}**" if cell["best"] else text
            cells.append(text if low is None else f"{text} ({low:.2f}, {high:.2f})")
        cost = results["cost"].get(row["name"])
        parameters = "" if cost is None else f"{cost['parameters'] / 1e6:.2f} M"
        rows.append([row["name"], *cells, parameters])
    lines.append(table(["", *classes, "parameters"], rows))
    above = {row["name"]: row["classes"] for row in results["table"][RANDOM]}
    lines += ["", f"Ceiling: {CEILING}; baseline: {INPUT}."] if CEILING in above else []
    return "\n".join(lines)


if __name__ == "__main__":
    main()
