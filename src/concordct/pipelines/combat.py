"""ComBat on features files: trained once, saved as JSON, applied to new subjects and to sites that it has not seen.

A table of sites says which image comes from where: columns `image` and `site`, and numbers to be kept (age, volume) as
further columns. A site that the training did not hold is estimated from its own subjects, everything else staying as it
was trained; it takes two subjects, and a few dozen to be worth it.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from concordct import __version__
from concordct.agreement.combat import Combat, fit_combat
from concordct.errors import ConcordctError
from concordct.radiomics.table import FeatureRows, class_of, read_rows, write_rows
from concordct.volumes.place import atomic_file

Array = NDArray[np.float64]
IMAGE, SITE = "image", "site"
ARRAYS = ("grand_mean", "spread", "slopes", "gamma", "delta")


@dataclass(frozen=True, eq=False)
class Sites:
    """Site and covariates by image."""

    site: dict[str, str]
    covariates: dict[str, tuple[float, ...]]
    names: tuple[str, ...]

    def of(self, rows: FeatureRows, origin: Path) -> tuple[list[str], Array | None]:
        """[row] sites, and [row, covariate] or None.

        Raises
        ------
        ConcordctError : an image that the table does not hold.
        """
        images = [image for image, _ in rows.keys]
        unknown = next((image for image in images if image not in self.site), None)
        if unknown is not None:
            raise ConcordctError(f"{origin}: expected a site for image {unknown}, found none")
        covariates = np.array([self.covariates[image] for image in images]) if self.names else None
        return [self.site[image] for image in images], covariates


def read_sites(path: Path) -> Sites:
    """A table of sites.

    Raises
    ------
    ConcordctError : unreadable, no column image or site, an image twice, a covariate that is not a number.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            table = csv.DictReader(stream)
            columns, rows = list(table.fieldnames or ()), list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConcordctError(f"cannot read sites from {path}: {error}") from error
    if IMAGE not in columns or SITE not in columns or not rows:
        raise ConcordctError(f"{path}: expected columns {IMAGE} and {SITE}, found {', '.join(columns) or 'none'}")
    names = tuple(name for name in columns if name not in (IMAGE, SITE))
    site: dict[str, str] = {}
    covariates: dict[str, tuple[float, ...]] = {}
    for number, row in enumerate(rows, start=2):
        image = row[IMAGE]
        if image in site:
            raise ConcordctError(f"{path}: image {image} stands twice, again in row {number}")
        try:
            covariates[image] = tuple(float(row[name]) for name in names)
        except (TypeError, ValueError):
            raise ConcordctError(f"{path}, row {number}: expected numbers in {', '.join(names)}, found none") from None
        site[image] = row[SITE]
    return Sites(site, covariates, names)


@dataclass(frozen=True, eq=False)
class Harmonizer:
    """A trained ComBat with the names of its features and covariates."""

    combat: Combat
    features: tuple[str, ...]
    covariates: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        found = self.combat
        return {
            "software": f"concordct {__version__}",
            "method": "ComBat (doi:10.1093/biostatistics/kxj037)",
            "batches": list(found.batches),
            "reference": found.reference,
            "features": list(self.features),
            "covariates": list(self.covariates),
            "constant": [bool(value) for value in found.constant],
            **{name: getattr(found, name).tolist() for name in ARRAYS},
        }

    @staticmethod
    def from_json(found: dict[str, Any], origin: Path) -> Harmonizer:
        """What `to_json` wrote.

        Raises
        ------
        ConcordctError : something else, or parts that do not fit each other.
        """
        try:
            features, covariates = tuple(found["features"]), tuple(found["covariates"])
            arrays = {name: np.array(found[name], dtype=np.float64) for name in ARRAYS}
            arrays["slopes"] = arrays["slopes"].reshape(len(covariates), len(features))
            combat = Combat(
                batches=tuple(found["batches"]),
                reference=found["reference"],
                covariates=len(covariates),
                constant=np.array(found["constant"], dtype=bool),
                **arrays,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConcordctError(f"{origin}: expected a trained ComBat, found something else") from error
        shape = (len(combat.batches), len(features))
        if combat.gamma.shape != shape or combat.delta.shape != shape or combat.spread.shape != shape[1:]:
            raise ConcordctError(f"{origin}: expected estimates of {shape}, found {combat.gamma.shape}")
        return Harmonizer(combat, features, covariates)


def train_combat(
    features: Path, sites: Path, output: Path, *, reference: str | None = None, overwrite: bool = False
) -> tuple[Harmonizer, tuple[str, ...]]:
    """Fit ComBat on a features file and save it.

    Parameters
    ----------
    sites : table of sites, see above.
    output : JSON.
    reference : site that stays as it is; None moves all to their mean.

    Returns
    -------
    The harmonizer, and the features left out because they are undefined somewhere.

    Raises
    ------
    ConcordctError : wrong files, fewer than two sites, no feature defined everywhere, an output that exists.
    """
    rows, table = read_rows(features), read_sites(sites)
    where, covariates = table.of(rows, sites)
    defined: NDArray[np.bool_] = np.asarray(np.isfinite(rows.values).all(axis=0))
    if not defined.any():
        raise ConcordctError(f"{features}: expected a feature that is defined in every row, found none")
    combat = fit_combat(rows.values[:, defined], where, covariates, reference=reference)
    names = tuple(name for name, keep in zip(rows.names, defined, strict=True) if keep)
    harmonizer = Harmonizer(combat, names, table.names)
    with atomic_file(output, overwrite=overwrite) as aside:
        aside.write_text(json.dumps(harmonizer.to_json()) + "\n", encoding="utf-8")
    return harmonizer, tuple(name for name, keep in zip(rows.names, defined, strict=True) if not keep)


def read_combat(path: Path) -> Harmonizer:
    """A trained ComBat from its file.

    Raises
    ------
    ConcordctError : unreadable, or something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConcordctError(f"{path}: expected a trained ComBat, found no JSON") from error
    if not isinstance(found, dict):
        raise ConcordctError(f"{path}: expected a trained ComBat, found something else")
    return Harmonizer.from_json(found, path)


def apply_combat(model: Path, features: Path, sites: Path, output: Path, *, overwrite: bool = False) -> tuple[str, ...]:
    """Harmonize a features file with a trained ComBat.

    Returns
    -------
    Sites that the training did not hold; each was estimated from its own rows of this file.

    Raises
    ------
    ConcordctError : wrong files, features or covariates that are missing, values that are undefined, an unseen site
        with a single row, an output that exists.
    """
    harmonizer, rows, table = read_combat(model), read_rows(features), read_sites(sites)
    missing = sorted(set(harmonizer.features) - set(rows.names))
    if missing:
        raise ConcordctError(f"{features}: expected feature {missing[0]} ({len(missing)} are missing), found none")
    if set(table.names) != set(harmonizer.covariates):
        raise ConcordctError(
            f"{sites}: expected covariates {', '.join(harmonizer.covariates) or 'none'}, found "
            f"{', '.join(table.names) or 'none'}"
        )
    where, covariates = table.of(rows, sites)
    if covariates is not None:
        covariates = covariates[:, [table.names.index(name) for name in harmonizer.covariates]]
    values = rows.values[:, [rows.names.index(name) for name in harmonizer.features]]
    combat, unseen = harmonizer.combat, []
    for site in sorted(set(where) - set(combat.batches)):
        own = np.array([one == site for one in where])
        combat = combat.with_batch(values[own], site, None if covariates is None else covariates[own])
        unseen.append(site)
    found = combat.apply(values, where, covariates)
    classes = tuple(class_of(name) for name in harmonizer.features)
    made = FeatureRows(rows.keys, rows.subjects, harmonizer.features, classes, found)
    write_rows(output, made, overwrite=overwrite)
    return tuple(unseen)
