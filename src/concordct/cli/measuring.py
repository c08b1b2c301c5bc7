"""What is measured: features of images, their agreement, ROIs, and IBSI's benchmark."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from concordct.cli.common import (
    FAILED,
    AddressOption,
    AllowOption,
    EngineChoice,
    EngineOption,
    JsonOption,
    OverwriteOption,
    SeedOption,
    ShardOption,
    WorkersOption,
    app,
    bar,
    cell,
    echo,
    engine_of,
    note,
    print_json,
    tables,
    tell_share,
    warn,
)
from concordct.errors import ConcordctError


class JoinChoice(StrEnum):
    """What says that two rows of two files are of one ROI."""

    image = "image"
    roi = "roi"


@app.command()
def features(
    output: Annotated[Path, typer.Option("--output", "-o", help="The features file to write, CSV; or s3://...")],
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            "-p",
            help="pyradiomics-default, pyradiomics-1401, ibex-1401, ibsi, or a PyRadiomics parameter file.",
        ),
    ],
    image: Annotated[
        Path | None, typer.Argument(help="A series folder or a volume file; zipped, or s3://... of these.")
    ] = None,
    roi: Annotated[
        Path | None, typer.Option(help="NIfTI or NRRD labels, DICOM SEG or RTSTRUCT; the whole image without it.")
    ] = None,
    pairs: Annotated[Path | None, typer.Option(help="A manifest of pairs instead of one image.")] = None,
    target: Annotated[bool, typer.Option("--target", help="Measure the manifest's targets, not its sources.")] = False,
    split: Annotated[str, typer.Option(help="Rows of the manifest to measure; 'all' for every row.")] = "all",
    name: Annotated[
        str | None, typer.Option(help="What stands in the column image; the file's name without it.")
    ] = None,
    workers: WorkersOption = 1,
    engine: EngineOption = EngineChoice.local,
    address: AddressOption = None,
    shard: ShardOption = None,
    allow: AllowOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure radiomic features of one image or of a manifest into a CSV; a killed run goes on where it was.

    Example: `concordct features exam/Br40 --roi tumour.nii.gz --preset pyradiomics-1401 -o features.csv`
    """
    from concordct.pipelines.features import extract_features, jobs_of_manifest, one_job, summary
    from concordct.volumes.zipped import as_output, as_tree

    if (image is None) == (pairs is None):
        raise ConcordctError("expected either an image or --pairs, found " + ("neither" if image is None else "both"))
    with ExitStack() as opened:
        source = image or pairs
        assert source is not None
        if image is not None:
            tree = opened.enter_context(as_tree(image))
            regions = None if roi is None else opened.enter_context(as_tree(roi))
            jobs = one_job(tree, regions, name=name or image.name.split(".")[0])
        else:
            assert pairs is not None
            chosen = None if split == "all" else split
            jobs = jobs_of_manifest(pairs, role="target" if target else "source", split=chosen)
        place = opened.enter_context(as_output(output, source=source))
        report = opened.enter_context(bar(quiet=as_json))
        results = extract_features(
            jobs,
            preset,
            place,
            engine=engine_of(workers, engine, address, shard),
            allow=frozenset(allow or ()),
            overwrite=overwrite,
            progress=lambda done, total: report("measuring", done, total),
            say=None if as_json else note,
        )
    found = summary(results, output)
    if as_json:
        print_json(found)
    elif len(results) < len(jobs):
        tell_share(shard, len(jobs) - len(results), "the features file")
    else:
        echo(f"{found['rois']} ROIs of {found['images'] - len(found['failed'])} images: {output}")
        for one in found["failed"]:
            warn("failed", f"{one['image']}: {one['reason']}")
    if found["failed"]:
        raise typer.Exit(FAILED)


@app.command()
def agree(
    source: Annotated[Path, typer.Argument(help="Features of the images to judge.")],
    target: Annotated[Path, typer.Argument(help="Features of the images they should agree with.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results.json, features.csv, report.html.")],
    before: Annotated[Path | None, typer.Option(help="Features before standardization, shown beside.")] = None,
    retest: Annotated[
        list[Path] | None, typer.Option(help="Features of the targets scanned again; once for every repeat.")
    ] = None,
    by: Annotated[
        JoinChoice | None,
        typer.Option(
            help="What says that two rows are of one ROI.", show_default="roi where each file holds one image"
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Bootstrap samples of subjects.", min=1)] = 1000,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare two features files of the same ROIs: CCC, relative error, ICC, Bland-Altman, by class and by feature.

    Example: `concordct agree standardized.csv target.csv --before source.csv -o agreement`
    """
    from concordct.pipelines.agree import agree as run

    try:
        results = run(
            source,
            target,
            output,
            before=before,
            retest=retest or (),
            by=None if by is None else by.value,
            repeats=repeats,
            seed=seed,
            overwrite=overwrite,
        )
    except ConcordctError as error:
        raise ConcordctError(f"{error} (--by)" if "match by ROI" in str(error) else str(error)) from None
    if as_json:
        print_json(results)
        return
    table = Table(
        "class", "features", "CCC (mean, sd)", "95% interval", "RE < 0.15, features", "... values", "papers' CCC"
    )
    for row in results["agreement"]["per_class"]:
        low, high = row["standardized_ccc_interval"]
        table.add_row(
            cell(row["class"]),
            f"{row['features']} ({row['standardized_ccc_undefined']} undefined)",
            f"{_text(row['standardized_ccc_mean'])} ({_text(row['standardized_ccc_sd'])})",
            "-" if low is None or high is None else f"{low:.3f} to {high:.3f}",
            _text(row["standardized_re_share"]),
            _text(row["standardized_re_share_of_values"]),
            _text(row["standardized_papers_ccc_mean"]),
        )
    tables().print(table)
    if retest:
        beside = Table("class", "SD of a repeat, % of the mean", "SD to the target over it, before", "after", "as good")
        for row in results["agreement"]["per_class"]:
            relative, share = row["repeat_relative_median"], row["standardized_to_repeat_share"]
            beside.add_row(
                cell(row["class"]),
                _text(None if relative is None else 100 * relative),
                _text(row.get("source_to_repeat_median")),
                _text(row["standardized_to_repeat_median"]),
                "-" if share is None else f"{100 * share:.0f} %",
            )
        tables().print(beside)
    echo(f"{results['rois']} ROIs, matched by {results['matched_by']}")
    for warning in results["warnings"]:
        warn("warning", warning)
    echo(f"report: {output / 'report.html'}")


@app.command()
def rois(
    image: Annotated[Path, typer.Argument(help="A series folder or a volume file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The labels to write: .nii.gz, .nrrd or .mha.")],
    size: Annotated[int, typer.Option(help="Edge of a square ROI, pixels.", min=1)],
    random: Annotated[
        int | None, typer.Option("--random", help="So many random ROIs in each of the papers' HU ranges; else a grid.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Where ROIs may lie; in the body without it.")] = None,
    everywhere: Annotated[bool, typer.Option("--everywhere", help="Also in the air around the body.")] = False,
    seed: SeedOption = 0,
    allow: AllowOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Draw ROIs on one image, to measure them on every reconstruction of it.

    Example: `concordct rois exam/Br40 --size 28 --random 25 -o rois.nii.gz`
    """
    from concordct.pipelines.rois import draw_rois

    drawn = draw_rois(
        image,
        output,
        size=size,
        per_range=random,
        mask=mask,
        everywhere=everywhere,
        seed=seed,
        allow=frozenset(allow or ()),
        overwrite=overwrite,
    )
    ranges = f" ({', '.join(map(str, drawn.per_range))} by HU range)" if drawn.per_range else ""
    for text in drawn.warnings:
        warn("fewer", text)
    echo(f"{drawn.rois} ROIs{ranges}: {output}")


@app.command()
def ibsi(
    data: Annotated[Path, typer.Argument(help="IBSI-1's phantoms and reference_values.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The table to write, Markdown.")],
    overwrite: OverwriteOption = False,
) -> None:
    """Run IBSI-1's benchmark and write which reference values are met.

    Example: `concordct ibsi ../shared/data/ibsi_1 -o docs/ibsi.md --overwrite`
    """
    from concordct.pipelines.ibsi_table import write_ibsi_table

    found = write_ibsi_table(data, output, overwrite=overwrite)
    echo(f"{sum(one.within for one in found)} of {len(found)} reference values met: {output}")


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
