"""Context-blind strategies: they see the choices and nothing of what is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from iclm.data.audit.options import option_texts, shared_values
from iclm.data.audit.strategies.base import Prediction, Strategy, at_most
from iclm.data.audit.strategies.ngrams import SparseLogistic, ngram_features
from iclm.data.example import Example

_MOST_FITTED = 2_000


class ChoicesAlike(Strategy):
    """The choice that has most in common with the other choices; nothing is learned."""

    name = "choices only, most alike"
    finding = "the choices alone give the answer away: it is the one that has most in common with the others"

    def unfit(self, examples: Sequence[Example]) -> str | None:
        texts = [option_texts(example) for example in examples]
        if not any(texts):
            return "the choices say nothing but their labels" if examples[0].choices else "the answer is free"
        if None in texts:
            return "some examples have no texts for their choices"
        if len({frozenset(options) for options in texts if options}) == 1:
            return "the choices are the same in all examples"
        return None

    def fit(self, examples: Sequence[Example]) -> None:
        return None

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        predictions = []
        for example in examples:
            scores = shared_values(option_texts(example) or example.choices)
            most = max(scores)
            predictions.append(tuple(c for c, score in zip(example.choices, scores, strict=True) if score == most))
        return predictions


class ChoicesShortest(ChoicesAlike):
    """The shortest choice, which the sum of its log-likelihoods favours; nothing is learned."""

    name = "choices only, shortest"
    finding = "the choices alone give the answer away: it is the shortest"

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        shortest = (min(map(len, example.choices)) for example in examples)
        return [
            tuple(choice for choice in example.choices if len(choice) == length)
            for example, length in zip(examples, shortest, strict=True)
        ]


class ChoicesLearned(ChoicesAlike):
    """The choice whose words, length and likeness to the others most resemble those of right answers."""

    name = "choices only, learned"
    finding = "the choices alone give the answer away: right ones differ from wrong ones in wording or length"

    def prepare(self, examples: Sequence[Example]) -> None:
        self.rows: dict[int, range] = {}
        at = 0
        for example in examples:
            self.rows[id(example)] = range(at, at + len(example.choices))
            at += len(example.choices)
        self.features = _features(examples)

    def fit(self, examples: Sequence[Example]) -> None:
        fitted = at_most(examples, _MOST_FITTED)
        right = [choice == example.answer for example in fitted for choice in example.choices]
        self.model = SparseLogistic(self._rows(fitted), np.array(right, dtype=int)) if len(set(right)) == 2 else None

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        if self.model is None:
            return [example.choices for example in examples]
        scores = self.model.scores(self._rows(examples))
        predictions: list[Prediction] = []
        at = 0
        for example in examples:
            own = np.round(scores[at : at + len(example.choices)], 9)
            at += len(example.choices)
            predictions.append(tuple(c for c, s in zip(example.choices, own, strict=True) if s == own.max()))
        return predictions

    def _rows(self, examples: Sequence[Example]) -> Any:
        """The features of all choices of some of the prepared examples."""
        return self.features[[row for example in examples for row in self.rows[id(example)]]]


def _features(examples: Sequence[Example]) -> Any:
    """N-grams, relative length and relative likeness of every choice: sparse [choices of all examples, features]."""
    texts: list[str] = []
    numbers: list[list[float]] = []
    for example in examples:
        options = option_texts(example) or example.choices
        texts.extend(options)
        lengths = np.array([len(option) for option in options], dtype=float)
        columns = [_standard(lengths), _standard(np.array(shared_values(options), dtype=float))]
        columns += [(lengths == lengths.max()).astype(float), (lengths == lengths.min()).astype(float)]
        numbers.extend(np.stack(columns, axis=1).tolist())
    return sparse.hstack([ngram_features(texts), sparse.csr_matrix(np.array(numbers))], format="csr")


def _standard(values: np.ndarray) -> np.ndarray:
    """Values of one example, less their mean, in units of their spread."""
    spread = values.std()
    return (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)
