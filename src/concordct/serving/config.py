"""The service's one YAML file: read, checked as a whole, every mistake with its line.

    config = load_config(Path("service.yaml"))
    config.rules[0].model            # paths are taken from the folder of the file

`assets/example.yaml` is the file with every key and what it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from concordct.errors import ConcordctError
from concordct.volumes.allowable import ALLOWABLE
from concordct.volumes.given import Where, yaml_with_lines

#: Keys that hold a path.
_PATHS = frozenset({"folder", "model", "file", "certificate", "key", "authority"})
_GB = 10**9
#: A token shorter than this can be guessed.
TOKEN_LENGTH = 20


def _title(value: str) -> str:
    """An application entity title (PS3.5 6.2, VR AE)."""
    if not 1 <= len(value.strip()) <= 16 or not value.isascii() or not value.isprintable() or "\\" in value:
        raise ValueError("expected 1 to 16 printable ASCII characters without backslash")
    return value.strip()


def _allowed(value: frozenset[str]) -> frozenset[str]:
    unknown = sorted(value - ALLOWABLE)
    if unknown:
        raise ValueError(f"expected some of {', '.join(sorted(ALLOWABLE))}, not {', '.join(unknown)}")
    return value


AETitle = Annotated[str, AfterValidator(_title)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,39}$")]
Port = Annotated[int, Field(ge=1, le=65535)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tls(_Part):
    """Certificate and key, PEM; `authority` signs the peers' certificates, and then every peer must show one."""

    certificate: Path
    key: Path
    authority: Path | None = None


class Peer(_Part):
    """Who may send: a title from an address. `whole_series`: a released association has sent its series whole."""

    ae_title: AETitle
    address: str
    whole_series: bool = False


class NodeConfig(_Part):
    """The DICOM node.

    Attributes
    ----------
    complete_after_s : a series is complete when nothing came for so long.
    associations : at once; more are refused, transient.
    idle_s : an association on which nothing comes for so long is ended.
    object_mb : greatest object; an association that sends more is aborted.
    """

    ae_title: AETitle = "CONCORDCT"
    host: str = "127.0.0.1"
    port: Port = 11112
    peers: tuple[Peer, ...] = ()
    complete_after_s: Annotated[float, Field(gt=0)] = 30
    associations: Annotated[int, Field(ge=1, le=200)] = 20
    idle_s: Annotated[float, Field(gt=0)] = 60
    object_mb: Annotated[int, Field(ge=1)] = 1024
    tls: Tls | None = None


class Store(_Part):
    """Where arrived and derived objects lie; what would pass the quota is refused with 0xA700."""

    folder: Path
    quota_gb: Annotated[float, Field(gt=0)] = 100
    keep_free_gb: Annotated[float, Field(ge=0)] = 2

    @property
    def quota_bytes(self) -> int:
        return int(self.quota_gb * _GB)

    @property
    def keep_free_bytes(self) -> int:
        return int(self.keep_free_gb * _GB)


class _Destination(_Part):
    name: Name
    retry_s: Annotated[float, Field(gt=0)] = 10
    retry_max_s: Annotated[float, Field(gt=0)] = 900
    give_up_after_h: Annotated[float, Field(gt=0)] = 72
    timeout_s: Annotated[float, Field(gt=0)] = 30


class DicomDestination(_Destination):
    """A node that takes C-STORE; with `commitment` a series counts as sent once it has been committed to."""

    kind: Literal["dicom"]
    ae_title: AETitle
    host: str
    port: Port
    commitment: bool = False
    commitment_wait_s: Annotated[float, Field(gt=0)] = 60
    tls: Tls | None = None


class WebDestination(_Destination):
    """A DICOMweb server that takes STOW-RS at `url`; `file` holds the bearer token, where it asks for one."""

    kind: Literal["dicomweb"]
    url: Annotated[str, Field(pattern=r"^https?://[^\s]+$")]
    file: Path | None = None
    authority: Path | None = None


Destination = Annotated[DicomDestination | WebDestination, Field(discriminator="kind")]


class Match(_Part):
    """What a series must say; patterns of the shell, upper and lower case alike. A key left out matches everything."""

    kernel: tuple[str, ...] = ()
    manufacturer: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    body_part: tuple[str, ...] = ()
    description: tuple[str, ...] = ()
    thickness_mm: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _ascending(self) -> Match:
        if self.thickness_mm is not None and self.thickness_mm[0] > self.thickness_mm[1]:
            raise ValueError("expected thickness_mm as [least, greatest]")
        return self


class Retention(_Part):
    """Hours that arrived and derived objects stay after delivery, and after failure; none: for ever."""

    sent_h: Annotated[float | None, Field(ge=0)] = None
    failed_h: Annotated[float | None, Field(ge=0)] = None


class Rule(_Part):
    """What becomes of a series that matches; the first rule that does decides.

    Attributes
    ----------
    action : standardize with `model` and send the result; forward the series as it came; drop it.
    also_source : with "standardize", send the source beside the result.
    structured_report : write and send the self-check as a DICOM SR beside the result.
    dry_run : standardize, keep, send nothing.
    """

    name: Name
    match: Match = Match()
    action: Literal["standardize", "forward", "drop"] = "standardize"
    model: Path | None = None
    mode: Literal["sample", "mean"] = "sample"
    seed: int = 0
    check: Literal["warn", "refuse", "off"] = "warn"
    any_kernel: bool = False
    allow: Annotated[frozenset[str], AfterValidator(_allowed)] = frozenset()
    destinations: tuple[Name, ...] = ()
    also_source: bool = False
    structured_report: bool = True
    dry_run: bool = False
    retention: Retention = Retention()

    @model_validator(mode="after")
    def _consistent(self) -> Rule:
        if (self.action == "standardize") != (self.model is not None):
            raise ValueError("expected a model with action standardize, and none with any other")
        if self.action == "drop" and self.destinations:
            raise ValueError("expected no destinations with action drop")
        if self.action == "forward" and not self.destinations:
            raise ValueError("expected destinations with action forward")
        return self


class Token(_Part):
    """A login to the page: `file` holds the token. A reader looks, an operator also requeues, a sender stores."""

    name: Name
    role: Literal["reader", "operator", "sender"]
    file: Path


class Page(_Part):
    """The page, its metrics and the DICOMweb door. `origin` is the address under which browsers reach it, where a
    proxy stands before it; `secure` marks the cookie for HTTPS alone."""

    host: str = "127.0.0.1"
    port: Port = 8080
    tokens: tuple[Token, ...] = ()
    origin: str | None = None
    secure: bool = False


class Config(_Part):
    """All of it."""

    node: NodeConfig = NodeConfig()
    store: Store
    page: Page | None = Page()
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    tries: Annotated[int, Field(ge=1)] = 3
    retry_s: Annotated[float, Field(ge=0)] = 30
    destinations: tuple[Destination, ...] = ()
    rules: tuple[Rule, ...] = Field(min_length=1)

    def destination(self, name: str) -> DicomDestination | WebDestination:
        """The destination of that name."""
        return next(each for each in self.destinations if each.name == name)

    def rule(self, name: str | None) -> Rule | None:
        """The rule of that name; None where the file has lost it."""
        return next((each for each in self.rules if each.name == name), None)


def load_config(path: Path) -> Config:
    """Read and check the file.

    Raises
    ------
    ConcordctError : not readable, not YAML, or anything in it that is wrong: every mistake in one line with its number.
    """
    try:
        given, lines = yaml_with_lines(path)
    except OSError as error:
        raise ConcordctError(f"{path}: expected a readable file, found: {error.strerror}") from None
    if not isinstance(given, dict):
        raise ConcordctError(f"{path}: expected keys node, store, destinations, rules; found none")
    try:
        config = Config.model_validate(_anchored(given, path.resolve().parent))
    except ValidationError as error:
        mistakes = [_mistake(one, lines) for one in error.errors()]
    else:
        mistakes = [(_line(where, lines), said) for where, said in _cross_check(config)]
    if mistakes:
        shown = "; ".join(f"line {line}: {said}" for line, said in sorted(set(mistakes)))
        raise ConcordctError(f"{path}: {shown}")
    return config


def _anchored(value: Any, folder: Path, key: str = "") -> Any:
    """Relative paths, taken from the folder of the file; the `model` of a match is a scanner's name."""
    if isinstance(value, dict):
        return {name: each if name == "match" else _anchored(each, folder, str(name)) for name, each in value.items()}
    if isinstance(value, list):
        return [_anchored(each, folder) for each in value]
    return str(folder / value) if key in _PATHS and isinstance(value, str) else value


def _line(where: Where, lines: dict[Where, int]) -> int:
    while where not in lines:
        where = where[:-1]
    return lines[where]


def _shown(where: Where) -> str:
    return "".join(f"[{one + 1}]" if isinstance(one, int) else f".{one}" for one in where).removeprefix(".") or "file"


def _mistake(error: Any, lines: dict[Where, int]) -> tuple[int, str]:
    """pydantic's finding in our words; the kind of a destination is part of its place there and not of the file."""
    where = tuple(one for one in error["loc"] if one not in ("dicom", "dicomweb"))
    said = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if error["type"] == "extra_forbidden":
        return _line(where, lines), f"{_shown(where)}: unknown key"
    if error["type"] == "missing":
        return _line(where, lines), f"{_shown(where)}: expected, found nothing"
    expected = said if said.startswith("expected") else f"expected {said[:1].lower()}{said[1:]}"
    found = error.get("input")
    shown = f", found {found!r}" if isinstance(found, str | int | float | bool) else ""
    return _line(where, lines), f"{_shown(where)}: {expected}{shown}"


def _cross_check(config: Config) -> Iterator[tuple[Where, str]]:
    """What no single part can know."""
    known = [each.name for each in config.destinations]
    for key, names in (("destinations", known), ("rules", [rule.name for rule in config.rules])):
        for index, name in enumerate(names):
            if name in names[:index]:
                yield (key, index, "name"), f"{key}[{index + 1}].name: expected a name of its own, found {name!r} twice"
    for index, rule in enumerate(config.rules):
        for name in rule.destinations:
            if name not in known:
                said = f"rules[{index + 1}].destinations: expected one of {', '.join(known) or 'none'}, found {name!r}"
                yield ("rules", index, "destinations"), said
        if rule.model is not None and not rule.model.is_dir():
            yield ("rules", index, "model"), f"rules[{index + 1}].model: expected a folder, found none: {rule.model}"
    if config.page is not None:
        for index, token in enumerate(config.page.tokens):
            try:
                long_enough = len(token.file.read_text().strip()) >= TOKEN_LENGTH
            except OSError:
                long_enough = False
            if not long_enough:
                said = f"expected a file with a token of {TOKEN_LENGTH} characters or more: {token.file}"
                yield ("page", "tokens", index, "file"), f"page.tokens[{index + 1}].file: {said}"
