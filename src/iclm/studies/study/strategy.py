"""A cheap strategy as a method of a study: fitted on the training examples, asked the test questions; no model is loaded.

It is fitted on the training examples of a test source's own domain, or on all where none is of it: knowing the domain only
makes it stronger. Of answers that it holds for equally likely one is drawn.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from iclm.data.audit.strategies import BY_NAME
from iclm.data.draws import below, stream
from iclm.data.example import Example
from iclm.data.loading import read_source, read_sources
from iclm.errors import ConfigurationError
from iclm.recipe import DataSource, Recipe
from iclm.studies.study.rows import Outcome, about, answers_of, kinds_of

MODULE = "strategy"  # of its rows


def run_strategy(name: str, recipe: Recipe, sources: Sequence[DataSource]) -> Outcome:
    """Fit a strategy and ask it.

    Args:
        name: of the strategy.
        recipe: its training sources are fitted on, its seed is that of draws between equally likely answers.
        sources: what is asked.

    Raises:
        ConfigurationError: there is no such strategy, or it cannot be used on these examples.
    """
    if name not in BY_NAME:
        raise ConfigurationError(f"strategy is {name!r}; known are {'; '.join(BY_NAME)}")
    train = read_sources(recipe.data.train)
    rows: list[dict[str, Any]] = []
    questions = []
    seconds = 0.0
    for number, source in enumerate(sources):
        found = read_source(source)
        domains = {example.domain for example in found}
        known = [example for example in train if example.domain in domains] or train
        strategy = BY_NAME[name]()
        fixed = about(number, sources, found, recipe.data.train)
        reason = strategy.unfit(known) or strategy.unfit(found)
        if reason is not None:
            raise ConfigurationError(f"strategy {name!r} cannot be used on {fixed['test_set']}: {reason}")
        started = time.perf_counter()
        strategy.prepare([*known, *found])
        strategy.fit(known)
        seconds += time.perf_counter() - started
        source_of_draws = stream("study-strategy", recipe.seed, number)
        taken = [answers[below(source_of_draws, len(answers))] for answers in strategy.predict(found)]
        right = [answer == example.answer for example, answer in zip(found, taken, strict=True)]
        counts = {"n": len(found), "correct": sum(right), "by_kind": _by_kind(found, right)}
        chosen = [_number(answer, example) for example, answer in zip(found, taken, strict=True)]
        rows.append({"module": MODULE, **fixed, **counts, **answers_of(right, chosen)})
        questions.append(kinds_of(found))
    return Outcome(rows, questions, round(seconds, 3), len(train), 0, "cpu", None)


def _number(answer: str, example: Example) -> int:
    """Which choice an answer is, -1 for none."""
    return example.choices.index(answer) if answer in example.choices else -1


def _by_kind(found: Sequence[Example], right: Sequence[bool]) -> dict[str, list[int]]:
    """For each kind of question how many were answered right, and of how many."""
    counts: dict[str, list[int]] = {}
    for example, correct in zip(found, right, strict=True):
        if example.kind is not None:
            entry = counts.setdefault(example.kind, [0, 0])
            entry[0] += correct
            entry[1] += 1
    return dict(sorted(counts.items()))
