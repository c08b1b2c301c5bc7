"""What every verb shares: the application, its options, its consoles, its progress bar."""

from __future__ import annotations

import json
import logging
import platform
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from concordct import __version__
from concordct.errors import ConcordctError, reason_of
from concordct.pipelines.engines import Engine, Local, Ray, Share
from concordct.volumes.allowable import ALLOWABLE

#: Options that may stand anywhere on the line, with the number of values that each takes.
GENERAL = {"--quiet": 0, "--verbose": 0, "--log": 1}


def _without_types(options: list[Any]) -> list[Any]:
    for option in options:
        if getattr(option, "is_flag", False) and option.metavar is None:
            option.metavar = ""
    return options


class Verbs(TyperGroup):
    """The verbs; options for all of them may stand before or after the verb, and switches show no type in help."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The group's own options."""
        return _without_types(super().get_params(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A verb."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _without_types([*command.params, command.get_help_option(ctx)])
        return command

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """General options first, wherever they were written."""
        general, rest = [], []
        words = iter(args)
        for word in words:
            if word == "--":
                rest += [word, *words]
            elif word.split("=")[0] in GENERAL:
                values = GENERAL[word.split("=")[0]] if "=" not in word else 0
                general += [word, *islice(words, values)]
            else:
                rest.append(word)
        return super().parse_args(ctx, general + rest)


app = typer.Typer(
    cls=Verbs,
    help="Bring CT scans into concord: standardize reconstruction kernels, so that radiomic features agree.",
    no_args_is_help=True,
    rich_markup_mode=None,  # boxes and Markdown cost a third of the time that --help takes
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


@contextmanager
def only_named(words: Sequence[str]) -> Iterator[None]:
    """The application with the verbs that a line names alone, where it names any: making all takes longer than one."""
    every = app.registered_commands
    app.registered_commands = [verb for verb in every if verb_name(verb) in words] or every
    try:
        yield
    finally:
        app.registered_commands = every


def verb_name(verb: Any) -> str:
    """What a verb is called on the command line."""
    return str(verb.name or verb.callback.__name__.replace("_", "-"))


#: Progress, warnings and errors; results go to standard output.
errors = Console(stderr=True, emoji=False)

#: Columns of a table that is written to a file or a pipe.
LOG_WIDTH = 160
#: Exit codes: some scans failed; nothing could be done; all were done, and some failed their self-check.
FAILED, REFUSED, DOUBTED = 1, 2, 3

#: Libraries that a plain installation does not have -> the extra that brings them.
EXTRA_OF = {
    **dict.fromkeys(("numba", "skimage", "SimpleITK", "pywt", "matplotlib"), "measure"),
    **dict.fromkeys(("monai", "transformers", "tokenizers"), "followup"),
    "torch": "train",
    "ants": "register",
    **dict.fromkeys(("fsspec", "s3fs"), "s3"),
    **dict.fromkeys(("duckdb", "idc_index", "idc_index_data"), "archive"),
    **dict.fromkeys(
        ("pynetdicom", "dicomweb_client", "starlette", "uvicorn", "prometheus_client", "highdicom"), "serve"
    ),
}

#: What is said on the terminal and what is done, for `--verbose` and `--log`.
logger = logging.getLogger("concordct")
_quiet = False


class ModeChoice(StrEnum):
    """How what the source kernel destroyed is treated."""

    sample = "sample"
    mean = "mean"


class EngineChoice(StrEnum):
    """Where a batch runs."""

    local = "local"
    ray = "ray"


class CheckChoice(StrEnum):
    """What to do about a scan that fails its self-check."""

    warn = "warn"
    refuse = "refuse"
    off = "off"


def one_of(values: Sequence[str]) -> Callable[[str | None], str | None]:
    """Refuses an argument that is not among the values that another module lists."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in values:
            raise typer.BadParameter(f"expected one of {', '.join(values)}, found {value}")
        return value

    return check


#: What a user can do about a refusal, by the code that ends its message.
HINTS = {
    "exists": "--overwrite replaces it",
    "other-kernel": "--any-kernel standardizes it all the same",
    "self-check": "--check warn standardizes it",
    "other-subject": "--any-subject accepts it",
}


def hinted(text: str) -> str:
    """A message on one line, with the option that would let it pass in the place of its code."""
    line = " ".join(text.split())
    return re.sub(r"\[([a-z-]+)\]", lambda code: f"({HINTS[code[1]]})" if code[1] in HINTS else code[0], line)


AllowOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow", help=f"Let a problem of the scan pass, recorded in the result: {', '.join(sorted(ALLOWABLE))}."
    ),
]
FramesOption = Annotated[
    list[str] | None,
    typer.Option("--allow", help="frames: pairs whose frames of reference differ, by position and content."),
]
ToOption = Annotated[
    str | None,
    typer.Option(
        "--to", help="Instead of a model: a reference condition for scans of any kernel (soft, sharp, a JSON file)."
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
EngineOption = Annotated[
    EngineChoice, typer.Option(help="local: processes of this machine; ray: actors of a Ray cluster.")
]
AddressOption = Annotated[str | None, typer.Option(help="Of the Ray cluster's head; found or started without.")]
ShardOption = Annotated[
    str | None, typer.Option(metavar="I/N", help="Do the I-th of N shares, as one job of an array; run all of them.")
]


@contextmanager
def bar(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error, shown on a terminal only: report(what, done, of all)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = quiet or _quiet or not errors.is_terminal
    with Progress(*columns, console=errors, transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)


def shown(text: str) -> str:
    """Text that a terminal may have: what is not printable comes out as an escape ("\\x1b"), line ends stay.

    Names of files and words of headers may hold sequences that a terminal obeys, and bytes that are no UTF-8.
    """
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape", "surrogatepass").decode()
        for one in text
    )


def cell(text: object) -> str:
    """Text for a table or a console of rich: shown, and without a markup of its own."""
    return escape(shown(str(text)))


def fail(error: Exception) -> None:
    """One red line for whatever ended the run; for a fault of the program also a file that says where, without values.

    The file holds the names of functions and lines, the kinds of exceptions, versions and the verb: no path, no value.
    """
    error = _as_extra(error)
    line = hinted(reason_of(error))
    faulty = not isinstance(error, ConcordctError | OSError | MemoryError)
    if faulty:
        report = _fault_report(error)
        line += f"; please report it{f' with {report}' if report else ''}"
    logger.error("error: %s", line)
    errors.print(f"error: {cell(line)}", style="red", soft_wrap=True, highlight=False)


def _as_extra(error: Exception) -> Exception:
    """A library that an extra brings, as a refusal that names the extra; every other error as it is."""
    missing = (getattr(error, "name", None) or "").split(".")[0]
    if not isinstance(error, ModuleNotFoundError) or missing not in EXTRA_OF:
        return error
    return ConcordctError(f"expected {missing}, found none: pip install 'concordct[{EXTRA_OF[missing]}]'")


def _fault_report(error: BaseException) -> Path | None:
    """Where a fault lies, written to a new file of the system's temporary folder; None where none can be written."""
    lines = [f"concordct {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"]
    verb = next((word for word in sys.argv[1:] if re.fullmatch(r"[a-z][a-z-]{1,24}", word)), "")
    lines.append(f"verb: {verb}")
    known: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(known) < 10 and cause not in known:
        known.append(cause)
        lines.append(f"{type(cause).__module__}.{type(cause).__qualname__}")
        for frame, number in traceback.walk_tb(cause.__traceback__):
            place = "/".join(Path(frame.f_code.co_filename).parts[-3:])
            lines.append(f"  {place}, line {number}, in {frame.f_code.co_name}")
        cause = cause.__cause__ or cause.__context__
    try:
        handle, name = tempfile.mkstemp(prefix="concordct-fault-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("\n".join(lines) + "\n")
    except OSError:
        return None
    return Path(name)


def warn(kind: str, text: str) -> None:
    """One line on standard error, never wrapped off a terminal: "kind: text"; quiet runs hear of failures alone."""
    logger.warning("%s: %s", kind, text)
    if not _quiet or kind.endswith("failed"):
        errors.print(f"{kind}: {cell(hinted(text))}", style="yellow", soft_wrap=True, highlight=False)


def echo(text: str) -> None:
    """One line of the result on standard output."""
    logger.info("%s", text)
    typer.echo(shown(text))


def note(text: str) -> None:
    """One line on standard error about what is going on."""
    logger.info("%s", text)
    if not _quiet:
        errors.print(cell(text), soft_wrap=True, highlight=False)


def tables() -> Console:
    """Standard output for tables: as wide as the terminal, and wide enough for a log where there is none."""
    console = Console(emoji=False)  # ":x:" in a name stays what it is
    return console if console.is_terminal else Console(width=LOG_WIDTH, emoji=False)


class _Shown(logging.Formatter):
    """One printable line for a record."""

    def format(self, record: logging.LogRecord) -> str:
        """As ever, but `shown`."""
        return shown(super().format(record))


def _listen(verbose: bool, log: Path | None) -> None:
    """Where what is logged goes to: a file with the time of each line, the terminal when it is asked for."""
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for old in logger.handlers[:]:
        logger.removeHandler(old)
        old.close()
    logger.addHandler(logging.NullHandler())
    if verbose:
        terminal = logging.StreamHandler(errors.file)
        # What is said anyway comes from this file; the terminal has it already.
        terminal.addFilter(lambda record: record.pathname != __file__)
        terminal.setFormatter(_Shown("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(terminal)
    if log is not None:
        try:
            kept = logging.FileHandler(log, encoding="utf-8")
        except OSError as error:
            raise ConcordctError(f"{log}: expected a file to write the log to, found {error.strerror}") from None
        kept.setFormatter(_Shown("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(kept)


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
    quiet: Annotated[bool, typer.Option("--quiet", help="Results and failures only: no progress, no notes.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say what is being done, with the time.")] = False,
    log: Annotated[Path | None, typer.Option(help="Append to this file what is said, with the time.")] = None,
) -> None:
    """Options that every verb understands; they may stand after it, too."""
    global _quiet
    _quiet = quiet
    _listen(verbose, log)


def need_torch(*, extra: str, also: tuple[str, ...] = ()) -> None:
    """Say how to get PyTorch, and what else a verb needs, where it is missing.

    Parameters
    ----------
    extra : of the package, by which all of it is installed.
    also : further modules.
    """
    missing = [name for name in ("torch", *also) if find_spec(name) is None]
    if missing:
        raise ConcordctError(f"expected {', '.join(missing)}, found none: pip install 'concordct[{extra}]'")


def engine_of(workers: int, engine: EngineChoice, address: str | None, shard: str | None) -> Engine:
    """Where a batch runs, from its options.

    Raises
    ------
    ConcordctError : an address without Ray, or a share that is none.
    """
    if address is not None and engine is not EngineChoice.ray:
        raise ConcordctError("expected --address with --engine ray alone")
    within = Ray(address, 0 if workers == 1 else workers) if engine is EngineChoice.ray else Local(workers)
    if shard is None:
        return within
    parts = re.fullmatch(r"(\d+)/(\d+)", shard)
    if parts is None:
        raise ConcordctError(f"--shard: expected I/N such as 2/8, found {shard}")
    return Share(int(parts[1]), int(parts[2]), within)


def tell_share(shard: str | None, missing: int, what: str) -> None:
    """What a share that is not the last says of the result that all of them make together."""
    if missing:
        echo(f"share {shard} is done; {what} is written by the last share ({missing} are of others)")
