"""The exact solver: what the trials say about a query.

A hypothesis is a set of blickets under which all trials come out as shown (the light is on iff a blicket is there).
A query is on (off) if it is on (off) under every hypothesis, else undetermined. In closed form, with X = the objects of
all off-trials and, for each on-trial, C = its objects without X (one of them, at least, is a blicket):

    Q \\ X is empty          -> off
    Q \\ X contains some C   -> on
    otherwise                -> undetermined

`solve` is the closed form, `solve_by_hypotheses` counts hypotheses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from iclm.data.acre.problem import OFF, ON, UNDETERMINED, Panel, Query
from iclm.errors import DataError

_MOST_OBJECTS = 16


@dataclass(frozen=True, slots=True)
class Evidence:
    """What six trials, or any number, say about their objects.

    Args:
        excluded: objects of off-trials, which are no blickets (X).
        suspects: for each on-trial the objects that may have lit it (C).
        lit: objects of on-trials.
        alone: objects that were the only one in an on-trial.
    """

    excluded: frozenset[int]
    suspects: tuple[frozenset[int], ...]
    lit: frozenset[int]
    alone: frozenset[int]

    @classmethod
    def of(cls, trials: Iterable[Panel]) -> Evidence:
        """Gather the evidence of trials.

        Raises:
            DataError: no set of blickets explains the trials.
        """
        excluded: set[int] = set()
        on = []
        for trial in trials:
            if trial.is_on:
                on.append(frozenset(trial.objects))
            else:
                excluded.update(trial.objects)
        suspects = tuple(objects - excluded for objects in on)
        if not all(suspects):
            raise DataError("no set of blickets explains the trials: an on-trial has only objects of off-trials")
        lit = frozenset().union(*on)
        alone = frozenset().union(*(objects for objects in on if len(objects) == 1))
        return cls(frozenset(excluded), suspects, lit, alone)

    @property
    def known(self) -> frozenset[int]:
        """The objects that must be blickets."""
        return frozenset().union(*(objects for objects in self.suspects if len(objects) == 1))

    @property
    def disjunctive(self) -> list[frozenset[int]]:
        """Sets of which one object, at least, is a blicket, though none is known: distinct and inclusion-minimal."""
        known = self.known
        open_sets = list(dict.fromkeys(objects for objects in self.suspects if not objects & known))
        return [objects for objects in open_sets if not any(other < objects for other in open_sets)]

    def label(self, objects: Collection[int]) -> int:
        """State of the light with `objects` on the machine: 0 off, 1 undetermined, 2 on."""
        rest = frozenset(objects) - self.excluded
        if not rest:
            return OFF
        return ON if any(needed <= rest for needed in self.suspects) else UNDETERMINED

    def type(self, objects: Collection[int]) -> str:
        """How the trials tell about `objects` when those are what a query asks about."""
        label = self.label(objects)
        if label == UNDETERMINED:
            return "potential"
        if label == ON:
            return "indirect" if self.alone.isdisjoint(objects) else "direct"
        return "direct" if self.lit.isdisjoint(objects) else "screen_off"


def solve(trials: Sequence[Panel], query: Query | Collection[int]) -> int:
    """Answer a query exactly, in closed form.

    Args:
        trials: the trials of the problem.
        query: a query, or the object ids on the machine.

    Returns:
        0 off, 1 undetermined, 2 on.

    Raises:
        DataError: no set of blickets explains the trials.
    """
    return Evidence.of(trials).label(_objects(query))


def solve_by_hypotheses(trials: Sequence[Panel], query: Query | Collection[int]) -> int:
    """Answer a query by its definition: try every set of blickets.

    Args:
        trials: the trials of the problem.
        query: a query, or the object ids on the machine.

    Returns:
        0 off, 1 undetermined, 2 on.

    Raises:
        DataError: no set of blickets explains the trials, or there are more than 16 objects.
    """
    asked = _objects(query)
    objects = sorted({number for trial in trials for number in trial.objects}.union(asked))
    if len(objects) > _MOST_OBJECTS:
        raise DataError(f"{len(objects)} objects; trying every set of blickets is for {_MOST_OBJECTS} at most")
    outcomes = {
        not blickets.isdisjoint(asked)
        for blickets in _subsets(objects)
        if all(trial.is_on != blickets.isdisjoint(trial.objects) for trial in trials)
    }
    if not outcomes:
        raise DataError("no set of blickets explains the trials")
    if len(outcomes) == 2:
        return UNDETERMINED
    return ON if outcomes.pop() else OFF


def classify(trials: Sequence[Panel], query: Query | Collection[int]) -> str:
    """The type of a query: how the trials tell, or fail to tell, its answer.

    An intervention query asks about what it adds to the off-trial `ref`. Without a `ref`, what is asked about are the
    objects that no off-trial excludes, or all objects if there are none such.

    Args:
        trials: the trials of the problem.
        query: a query, or the object ids on the machine.

    Returns:
        "direct": a blicket that was alone in an on-trial, or an object of off-trials only; "indirect": on, though nothing
        of it was alone in an on-trial; "screen_off": no blicket, though it was in an on-trial; "potential": undetermined.

    Raises:
        DataError: no set of blickets explains the trials.
    """
    evidence = Evidence.of(trials)
    objects = frozenset(_objects(query))
    if isinstance(query, Query) and query.ref is not None:
        asked = objects.difference(trials[query.ref].objects)
    else:
        asked = objects - evidence.excluded
    return evidence.type(asked or objects)


def _objects(query: Query | Collection[int]) -> Collection[int]:
    """The object ids of a query."""
    return query.objects if isinstance(query, Query) else query


def _subsets(objects: Sequence[int]) -> Iterator[frozenset[int]]:
    """Every subset."""
    for size in range(len(objects) + 1):
        yield from map(frozenset, combinations(objects, size))
