"""Means with intervals, and the Fréchet distance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The distance of Gaussians fitted to features (N, D) and (M, D) (Heusel et al., arXiv 1706.08500, equation 6).

    With X and Y the centred features over sqrt(N - 1) and sqrt(M - 1), the trace of (C1 C2)^(1/2) is the nuclear norm
    of X Y^T: exact even with fewer pictures than features, where the covariances are singular, and fast enough for a
    jackknife.
    """
    centred = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (first, second)]
    roots = [np.linalg.qr(x, mode="r") for x in centred]  # X = Q R, and Q changes no singular value
    cross = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    spread = sum((x**2).sum() for x in centred)
    return float(((first.mean(0) - second.mean(0)) ** 2).sum() + spread - 2 * cross)


def bootstrap(
    values: Sequence[float], subjects: Sequence[str], weights: Sequence[float] | None = None
) -> dict[str, float | None]:
    """The mean over tasks, and its percentile interval over resampled subjects; a subject's tasks stay together.

    weights: the sum of the values is divided by their sum instead of the number of values. Without a second subject
    there is no interval.
    """
    names, place = np.unique(np.asarray(subjects), return_inverse=True)
    sums, counts = np.bincount(place, values), np.bincount(place, weights)
    interval: tuple = (None, None)
    if len(names) > 1:
        drawn = np.random.default_rng(0).integers(len(names), size=(RESAMPLES, len(names)))
        means = sums[drawn].sum(1) / counts[drawn].sum(1)
        interval = np.percentile(means, (50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE))).tolist()
    return {"mean": float(sums.sum() / counts.sum()), "low": interval[0], "high": interval[1]}


def jackknife(statistic: Callable[[np.ndarray], float], subjects: Sequence[str]) -> dict[str, float | None]:
    """A statistic of the tasks' indices, and its normal interval from leaving out one subject at a time (jackknife).

    For the Fréchet distance, which a bootstrap's repeated pictures would bias upwards, since they reduce variety.
    """
    from scipy.stats import norm

    subjects = np.asarray(subjects)
    names, everything = np.unique(subjects), np.arange(len(subjects))
    mean = statistic(everything)
    without = [everything[subjects != name] for name in names]
    if len(names) < 2 or min(map(len, without)) < 2:
        return {"mean": mean, "low": None, "high": None}
    left = np.array([statistic(indices) for indices in without])
    error = np.sqrt((len(names) - 1) / len(names) * ((left - left.mean()) ** 2).sum())
    reach = float(norm.ppf(0.5 + CONFIDENCE / 2) * error)
    return {"mean": mean, "low": mean - reach, "high": mean + reach}
