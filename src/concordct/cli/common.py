"""What every verb shares: the application, its options, its consoles, its progress bar."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from concordct import __version__
from concordct.errors import ConcordctError
from concordct.volumes.series import ALLOWABLE

app = typer.Typer(
    help="Bring CT scans into concord: standardize reconstruction kernels, so that radiomic features agree.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
#: Progress, warnings and errors; results go to standard output.
errors = Console(stderr=True)

#: Columns of a table that is written to a file or a pipe.
LOG_WIDTH = 160
#: Exit codes: some scans failed; nothing could be done.
FAILED, REFUSED = 1, 2


class ModeChoice(StrEnum):
    """How what the source kernel destroyed is treated."""

    sample = "sample"
    mean = "mean"


class CheckChoice(StrEnum):
    """What to do about a scan that fails its self-check."""

    warn = "warn"
    refuse = "refuse"
    off = "off"


def one_of(values: Sequence[str]) -> Callable[[str | None], str | None]:
    """Refuses an argument that is not among the values that another room lists."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in values:
            raise typer.BadParameter(f"expected one of {', '.join(values)}, found {value}")
        return value

    return check


AllowOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow", help=f"Let a problem of the scan pass, recorded in the result: {', '.join(sorted(ALLOWABLE))}."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing output once the new one is whole.")
]
ModeOption = Annotated[ModeChoice, typer.Option(help="sample: right texture, seeded; mean: least HU error.")]
SeedOption = Annotated[int, typer.Option(help="Seed of whatever is random.")]
WorkersOption = Annotated[
    int, typer.Option("--workers", "-j", min=1, help="Processes; the result is the same whatever their number.")
]


@contextmanager
def bar(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error, shown on a terminal only: report(what, done, of all)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=quiet or not errors.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)


def warn(kind: str, text: str) -> None:
    """One line on standard error, never wrapped off a terminal: "kind: text"."""
    errors.print(f"{kind}: {escape(text)}", style="yellow", soft_wrap=True, highlight=False)


def tables() -> Console:
    """Standard output for tables: as wide as the terminal, and wide enough for a log where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=LOG_WIDTH)


def print_json(value: Any) -> None:
    """One line of JSON on standard output."""
    typer.echo(json.dumps(value, allow_nan=False))


def _version(show: bool) -> None:
    if show:
        typer.echo(f"concordct {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Nothing but the version lives above the verbs."""


def need_torch() -> None:
    """Say how to get PyTorch where it is missing."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise ConcordctError(
            "expected PyTorch for methods that learn, found none: pip install 'concordct[nets]'"
        ) from None
