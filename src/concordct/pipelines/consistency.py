"""Downstream consistency: does a model that reads scans say the same after standardization? LTDiff++, section VI.

    consistency(pairs, model, score, split="test")

`score` is any callable from a Volume to numbers or labels, such as a risk for each of the years 1 to 6 (`sybil`). It is
asked three times for each pair: on the target, on the source, and on the source standardized.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct.agreement.bootstrap import draw_subjects, percentiles
from concordct.errors import ConcordctError
from concordct.judging.case import cases_of_manifest, open_pair
from concordct.judging.features import number
from concordct.judging.stages import standardized, standardizer_for
from concordct.methods.models import Model
from concordct.methods.standardizer import Mode
from concordct.pipelines.programs import Program, compared, program
from concordct.volumes.new_series import INTERCEPT, SimulatedScan, write_new_series
from concordct.volumes.volume import Volume

#: Bootstrap samples of subjects.
REPEATS = 1000


@dataclass(frozen=True, eq=False)
class Consistency:
    """Scores of every pair, [pair, score], and how far they lie from the target's.

    Attributes
    ----------
    names : [score] what the program calls them; "Dice of label 1" for labels, whose target has 1.
    source, standardized, target : [pair, score].
    before, after : [score] mean absolute difference to the target's score, without and with standardization.
    gain : [score] before - after; above 0 where standardization brings the scores closer.
    gain_interval : [2, score] 95 % interval of the gain over subjects; NaN with a single subject.
    """

    subjects: tuple[str, ...]
    names: tuple[str, ...]
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
    score: Program,
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
    found, names = [], set[tuple[str, ...]]()
    for case in cases:
        pair = open_pair(case, allow=allow)
        after = standardized(
            case.source, pair.source, standardizer_for(case.source, model, mode=mode), seed=seed, allow=allow
        )
        stages = (pair.source, after, pair.target)
        called, three = compared([score(volume) for volume in stages], pair.source)
        names.add(called)
        found.append(three)
    if len(names) != 1:
        raise ConcordctError(f"expected as many scores for every scan, found {sorted(map(len, names))}")
    values = np.array(found)  # [pair, 3, score]
    if not np.isfinite(values).all():
        raise ConcordctError("expected finite scores, found some that are not")
    far = np.abs(values[:, :2] - values[:, 2:])  # [pair, before and after, score]
    subjects = tuple(case.subject for case in cases)
    mean = far.mean(axis=0)
    return Consistency(
        subjects,
        names.pop(),
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


def sybil(name: str = "sybil_ensemble") -> Callable[[Volume], list[float]]:
    """Sybil's risk of lung cancer within 1 to 6 years (Mikhael et al. 2023, doi:10.1200/JCO.22.01345) as a program.

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


def asked(text: str) -> Program:
    """The program that a text names: "sybil", a command with {input}, or module:function."""
    return sybil() if text == "sybil" else program(text)


def downstream_rows(found: Consistency, model: str) -> list[dict[str, Any]]:
    """A row for each score, ready for JSON: how far from the target's before and after, and the gain."""
    return [
        {
            "model": model,
            "name": name,
            "before": number(found.before[k]),
            "after": number(found.after[k]),
            "gain": number(found.gain[k]),
            "interval": [number(found.gain_interval[0, k]), number(found.gain_interval[1, k])],
        }
        for k, name in enumerate(found.names)
    ]
