"""The package from Python: what `import concordct as cc` offers.

    import concordct as cc

    model = cc.calibrate("exam/Br40", "exam/Bl64")
    out = model.standardize("incoming/exam")            # a Volume
    cc.evaluate("exam/Br40", out, "exam/Bl64", model=model)

Scans are paths (a DICOM series, a NIfTI, NRRD or MetaImage file) or `Volume`s. A Volume is an array [z, y, x] of HU
with an affine to LPS millimetres; `from_numpy` and `to_numpy` cross over to arrays of other axes and worlds. What this
page offers stays as it is within a minor version; what lies deeper may move.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from concordct.errors import ConcordctError
from concordct.volumes.volume import Volume

if TYPE_CHECKING:
    from concordct.methods.models import Model as Loaded
    from concordct.report.methods_text import MethodsText
    from concordct.volumes.scans import Scan

__all__ = [
    "ConcordctError",
    "Model",
    "Volume",
    "calibrate",
    "describe",
    "evaluate",
    "from_numpy",
    "inspect",
    "load",
    "read",
    "reference",
    "standardize",
    "to_numpy",
    "write",
]

#: A scan on disk or in memory.
Source = str | Path | Volume
Mode = Literal["sample", "mean"]
World = Literal["LPS", "RAS"]
Axes = Literal["zyx", "xyz"]
#: Called with (what is being done, done, in all).
Progress = Callable[[str, int, int], None]


def read(path: str | Path, *, allow: Collection[str] = ()) -> Volume:
    """Read the one scan under a path: a folder of DICOM slices, a slice of it, or a volume file.

    Parameters
    ----------
    allow : problems of the scan that may pass ("gap", "tilt", ...), see `inspect`.

    Returns
    -------
    Volume : hu [z, y, x] float32, Hounsfield units, with the affine from (z, y, x, 1) to LPS mm.

    Raises
    ------
    ConcordctError : no scan there, or several; a problem that is not allowed, with its positions.
    """
    from concordct.volumes.scans import checked, one_scan

    scan = one_scan(Path(path))
    checked(scan, frozenset(allow))
    return scan.read(allow=frozenset(allow))


def write(volume: Volume, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a Volume as .nii, .nii.gz, .nrrd, .mha or .mhd, in whole HU. DICOM comes from `standardize` to a folder.

    Raises
    ------
    ConcordctError : an unknown ending, or a file that exists.
    """
    from concordct.volumes.files import write_volume_file

    return write_volume_file(Path(path), volume, overwrite=overwrite)


def from_numpy(
    hu: ArrayLike,
    affine: ArrayLike,
    *,
    axes: Axes = "zyx",
    world: World = "LPS",
    kernel: str | None = None,
    slice_thickness_mm: float | None = None,
) -> Volume:
    """A Volume from an array.

    Parameters
    ----------
    hu : Hounsfield units, three axes in the order `axes`; nibabel's arrays are "xyz".
    affine : [4, 4], from the index in the order `axes` to millimetres of `world`; nibabel's world is "RAS".
    kernel, slice_thickness_mm : what no array says.

    Raises
    ------
    ConcordctError : an array or an affine of another shape.
    """
    values, matrix = np.asarray(hu, np.float32), np.array(affine, np.float64)
    if matrix.shape != (4, 4):
        raise ConcordctError(f"expected an affine of shape (4, 4), found {matrix.shape}")
    if axes == "xyz":
        values, matrix = values.T, matrix[:, [2, 1, 0, 3]]
    if world == "RAS":
        matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
    return Volume(np.ascontiguousarray(values), matrix, kernel=kernel, slice_thickness_mm=slice_thickness_mm)


def to_numpy(
    volume: Volume, *, axes: Axes = "zyx", world: World = "LPS"
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The array and the affine of a Volume; the inverse of `from_numpy`."""
    values, matrix = volume.hu, volume.affine.copy()
    if world == "RAS":
        matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
    if axes == "xyz":
        values, matrix = values.T, matrix[:, [2, 1, 0, 3]]
    return values, matrix


def inspect(path: str | Path) -> dict[str, Any]:
    """What lies under a path: scans with kernel, geometry and problems, and what was set aside. Headers only.

    Raises
    ------
    ConcordctError : the path does not exist or holds no file.
    """
    from concordct.pipelines.inspect import describe as found

    return found(Path(path))


@dataclass(frozen=True, eq=False)
class Model:
    """A calibrated or trained conversion from one kernel to another. `calibrate` and `load` make them.

    Attributes
    ----------
    loaded : what lies behind; it may change from version to version.
    card : the model card, Markdown.
    warnings : what the calibration found that a user should know.
    """

    loaded: Loaded
    card: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def source_kernels(self) -> tuple[str, ...]:
        """Kernels that it converts from; empty where nobody named them."""
        return self.loaded.source_kernels

    @property
    def target_kernels(self) -> tuple[str, ...]:
        """Kernels that it converts to."""
        return self.loaded.target_kernels

    @property
    def sha256(self) -> str:
        """Identity, as every result names it."""
        return self.loaded.sha256

    def standardize(
        self,
        scan: Source,
        *,
        mode: Mode = "sample",
        seed: int = 0,
        any_kernel: bool = False,
        allow: Collection[str] = (),
        progress: Progress | None = None,
    ) -> Volume:
        """One scan in the target kernel, in memory.

        Parameters
        ----------
        scan : a path or a Volume; it stays as it is.
        mode : "sample" for the target's texture, "mean" for the least HU error.
        seed : of what is drawn; with the scan it fixes every voxel.
        any_kernel : take scans of other kernels, too.
        allow : problems of the scan that may pass.

        Returns
        -------
        Volume : of the same geometry (or in the slices that the model makes), in whole HU inside the range that a CT
            image can store.

        Raises
        ------
        ConcordctError : a scan of another kernel, or with a problem that is not allowed.
        """
        from concordct.methods.models import kernel_mismatch
        from concordct.methods.slabs import standardized_slabs
        from concordct.volumes.ct_range import ct_range
        from concordct.volumes.scans import checked, evenly_spaced

        allowed = frozenset(allow)
        with _scans((scan,)) as (found,):
            mismatch = None if any_kernel else kernel_mismatch(self.loaded, found.kernel)
            if mismatch is not None:
                raise ConcordctError(mismatch)
            checked(found, allowed)
            found = self.loaded.seen(found)
            source = found.read(allow=allowed)
            # A reference condition becomes a model of this scan; any other model is the same for all.
            fitted = self.loaded.fitted(found, allow=allowed)
            knows_noise = fitted is self.loaded or fitted.samples_noise
            work = fitted.standardizer(mode=mode if knows_noise else "mean", use_neighbours=evenly_spaced(found))
            planes: list[NDArray[np.float32]] = []
            for slab in standardized_slabs(found, work, seed=seed, allow=allowed):
                for plane in slab.hu:
                    planes.append(np.clip(np.rint(plane), *ct_range(source.hu[len(planes)], None, slab.reach_hu)))
                if progress is not None:
                    progress("standardizing", len(planes), source.shape[0])
            return source.with_hu(np.stack(planes))

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the model to a folder that `load` and the command line read.

        Raises
        ------
        ConcordctError : the folder exists.
        """
        from concordct.training.bundle import save_bundle

        save_bundle(self.loaded.bundle, Path(path), card=self.card, overwrite=overwrite)
        return Path(path)

    def describe(self) -> MethodsText:
        """A paragraph for the methods section of a paper, guideline items, and BibTeX."""
        from concordct.report.methods_text import methods_text

        return methods_text(self.loaded.bundle.metadata, sha256=self.sha256)


def load(path: str | Path) -> Model:
    """Read a model that `calibrate` or `train` wrote.

    Raises
    ------
    ConcordctError : no model there, or a damaged one.
    """
    from concordct.methods.models import load_model

    card = Path(path) / "docs" / "README.md"
    return Model(load_model(Path(path)), card.read_text(encoding="utf-8") if card.is_file() else "")


def reference(name: str | Path) -> Model:
    """A reference condition in a model's place: scans of any kernel come out with its resolution and noise, unpaired.

    Parameters
    ----------
    name : "soft" or "sharp", which come with the package, or a JSON file with a curve of MTF and of noise power.

    Raises
    ------
    ConcordctError : no such condition, or a file that holds none.
    """
    from concordct.methods.models import open_reference

    return Model(open_reference(str(name)))


def describe(model: Model | str | Path) -> MethodsText:
    """A paragraph for the methods section of a paper, guideline items, and BibTeX, of a model."""
    return (model if isinstance(model, Model) else load(model)).describe()


def calibrate(
    source: Source | Sequence[Source],
    target: Source | Sequence[Source],
    *,
    method: str = "concord",
    width: str = "agreement",
    learned: bool = False,
    output: str | Path | None = None,
    allow: Collection[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Model:
    """Find the conversion between two kernels from scans that were reconstructed with both.

    Parameters
    ----------
    source, target : one scan each, or as many of each in the same order; folders of several series pair themselves.
    method : "concord" or "spectral".
    width : of concord's samples: "agreement", as near to the target as they come, or "honest", as far from each other
        as from the target, which costs agreement.
    learned : learn from all pairs what is left over of a pair that is not linear; kept where it serves exams held out.
    output : folder to keep the model in; without it the model lives in memory, and `Model.save` writes it.
    allow : problems of the scans that may pass.

    Raises
    ------
    ConcordctError : scans that are not two reconstructions of one acquisition, and by how much.
    """
    from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_paths

    sources, targets = (
        (value,) if isinstance(value, str | Path | Volume) else tuple(value) for value in (source, target)
    )
    if len(sources) != len(targets):
        raise ConcordctError(f"expected as many targets as sources, found {len(targets)} and {len(sources)}")
    with tempfile.TemporaryDirectory() as aside:
        place = Path(aside) / "model" if output is None else Path(output)
        found: list[Any] = []
        with _scans((*sources, *targets), folders=True) as scans:
            for one, other in zip(scans[: len(sources)], scans[len(sources) :], strict=True):
                if isinstance(one, Path) and isinstance(other, Path):
                    found += pairs_of_paths(one, other, allow=frozenset(allow))
                else:
                    found.append((_scan(one), _scan(other)))
            made = calibrate_pairs(
                found,
                place,
                method=method,
                width=width,
                learned=learned,
                allow=frozenset(allow),
                overwrite=overwrite,
                progress=progress,
            )
        return replace(load(place), warnings=made.warnings)


def standardize(
    source: str | Path,
    model: Model | str | Path,
    output: str | Path,
    *,
    mode: Mode = "sample",
    seed: int = 0,
    any_kernel: bool = False,
    allow: Collection[str] = (),
    overwrite: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Standardize a file, a series or a tree of them on disk, as the command line does; run it again to resume.

    Returns
    -------
    One record for each scan: input, output, status ("done", "skipped", "failed"), reason, notes, self-check.

    Raises
    ------
    ConcordctError : nothing to standardize, or an output inside the input.
    """
    import json

    from concordct.pipelines.engines import Local
    from concordct.pipelines.standardize import Settings, plan, run

    loaded = (model if isinstance(model, Model) else load(model)).loaded
    settings = Settings(mode, seed, frozenset(allow), any_kernel, overwrite)
    planned = plan(Path(source), Path(output), loaded, settings)
    count = len(planned.jobs)

    def show(index: int, done: int, depth: int) -> None:
        if progress is not None:
            progress(f"scan {index + 1} of {count}", done, depth)

    records = run(planned, loaded, Path(output), settings, engine=Local(workers), progress=show)
    return [json.loads(record.line()) for record in records]


def evaluate(
    source: Source,
    standardized: Source,
    target: Source,
    *,
    output: str | Path | None = None,
    model: Model | str | Path | None = None,
    mask: str | Path | None = None,
    preset: str | None = None,
    origin: str = "",
    allow: Collection[str] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Compare a scan before and after with its target: HU error, noise power, agreement of features.

    Parameters
    ----------
    output : folder for results.json and the report, report.html; without it only the results come back.
    model : its curves are shown, and scans that it was calibrated on are recognized.
    mask : ROIs to compare in; a grid over the body without.
    preset : features to compare, by name or PyRadiomics parameter file; 2D textures without.
    origin : what was simulated and what was real, for the report.

    Returns
    -------
    What results.json holds.

    Raises
    ------
    ConcordctError : scans that do not lie voxel on voxel, or a result in the place of source or target.
    """
    from concordct.pipelines import evaluate as pipeline

    loaded = None if model is None else (model if isinstance(model, Model) else load(model)).loaded
    with tempfile.TemporaryDirectory() as aside, _scans((source, standardized, target)) as scans:
        results = pipeline.evaluate(
            [pipeline.Case("one", scans[0], scans[1], scans[2], None if mask is None else Path(mask))],
            Path(aside) / "report" if output is None else Path(output),
            model=loaded,
            preset=preset,
            origin=origin,
            allow=frozenset(allow),
            overwrite=overwrite,
        )
    assert results is not None
    return results


def _scan(value: Any) -> Scan:
    from concordct.volumes.scans import one_scan

    return one_scan(value) if isinstance(value, Path) else value


@contextmanager
def _scans(values: Sequence[Source], *, folders: bool = False) -> Iterator[tuple[Any, ...]]:
    """Scans of paths and Volumes; the latter lie in files of a temporary folder meanwhile.

    Parameters
    ----------
    folders : paths come back as they are.
    """
    from concordct.volumes.files import open_volume_file, write_volume_file

    with tempfile.TemporaryDirectory() as aside:
        found: list[Any] = []
        for number, value in enumerate(values):
            if isinstance(value, Volume):
                path = write_volume_file(Path(aside) / f"{number}.nrrd", replace(value, first_slice=0), whole_hu=False)
                file = open_volume_file(path)
                found.append(replace(file, kernel=value.kernel, slice_thickness_mm=value.slice_thickness_mm))
            else:
                found.append(Path(value) if folders else _scan(Path(value)))
        yield tuple(found)
