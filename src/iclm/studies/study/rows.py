"""What the rows of a job say of the questions that were answered, and what a job leaves for them, whoever answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from iclm.data.example import Example
from iclm.data.loading import distribution
from iclm.evaluation.metrics import majority_baseline
from iclm.evaluation.sides import is_shifted
from iclm.recipe import DataSource


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
    """

    rows: list[dict[str, Any]]
    questions: list[dict[str, str]]
    seconds: float
    examples: int
    trainable: int
    device: str
    dtype: str | None
    versions: dict[str, str] = field(default_factory=dict)


def about(number: int, source: DataSource, found: Sequence[Example], train: Sequence[DataSource]) -> dict[str, Any]:
    """What all rows of one source share.

    Args:
        number: of the source among those that are evaluated.
        found: its examples.
        train: the training sources.

    Returns:
        `source` (its number), `test_set`, `shifted`, `format`, `strict`, `majority` (accuracy of the most frequent answer)
        and `problems`.
    """
    return {
        "source": number,
        "test_set": train_name(source),
        "shifted": is_shifted(source, train),
        "format": source.format,
        "strict": source.objects == "strict",
        "majority": majority_baseline(example.answer for example in found).value,
        "problems": problem_sizes(found),
    }


def problem_sizes(found: Sequence[Example]) -> int | list[int]:
    """Number of questions of each problem, in their order; one number where all have as many.

    Questions that follow each other and have one `group` and domain are of one problem; one without a group is a problem
    of its own.
    """
    keys = [(example.group or number, example.domain) for number, example in enumerate(found)]
    sizes = [len(list(members)) for _, members in groupby(keys)]
    return sizes[0] if len(set(sizes)) == 1 else sizes


def kinds_of(found: Sequence[Example]) -> dict[str, str]:
    """For each kind of question the bits (see `bits`) of the questions that are of it."""
    kinds = sorted({example.kind for example in found if example.kind is not None})
    return {kind: bits([example.kind == kind for example in found]) for kind in kinds}


def train_name(source: DataSource) -> str:
    """Name of the data that a source holds: its distribution ("ACRE Comp", "CORR2CAUSE renamed"), or the file's name."""
    return distribution(source) or (source.file.stem if source.file is not None else str(source.dataset))


def bits(correct: Sequence[bool]) -> str:
    """Hexadecimal digits of a bit for each question, the last byte filled up with zeros."""
    return np.packbits(np.array(correct, dtype=bool)).tobytes().hex()


def from_bits(answers: str, n: int) -> np.ndarray:
    """What `bits` was given, bool [n]."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(answers), dtype=np.uint8), count=n).astype(bool)
