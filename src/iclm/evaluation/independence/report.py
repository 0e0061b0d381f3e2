"""All measures of independence for the two sides of an ICLM, as one JSON object.

    {"0": {"n": 120, "groups": 30, "ksg": {..}, "identical": {..}, "cka": 0.41, "cka_permuted_mean": 0.38,
           "hsic": {..}, "correlation": {..}},
     "1": {"n": 8, "groups": 2, "skipped": "8 examples: ..."},
     "leakage": {..}}

The two sides are compared within a domain, because both know the domain of their input: over all domains they would be
dependent however independent they are otherwise.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from iclm.errors import ConfigurationError
from iclm.evaluation.independence.cka import linear_cka
from iclm.evaluation.independence.correlation import correlation_report
from iclm.evaluation.independence.hsic import hsic_test
from iclm.evaluation.independence.ksg import ksg_mutual_information, mutual_information_report
from iclm.evaluation.independence.leakage import domain_leakage
from iclm.evaluation.independence.samples import Shuffles, check_pair

COMPONENTS = 4  # principal components a side for nearest neighbours, which fail in many dimensions
ENOUGH = 11  # examples of a domain, below which nothing is measured in it
CKA_SHUFFLES = 20
KSG_SHUFFLES = 99  # with 20 the least p-value would be 0.048, and with it and HSIC's nothing could be told
ORDERS = 100  # different shuffles, below which no p-value says anything


def independence_report(
    invariant: Any,
    domain: Any,
    domains: Sequence[int],
    *,
    groups: Sequence[Any] | np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Dependence of invariant and domain states within each domain, and what the former tell of the domain.

    - Bias: see each measure. With fewer examples than hidden dimensions CKA is far above 0 whatever the states: compare
      it with `cka_permuted_mean`. `identical` is what KSG gives for total dependence in as many examples.
    - Useful range: some hundreds of examples a domain; 11 are the least, of 5 groups of as many. Principal components can leave out what the two
      sides share.
    - p-values take groups as independent, and shuffle each against another of as many examples.
    - Cost: O(n² H) a domain with n examples, n² memory: some seconds for 1,000.

    Args:
        invariant: states of the invariant module, [n, H].
        domain: states of the active domain module for the same examples, [n, H].
        domains: number of the true domain of each example, [n].
        groups: group of each example, [n]: those of one problem, which are shuffled together and stay in one fold of the probe.
        seed: of every shuffle.

    Returns:
        Under the number of each domain, as a string: `n`, `groups`, and either `skipped` with the reason or `shuffled` (groups, as here), `ksg` and
        `identical` (on 4 principal components a side; `identical` of the invariant states with themselves), `cka` and
        `cka_permuted_mean`, `hsic`, `correlation`. Under "leakage": the probe's figures over all domains that have enough
        examples in more than one group, or `n` and `skipped`.

    Raises:
        ConfigurationError: shapes that do not pair, or a state that is not finite.
    """
    left, right = check_pair(invariant, domain)
    numbers = np.asarray(domains, dtype=int)
    units = np.arange(len(left)) if groups is None else np.asarray(groups)
    for name, given in (("domains", numbers), ("groups", units)):
        if given.shape != (len(left),):
            raise ConfigurationError(f"{name} of shape {list(given.shape)} for {len(left)} examples: give one for each")
    found: dict[str, Any] = {}
    for number in sorted(set(numbers.tolist())):
        rows = np.flatnonzero(numbers == number)
        head = {"n": len(rows), "groups": len(set(units[rows].tolist()))}
        reason = too_few(units[rows])
        measured = _within(left[rows], right[rows], units[rows], seed) if reason is None else {"skipped": reason}
        found[str(number)] = {**head, **measured}
    found["leakage"] = _leakage(left, numbers, units, seed)
    return found


def too_few(groups: Sequence[Any] | np.ndarray) -> str | None:
    """Why the dependence in a domain whose examples are of these groups, [n], can't be measured; None where it can."""
    n, problems = len(groups), len(set(np.asarray(groups).tolist()))
    if n < ENOUGH:
        return f"{n} examples: the measures need at least {ENOUGH}"
    if Shuffles(n, groups).distinct < ORDERS:
        return f"{n} examples of {problems} problem(s): shuffled pairs need at least 5 problems of as many examples"
    return None


def _within(left: np.ndarray, right: np.ndarray, units: np.ndarray, seed: int) -> dict[str, Any]:
    """The measures of one domain."""
    shuffles = Shuffles(len(left), units)
    rng = np.random.default_rng([seed, 2])
    shuffled = [linear_cka(left, right[shuffles.draw(rng)]) for _ in range(CKA_SHUFFLES)]
    return {
        "shuffled": "groups",
        "ksg": mutual_information_report(
            left, right, pca=COMPONENTS, groups=units, permutations=KSG_SHUFFLES, seed=seed
        ).to_dict(),
        "identical": {"estimate": ksg_mutual_information(left, left, pca=COMPONENTS, seed=seed)},
        "cka": linear_cka(left, right),
        "cka_permuted_mean": float(np.mean(shuffled)),
        "hsic": hsic_test(left, right, groups=units, seed=seed).to_dict(),
        "correlation": correlation_report(left, right, groups=units, seed=seed).to_dict(),
    }


def _leakage(states: np.ndarray, numbers: np.ndarray, units: np.ndarray, seed: int) -> dict[str, Any]:
    """The probe over the domains that have enough examples in more than one group, or why there is none."""
    names, counts = np.unique(numbers, return_counts=True)
    enough = names[counts >= ENOUGH]
    spread = [name for name in enough if len(set(units[numbers == name].tolist())) > 1]
    # where one of them at most is left, the probe says of all what they lack
    rows = np.flatnonzero(np.isin(numbers, spread if len(spread) > 1 else enough))
    try:
        return domain_leakage(states[rows], numbers[rows], groups=units[rows], seed=seed).to_dict()
    except ConfigurationError as error:
        return {"n": len(rows), "skipped": str(error)}
