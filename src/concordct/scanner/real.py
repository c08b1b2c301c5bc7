"""A real CT volume as subject: its own noise, kernel and slice thickness stay in it, and are stated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from concordct.errors import ConcordctError
from concordct.scanner.frame import Frame
from concordct.scanner.shapes import Floats
from concordct.volumes.volume import AIR_HU, Volume


@dataclass(frozen=True)
class RealSubject:
    """A volume that is scanned again; see `scan.Subject`.

    Attributes
    ----------
    key : identity; never a patient's name or ID.
    volume : slices along z, rows along y, columns along x (either sense), no tilt.
    """

    key: str
    volume: Volume

    def __post_init__(self) -> None:
        columns = np.abs(self.volume.affine[:3, :3])
        if not np.allclose(columns, np.diag(np.diag(columns[:, ::-1]))[:, ::-1], atol=1e-3):
            raise ConcordctError("a volume can be scanned again only if it is axial and not tilted")

    @property
    def height_mm(self) -> float:
        """Extent along z, mm."""
        return self.volume.shape[0] * self.volume.spacing_mm[0]

    @property
    def reach_mm(self) -> tuple[float, float]:
        """(y, x) half extents, mm."""
        return tuple(0.5 * n * s for n, s in zip(self.volume.shape[1:], self.volume.spacing_mm[1:], strict=True))  # type: ignore[return-value]

    @property
    def statement(self) -> str:
        """What the subject brings with it."""
        kernel = self.volume.kernel or "an unknown kernel"
        return f"a real scan made with {kernel}; its noise and blur are part of the subject"

    def draw(self, z_mm: Floats, frame: Frame) -> NDArray[np.float32]:
        """[z, y, x] HU on planes at the heights given, linear between voxels, air outside."""
        spacing, sign = self.volume.spacing_mm, np.sign(self.volume.affine[[2, 1, 0], [0, 1, 2]])
        axes = []
        for values, count, step, sense in zip(
            (np.asarray(z_mm) - self.height_mm / 2, frame.y_mm, frame.x_mm),
            self.volume.shape,
            spacing,
            sign,
            strict=True,
        ):
            axes.append(sense * values / step + (count - 1) / 2)
        # Repeating the end slices half a voxel out is what the voxels' own extent means.
        axes[0] = np.clip(axes[0], 0, self.volume.shape[0] - 1)
        grid = np.stack(np.meshgrid(*axes, indexing="ij"))
        return map_coordinates(self.volume.hu, grid, order=1, mode="constant", cval=AIR_HU).astype(np.float32)

    def masks(self, z_mm: Floats, frame: Frame) -> dict[str, NDArray[np.bool_]]:
        """None are known."""
        return {}
