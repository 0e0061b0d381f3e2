"""The tasks of a sequence one after another as a stream whose boundaries are not told.

A task is read when its first example is due, and no more once all of its examples were trained: what is kept to go on with is where
the stream stands, the features of the few prompts that still wait, and codes.

    task 1 ──────┐ task 2 ─────┐ ...          read one after the other
    ▒▒▒▒ ▒▒▒▒ ▒▒▒▒ ▒▒▒▒ ▒▒▒▒ ▒▒▒▒             chunks of about `novelty.chunk` prompts
    unit 1 ────────┘ unit 2 ────┘ ...          what `novelty.Segmenter` makes of them
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from iclm.data.collation import EncodedExample
from iclm.errors import CheckpointError, DataError, ICLMError
from iclm.model.configuration_iclm import default_name
from iclm.studies.continual.novelty import Calibration, Segmenter, Unit
from iclm.studies.continual.pieces import Piece, make_piece

if TYPE_CHECKING:
    from iclm.studies.continual.units import Reader

ENOUGH = 0.9  # share of a task's examples after which it counts as trained, where units are not tasks


class Stream:
    """A stream of tasks.

    Args:
        reader: reads them, and computes what the router reads of a prompt.
        values, tensors: what `values` and `tensors` gave of an earlier one; none means the beginning.

    Raises:
        CheckpointError: they are damaged.
    """

    def __init__(
        self,
        reader: Reader,
        values: Mapping[str, Any] | None = None,
        tensors: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.reader = reader
        self.items: dict[int, tuple[str, EncodedExample]] = {}  # read and not trained, by number in the stream
        self.starts: list[int] = []  # number of the first example of each task that was read
        self.end = self.next = 0  # numbers of the first example that was not read, and that was not looked at
        self.done: Counter[str] = Counter()  # trained examples of each task
        self.ended: list[str] = []
        self.cut = Segmenter(reader.recipe.novelty)
        if values is not None:
            try:
                self._take_up(values, tensors or {})
            except ICLMError:  # of the data that are read again
                raise
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise CheckpointError(f"where the stream stood is damaged: {error!r}") from error

    # -- reading -------------------------------------------------------------------------------------------------------

    def _read(self, task: int, needed: int) -> None:
        """Read a task, and keep its examples from number `needed` on."""
        name = self.reader.order[task]
        examples = self.reader.train_examples(name)
        if task == len(self.starts):
            self.starts.append(self.end)
            self.end += len(examples)
        start = self.starts[task]
        stop = self.starts[task + 1] if task + 1 < len(self.starts) else self.end
        if len(examples) != stop - start:
            raise DataError(
                f"task {name!r} has {len(examples)} training examples now; it had {stop - start} when it was begun"
            )
        self.items |= {start + at: (name, item) for at, item in enumerate(examples) if start + at >= needed}

    def _more(self, number: int) -> bool:
        """Whether the stream has an example of this number; every task has one."""
        return number < self.end or len(self.starts) < len(self.reader.order)

    def _group(self, number: int) -> tuple[str, Any]:
        """The problem of an example, which is read if it was not."""
        if number not in self.items:
            self._read(len(self.starts), number)
        task, item = self.items[number]
        return task, item.example.group or number

    def _chunk(self) -> list[int]:
        """Numbers of the next prompts; those of one problem stay together."""
        chunk: list[int] = []
        number = self.next
        while self._more(number):
            # a task that was not read yet begins with a problem of its own
            full = len(chunk) >= self.reader.recipe.novelty.chunk
            if full and (number >= self.end or self._group(number) != self._group(chunk[-1])):
                break
            self._group(number)
            chunk.append(number)
            number += 1
        return chunk

    # -- units ---------------------------------------------------------------------------------------------------------

    def pieces(self) -> Iterator[Piece]:
        """The units that are left, each made when it is asked for."""
        while chunk := self._chunk():
            groups = [self._group(number) for number in chunk]
            features = self.reader.features([self.items[number][1] for number in chunk])
            if not self.cut.calibration.codes:
                self.reader.start(features, groups)
            last = not self._more(chunk[-1] + 1)
            complete = self.cut.feed(chunk, self.reader.project(features), groups, last=last)
            self.next = chunk[-1] + 1
            if complete is not None:
                yield self._piece(*complete)
        complete = self.cut.finish()
        if complete is not None:
            yield self._piece(*complete)

    def _piece(self, unit: Unit, placed: torch.Tensor) -> Piece:
        """A complete unit with its examples, which are let go of."""
        found = [self.items.pop(number) for number in unit.examples]
        tasks = [task for task, _ in found]
        self.done.update(tasks)
        ends = [task for task in completed(self.done, self._totals()) if task not in self.ended]
        self.ended += ends
        points = placed if unit.opened else None
        return make_piece(unit, [item for _, item in found], tasks, default_name(unit.main), ends, None, points)

    def _totals(self) -> Iterable[tuple[str, int]]:
        """The tasks that were read, with how many examples each has."""
        stops = [*self.starts[1:], self.end]
        return ((task, stop - start) for task, start, stop in zip(self.reader.order, self.starts, stops, strict=False))

    # -- going on ------------------------------------------------------------------------------------------------------

    @property
    def values(self) -> dict[str, Any]:
        """Where it stands, as JSON."""
        return {
            "starts": self.starts,
            "end": self.end,
            "next": self.next,
            "done": dict(self.done),
            "ended": self.ended,
            "growing": self.cut.growing,
            "waiting": self.cut.waiting,
            "unit": None if self.cut.unit is None else asdict(self.cut.unit),
            "points": list(self.cut.points),
            "errors": self.cut.calibration.errors,
            "placed": self.cut.calibration.placed,
            "problems": self.cut.calibration.problems,
        }

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Codes [modules, dim] and points [n, dim], for a file of their own."""
        parts = {"codes": self.cut.calibration.codes, "points": list(self.cut.points.values())}
        return {name: torch.stack(list(found)).contiguous() for name, found in parts.items() if found}

    def _take_up(self, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        self.starts, self.end, self.next = list(values["starts"]), values["end"], values["next"]
        self.done, self.ended = Counter(values["done"]), list(values["ended"])
        codes = list(tensors.get("codes", torch.empty(0)))
        cut, unit = self.cut, values["unit"]
        placed = values["placed"]
        problems = values.get("problems", placed[-1] if placed else 0)  # an earlier version counted prompts alone
        cut.calibration = Calibration(codes, values["errors"], placed, problems)
        cut.growing, cut.waiting = values["growing"], list(values["waiting"])
        if unit is not None:
            examples, modules, placed = (tuple(unit[name]) for name in ("examples", "modules", "placed"))
            cut.unit = Unit(unit["main"], unit["opened"], examples, modules, placed)
        cut.points = dict(zip(values["points"], tensors.get("points", torch.empty(0)), strict=True))
        needed = min([self.next, *cut.waiting, *(cut.unit.examples if cut.unit is not None else ())])
        for task, (_, start) in enumerate(zip(self.reader.order, self.starts, strict=False)):
            stop = self.starts[task + 1] if task + 1 < len(self.starts) else self.end
            if stop > needed and start < self.end:
                self._read(task, needed)
        cut.groups = {number: self._group(number) for number in cut.waiting}


def completed(done: Mapping[str, int], totals: Iterable[tuple[str, int]]) -> list[str]:
    """The tasks that count as trained: those of whose examples `ENOUGH` are.

    Args:
        done: trained examples by task.
        totals: each task with the number of its examples.
    """
    return [task for task, total in totals if done.get(task, 0) >= ENOUGH * total]
