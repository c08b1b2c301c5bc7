"""What a CT image of a dual-energy or photon-counting scan shows: HU at one energy, or something that is no HU at all.

Terms are those of the fourth value of ImageType and FrameType for multi-energy CT (PS3.3 C.8.2.1.1.1 and C.8.15.2.1.1,
Supplement 188) and the words that scanners wrote before it. Images of different energies, or with a material taken out,
are different images of the same patient: they are never one stack with each other or with the plain one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pydicom.dataset import Dataset

from concordct.errors import ConcordctError
from concordct.volumes.attributes import attribute

#: No HU: densities, fractions, atomic numbers, perfusion.
_MAPS = {
    "MAT_SPECIFIC": "material-specific",
    "MAT_FRACTIONAL": "material fraction",
    "MAT_VALUE_BASED": "value-based",
    "EFF_ATOMIC_NUM": "effective atomic number",
    "ELECTRON_DENSITY": "electron density",
    "PERFUSION": "perfusion",
}
#: Fourth value of FrameType in enhanced CT that is HU, or nothing said.
_PLAIN = frozenset(("", "NONE", "ENERGY_PROP_WT", "STANDARD"))
#: Perfusion and subtraction of enhanced CT (C.8.15.2.1.1.4): named in a refusal.
_ENHANCED_MAPS = frozenset(("RCBF", "RCBV", "MTT", "TTP", "TMAX", "SUBTRACTION", "DIFFERENCE", "MIP", "MINIP", "FLOW"))
#: Of classic CT, anywhere after the second value: projections through a slab or over time, differences, maps of
#: perfusion and of one material, renderings and curved planes, which no kernel made.
_NO_SLICE = re.compile(
    r"(?<![A-Z])(?<!NO_)(T?MIP|MINIP|MAXIP|MIN_IP|MAX_IP|SUBTRACTION|R?CB[FV]|MTT|TTP|TMAX|PBV|IODINE|VRT|SSD|CURVED|CPR|"
    r"SEGMENTATION|FUSED|FUSION|STD_DEVIATION)(?![A-Z])"
)
_MONO = re.compile(r"(VMI|VIRTUAL_MONOENERGETIC|MONOENERGETIC|MONOCHROMATIC|(CMT_|DE_)?MONO(E|_E|EN)?)([_ ]?\d.*)?")
_KEV = re.compile(r"(\d{2,3}(?:\.\d)?)[_ ]?keV\b", re.IGNORECASE)
_REMOVED = re.compile(r"MAT_REMOVED|MAT_MODIFIED|VNC|VNCA|VUE|WATER_NO_IODINE")


def refuse_maps(kinds: Sequence[str], path: Path, *, enhanced: bool) -> None:
    """Refuse an image whose ImageType or FrameType says that its voxels are no HU.

    Parameters
    ----------
    enhanced : of enhanced CT, whose fourth value is defined; classic CT writes what it likes there.

    Raises
    ------
    ConcordctError : a map of densities, fractions, numbers or perfusion, a projection, a difference.
    """
    fourth = kinds[3] if len(kinds) > 3 else ""
    named = next((_MAPS[kind] for kind in kinds[2:] if kind in _MAPS), None)
    projected = None if enhanced else next(filter(None, map(_NO_SLICE.search, kinds[2:])), None)
    if projected is not None:
        named = projected.group()
    if enhanced and fourth in _ENHANCED_MAPS:
        named = fourth
    elif enhanced and named is None and not (fourth in _PLAIN or _MONO.fullmatch(fourth) or _REMOVED.fullmatch(fourth)):
        named = "another"
    if named is not None:
        raise ConcordctError(f"frames of a derived map ({named}), expected HU: {path}")


def energy_of(kinds: Sequence[str], flat: Dataset, description: str) -> str | None:
    """ "40 keV", "monoenergetic", "material removed" or their like; None for the plain image of a scan.

    Parameters
    ----------
    kinds : values of ImageType or FrameType, in capitals.
    flat : the header of the slice, which may state MonoenergeticEnergyEquivalent or the processing.
    description : SeriesDescription, where older scanners wrote the energy.
    """
    said = []
    steps = [flat, *(attribute(flat, "MultienergyCTProcessingSequence") or [])]
    stated = [attribute(step, "MonoenergeticEnergyEquivalent") for step in steps]
    energies = [f"{float(value):g} keV" for value in stated if value not in (None, "")]
    if not energies:
        energies = [f"{float(value):g} keV" for kind in (*kinds[2:], description) for value in _KEV.findall(kind)]
    if energies:
        said.append(energies[0])
    elif any(_MONO.fullmatch(kind) for kind in kinds[2:]):
        said.append("monoenergetic")
    if any(_REMOVED.fullmatch(kind) for kind in kinds[2:]):
        said.append("material removed")
    return ", ".join(said) or None
