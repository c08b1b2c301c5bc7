"""The service's YAML file: every mistake with its line; rules that match; the example that starts a hospital."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="concordct[serve] is not installed")

from concordct.errors import ConcordctError
from concordct.serving.config import Match, Rule, load_config
from concordct.serving.rules import first_match, matches
from concordct.volumes.arrived import Facts

CHEST = Facts("Br40f\\3", "Siemens Healthineers", "SOMATOM Force", "CHEST", "Thorax 1.0 Br40", 1.0)
GOOD = """\
node:
  ae_title: CONCORDCT
  peers:
    - {ae_title: SCANNER, address: 10.0.0.7}
store: {folder: store}
page:
destinations:
  - {name: pacs, kind: dicom, ae_title: PACS, host: 10.0.0.8, port: 104}
rules:
  - name: chest
    model: model
    destinations: [pacs]
  - name: rest
    action: drop
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path


def refused(folder: Path, text: str) -> str:
    (folder / "service.yaml").write_text(text)
    with pytest.raises(ConcordctError) as error:
        load_config(folder / "service.yaml")
    return str(error.value)


def test_paths_are_taken_from_the_folder_of_the_file(folder: Path) -> None:
    (folder / "service.yaml").write_text(GOOD)
    config = load_config(folder / "service.yaml")
    assert config.store.folder == folder / "store"
    assert config.rules[0].model == folder / "model"
    assert config.page is None
    assert config.node.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("before", "after", "line", "said"),
    [
        ("ae_title: CONCORDCT", "ae_title: A_TITLE_THAT_IS_TOO_LONG", 2, "1 to 16 printable ASCII"),
        ("port: 104", "port: 70000", 8, "less than or equal to 65535, found 70000"),
        ("kind: dicom", "kind: ftp", 8, "'dicom'"),
        ("[pacs]", "[archive]", 12, "expected one of pacs, found 'archive'"),
        ("model: model", "model: nowhere", 11, "expected a folder, found none"),
        ("    action: drop", "    action: drop\n    colour: red", 15, "unknown key"),
        ("name: rest", "name: chest", 13, "found 'chest' twice"),
        ("    action: drop", "    action: drop\n    destinations: [pacs]", 13, "no destinations with action drop"),
        ("    action: drop", "    mode: mean", 13, "expected a model with action standardize"),
        ("    model: model", "    model: model\n    mode: best", 12, "'sample' or 'mean', found 'best'"),
        ("    model: model", "    model: model\n    allow: [nonsense]", 12, "not nonsense"),
        ("    model: model", "    model: model\n    match: {thickness_mm: [3, 1]}", 12, "[least, greatest]"),
        ("store: {folder: store}\n", "", 1, "store: expected, found nothing"),
        ("page:\n", "page:\nstore: {folder: other}\n", 7, "found 'store' again"),
        ("  peers:", "  peers: [", 4, "is no YAML"),
        ("[pacs]", "&x [pacs]\n    match: *x", 0, "expected YAML without aliases"),
    ],
)
def test_a_mistake_is_said_with_its_line(folder: Path, before: str, after: str, line: int, said: str) -> None:
    assert before in GOOD
    message = refused(folder, GOOD.replace(before, after, 1))
    assert not line or f"line {line}" in message, message
    assert said in message


def test_all_mistakes_are_said_at_once(folder: Path) -> None:
    message = refused(folder, GOOD.replace("port: 104", "port: x").replace("action: drop", "action: burn"))
    assert "line 8: destinations[1].port" in message
    assert "line 14: rules[2].action" in message


def test_a_short_token_is_refused(folder: Path) -> None:
    (folder / "token").write_text("123")
    text = GOOD.replace("page:\n", "page:\n  tokens:\n    - {name: a, role: reader, file: token}\n")
    assert "line 8: page.tokens[1].file: expected a file with a token of 20" in refused(folder, text)


@pytest.mark.parametrize(
    ("match", "met"),
    [
        ({}, True),
        ({"kernel": ["br40*"]}, True),
        ({"kernel": ["Br40f\\3"]}, True),
        ({"kernel": ["Bl*"]}, False),
        ({"kernel": ["Bl*", "Br*"], "manufacturer": ["siemens*"]}, True),
        ({"manufacturer": ["siemens"]}, False),
        ({"description": ["*thorax*"], "body_part": ["chest"]}, True),
        ({"model": ["*Drive*"]}, False),
        ({"thickness_mm": [0.5, 1.0]}, True),
        ({"thickness_mm": [1.5, 3.0]}, False),
    ],
)
def test_a_rule_matches_what_it_names(match: dict[str, object], met: bool) -> None:
    assert matches(Match.model_validate(match), CHEST) is met


def test_what_the_header_does_not_say_matches_nothing_but_silence() -> None:
    assert not matches(Match(kernel=("*",)), Facts())
    assert not matches(Match(thickness_mm=(0, 99)), Facts())
    assert matches(Match(), Facts())


def test_the_first_rule_decides() -> None:
    rules = [
        Rule(name="soft", match=Match(kernel=("Bl*",)), action="drop"),
        Rule(name="any", action="drop"),
        Rule(name="late", action="drop"),
    ]
    found = first_match(rules, CHEST)
    assert found is not None
    assert found.name == "any"
    assert first_match(rules[:1], CHEST) is None


def test_the_example_is_a_configuration(tmp_path: Path) -> None:
    text = resources.files("concordct.serving").joinpath("assets", "example.yaml").read_text()
    (tmp_path / "models" / "br40-to-bl64").mkdir(parents=True)
    (tmp_path / "token").write_text("0" * 24)
    (tmp_path / "service.yaml").write_text(text)
    config = load_config(tmp_path / "service.yaml")
    assert first_match(config.rules, CHEST) == config.rules[0]
    assert config.page is not None
    assert config.page.host == config.node.host == "127.0.0.1"
