"""Whether questions of ACRE that need exclusion are told from those that nothing settles.

All of the former have the answer on, all of the latter undetermined, and to a rule that excludes nothing they look alike: it answers
on as often to the one as to the other. What is told apart is the difference of the two shares of on. Where rows do not say which
choice was taken, only that it was right, what was not answered undetermined is counted as on: the difference is then at least
what is found, which is the sum of both accuracies less 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from iclm.data.acre.problem import ON
from iclm.studies.study.groups import IN, OUT, DataResults, Group
from iclm.studies.study.rows import BY_EXCLUSION, POTENTIAL
from iclm.studies.study.statistics import difference_of_shares
from iclm.studies.study.trainings import rounded


def told_apart(results: DataResults) -> Iterator[dict[str, Any]]:
    """What each method tells apart in and out of distribution, in all formats and in each on its own.

    Yields:
        A record: `group`, `format`, `method`, `module`, `seeds`, `exact` (False where it is a bound), `value`, and `low` and
        `high`, its 95% interval over seeds and problems.
    """
    for hard in results.groups:
        easy = replace(hard, kind=POTENTIAL)
        if hard.name not in (IN, OUT) or hard.kind != BY_EXCLUSION or easy not in results.groups:
            continue
        for method in results.methods:
            module = results.main(method)
            seeds = results.seeds(method, module, hard.sources)
            if not seeds:
                continue
            exact = all((method, module, seed, source) in results.given for seed in seeds for source in hard.sources)
            counts = [_answered_on(results, group, method, module, seeds, exact) for group in (hard, easy)]
            (first, sizes), (second, others) = counts
            found = difference_of_shares(first, second, sizes, others)
            yield {
                "group": hard.name,
                "format": hard.format,
                "method": method,
                "module": module,
                "seeds": seeds,
                "exact": exact,
                "value": rounded(found.value),
                "low": rounded(found.low),
                "high": rounded(found.high),
            }


def _answered_on(
    results: DataResults, group: Group, method: str, module: str, seeds: Sequence[int | None], exact: bool
) -> tuple[np.ndarray, np.ndarray]:
    """How often on was answered by seed and problem, int [seeds, problems], and the questions of each problem, int [problems]."""
    counts = np.zeros((len(seeds), results.problem_count), dtype=np.int64)
    sizes = np.zeros(results.problem_count, dtype=np.int64)
    for source in group.sources:
        asked = results.asked(group, source)
        places = results.problem_of[source][asked]
        sizes += np.bincount(places, minlength=len(sizes))
        for row, seed in enumerate(seeds):
            key = (method, module, seed, source)
            if exact:
                on = results.given[key] == ON
            else:
                on = results.answers[key] if group.kind == BY_EXCLUSION else ~results.answers[key]
            counts[row] += np.bincount(places[on[asked]], minlength=len(sizes))
    return counts, sizes
