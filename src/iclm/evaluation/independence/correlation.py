"""Pearson correlation of equal dimensions.

    r_d = cov(x_d, y_d) / ( sd(x_d) sd(y_d) )       for each dimension d
    mean |r| over dimensions, beside what shuffled pairs give

Gendron et al., arXiv 2402.02636, report this figure as "partial correlation" of the modules' states; nothing is partialled
out in it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from iclm.errors import ConfigurationError
from iclm.evaluation.independence.samples import (
    Shuffles,
    check_pair,
    check_permutations,
    permutation_p,
    standardise,
    varying,
)


@dataclass(frozen=True)
class CorrelationReport:
    """Correlation of dimension d of x with dimension d of y, over all d."""

    mean: float
    """Mean |r| over dimensions, 0 to 1; a dimension that is constant on a side counts as 0."""
    maximum: float
    """Largest |r| of a dimension."""
    permuted_mean: float
    """Mean |r| of shuffled pairs: the figure under independence, about 0.8 / sqrt(n)."""
    permuted_sd: float
    """Standard deviation of mean |r| over permutations."""
    p_value: float
    """(1 + permutations with at least this mean |r|) / (1 + permutations); never 0."""
    n: int
    """Number of pairs."""
    dims: int
    """Number of dimensions, constant ones included."""
    permutations: int
    """Number of permutations."""

    def to_dict(self) -> dict[str, Any]:
        """All figures under their names, ready for JSON."""
        return asdict(self)


def correlation_report(
    x: Any, y: Any, *, groups: Sequence[Any] | np.ndarray | None = None, permutations: int = 200, seed: int = 0
) -> CorrelationReport:
    """Correlation of equal dimensions, which the paper calls partial correlation.

    - Bias: upwards, as |r| is never negative: independent pairs give about 0.8 / sqrt(n), see `permuted_mean`. The largest
      |r| grows with the number of dimensions too.
    - Useful range: any n from some tens on. It is blind to all but linear dependence of *equal* dimensions: states that
      are one another's rotation, or y = x², pass as independent. A high figure shows dependence, a low one shows nothing.
    - Rows are taken as independent of each other (one a text), or groups of them (`groups`).
    - Cost: O(n · d) a permutation.

    Args:
        x: samples of the first variable, [n, d] (or [n]).
        y: samples of the second variable, of the same shape; row i paired with row i of x.
        groups: as for `hsic_test`.
        permutations: number of shuffles, at least 1.
        seed: seed of the shuffles.

    Raises:
        ConfigurationError: shapes that are not equal, n < 2, a value that is not finite, or no permutation.
    """
    check_permutations(permutations)
    left, right = check_pair(x, y)
    n, dims = left.shape
    if right.shape[1] != dims:
        raise ConfigurationError(f"x has {dims} dimensions and y has {right.shape[1]}: equal dimensions are compared")
    if n < 2:
        raise ConfigurationError(f"n={n} pairs: a correlation needs at least 2")
    both = varying(left) & varying(right)
    left, right = standardise(left[:, both]), standardise(right[:, both])
    found = _absolute(left, right)
    statistic = float(found.sum() / dims)
    rng, shuffles = np.random.default_rng(seed), Shuffles(n, groups)
    permuted = np.array([_absolute(left, right[shuffles.draw(rng)]).sum() / dims for _ in range(permutations)])
    return CorrelationReport(
        mean=statistic,
        maximum=float(found.max(initial=0.0)),
        permuted_mean=float(permuted.mean()),
        permuted_sd=float(permuted.std()),
        p_value=permutation_p(permuted, statistic),
        n=n,
        dims=dims,
        permutations=permutations,
    )


def _absolute(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|r| of each column of standardised samples, [d]."""
    return np.minimum(np.abs(np.einsum("nd,nd->d", x, y)) / len(x), 1.0)
