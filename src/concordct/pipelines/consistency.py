"""Downstream consistency: does a model that reads scans say the same after standardization? LTDiff++, section VI.

    consistency(pairs, model, score, split="test")

`score` is any callable from a Volume to numbers, such as a risk for each of the years 1 to 6 (`sybil`). It is asked
three times for each pair: on the target, on the source, and on the source standardized.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from concordct.agreement.bootstrap import draw_subjects, percentiles
from concordct.errors import ConcordctError
from concordct.judging.case import cases_of_manifest, open_pair
from concordct.judging.stages import standardized, standardizer_for
from concordct.methods.models import Model
from concordct.methods.standardizer import Mode
from concordct.volumes.new_series import INTERCEPT, SimulatedScan, write_new_series
from concordct.volumes.volume import Volume

#: A Volume to its scores, always as many.
Score = Callable[[Volume], Sequence[float]]

#: Bootstrap samples of subjects.
REPEATS = 1000


@dataclass(frozen=True, eq=False)
class Consistency:
    """Scores of every pair, [pair, score], and how far they lie from the target's.

    Attributes
    ----------
    source, standardized, target : [pair, score].
    before, after : [score] mean absolute difference to the target's score, without and with standardization.
    gain : [score] before - after; above 0 where standardization brings the scores closer.
    gain_interval : [2, score] 95 % interval of the gain over subjects; NaN with a single subject.
    """

    subjects: tuple[str, ...]
    source: NDArray[np.float64]
    standardized: NDArray[np.float64]
    target: NDArray[np.float64]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    gain: NDArray[np.float64]
    gain_interval: NDArray[np.float64]


def consistency(
    pairs: Path,
    model: Model,
    score: Score,
    *,
    split: str | None = "test",
    mode: Mode = "sample",
    seed: int = 0,
    allow: frozenset[str] = frozenset(),
) -> Consistency:
    """Ask `score` about target, source and standardized source of every pair.

    Raises
    ------
    ConcordctError : no pair, pairs that are not two reconstructions of one scan, scores that are not finite or not
        always as many.
    """
    cases = cases_of_manifest(pairs, split=split)
    found = []
    for case in cases:
        pair = open_pair(case, allow=allow)
        after = standardized(
            case.source, pair.source, standardizer_for(case.source, model, mode=mode), seed=seed, allow=allow
        )
        found.append([[float(one) for one in score(volume)] for volume in (pair.source, after, pair.target)])
    lengths = {len(scores) for three in found for scores in three}
    if len(lengths) != 1 or 0 in lengths:
        raise ConcordctError(f"expected as many scores for every scan, found {sorted(lengths)}")
    values = np.array(found)  # [pair, 3, score]
    if not np.isfinite(values).all():
        raise ConcordctError("expected finite scores, found some that are not")
    far = np.abs(values[:, :2] - values[:, 2:])  # [pair, before and after, score]
    subjects = tuple(case.subject for case in cases)
    mean = far.mean(axis=0)
    return Consistency(
        subjects,
        values[:, 0],
        values[:, 1],
        values[:, 2],
        mean[0],
        mean[1],
        mean[0] - mean[1],
        _interval(far[:, 0] - far[:, 1], subjects, seed),
    )


def _interval(gains: NDArray[np.float64], subjects: Sequence[str], seed: int) -> NDArray[np.float64]:
    """[2, score] 95 % interval of the mean gain over subjects."""
    drawn = draw_subjects(subjects, repeats=REPEATS, generator=np.random.default_rng(seed))
    means = drawn.sums(gains) / drawn.sums(np.ones((len(gains), 1)))
    return np.array([percentiles(column) for column in means.T]).T


def sybil(name: str = "sybil_ensemble") -> Score:
    """Sybil's risk of lung cancer within 1 to 6 years (Mikhael et al. 2023, doi:10.1200/JCO.22.01345) as a `Score`.

    Sybil reads DICOM files, so each volume is written as a series without a patient, rounded and cut to 12 bits, and
    removed again. What Sybil rests on it downloads by itself on first use.

    Parameters
    ----------
    name : of Sybil's model.

    Raises
    ------
    ConcordctError : Sybil is not installed, or it refuses a scan (slices above 5 mm).
    """
    try:
        # On PyPI `sybil` is another project, which has no Serie.
        from sybil import Serie, Sybil  # type: ignore[import-not-found]
    except ImportError:
        raise ConcordctError(
            "expected Sybil for its risks, found none: pip install git+https://github.com/reginabarzilaygroup/Sybil"
        ) from None
    model = Sybil(name)

    def score(volume: Volume) -> list[float]:
        whole = volume.with_hu(np.clip(np.rint(volume.hu), INTERCEPT, INTERCEPT + 4095))
        scan = SimulatedScan("consistency", "sybil", "volume to be scored", 1, 120.0, 0.0)
        with TemporaryDirectory() as folder:
            paths = write_new_series(whole, Path(folder) / "series", scan)
            try:
                found = model.predict([Serie([str(path) for path in paths])])
            except ValueError as error:
                raise ConcordctError(f"Sybil refuses the scan: {' '.join(str(error).split())}") from error
        return [float(risk) for risk in found.scores[0]]

    return score
