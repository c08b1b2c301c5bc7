"""`measure`: what a scan is made for, in numbers."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from concordct.cli.common import (
    FAILED,
    AddressOption,
    AllowOption,
    EngineChoice,
    EngineOption,
    JsonOption,
    ModeChoice,
    OverwriteOption,
    SeedOption,
    ShardOption,
    WorkersOption,
    app,
    bar,
    echo,
    engine_of,
    print_json,
    tables,
    tell_share,
    warn,
)
from concordct.errors import ConcordctError
from concordct.pipelines.engines import ready

if TYPE_CHECKING:
    from collections.abc import Sequence

    from concordct.pipelines.measure_image import MeasureJob, Outcome

#: Images that the terminal's table has a column for; the CSV has all.
MOST_SHOWN = 6


@app.command()
def measure(
    output: Annotated[Path, typer.Option("--output", "-o", help="The CSV to write; a JSON of its name lies beside.")],
    image: Annotated[Path | None, typer.Argument(help="A series folder, a volume file, or a tree of them.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="A manifest of pairs: sources and targets under one mask.")] = None,
    split: Annotated[str, typer.Option(help="Rows of the manifest to measure; 'all' for every row.")] = "all",
    lungs: Annotated[
        Path | None, typer.Option(help="Lung labels, 1 right and 2 left; found in the image without.")
    ] = None,
    heart: Annotated[
        Path | None, typer.Option(help="Where calcium is looked for; a region between the lungs without.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Labelled regions or nodules, a row each.")] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(help="density, emphysema, fibrosis, calcium, nodules or noise; once for each, all without."),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Measure the images standardized by this model, too.")] = None,
    mode: Annotated[
        ModeChoice | None, typer.Option(help="Of the standardized images; each endpoint's own without.")
    ] = None,
    seed: SeedOption = 0,
    workers: WorkersOption = 1,
    engine: EngineOption = EngineChoice.local,
    address: AddressOption = None,
    shard: ShardOption = None,
    allow: AllowOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure emphysema, lung density, dense lung, calcium, nodules and noise into a CSV; resumes.

    Example: `concordct measure exams -o endpoints.csv`
    """
    from concordct.endpoints.catalogue import ENDPOINTS
    from concordct.pipelines import measure as pipeline
    from concordct.volumes.zipped import as_output, as_tree

    if (image is None) == (pairs is None):
        raise ConcordctError("expected either an image or --pairs, found " + ("neither" if image is None else "both"))
    choice = pipeline.Choice(
        endpoints=tuple(endpoint) if endpoint else tuple(ENDPOINTS),
        allow=frozenset(allow or ()),
        mode=None if mode is None else mode.value,
        seed=seed,
    )
    where = engine_of(workers, engine, address, shard)
    with ready(where, "concordct.pipelines.measure"), ExitStack() as opened:
        source = image or pairs
        assert source is not None
        if image is not None:
            tree = opened.enter_context(as_tree(image))
            jobs = pipeline.jobs_of_path(tree, lungs=lungs, heart=heart, regions=mask, model=model, engine=where)
        else:
            if lungs or heart or mask:
                raise ConcordctError("expected masks in the manifest of pairs, found --lungs, --heart or --mask")
            jobs = pipeline.jobs_of_manifest(source, split=None if split == "all" else split, model=model)
        place = opened.enter_context(as_output(output, source=source))
        report = opened.enter_context(bar(quiet=as_json))
        found = pipeline.measure_images(jobs, place, choice=choice, engine=where, overwrite=overwrite, progress=report)
        changes = pipeline.class_changes_of(jobs, found) if len(found) == len(jobs) else []
    if len(found) < len(jobs):
        tell_share(shard, len(jobs) - len(found), "the table")
        return
    failed = [outcome for outcome in found if outcome.status == "failed"]
    if as_json:
        print_json(
            {
                "output": str(output),
                "images": len(found),
                "resumed": sum(outcome.status == "resumed" for outcome in found),
                "failed": [{"image": outcome.image, "reason": outcome.reason} for outcome in failed],
                "notes": [{"image": one.image, "note": note} for one in found for note in one.notes],
                "class_changes": changes,
            }
        )
    else:
        _print_headlines(jobs, found, choice.endpoints)
        for outcome in found:
            for note in outcome.notes:
                warn("note", f"{outcome.image}: {note}")
        for change in changes:
            warn("class changed", change)
        for outcome in failed:
            warn("failed", f"{outcome.image}: {outcome.reason}")
        echo(f"{len(found) - len(failed)} of {len(found)} images measured: {output}")
    if failed:
        raise typer.Exit(FAILED)


def _print_headlines(jobs: Sequence[MeasureJob], found: Sequence[Outcome], endpoints: Sequence[str]) -> None:
    """A column for each of the first images: the numbers that short tables show."""
    from concordct.endpoints.catalogue import ENDPOINTS

    shown = [(job, one.rows[0]) for job, one in zip(jobs, found, strict=True) if one.rows][:MOST_SHOWN]
    table = Table("", "unit", *(f"{job.image} {job.stage}".removesuffix(" image") for job, _ in shown))
    for column in (column for name in endpoints for column in ENDPOINTS[name].columns if column.headline):
        values = [row.values.get(column.name) for _, row in shown]
        if any(value is not None for value in values):
            table.add_row(column.title, column.unit, *("-" if value is None else f"{value:.4g}" for value in values))
    tables().print(table)


@app.command()
def pyradiomics(
    cases: Annotated[Path, typer.Argument(help="A CSV with columns Image and Mask, perhaps Label and others.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The CSV to write.")],
    param: Annotated[Path | None, typer.Option("--param", "-p", help="A PyRadiomics parameter file.")] = None,
    workers: WorkersOption = 1,
    engine: EngineOption = EngineChoice.local,
    address: AddressOption = None,
    shard: ShardOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a PyRadiomics batch as it is: its CSV, its parameter file, its columns; resumes.

    Example: `concordct pyradiomics cases.csv --param Params.yaml -o features.csv -j 2`
    """
    from concordct.pipelines.pyradiomics_batch import read_cases, run_batch

    where = engine_of(workers, engine, address, shard)
    with bar(quiet=as_json) as report:
        found = run_batch(
            cases,
            output,
            params=param,
            engine=where,
            overwrite=overwrite,
            progress=lambda done, total: report("measuring", done, total),
        )
    total = len(read_cases(cases)[1])
    if len(found) < total:
        tell_share(shard, total - len(found), "the features file")
        return
    failed = [result for result in found if result.reason]
    if as_json:
        failures = [{"row": result.row, "reason": result.reason} for result in failed]
        print_json({"output": str(output), "cases": len(found), "failed": failures})
    else:
        for result in failed:
            warn("failed", f"row {result.row}: {result.reason}")
        typer.echo(f"{len(found) - len(failed)} of {len(found)} cases measured: {output}")
    if failed:
        raise typer.Exit(FAILED)
