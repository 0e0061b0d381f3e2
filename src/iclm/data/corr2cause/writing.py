"""Files: examples written as evals JSONL, and the published CSV read."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from iclm.data.audit.folds import prompt_key
from iclm.data.corr2cause.generator import check_sizes, generate, plan
from iclm.data.corr2cause.relations import RELATIONS
from iclm.data.corr2cause.render import CHOICES, make_example
from iclm.data.draws import stream
from iclm.data.evals import write_evals
from iclm.data.example import Example
from iclm.data.files import open_for_reading
from iclm.errors import DataError

_PROGRESS_EVERY = 500

Progress = Callable[[int, int], None]
"""Called with the number of examples done and their total."""


def write_corr2cause(
    out: str | os.PathLike[str],
    variables: int | Iterable[int],
    problems: int | None,
    seed: int,
    variant: str = "official",
    overwrite: bool = False,
    progress: Progress | None = None,
    *,
    balanced: bool = False,
    labelling: str = "shuffled",
    split: str | None = None,
    per_class: int | None = None,
) -> dict[str, Any]:
    """Generate an evals JSONL file with extras; in memory is no more than a digest of each premise and question.

    Args:
        out: the file to write.
        variables: as in `generate`.
        problems: number of examples; None for every hypothesis of every class once.
        seed: any integer.
        variant: "official", "renamed" or "paraphrased".
        overwrite: replace an existing file.
        progress: called now and then, and at the end.
        balanced: as in `generate`, like the following.
        labelling: "shuffled" or "upward".
        split: "train", "val", "test" or None.
        per_class: hypotheses of a class before the next one comes.

    Returns:
        A summary: the arguments, how many examples were written and how many of them are different questions, of how many
        premises and how many classes, and how many have each answer and relation.

    Raises:
        ConfigurationError: an argument cannot be used, or the file exists and `overwrite` is false.
    """
    sizes = check_sizes(variables)
    options: dict[str, Any] = {"labelling": labelling, "split": split, "per_class": per_class}
    total = problems if problems is not None else plan(sizes, None, variant, balanced, **options).total()
    answers: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    premises: set[bytes] = set()
    questions: set[bytes] = set()
    classes: set[str | None] = set()

    def counted(made: Iterator[Example]) -> Iterator[Example]:
        for number, example in enumerate(made, start=1):
            answers[example.answer] += 1
            kinds[example.kind or ""] += 1
            premises.add(prompt_key(example.messages[:-1]))
            questions.add(prompt_key(example.messages))
            classes.add(example.group)
            yield example
            if progress and (number % _PROGRESS_EVERY == 0 or number == total):
                progress(number, total)

    made = counted(generate(sizes, problems, seed, variant, balanced, **options))
    written = write_evals(out, made, extras=True, overwrite=overwrite)
    return {
        "file": os.fspath(out),
        "variables": sizes,
        "variant": variant,
        "seed": seed,
        "balanced": balanced,
        **options,
        "problems": written,
        "different": len(questions),
        "premises": len(premises),
        "classes": len(classes),
        "answers": {choice: answers[choice] for choice in CHOICES},
        "relations": {relation: kinds[relation] for relation in RELATIONS},
    }


def read_csv(path: str | os.PathLike[str], *, domain: str | None = None) -> Iterator[Example]:
    """Read a published file: columns `input` and `label`, and in the newer ones `template` (the relation).

    Args:
        path: a CSV file of the published form.
        domain: domain of the examples.

    Returns:
        The examples in file order, one at a time; those of one premise have the same `group`.

    Raises:
        DataError: the file or a row of it cannot be used; the message names the file and the row, counted from 1.
    """
    with open_for_reading(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
        rows = csv.DictReader(text)
        try:
            if not {"input", "label"} <= set(rows.fieldnames or ()):
                raise DataError(f"{os.fspath(path)}: not a CORR2CAUSE file; it needs the columns input and label")
            for number, row in enumerate(rows, start=1):
                yield _row(row, f"{os.fspath(path)}: row {number}", domain)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{os.fspath(path)}: no CSV in UTF-8: {error}") from error


def _row(row: dict[str, Any], source: str, domain: str | None) -> Example:
    """One row as an example."""
    premise, _, hypothesis = (row["input"] or "").partition("\nHypothesis: ")
    if not premise.startswith("Premise: ") or not hypothesis:
        raise DataError(f"{source}: the input must be 'Premise: ...', a line break and 'Hypothesis: ...'")
    if row["label"] not in ("0", "1"):
        raise DataError(f"{source}: label is {row['label']!r}; it must be 0 or 1")
    return make_example(
        premise.removeprefix("Premise: "),
        hypothesis,
        row["label"] == "1",
        kind=row.get("template") or None,
        group=f"corr2cause-{stream(premise).getrandbits(48):012x}",
        source=source,
        domain=domain,
    )
