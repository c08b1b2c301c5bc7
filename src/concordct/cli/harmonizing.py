"""`combat`: features harmonized instead of images, trained once and applied to new subjects and sites."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from concordct.cli.common import OverwriteOption, app, warn

combat_app = typer.Typer(
    help="ComBat on features files: train it, apply it, also to unseen sites.", no_args_is_help=True
)
app.add_typer(combat_app, name="combat")

SitesOption = Annotated[Path, typer.Option(help="A CSV with columns image and site; further columns are kept numbers.")]


@combat_app.command()
def train(
    features: Annotated[Path, typer.Argument(help="Features of all sites, one file.")],
    sites: SitesOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="The trained ComBat, JSON.")],
    reference: Annotated[str | None, typer.Option(help="A site that stays as it is.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Estimate the sites' effects.

    Example: `concordct combat train features.csv --sites sites.csv -o combat.json`
    """
    from concordct.pipelines.combat import train_combat

    found, left_out = train_combat(features, sites, output, reference=reference, overwrite=overwrite)
    if left_out:
        warn("left out", f"{len(left_out)} features that are undefined somewhere, {left_out[0]} first")
    typer.echo(f"{len(found.features)} features, {len(found.combat.batches)} sites: {output}")


@combat_app.command()
def apply(
    model: Annotated[Path, typer.Argument(help="A trained ComBat.")],
    features: Annotated[Path, typer.Argument(help="Features to harmonize.")],
    sites: SitesOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="The features file to write, CSV.")],
    overwrite: OverwriteOption = False,
) -> None:
    """Harmonize features; a site that the training did not hold is estimated from its rows in this file.

    Example: `concordct combat apply combat.json new.csv --sites sites.csv -o harmonized.csv`
    """
    from concordct.pipelines.combat import apply_combat

    for site in apply_combat(model, features, sites, output, overwrite=overwrite):
        warn("unseen site", f"{site}: estimated from its own rows")
    typer.echo(f"harmonized: {output}")
