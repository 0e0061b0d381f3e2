"""Examples that are there twice, within a split and across splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from iclm.data.audit.folds import prompt_key
from iclm.data.example import Example

_FEW = 3
Index = dict[bytes, dict[frozenset[str] | None, dict[str, int]]]
"""For each prompt, by its choices (None: whatever they are), its answers, with the number of the first example that has it."""


@dataclass(frozen=True, slots=True)
class Duplicates:
    """How often examples of one split are there again, in the same or another split.

    Args:
        first: the split of the first occurrence.
        second: the split of the second; the same within a split.
        repeated: examples of `second` whose prompt and answer are in `first` too (within a split: earlier in it). Where both
            have choices, those are the same too, in any order.
        conflicting: examples of `second` whose prompt is in `first`, likewise, with other answers only.
        size: examples of `second`.
        shown: the first few pairs of sources.
    """

    first: str
    second: str
    repeated: int
    conflicting: int
    size: int
    shown: tuple[tuple[str, str], ...]


def find_duplicates(splits: Mapping[str, Sequence[Example]]) -> list[Duplicates]:
    """The duplicates within each split, then those between each pair of splits."""
    names = list(splits)
    indexes: dict[str, Index] = {}
    found = []
    for name in names:
        index: Index = {}
        found.append(_compare(name, name, splits[name], splits[name], index, grow=True))
        indexes[name] = index
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            found.append(_compare(first, second, splits[first], splits[second], indexes[first], grow=False))
    return found


def _compare(
    first: str, second: str, earlier: Sequence[Example], examples: Sequence[Example], index: Index, *, grow: bool
) -> Duplicates:
    repeated = conflicting = 0
    shown: list[tuple[str, str]] = []
    for number, example in enumerate(examples):
        key = prompt_key(example.messages)
        answers = _answers(index.get(key, {}), example)
        if answers:
            repeated += example.answer in answers
            conflicting += example.answer not in answers
            if len(shown) < _FEW:
                other = answers.get(example.answer, next(iter(answers.values())))
                shown.append((place(earlier[other], first, other), place(example, second, number)))
        if grow:
            for choices in (None, frozenset(example.choices)):
                index.setdefault(key, {}).setdefault(choices, {}).setdefault(example.answer, number)
    return Duplicates(first, second, repeated, conflicting, len(examples), tuple(shown))


def _answers(found: dict[frozenset[str] | None, dict[str, int]], example: Example) -> dict[str, int]:
    """The answers to a prompt among the choices of an example; a free answer may be to the same question as a chosen one."""
    if not example.choices:
        return found.get(None, {})
    return found.get(frozenset(), {}) | found.get(frozenset(example.choices), {})


def place(example: Example, split: str, number: int) -> str:
    """Where an example is: its source, else its number in the split."""
    return example.source or f"{split} example {number}"
