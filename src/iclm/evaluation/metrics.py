"""Accuracy over questions: when an answer counts as right, and how far the share of right answers can be trusted.

Gendron et al., 2024, arXiv 2402.02636: exact and partial matching of an answer with a response.
E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927: the interval.
L. Kish, "Survey Sampling", 1965: the design effect of questions that come in problems.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from iclm.errors import ConfigurationError, DataError


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


def design_effect(right: Sequence[bool], groups: Sequence[Hashable]) -> float:
    """How many questions that come in problems tell as much as one that comes alone; at least 1 (Kish, 1965).

    With p the share of right answers to n questions, and s_g of the m_g questions of each of G problems answered right:

        ( G / (G - 1) · Σ_g (s_g - p m_g)² / n² )  /  ( p (1 - p) / (n - 1) )

    is the variance of p over problems beside that over independent questions: 1 where each problem has one question, about m
    where the m questions of a problem are all right or all wrong together. Where all answers are right, or all wrong, nothing
    varies that could tell; it is then the number of questions of a problem, which is careful.

    Args:
        right: whether each question was answered right, [n].
        groups: the problem of each; a question whose problem is None is one of its own.
    """
    n, total = len(right), sum(right)
    problems: dict[Hashable, list[int]] = {}
    for number, (answer, group) in enumerate(zip(right, groups, strict=True)):
        entry = problems.setdefault((None, number) if group is None else (group,), [0, 0])
        entry[0] += bool(answer)
        entry[1] += 1
    if not n or len(problems) == n:
        return 1.0
    if total in (0, n) or len(problems) == 1:
        return n / len(problems)
    p, count = total / n, len(problems)
    between = count / (count - 1) * sum((s - p * m) ** 2 for s, m in problems.values()) / n**2
    return max(1.0, between * (n - 1) / (p * (1 - p)))


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers with its 95% Wilson interval; prints as `0.812 [0.78, 0.84]`."""

    correct: int
    """Number of right answers."""
    n: int
    """Number of questions asked."""
    effect: float = 1.0
    """Their design effect: so many of them tell as much as an independent one."""

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.n:
            raise ConfigurationError(f"Accuracy({self.correct}, {self.n}): it must be that 0 <= correct <= n")

    @classmethod
    def of(cls, right: Sequence[bool], groups: Sequence[Hashable]) -> Accuracy:
        """Of answers to questions, some of which are of one problem: see `design_effect` for both."""
        return cls(int(sum(right)), len(right), design_effect(right, groups))

    @property
    def value(self) -> float | None:
        """correct / n, or None when no question was asked."""
        return self.correct / self.n if self.n else None

    @property
    def low(self) -> float:
        """Lower end of the 95% Wilson interval of n / effect questions."""
        return wilson_interval(self.correct / self.effect, self.n / self.effect)[0]

    @property
    def high(self) -> float:
        """Upper end of the 95% Wilson interval of n / effect questions."""
        return wilson_interval(self.correct / self.effect, self.n / self.effect)[1]

    def to_dict(self) -> dict[str, Any]:
        """The figures under their names, ready for JSON (`value` is null without a question); `effect` where it is not 1."""
        found = {"correct": self.correct, "n": self.n, "value": self.value, "low": self.low, "high": self.high}
        return found if self.effect == 1.0 else {**found, "effect": self.effect}

    def __str__(self) -> str:
        value = "n/a" if self.value is None else f"{self.value:.3f}"
        return f"{value} [{self.low:.2f}, {self.high:.2f}]"


def exact_match(answer: str, response: str) -> bool:
    """Whether the whole response is the answer, whatever the case.

    The rule of the paper's code: `answer.lower() == response.lower()`. Nothing is stripped: a trailing space or full
    stop in the response is a mismatch.
    """
    return answer.lower() == response.lower()


def partial_match(answer: str, response: str) -> bool:
    r"""Whether the answer stands in the response as a whole word (or words), whatever the case.

    The rule of the paper's code is a search for the regular expression `\b(answer)\b`. That code inserts the answer
    unescaped, so that an answer with `.`, `(` or `*` in it is read as a pattern; here the answer is escaped and stands
    for itself. The rest is kept: `\b` lies between a letter, digit or underscore and anything else, so an answer that
    ends in another character (`"C."`) is found only where a letter, digit or underscore follows it, and not at the end.

    Raises:
        DataError: an empty answer, which every response would match.
    """
    if not answer:
        raise DataError("partial_match was given an empty answer, which every response would match: drop the problem")
    return re.search(rf"\b({re.escape(answer)})\b", response, re.IGNORECASE) is not None


def majority_baseline(answers: Iterable[str]) -> Accuracy:
    """Accuracy of always giving the most frequent answer, with answers told apart as `exact_match` does.

    Args:
        answers: the reference answers of a test set.

    Returns:
        The accuracy a constant response can reach on that set; Accuracy(0, 0) for an empty one.
    """
    counts = Counter(answer.lower() for answer in answers)
    return Accuracy(max(counts.values(), default=0), sum(counts.values()))
