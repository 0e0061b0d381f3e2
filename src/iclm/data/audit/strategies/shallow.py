"""A shallow rule for ACRE that gets far without inferring a cause: it misses what needs exclusion, and nothing else.

    an object of the query was alone in an on-trial      -> on
    all objects of the query were in off-trials          -> off
    otherwise                                            -> undetermined

Of the types of query it answers direct, screen_off and potential, and not one that is indirect: there an object must be the
cause because all others of its on-trial are excluded. As an on-trial of one object, or an off-trial, tells the truth, the
rule is never wrong when it says on or off.
"""

from __future__ import annotations

from collections.abc import Sequence

from iclm.data.acre.problem import OFF, ON, UNDETERMINED
from iclm.data.audit.items import read_scene
from iclm.data.audit.strategies.base import Prediction, Strategy
from iclm.data.example import Example


class ShallowRule(Strategy):
    """Alone in an on-trial: on; all excluded: off; else undetermined. Nothing is learned."""

    name = "shallow rule"
    finding = "few queries need an object to be inferred by exclusion"

    def unfit(self, examples: Sequence[Example]) -> str | None:
        if any(len(example.choices) != 3 for example in examples):
            return "it answers off, undetermined or on: three choices in this order"
        if not all(read_scene(example, ()).query for example in examples):
            return "prompts hold no trials that share objects with the query"
        return None

    def fit(self, examples: Sequence[Example]) -> None:
        return None

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        return [(example.choices[_state(example)],) for example in examples]


def _state(example: Example) -> int:
    """Number of the choice that the rule takes."""
    scene = read_scene(example, ())
    alone = {trial.items[0] for trial in scene.demonstrations if trial.state == ON and len(trial.items) == 1}
    excluded = {item for trial in scene.demonstrations if trial.state == OFF for item in trial.items}
    if not alone.isdisjoint(scene.query):
        return ON
    return OFF if excluded.issuperset(scene.query) else UNDETERMINED
