"""What a measured accuracy may be, given on how few questions it was measured, and that some of them are of one problem.

E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927: the interval.
L. Kish, "Survey Sampling", 1965: the design effect of questions that come in problems.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist

from iclm.errors import ConfigurationError


def wilson_interval(correct: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of the success rate behind `correct` successes in `n` trials.

    With p = correct / n and z the normal quantile at (1 + confidence) / 2:

        low, high = ( p + z²/2n  ∓  z · sqrt( p(1 - p)/n + z²/4n² ) ) / ( 1 + z²/n )

    Unlike p ± z · sqrt(p(1 - p)/n), it stays inside [0, 1] and keeps a width when p is 0 or 1.

    Args:
        correct: number of successes, 0 <= correct <= n; fractional where trials count for less than one each.
        n: number of trials; 0 gives (0.0, 1.0), as nothing is known yet.
        confidence: coverage wanted, inside (0, 1).

    Returns:
        The lower and the upper bound of the rate.

    Raises:
        ConfigurationError: a count or a confidence outside its range.
    """
    if not 0 <= correct <= n:
        raise ConfigurationError(f"correct={correct} of n={n}: the counts must satisfy 0 <= correct <= n")
    if not 0.0 < confidence < 1.0:
        raise ConfigurationError(f"confidence={confidence}: it must lie between 0 and 1, for example 0.95")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = correct / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # The bounds at 0 and n successes are exactly 0 and 1; the subtraction above leaves rounding there.
    low = 0.0 if correct == 0 else (centre - half) / scale
    high = 1.0 if correct == n else (centre + half) / scale
    return low, high


def design_effect(right: Sequence[float], groups: Sequence[Hashable]) -> float:
    """How many questions that come in problems tell as much as one that comes alone; at least 1 (Kish, 1965).

    With p the mean of the credits x_i of n questions (1 for a right answer, 0 for a wrong one, a part where credit is shared),
    and s_g the credit of the m_g questions of each of G problems:

        ( G / (G - 1) · Σ_g (s_g - p m_g)² / n² )  /  ( Σ_i (x_i - p)² / (n (n - 1)) )

    is the variance of p over problems beside that over independent questions: 1 where each problem has one question, about m
    where the m questions of a problem are all right or all wrong together. Where all have the same credit, nothing varies that
    could tell; it is then the number of questions of a problem, which is careful.

    Args:
        right: the credit of each question, 0 to 1, [n].
        groups: the problem of each; a question whose problem is None is one of its own.
    """
    n = len(right)
    problems: dict[Hashable, list[float]] = {}
    for number, (credit, group) in enumerate(zip(right, groups, strict=True)):
        entry = problems.setdefault((None, number) if group is None else (group,), [0.0, 0])
        entry[0] += float(credit)
        entry[1] += 1
    if not n or len(problems) == n:
        return 1.0
    p, count = sum(right) / n, len(problems)
    alone = sum((credit - p) ** 2 for credit in right) / (n * (n - 1))
    if count == 1 or alone < 1e-12:
        return n / count
    between = count / (count - 1) * sum((s - p * m) ** 2 for s, m in problems.values()) / n**2
    return max(1.0, between / alone)
