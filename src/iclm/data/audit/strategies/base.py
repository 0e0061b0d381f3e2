"""What every cheap strategy is: something fitted on examples that answers others without solving them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import ClassVar

from iclm.data.draws import sample, stream
from iclm.data.example import Example

Prediction = tuple[str, ...]
"""The answers that a strategy holds for equally likely; the credit is shared between them."""

_RECURRING = 20


class Strategy(ABC):
    """A cheap strategy that should fail."""

    name: ClassVar[str]
    """A short name."""

    finding: ClassVar[str]
    """What it means if the strategy does not fail, as the end of a sentence."""

    control: ClassVar[str | None] = None
    """Name of the strategy that this one must beat to show anything, besides chance and majority."""

    def unfit(self, examples: Sequence[Example]) -> str | None:
        """Why the strategy cannot be used on these examples, or None."""
        return None

    def prepare(self, examples: Sequence[Example]) -> None:  # noqa: B027
        """Keep what can be told of each example without fitting, so that refitting does not work it out again."""

    @abstractmethod
    def fit(self, examples: Sequence[Example]) -> None:
        """Learn from examples; forget what was learned before."""

    @abstractmethod
    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        """Answer other examples; at least one answer each."""


def at_most(examples: Sequence[Example], count: int) -> Sequence[Example]:
    """At most `count` examples, drawn at random, the same in each call: more would take longer and fit no better."""
    return examples if len(examples) <= count else sample(stream("audit-fit", len(examples)), examples, count)


class Labels:
    """Answers as classes: the answer itself, or its position where each example has choices of its own.

    What is chosen among is the same whatever its order, and where choices differ but the same few answers come again, they
    are what can be told from the text.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        listed = [example for example in examples if example.choices]
        answers = len({example.answer for example in listed})
        again = answers <= min(_RECURRING, len(listed) / 2)
        self.by_position = not again and len({frozenset(example.choices) for example in listed}) > 1

    def of(self, example: Example) -> str:
        """The class of an example."""
        return f"#{example.answer_index}" if self.by_position and example.choices else example.answer

    def answer(self, label: str, example: Example) -> str:
        """The answer that a class means in an example."""
        if not self.by_position or not example.choices or not label.startswith("#"):
            return label
        return example.choices[min(int(label[1:]), len(example.choices) - 1)]


class LookupTable:
    """The most common class of each key; of all keys together where a key is new."""

    def __init__(self, pairs: Iterable[tuple[Hashable, str, float]]) -> None:
        """`pairs` are keys with their class and weight."""
        counts: dict[Hashable, Counter[str]] = {}
        total: Counter[str] = Counter()
        for key, label, weight in pairs:
            counts.setdefault(key, Counter())[label] += weight  # type: ignore[assignment]
            total[label] += weight  # type: ignore[assignment]
        self.common = _first(total)
        self.table = {key: _first(counter) for key, counter in counts.items()}

    def __getitem__(self, key: Hashable) -> str:
        return self.table.get(key, self.common)


def _first(counter: Counter[str]) -> str:
    """The most common class; of equally common ones the first in the alphabet, whatever the order of the examples."""
    return min(counter, key=lambda label: (-round(counter[label], 9), label)) if counter else ""
