"""The conformance statement is what the code says, and what the code does is what the statement says."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="concordct[serve] is not installed")

from pynetdicom import AE, AllStoragePresentationContexts

from concordct.serving.conformance import statement
from concordct.volumes.arrived import CT_CLASSES, TRANSFER_SYNTAXES
from concordct.volumes.decode import open_dataset
from concordct.volumes.derivation import Derivation
from concordct.volumes.derived import write_derived_series
from concordct.volumes.derived_header import DROPPED
from concordct.volumes.find import find_series
from serving_parts import series, serving, settings

PAGE = Path(__file__).parents[1] / "docs" / "dicom-conformance.md"


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == statement(), "run python -m concordct.serving.conformance"


def test_the_node_accepts_what_the_page_lists_and_nothing_else(tmp_path: Path) -> None:
    given = settings(tmp_path, tmp_path, rules=[{"name": "drop", "action": "drop"}])
    page = PAGE.read_text()
    with serving(tmp_path, given):
        for contexts in (AllStoragePresentationContexts[:120], AllStoragePresentationContexts[120:]):
            ae = AE(ae_title="SCANNER")
            for context in contexts:
                ae.add_requested_context(context.abstract_syntax, list(TRANSFER_SYNTAXES))
            association = ae.associate("127.0.0.1", given["node"]["port"], ae_title="CONCORDCT")
            accepted = {str(context.abstract_syntax) for context in association.accepted_contexts}
            assert accepted == {str(each.abstract_syntax) for each in contexts} & {str(uid) for uid in CT_CLASSES}
            assert all(f"| {uid} | SCP |" in page for uid in accepted)
            if association.is_established:
                association.release()
        for syntax in TRANSFER_SYNTAXES:
            ae = AE(ae_title="SCANNER")
            ae.add_requested_context(CT_CLASSES[0], syntax)
            association = ae.associate("127.0.0.1", given["node"]["port"], ae_title="CONCORDCT")
            assert association.is_established
            association.release()
            assert f"| {syntax.name} | {syntax} |" in page


def test_derived_objects_hold_what_the_page_says(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    slices = series(slices=3, ContentDate="20200101", SmallestImagePixelValue=0, SeriesDate="20200101")
    for index, one in enumerate(slices):
        one.private_block(0x0011, "SECRET", create=True).add_new(1, "LO", "x")
        one.save_as(tmp_path / "in" / f"{index}.dcm", enforce_file_format=True)
    (stack,) = find_series(tmp_path / "in").series
    write_derived_series(stack, [stack.read()], tmp_path / "out", Derivation("none", "0" * 64, "Bl64"))
    source, made = open_dataset(tmp_path / "in" / "0.dcm"), open_dataset(tmp_path / "out" / "0000.dcm")
    page = PAGE.read_text()
    removed = {element.keyword for element in source if element.keyword and element.keyword not in made}
    assert {"ContentDate", "SmallestImagePixelValue", "SeriesDate"} <= removed <= set(DROPPED)
    assert all(name in page for name in DROPPED)
    assert not any(element.tag.is_private for element in made)
    changed = {element.keyword for element in made if source.get(element.tag) != element}
    assert changed == {
        "ImageType", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "ConvolutionKernel",
        "DerivationDescription", "DerivationCodeSequence", "SourceImageSequence", "ReferencedSeriesSequence",
        "ContributingEquipmentSequence",
    }  # fmt: skip
    assert all(name in page for name in changed)
