"""What the lines of a report's files must look like; a line that was damaged or made by hand is named, never taken for another."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from iclm.errors import DataError


class _Line(BaseModel):
    """Fields that a line has; it may have more."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class JobLine(_Line):
    """A line of jobs.jsonl on a job that is done."""

    id: str
    name: str
    kind: str
    method: str
    data: str
    seed: int | None
    trial: int | None
    recipe: dict[str, Any]
    evaluate: list[dict[str, Any]] = Field(min_length=1)
    reference: str | None
    tuned_as: str | None
    tuned_on: str | None
    device: str
    processor: str | None
    threads: int | None
    dtype: str | None
    train_seconds: float
    total_seconds: float
    versions: dict[str, str]
    chosen: dict[str, Any]


class RowLine(_Line):
    """A line of results.jsonl or tries.jsonl."""

    job: str
    method: str
    module: str
    train_set: str
    test_set: str
    split: str
    format: str | None
    strict: bool
    seed: int | None
    source: int = Field(ge=0)
    shifted: bool
    n: int = Field(ge=1)
    correct: int = Field(ge=0)
    by_kind: dict[str, list[int]]
    answers: str
    problems: int | list[int] | dict[str, list[int]]
    majority: float
    examples: int
    trainable: int
    device: str
    seconds: float
    routes: list[int] | None = None


class QuestionsLine(_Line):
    """A line of questions.jsonl."""

    data: str
    source: int = Field(ge=0)
    kinds: dict[str, str]


def check_line(kind: type[_Line], line: Mapping[str, Any], where: str) -> None:
    """Raise `DataError`, which begins with `where`, for a line that lacks a field or has one of another type."""
    try:
        kind.model_validate(line)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise DataError(f"{where}: {name} is missing; `iclm study report` writes it") from error
        what = first["msg"][:1].lower() + first["msg"][1:]
        raise DataError(f"{where}: {name} is {str(first['input'])[:40]!r}; {what}") from error


def check_row(row: Mapping[str, Any], where: str) -> None:
    """Raise `DataError`, which begins with `where`, for a row whose fields are not such, or whose questions cannot be counted."""
    check_line(RowLine, row, where)
    n, sizes = int(row["n"]), row["problems"]
    if isinstance(sizes, Mapping):  # the problem of each question, counted from 0
        several = [1 + number for number in sizes.get("of", [-1])]
    else:
        several = sizes if isinstance(sizes, list) else [sizes]
    if not all(count > 0 for count in several):
        raise DataError(f"{where}: problems is {str(sizes)[:40]}; it counts questions, from 1")
    if row["correct"] > n:
        raise DataError(f"{where}: correct is {row['correct']!r}, of {n} questions")
    given = row.get("given")
    if given is not None and not (isinstance(given, str) and len(given) == n and re.fullmatch("[0-9a-z-]*", given)):
        raise DataError(f"{where}: given is no row of {n} choices, a digit, a letter or - for each question")
    check_bits("answers", row["answers"], n, where)


def check_bits(name: str, marks: str, n: int, where: str) -> None:
    """Raise `DataError`, which begins with `where`, for a row of bits (`iclm.studies.study.rows.bits`) that is not one of n."""
    length = -(-n // 8)
    if not re.fullmatch(f"[0-9a-f]{{{2 * length}}}", marks):
        raise DataError(f"{where}: {name} is no row of {length} bytes as hexadecimal digits, a bit for each question")


def check_once(keys: Iterable[Any], where: str, what: str) -> None:
    """Raise `DataError`, which begins with `where`, for the first key that comes again."""
    for key, count in Counter(keys).items():
        if count > 1:
            raise DataError(f"{where} has {what} {key} {count} times; each is there once")


def check_whole(name: str, rows: Sequence[Mapping[str, Any]], sources: int, where: str) -> None:
    """Raise `DataError`, which begins with `where`, for a job whose rows lack a source that it was asked."""
    for number in range(sources):
        if not any(row["source"] == number for row in rows):
            raise DataError(f"{where} lacks the rows of {name} on its source {number}")
