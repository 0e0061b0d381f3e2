"""What the rows of a job say of the questions that were answered, and what a job leaves for them, whoever answers."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from iclm.data.audit.folds import problem_keys
from iclm.data.audit.strategies import needs_exclusion
from iclm.data.example import Example
from iclm.data.loading import distribution
from iclm.evaluation.metrics import majority_baseline
from iclm.evaluation.sides import is_shifted
from iclm.recipe import DataSource

ROUTED = "routed"  # alone the domain module of the router's choice, where that is one for all questions of each source
# kinds of questions of ACRE: to a rule that excludes nothing, what needs exclusion looks like what nothing settles
INDIRECT, BY_EXCLUSION, POTENTIAL = "indirect", "indirect by exclusion", "potential"
_DIGITS = string.digits + string.ascii_lowercase


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes:
        rows: one a source and module.
        questions: for each source which of its questions are of which kind (`kinds_of`).
        seconds: of the training.
        examples: seen in training.
        trainable: parameters that were trained.
        device: that it ran on.
        dtype: of the base model, None without one.
        versions: of libraries that only this job used.
        earlier: seconds of the training that were spent before the job was resumed.
        diverged: whether scores are no numbers; the questions that they are of count as answered wrong.
    """

    rows: list[dict[str, Any]]
    questions: list[dict[str, str]]
    seconds: float
    examples: int
    trainable: int
    device: str
    dtype: str | None
    versions: dict[str, str] = field(default_factory=dict)
    earlier: float = 0.0
    diverged: bool = False


def about(
    number: int, sources: Sequence[DataSource], found: Sequence[Example], train: Sequence[DataSource]
) -> dict[str, Any]:
    """What all rows of one source share.

    Args:
        number: of the source among those that are evaluated.
        sources: all that are evaluated.
        found: its examples.
        train: the training sources.

    Returns:
        `source` (its number), `test_set`, `shifted`, `format`, `strict`, `score` (of a choice), `majority` (accuracy of the most
        frequent answer) and `problems`.
    """
    source = sources[number]
    return {
        "source": number,
        "test_set": test_names(sources)[number],
        "shifted": is_shifted(source, train),
        "format": source.format,
        "strict": source.objects == "strict",
        "score": source.score,
        "majority": majority_baseline(example.answer for example in found).value,
        "problems": problem_sizes(found),
    }


def problem_sizes(found: Sequence[Example]) -> int | list[int] | dict[str, list[int]]:
    """Number of questions of each problem, in their order; one number where all have as many.

    Questions of one domain are of one problem by `problem_keys`: those of one `group`, or where they have none, of one context. Where those
    of a problem do not all follow each other: {"of": the number of each question's problem}.
    """
    keys = [(key, example.domain) for key, example in zip(problem_keys(found), found, strict=True)]
    sizes = [len(list(members)) for _, members in groupby(keys)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    if len(numbers) < len(sizes):
        return {"of": [numbers[key] for key in keys]}
    return sizes[0] if len(set(sizes)) == 1 else sizes


def problems_of(sizes: int | list[int] | dict[str, list[int]], n: int) -> np.ndarray:
    """The problem of each of n questions, counted from 0, int [n], of what `problem_sizes` said.

    Raises:
        ValueError: it is of another number of questions.
    """
    if isinstance(sizes, dict):
        found = np.array(sizes["of"], dtype=int)
    else:
        each = [sizes] * (n // sizes) if isinstance(sizes, int) else sizes
        found = np.repeat(np.arange(len(each)), each)
    if len(found) != n:
        raise ValueError(f"problems have {len(found)} questions, not {n}")
    return found


def kinds_of(found: Sequence[Example]) -> dict[str, str]:
    """For each kind of question the bits (see `bits`) of the questions that are of it.

    Of the indirect questions of ACRE those that need exclusion are a kind of their own too (`needs_exclusion`).
    """
    kinds = sorted({example.kind for example in found if example.kind is not None})
    marks = {kind: bits([example.kind == kind for example in found]) for kind in kinds}
    excludes = [e.kind == INDIRECT and needed for e, needed in zip(found, needs_exclusion(found), strict=True)]
    return dict(sorted({**marks, BY_EXCLUSION: bits(excludes)}.items())) if any(excludes) else marks


def answers_of(right: Sequence[bool], chosen: Sequence[int]) -> dict[str, str]:
    """What a row says of each question: `answers` (whether it was answered right) and `given` (which choice was taken).

    Args:
        right: of each question, see `bits`.
        chosen: the number of the choice, see `given_of`; `given` is left out where that has none.
    """
    given = given_of(chosen)
    return {"answers": bits(right), **({} if given is None else {"given": given})}


def given_of(chosen: Sequence[int]) -> str | None:
    """The number of the choice that was taken of each question, a digit each (0 to 9, then a to z), - where none was.

    None where one has a higher number.
    """
    if any(number >= len(_DIGITS) for number in chosen):
        return None
    return "".join("-" if number < 0 else _DIGITS[number] for number in chosen)


def from_given(given: str) -> np.ndarray:
    """What `given_of` was given, int [n].

    Raises:
        ValueError: a character that it does not write.
    """
    return np.array([-1 if digit == "-" else _DIGITS.index(digit) for digit in given], dtype=int)


def test_names(sources: Sequence[DataSource]) -> list[str]:
    """Names of the data that sources hold: the distribution ("ACRE Comp", "CORR2CAUSE renamed"), or the file's name.

    Files of one name have as much of their folders before it as tells them apart: sources of one name are one test set.
    Where a distribution is tested in several splits, its names have the split ("ACRE Sys, train"), and where with several answer
    sets, shifts or balances, those ("RAVEN center_single, fair").
    """
    files = {source.file for source in sources if source.file is not None}

    def name(file: Path) -> str:
        parts = file.with_suffix("").parts
        others = [other.with_suffix("").parts for other in files if other != file]
        length = 1
        while any(other[-length:] == parts[-length:] for other in others) and length < len(parts):
            length += 1
        return Path(*parts[-length:]).as_posix()

    variants: dict[str | None, list[tuple[str, ...]]] = {}
    for source in sources:
        variants.setdefault(distribution(source), []).append(_variant(source))

    def drawn(source: DataSource) -> str | None:
        made = distribution(source)
        if made is None:
            return None
        differ = [len(set(values)) > 1 for values in zip(*variants[made], strict=True)]
        return ", ".join([made, *(part for part, says in zip(_variant(source), differ, strict=True) if says)])

    return [
        drawn(source) or (name(source.file) if source.file is not None else str(source.dataset)) for source in sources
    ]


def _variant(source: DataSource) -> tuple[str, ...]:
    """What else tells sources of one distribution apart: the split, and what its kind of problems has."""
    if source.raven is not None:
        return source.split, source.answers
    if source.pvr is not None:
        return source.split, source.shift
    if source.corr2cause is not None:
        return source.split, "balanced" if source.balanced else "unbalanced"
    return (source.split,)


def bits(correct: Sequence[bool]) -> str:
    """Hexadecimal digits of a bit for each question, the last byte filled up with zeros."""
    return np.packbits(np.array(correct, dtype=bool)).tobytes().hex()


def from_bits(answers: str, n: int) -> np.ndarray:
    """What `bits` was given, bool [n]."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(answers), dtype=np.uint8), count=n).astype(bool)


def routed_module(row: dict[str, Any]) -> str | None:
    """The domain module that all questions of a row's source were routed to; None where they were not, or nothing was routed."""
    routes = row.get("routes", ())
    chosen = [number for number, count in enumerate(routes) if count]
    return f"domain_{chosen[0]}" if len(chosen) == 1 else None
