"""The Hilbert-Schmidt independence criterion: the cross-covariance of two sides in the feature spaces of Gaussian kernels.

With K_ij = exp(−|x_i − x_j|² / 2σ_x²) for i ≠ j and 0 on the diagonal, L alike for y, and both U-centred,

    Ã_ij = K_ij − Σ_l K_il / (n−2) − Σ_l K_lj / (n−2) + Σ_lm K_lm / ((n−1)(n−2))   for i ≠ j,   Ã_ii = 0

    ⟨Ã, B̃⟩ / (n(n−3))                     the unbiased estimate of HSIC(x, y)
    statistic = ⟨Ã, B̃⟩ / ( |Ã| |B̃| )      0 on average where x and y are independent, 1 where they are identical

Without the diagonal, as each point is trivially like itself: with it the figure of independent states grows with their
dimensions. HSIC is 0 if and only if x and y are independent, of any form of dependence.

    A. Gretton et al., "Measuring statistical dependence with Hilbert-Schmidt norms", ALT 2005.
    A. Gretton et al., "A kernel statistical test of independence", NIPS 2008 (shuffled pairs).
    L. Song et al., "Feature selection via dependence maximization", JMLR 13, 2012 (the unbiased estimate).
    G. Székely, M. Rizzo, "Partial distance correlation with methods for dissimilarities", Ann. Stat. 42, 2014 (U-centring).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist, squareform

from iclm.errors import ConfigurationError
from iclm.evaluation.independence.samples import Shuffles, check_pair, check_permutations, permutation_p, standardise


@dataclass(frozen=True)
class HSICReport:
    """Normalised HSIC beside what shuffled pairs give."""

    statistic: float
    """Normalised HSIC of the pairs as given, −1 to 1; about 0 where independent, 1 where identical."""
    permuted_mean: float
    """Mean over permutations of y."""
    permuted_sd: float
    """Standard deviation over those permutations."""
    p_value: float
    """(1 + permutations with at least this statistic) / (1 + permutations); never 0."""
    n: int
    """Number of pairs."""
    permutations: int
    """Number of permutations."""

    def to_dict(self) -> dict[str, Any]:
        """All figures under their names, ready for JSON."""
        return asdict(self)


def hsic_test(
    x: Any, y: Any, *, groups: Sequence[Any] | np.ndarray | None = None, permutations: int = 200, seed: int = 0
) -> HSICReport:
    """Test of independence by the normalised Hilbert-Schmidt criterion with Gaussian kernels.

    Every dimension is brought to unit variance; σ is the median distance of different rows (their mean distance where
    more than half are equal).

    - Bias: none of note; the statistic scatters around 0 for independent pairs, and is slightly negative as often as not.
    - Useful range: as a test, some tens of pairs and up to some tens of dimensions. As a figure it compares pairs of the
      same dimensions only: it is no mutual information, and dependence of given nats gives less of it in more dimensions,
      where all distances become alike.
    - Rows are taken as independent of each other (one a text), or groups of them (`groups`).
    - Cost: O(n² (d + permutations)) time, n² memory: seconds for n = 1,000. A permutation reorders the kernel, which is
      computed once.

    Args:
        x: samples of the first variable, [n, d1] (or [n]).
        y: samples of the second variable, [n, d2] (or [n]), row i paired with row i of x.
        groups: group of each row, [n], where rows of one (the questions of a problem) are not independent: they are shuffled
            together.
        permutations: number of shuffles, at least 1.
        seed: seed of the shuffles.

    Returns:
        The figures; a statistic of 0 with p = 1 where x or y is constant.

    Raises:
        ConfigurationError: shapes that do not pair, n < 4, a value that is not finite, or no permutation.
    """
    check_permutations(permutations)
    left, right = check_pair(x, y)
    n = len(left)
    if n < 4:
        raise ConfigurationError(f"n={n} pairs: HSIC needs at least 4")
    first, second = _unit_kernel(left), _unit_kernel(right)
    statistic = float(np.vdot(first, second))
    rng, shuffles = np.random.default_rng(seed), Shuffles(n, groups)
    permuted = np.empty(permutations)
    for number in range(permutations):
        order = shuffles.draw(rng)
        permuted[number] = np.vdot(first, second[order][:, order])
    return HSICReport(
        statistic=min(1.0, statistic),
        permuted_mean=float(permuted.mean()),
        permuted_sd=float(permuted.std()),
        p_value=permutation_p(permuted, statistic),
        n=n,
        permutations=permutations,
    )


def _unit_kernel(samples: np.ndarray) -> np.ndarray:
    """U-centred Gaussian kernel [n, n] of samples [n, d] at norm 1; zeros where it says nothing, as for constants."""
    n, scaled = len(samples), standardise(samples)
    if scaled.shape[1] == 0:
        return np.zeros((n, n))
    # of differences, not of products: equal rows are at distance 0, not at one of rounding
    distances = pdist(scaled, "sqeuclidean")
    width = np.median(distances) or distances.mean()
    kernel = squareform(np.exp(-distances / (2 * width)))
    sums = kernel.sum(0)
    centred = kernel - (sums[:, None] + sums[None, :]) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centred, 0.0)
    norm = np.linalg.norm(centred)
    # a single row apart from equal ones is centred away, but for its rounding
    return centred / norm if norm > 1e-12 * n else np.zeros((n, n))
