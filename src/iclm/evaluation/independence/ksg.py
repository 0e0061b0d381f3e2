"""Mutual information from nearest neighbours.

Kraskov-Stögbauer-Grassberger mutual information asks, around each point i, how far the k-th nearest neighbour is in
the joint space (max norm), and counts how many points are closer than that in x alone and in y alone:

        y │    ·   ┌───┐         n_x: points in the vertical band    ε_i: half the side of the square that
          │ ·      │ i·│ ·       n_y: points in the horizontal band       the k-th neighbour lies on
          │        └───┘
          └──────────────── x    I(x; y) = ψ(k) + ψ(n) − mean_i [ ψ(n_x + 1) + ψ(n_y + 1) ]     nats

If x and y are independent the bands hold many points that the square does not, and the figure is near 0.

    A. Kraskov, H. Stögbauer, P. Grassberger, "Estimating mutual information", Phys. Rev. E 69, 066138, 2004 (eq. 8).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import digamma

from iclm.errors import ConfigurationError
from iclm.evaluation.independence.samples import (
    Shuffles,
    check_pair,
    check_permutations,
    permutation_p,
    principal_components,
    standardise,
)

_JITTER = 1e-10


@dataclass(frozen=True)
class MutualInformationReport:
    """An estimate of mutual information beside what the estimator gives for the same states in shuffled pairs."""

    estimate: float
    """KSG mutual information of the pairs as given, in nats."""
    permuted_mean: float
    """Mean of the estimate over permutations of y: the figure under independence, bias included."""
    permuted_sd: float
    """Standard deviation of the estimate over those permutations."""
    p_value: float
    """(1 + permutations with at least this estimate) / (1 + permutations); never 0."""
    n: int
    """Number of pairs."""
    k: int
    """Neighbours of the estimator."""
    permutations: int
    """Number of permutations."""
    pca: int | None
    """Dimensions asked for of each side's PCA; None for no PCA."""
    dims_x: int
    """Dimensions of x that the estimate used: after PCA, without constant ones."""
    dims_y: int
    """Dimensions of y that the estimate used."""

    def to_dict(self) -> dict[str, Any]:
        """All figures under their names, ready for JSON."""
        return asdict(self)


def ksg_mutual_information(x: Any, y: Any, *, k: int = 3, pca: int | None = None, seed: int = 0) -> float:
    """Mutual information of paired samples by the Kraskov-Stögbauer-Grassberger estimator 1, in nats.

    Every dimension is first brought to zero mean and unit variance (mutual information does not change, the neighbour
    search does). Then a jitter of 1e-10 standard deviations is added: the estimator assumes densities, and repeated
    samples (the same prompt twice, states rounded to bfloat16) would have neighbours at distance 0. The jitter is drawn
    apart for x and y, so that it breaks the ties without adding information: identical coin flips give log 2.

    - Bias: about none for independent samples in few dimensions, where the estimate scatters around 0 and may be
      slightly negative (it is not clipped). It falls short for strong dependence: it never exceeds ψ(n) − ψ(k) − 1/k,
      6.3 nats for n = 2,000 and k = 3. Dependence spread over many dimensions is underestimated.
      Larger k: less scatter, more bias.
    - Useful range: n of some hundreds at least, and up to about 10 dimensions a side; reduce wider states with `pca`.
      PCA can only lose information: the figure is then that of the leading components.
    - Samples are taken as independent of each other. Tokens of one text are not.
    - Cost: O(n log n) in few dimensions, towards O(n²) in 10 and more; O(n d²) for the PCA.

    Args:
        x: samples of the first variable, [n, d1] (or [n]).
        y: samples of the second variable, [n, d2] (or [n]), row i paired with row i of x.
        k: number of neighbours, at least 1 and below n.
        pca: reduce each side to its leading `pca` principal components; None for none.
        seed: seed of the jitter.

    Returns:
        The estimate in nats; 0.0 where x or y is constant, as a constant tells nothing.

    Raises:
        ConfigurationError: shapes that do not pair, n <= k, a value that is not finite, or `pca` below 1.
    """
    left, right = _prepare_pair(x, y, k=k, pca=pca, seed=seed)
    return _ksg(left, right, k)


def mutual_information_report(
    x: Any,
    y: Any,
    *,
    k: int = 3,
    pca: int | None = None,
    groups: Sequence[Any] | np.ndarray | None = None,
    permutations: int = 20,
    seed: int = 0,
) -> MutualInformationReport:
    """KSG mutual information together with its figure under independence.

    KSG is biased in several dimensions, so 0 is not where independent states of the same kind land. The rows of y are
    shuffled against those of x `permutations` times, which keeps each side as it is and cuts their tie; scaling, PCA
    and jitter are done once, before. The smallest p-value possible is 1 / (1 + permutations); it takes rows that are
    independent of each other (one a text), or groups of them (`groups`).

    Args:
        x, y, k, pca: as for `ksg_mutual_information`.
        groups: as for `hsic_test`.
        permutations: number of shuffles, at least 1; the cost is that of 1 + permutations estimates.
        seed: seed of the jitter and the shuffles.

    Raises:
        ConfigurationError: as for `ksg_mutual_information`, or `permutations` below 1.
    """
    check_permutations(permutations)
    left, right = _prepare_pair(x, y, k=k, pca=pca, seed=seed)
    estimate = _ksg(left, right, k)
    rng, shuffles = np.random.default_rng([seed, 1]), Shuffles(len(left), groups)
    permuted = np.array([_ksg(left, right[shuffles.draw(rng)], k) for _ in range(permutations)])
    return MutualInformationReport(
        estimate=estimate,
        permuted_mean=float(permuted.mean()),
        permuted_sd=float(permuted.std()),
        p_value=permutation_p(permuted, estimate),
        n=len(left),
        k=k,
        permutations=permutations,
        pca=pca,
        dims_x=left.shape[1],
        dims_y=right.shape[1],
    )


def _prepare_pair(x: Any, y: Any, *, k: int, pca: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Check, standardise, reduce and jitter both sides; a constant side comes back with 0 columns."""
    left, right = check_pair(x, y)
    if k < 1:
        raise ConfigurationError(f"k={k}: the estimator needs at least 1 neighbour, for example 3")
    if len(left) <= k:
        raise ConfigurationError(f"n={len(left)} pairs with k={k}: the estimator needs more pairs than neighbours")
    if pca is not None and pca < 1:
        raise ConfigurationError(f"pca={pca}: keep at least 1 component, or give None for no PCA")
    rng = np.random.default_rng(seed)
    sides = []
    for side in (left, right):
        reduced = standardise(side)
        if pca is not None:
            reduced = principal_components(reduced, pca)
        sides.append(reduced + _JITTER * rng.standard_normal(reduced.shape))
    return sides[0], sides[1]


def _ksg(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """Estimator 1 on prepared samples."""
    if x.shape[1] == 0 or y.shape[1] == 0:
        return 0.0
    joint = np.concatenate([x, y], axis=1)
    # The nearest neighbour of a point is the point itself, hence k + 1.
    distance = cKDTree(joint).query(joint, k=[k + 1], p=np.inf)[0][:, 0]
    # The counts are of points strictly closer than the k-th neighbour; the query counts "at most".
    radius = np.nextafter(distance, 0.0)
    inside = [cKDTree(side).query_ball_point(side, radius, p=np.inf, return_length=True) for side in (x, y)]
    # Each count holds the point itself: it already is n_x + 1.
    return float(digamma(k) + digamma(len(x)) - np.mean(digamma(inside[0]) + digamma(inside[1])))
