"""The audit: what is in the data, and which cheap strategies answer it without solving it.

A strategy is scored by cross-validation within each split, whole problems at a time. It is named a shortcut if the
lower bound of its accuracy exceeds by `MARGIN` what guessing gives: chance, the majority answer, and for a strategy
with a control (the last item against an item drawn at random) the control.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from iclm.data.audit.duplicates import find_duplicates
from iclm.data.audit.folds import make_folds, problem_keys, sample_problems
from iclm.data.audit.interval import design_effect, wilson_interval
from iclm.data.audit.lengths import measure_lengths
from iclm.data.audit.report import FAILS, SHORTCUT, UNUSED, AuditReport, SplitReport, StrategyResult
from iclm.data.audit.strategies import STRATEGIES, Majority, Position, Strategy
from iclm.data.example import Example
from iclm.errors import ConfigurationError, DataError

MARGIN = 0.10
"""How far above guessing the lower bound must lie. A statistical excess alone would name word frequencies that sway one
answer in fifty of a large file; ten points are more than most compared methods differ by, so a model that has only
learned the shortcut could be taken for a better one. With the bound (not the accuracy) above it, chance alone would
need more than two standard errors on top of ten points."""

FOLDS = 5
MOST_SCORED = 8_000
_MOST_ANSWERS = 20

Progress = Callable[[str], None]
"""Called with the name of the split and the strategy that is being scored."""


def audit(
    splits: Mapping[str, Sequence[Example]],
    *,
    tokenizer: Any = None,
    context: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> AuditReport:
    """Audit splits of a data set.

    Args:
        splits: the examples of each split by its name; one is enough.
        tokenizer: what is called with a list of texts and gives their `input_ids`; without it, words are counted.
        context: a context length in tokens; the report says how many examples are longer.
        seed: names the parts that strategies are fitted and scored on, and which examples of more than
            `MOST_SCORED` are scored.
        progress: called before each strategy.

    Returns:
        The report; the same for the same examples and seed.

    Raises:
        ConfigurationError: there is no split, or `context` is not a positive integer.
        DataError: a split holds no examples.
    """
    if not splits:
        raise ConfigurationError("there is nothing to audit; give at least one split")
    if context is not None and (type(context) is not int or context < 1):
        raise ConfigurationError(f"context is {context!r}; it must be a positive number of tokens")
    for name, examples in splits.items():
        if not examples:
            raise DataError(f"split {name!r} is empty; an audit needs at least one example in each")
    reports = tuple(
        _audit_split(name, examples, tokenizer, context, seed, progress) for name, examples in splits.items()
    )
    return AuditReport(splits=reports, duplicates=tuple(find_duplicates(splits)), seed=seed)


def _audit_split(
    name: str,
    examples: Sequence[Example],
    tokenizer: Any,
    context: int | None,
    seed: int,
    progress: Progress | None,
) -> SplitReport:
    answers = Counter(example.answer for example in examples)
    listed = all(example.choices for example in examples)
    chance = sum(1 / len(example.choices) for example in examples) / len(examples) if listed else None
    positions = Counter(example.answer_index for example in examples) if listed else Counter()
    scored = sample_problems(examples, MOST_SCORED, seed)
    return SplitReport(
        name=name,
        examples=len(examples),
        problems=len(set(problem_keys(examples))),
        chance=chance,
        answers=dict(sorted(answers.items(), key=lambda item: (-item[1], item[0]))[:_MOST_ANSWERS]),
        different_answers=len(answers),
        positions=dict(sorted(positions.items())),
        domains=_counted(example.domain for example in examples),
        kinds=_counted(example.kind for example in examples),
        lengths=measure_lengths(examples, tokenizer, context),
        strategies=_score_all(name, scored, chance if chance is not None else 1 / len(answers), seed, progress),
    )


def _counted(names: Any) -> dict[str, int]:
    """How often each name is there, the most common first."""
    return dict(sorted(Counter(name or "" for name in names).items(), key=lambda item: (-item[1], item[0])))


def _score_all(
    split: str, examples: Sequence[Example], chance: float, seed: int, progress: Progress | None
) -> tuple[StrategyResult, ...]:
    folds, keys = make_folds(examples, FOLDS, seed), problem_keys(examples)
    results: dict[str, StrategyResult] = {}
    for strategy in STRATEGIES:
        if progress:
            progress(f"{split}: {strategy.name}")
        reference = chance
        if strategy not in (Majority, Position):
            reference = max(reference, results[Majority.name].accuracy or 0.0)
        if strategy.control is not None:
            reference = max(reference, results[strategy.control].accuracy or 0.0)
        results[strategy.name] = _score(strategy, examples, keys, folds, reference)
    return tuple(results.values())


def _score(
    strategy: type[Strategy],
    examples: Sequence[Example],
    keys: Sequence[bytes],
    folds: Sequence[Sequence[int]],
    reference: float,
) -> StrategyResult:
    """Score a strategy on every example, fitted on the parts that the example is not in."""
    candidate = strategy()
    reason = candidate.unfit(examples)
    if reason is None and len(folds) < 2:
        reason = "there is only one problem: nothing to fit on"
    if reason is not None:
        return StrategyResult(strategy.name, UNUSED, reason)
    candidate.prepare(examples)
    credits = [0.0] * len(examples)
    for fold in folds:
        held_out = set(fold)
        candidate.fit([example for number, example in enumerate(examples) if number not in held_out])
        scored = [examples[number] for number in fold]
        for number, prediction in zip(fold, candidate.predict(scored), strict=True):
            credits[number] = prediction.count(examples[number].answer) / len(prediction)
    accuracy = sum(credits) / len(examples)
    # The questions of a problem may be answered alike: so many of them are worth an independent one.
    effect = design_effect(credits, keys)
    low, high = wilson_interval(accuracy * len(examples) / effect, len(examples) / effect)
    found = low > reference + MARGIN
    figures = f"{100 * accuracy:.1f} % right, where {100 * reference:.1f} % need nothing"
    sentence = f"{strategy.name}: {figures}: " + (strategy.finding if found else "no more than cheap guessing gives")
    return StrategyResult(
        strategy.name, SHORTCUT if found else FAILS, sentence, len(examples), accuracy, low, high, reference
    )
