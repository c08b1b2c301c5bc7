"""From scans to a model: paired series, manifests of pairs, unpaired cohorts, or tables of MTF and NPS."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct import __version__
from concordct.errors import ConcordctError
from concordct.judging.seen import CALIBRATED_ON
from concordct.methods.catalogue import WIDTHS
from concordct.methods.concord import bundle as concord_bundle
from concordct.methods.concord.adaptive import Adaptive
from concordct.methods.concord.chosen import chosen
from concordct.methods.concord.fit import fit_concord, held_out
from concordct.methods.concord.honest import widened
from concordct.methods.concord.learned import Learned, fit_learned
from concordct.methods.concord.standardizer import ConcordStandardizer
from concordct.methods.concord.transport import Transport
from concordct.methods.concord.width import Width
from concordct.methods.models import Model
from concordct.methods.spectral import transfer as spectral
from concordct.methods.spectral.fit import fit_pairs
from concordct.methods.spectral.self_check import OWN_RETURN
from concordct.methods.spectral.thickness import Stacking
from concordct.methods.spectral.transfer import SpectralModel
from concordct.methods.spectral.unpaired import fit_tables, fit_unpaired
from concordct.pipelines.checks import check_scan
from concordct.pipelines.stacked_pairs import stacked
from concordct.report.words import counted
from concordct.training.bundle import Bundle, save_bundle
from concordct.volumes.given import open_text
from concordct.volumes.identity import identity, together
from concordct.volumes.pairing import check_pair, pair_by_kernel, pair_series
from concordct.volumes.restacked import RestackedFile, RestackedSeries
from concordct.volumes.scans import Scan, checked, evenly_spaced, find_scans, one_scan, paired_scans, scan_path
from concordct.volumes.seeds import SliceSeeds
from concordct.volumes.series import Series
from concordct.volumes.volume import Volume

#: What a model card calls them.
TITLES = {
    concord_bundle.METHOD: "Spectral transfer with transport of texture",
    spectral.METHOD: "Spectral transfer",
}
#: A scan contributes at most this many slabs of this many slices, evenly spread: enough for every ring, in seconds.
SLABS, SLAB_SLICES = 4, 8
#: Difference of uniform regions that is worth a warning, HU; `check_pair` refuses beyond its own limit.
LARGEST_BIAS_HU = 3.0

#: Methods that a calibration from pairs serves, the default first.
METHODS = (concord_bundle.METHOD, spectral.METHOD)

Pair = tuple[Scan, Scan]
#: What `concord` adds to a transfer.
Added = tuple[Transport | None, Adaptive | None, Width | None, Learned | None]
NOTHING_ADDED: Added = (None, None, None, None)
#: How often a calibration reads its slices, and how much more often for honest width and for a learned residual.
PASSES = {concord_bundle.METHOD: 10, spectral.METHOD: 3}
HONEST_PASSES, LEARNED_PASSES = 25, 4
#: Called with (what is being read, slices done, slices in all).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Calibration:
    """A model and where it was saved."""

    model: SpectralModel
    method: str
    path: Path
    warnings: tuple[str, ...]


def pairs_of_paths(source: Path, target: Path, *, allow: Collection[str] = frozenset()) -> tuple[Pair, ...]:
    """The pairs in two places: one scan each, or folders of several that match by geometry.

    Parameters
    ----------
    allow : as for `check_pair`.

    Raises
    ------
    ConcordctError : nothing there, or folders of several scans that do not match one to one.
    """
    sources, targets = (find_scans(path).scans for path in (source, target))
    for path, scans in ((source, sources), (target, targets)):
        if not scans:
            one_scan(path)  # says what was set aside
    if len(sources) == len(targets) == 1:
        return ((sources[0], targets[0]),)
    return pair_series(sources, targets, allow=allow)


def pairs_of_folder(
    path: Path,
    *,
    source_kernel: str,
    target_kernel: str,
    allow: Collection[str] = frozenset(),
    progress: Progress | None = None,
) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """The pairs that lie anywhere under a folder, as an archive exports them, told apart by kernel.

    Returns
    -------
    The pairs, and a line for each series of the source kernel that has no partner, with the reason.

    Raises
    ------
    ConcordctError : one of the kernels is not there, or nothing pairs.
    """
    say = progress or (lambda what, done, total: None)
    found = find_scans(path, progress=lambda *counts: say("reading headers", *counts))
    series = [scan for scan in found.scans if isinstance(scan, Series)]
    try:
        paired = pair_by_kernel(
            series, source_kernel, target_kernel, allow=allow, progress=lambda *counts: say("pairing", *counts)
        )
    except ConcordctError as error:
        raise ConcordctError(f"{path}: {error}") from None
    failures = tuple(f"{scan_path(source)}: {reason}" for source, reason in paired.failures)
    if not paired.pairs:
        raise ConcordctError(
            f"{path}: expected a pair of {source_kernel} and {target_kernel}, found none; first of {len(failures)}: "
            + failures[0]
        )
    return paired.pairs, failures


def pairs_of_manifest(path: Path, *, split: str | None = "train") -> tuple[Pair, ...]:
    """The pairs of a manifest.

    Parameters
    ----------
    split : rows of this split only; None for all of them.

    Raises
    ------
    ConcordctError : a bad manifest, or no pair in the split.
    """
    return tuple((pair.source, pair.target) for pair in paired_scans(path, split=split))


def calibrate_pairs(
    pairs: Sequence[Pair],
    output: Path,
    *,
    method: str = METHODS[0],
    width: str = WIDTHS[0],
    learned: bool = False,
    allow: Collection[str] = frozenset(),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """Fit the spectral model to pairs and save it.

    Parameters
    ----------
    method : one of `METHODS`; "concord" adds the transport of texture.
    width : one of `WIDTHS`; "honest" is of "concord" alone.
    learned : learn from all pairs what is left over of one that is not linear ("concord" alone); kept where it serves
        pairs that were held out, by exam.
    allow : problems of a series that may pass, see `Series.check`; they are recorded.

    Raises
    ------
    ConcordctError : pairs that are not two reconstructions of one scan, and by how much; unreadable slices; an output
        that exists.

    Pairs of two slice thicknesses are told by their headers: a slice profile is fitted first and kept in the model, and
    the rest is fitted between the source in the target's slices and the target.
    """
    if method not in METHODS:
        raise ConcordctError(f"expected a method of {', '.join(METHODS)}, found {method!r}")
    if width not in WIDTHS or (width != WIDTHS[0] and method != concord_bundle.METHOD):
        raise ConcordctError(f"expected a width of {' or '.join(WIDTHS)} (of concord alone), found {width!r}")
    if learned and method != concord_bundle.METHOD:
        raise ConcordctError(f"expected concord for a learned residual, found {method}")
    honest = width != WIDTHS[0]
    for source, target in pairs:
        if source.key == target.key:
            raise ConcordctError(f"{scan_path(source)}: expected two reconstructions of one scan, found the same twice")
    pairs, stacking = stacked(pairs, allow=allow)
    kept: dict[tuple[int, int], tuple[Volume, Volume]] = {}
    passes = PASSES[method] + honest * HONEST_PASSES + learned * LEARNED_PASSES
    total = passes * sum(stop - start for source, _ in pairs for start, stop in _slabs(source))
    done = 0

    def by_exam() -> Iterator[tuple[str, tuple[Volume, Volume]]]:
        nonlocal done
        for number, (source, target) in enumerate(pairs):
            exam = " ".join(sorted(identity(source).exams)) or source.key
            for start, stop in _slabs(source):
                slab = kept.get((number, start))
                if slab is None:
                    slab = source.read(start, stop, allow=allow), target.read(start, stop, allow=allow)
                if stacking is not None:
                    kept[number, start] = slab  # made of many slices: once is enough
                yield exam, slab
                done += stop - start
                if progress is not None:
                    progress("calibrating", min(done, total), total)

    def slabs() -> Iterator[tuple[Volume, Volume]]:
        return (slab for _, slab in by_exam())

    try:
        agreements = [check_pair(source, target, allow=allow) for source, target in pairs]
    except ConcordctError as error:
        if stacking is None or not stacking.profile.interpolates:
            raise
        raise ConcordctError(
            f"slices of {stacking.profile.source_mm:g} mm do not hold what slices of {stacking.profile.target_mm:g} mm "
            f"show, even interpolated as well as they can be: {error}"
        ) from None
    bias: list[float] = [one.bias_hu for one in agreements]
    info = _info([s for s, _ in pairs], [t for _, t in pairs], pairs=len(pairs), allow=allow)
    info["warnings"] += [
        f"two frames of reference: paired by position ({one.offset_mm:.2g} mm apart) and content (correlation "
        f"{one.correlation:.4f})"
        for one in agreements
        if one.frames_differ
    ]
    worst: float = max(bias, key=abs)
    if stacking is not None:
        info["slices_made"] = stacking.said()
    model = fit_pairs(slabs, info={**info, "bias_hu": round(worst, 2)})
    added = NOTHING_ADDED
    if method == concord_bundle.METHOD:
        transport, adaptive = fit_concord(model, slabs)
        residual = None
        if learned:
            model = replace(model, info={**model.info, "learned": None, "learned_kept": False})
        if learned and transport is not None and adaptive is not None:
            quiet = ConcordStandardizer(model, transport, "mean", adaptive=adaptive)
            residual, explained = fit_learned(by_exam, lambda volume: quiet(volume, generator=SliceSeeds(0, "")))
            model = replace(model, info={**model.info, "learned": round(explained, 4), "learned_kept": bool(residual)})
            if residual is not None:
                adaptive = chosen(model, transport, adaptive, held_out(slabs), residual) or adaptive
        added = (transport, adaptive, None, residual)
        if honest:
            added = (*widened(model, transport, adaptive, slabs, residual), residual)
            model = replace(model, info={**model.info, "width": width})
    model = _with_own_return(model, added, pairs[0][0], method, allow)
    return _save(model, added, output, method, overwrite, stacking)


def _with_own_return(
    model: SpectralModel, added: Added, source: Scan, method: str, allow: Collection[str]
) -> SpectralModel:
    """The model with what the self-check finds on a scan that it was calibrated on, against which others are held."""
    standardizer = Model("", _bundle(model, added, method), "").standardizer(
        mode="sample" if model.noise else "mean", use_neighbours=evenly_spaced(source)
    )
    found = check_scan(source, standardizer, seed=0, allow=allow)
    if found is None or found.ratio is None:
        return model
    return replace(model, info={**model.info, OWN_RETURN: round(found.ratio, 3)})


def calibrate_unpaired(
    sources: Path,
    targets: Path,
    output: Path,
    *,
    allow: Collection[str] = frozenset(),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """Fit the spectral model to two folders of unrelated scans and save it.

    Raises
    ------
    ConcordctError : fewer than two scans in a folder, bad geometry, an output that exists.
    """
    found = [find_scans(path).scans for path in (sources, targets)]
    total = 2 * sum(stop - start for scans in found for scan in scans for start, stop in _slabs(scan))
    done = 0

    def slabs(scans: Sequence[Scan]) -> Iterator[tuple[str, Volume]]:
        nonlocal done
        for scan in scans:
            for start, stop in _slabs(scan):
                yield scan.key, scan.read(start, stop, allow=allow)
                done += stop - start
                if progress is not None:
                    progress("calibrating", min(done, total), total)

    info = _info(found[0], found[1], pairs=0, allow=allow)
    model = fit_unpaired(lambda: slabs(found[0]), lambda: slabs(found[1]), info=info)
    return _save(model, NOTHING_ADDED, output, spectral.METHOD, overwrite)


def calibrate_tables(source: Path, target: Path, output: Path, *, overwrite: bool = False) -> Calibration:
    """Fit the spectral model to two CSV files with the columns f_lp_cm, mtf and, if known, nps_hu2_mm2.

    Raises
    ------
    ConcordctError : a table that cannot be read or does not start at 0 lp/cm, an output that exists.
    """
    a, b = (_read_table(path) for path in (source, target))
    frequency = a["f_lp_cm"][a["f_lp_cm"] <= b["f_lp_cm"][-1]]
    on = {name: np.interp(frequency, b["f_lp_cm"], values) for name, values in b.items()}
    inside = {name: values[: len(frequency)] for name, values in a.items()}
    model = fit_tables(
        frequency,
        inside["mtf"],
        on["mtf"],
        nps_source_hu2_mm2=inside.get("nps_hu2_mm2") if "nps_hu2_mm2" in on else None,
        nps_target_hu2_mm2=on.get("nps_hu2_mm2") if "nps_hu2_mm2" in inside else None,
        info={"software": f"concordct {__version__}", "source_kernels": [], "target_kernels": []},
    )
    return _save(model, NOTHING_ADDED, output, spectral.METHOD, overwrite)


def _slabs(scan: Scan) -> list[tuple[int, int]]:
    """Where to read: slabs of neighbours, or single slices where neighbours are not at one distance."""
    depth = scan.shape[0]
    if not evenly_spaced(scan):
        return [(start, start + 1) for start in np.linspace(0, depth - 1, min(depth, 32)).astype(int).tolist()]
    if depth <= SLABS * SLAB_SLICES:
        return [(start, min(start + SLAB_SLICES, depth)) for start in range(0, depth, SLAB_SLICES)]
    starts = np.linspace(0, depth - SLAB_SLICES, SLABS).round().astype(int)
    return [(int(start), int(start) + SLAB_SLICES) for start in starts]


def _info(sources: Sequence[Scan], targets: Sequence[Scan], *, pairs: int, allow: Collection[str]) -> dict[str, Any]:
    allowed = {p.code for scan in (*sources, *targets) for p in checked(scan, allow)}
    warnings = sorted(
        {
            f"{side}: {note}"
            for side, scans in (("source", sources), ("target", targets))
            for scan in scans
            for note in scan.notes
        }
    )
    return {
        "software": f"concordct {__version__}",
        "source_kernels": sorted({scan.kernel for scan in sources if scan.kernel}),
        "target_kernels": sorted({scan.kernel for scan in targets if scan.kernel}),
        "pairs": pairs,
        CALIBRATED_ON: _identity((*sources, *targets)),
        "allowed": sorted(allowed),
        "warnings": warnings,
    }


def _identity(scans: Sequence[Scan]) -> dict[str, list[str]]:
    """Digests of the slices that are read, and of their series and exams."""
    return together(identity(*_read_of(scan)) for scan in scans).to_json()


def _read_of(scan: Scan) -> tuple[Scan, set[int]]:
    """A scan as it lies on disk, and its slices that are read."""
    read = {index for slab in _slabs(scan) for index in range(*slab)}
    if isinstance(scan, RestackedSeries | RestackedFile) and scan.source is not None and scan.means is not None:
        return scan.source, {at for index in read for at in scan.means.members(index)}
    return scan, read


def _read_table(path: Path) -> dict[str, NDArray[np.float64]]:
    try:
        with open_text(path) as file:
            rows = list(csv.DictReader(file))
        names = [name for name in ("f_lp_cm", "mtf", "nps_hu2_mm2") if rows and rows[0].get(name) is not None]
        table = {name: np.array([float(row[name]) for row in rows]) for name in names}
    except (OSError, UnicodeDecodeError, ValueError, TypeError, csv.Error) as error:
        raise ConcordctError(f"{path}: expected a CSV table of numbers, found {error}") from error
    if "f_lp_cm" not in table or "mtf" not in table:
        raise ConcordctError(
            f"{path}: expected the columns f_lp_cm, mtf [, nps_hu2_mm2], found {names or 'none of them'}"
        )
    if np.any(np.diff(table["f_lp_cm"]) <= 0):
        raise ConcordctError(f"{path}: expected frequencies that ascend, found {table['f_lp_cm'][:4].tolist()} ...")
    return table


def _save(
    model: SpectralModel,
    added: Added,
    output: Path,
    method: str,
    overwrite: bool,
    stacking: Stacking | None = None,
) -> Calibration:
    warnings = list(model.info.get("warnings", []))
    bias = model.info.get("bias_hu", 0.0)
    if abs(bias) > LARGEST_BIAS_HU:
        warnings.append(f"target minus source is {bias:+.1f} HU in uniform regions, which no kernel makes")
    bundle = _bundle(model, added, method)
    bundle = bundle if stacking is None else stacking.added_to(bundle)
    save_bundle(bundle, output, card=_card(model, method, warnings), overwrite=overwrite)
    return Calibration(model, method, output, tuple(warnings))


def _bundle(model: SpectralModel, added: Added, method: str) -> Bundle:
    return concord_bundle.to_bundle(model, *added) if method == concord_bundle.METHOD else model.to_bundle()


def _card(model: SpectralModel, method: str, warnings: Sequence[str]) -> str:
    """The model card, Markdown."""
    info, limits = model.info, model.limits
    source, target = ("/".join(info.get(f"{side}_kernels", [])) or "unnamed" for side in ("source", "target"))
    data = (
        "tables of MTF and NPS"
        if info.get("tables")
        else (
            f"{info['scans'][0]} + {info['scans'][1]} unpaired scans"
            if info.get("unpaired")
            else f"{counted(info['pairs'], 'paired scan')}, {counted(info['slices'], 'slice')}"
        )
    )
    lost = "not measured" if limits.noise_share_above_half is None else f"{limits.noise_share_above_half:.1%}"
    lines = [
        f"# {TITLES[method]}, {source} to {target}",
        "",
        f"Calibrated from {data} by {info.get('software', 'concordct')}. Research use; not a medical device.",
        "",
        f"- Above {limits.half_lp_cm:.2f} lp/cm less than half of the target's power follows from the source;",
        f"  {lost} of the target's noise power lies there. Above {limits.gone_lp_cm:.2f} lp/cm nothing is passed.",
        f"- Neighbouring slices are {'used' if model.uses_neighbours else 'not used'}.",
        f"- Noise for mode `sample`: {'measured' if model.noise else 'not measured, use mode `mean`'}.",
        *([f"- {_learned(info)}"] if "learned_kept" in info else []),
        *(["- Samples are as far from each other as from the target (width: honest)."] if "width" in info else []),
        *([f"- It makes {info['slices_made']}."] if "slices_made" in info else []),
        *(f"- Warning: {text}" for text in warnings),
        "",
        "It applies to scans of the source kernel, axial, of any pixel size; iterative strength, focal spot and slice",
        "thickness should be those of the calibration.",
    ]
    return "\n".join(lines) + "\n"


def _learned(info: Mapping[str, Any]) -> str:
    if info["learned"] is None:
        return "No learned residual: these pairs are linear, and leave nothing to learn."
    kept = "it is written" if info["learned_kept"] else "it is left out"
    return f"A learned residual explains {info['learned']:.1%} of what is left over on what was held out: {kept}."


def summary(result: Calibration) -> dict[str, Any]:
    """What a calibration found, as JSON."""
    model, limits = result.model, result.model.limits
    return {
        "model": str(result.path),
        "method": result.method,
        "source_kernels": model.info.get("source_kernels", []),
        "target_kernels": model.info.get("target_kernels", []),
        "slices": model.info.get("slices"),
        "limits": {
            "half_lp_cm": limits.half_lp_cm,
            "gone_lp_cm": limits.gone_lp_cm,
            "noise_share_above_half": limits.noise_share_above_half,
        },
        "uses_neighbours": model.uses_neighbours,
        "samples_noise": model.noise is not None,
        "transfer_error_median": model.info.get("transfer_error_median"),
        "bias_hu": model.info.get("bias_hu"),
        "slices_made": model.info.get("slices_made"),
        "learned": _learned(model.info) if "learned_kept" in model.info else None,
        "warnings": list(result.warnings),
    }


def summary_lines(found: dict[str, Any]) -> list[str]:
    """The same for a terminal."""
    kernels = ["/".join(found[f"{side}_kernels"]) or "unnamed kernel" for side in ("source", "target")]
    limits = found["limits"]
    share = limits["noise_share_above_half"]
    lines = [
        f"model: {found['model']}, {found['method']}, {kernels[0]} to {kernels[1]}",
        f"limits: half of the target's power follows from the source up to {limits['half_lp_cm']:.2f} lp/cm"
        + ("" if share is None else f", {share:.1%} of its noise power lies above")
        + f"; nothing is passed above {limits['gone_lp_cm']:.2f} lp/cm",
        f"neighbouring slices: {'used' if found['uses_neighbours'] else 'not used'}; "
        f"noise for mode sample: {'measured' if found['samples_noise'] else 'not measured'}",
    ]
    if found["slices_made"] is not None:
        lines.append(f"slices: {found['slices_made']}")
    if found["learned"] is not None:
        lines.append(f"learned: {found['learned']}")
    if found["transfer_error_median"] is not None:
        lines.append(f"unpaired: standard error of the transfer {found['transfer_error_median']:.1%} (median)")
    return lines
