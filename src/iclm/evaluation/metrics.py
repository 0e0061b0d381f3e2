"""Accuracy over questions: when an answer counts as right, and how far the share of right answers can be trusted.

Gendron et al., 2024, arXiv 2402.02636: exact and partial matching of an answer with a response.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from iclm.data.audit.interval import design_effect, wilson_interval
from iclm.errors import ConfigurationError, DataError

__all__ = [
    "Accuracy",
    "design_effect",
    "exact_match",
    "majority_baseline",
    "partial_match",
    "wilson_interval",
]


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
