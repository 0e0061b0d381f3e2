"""How long examples are, and which of them a context length would cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iclm.data.example import Example

_BATCH = 256
_QUANTILES = {"median": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of the examples of a split: prompt, longest choice in these units (or the answer) and end-of-text.

    Args:
        unit: "tokens", or "words" where no tokenizer was given.
        quantiles: "min", "median", "p95", "p99" and "max", in units.
        context: the context length that was asked about.
        cut: how many examples are longer; None if no context was given.
        longest: where the longest example is.
    """

    unit: str
    quantiles: dict[str, int]
    context: int | None
    cut: int | None
    longest: str


def measure_lengths(examples: Sequence[Example], tokenizer: Any, context: int | None) -> Lengths:
    """Measure all examples, a batch at a time; without a tokenizer words are counted, which tokens are not fewer than."""
    counts = np.fromiter(_counts(examples, tokenizer), dtype=np.int64, count=len(examples))
    values = {"min": int(counts.min())}
    values |= {name: int(np.quantile(counts, at, method="higher")) for name, at in _QUANTILES.items()}
    values["max"] = int(counts.max())
    longest = int(counts.argmax())
    return Lengths(
        unit="words" if tokenizer is None else "tokens",
        quantiles=values,
        context=context,
        cut=None if context is None else int((counts > context).sum()),
        longest=examples[longest].source or f"example {longest}",
    )


def _counts(examples: Sequence[Example], tokenizer: Any) -> Iterator[int]:
    for start in range(0, len(examples), _BATCH):
        batch = [
            [example.prompt + answer for answer in example.choices or (example.answer,)]
            for example in examples[start : start + _BATCH]
        ]
        texts = [text for written in batch for text in written]
        if tokenizer is None:
            counts = [len(text.split()) for text in texts]
        else:
            # One more for the end-of-text token that follows the answer.
            counts = [len(ids) + 1 for ids in tokenizer(texts)["input_ids"]]
        at = 0
        for written in batch:
            yield max(counts[at : at + len(written)])
            at += len(written)
