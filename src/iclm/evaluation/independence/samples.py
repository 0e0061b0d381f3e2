"""What the measures share: checked, standardised and reduced samples, and the p-value of a permutation test.

A permutation test asks how often the rows of y, shuffled against those of x, look at least as dependent as the pairs
given: p = (1 + as high) / (1 + permutations). It is exact where rows are independent of each other, whatever the bias of
the estimate (B. Phipson, G. Smyth, "Permutation p-values should never be zero", Stat. Appl. Genet. Mol. Biol. 9, 2010).
Where groups of rows are not (the questions of one problem), groups are shuffled as a whole, each against one of as many rows:
then it is exact where the groups are independent of each other and of one kind. What both sides owe to the place of a row in its group
(the first question is always of one kind) is kept by such a shuffle, and does not count as dependence.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from sklearn.decomposition import PCA

from iclm.errors import ConfigurationError

_RELATIVE_ZERO = 1e-12


def check_samples(name: str, value: Any) -> np.ndarray:
    """One side as a finite float64 array [n, d]; [n] becomes [n, 1].

    Raises:
        ConfigurationError: another shape, or a value that is not finite.
    """
    array = np.asarray(value, dtype=np.float64)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] == 0:
        raise ConfigurationError(f"{name} of shape {list(np.shape(value))}: samples must have the shape [n, d]")
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise ConfigurationError(f"{name} has {bad} of {array.size} values that are not finite: drop those rows first")
    return array


def check_pair(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both sides as finite float64 arrays [n, d] of the same n; raises `ConfigurationError`."""
    left, right = check_samples("x", x), check_samples("y", y)
    if len(left) != len(right):
        raise ConfigurationError(f"x has {len(left)} rows and y has {len(right)}: rows must be paired")
    return left, right


def check_permutations(permutations: int) -> None:
    """Raise `ConfigurationError` unless there is at least 1 permutation."""
    if permutations < 1:
        raise ConfigurationError(f"permutations={permutations}: the baseline needs at least 1, for example 20")


class Shuffles:
    """Orders of n rows for a permutation test, which keep the groups of rows that belong together.

    A group of a size that no other has stays where it is, which makes the test more careful than it needs to be.

    Attributes:
        distinct: how many different orders there are, counted up to 20 groups of a size. Few of them leave no small p-value, one
            leaves 1.0.
    """

    def __init__(self, n: int, groups: Sequence[Hashable] | np.ndarray | None = None) -> None:
        """Prepare for n rows.

        Args:
            groups: the group of each row, [n]; None means that each is one of its own.

        Raises:
            ConfigurationError: groups that are not n.
        """
        if groups is not None and len(groups) != n:
            raise ConfigurationError(f"{len(groups)} groups for {n} examples: give one for each")
        members: dict[Hashable, list[int]] = {}
        for row, group in enumerate(range(n) if groups is None else groups):
            members.setdefault(group, []).append(row)
        sizes: dict[int, list[list[int]]] = {}
        for rows in members.values():
            sizes.setdefault(len(rows), []).append(rows)
        self.n = n
        self.blocks = [np.array(rows) for rows in sizes.values()]
        self.distinct = math.prod(math.factorial(min(len(block), 20)) for block in self.blocks)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """A random order [n]: every group takes the place of one of as many rows, row for row."""
        order = np.arange(self.n)
        for block in self.blocks:
            order[block] = block[rng.permutation(len(block))]
        return order


def varying(samples: np.ndarray) -> np.ndarray:
    """Which columns of [n, d] are not constant, bool [d]; what is left by rounding counts as constant."""
    if len(samples) == 0:
        return np.zeros(samples.shape[1], dtype=bool)
    return np.ptp(samples, axis=0) > _RELATIVE_ZERO * np.abs(samples).max(axis=0)


def standardise(samples: np.ndarray, *, each: bool = True) -> np.ndarray:
    """Columns at zero mean and unit variance (one common scale if not `each`), without constant columns."""
    kept = samples[:, varying(samples)]
    if kept.shape[1] == 0:
        return kept
    # Divided first: the squares of very large or very small states would leave the range of float64.
    kept = kept / np.abs(kept).max(axis=0 if each else None)
    kept = kept - kept.mean(axis=0)
    return kept / (kept.std(axis=0) if each else kept.std())


def principal_components(samples: np.ndarray, count: int) -> np.ndarray:
    """The leading `count` principal components at unit variance; fewer where the samples span fewer directions."""
    if samples.shape[1] == 0:
        return samples
    model = PCA(n_components=min(count, *samples.shape), svd_solver="full").fit(samples)
    spanned = model.explained_variance_ratio_ > _RELATIVE_ZERO
    components = model.transform(samples)[:, spanned]
    return components / components.std(axis=0)


def permutation_p(permuted: np.ndarray, statistic: float) -> float:
    """(1 + permutations that reach the statistic) / (1 + permutations); equal up to rounding counts as reached."""
    return (1 + int(np.sum(permuted >= statistic - _RELATIVE_ZERO))) / (1 + len(permuted))
