"""ComBat: batch effects taken out of the features instead of the image, the rival that users know.

Source: Johnson, Li & Rabinovic 2007, doi:10.1093/biostatistics/kxj037 (section 3); reference batch after Stein et al.
2015, doi:10.1186/s12920-015-0103-4. Fitted once, it applies to new subjects of the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from concordct.errors import ConcordctError

Array = NDArray[np.float64]

#: Relative change under which the parametric estimates have settled.
CONVERGED = 1e-4
#: Far more than it takes; reaching it means that the estimates wander.
MOST_STEPS = 1000


@dataclass(frozen=True, eq=False)
class Combat:
    """A fitted ComBat.

    Attributes
    ----------
    batches : names, in the order of the rows below.
    reference : the batch that stays as it is, None when all move to the grand mean.
    covariates : how many columns of covariates it was fitted with.
    grand_mean : [feature].
    spread : [feature] pooled standard deviation; 1 for constant features, which pass unchanged.
    slopes : [covariate, feature].
    gamma, delta : [batch, feature] location and scale (variance ratio) of each batch, after empirical Bayes.
    constant : [feature] bool, left unchanged.
    """

    batches: tuple[str, ...]
    reference: str | None
    covariates: int
    grand_mean: Array
    spread: Array
    slopes: Array
    gamma: Array
    delta: Array
    constant: NDArray[np.bool_]

    def apply(self, values: Array, batches: Sequence[str], covariates: Array | None = None) -> Array:
        """Harmonized features of the subjects fitted on or of new ones.

        Parameters
        ----------
        values : [subject, feature].
        batches : [subject] each among those fitted.
        covariates : [subject, covariate] the columns fitted with; None when it was fitted without.

        Raises
        ------
        ConcordctError : an unknown batch, or shapes that do not fit.
        """
        x = _design(values, batches, covariates)
        if values.shape[1] != self.grand_mean.size or x.shape[1] != self.covariates:
            raise ConcordctError(
                f"ComBat was fitted on {self.grand_mean.size} features and {self.covariates} covariates, found "
                f"{values.shape[1]} and {x.shape[1]}"
            )
        unknown = sorted(set(batches) - set(self.batches))
        if unknown:
            raise ConcordctError(f"ComBat has not been fitted on batch {unknown[0]}, only on {', '.join(self.batches)}")
        index = np.array([self.batches.index(batch) for batch in batches])
        centre = self.grand_mean + x @ self.slopes
        z = (values - centre) / self.spread
        # Johnson 2007, 3.3: Y* = sigma / delta* (Z - gamma*) + alpha + X beta
        found: Array = (z - self.gamma[index]) / np.sqrt(self.delta[index]) * self.spread + centre
        found[:, self.constant] = values[:, self.constant]
        return found

    def with_batch(self, values: Array, batch: str, covariates: Array | None = None) -> Combat:
        """The same ComBat that knows one more batch, from that batch's own subjects; nothing fitted before moves.

        Parameters
        ----------
        values : [subject, feature] two subjects or more of the new batch.
        batch : its name.
        covariates : [subject, covariate] the columns fitted with.

        Raises
        ------
        ConcordctError : a batch that is known already, fewer than two subjects, shapes that do not fit.
        """
        x = _design(values, [batch] * len(values), covariates)
        if batch in self.batches:
            raise ConcordctError(f"ComBat has been fitted on batch {batch} already")
        if len(values) < 2 or values.shape[1] != self.grand_mean.size or x.shape[1] != self.covariates:
            raise ConcordctError(
                f"batch {batch}: expected two subjects or more with {self.grand_mean.size} features and "
                f"{self.covariates} covariates, found {values.shape} and {x.shape[1]}"
            )
        z = (values - self.grand_mean - x @ self.slopes) / self.spread
        gamma, delta = np.zeros(self.spread.size), np.ones(self.spread.size)
        use = ~self.constant
        if use.any():
            gamma[use], delta[use] = _parametric(z[:, use])
        return replace(
            self,
            batches=(*self.batches, batch),
            gamma=np.vstack([self.gamma, gamma]),
            delta=np.vstack([self.delta, delta]),
        )


def fit_combat(
    values: Array,
    batches: Sequence[str],
    covariates: Array | None = None,
    *,
    parametric: bool = True,
    reference: str | None = None,
) -> Combat:
    """Fit ComBat.

    Parameters
    ----------
    values : [subject, feature], all defined.
    batches : [subject] scanner, kernel or site of each; two batches or more of two subjects or more.
    covariates : [subject, covariate] numbers to be kept (categories as 0/1 columns); None for none.
    parametric : normal and inverse gamma priors (Johnson 2007, 3.2), or the non-parametric priors of its section 3.3.
    reference : batch that stays as it is.

    Returns
    -------
    Combat, whose `apply` harmonizes.

    Raises
    ------
    ConcordctError : undefined values, one batch only, a batch of one, an unknown reference, covariates that batches
        determine.
    """
    x = _design(values, batches, covariates)
    names = tuple(sorted(set(batches)))
    index = np.array([names.index(batch) for batch in batches])
    counts = np.bincount(index)
    if len(names) < 2 or counts.min() < 2:
        found = ", ".join(f"{name} ({count})" for name, count in zip(names, counts, strict=True))
        raise ConcordctError(f"ComBat needs two batches or more of two subjects or more, found {found}")
    if reference is not None and reference not in names:
        raise ConcordctError(f"no reference batch {reference} among {', '.join(names)}")
    member = np.eye(len(names))[index]
    design = np.concatenate([member, x], axis=1)
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise ConcordctError("ComBat cannot separate the covariates from the batches: they determine each other")
    base = names.index(reference) if reference is not None else None

    # Johnson 2007, 3.1: least squares, grand mean weighted by batch, pooled variance over n
    beta = np.linalg.lstsq(design, values, rcond=None)[0]
    residual = values - design @ beta
    grand_mean = counts / counts.sum() @ beta[: len(names)] if base is None else beta[base]
    pooled = (residual**2 if base is None else residual[index == base] ** 2).mean(axis=0)
    constant = pooled <= (1e-10 * np.maximum(np.abs(grand_mean), 1e-300)) ** 2
    spread = np.where(constant, 1.0, np.sqrt(pooled))
    slopes = beta[len(names) :]
    z = (values - grand_mean - x @ slopes) / spread

    gamma, delta = np.zeros((len(names), values.shape[1])), np.ones((len(names), values.shape[1]))
    use = ~constant
    for batch in range(len(names)):
        if batch == base or not use.any():
            continue
        part = z[index == batch][:, use]
        estimate = _parametric if parametric else _nonparametric
        gamma[batch, use], delta[batch, use] = estimate(part)
    return Combat(names, reference, x.shape[1], grand_mean, spread, slopes, gamma, delta, constant)


def _parametric(z: Array) -> tuple[Array, Array]:
    """Posterior location and scale of one batch ([subject, feature]) under normal and inverse gamma priors."""
    n = len(z)
    gamma_hat, delta_hat = z.mean(axis=0), z.var(axis=0, ddof=1)
    if gamma_hat.size < 2:
        return gamma_hat, delta_hat
    gamma_bar, tau2 = gamma_hat.mean(), gamma_hat.var(ddof=1)
    mean, variance = delta_hat.mean(), delta_hat.var(ddof=1)
    # Johnson 2007, 3.2: moments of the inverse gamma prior
    lam = (mean**2 + 2 * variance) / variance
    theta = (mean**3 + mean * variance) / variance
    gamma, delta = gamma_hat, delta_hat
    for _ in range(MOST_STEPS):
        # Johnson 2007, 3.2: conditional posterior means of gamma and delta^2
        new_gamma = (n * tau2 * gamma_hat + delta * gamma_bar) / (n * tau2 + delta)
        new_delta = (theta + 0.5 * ((z - new_gamma) ** 2).sum(axis=0)) / (n / 2 + lam - 1)
        change = max(_change(new_gamma, gamma), _change(new_delta, delta))
        gamma, delta = new_gamma, new_delta
        if change < CONVERGED:
            return gamma, delta
    raise ConcordctError(f"ComBat's estimates did not settle within {MOST_STEPS} steps")


def _change(new: Array, old: Array) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.nanmax(np.abs(new - old) / np.abs(old)))


def _nonparametric(z: Array) -> tuple[Array, Array]:
    """Posterior location and scale of one batch, the other features' estimates being the prior (Johnson 2007, 3.3)."""
    n = len(z)
    gamma_hat, delta_hat = z.mean(axis=0), z.var(axis=0, ddof=1)
    if gamma_hat.size < 2:
        return gamma_hat, delta_hat
    gamma, delta = np.empty_like(gamma_hat), np.empty_like(delta_hat)
    for feature in range(gamma_hat.size):
        others = np.arange(gamma_hat.size) != feature
        g, d = gamma_hat[others], delta_hat[others]
        squares = ((z[:, feature, None] - g) ** 2).sum(axis=0)
        log_likelihood = -n / 2 * np.log(2 * np.pi * d) - squares / (2 * d)
        weight = np.exp(log_likelihood - log_likelihood.max())
        gamma[feature] = (g * weight).sum() / weight.sum()
        delta[feature] = (d * weight).sum() / weight.sum()
    return gamma, delta


def _design(values: Array, batches: Sequence[str], covariates: Array | None) -> Array:
    if values.ndim != 2 or len(batches) != len(values):
        raise ConcordctError(f"ComBat takes [subject, feature] and a batch each, found {values.shape}, {len(batches)}")
    if not np.isfinite(values).all():
        wrong = int((~np.isfinite(values)).any(axis=0).sum())
        raise ConcordctError(f"ComBat takes defined features only, found {wrong} with undefined or infinite values")
    if covariates is None:
        return np.zeros((len(values), 0))
    if covariates.ndim != 2 or len(covariates) != len(values) or not np.isfinite(covariates).all():
        raise ConcordctError(f"covariates are finite [subject, covariate] for {len(values)}, found {covariates.shape}")
    return covariates.astype(np.float64)
