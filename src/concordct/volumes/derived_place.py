"""The header of a derived slice that lies where no source slice lies, or is thicker: place, thickness, sources.

What it inherits from the nearest source slice and was true of that slice's place alone is dropped (DICOM PS3.3
C.7.6.2, C.8.2.1; CID 7202).
"""

from __future__ import annotations

from pydicom.dataset import FileDataset
from pydicom.sequence import Sequence

from concordct.volumes.decode import quiet_dicom
from concordct.volumes.derived_header import reference_to, source_image
from concordct.volumes.restacked import Placed

#: True of the source slice's place, or of how many slices its series has.
DROPPED = (
    "TablePosition",
    "ImagesInAcquisition",
    "DataCollectionCenterPatient",
    "ReconstructionTargetCenterPatient",
    "SourceImageEvidenceSequence",
)


def place(dataset: FileDataset, placed: Placed, source_class: str) -> None:
    """Put a derived object at its own place; it names every slice that it was made of."""
    with quiet_dicom():
        for name in DROPPED:
            if name in dataset:
                delattr(dataset, name)
        dataset.ImagePositionPatient = [_decimal(value) for value in placed.origin_lps_mm]
        dataset.SliceLocation = _decimal(placed.position_mm)
        dataset.SliceThickness = _decimal(placed.thickness_mm)
        dataset.SpacingBetweenSlices = _decimal(placed.spacing_mm)
        dataset.InstanceNumber = placed.number
        references = [reference_to(ref, source_class) for ref in placed.made_of]
        dataset.SourceImageSequence = Sequence([source_image(one, same_places=False) for one in references])
        dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence = Sequence(references)


def _decimal(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5 6.2, VR DS)."""
    return f"{float(value):.10g}"
