"""The metrics of continual learning, all from one accuracy matrix.

    R[i, j]    accuracy on task j after the tasks up to i were learned; i = 0 is before the first, 1 ≤ j ≤ T

    average accuracy     A        = 1/T  Σ_j  R[T, j]
    backward transfer    BWT      = 1/(T-1)  Σ_{j<T}  R[T, j] - R[j, j]
    forward transfer     FWT      = 1/(T-1)  Σ_{j>1}  R[j-1, j] - R[0, j]
    forgetting           F        = 1/(T-1)  Σ_{j<T}  max_{j≤i<T} R[i, j] - R[T, j]
    learning curve area  LCA      = 1/T  Σ_{i=1..T}  (A_{i-1} + A_i) / 2        with A_i = 1/T Σ_j R[i, j]

A, BWT and FWT: Lopez-Paz & Ranzato, NeurIPS 2017, where R[0] is a random model; here it is the untouched base model. F:
Chaudhry et al., ECCV 2018, whose maximum runs over all i < T; before task j was learned there is nothing to forget, so ours begins
at j. LCA is the area under the accuracy on all tasks over the course of the sequence, at the tasks' ends and from 0 to 1 (that of
Chaudhry et al., ICLR 2019, is the same over the first batches of each task). A mean over tasks one of which was not asked is
None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iclm.errors import ConfigurationError


@dataclass(frozen=True)
class AccuracyMatrix:
    """Accuracies of one module in one sequence.

    Args:
        values: R, float [T + 1, T]; NaN where a task was not asked.
    """

    values: np.ndarray

    def __post_init__(self) -> None:
        shape = self.values.shape
        if len(shape) != 2 or shape[0] != shape[1] + 1 or shape[1] < 1:
            raise ConfigurationError(f"an accuracy matrix of T tasks is [T + 1, T]; this one is {list(shape)}")

    @property
    def tasks(self) -> int:
        """T."""
        return int(self.values.shape[1])

    @property
    def average(self) -> float | None:
        """A, at the end."""
        return _mean(self.values[-1])

    @property
    def backward(self) -> float | None:
        """BWT; below 0 where earlier tasks got worse. None for a single task."""
        at = np.arange(self.tasks - 1)
        return _mean(self.values[-1, at] - self.values[at + 1, at])

    @property
    def forward(self) -> float | None:
        """FWT; above 0 where earlier tasks help one that has not come yet. None for a single task."""
        at = np.arange(1, self.tasks)
        return _mean(self.values[at, at] - self.values[0, at])

    @property
    def forgetting(self) -> float | None:
        """F; at 0 or below where no task is known less well than when it was known best. None for a single task."""
        best = [self.values[j + 1 : -1, j].max() for j in range(self.tasks - 1)]
        return _mean(np.array(best) - self.values[-1, : self.tasks - 1])

    @property
    def area(self) -> float | None:
        """LCA."""
        means = self.values.mean(1)
        return _mean((means[:-1] + means[1:]) / 2)

    @property
    def learned(self) -> float | None:
        """Mean accuracy on each task right after it was learned: 1/T Σ_j R[j, j]."""
        at = np.arange(self.tasks)
        return _mean(self.values[at + 1, at])

    def asked(self) -> AccuracyMatrix:
        """The matrix of the tasks alone that were asked at the end, with a row after each of them.

        The last of its rows is the one at the end also where other tasks came after the last of these, so it is for a module that
        does not change once it has learned.
        """
        kept = np.flatnonzero(~np.isnan(self.values[-1]))
        rows = [0, *(kept[:-1] + 1), self.tasks]
        return AccuracyMatrix(self.values[np.ix_(rows, kept)])

    def metrics(self) -> dict[str, float | None]:
        """All of them by name."""
        names = ("average", "learned", "backward", "forward", "forgetting", "area")
        return {name: getattr(self, name) for name in names}


def _mean(values: np.ndarray) -> float | None:
    """Their mean; None of nothing, or where one is unknown."""
    return float(values.mean()) if len(values) and not np.isnan(values).any() else None


def matrix_of(
    rows: Iterable[Mapping[str, Any]], tasks: Sequence[str], before: Mapping[str, float] | None = None
) -> AccuracyMatrix:
    """The accuracy matrix of the rows of one module in one sequence.

    Args:
        rows: with `trained_through` (0 to T), `tested_on`, `correct` and `n`.
        tasks: in the order in which they came.
        before: accuracy of the untouched base by task, where the rows do not say.

    Raises:
        ConfigurationError: a row of a task that is not in the sequence, or two that contradict each other.
    """
    values = np.full((len(tasks) + 1, len(tasks)), np.nan)
    if before is not None:
        values[0] = [before.get(task, np.nan) for task in tasks]
    seen: dict[tuple[int, int], float] = {}
    for row in rows:
        if row["tested_on"] not in tasks or not 0 <= row["trained_through"] <= len(tasks):
            raise ConfigurationError(
                f"a row of task {row['tested_on']!r} after {row['trained_through']} tasks is not of the sequence {list(tasks)}"
            )
        place, value = (row["trained_through"], tasks.index(row["tested_on"])), row["correct"] / row["n"]
        if seen.setdefault(place, value) != value:
            raise ConfigurationError(
                f"two rows of task {row['tested_on']!r} after {place[0]} tasks say different things"
            )
        values[place] = value
    return AccuracyMatrix(values)
