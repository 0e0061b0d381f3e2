"""Two accuracies compared: of different questions by an interval of their difference, of the same ones by what changed.

R. G. Newcombe, "Interval estimation for the difference between independent proportions", Stat. Med. 17, 1998, method 10.
Q. McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 12, 1947.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import binomtest

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


def mcnemar(before: np.ndarray, now: np.ndarray) -> dict[str, Any]:
    """A paired comparison of the same n questions answered twice.

    Under no change a question that is right only once is as likely to be lost as gained: the two-sided p-value is that of
    a fair coin (the exact form of McNemar's test), 1 where no answer changed.

    Args:
        before, now: whether each answer is right, bool [n].

    Returns:
        `n`, the accuracies `before` and `now` (None without a question), the counts `lost` and `gained`, and `p_value`.
    """
    lost, gained = int((before & ~now).sum()), int((~before & now).sum())
    p_value = float(binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0
    return {
        "n": len(now),
        "before": float(before.mean()) if len(before) else None,
        "now": float(now.mean()) if len(now) else None,
        "lost": lost,
        "gained": gained,
        "p_value": p_value,
    }
