"""What a physicist measures on the virtual scanner; `physics.py` runs it and writes it down.

Each function returns plain numbers and lists, ready for JSON.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.special import j1

from benchmarks.child import measured
from benchmarks.physics_rivals import astra_seconds, skimage_seconds
from concordct.agreement.concordance import ccc_per_feature, mean_by_class
from concordct.radiomics.extract import extract
from concordct.radiomics.presets import preset
from concordct.radiomics.regions.rois import grid_rois
from concordct.scanner.acquisition import WATER_PER_MM, Acquisition, detect, to_parallel
from concordct.scanner.analytic import Disc, disc_projections
from concordct.scanner.frame import Frame, Stack
from concordct.scanner.kernels import KERNELS, Kernel, kernel
from concordct.scanner.patients import digital_patient
from concordct.scanner.phantom import chest_phantom
from concordct.scanner.reconstruction import digitize, filter_response, reconstruct
from concordct.scanner.scan import drawing_frame, simulate_pair
from concordct.scanner.spectrum import correct_water, harden
from concordct.signal.spectra import cosine_frequencies, from_cosines, noise_power, to_cosines
from concordct.volumes.find import find_series
from concordct.volumes.volume import AIR_HU

Array = NDArray[np.floating[Any]]
WATER_CYLINDER_MM = 100.0


def _crossing(f: Array, mtf: Array, level: float) -> float:
    index = int(np.flatnonzero(mtf < level)[0])
    share = (mtf[index - 1] - level) / (mtf[index - 1] - mtf[index])
    return float(f[index - 1] + share * (f[index] - f[index - 1]))


def wire_mtf(image: Array, pixel_mm: float, radius_mm: float) -> tuple[Array, Array]:
    """(f lp/cm, MTF) of a wire's image, HU above air; the wire's own spectrum is divided out."""
    n = image.shape[0]
    spectrum = np.abs(np.fft.fft2(image))
    axis = np.fft.fftfreq(n, pixel_mm / 10)
    f = np.hypot(axis[:, None], axis[None])
    u = 2 * np.pi * radius_mm * f / 10 + 1e-9
    spectrum /= 2 * j1(u) / u
    edges = np.arange(0, 16, 0.25)
    ring = np.digitize(f, edges) - 1
    inside = ring < edges.size - 1
    count = np.bincount(ring[inside], minlength=edges.size - 1)
    sums = np.bincount(ring[inside], spectrum[inside], edges.size - 1)
    means = np.bincount(ring[inside], f[inside], edges.size - 1) / np.maximum(count, 1)
    return means, sums / np.maximum(count, 1) / spectrum[0, 0]


def edge_mtf(image: Array, frame: Frame, centre: tuple[float, float], radius_mm: float) -> tuple[Array, Array]:
    """(f lp/cm, MTF) from the rim of a disc: edge spread over all angles, its derivative, its spectrum."""
    distance = np.hypot(frame.y_mm[:, None] - centre[0], frame.x_mm[None] - centre[1]) - radius_mm
    step, reach = 0.05, 12.0
    edges = np.arange(-reach, reach + step, step)
    ring = np.digitize(distance.ravel(), edges) - 1
    keep = (ring >= 0) & (ring < edges.size - 1)
    count = np.bincount(ring[keep], minlength=edges.size - 1)
    spread = np.bincount(ring[keep], image.ravel()[keep], edges.size - 1) / np.maximum(count, 1)
    line = np.gradient(spread) * np.hanning(spread.size)
    spectrum = np.abs(np.fft.rfft(line, 8192))
    f = np.fft.rfftfreq(8192, step / 10)
    # np.gradient is a central difference: sinc(2 f step).
    spectrum = spectrum / np.maximum(np.sinc(2 * f / 10 * step), 0.2)
    return f, spectrum / spectrum[0]


def measure_mtf() -> list[dict[str, Any]]:
    """MTF50 and MTF10 of every preset: specified, from a wire and from an edge, fan beam."""
    acquisition = Acquisition()
    names = list(KERNELS)
    kernels = tuple(KERNELS.values())
    wire, radius = (-18.0, 12.0), 0.1
    small = Frame((256, 256), 0.1, wire)
    data = to_parallel(disc_projections([Disc(*wire, radius, 2e5)], acquisition), acquisition)
    wires = np.concatenate([reconstruct(data, acquisition, small, kernels[k : k + 9])[:, 0] for k in range(0, 27, 9)])
    disc, size = (10.0, -15.0), 30.0
    wide = Frame((440, 440), 0.2, disc)
    data = to_parallel(disc_projections([Disc(*disc, size, 1000.0)], acquisition), acquisition)
    rims = np.concatenate([reconstruct(data, acquisition, wide, kernels[k : k + 9])[:, 0] for k in range(0, 27, 9)])
    rows = []
    for name, one, wire_image, rim_image in zip(names, kernels, wires, rims, strict=True):
        f, mtf = wire_mtf(wire_image - AIR_HU, small.pixel_mm, radius)
        g, edge = edge_mtf(rim_image, wide, disc, size)
        rows.append(
            {
                "kernel": name,
                "mtf50": one.mtf50_lp_cm,
                "mtf10": one.mtf10_lp_cm,
                "wire50": _crossing(f, mtf, 0.5),
                "wire10": _crossing(f, mtf, 0.1),
                "edge50": _crossing(g, edge, 0.5),
                "edge10": _crossing(g, edge, 0.1),
                "source": one.source,
                "f": f.tolist(),
                "wire": mtf.tolist(),
            }
        )
    return rows


def _water_noise(acquisition: Acquisition, kernels: tuple[Kernel, ...], frame: Frame, pairs: int, seed: int) -> Array:
    """[kernel, pair, y, x] differences of two scans of a water cylinder, over the square root of two."""
    clean = disc_projections([Disc(0, 0, WATER_CYLINDER_MM, 1000.0)], acquisition)
    both = np.repeat(clean, 2 * pairs, axis=2)
    raw = detect(both, acquisition, [np.random.default_rng((seed, k)) for k in range(2 * pairs)])
    images = reconstruct(to_parallel(raw, acquisition), acquisition, frame, kernels)
    return (images[:, ::2] - images[:, 1::2]) / np.sqrt(2.0)


def measure_nps() -> list[dict[str, Any]]:
    """Noise power of the water cylinder's middle against theory, absolute, for four kernels."""
    acquisition = Acquisition(mas=100.0)
    frame = Frame((256, 256), 0.35)
    kernels = tuple(kernel(name) for name in ("B30f", "Br40", "Bl64", "LUNG"))
    noise = _water_noise(acquisition, kernels, frame, 6, 1)
    inside = np.hypot(frame.y_mm[:, None], frame.x_mm[None]) < 38.0
    rows = []
    for one, images in zip(kernels, noise, strict=True):
        measured = noise_power(
            images.astype(np.float32),
            np.repeat(inside[None], len(images), 0),
            spacing_mm=(frame.pixel_mm,) * 2,
            patch=64,
            band_width=0.02,
        )
        edges = measured.edges_cycles_per_pixel / frame.pixel_mm
        f = 0.5 * (edges[1:] + edges[:-1])  # cycles per mm
        expected = nps_theory(one, acquisition, f)
        level = float(np.trapezoid(measured.mean * f, f) / np.trapezoid(expected * f, f))
        rows.append(
            {
                "kernel": one.name,
                "f": (f * 10).tolist(),
                "measured": measured.mean.tolist(),
                "theory": expected.tolist(),
                "power_ratio": level,
                "shape_difference": float(
                    np.sqrt(np.mean((measured.mean / level - expected) ** 2) / np.mean(expected**2))
                ),
                "noise_hu": float(images[:, inside].std()),
            }
        )
    return rows


def nps_theory(one: Kernel, acquisition: Acquisition, f_per_mm: Array) -> Array:
    """NPS in the middle of the water cylinder: (pi / N) sigma^2 tau |G(f)|^2 / f, HU^2 mm^2 (Riederer et al. 1978,
    doi:10.1088/0031-9155/23/3/008), with G ramp times window, variance from Poisson and read-out noise."""
    photons = acquisition.photons * np.exp(-2 * WATER_CYLINDER_MM * WATER_PER_MM)
    variance = (photons + acquisition.electronic_noise**2) / photons**2
    length = 8192
    response = filter_response(one, acquisition, length)
    f = np.fft.rfftfreq(length, acquisition.sample_mm)
    gain = np.interp(f_per_mm, f, response) * np.sinc(f_per_mm * acquisition.sample_mm / 2) ** 2
    gain = gain * 1000.0 / WATER_PER_MM
    return np.pi / (acquisition.views // 2) * variance * acquisition.sample_mm * gain**2 / f_per_mm


def measure_dose() -> dict[str, Any]:
    """Noise of Br40 and Bl64 against mAs, and the fitted exponents, with and without read-out noise."""
    frame = Frame((160, 160), 0.5)
    kernels = (kernel("Br40"), kernel("Bl64"))
    inside = np.hypot(frame.y_mm[:, None], frame.x_mm[None]) < 35.0
    doses = [25.0, 50.0, 100.0, 200.0, 400.0]
    out: dict[str, Any] = {"mas": doses}
    for label, read_out in (("photons", 0.0), ("photons and read-out", Acquisition().electronic_noise)):
        noise = np.array(
            [
                _water_noise(Acquisition(mas=mas, electronic_noise=read_out), kernels, frame, 4, 2)[..., inside].std(
                    axis=(1, 2)
                )
                for mas in doses
            ]
        )
        out[label] = {
            one.name: {
                "noise_hu": noise[:, k].tolist(),
                "exponent": float(np.polyfit(np.log(doses), np.log(noise[:, k]), 1)[0]),
            }
            for k, one in enumerate(kernels)
        }
    return out


def measure_inserts() -> list[dict[str, float]]:
    """HU of inserts in water: true, with one energy, and with a polychromatic beam corrected for water."""
    acquisition = Acquisition(mas=200.0)
    values = [-1000.0, -900.0, -100.0, 50.0, 120.0, 340.0, 900.0]
    angles = np.arange(len(values)) * 2 * np.pi / len(values)
    places = [(60 * np.sin(a), 60 * np.cos(a)) for a in angles]
    water = [Disc(0, 0, WATER_CYLINDER_MM, 1000.0)]
    inserts = [Disc(y, x, 12.0, hu) for (y, x), hu in zip(places, values, strict=True)]
    frame = Frame((440, 440), 0.5)
    clean = disc_projections(water + inserts, acquisition)
    bone = disc_projections([d for d in inserts if d.hu > 120.0], acquisition)
    hard = correct_water(harden(clean - bone, bone, acquisition.kvp), acquisition.kvp, WATER_PER_MM)
    images = []
    for index, data in enumerate((clean, hard)):
        raw = detect(data, acquisition, [np.random.default_rng((3, index))])
        images.append(digitize(reconstruct(to_parallel(raw, acquisition), acquisition, frame, (kernel("Br40"),))[0, 0]))
    rows = []
    for (y, x), hu in [((0.0, 0.0), 0.0), *zip(places, values, strict=True)]:
        roi = np.hypot(frame.y_mm[:, None] - y, frame.x_mm[None] - x) < 8.0
        rows.append({"true": hu, "one_energy": float(images[0][roi].mean()), "beam": float(images[1][roi].mean())})
    return rows


@dataclasses.dataclass(frozen=True)
class _Ramp:
    """A plane that rises with x: the image of its edge is the slice profile."""

    key: str = "ramp"
    height_mm: float = 60.0
    reach_mm: tuple[float, float] = (30.0, 100.0)
    slope: float = 0.2

    def draw(self, z_mm: Array, frame: Frame) -> NDArray[np.float32]:
        height = 30.0 + self.slope * frame.x_mm[None, None]
        filled = np.broadcast_to(np.asarray(z_mm)[:, None, None] < height, (len(z_mm), *frame.shape))
        inside = np.abs(frame.y_mm[None, :, None]) < 20.0
        return np.where(filled & inside, 0.0, -1000.0).astype(np.float32)

    def masks(self, z_mm: Array, frame: Frame) -> dict[str, NDArray[np.bool_]]:
        return {}


def measure_slice_profile() -> list[dict[str, Any]]:
    """Width at half maximum of the slice profile for four thicknesses, from a ramp."""
    acquisition = Acquisition(mas=1000.0, row_mm=0.625, field_mm=260.0)
    frame = Frame((8, 720), 0.25)
    rows = []
    for thickness in (0.625, 1.25, 2.5, 5.0):
        stack = Stack(1, thickness, thickness, 30.0 - (thickness / 2 if thickness == 0.625 else 0.0))
        image = simulate_pair(_Ramp(), acquisition, frame=frame, stack=stack, kernels=("Br40",), seed=4)["Br40"].hu[0]
        z = _Ramp.slope * frame.x_mm
        spread = image[2:6].mean(axis=0) + 1000.0
        # A moving mean far narrower than the slice takes the noise out of the derivative.
        width = 5
        profile = np.gradient(np.convolve(spread, np.ones(width) / width, "same"))[width:-width]
        z = z[width:-width]
        above = z[profile > 0.5 * np.percentile(profile, 99)]
        rows.append(
            {
                "thickness": thickness,
                "fwhm": float(above[-1] - above[0]),
                "z": z[::3].tolist(),
                "profile": profile[::3].tolist(),
            }
        )
    return rows


def pair_spectra(source: Array, target: Array, pixel_mm: float) -> dict[str, Any]:
    """Coherence and transfer ratio against frequency, and RMSE before and after the filter that they give.

    The filter is fitted on even slices and applied to odd ones.
    """
    f = cosine_frequencies(source[0].shape, (pixel_mm, pixel_mm))
    width = 0.5
    count = int(5 / pixel_mm / width)
    ring = np.minimum((f.ravel() / width).astype(int), count)

    def sums(slices: range) -> Array:
        total = np.zeros((3, count))
        for index in slices:
            a, b = (to_cosines(x[index].astype(np.float32)).astype(np.float64).ravel() for x in (source, target))
            total += [np.bincount(ring, v, count + 1)[:count] for v in (a * a, b * b, a * b)]
        return total

    aa, bb, ab = sums(range(len(source)))
    even = sums(range(0, len(source), 2))
    centres = (np.arange(count) + 0.5) * width
    gain = np.interp(f, centres, even[2] / even[0]).astype(np.float32)
    before, after = [], []
    for index in range(1, len(source), 2):
        filtered = from_cosines(to_cosines(source[index].astype(np.float32)) * gain)
        before.append(np.mean((source[index] - target[index]) ** 2))
        after.append(np.mean((filtered - target[index]) ** 2))
    return {
        "f": centres.tolist(),
        "coherence": (ab**2 / (aa * bb)).tolist(),
        "ratio": (ab / aa).tolist(),
        "rmse_before": float(np.sqrt(np.mean(before))),
        "rmse_after": float(np.sqrt(np.mean(after))),
    }


def measure_real_pairs(data: Path) -> list[dict[str, Any]]:
    """Real pairs beside simulated ones with the same pixels, thickness and kernels."""
    series = {one.kernel: one for one in find_series(data / "philips_head_phantom").series}
    philips = [series[name].read().hu for name in ("UB", "YA")]
    folder = data / "mayo_L067_kernel_pairs"
    mayo = [
        np.stack([sitk.GetArrayFromImage(sitk.ReadImage(str(p))).squeeze() for p in sorted(folder.glob(f"{k}_*.mha"))])
        for k in ("smooth", "sharp")
    ]
    body = digital_patient(4, seed=1)
    rows = [
        {"name": "Philips UB and YA", "who": "real", **pair_spectra(philips[0], philips[1], 0.451)},
        {"name": "Siemens B30 and D45", "who": "real", **pair_spectra(mayo[0], mayo[1], 0.7)},
    ]
    for name, kernels, pixel, thickness, start, subject in (
        ("Philips UB and YA", ("UB", "YA"), 0.451, 1.0, 120.5, chest_phantom()),
        ("Siemens B30 and D45", ("B30f", "D45f"), 0.7, 3.0, 31.5, body),
        ("Siemens B30 and D45, iterative-like source", ("B30f\\2", "D45f"), 0.7, 3.0, 31.5, body),
    ):
        pair = simulate_pair(
            subject,
            Acquisition(mas=150.0, row_mm=1.0, beam_hardening=True),
            frame=Frame((512, 512), pixel),
            stack=Stack(6, thickness, thickness, start),
            kernels=kernels,
            seed=1,
        )
        source, target = (pair[k].hu for k in kernels)
        rows.append({"name": name, "who": "virtual", **pair_spectra(source, target, pixel)})
    return rows


def measure_ceiling() -> list[dict[str, Any]]:
    """CCC by class between two scans that differ in noise alone, and between kernels, for doses; about 120 ROIs."""
    body = digital_patient(1, seed=1)
    frame = Frame((512, 512), 0.75)
    stack = Stack(3, 8.0, 1.0, 100.5)
    settings = preset("pyradiomics-default")
    depth = body.masks(stack.z_mm, frame)["lungs"]
    rows = []
    for mas in (25.0, 100.0, 400.0):
        scans = [
            simulate_pair(
                body,
                Acquisition(mas=mas, row_mm=1.0, beam_hardening=True),
                frame=frame,
                stack=stack,
                kernels=("Br40", "Bl64"),
                seed=5,
                scan=scan,
            )
            for scan in (0, 1)
        ]
        soft = (scans[0]["Br40"].hu > -200) & ~depth
        labels = np.zeros(depth.shape, dtype=np.int32)
        for mask in (depth, soft):
            grid = grid_rois(mask, size=20)
            chosen = np.linspace(1, grid.max(), min(60, grid.max())).astype(int)
            for label in chosen:
                labels[grid == label] = labels.max() + 1
        tables = {(s, k): extract(scans[s][k], labels, settings) for s in (0, 1) for k in ("Br40", "Bl64")}
        for a, b, name in (
            ((0, "Br40"), (1, "Br40"), "Br40 twice"),
            ((0, "Bl64"), (1, "Bl64"), "Bl64 twice"),
            ((0, "Br40"), (0, "Bl64"), "Br40 and Bl64"),
        ):
            ccc = ccc_per_feature(tables[a].values, tables[b].values)
            by_class = {k: v.mean for k, v in mean_by_class(ccc, tables[a].classes).items()}
            rows.append({"mas": mas, "pair": name, "rois": int(labels.max()), "ccc": by_class})
    return rows


def measure_speed() -> dict[str, float]:
    """Seconds per 512 x 512 slice pair on one core, and the alternatives at the same geometry."""
    body = chest_phantom()
    acquisition = Acquisition(row_mm=1.0)
    frame = Frame((512, 512), 0.75)
    fine = drawing_frame(body, frame)
    z = 130.5 + np.arange(8.0)
    body.draw(z[:1], Frame((64, 64), 4.0))
    out: dict[str, float] = {}
    start = time.process_time()
    hu = body.draw(z, fine)
    out["drawing"] = (time.process_time() - start) / 8

    def scan(geometry: str) -> tuple[NDArray[np.float32], float]:
        from concordct.scanner.acquisition import project

        used = dataclasses.replace(acquisition, geometry=geometry)
        begun = time.process_time()
        raw = detect(project(hu, fine, used), used, [np.random.default_rng(k) for k in range(8)])
        parallel = to_parallel(raw, used)
        images = reconstruct(parallel, used, frame, (kernel("Br40"), kernel("Bl64")))
        digitize(images)
        return parallel, (time.process_time() - begun) / 8

    scan("fan")
    parallel, out["fan"] = scan("fan")
    out["parallel"] = scan("parallel")[1]
    out.update(_fine_grid(parallel, acquisition, frame))
    out.update(skimage_seconds(hu[0], frame, acquisition))
    out.update(astra_seconds(hu[0], fine, frame, acquisition))
    return out


class _Flat(Kernel):
    """Passes everything up to its cut-off: what one reconstruction for every kernel needs."""

    def mtf(self, f_lp_cm: Array) -> Array:
        return (np.abs(f_lp_cm) < self.cutoff_lp_cm).astype(np.float64)


def _fine_grid(parallel: NDArray[np.float32], acquisition: Acquisition, frame: Frame) -> dict[str, float]:
    """One reconstruction on half the pixels and a wider field, filtered per kernel, against one per kernel."""
    kernels = (kernel("Br40"), kernel("Bl64"))
    begun = time.process_time()
    direct = reconstruct(parallel, acquisition, frame, kernels)
    seconds = (time.process_time() - begun) / 8
    flat = _Flat("flat", 10.0, 13.0, 13.2, 0.0, 5.0, "none", "none")
    margin = 32
    n = 2 * (frame.shape[0] + 2 * margin)
    # The coarse pixels' centres lie on every second fine pixel.
    shift = frame.pixel_mm / 4
    wide = Frame((n, n), frame.pixel_mm / 2, (shift, shift))
    begun = time.process_time()
    one = reconstruct(parallel, acquisition, wide, (flat,))[0]
    axis = np.fft.fftfreq(n, wide.pixel_mm / 10)
    f = np.hypot(axis[:, None], np.fft.rfftfreq(n, wide.pixel_mm / 10)[None])
    spectrum = np.fft.rfft2(one - AIR_HU)
    shared = np.stack([np.fft.irfft2(spectrum * item.mtf(f), (n, n))[:, ::2, ::2] for item in kernels]) + AIR_HU
    cut = slice(margin, -margin)
    shared_seconds = (time.process_time() - begun) / 8
    inside = np.hypot(frame.y_mm[:, None], frame.x_mm[None]) < 150.0
    difference = (shared[..., cut, cut] - direct)[..., inside]
    return {
        "reconstruction_direct": seconds,
        "reconstruction_fine_grid": shared_seconds,
        "fine_grid_rms_Br40": float(difference[0].std()),
        "fine_grid_rms_Bl64": float(difference[1].std()),
        "noise_like_Bl64": float((direct[1] - direct[0])[..., inside].std()),
    }


def measure_memory() -> dict[str, float]:
    """Peak memory, MiB, of a process that simulates one subject and of one that simulates four."""
    script = (
        "import sys, tempfile, pathlib\n"
        "from concordct.pipelines.simulate import plan_simulation, simulate\n"
        "jobs = plan_simulation('patients', kernels=('Br40', 'Bl64'), slice_thickness_mm=(1.0,), seed=1, "
        "count=int(sys.argv[1]), slices=2)\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    simulate(jobs, pathlib.Path(folder) / 'cohort')\n"
    )
    found = {}
    for count in (1, 4):
        run = measured([sys.executable, "-c", script, str(count)])
        if run.code:
            raise SystemExit(run.said[-500:])
        found[str(count)] = run.peak_mib
    return found
