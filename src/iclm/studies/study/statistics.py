"""The statistics of a study: intervals over seeds, paired comparisons over seeds × problems, many comparisons at once.

Student, "The probable error of a mean", Biometrika 6, 1908: the interval of a mean of few values.
A. B. Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1, 2007: resampling two crossed factors.
P. McCullagh, "Resampling and exchangeable arrays", Bernoulli 6, 2000: no such resampling has the right variance by itself.
F. E. Satterthwaite, "An approximate distribution of estimates of variance components", Biometrics Bulletin 2, 1946.
A. C. Davison and D. V. Hinkley, "Bootstrap Methods and their Application", 1997: percentile intervals; p with one added.
S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from iclm.errors import ConfigurationError

CONFIDENCE = 0.95
SEED = 20_240_204  # of all resamples: the same results give the same figures
_FARTHEST = 8.0  # standard deviations; the distribution function says no more beyond
_CELLS = 4_000_000  # of a matrix of draws that are worked on at once


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its 95% interval.

    Attributes:
        value: the mean.
        low, high: ends of the interval; None for one seed, which says nothing of the others.
        n: number of seeds.
    """

    value: float
    low: float | None
    high: float | None
    n: int


def mean_over_seeds(values: Sequence[float], *, bounds: tuple[float, float] | None = None) -> Mean:
    """Mean of one value a seed with Student's interval.

    With m the mean, s the standard deviation (n - 1 in its denominator) and t the quantile of Student's distribution with
    n - 1 degrees of freedom at (1 + 0.95) / 2:

        low, high = m ∓ t · s / sqrt(n)

    It says where the mean of further seeds (of initialisation, data order and training problems) lies on the same test
    questions.

    Args:
        values: one for each seed.
        bounds: what the mean cannot lie outside, as (0, 1) for a share; the interval is cut there.

    Raises:
        ConfigurationError: there is no value.
    """
    n = len(values)
    if n == 0:
        raise ConfigurationError("a mean over seeds needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return Mean(mean, None, None, 1)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(student.ppf((1 + CONFIDENCE) / 2, n - 1)) * spread / math.sqrt(n)
    least, most = bounds if bounds is not None else (-math.inf, math.inf)
    return Mean(mean, max(mean - half, least), min(mean + half, most), n)


@dataclass(frozen=True)
class Difference:
    """A paired difference of two accuracies.

    Attributes:
        value: method minus reference.
        low, high: its 95% interval.
        p: two-sided, of no difference.
        seeds, problems: how many the two have in common.
        resampled: "seeds and problems", or "problems" where there is one seed.
    """

    value: float
    low: float
    high: float
    p: float
    seeds: int
    problems: int
    resampled: str


def paired_bootstrap(
    right: np.ndarray, reference: np.ndarray, sizes: np.ndarray, *, resamples: int = 10_000
) -> Difference:
    """Difference of two methods' accuracies on the same problems and seeds, by a crossed bootstrap.

    With d[s, p] the difference in right answers of seed s to problem p and n[p] the questions of that problem, the difference is

        D = mean over s of  Σ_p d[s, p] / Σ_p n[p]

    A resample draws as many problems as there are, with replacement and whole (the questions of one problem are not
    independent), and, crossed with them, as many seeds: all seeds meet the same drawn problems, as all were tested on the same
    ones, and both methods the same problems and seeds. This is Owen's pigeonhole bootstrap. Its spread is not that of D: what
    neither seed nor problem explains is counted three times, and the spread of S seeds comes out as (S - 1) / S of itself.
    So each D* is moved towards or away from D until its variance is that of D (`variance_of_mean`) and its tails are Student's,
    with Φ the normal distribution function and t⁻¹ the quantile of Student's at df degrees of freedom:

        D* ← D + sqrt(V) · t⁻¹(Φ((D* - D) / sd D*); df)

    The interval is from the 2.5% to the 97.5% quantile of D*. With B resamples,

        p = min(1, 2 · min(1 + #{D* ≤ 0}, 1 + #{D* ≥ 0}) / (B + 1)),   and no less than 2^(1 - k),

    the smallest that a sign test can give where the two differ in k problems; with so few that this is above 0.05, the interval
    reaches to 0 too. With one seed the problems alone are resampled: nothing is then said of other seeds. One problem says
    nothing: the interval is all from -1 to 1.

    Args:
        right, reference: right answers to each problem by seed, int [seeds, problems]; rows are the same seeds.
        sizes: questions of each problem, int [problems].
        resamples: B.

    Raises:
        ConfigurationError: shapes that do not fit, no seed or no question.
    """
    right, reference, sizes = (np.asarray(array) for array in (right, reference, sizes))
    if right.ndim != 2 or right.shape != reference.shape or right.shape[1:] != sizes.shape:
        raise ConfigurationError(
            f"right {right.shape}, reference {reference.shape} and sizes {sizes.shape}: they must be [seeds, problems] "
            "twice and [problems]"
        )
    if not right.shape[0] or not sizes.sum():
        raise ConfigurationError("a comparison needs at least one common seed and one question")
    seeds, problems = right.shape
    difference = (right - reference).astype(np.float64)
    value = float(difference.sum() / (seeds * sizes.sum()))
    low, high, p = -1.0, 1.0, 1.0
    if problems > 1:
        drawn = _resampled(difference, sizes, resamples)
        variance, freedom = variance_of_mean((difference - value * sizes) / sizes.mean())
        spread = float(drawn.std())
        if spread > 0:
            places = norm.cdf(np.clip((drawn - value) / spread, -_FARTHEST, _FARTHEST))
            drawn = value + math.sqrt(variance) * student.ppf(places, freedom)
        below, above = int((drawn <= 0).sum()), int((drawn >= 0).sum())
        low, high = (float(end) for end in np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
        differing = int(difference.any(axis=0).sum())
        least = 2.0 ** (1 - max(differing, 1))
        if least > 1 - CONFIDENCE:
            low, high = min(low, 0.0), max(high, 0.0)
        p = min(1.0, max(2 * (1 + min(below, above)) / (resamples + 1), least))
    resampled = "seeds and problems" if seeds > 1 else "problems"
    return Difference(value, max(low, -1.0), min(high, 1.0), p, seeds, problems, resampled)


def difference_of_shares(first: np.ndarray, second: np.ndarray, sizes: np.ndarray, other_sizes: np.ndarray) -> Mean:
    """Difference of two shares of the same answers, each of questions of its own, with its 95% interval over seeds and problems.

    With a[s, p] of n[p] questions of problem p counted in the first and b[s, p] of m[p] in the second by seed s, N and M the
    numbers of all these questions and S the number of seeds,

        D = A - B = Σ a / (S N) - Σ b / (S M),   low, high = D ∓ t⁻¹(0.975; df) · sqrt(V)

    where V and df are those of the mean (`variance_of_mean`) of what each seed and problem adds to D by the first order, with A[s] and
    B[s] the shares of a seed,

        (a[s, p] - A[s] n[p]) P / N - (b[s, p] - B[s] m[p]) P / M + (A[s] - A) - (B[s] - B)

    Seeds that count alike everywhere, as those of a rule, are one.

    Args:
        first, second: counts by seed, int [seeds, problems]; rows are the same seeds, columns the same problems.
        sizes, other_sizes: questions of each problem, int [problems].

    Returns:
        The difference, of as many seeds as were given. One problem says nothing: the interval is all from -1 to 1.

    Raises:
        ConfigurationError: shapes that do not fit, no seed, or a share of no question.
    """
    first, second, sizes, other_sizes = (
        np.asarray(array, dtype=np.float64) for array in (first, second, sizes, other_sizes)
    )
    if (
        first.ndim != 2
        or not first.shape == second.shape == (len(first), *sizes.shape)
        or sizes.shape != other_sizes.shape
    ):
        raise ConfigurationError(
            f"counts {first.shape} and {second.shape}, sizes {sizes.shape} and {other_sizes.shape}: they must be "
            "[seeds, problems] twice and [problems] twice"
        )
    if not len(first) or not sizes.sum() or not other_sizes.sum():
        raise ConfigurationError("two shares need at least one seed, and a question each")
    seeds = len(first)
    if (first == first[0]).all() and (second == second[0]).all():
        first, second = first[:1], second[:1]
    asked = (sizes + other_sizes) > 0
    added = 0.0
    value = 0.0
    for sign, counts, own in ((1, first, sizes), (-1, second, other_sizes)):
        share = counts.sum(1, keepdims=True) / own.sum()
        value += sign * float(share.mean())
        added = added + sign * ((counts - share * own)[:, asked] / own[asked].mean() + share - share.mean())
    if asked.sum() < 2:
        return Mean(float(value), -1.0, 1.0, seeds)
    variance, freedom = variance_of_mean(np.asarray(added))
    half = float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    return Mean(float(value), max(value - half, -1.0), min(value + half, 1.0), seeds)


def variance_of_mean(values: np.ndarray) -> tuple[float, float]:
    """Variance of the mean of values that vary by seed, by problem and by both, and its degrees of freedom.

    With the mean squares of the two-way layout, MS_seeds = P Σ_s (x̄_s - x̄)² / (S - 1), MS_problems likewise, and MS_rest of what
    is left after both,

        V = (max(MS_seeds, MS_rest) + max(MS_problems, MS_rest) - MS_rest) / (S · P)

    A side whose mean square is below MS_rest counts as if it explained nothing, not as less. The degrees of freedom are
    Satterthwaite's, (Σ c_i MS_i)² / Σ (c_i MS_i)² / df_i, but no more than S - 1: trainings are what is repeated, and what few of
    them seem to agree on by chance is no evidence that all do. This errs on the careful side, the more so the fewer seeds there are.

    Args:
        values: float [seeds, problems], at least two problems; with one seed they vary by problem alone.
    """
    seeds, problems = values.shape
    mean = values.mean()
    by_problem = seeds * ((values.mean(0) - mean) ** 2).sum() / (problems - 1)
    if seeds == 1:
        return float(by_problem / problems), problems - 1
    by_seed = problems * ((values.mean(1) - mean) ** 2).sum() / (seeds - 1)
    left = values - values.mean(0) - values.mean(1)[:, None] + mean
    rest = (left**2).sum() / ((seeds - 1) * (problems - 1))
    by_seed, by_problem = max(by_seed, rest), max(by_problem, rest)
    total = by_seed + by_problem - rest
    if total <= 0:
        return 0.0, 1.0
    parts = ((by_seed, seeds - 1), (by_problem, problems - 1), (rest, (seeds - 1) * (problems - 1)))
    freedom = min(total**2 / sum(square**2 / freedom for square, freedom in parts), seeds - 1)
    return float(total / (seeds * problems)), float(freedom)


def _resampled(difference: np.ndarray, sizes: np.ndarray, resamples: int) -> np.ndarray:
    """D* of every resample, [resamples]."""
    seeds = len(difference)
    totals = np.vstack([difference, sizes[None]]).astype(np.float32)  # whole numbers: exact below 2^24
    weights = _weights(len(sizes), resamples)
    parts = [totals @ part.T.astype(np.float32) for part in np.array_split(weights, _parts(*weights.shape))]
    sums = np.concatenate(parts, axis=1).astype(np.float64)  # [seeds + 1, resamples]
    shares = sums[:-1] / sums[-1]
    if seeds == 1:
        return shares[0]
    source = np.random.default_rng([SEED, 1, seeds])
    drawn = source.integers(seeds, size=(seeds, resamples))
    return np.take_along_axis(shares, drawn, axis=0).mean(axis=0)


@lru_cache(maxsize=2)
def _weights(problems: int, resamples: int) -> np.ndarray:
    """How often each problem is drawn in each resample, uint8 [resamples, problems]: the same for all comparisons."""
    source = np.random.default_rng([SEED, 0, problems])
    weights = np.empty((resamples, problems), dtype=np.uint8)
    for part in np.array_split(weights, _parts(resamples, problems)):
        drawn = source.integers(problems, size=part.shape) + np.arange(len(part))[:, None] * problems
        part[:] = np.bincount(drawn.ravel(), minlength=part.size).reshape(part.shape)
    return weights


def _parts(rows: int, columns: int) -> int:
    """Into how many parts a matrix is cut so that none is large."""
    return min(rows, 1 + rows * columns // _CELLS)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values of a family of comparisons.

    Sorted as p(1) ≤ … ≤ p(m):   adjusted p(i) = max over j ≤ i of min(1, (m - j + 1) · p(j))

    Those below 0.05 are significant with a probability of at most 0.05 that any of them is wrong, whatever the dependence
    between them.

    Returns:
        The adjusted p-values in the order given.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
