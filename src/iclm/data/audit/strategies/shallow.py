"""Rules for ACRE that get far without inferring a cause.

    shallow rule        an object of the query was alone in an on-trial      -> on
                        all objects of the query were in off-trials          -> off
                        otherwise                                            -> undetermined

    containment rule    the same, but for the first: the query holds all objects of an on-trial   -> on

    counting rule       the same as the containment rule, and besides: an object of the query, in no
                        off-trial, was in two on-trials or more   -> on

Of the types of query the shallow rule answers direct, screen_off and potential, and not one that is indirect: on, though no
object of it was alone in an on-trial. Some of these hold an on-trial whole, so that nothing need be excluded: the containment rule
answers them too. What it misses needs exclusion: an object must be the cause because others of its on-trial are excluded. As
a query that holds an on-trial, or objects of off-trials alone, has the state of that, neither rule is ever wrong when it says
on or off. The counting rule is: an object of several on-trials is likelier a cause than one of a single, so that it says on more often where exclusion
would show it than where nothing is settled, and excludes nothing either. It is what to hold a difference of the two against.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from iclm.data.acre.problem import OFF, ON, UNDETERMINED
from iclm.data.audit.items import read_scene
from iclm.data.audit.strategies.base import Prediction, Strategy
from iclm.data.example import Example


class ShallowRule(Strategy):
    """Alone in an on-trial: on; all excluded: off; else undetermined. Nothing is learned."""

    name = "shallow rule"
    finding = "few queries need an object to be inferred by exclusion"
    most: ClassVar[int | None] = 1
    """Objects of an on-trial that the rule can see whole in a query, at most; None means any number."""
    lit: ClassVar[int | None] = None
    """On-trials that an object which was in no off-trial must have been in to be taken for a cause; None means that none is."""

    def unfit(self, examples: Sequence[Example]) -> str | None:
        if any(len(example.choices) != 3 for example in examples):
            return "it answers off, undetermined or on: three choices in this order"
        if not all(read_scene(example, ()).query for example in examples):
            return "prompts hold no trials that share objects with the query"
        return None

    def fit(self, examples: Sequence[Example]) -> None:
        return None

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        return [(example.choices[_state(example, self.most, self.lit)],) for example in examples]


class ContainmentRule(ShallowRule):
    """An on-trial is in the query, whole: on; all excluded: off; else undetermined. Nothing is learned."""

    name = "containment rule"
    most = None


class CountingRule(ContainmentRule):
    """As the containment rule, but an object that was in two on-trials or more and in no off-trial is taken for a cause too."""

    name = "counting rule"
    lit = 2


def needs_exclusion(examples: Sequence[Example]) -> list[bool]:
    """Of which questions of ACRE the answer is on, though no on-trial is in the query whole; none of what is no such question."""
    rule = ContainmentRule()
    if rule.unfit(examples) is not None:
        return [False] * len(examples)
    return [
        example.answer_index == ON and said != (example.answer,)
        for example, said in zip(examples, rule.predict(examples), strict=True)
    ]


def _state(example: Example, most: int | None, times: int | None) -> int:
    """Number of the choice that a rule takes, which sees on-trials of at most so many objects, and takes an object of so many for a cause."""
    scene = read_scene(example, ())
    query = set(scene.query)
    lit = [trial.items for trial in scene.demonstrations if trial.state == ON]
    if any(query.issuperset(items) for items in lit if most is None or len(items) <= most):
        return ON
    excluded = {item for trial in scene.demonstrations if trial.state == OFF for item in trial.items}
    if times is not None and any(sum(item in items for items in lit) >= times for item in query - excluded):
        return ON
    return OFF if excluded.issuperset(query) else UNDETERMINED
