"""Two accuracies compared: of different questions by an interval of their difference, of the same ones by what changed.

R. G. Newcombe, "Interval estimation for the difference between independent proportions", Stat. Med. 17, 1998, method 10.
Q. McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 12, 1947.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest, t

from iclm.errors import ConfigurationError
from iclm.evaluation.metrics import Accuracy


def difference_interval(first: Accuracy, second: Accuracy) -> tuple[float, float, float]:
    """Difference of two independent proportions p1 - p2 with its 95% interval (Newcombe 1998, method 10).

    With (l, u) the Wilson interval of each:

        low = d - sqrt((p1 - l1)² + (u2 - p2)²)        high = d + sqrt((u1 - p1)² + (p2 - l2)²)

    Returns:
        d, low and high.

    Raises:
        ConfigurationError: one of them has no question.
    """
    if first.value is None or second.value is None:
        raise ConfigurationError(
            f"n={first.n} and n={second.n}: a difference of accuracies needs a question on both sides"
        )
    d = first.value - second.value
    low = d - math.hypot(first.value - first.low, second.high - second.value)
    high = d + math.hypot(first.high - first.value, second.value - second.low)
    return d, low, high


def paired_difference(
    first: np.ndarray, second: np.ndarray, groups: Sequence[Hashable], comparisons: int = 1
) -> tuple[float, float, float]:
    """Difference of the mean credits of the same questions answered twice, with its 95% interval over problems.

    With d_i the difference of a question and d their mean over n questions of G problems, the interval is Student's with
    G - 1 degrees of freedom and the variance G / (G - 1) · Σ_g (Σ_{i in g} (d_i - d))² / n², cut to [-1, 1]. Where nothing
    varies, or all is one problem, it is `difference_interval` of as many independent questions as there are problems,
    which is careful.

    Args:
        first, second: credit of each question, 0 to 1, [n], at least one.
        groups: problem of each.
        comparisons: how many such differences are looked at, all of which the intervals are to hold together (Bonferroni; not
            where nothing varies or all is one problem).

    Returns:
        d, low and high.
    """
    each = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    n, value = len(each), float(each.mean())
    sums: dict[Hashable, float] = {}
    for group, d in zip(groups, each.tolist(), strict=True):
        sums[group] = sums.get(group, 0.0) + d - value
    count = len(sums)
    spread = sum(total * total for total in sums.values())
    if count == 1 or spread < 1e-12:
        sides = (Accuracy(round(float(np.sum(side))), n, n / count) for side in (first, second))
        return value, *difference_interval(*sides)[1:]
    half = float(t.ppf(1 - 0.025 / comparisons, count - 1)) * math.sqrt(count / (count - 1) * spread) / n
    # of few problems it is wider than any difference can be
    return value, max(-1.0, value - half), min(1.0, value + half)


def mcnemar(before: np.ndarray, now: np.ndarray, groups: Sequence[Hashable] | None = None) -> dict[str, Any]:
    """A paired comparison of the same n questions answered twice.

    Under no change a question that is right only once is as likely to be lost as gained: the two-sided p-value is that of
    a fair coin (the exact form of McNemar's test), 1 where no answer changed. Questions of one problem change together: there
    the coin is thrown for the problem, whose questions are lost and gained as they are or the other way round (the exact
    sign-flip test over problems, which is McNemar's where each has one question).

    Args:
        before, now: whether each answer is right, bool [n].
        groups: problem of each; None means one of its own.

    Returns:
        `n`, the accuracies `before` and `now` (None without a question), the counts `lost` and `gained`, and `p_value`.
    """
    lost, gained = int((before & ~now).sum()), int((~before & now).sum())
    net: Counter[Hashable] = Counter()
    for group, change in zip(range(len(now)) if groups is None else groups, now.astype(int) - before, strict=True):
        net[group] += int(change)
    return {
        "n": len(now),
        "before": float(before.mean()) if len(before) else None,
        "now": float(now.mean()) if len(now) else None,
        "lost": lost,
        "gained": gained,
        "p_value": _sign_flip_p([change for change in net.values() if change]),
    }


def _sign_flip_p(changes: Sequence[int]) -> float:
    """How likely a sum at least as far from 0 is, if each change has either sign with equal probability; exact.

    The distribution over -r..r, r the sum of their sizes, is built up one change at a time: O(len · r).
    """
    if all(abs(change) == 1 for change in changes):
        up = sum(change > 0 for change in changes)
        return float(binomtest(up, len(changes), 0.5).pvalue) if changes else 1.0
    reach = sum(map(abs, changes))
    chance = np.zeros(2 * reach + 1)
    chance[reach] = 1.0
    for change in changes:
        chance = (np.roll(chance, change) + np.roll(chance, -change)) / 2
    far = np.abs(np.arange(-reach, reach + 1)) >= abs(sum(changes))
    return min(1.0, float(chance[far].sum()))
