"""The documents: every command in them runs, or is parsed where it would take minutes; links lead somewhere; figures
of the summary stand on the pages that it names.

`bash` blocks run as they stand, in the order of their page, on a simulated exam of two patients. `sh` blocks take
minutes, need a network or scans of one's own: their commands are parsed by the program.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from benchmarks.results import own_title_only
from typer.testing import CliRunner

import concordct
from concordct import cli
from concordct.methods.catalogue import CATALOGUE
from concordct.volumes.files import write_volume_file
from concordct.volumes.manifest import PairRow, write_manifest
from concordct.volumes.new_series import SimulatedScan, write_new_series
from pages import DOCS, ROOT, blocks, commands
from synthetic import pair, volume

PAGES = [ROOT / "README.md", *sorted(p for p in DOCS.rglob("*.md") if not {"_build", "decisions"} & {*p.parts})]
#: Pages whose models others use: they run first.
FIRST = DOCS / "tutorial" / "first-hour.md"


def ours(words: list[str]) -> bool:
    return words[0].split("/")[-1] == "concordct"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `simulate patients -n 2 ... -o sim` leaves, drawn small; and the first hour done on it."""
    root = tmp_path_factory.mktemp("docs")
    rows = []
    for number in (1, 2):
        folder = root / "sim" / f"patient-{number:04d}" / "scan-0" / "3mm"
        soft, sharp = pair(seed=number, size=128, slices=4)
        for series, (kernel, hu) in enumerate((("Br40", soft), ("Bl64", sharp)), start=1):
            scan = SimulatedScan(f"patient-{number}", f"scan-{number}", f"Chest {kernel}", series, 120.0, 100.0)
            write_new_series(volume(hu, kernel=kernel), folder / kernel, scan)
        labels = (soft > 60).astype(float)
        labels[:, :64] = labels[:, 80:] = 0
        write_volume_file(folder / "nodules.nii.gz", volume(labels))
        rows.append(
            PairRow(
                pair=f"p{number}",
                subject=f"s{number}",
                split="train",
                source=folder / "Br40",
                target=folder / "Bl64",
            )
        )
    write_manifest(root / "sim" / "pairs.csv", rows)
    return root


def run_page(page: Path, monkeypatch: pytest.MonkeyPatch, *, width: int = 80) -> list[str]:
    """Run the `bash` blocks of a page; every command must end well."""
    monkeypatch.setenv("COLUMNS", str(width))
    said = []
    for block in blocks(page, "bash"):
        for words in commands(block):
            assert ours(words), f"{page}: only concordct runs in bash blocks, found {words}"
            found = CliRunner().invoke(cli.common.app, words[1:])
            assert found.exit_code == 0, f"{page}: {' '.join(words)}\n{found.output}\n{found.exception}"
            said.append(found.stdout)
    return said


@pytest.fixture(scope="module")
def first_hour(place: Path) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("FORCE_COLOR", "1")  # a terminal, as far as tables can tell
        return run_page(FIRST, patch)


def test_the_first_hour_runs_in_a_terminal_of_80_columns(first_hour: list[str]) -> None:
    inspected, calibrated, standardized, again, judged, described = first_hour
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", text) for text in first_hour]
    assert "Br40" in inspected
    assert "Br40 to Bl64" in calibrated
    assert "done: scan-0/3mm/Br40 -> scan-0/3mm/Br40" in standardized
    assert "already there" in again
    assert "report: report/report.html" in judged
    assert "@software{concordct" in described
    tables = [line for text in plain for line in text.splitlines() if line and line[0] in "┏┃┡│└╇"]
    assert len(tables) > 20
    assert max(map(len, tables)) <= 80


@pytest.fixture(scope="module")
def root() -> Any:
    return typer.main.get_command(cli.common.app)


#: As the README's, four spaces and a command.
INDENTED = re.compile(r"^    ((?:\.venv/bin/)?concordct .*)$", re.MULTILINE)
SAYING = [page for page in PAGES if re.search(r"^ *```(ba)?sh", page.read_text("utf-8"), re.MULTILINE)
          or INDENTED.search(page.read_text("utf-8"))]  # fmt: skip


@pytest.mark.parametrize("page", SAYING, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_run_or_parse(
    page: Path, place: Path, first_hour: list[str], root: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A copy without what a page makes itself, so that pages do not meet.
    monkeypatch.chdir(tmp_path)
    if page != FIRST and blocks(page, "bash"):
        own = "sim/patient" in page.read_text() and page.name == "README.md"
        for name in ("sim",) if own else ("sim", "br40-to-bl64", "out"):
            shutil.copytree(place / name, tmp_path / name)
        run_page(page, monkeypatch)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    indented = INDENTED.findall(page.read_text(encoding="utf-8"))
    for block in [*blocks(page, "sh"), *blocks(page, "bash"), *indented]:
        for words in commands(block):
            if words[0] == "make":
                assert set(words[1:]) <= targets, f"{page}: {words}"
            if not ours(words):
                continue
            # General options may stand after the verb; the program puts them first.
            context: Any = root.make_context("concordct", words[1:])
            command, rest = root, [*context._protected_args, *context.args]
            while hasattr(command, "list_commands"):
                assert rest[0] in command.list_commands(context), f"{page}: unknown verb {rest[0]}"
                command, rest = command.get_command(context, rest[0]), rest[1:]
            command.make_context(words[1], list(rest))  # raises for unknown options and missing ones


def test_python_on_the_pages_and_in_the_notebook_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    page = DOCS / "tutorial" / "python.md"
    found: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), found)
    assert found["after"].hu.shape == found["before"].hu.shape
    assert (place / "from-python" / "docs" / "README.md").is_file()
    notebook = json.loads((DOCS / "tutorial" / "first_hour.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell.strip() for cell in cells] == [block.strip() for block in blocks(page, "python")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists() or target.endswith("reference/cli.md"), f"{page}: {target}"


@pytest.mark.parametrize(
    ("page", "pages"),
    [
        (DOCS / "results" / "index.md", DOCS / "results"),
        (ROOT / "README.md", DOCS / "results"),
    ],
    ids=["summary", "README"],
)
def test_figures_stand_on_the_pages_behind(page: Path, pages: Path) -> None:
    text = page.read_text(encoding="utf-8")
    behind = "\n".join(one.read_text(encoding="utf-8") for one in pages.glob("*.md") if one.name != "index.md")
    known = set(re.findall(r"(?<![\d.])\d+\.\d+(?![\d.])", behind))
    figures = re.findall(r"(?<![\d.v])(\d+\.\d+)(?![\d.])(?= HU| \||,| and| to| of|; )", re.sub(r"`[^`]*`", "", text))
    assert len(figures) > 5
    missing = [one for one in figures if one not in known]
    assert not missing, f"{page}: {missing} stand on no page of results"


#: Words of our own that a reader of the field would have to guess.
PRIVATE = re.compile(r"\b(half[- ]known|flagship(?!-)|RMSE bar)\b", re.IGNORECASE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_use_the_fields_words_and_say_their_title_once(page: Path) -> None:
    # Code, links and the line that names a page's command keep their names.
    text = re.sub(r"`[^`]*`|\]\([^)]*\)", "", page.read_text(encoding="utf-8"))
    assert not PRIVATE.findall(text)
    if page.parent.name == "results":
        title, body = text.split("\n", 1)
        assert f"\n## {title.removeprefix('# ')}" not in body
        assert own_title_only(page.read_text(encoding="utf-8").split("\n\n", 1)[1]).strip() in page.read_text("utf-8")


def test_the_methods_page_names_every_method() -> None:
    page = (DOCS / "explanation" / "methods.md").read_text(encoding="utf-8")
    missing = [name for name in (*CATALOGUE,) if f"`{name}`" not in page]
    assert not missing


def test_one_version_everywhere() -> None:
    version = concordct.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", changelog, re.MULTILINE)[1] == version  # type: ignore[index]
