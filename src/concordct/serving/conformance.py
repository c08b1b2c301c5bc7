"""The DICOM conformance statement (PS3.2 annex N) from what the code says of itself.

    python -m concordct.serving.conformance > docs/dicom-conformance.md

Tables of SOP classes, transfer syntaxes, timeouts and attributes are read from the code; the words between them are in
`assets/conformance.md.j2`. A test holds the page to what this writes, and derived objects to what the page says.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    EnhancedSRStorage,
    StorageCommitmentPushModel,
    Verification,
)

from concordct import __version__
from concordct.serving import inbox
from concordct.serving.config import DicomDestination, NodeConfig
from concordct.serving.node import PDU_BYTES, WRONG_CALLED, WRONG_CALLING
from concordct.volumes.arrived import CT_CLASSES, TRANSFER_SYNTAXES
from concordct.volumes.derived_header import (
    DROPPED,
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION,
    SERIES_NUMBER_OFFSET,
    TRANSFER_SYNTAX,
)
from concordct.volumes.structured_report import MEASURED, SCHEME, VERDICTS

#: Statuses of C-STORE that we answer.
STATUSES = (
    (inbox.SUCCESS, "Success", "The object is on disk, and the queue knows it."),
    (inbox.NO_ROOM, "Out of resources", "It would pass the quota or the disk; nothing of it is kept."),
    (inbox.MISMATCH, "Data set does not match", "SOP class or instance UID differ from those announced."),
    (inbox.NOT_UNDERSTOOD, "Cannot understand", "Cut short, not CT, no valid UIDs, or a header that cannot be read."),
    (0x0124, "Not authorized", "The peer may report commitment but not send."),
)


def statement() -> str:
    """The page."""
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    text = resources.files("concordct.serving").joinpath("assets", "conformance.md.j2").read_text(encoding="utf-8")
    return environment.from_string(text).render(
        version=__version__,
        ct=[_named(uid) for uid in CT_CLASSES],
        derived=_named(CT_CLASSES[0]),
        report=_named(EnhancedSRStorage),
        verification=_named(Verification),
        commitment=_named(StorageCommitmentPushModel),
        syntaxes=[_named(uid) for uid in TRANSFER_SYNTAXES],
        written=next(_named(uid) for uid in TRANSFER_SYNTAXES if str(uid) == TRANSFER_SYNTAX),
        statuses=[(f"0x{code:04X}", name, meaning) for code, name, meaning in STATUSES],
        rejections=[(WRONG_CALLING, "calling AE title not listed, or from another address"),
                    (WRONG_CALLED, "called by another title")],
        node={name: field.default for name, field in NodeConfig.model_fields.items()},
        destination={name: field.default for name, field in DicomDestination.model_fields.items()},
        pdu=PDU_BYTES,
        dropped=sorted(DROPPED),
        series_number=SERIES_NUMBER_OFFSET,
        implementation=(IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION),
        scheme=SCHEME,
        codes=[(value, meaning, unit.meaning) for value, meaning, unit in MEASURED.values()],
        verdicts=[(code.value, code.meaning) for code in VERDICTS.values()],
    )  # fmt: skip


def _named(uid: Any) -> tuple[str, str]:
    return uid.name, str(uid)


if __name__ == "__main__":
    print(statement(), end="")
