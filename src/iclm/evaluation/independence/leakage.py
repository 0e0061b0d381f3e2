"""What the invariant states tell of the domain: accuracy of a probe on examples that it has not seen.

    fold by fold:  StandardScaler ─▶ PCA ─▶ logistic regression   fitted on the other folds, asked for this one's domains

A module that is invariant to the domain leaves the probe with chance: the share of the largest domain. Two other figures
stand beside the accuracy: its 95% interval, and what the same probe reaches on shuffled domains.

    G. Alain, Y. Bengio, "Understanding intermediate layers using linear classifier probes", arXiv 1610.01644, 2016.
    P. Golland, B. Fischl, "Permutation tests for classification", IPMI 2003.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from iclm.errors import ConfigurationError
from iclm.evaluation.independence.samples import check_permutations, check_samples, permutation_p, varying
from iclm.evaluation.metrics import Accuracy

COMPONENTS = 32  # that the probe sees: a probe of all hidden dimensions would need more examples than there are


@dataclass(frozen=True)
class LeakageReport:
    """How well a linear probe tells the domain from states."""

    accuracy: float
    """Share of examples whose domain the probe tells, each in the fold that it was not fitted on."""
    low: float
    """Lower end of the accuracy's 95% Wilson interval."""
    high: float
    """Upper end of the accuracy's 95% Wilson interval."""
    chance: float
    """Share of the largest domain: what an answer without the states reaches."""
    permuted_mean: float
    """Mean accuracy on shuffled domains, every group weighing the same."""
    p_value: float
    """(1 + permutations with at least the accuracy) / (1 + permutations), every group weighing the same; never 0."""
    n: int
    """Number of examples."""
    domains: int
    """Number of domains."""
    groups: int
    """Number of groups of examples that stay in one fold."""
    folds: int
    """Number of folds."""
    permutations: int
    """Number of permutations."""

    def to_dict(self) -> dict[str, Any]:
        """All figures under their names, ready for JSON."""
        return asdict(self)


def domain_leakage(
    states: Any,
    domains: Sequence[Any] | np.ndarray,
    *,
    groups: Sequence[Any] | np.ndarray | None = None,
    folds: int = 5,
    permutations: int = 39,
    seed: int = 0,
) -> LeakageReport:
    """Cross-validated accuracy of a linear probe that tells the domain of an example from its states.

    A permutation shuffles domains within folds, so that every fold keeps its share of each domain: otherwise a domain that
    is frequent in one fold would be rare in the others, and shuffled accuracies too low. Examples of a group are not
    independent: where a group has one domain it is shuffled as a whole, where it has several they are shuffled inside it,
    and in the probe and the p-value every group weighs the same, so that a shuffle keeps the shares of the domains.

    - Bias: downwards; the probe is what n examples can teach a linear model of 32 principal components. Domains of small
      variance, or told apart by a curved boundary, are missed: chance is no proof of invariance.
    - Useful range: some tens of groups a domain at least.
    - The interval knows of the groups (their design effect), not that folds share examples to learn from.
    - Cost: O(folds · n · H · min(n, H)) for the reductions, which do not depend on the domains and are computed once, and
      one small regression a fold and permutation.

    Args:
        states: [n, H] (or [n]).
        domains: domain of each example, [n], numbers or names.
        groups: group of each example, [n]; those of one group (the queries of one problem) stay in one fold.
        folds: at least 2.
        permutations: number of shuffles, at least 1.
        seed: of folds and shuffles.

    Returns:
        The figures; constant states give the accuracy of the majority.

    Raises:
        ConfigurationError: lengths that differ, a state that is not finite, only one domain, a domain with fewer examples
            than folds or all in one group, fewer groups than folds, or no permutation.
    """
    check_permutations(permutations)
    samples = check_samples("states", states)
    labels = _numbers("domains", domains, len(samples))
    units = np.arange(len(samples)) if groups is None else _numbers("groups", groups, len(samples))
    _check(labels, units, folds, domains)
    alone = len(np.unique(units)) == len(units)
    splitter = (StratifiedKFold if alone else StratifiedGroupKFold)(folds, shuffle=True, random_state=seed)
    folded = [test for _, test in splitter.split(samples, labels, None if alone else units)]
    weights = 1.0 / np.bincount(units)[units]
    probe = _Probe(samples, weights, folded)
    right = probe.right(labels)
    rng = np.random.default_rng([seed, 1])
    shuffled = [shuffle_domains(labels, units, probe.fold, rng) for _ in range(permutations)]
    permuted = np.array([np.average(probe.right(values), weights=weights) for values in shuffled])
    correct = Accuracy.of(right.tolist(), units.tolist())
    return LeakageReport(
        accuracy=float(right.mean()),
        low=correct.low,
        high=correct.high,
        chance=int(np.bincount(labels).max()) / len(labels),
        permuted_mean=float(permuted.mean()),
        p_value=permutation_p(permuted, float(np.average(right, weights=weights))),
        n=len(labels),
        domains=int(labels.max()) + 1,
        groups=len(np.unique(units)),
        folds=folds,
        permutations=permutations,
    )


class _Probe:
    """The probe of every fold, with its reductions computed once."""

    def __init__(self, samples: np.ndarray, weights: np.ndarray, tests: list[np.ndarray]) -> None:
        self.weights, self.tests = weights, [test for test in tests if len(test)]
        self.fold = np.zeros(len(samples), dtype=int)
        kept = samples[:, varying(samples)]
        kept = kept / np.abs(kept).max(axis=0) if kept.size else np.zeros((len(samples), 1))
        self.reduced = []
        for number, test in enumerate(self.tests):
            self.fold[test] = number
            train = np.setdiff1d(np.arange(len(samples)), test)
            components = min(COMPONENTS, len(train), kept.shape[1])
            reduce = make_pipeline(StandardScaler(), PCA(components, svd_solver="full"))
            with np.errstate(invalid="ignore", divide="ignore"):  # of constant states: only the shares of variance
                reduce.fit(kept[train])
            self.reduced.append((train, reduce.transform(kept[train]), reduce.transform(kept[test])))

    def right(self, labels: np.ndarray) -> np.ndarray:
        """Which of the labels [n] are told, bool [n]."""
        right = np.zeros(len(labels), dtype=bool)
        for (train, seen, asked), test in zip(self.reduced, self.tests, strict=True):
            if len(np.unique(labels[train])) == 1:
                answers = np.full(len(test), labels[train][0])
            else:
                weights = self.weights[train] / self.weights[train].mean()
                # Newton's method: components of very different variance cost lbfgs a thousand steps
                model = LogisticRegression(solver="newton-cholesky", max_iter=100)
                answers = model.fit(seen, labels[train], weights).predict(asked)
            right[test] = answers == labels[test]
        return right


def shuffle_domains(labels: np.ndarray, units: np.ndarray, fold: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels [n] shuffled as if they said nothing: whole groups within a fold, or inside a group of several domains."""
    _, first, unit = np.unique(units, return_index=True, return_inverse=True)
    mixed = np.zeros(len(first), dtype=bool)
    mixed[unit[labels != labels[first][unit]]] = True
    single, moved = first[~mixed], labels[first]
    moved[~mixed] = _shuffle_within(labels[single], fold[single], rng)
    return np.where(mixed[unit], _shuffle_within(labels, unit, rng), moved[unit])


def _shuffle_within(values: np.ndarray, blocks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values [n] shuffled among the places of equal block."""
    shuffled = np.empty_like(values)
    shuffled[np.argsort(blocks, kind="stable")] = values[np.lexsort((rng.random(len(values)), blocks))]
    return shuffled


def _numbers(name: str, values: Sequence[Any] | np.ndarray, n: int) -> np.ndarray:
    """Values as numbers from 0 on, [n]."""
    found = np.asarray(values)
    if found.shape != (n,):
        raise ConfigurationError(f"{name} of shape {list(found.shape)} for {n} states: give one for each")
    return np.unique(found, return_inverse=True)[1].astype(int)


def _check(labels: np.ndarray, units: np.ndarray, folds: int, domains: Sequence[Any] | np.ndarray) -> None:
    """Raise `ConfigurationError` where a probe would mean nothing."""
    if folds < 2:
        raise ConfigurationError(f"folds={folds}: cross-validation needs at least 2, for example 5")
    names = np.unique(np.asarray(domains))
    if len(names) < 2:
        raise ConfigurationError(f"examples of {len(names)} domain(s): a probe needs at least 2 domains to tell apart")
    for number, rows in enumerate(np.bincount(labels)):
        if rows < folds:
            raise ConfigurationError(
                f"domain {names[number]} has {rows} examples for {folds} folds: give at least {folds}"
            )
        if len(set(units[labels == number].tolist())) < 2:
            raise ConfigurationError(
                f"domain {names[number]} has all its {rows} examples in one group: give at least 2"
            )
    if len(set(units.tolist())) < folds:
        raise ConfigurationError(
            f"{len(set(units.tolist()))} groups for {folds} folds: give fewer folds or more groups"
        )
