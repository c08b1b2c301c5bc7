"""The self-check of a derived series as a DICOM Structured Report: TID 1500 in an Enhanced SR (PS3.16, PS3.3 A.35.2).

The report lies beside the series in the same study, names the images that were measured and holds each number with its
unit, the verdict and the digest of the model. What no coding scheme names goes under 99CONCORDCT. It holds no clock:
its dates are those of the study, its UIDs follow from the derived series and from what was found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from concordct import __version__
from concordct.errors import ConcordctError
from concordct.volumes.decode import open_dataset, quiet_dicom
from concordct.volumes.derived import RECORD
from concordct.volumes.derived_header import SERIES_NUMBER_OFFSET, hashed_uid, save
from concordct.volumes.place import atomic_file

if TYPE_CHECKING:
    from highdicom.sr import MeasurementsAndQualitativeEvaluations

SCHEME = "99CONCORDCT"
#: The report's series sorts behind the derived one.
_BEHIND = 5_000
#: Content Date is asked for (type 1) and no clock is read: a study without a date gets this one.
_NO_DATE, _NO_TIME = "19000101", "000000"
_NO_UNITS = Code("1", "UCUM", "no units")
_HU = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
_PER_CM = Code("/cm", "UCUM", "/cm")
#: (section, key) of the record's self-check: code value, meaning, unit.
MEASURED: dict[tuple[str, str], tuple[str, str, Code]] = {
    ("kernel", "sharpness"): ("SHARPNESS", "Sharpness relative to the calibrated kernel", _NO_UNITS),
    ("kernel", "noise_deviation"): ("NOISEDEV", "Deviation of the noise spectrum's shape", _NO_UNITS),
    ("kernel", "noise_slope"): ("NOISESLOPE", "Rise of the noise over the calibrated one", _NO_UNITS),
    ("kernel", "tail_difference"): ("TAILDIFF", "Difference of the noise tail", _NO_UNITS),
    ("kernel", "distance"): ("DISTANCE", "Distance from the calibrated kernel", _NO_UNITS),
    ("kernel", "distance_allowed"): ("DISTANCEMAX", "Distance allowed", _NO_UNITS),
    ("returned", "band_lp_cm"): ("BAND", "End of the coherent band", _PER_CM),
    ("returned", "difference_hu"): ("RETURNDIFF", "Difference after return", _HU),
    ("returned", "ratio_to_noise"): ("RETURNRATIO", "Difference after return over noise", _NO_UNITS),
    ("returned", "ratio_allowed"): ("RETURNMAX", "Ratio allowed", _NO_UNITS),
}
#: Statuses of a self-check as coded verdicts.
VERDICTS = {
    "passed": Code("PASSED", SCHEME, "Passed"),
    "failed": Code("FAILED", SCHEME, "Failed"),
    "not recorded": Code("NOTRECORDED", SCHEME, "No reference in the model"),
    "not measured": Code("NOTMEASURED", SCHEME, "Not measured"),
}


def write_self_check_report(folder: Path, path: Path) -> tuple[str, str]:
    """Write the report of a derived series.

    Parameters
    ----------
    folder : the derived series with its record.
    path : the report's file; one that stands there is replaced by the same bytes.

    Returns
    -------
    SOP class and SOP Instance UID.

    Raises
    ------
    ConcordctError : no record, or headers from which no report can be made.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConcordctError(f"{folder}: expected a derived series with its {RECORD}, found none") from None
    with quiet_dicom():
        try:
            report = _report(folder, record)
        except ConcordctError:
            raise
        except Exception as error:
            # highdicom quotes header values in what it raises.
            raise ConcordctError(f"{folder}: no structured report can be made ({type(error).__name__})") from None
    with atomic_file(path, overwrite=True) as aside:
        save(report, aside)
    return str(report.SOPClassUID), str(report.SOPInstanceUID)


def _report(folder: Path, record: Mapping[str, Any]) -> Any:
    from highdicom.sr import (
        CodedConcept,
        DeviceObserverIdentifyingAttributes,
        EnhancedSR,
        MeasurementReport,
        ObservationContext,
        ObserverContext,
    )

    images: list[Dataset] = [open_dataset(folder / one["file"]) for one in record["instances"]]
    first = images[0]
    check = record.get("self_check")
    identity = json.dumps([record["series_uid"], __version__, check], sort_keys=True)
    observer = ObserverContext(
        CodedConcept("121007", "DCM", "Device"),
        DeviceObserverIdentifyingAttributes(
            hashed_uid("device"), name="concordct", manufacturer_name="concordct", model_name="concordct"
        ),
    )
    content = MeasurementReport(
        ObservationContext(observer_device_context=observer),
        procedure_reported=Code("77477000", "SCT", "Computed Tomography"),
        imaging_measurements=[_group(record, check, images, identity)],
        title=Code("126000", "DCM", "Imaging Measurement Report"),
    )
    report = EnhancedSR(
        evidence=images,
        content=content[0],
        series_instance_uid=hashed_uid("report-series", identity),
        series_number=int(first.get("SeriesNumber") or SERIES_NUMBER_OFFSET) + _BEHIND,
        sop_instance_uid=hashed_uid("report", identity),
        instance_number=1,
        manufacturer="concordct",
        is_complete=True,
    )
    report.ManufacturerModelName = "concordct"
    report.SoftwareVersions = __version__
    report.SeriesDescription = "Self-check [concordct]"
    report.add_new("ContentDate", "DA", first.get("StudyDate") or _NO_DATE)
    report.add_new("ContentTime", "TM", first.get("StudyTime") or _NO_TIME)
    for name in ("InstanceCreationDate", "InstanceCreationTime", "SeriesDate", "SeriesTime"):
        if name in report:
            delattr(report, name)
    for equipment in report.get("ContributingEquipmentSequence") or ():
        if "ContributionDateTime" in equipment:
            del equipment.ContributionDateTime
    return report


def _group(
    record: Mapping[str, Any], check: Mapping[str, Any] | None, images: list[Dataset], identity: str
) -> MeasurementsAndQualitativeEvaluations:
    """One group: what was measured on the series, and the verdicts."""
    from highdicom.sr import (
        AlgorithmIdentification,
        Measurement,
        MeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        SourceImageForMeasurementGroup,
        TrackingIdentifier,
    )

    derivation = record["derivation"]
    measurements = [
        Measurement(Code(value, SCHEME, meaning), float(check[section][key]), unit)
        for (section, key), (value, meaning, unit) in MEASURED.items()
        if check is not None and check[section].get(key) is not None
    ]
    overall, kernel, returned = "not measured", "not measured", "not measured"
    if check is not None:
        kernel, returned = check["kernel"]["status"], check["returned"]["status"]
        overall = "failed" if check["failed"] else "passed" if "passed" in (kernel, returned) else "not measured"
    questions = (
        ("VERDICT", "Self-check", overall),
        ("KERNELCHECK", "Scan is of the calibrated kernel", kernel),
        ("RETURNCHECK", "Result taken back returns the scan", returned),
    )
    measured = [0] if check is None else [one["slice"] for one in check["returned"]["slices"]] or [len(images) // 2]
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(hashed_uid("tracking", identity), "self-check"),
        finding_type=Code("SELFCHECK", SCHEME, "Self-check of a standardized series"),
        method=Code("KERNEL", SCHEME, "Reconstruction kernel standardization"),
        algorithm_id=AlgorithmIdentification(
            f"concordct {derivation['method']}", __version__, [f"model sha256 {derivation['model_sha256']}"]
        ),
        measurements=measurements,
        qualitative_evaluations=[
            QualitativeEvaluation(Code(value, SCHEME, meaning), VERDICTS[status])
            for value, meaning, status in questions
        ],
        source_images=[
            SourceImageForMeasurementGroup(str(images[at].SOPClassUID), str(images[at].SOPInstanceUID))
            for at in measured
        ],
    )
