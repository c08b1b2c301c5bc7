"""The main job: calibrate, standardize, evaluate, and a demonstration of all of it."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from concordct.cli.common import (
    DOUBTED,
    FAILED,
    REFUSED,
    AddressOption,
    AllowOption,
    CheckChoice,
    EngineChoice,
    EngineOption,
    JsonOption,
    ModeChoice,
    ModeOption,
    OverwriteOption,
    SeedOption,
    ShardOption,
    ToOption,
    WorkersOption,
    app,
    bar,
    cell,
    echo,
    engine_of,
    errors,
    one_of,
    print_json,
    tables,
    tell_share,
    warn,
)
from concordct.errors import ConcordctError
from concordct.methods.catalogue import WIDTHS, names
from concordct.pipelines.engines import ready

CALIBRATED = names("calibrate")
#: Where a diffusion may start, as `methods.paired.conditional.Start` names them.
STARTS = ("noise", "source")


class ReferenceChoice(StrEnum):
    """What a standardized scan is held against."""

    target = "target"
    none = "none"


@app.command()
def calibrate(
    source: Annotated[
        Path | None, typer.Argument(help="Scan(s) in the source kernel, or its table with --tables.")
    ] = None,
    target: Annotated[Path | None, typer.Argument(help="The same scan(s) in the target kernel.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The model, a folder.")] = ...,  # type: ignore[assignment]
    pairs: Annotated[Path | None, typer.Option(help="A manifest of pairs instead of SOURCE and TARGET.")] = None,
    split: Annotated[str, typer.Option(help="Rows of the manifest to calibrate on; 'all' for every row.")] = "train",
    source_kernel: Annotated[
        str | None, typer.Option("--from", help="Source kernel; SOURCE is then searched for pairs with --to.")
    ] = None,
    target_kernel: Annotated[str | None, typer.Option("--to", help="Target kernel, with --from.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"Method to calibrate: {', '.join(CALIBRATED)}.",
            callback=one_of(CALIBRATED),
            show_default="concord for pairs, spectral for --unpaired and --tables",
        ),
    ] = None,
    width: Annotated[
        str,
        typer.Option(
            help="Samples of concord: agreement, as near to the target as they come; honest, as far from each other as "
            "from the target, which costs some agreement.",
            callback=one_of(WIDTHS),
        ),
    ] = WIDTHS[0],
    learned: Annotated[
        bool,
        typer.Option(
            "--learned",
            help="For many pairs of iterative or deep-learning reconstruction: learn what the transfer leaves over; "
            "kept where it serves.",
        ),
    ] = False,
    unpaired: Annotated[
        bool, typer.Option("--unpaired", help="SOURCE and TARGET are folders of unrelated scans.")
    ] = False,
    tables: Annotated[
        bool, typer.Option("--tables", help="SOURCE and TARGET are CSV tables: f_lp_cm, mtf [, nps_hu2_mm2].")
    ] = False,
    allow: AllowOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find the transfer between two kernels from one scan reconstructed with both.

    Example: `concordct calibrate exam/Br40 exam/Bl64 -o br40-to-bl64`

    Both kernels in one folder or in a tree of exams: `concordct calibrate exams --from B30f --to B70f -o model`
    """
    from concordct.pipelines import calibrate as pipeline
    from concordct.volumes.zipped import as_tree

    by_kernel = source_kernel is not None or target_kernel is not None
    if sum((pairs is not None, unpaired, tables, by_kernel)) > 1:
        raise ConcordctError("expected one of --pairs, --from with --to, --unpaired and --tables, found several")
    if by_kernel and (source is None or target is not None or source_kernel is None or target_kernel is None):
        raise ConcordctError("expected one folder with both --from KERNEL and --to KERNEL")
    if not by_kernel and (pairs is None) == (source is None or target is None):
        raise ConcordctError(
            "expected SOURCE and TARGET, or --pairs, found "
            + (
                "both"
                if pairs
                else "neither"
                if source is None
                else "SOURCE alone (--from and --to name two kernels in it)"
            )
        )
    if method == "concord" and (unpaired or tables):
        raise ConcordctError("expected pairs for method concord, found none: --unpaired and --tables serve spectral")
    if (width != WIDTHS[0] or learned) and (unpaired or tables):
        raise ConcordctError(
            "expected pairs for honest width and learned residuals, found none: --unpaired, --tables serve spectral"
        )
    allowed = frozenset(allow or ())
    unpaired_scans: tuple[str, ...] = ()
    paired_method = method or "concord"
    with ExitStack() as opened, bar(quiet=as_json) as report:
        common: dict[str, Any] = {"allow": allowed, "overwrite": overwrite, "progress": report}
        paired = {**common, "method": paired_method, "width": width, "learned": learned}
        if pairs is not None:
            found = pipeline.pairs_of_manifest(pairs, split=None if split == "all" else split)
            result = pipeline.calibrate_pairs(found, output, **paired)
        elif source_kernel is not None and target_kernel is not None:
            assert source is not None
            tree = opened.enter_context(as_tree(source))
            found, unpaired_scans = pipeline.pairs_of_folder(
                tree, source_kernel=source_kernel, target_kernel=target_kernel, allow=allowed, progress=report
            )
            result = pipeline.calibrate_pairs(found, output, **paired)
        elif tables:
            result = pipeline.calibrate_tables(source, target, output, overwrite=overwrite)  # type: ignore[arg-type]
        elif unpaired:
            result = pipeline.calibrate_unpaired(source, target, output, **common)  # type: ignore[arg-type]
        else:
            found = pipeline.pairs_of_paths(source, target, allow=allowed)  # type: ignore[arg-type]
            result = pipeline.calibrate_pairs(found, output, **paired)
    summary = {**pipeline.summary(result), "left_out": list(unpaired_scans)}
    if as_json:
        print_json(summary)
        return
    for line in unpaired_scans:
        warn("left out", line)
    for line in pipeline.summary_lines(summary):
        echo(line)
    for warning in result.warnings:
        warn("warning", warning)


@app.command()
def standardize(
    input_path: Annotated[
        Path,
        typer.Argument(metavar="INPUT", help="A volume file, a series, a tree, a zip, or s3://BUCKET/PREFIX of these."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A file for a file, a folder for a series or a tree; or s3://...")
    ],
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="A model that `calibrate` or `train` wrote, or the name of one that ships."),
    ] = None,
    reference: ToOption = None,
    mode: ModeOption = ModeChoice.sample,
    seed: SeedOption = 0,
    samples: Annotated[
        int,
        typer.Option(min=0, help="Of so many samples, write mean and uncertainty (deviation, HU) beside the result."),
    ] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps of a trained model.")] = None,
    start: Annotated[
        str | None, typer.Option(callback=one_of(STARTS), help=f"Where sampling starts: {' or '.join(STARTS)}.")
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Prune a trained model to this depth: coarser scales are not computed.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(callback=one_of(("cuda",)), help="cuda: transforms on a card; networks find it anyway."),
    ] = None,
    workers: WorkersOption = 1,
    engine: EngineOption = EngineChoice.local,
    address: AddressOption = None,
    shard: ShardOption = None,
    any_kernel: Annotated[bool, typer.Option("--any-kernel", help="Standardize scans of other kernels, too.")] = False,
    check: Annotated[
        CheckChoice, typer.Option(help="What to do about a scan that seems to be of another kernel than it says.")
    ] = CheckChoice.warn,
    allow: AllowOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn scans of the source kernel into scans of the target kernel. Run it again to resume.

    Example: `concordct standardize /data/incoming -m br40-to-bl64 -o /data/standardized`

    Scans of many kernels to one condition: `concordct standardize /data/mixed --to soft -o /data/soft`
    """
    if (model is None) == (reference is None):
        raise ConcordctError("expected either --model or --to, found " + ("neither" if model is None else "both"))
    if reference is not None and (steps, start, depth) != (None, None, None):
        raise ConcordctError("expected --steps, --start and --depth with a trained model, found them with --to")
    where = engine_of(workers, engine, address, shard)
    # Workers load what they need while this process does.
    with ready(where, "concordct.pipelines.standardize"), ExitStack() as opened:
        from concordct.methods.models import load_model, open_reference
        from concordct.pipelines import standardize as pipeline
        from concordct.signal.spectra import transforms_on
        from concordct.volumes.zipped import as_output, as_tree

        chosen = {"steps": steps, "start": start, "depth": depth}
        sampling = {name: value for name, value in chosen.items() if value is not None}
        settings = pipeline.Settings(
            mode.value, seed, frozenset(allow or ()), any_kernel, overwrite, check.value, samples, sampling, device
        )
        with transforms_on(device):
            pass  # says at once where there is no card
        tree = opened.enter_context(as_tree(input_path))
        place = opened.enter_context(as_output(output, source=input_path))
        report = opened.enter_context(bar(quiet=as_json))
        loaded = load_model(model) if model is not None else open_reference(reference or "")
        if sampling:
            loaded.standardizer(mode=mode.value, sampling=sampling)
        planned = pipeline.plan(tree, place, loaded, settings, engine=where)
        count = len(planned.jobs)
        depths = [job.scan.shape[0] for job in planned.jobs]

        def show(index: int, done: int, depth: int) -> None:
            # Slices of all scans, so that the time left is that of the whole run.
            report(f"scan {min(index + 1, count)} of {count}, slices", sum(depths[:index]) + done, sum(depths))

        records = pipeline.run(planned, loaded, place, settings, engine=where, progress=show)
    for reason, number in Counter(item.reason for item in planned.set_aside).most_common():
        warn("set aside", f"{number} x {reason}")
    for record in records:
        if as_json:
            echo(record.line())
        elif record.status == "done":
            clipped = f", {record.clipped_voxels} voxels clipped at the stored range" if record.clipped_voxels else ""
            became = "already there" if record.stood else "done"
            echo(f"{became}: {record.input} -> {record.output}, {record.slices} slices{clipped}")
            for path in record.beside:
                echo(f"beside it: {path}")
            found = record.self_check or {"failed": False, "lines": (), "problems": ()}
            for line in found["lines"]:
                if line not in found["problems"]:
                    echo(f"self-check: {line}")
            for line in found["problems"]:
                warn("self-check failed", line)
            for note in record.notes:
                warn("note", note)
        else:
            warn(record.status, f"{record.input}: {record.reason}")
    tell_share(shard, len(planned.jobs) + len(planned.skipped) - len(records), "the record of all")
    statuses = [record.status for record in records]
    doubted = sum(bool(record.self_check and record.self_check["failed"]) for record in records)
    if len(records) > 1 and not as_json:
        counts = Counter("already there" if record.stood else record.status for record in records)
        parts = [f"{counts[name]} {name}" for name in ("done", "already there", "skipped", "failed") if counts[name]]
        echo(f"{len(records)} scans: {', '.join(parts)}" + (f"; self-check failed in {doubted}" if doubted else ""))
    if doubted and not as_json:
        warn(
            "advice",
            "compare kernel, iterative strength and slice thickness with those of the calibration, and look at the "
            "images; --check refuse leaves such scans out",
        )
    if "failed" in statuses:
        raise typer.Exit(REFUSED if not planned.tree else FAILED)
    if "done" not in statuses:
        raise ConcordctError(
            f"{input_path}: expected a scan of the model's kernel, found {len(records)} of other kernels"
        )
    if doubted:
        raise typer.Exit(DOUBTED)


@app.command()
def evaluate(
    source: Annotated[Path | None, typer.Option(help="The scan before.")] = None,
    standardized: Annotated[Path | None, typer.Option(help="The scan after.")] = None,
    target: Annotated[Path | None, typer.Option(help="The same scan in the target kernel.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results.json and report.html.")] = ...,  # type: ignore[assignment]
    mask: Annotated[
        Path | None, typer.Option(help="ROIs to compare in: NIfTI, NRRD or MHA labels, DICOM SEG or RTSTRUCT.")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="A manifest of pairs; the sources are standardized with --model.")
    ] = None,
    split: Annotated[str, typer.Option(help="Rows of the manifest to judge; 'all' for every row.")] = "test",
    model: Annotated[Path | None, typer.Option("--model", "-m", help="Its curves are shown in the report.")] = None,
    mode: ModeOption = ModeChoice.sample,
    seed: SeedOption = 0,
    preset: Annotated[
        str | None,
        typer.Option(help="Features to compare: a preset or a PyRadiomics parameter file; 2D textures without."),
    ] = None,
    workers: WorkersOption = 1,
    engine: EngineOption = EngineChoice.local,
    address: AddressOption = None,
    shard: ShardOption = None,
    origin: Annotated[str, typer.Option(help="What was simulated and what was real, for the report.")] = "",
    reference: Annotated[
        ReferenceChoice, typer.Option(help="none: no target, what changed between --source and --standardized?")
    ] = ReferenceChoice.target,
    any_kernel: Annotated[
        bool, typer.Option("--any-kernel", help="Standardize sources of other kernels than the model's, too.")
    ] = False,
    allow: AllowOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare source and standardized with the target: HU, noise power, radiomic agreement; JSON and one HTML file.

    Example: `concordct evaluate --source exam/Br40 --standardized out --target exam/Bl64 -o report`
    """
    from concordct.judging.case import cases_of_manifest, one_case
    from concordct.methods.models import load_model
    from concordct.pipelines import evaluate as pipeline
    from concordct.pipelines.engines import share_of
    from concordct.report.terminal import summary_rows
    from concordct.report.words import counted

    if reference is ReferenceChoice.none:
        _without_target(
            source, standardized, output, model, mode, seed, frozenset(allow or ()), overwrite=overwrite,
            as_json=as_json,
        )  # fmt: skip
        return
    given = (source, standardized, target)
    if pairs is None and source is not None and standardized is not None and target is not None:
        cases = one_case(source, standardized, target, mask)
    elif pairs is not None and given == (None, None, None):
        if model is None:
            raise ConcordctError("expected --model to standardize the pairs' sources with, found none")
        cases = cases_of_manifest(pairs, split=None if split == "all" else split)
    else:
        raise ConcordctError("expected --source, --standardized and --target, or --pairs with --model")
    where = engine_of(workers, engine, address, shard)
    with bar(quiet=as_json) as report:
        results = pipeline.evaluate(
            cases,
            output,
            model=None if model is None else load_model(model),
            mode=mode.value,
            seed=seed,
            preset=preset,
            origin=origin,
            any_kernel=any_kernel,
            allow=frozenset(allow or ()),
            engine=where,
            overwrite=overwrite,
            progress=lambda done, total: report("evaluating", done, total),
        )
    if results is None:
        mine = share_of(where, cases)
        tell_share(shard, len(cases) - len(mine), "the report")
        return
    if as_json:
        print_json(results)
        return
    if results["in_sample"]:
        warn("in-sample", results["in_sample"]["said"].split(": ", 1)[1])
    table = Table("against the target", "before", "after")
    for row in summary_rows(results):
        table.add_row(*row)
    tables().print(table)
    inputs, agreement = results["inputs"], results.get("agreement")
    rois = f", {agreement['settings']}" if agreement else ""
    echo(f"{counted(inputs['slices'], 'slice')} of {counted(inputs['subjects'], 'subject')}{rois}")
    for warning in results["warnings"]:
        warn("warning", warning)
    echo(f"report: {output / 'report.html'}")


@app.command()
def describe(
    model: Annotated[Path, typer.Argument(help="A model that `calibrate` or `train` wrote.")],
    bibtex: Annotated[bool, typer.Option("--bibtex", help="The references alone.")] = False,
    as_json: JsonOption = False,
) -> None:
    """What a paper says of a model: a paragraph for the methods section, guideline items, references.

    Example: `concordct describe br40-to-bl64`
    """
    from concordct.methods.models import load_model
    from concordct.report.methods_text import methods_text

    loaded = load_model(model)
    text = methods_text(loaded.bundle.metadata, sha256=loaded.sha256)
    if as_json:
        print_json(text.to_json())
    else:
        echo(text.bibtex if bibtex else text.markdown())


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for everything the demonstration makes.")
    ] = Path("demo"),
    real_data: Annotated[Path | None, typer.Option(help="Folder of real CT, if there is one.")] = None,
) -> None:
    """Simulate a paired scan, calibrate, standardize another patient, judge it; opens nothing.

    Example: `concordct demo -o demo`
    """
    from concordct.pipelines.demo import demonstrate
    from concordct.report.terminal import summary_rows

    found = demonstrate(output, real_data=real_data, say=lambda text: errors.print(f"- {cell(text)}"))
    console = tables()
    for shown in found:
        if shown.results is not None:
            table = Table("against the target", "before", "after", title=shown.title, title_justify="left")
            for row in summary_rows(shown.results):
                table.add_row(*row)
            console.print(table)
            for warning in shown.results["warnings"]:
                warn("warning", warning)
    for shown in found:
        echo(f"{shown.title}: {shown.look_at}")


def _without_target(
    source: Path | None, standardized: Path | None, output: Path, model: Path | None, mode: ModeChoice, seed: int,
    allow: frozenset[str], *, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """`evaluate --reference none`."""
    from concordct.methods.models import load_model
    from concordct.pipelines.unreferenced import evaluate_without_target

    if source is None or (standardized is None) == (model is None):
        raise ConcordctError("expected --source and either --standardized or --model, found something else")
    results = evaluate_without_target(
        source,
        standardized,
        output,
        model=None if model is None else load_model(model),
        mode=mode.value,
        seed=seed,
        allow=allow,
        overwrite=overwrite,
    )
    if as_json:
        print_json(results)
        return
    table = Table("", "unit", "before", "after", "change")
    for row in results["endpoints"]:
        if row["headline"]:
            shown = ("-" if row[key] is None else f"{row[key]:.4g}" for key in ("source", "standardized", "change"))
            table.add_row(row["title"], row["unit"], *shown)
    tables().print(table)
    for warning in results["warnings"]:
        warn("warning", warning)
    echo(f"results: {output / 'results.json'}")
