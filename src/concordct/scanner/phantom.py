"""The chest phantom: one fixed body after the anthropomorphic ones, with three tumours in its lungs."""

from __future__ import annotations

import dataclasses

from concordct.scanner.chest import Chest, ChestParameters
from concordct.scanner.nodules import Nodule

PARAMETERS = ChestParameters(
    seed=20,
    height_mm=280.0,
    cage_width_mm=128.0,
    cage_depth_mm=102.0,
    fat_mm=12.0,
    muscle=1.0,
    breast_mm=0.0,
    glandular=0.0,
    heart=1.0,
    blood_hu=42.0,
    lung_hu=-870.0,
    gradient_hu=25.0,
    texture_hu=12.0,
    emphysema=0.0,
    vessels=900,
    bone_hu=170.0,
    cortex_hu=750.0,
    kyphosis_mm=12.0,
    table=True,
)

#: Size, density and texture are stated; the places lie well inside the lungs, the first two at one height.
TUMOURS = (
    Nodule("tumour-1", "solid", (150.0, -22.0, -78.0), 15.0, 45.0, -600.0, 0.10, 0, 28.0, 2.6, 101),
    Nodule("tumour-2", "solid", (152.0, 12.0, 84.0), 10.0, -40.0, -600.0, 0.18, 16, 45.0, 1.8, 102),
    Nodule("tumour-3", "part-solid", (172.0, 38.0, -70.0), 12.0, 20.0, -560.0, 0.12, 0, 40.0, 3.4, 103),
)


def chest_phantom(key: str = "phantom", *, variant: int = 0) -> Chest:
    """The phantom with its three tumours ("tumour-1" to "tumour-3" among its masks).

    Parameters
    ----------
    key : identity, by which noise is keyed.
    variant : another number is another exemplar of the same make: other vessels and texture, the same tumours.
    """
    return Chest(key, dataclasses.replace(PARAMETERS, seed=PARAMETERS.seed + variant), TUMOURS)
