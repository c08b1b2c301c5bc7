"""Write a Volume as a CT series of its own: the virtual scanner's images as DICOM.

The objects are CT Image Storage (PS3.3 A.3, C.8.2.1) with ImageType ORIGINAL\\PRIMARY, since they are what a (virtual)
scanner made first, and say in Manufacturer, ImageComments and PatientComments that no patient was scanned. Everything
is fixed by the arguments: same volume, same identity, same bytes. Dates are empty, as type 2 attributes may be.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from concordct.errors import ConcordctError
from concordct.volumes.place import atomic_directory
from concordct.volumes.uids import uid_of
from concordct.volumes.volume import Volume

MANUFACTURER = "concordct virtual scanner"
#: Rescale intercept of a 12 bit CT image: stored value 0 is -1024 HU.
INTERCEPT = -1024
IMPLEMENTATION_CLASS = "concordct/new-series"


@dataclass(frozen=True)
class SimulatedScan:
    """What the header says beyond the volume.

    Attributes
    ----------
    subject : synthetic patient name and ID, e.g. "phantom-0001".
    scan : identity of the raw data set and of everything it was made with (a digest); series of one scan share study
        and frame of reference, and UIDs follow from subject, scan, series number, kernel and slice.
    description : SeriesDescription.
    series_number : as shown by viewers.
    kvp, mas : tube voltage, kV, and exposure, mAs.
    details : free text, e.g. the parameters' digest.
    """

    subject: str
    scan: str
    description: str
    series_number: int
    kvp: float
    mas: float
    details: str = ""


def write_new_series(slabs: Volume | Iterable[Volume], directory: Path, scan: SimulatedScan) -> tuple[Path, ...]:
    """Write one file per slice into a folder that must not exist yet.

    Parameters
    ----------
    slabs : a Volume or consecutive slabs of one; whole HU within [-1024, 3071], anything else is refused, never
        clipped here.
    directory : made aside and moved into place when complete.

    Returns
    -------
    Paths of the files, in slice order.

    Raises
    ------
    ConcordctError
        The folder exists, or the values do not fit 12 bits.
    """
    names: list[str] = []
    with atomic_directory(directory) as aside:
        for slab in [slabs] if isinstance(slabs, Volume) else slabs:
            names += [path.name for path in write_slices(slab, aside, scan)]
    return tuple(directory / name for name in names)


def write_slices(slab: Volume, directory: Path, scan: SimulatedScan) -> tuple[Path, ...]:
    """Write a slab's slices into an existing folder; file names and instance numbers follow `first_slice`."""
    stored = slab.hu - INTERCEPT
    if not np.array_equal(stored, np.rint(stored)) or stored.min() < 0 or stored.max() > 4095:
        raise ConcordctError(
            f"a CT series stores whole HU from {INTERCEPT} to {INTERCEPT + 4095}, "
            f"found values from {slab.hu.min():g} to {slab.hu.max():g}"
        )
    pixels = stored.astype("<u2")
    paths = []
    for index in range(slab.shape[0]):
        paths.append(directory / f"{slab.first_slice + index + 1:05d}.dcm")
        pydicom.dcmwrite(paths[-1], _slice(slab, index, pixels[index], scan), enforce_file_format=True)
    return tuple(paths)


def _slice(volume: Volume, index: int, pixels: np.ndarray, scan: SimulatedScan) -> Dataset:
    spacing = volume.spacing_mm
    series_uid = uid_of("series", scan.subject, scan.scan, scan.series_number, volume.kernel)
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = uid_of("instance", series_uid, index + volume.first_slice)
    dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = ""
    dataset.ContentDate = dataset.ContentTime = ""
    dataset.Modality = "CT"
    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = "virtual CT"
    dataset.ReferringPhysicianName = ""
    dataset.StudyDescription = "Simulated CT"
    dataset.SeriesDescription = scan.description
    dataset.PatientName = f"{scan.subject}^simulated"
    dataset.PatientID = scan.subject
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.PatientComments = "Simulated; no patient was scanned"
    dataset.BodyPartExamined = "CHEST"
    dataset.SliceThickness = _decimal(volume.slice_thickness_mm or spacing[0])
    dataset.KVP = _decimal(scan.kvp)
    dataset.Exposure = round(scan.mas)
    dataset.ConvolutionKernel = (volume.kernel or "").split("\\")
    dataset.PatientPosition = "HFS"
    dataset.StudyInstanceUID = uid_of("study", scan.subject, scan.scan)
    dataset.SeriesInstanceUID = series_uid
    dataset.StudyID = "1"
    dataset.SeriesNumber = scan.series_number
    dataset.AcquisitionNumber = 1
    dataset.InstanceNumber = index + volume.first_slice + 1
    position = volume.affine @ (index, 0.0, 0.0, 1.0)
    dataset.ImagePositionPatient = [_decimal(value) for value in position[:3]]
    dataset.ImageOrientationPatient = [
        _decimal(value) for axis in (2, 1) for value in volume.affine[:3, axis] / spacing[axis]
    ]
    dataset.FrameOfReferenceUID = uid_of("frame", scan.subject, scan.scan)
    dataset.PositionReferenceIndicator = ""
    dataset.SliceLocation = _decimal(position[2])
    dataset.ImageComments = scan.details
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[2])]
    dataset.BitsAllocated = 16
    dataset.BitsStored = 12
    dataset.HighBit = 11
    dataset.PixelRepresentation = 0
    dataset.RescaleIntercept = INTERCEPT
    dataset.RescaleSlope = 1
    dataset.RescaleType = "HU"
    dataset.WindowCenter, dataset.WindowWidth = -600, 1500
    dataset.PixelData = pixels.tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = pydicom.uid.UID(uid_of(IMPLEMENTATION_CLASS))
    return dataset


def _decimal(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5 6.2, VR DS)."""
    return f"{float(value):.10g}"
