"""The hospital service."""

from __future__ import annotations

import signal
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from concordct.cli.common import app
from concordct.errors import ConcordctError


@app.command()
def serve(
    config: Annotated[Path | None, typer.Argument(help="The service's YAML file; --example prints one.")] = None,
    example: Annotated[bool, typer.Option("--example", help="Print a configuration to start from.")] = False,
    dry_run: Annotated[
        Path | None, typer.Option(help="Say which rule each series of a folder falls under, and serve nothing.")
    ] = None,
) -> None:
    """Listen for CT series as a DICOM node, standardize them by rules, and send the results on.

    Example: `concordct serve service.yaml`
    """
    if example:
        typer.echo(resources.files("concordct.serving").joinpath("assets", "example.yaml").read_text(), nl=False)
        return
    if config is None:
        raise ConcordctError("expected CONFIG or --example, found neither")
    try:
        from concordct.serving.config import load_config
        from concordct.serving.rules import explain
        from concordct.serving.service import Service
    except ModuleNotFoundError as error:
        raise ConcordctError(f"expected concordct[serve], found no module {error.name}") from None
    loaded = load_config(config)
    if dry_run is not None:
        for line in explain(loaded.rules, dry_run):
            typer.echo(line)
        return
    service = Service(loaded)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.ending.set())
    service.start()
    service.wait()
    service.stop()
