"""When and on whose scanner a series was acquired, as far as its header says so in words that the standard defines."""

from __future__ import annotations

import re

from concordct.volumes.dicom_file import open_dataset, quiet_dicom
from concordct.volumes.scans import Scan
from concordct.volumes.series import Series

#: Makers by a word in Manufacturer; another text is not repeated, since a broken header may hold a name there.
MAKERS = {
    "siemens": "Siemens",
    "ge ": "GE",
    "philips": "Philips",
    "canon": "Canon",
    "toshiba": "Toshiba",
    "hitachi": "Hitachi",
    "fujifilm": "Fujifilm",
    "united imaging": "United Imaging",
    "uih": "United Imaging",
    "neusoft": "Neusoft",
    "concordct": "concordct",
}


def acquired(scan: Scan) -> dict[str, str | None]:
    """Date (YYYY-MM-DD) and maker of the scanner of a series; None for what is unknown, and for volume files.

    Raises
    ------
    ConcordctError : the first slice cannot be read any more.
    """
    if not isinstance(scan, Series):
        return {"date": None, "scanner": None}
    dataset = open_dataset(scan.slices[0].path, tags=["AcquisitionDate", "SeriesDate", "StudyDate", "Manufacturer"])
    with quiet_dicom():
        dates = [str(dataset.get(name) or "") for name in ("AcquisitionDate", "SeriesDate", "StudyDate")]
        maker = str(dataset.get("Manufacturer") or "").lower() + " "
    date = next((text for text in dates if re.fullmatch(r"(19|20)\d{6}", text)), None)
    return {
        "date": None if date is None else f"{date[:4]}-{date[4:6]}-{date[6:]}",
        "scanner": next((name for word, name in MAKERS.items() if word in maker), None),
    }
