"""Whether concord is safe: a 4 mm nodule stays, none appears, padding stays, metal and bone come back."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.flagship_blobs import SAME_MM, response, unmatched
from benchmarks.flagship_cohorts import COHORTS, FOLDER, calibrated, subjects_of
from benchmarks.flagship_judge import CEILING, INPUT, Entry, Judge
from benchmarks.real_pairs import STORED_HU
from benchmarks.results import table, write_section
from concordct.judging.stages import stored
from concordct.methods.concord.bundle import METHOD as CONCORD
from concordct.methods.models import load_model
from concordct.pipelines.standardize import Settings, plan, standardize_scan
from concordct.scanner.chest import Chest
from concordct.scanner.frame import Frame, Stack
from concordct.scanner.kernels import kernel
from concordct.scanner.nodules import Nodule
from concordct.scanner.scan import simulate_pair
from concordct.scanner.shapes import cover
from concordct.volumes.files import write_volume_file
from concordct.volumes.place import atomic_file
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.volume import Volume

COHORT = COHORTS["patients"]
PAIR = COHORT.pairs[0]
#: Patients of the cohort that nodules are implanted into, nodules in each, slices around them.
PATIENTS, NODULES, SLICES = (2, 3, 4), 8, 7
RADIUS_MM, NODULE_HU = 2.0, 40.0
#: Nodules lie this far inside the lungs and from each other, mm.
DEPTH_MM, APART_MM = 9.0, 18.0
#: Part of the response of the weakest implanted nodule at which a blob counts; its partner must reach half of that.
THRESHOLD, PARTNER = 0.8, 0.5
#: A titanium pin: diameter, mm, and HU before any kernel.
PIN_MM, PIN_HU = 8.0, 8000.0

Hu = NDArray[np.float32]


def places(body: Chest, z_mm: float) -> list[tuple[float, float, float]]:
    """Where to implant: deep in the lungs, clear of vessels, heights a little apart; the clearest first."""
    generator = np.random.default_rng((COHORT.seed, 41))
    frame = Frame((512, 512), COHORT.pixel_mm)
    points = np.column_stack(
        [np.full(4000, z_mm), generator.uniform(-110, 110, 4000), generator.uniform(-140, 140, 4000)]
    )
    points = points[body.lung_depth(points) > DEPTH_MM]
    planes = body.draw(z_mm + np.array([-3.0, -1.0, 1.0, 3.0]), frame).max(axis=0)
    nearby = ndimage.maximum_filter(planes, 2 * round(6.0 / frame.pixel_mm) + 1)
    rows, columns = (
        (points[:, 1 + axis] - low) / frame.pixel_mm for axis, low in ((0, frame.y_mm[0]), (1, frame.x_mm[0]))
    )
    order = np.argsort(nearby[rows.round().astype(int), columns.round().astype(int)], kind="stable")
    chosen: list[NDArray[np.float64]] = []
    for point in points[order]:
        if all(np.linalg.norm(point - other) > APART_MM for other in chosen):
            chosen.append(point)
        if len(chosen) == NODULES:
            break
    return [(float(z + generator.uniform(-0.5, 0.5)), float(y), float(x)) for z, y, x in chosen]


def implanted(number: int) -> tuple[dict[str, dict[str, Volume]], list[tuple[float, float, float]]]:
    """("with", "without") -> kernel -> volume, and the nodules' centres, (z, y, x) voxels."""
    job = next(job for job in COHORT.jobs() if job.number == number)
    body = job.body()
    z_mm = float(round(0.55 * body.height_mm))
    stack = Stack(SLICES, 1.0, 1.0, z_mm + 0.5 - SLICES // 2)
    centres = places(body, float(stack.z_mm[SLICES // 2]))
    added = tuple(
        Nodule(f"implant-{k}", "solid", centre, RADIUS_MM, NODULE_HU, -600.0, 0.05, 0, 0.0, 2.0, 900 + k)
        for k, centre in enumerate(centres)
    )
    found: dict[str, dict[str, Volume]] = {}
    for name, nodules in (("with", (*body.nodules, *added)), ("without", body.nodules)):
        path = FOLDER / "implanted" / f"{job.subject_name}-{name}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            subject = dataclasses.replace(body, nodules=nodules)
            made = simulate_pair(
                subject, job.acquisition, frame=job.frame, stack=stack, kernels=PAIR, seed=COHORT.seed, scan=7
            )
            with atomic_file(path) as aside, open(aside, "wb") as file:
                np.savez(file, **{key: one.hu.astype(np.int16) for key, one in made.items()})  # type: ignore[arg-type]
        with np.load(path) as kept:
            found[name] = {
                key: Volume(kept[key].astype(np.float32), stack.affine(job.frame), slice_thickness_mm=1.0, kernel=key)
                for key in PAIR
            }
    low = np.array([stack.z_mm[0], job.frame.y_mm[0], job.frame.x_mm[0]])
    step = np.array([1.0, COHORT.pixel_mm, COHORT.pixel_mm])
    return found, [tuple(((np.array(centre) - low) / step).tolist()) for centre in centres]


@dataclasses.dataclass(frozen=True)
class Ball:
    """Contrast, HU, and volume at half of it, mm3; in the difference to the image without, and alone."""

    contrast: float
    volume: float
    alone_contrast: float
    alone_volume: float


def measure(with_: Hu, without: Hu, centre: Sequence[float]) -> Ball:
    """One nodule in one image."""
    fine, distance = _around(with_ - without, centre)
    image, _ = _around(with_, centre)
    core, shell = distance < 1.2, (distance > 3.5) & (distance < 5.0)
    contrast = float(fine[core].mean())
    around = float(np.median(image[shell]))
    alone = float(image[core].mean()) - around
    cell = float(np.prod([0.25 * d for d in (1.0, COHORT.pixel_mm, COHORT.pixel_mm)]))

    def volume(values: NDArray[np.float64], half: float) -> float:
        labels, _ = ndimage.label((values > half) & (distance < 4.0))
        middle = labels[tuple(n // 2 for n in values.shape)]
        return float((labels == middle).sum() * cell) if middle else 0.0

    return Ball(contrast, volume(fine, contrast / 2), alone, volume(image, around + alone / 2))


def _around(image: Hu, centre: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A cube of 11 mm on quarter voxels, and the distance to its middle, mm."""
    step = np.array([1.0, COHORT.pixel_mm, COHORT.pixel_mm])
    half = np.round(5.5 / step * 4).astype(int)
    offsets = np.meshgrid(*(np.arange(-n, n + 1) / 4 for n in half), indexing="ij")
    at = [offset + c for offset, c in zip(offsets, centre, strict=True)]
    values = ndimage.map_coordinates(image.astype(np.float64), at, order=1, mode="nearest")
    return values, np.sqrt(sum((offset * d) ** 2 for offset, d in zip(offsets, step, strict=True)))


def _rows(methods: tuple[str, ...], seeds: tuple[int, ...]) -> list[Entry]:
    rows = []
    for method in methods:
        path = calibrated(method, COHORT, PAIR, 1)
        if method != CONCORD:
            rows.append(Entry(f"{method}, mean", path, "mean"))
        rows.append(Entry(f"{method}, sample", path, "sample", seeds))
    return rows


def nodule_table(rows: list[Entry]) -> tuple[str, float]:
    """Ratios to the target's contrast and volume, and the weakest response of a nodule on the target."""
    balls: dict[str, list[Ball]] = {"target": [], "input": [], **{row.name: [] for row in rows}}
    weakest = np.inf
    for number in PATIENTS:
        volumes, centres = implanted(number)
        answer = response(volumes["with"][PAIR[1]].hu, volumes["with"][PAIR[1]].spacing_mm)
        for centre in centres:
            z, y, x = (round(c) for c in centre)
            weakest = min(weakest, float(answer[z - 1 : z + 2, y - 2 : y + 3, x - 2 : x + 3].max()))
        for name, which in (("target", PAIR[1]), ("input", PAIR[0])):
            balls[name] += [measure(volumes["with"][which].hu, volumes["without"][which].hu, c) for c in centres]
        for row in rows:
            assert row.model is not None
            work = load_model(row.model).standardizer(mode=row.mode)
            over_seeds = []
            for seed in row.seeds:
                made = [
                    stored(
                        work(volumes[one][PAIR[0]], generator=SliceSeeds(seed, f"patient {number}")).hu,
                        volumes[one][PAIR[0]].hu,
                    )
                    for one in ("with", "without")
                ]
                over_seeds.append([measure(made[0], made[1], centre) for centre in centres])
            balls[row.name] += [_mean_ball([one[k] for one in over_seeds]) for k in range(len(centres))]
    body = []
    for name, found in balls.items():
        if name == "target":
            continue
        cells = []
        for field in ("contrast", "volume", "alone_contrast", "alone_volume"):
            ratio = np.array(
                [getattr(a, field) / getattr(b, field) for a, b in zip(found, balls["target"], strict=True)]
            )
            cells.append(
                f"{ratio.mean():.3f} ± {ratio.std(ddof=1) / np.sqrt(len(ratio)):.3f} "
                f"({ratio.min():.2f} to {ratio.max():.2f})"
            )
        body.append([name, *cells])
    header = ["", "contrast", "volume", "contrast, image alone", "volume, image alone"]
    return table(header, body), weakest


def _mean_ball(found: list[Ball]) -> Ball:
    return Ball(*(float(np.mean([getattr(one, field.name) for one in found])) for field in dataclasses.fields(Ball)))


def blob_table(methods: tuple[str, ...], names: Sequence[str], seeds: tuple[int, ...], threshold: float) -> str:
    """Blobs of each cohort: on the target, on each image, and those that the target does not show."""
    body = []
    for name in names:
        cohort = COHORTS[name]
        for pair in cohort.pairs:
            judge = Judge(name, subjects_of(cohort, pair)[1:])
            rows = [INPUT]
            for method in methods:
                path = calibrated(method, cohort, pair, 1)
                label = f"{method}, 1 slice"
                if method != CONCORD:
                    rows.append(Entry(f"{label}, mean", path, "mean"))
                rows.append(Entry(f"{label}, sample", path, "sample", seeds))
            target = {key: one.blobs["0"] for key, one in judge.of(Entry("target")).items()}
            there = sum(int((one[:, 3] > threshold).sum()) for one in target.values())
            transfer = judge.of(Entry("transfer", calibrated("spectral", cohort, pair, 1), "mean"))
            either = {key: np.concatenate([one, transfer[key].blobs["0"]]) for key, one in target.items()}
            for row in (*rows, CEILING):
                counts = []
                for seed in row.seeds:
                    made = {key: one.blobs[str(seed)] for key, one in judge.of(row).items()}
                    counts.append(
                        (
                            sum(int((one[:, 3] > threshold).sum()) for one in made.values()),
                            sum(unmatched(made[key], target[key], threshold, PARTNER) for key in made),
                            sum(unmatched(made[key], either[key], threshold, PARTNER) for key in made),
                            sum(unmatched(target[key], made[key], threshold, PARTNER) for key in made),
                        )
                    )
                cells = [f"{there}", *(f"{one:.1f}" for one in np.mean(counts, axis=0))]
                body.append([f"{name}, {pair[0]} to {pair[1]}", row.name, *cells])
    header = ["", "", "on the target", "on the image", "not on the target", "nor on the transfer", "lost"]
    return table(header, body)


def padding_table(rows: list[Entry]) -> str:
    """A round field written as -2000, through files: what comes back outside, and what it does to the body."""
    subject = subjects_of(COHORT, PAIR)[1]
    volume = subject.source.read(0, 2)
    y, x = np.ogrid[: volume.shape[1], : volume.shape[2]]
    outside = np.hypot(y - 255.5, x - 255.5) > 250
    body = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        plain = write_volume_file(place / "plain.nii.gz", [dataclasses.replace(volume, padding=None)])
        image = sitk.ReadImage(str(plain))
        hu = sitk.GetArrayFromImage(image)
        hu[:, outside] = -2000
        padded = sitk.GetImageFromArray(hu)
        padded.CopyInformation(image)
        sitk.WriteImage(padded, str(place / "padded.nii.gz"))
        for row in rows:
            assert row.model is not None
            model, settings = load_model(row.model), Settings(mode=row.mode, any_kernel=True)
            made = {}
            for name in ("plain", "padded"):
                output = place / f"{row.name}-{name}.nii.gz"
                job = plan(place / f"{name}.nii.gz", output, model, settings).jobs[0]
                standardize_scan(job, model, settings)
                made[name] = sitk.GetArrayFromImage(sitk.ReadImage(str(output))).astype(np.float64)
            same = bool((made["padded"][:, outside] == -2000).all())
            # Sampled noise is keyed by the voxels, so that only the deterministic mode can be compared inside.
            inside = np.hypot(y - 255.5, x - 255.5) < 240
            change = f"{np.abs(made['padded'] - made['plain'])[:, inside].max():.0f}" if row.mode == "mean" else ""
            body.append([row.name, "yes" if same else "**no**", change])
    return table(["", "padding unchanged", "largest change further than 10 pixels inside, HU"], body)


def metal_table(rows: list[Entry]) -> str:
    """A metal pin in soft tissue, stored in 12 bits and without limits; and bone."""
    subject = subjects_of(COHORT, PAIR)[1]
    middle = subject.source.shape[0] // 2
    source, target = (scan.read(middle, middle + 1) for scan in (subject.source, subject.target))
    frame = Frame((source.shape[1], source.shape[2]), COHORT.pixel_mm)
    soft = (ndimage.gaussian_filter(source.hu[0], 6.0) > 20) & (ndimage.gaussian_filter(source.hu[0], 6.0) < 90)
    spots = np.argwhere(ndimage.binary_erosion(soft, iterations=12))
    centre = spots[len(spots) // 2]
    distance = (
        np.hypot(frame.y_mm - frame.y_mm[centre[0]], 0)[:, None] ** 2 + (frame.x_mm - frame.x_mm[centre[1]])[None] ** 2
    )
    distance = np.sqrt(distance)
    pin = cover(distance - PIN_MM / 2, frame.pixel_mm) * PIN_HU
    f = np.hypot(
        np.fft.fftfreq(frame.shape[0], frame.pixel_mm / 10)[:, None],
        np.fft.rfftfreq(frame.shape[1], frame.pixel_mm / 10),
    )
    blurred = [np.fft.irfft2(np.fft.rfft2(pin) * kernel(name).mtf(f), frame.shape) for name in PAIR]
    bone = target.hu[0] > 300
    core, near, far = distance < PIN_MM / 2 - 1, distance < 12, distance > 30
    body = []
    for label, limits in (("12 bits", STORED_HU), ("no limit", (-32768, 32767))):
        a, b = (
            np.clip(np.rint(one.hu[0] + added), *limits).astype(np.float32)
            for one, added in zip((source, target), blurred, strict=True)
        )
        body.append(
            [
                label,
                "input",
                f"{b[core].mean():.0f}",
                f"{a[core].mean():.0f}",
                f"{_rms(a - b, near):.0f}",
                "",
                "",
                f"{_rms(source.hu[0] - target.hu[0], bone):.1f}",
            ]
        )
        for row in rows:
            assert row.model is not None
            work = load_model(row.model).standardizer(mode=row.mode)
            made = np.clip(np.rint(work(source.with_hu(a[None]), generator=SliceSeeds(0, "metal")).hu[0]), *limits)
            without = stored(work(source, generator=SliceSeeds(0, "metal")).hu, source.hu)[0]
            body.append(
                [
                    label,
                    row.name,
                    f"{b[core].mean():.0f}",
                    f"{made[core].mean():.0f}",
                    f"{_rms(made - b, near):.0f}",
                    f"{_rms(made - without, far):.2f}",
                    f"{np.abs(made - without)[far].max():.0f}",
                    f"{_rms(without - target.hu[0], bone):.1f}",
                ]
            )
    header = [
        "stored in",
        "",
        "pin on the target, HU",
        "pin",
        "RMSE within 12 mm",
        "RMS change beyond 30 mm",
        "largest",
        "RMSE of bone",
    ]
    return table(header, body)


def _rms(difference: NDArray[np.floating], mask: NDArray[np.bool_]) -> float:
    return float(np.sqrt(np.mean(difference[mask].astype(np.float64) ** 2)))


def run(methods: tuple[str, ...], names: Sequence[str], seeds: tuple[int, ...]) -> None:
    """Measure and write the section.

    Parameters
    ----------
    names : cohorts that blobs are counted in.
    """
    rows = _rows(methods, seeds)
    nodules, weakest = nodule_table(rows)
    threshold = THRESHOLD * weakest
    count = NODULES * len(PATIENTS)
    body = (
        f"## Safety\n\n{PAIR[0]} to {PAIR[1]}, 1 mm, calibrated on one slice of another subject. Simulated data.\n\n"
        f"{count} solid nodules of {2 * RADIUS_MM:g} mm implanted into the lungs of {len(PATIENTS)} test patients,\n"
        "each scanned with and without them with the same noise. Ratio to the target's contrast and volume (at half\n"
        f"contrast), mean over nodules ± standard error (range); `sample` averages {len(seeds)} seed(s) first. Of the\n"
        "difference between the two images, and of the image alone:\n\n" + nodules + "\n\n"
        "Blobs of 4 mm in the lungs of the test cohorts (scale-normalized Laplacian of Gaussian, sigma 1.15 mm,\n"
        f"over {threshold:.0f} HU: {THRESHOLD:g} of what the weakest implanted nodule answers on the target). Vessels\n"
        "are found, too: what counts is the column of those that the target does not show (nothing over\n"
        f"{PARTNER:g} of the threshold within {SAME_MM:g} mm), beside what a second scan of the target does; and of\n"
        "those that the transfer of the source, to which nothing was added, does not show either.\n\n"
        + blob_table(methods, names, seeds, threshold)
        + "\n\nPadding of -2000 outside a round field, through files:\n\n"
        + padding_table(rows)
        + f"\n\nA pin of {PIN_MM:g} mm and {PIN_HU:g} HU in soft tissue, and bone (over 300 HU on the target):\n\n"
        + metal_table(rows)
    )
    write_section(
        "flagship-safety",
        "python -m benchmarks.flagship --part safety",
        body,
        seed=f"{COHORT.seed}, {', '.join(map(str, seeds))}",
    )
