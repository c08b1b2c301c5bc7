"""Methods that learn: train them, compare them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from concordct.cli.common import (
    AllowOption,
    FramesOption,
    JsonOption,
    OverwriteOption,
    SeedOption,
    app,
    bar,
    cell,
    echo,
    errors,
    need_torch,
    one_of,
    print_json,
    tables,
)
from concordct.errors import ConcordctError
from concordct.methods.catalogue import names
from concordct.progression.catalogue import CATALOGUE

#: Trained on two scans of a patient instead of two reconstructions of a scan.
FOLLOWUP = tuple(CATALOGUE)
TRAINED = (*names("train"), *FOLLOWUP)


class RecipeChoice(StrEnum):
    """paper: as published; small: two cores, under an hour; common: the table's budget for all methods, where a method
    has it beside small; gpu: one data-centre GPU, under 25 minutes."""

    paper = "paper"
    small = "small"
    common = "common"
    gpu = "gpu"


@app.command()
def train(
    method: Annotated[str, typer.Argument(help=f"What to train: {', '.join(TRAINED)}.", callback=one_of(TRAINED))],
    pairs: Annotated[Path, typer.Argument(help="Manifest of pairs; for methods of follow-up scans a cohort.csv.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model, a folder; OUTPUT.run holds the run.")],
    recipe: Annotated[RecipeChoice, typer.Option(help="How long and how large.")] = RecipeChoice.small,
    split: Annotated[str, typer.Option(help="Rows of the manifest to train on.")] = "train",
    images: Annotated[Path | None, typer.Option(help="Further scans of any kernel, for phase 1.")] = None,
    without: Annotated[
        str | None, typer.Option(help="Ablation: leave out a part of ltdiffpp or diffusionct, such as skips.")
    ] = None,
    imagenet: Annotated[
        Path | None,
        typer.Option(
            help="ImageNet weights that the method starts from (DiffusionCT: ResNet-18): safetensors or .pth."
        ),
    ] = None,
    clip: Annotated[Path | None, typer.Option(help="Folder of published CLIP weights, for ciresdiff.")] = None,
    seed: SeedOption = 0,
    most_steps: Annotated[int | None, typer.Option(min=1, help="Cut every phase, to try things out.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="Stop with a checkpoint after this long.")] = None,
    allow: FramesOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a method on pairs. Run it again to resume; under `torchrun` processes share the batch.

    Example: `concordct train ltdiffpp cohort/pairs.csv -o br40-to-bl64 --recipe small`
    """
    if method in FOLLOWUP:
        from concordct.cli.followup import FOLLOWUP_NEEDS, train_followup

        need_torch(extra="followup", also=FOLLOWUP_NEEDS)

        if images or without or imagenet:
            raise ConcordctError(f"expected no --images, --without or --imagenet with {method}, found some")
        limits = {"most_steps": most_steps, "minutes": minutes}
        if clip is not None and method != "ciresdiff":
            raise ConcordctError(f"expected --clip with ciresdiff alone, found it with {method}")
        train_followup(
            method, pairs, output, recipe.value, clip, seed=seed, limits=limits, overwrite=overwrite, as_json=as_json
        )
        return
    if clip is not None:
        raise ConcordctError(f"expected --clip with ciresdiff alone, found it with {method}")
    if set(allow or ()) - {"frames"}:
        raise ConcordctError(f"expected --allow frames, found {', '.join(allow or ())}")
    need_torch(extra="train")
    from concordct.pipelines import train as pipeline

    with bar(quiet=as_json) as report:
        found = pipeline.train(
            method,
            pairs,
            output,
            recipe=recipe.value,
            split=split,
            images=images,
            without=without,
            imagenet=imagenet,
            seed=seed,
            most_steps=most_steps,
            minutes=minutes,
            allow=frozenset(allow or ()),
            overwrite=overwrite,
            progress=report,
        )
    if as_json:
        print_json({"model": str(found.output), "done": found.done, "seconds": round(found.seconds, 1)})
    elif found.done:
        echo(f"{method}: {found.parameters:,} parameters, {found.seconds:.0f} s: {found.output}")
    else:
        echo(f"{method}: paused after {found.seconds:.0f} s; the same command goes on")


def _models(model: list[str]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for text in model:
        name, equals, path = text.partition("=")
        if not (name and equals and path) or name in named:
            raise ConcordctError(f"expected --model NAME=PATH, each name once, found {text!r}")
        named[name] = Path(path)
    return named


@app.command()
def compare(
    pairs: Annotated[Path, typer.Argument(help="Manifest of pairs.")],
    model: Annotated[list[str], typer.Option("--model", "-m", help="NAME=PATH, once for each model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results.json and report.html.")],
    split: Annotated[str, typer.Option(help="Rows of the manifest to judge; 'all' for every row.")] = "test",
    ceiling: Annotated[
        Path | None, typer.Option(help="Manifest of the same pairs scanned again: agreement of target with target.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Features: a preset or a PyRadiomics file.")] = "ibex-1401",
    seed: SeedOption = 0,
    any_kernel: Annotated[
        bool, typer.Option("--any-kernel", help="Judge models on scans of other kernels than theirs, too.")
    ] = False,
    endpoints: Annotated[bool, typer.Option(help="Emphysema, density, calcium and noise of every row.")] = True,
    downstream: Annotated[
        list[str] | None,
        typer.Option(
            help="A program asked on source, output and target: a command with {input}, module:function, or 'sybil'."
        ),
    ] = None,
    allow: AllowOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """The papers' tables for any models: agreement by class and region, reproducible features, time and memory.

    Example: `concordct compare cohort/pairs.csv -m LTDiff++=br40-to-bl64 -m spectral=transfer -o comparison`
    """
    from concordct.pipelines import compare as pipeline

    with bar(quiet=as_json) as report:
        results = pipeline.compare(
            pairs,
            _models(model),
            output,
            split=None if split == "all" else split,
            ceiling=ceiling,
            preset=preset,
            seed=seed,
            any_kernel=any_kernel,
            endpoints=endpoints,
            downstream=tuple(downstream or ()),
            allow=frozenset(allow or ()),
            overwrite=overwrite,
            progress=report,
        )
    if as_json:
        print_json(results)
        return
    classes = results["classes"]
    table = Table("CCC per feature", *classes, title=results["headline_region"], title_justify="left")
    for row in results["table"][results["headline_region"]]:
        table.add_row(
            cell(row["name"]),
            *("?" if row["classes"][c]["ccc"] is None else f"{row['classes'][c]['ccc']:.2f}" for c in classes),
        )
    tables().print(table)
    for warning in results["warnings"]:
        errors.print(f"warning: {cell(warning)}", style="yellow")
    echo(f"report: {output / 'report.html'}")
