"""Pulmonary fibrosis: the follow-up scan, predicted from the first scan and the lung-function tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from concordct.cli.cohorts import cohort_app
from concordct.cli.common import (
    FAILED,
    AddressOption,
    AllowOption,
    EngineChoice,
    EngineOption,
    JsonOption,
    ModeChoice,
    ModeOption,
    OverwriteOption,
    SeedOption,
    ShardOption,
    WorkersOption,
    app,
    bar,
    echo,
    engine_of,
    need_torch,
    print_json,
    tables,
    tell_share,
    warn,
)
from concordct.errors import ConcordctError
from concordct.pipelines.engines import HERE, Engine

#: What the follow-up needs beside PyTorch.
FOLLOWUP_NEEDS = ("monai", "einops", "transformers", "tokenizers")


@app.command("predict-followup")
def predict_followup(
    scan: Annotated[
        Path, typer.Argument(help="The first scan, one CT series or volume file; or cohort.csv for all its subjects.")
    ],
    model: Annotated[
        Path,
        typer.Option(
            "--model", "-m", help="A model that `train` wrote for follow-up scans, or ciresdiff, which ships."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for scan, change map, summary and report.")],
    lung_function: Annotated[
        Path | None, typer.Option(help="Table of lung-function tests, CSV; of a cohort that beside it without.")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Whose row of the table; all of a cohort without.")] = None,
    weeks: Annotated[
        float | None, typer.Option(help="From the scan to the one predicted; as a cohort says without.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps; the recipe's without.")] = None,
    mode: ModeOption = ModeChoice.sample,
    seed: SeedOption = 0,
    any_subject: Annotated[
        bool, typer.Option("--any-subject", help="Accept a scan whose PatientID is not the subject.")
    ] = False,
    workers: WorkersOption = 1,
    engine: EngineOption = EngineChoice.local,
    address: AddressOption = None,
    shard: ShardOption = None,
    allow: AllowOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Predict the follow-up scan of a patient with pulmonary fibrosis. Synthetic; not for diagnosis.

    Example: `concordct predict-followup exam --lung-function tests.csv --subject P7 --weeks 52 -m model -o out`

    All subjects of a cohort: `concordct predict-followup cohort.csv -m model -o out -j 2`
    """
    from concordct.progression.lung_function import check_weeks

    if weeks is not None:
        check_weeks(weeks)
    where = engine_of(workers, engine, address, shard)
    if scan.suffix.lower() == ".csv":
        need_torch(extra="followup", also=FOLLOWUP_NEEDS)
        options = {"steps": steps, "mode": mode.value, "seed": seed, "any_subject": any_subject}
        _predict_cohort(
            scan, model, output, where, shard, as_json=as_json, table=lung_function, weeks=weeks, subject=subject,
            allow=frozenset(allow or ()), overwrite=overwrite, **options,
        )  # fmt: skip
        return
    if lung_function is None or subject is None or weeks is None:
        raise ConcordctError("expected --lung-function, --subject and --weeks with a scan, found fewer")
    if where != HERE:
        raise ConcordctError("expected a cohort for --workers, --engine and --shard, found one scan")
    need_torch(extra="followup", also=FOLLOWUP_NEEDS)
    from concordct.pipelines import followup as pipeline

    with bar(quiet=as_json) as report:
        summary = pipeline.predict(
            scan,
            lung_function,
            model,
            output,
            subject=subject,
            weeks=weeks,
            steps=steps,
            mode=mode.value,
            seed=seed,
            any_subject=any_subject,
            allow=frozenset(allow or ()),
            overwrite=overwrite,
            progress=report,
        )
    if as_json:
        print_json(summary)
        return
    found = summary["fibrosis"]
    low, high = found["range_hu"]
    table = Table(f"{low:g} to {high:g} HU in the lungs", "initial", f"predicted, {weeks:g} weeks")
    rows = (("share", "share, %", 100), ("ml", "volume, ml", 1), ("aerated_ml", f"aerated (below {low:g} HU), ml", 1),
            ("mean_hu", "mean lung, HU", 1))  # fmt: skip
    for key, name, scale in rows:
        table.add_row(name, *(f"{scale * found[when][key]:.1f}" for when in ("initial", "predicted")))
    tables().print(table)
    echo(f"verdict: {summary['progression']['said']}")
    for warning in summary["warnings"]:
        warn("warning", warning)
    echo(f"report: {output / 'report.html'}")


def _predict_cohort(
    cohort: Path, model: Path, output: Path, where: Engine, shard: str | None, *, as_json: bool, **options: Any
) -> None:
    from concordct.pipelines.followup_batch import VERDICTS, predict_cohort
    from concordct.progression.cohort import read_cohort

    with bar(quiet=as_json) as report:
        found = predict_cohort(
            cohort,
            model,
            output,
            engine=where,
            progress=lambda done, total: report("predicting", done, total),
            **options,
        )
    failed = [result for result in found if result.reason]
    if as_json:
        failures = [{"subject": result.subject, "reason": result.reason} for result in failed]
        print_json({"output": str(output), "subjects": len(found), "failed": failures})
    else:
        for result in failed:
            warn("failed", f"{result.subject}: {result.reason}")
        echo(f"{len(found) - len(failed)} of {len(found)} subjects predicted: {output}")
        if shard is not None and not (output / VERDICTS).exists():
            tell_share(shard, len(read_cohort(cohort)) - len(found), VERDICTS)
    if failed:
        raise typer.Exit(FAILED)


@cohort_app.command("osic")
def osic(
    path: Annotated[
        Path,
        typer.Argument(help="OSIC's archive, unpacked (train.csv beside train/); or --table and patients' folders."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the cohort.")],
    table: Annotated[
        Path | None, typer.Option(help="Table of FVC by week, CSV; PATH then holds a folder for each patient.")
    ] = None,
    decline: Annotated[
        float | None,
        typer.Option(help="Loss of FVC per 52 weeks, a share, from which a patient is progressive; no labels without."),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a cohort for `train ciresdiff` of OSIC's folders and its table of FVC by week. Scans are not copied.

    A folder with two series, told apart by their acquisition dates, is an initial scan and a follow-up.

    Example: `concordct cohort osic osic-pulmonary-fibrosis-progression --decline 0.1 -o osic`
    """
    from concordct.pipelines.followup_cohort import COHORT, cohort_osic
    from concordct.progression.cohort import LABELS

    with bar(quiet=as_json) as report:
        found = cohort_osic(
            path,
            output,
            table=table,
            progressive_decline=decline,
            overwrite=overwrite,
            progress=lambda done, total: report("reading headers", done, total),
        )
    twice = sum(pair.followup is not None for pair in found.pairs)
    labels = {name: sum(pair.label == name for pair in found.pairs) for name in LABELS}
    if as_json:
        print_json(
            {
                "cohort": str(output / COHORT),
                "subjects": len(found.pairs),
                "scanned_twice": twice,
                "labels": labels,
                "without_scans": found.without_scans,
                "failures": [{"patient": number, "reason": reason} for number, reason in found.failures],
            }
        )
        return
    for number, reason in found.failures:
        warn("left out", f"patient {number} of the table: {reason}")
    if found.without_scans:
        warn("note", f"{found.without_scans} patients of the table have no folder")
    if not twice:
        warn("note", "nobody was scanned twice: enough for predict-followup, not for train ciresdiff")
    labelled = f", {labels['stable']} stable, {labels['progressive']} progressive" if decline is not None else ""
    echo(f"{len(found.pairs)} patients, {twice} scanned twice{labelled}: {output / COHORT}")


def train_followup(
    method: str, cohort: Path, output: Path, recipe: str, clip: Path | None, *, seed: int, limits: Mapping[str, Any],
    overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Train a method of follow-up scans: what differs from the others is that pairs are two scans of a cohort."""
    from concordct.pipelines import followup as pipeline

    with bar(quiet=as_json) as report:
        found = pipeline.train(
            cohort,
            output,
            method=method,
            recipe=recipe,
            clip=clip,
            seed=seed,
            overwrite=overwrite,
            progress=report,
            **limits,
        )
    if as_json:
        print_json({"model": str(found.output), "done": found.done, "seconds": round(found.seconds, 1)})
    elif found.done:
        echo(f"{method}: {found.parameters:,} parameters, {found.seconds:.0f} s: {found.output}")
    else:
        echo(f"{method}: paused after {found.seconds:.0f} s; the same command goes on")
