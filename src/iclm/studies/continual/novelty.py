"""Does a known module fit what comes, or is a new one to be opened? Decided from the router's quantisation error alone.

    error(x)    mean squared distance of a prompt's features to the nearest code
    new(x)      error(x) > margin · quantile of the errors of that code's own prompts, those that did not place it
    open        where more than `share` of the prompts that came together are new

Features are those of the frozen base, so nothing here depends on what was learned. Where boundaries are known, what comes
together is a task; where they are not, it is a chunk of the stream: its new prompts go to the module that they open, the
others to the nearest; new ones that are too few to open a module are looked at once more with the next chunk. A module's code and threshold grow with the chunks that follow until another module is opened
or found to fit; then they are frozen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from iclm.model.router.base import squared_distances
from iclm.studies.continual.recipe import Novelty


@dataclass
class Calibration:
    """What is known of the modules that were opened, by module number.

    Attributes:
        codes: their points [dim].
        errors: quantisation errors of prompts of their own that placed no code, sorted.
        placed: how many prompts a code is the mean of.
        problems: how many problems the module that was opened last has had.
    """

    codes: list[torch.Tensor] = field(default_factory=list)
    errors: list[list[float]] = field(default_factory=list)
    placed: list[int] = field(default_factory=list)
    problems: int = 0

    def threshold(self, module: int, novelty: Novelty) -> float:
        """Error above which a prompt is new to a module."""
        errors = torch.tensor(self.errors[module], dtype=torch.float64)
        return novelty.margin * float(torch.quantile(errors, novelty.quantile))

    def nearest(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Number of the nearest code of each point [n, dim], and the error there, both [n]."""
        error, module = squared_distances(points, torch.stack(self.codes)).min(1)
        return module, error

    def is_new(self, points: torch.Tensor, novelty: Novelty) -> torch.Tensor:
        """Whether each point [n, dim] is new to the module of its nearest code, bool [n]; all are where there is none."""
        if not self.codes:
            return torch.ones(len(points), dtype=torch.bool)
        module, error = self.nearest(points)
        limits = torch.tensor([self.threshold(number, novelty) for number in range(len(self.codes))])
        return error.double() > limits[module.cpu()].to(error.device)

    def open(self, points: torch.Tensor, groups: Sequence[Any], novelty: Novelty) -> torch.Tensor:
        """Open a module for points [n, dim]; returns which of them place its code, bool [n].

        Args:
            groups: problem of each point: problems are held out whole, so that no prompt calibrates its own neighbour.
        """
        self.codes.append(points.new_zeros(points.shape[1]))
        self.errors.append([])
        self.placed.append(0)
        self.problems = 0
        return self.extend(points, groups, novelty)

    def extend(self, points: torch.Tensor, groups: Sequence[Any], novelty: Novelty) -> torch.Tensor:
        """Take more points [n, dim] of the module that was opened last.

        Its code is the mean of those that place it. Of one problem alone there are none to hold out, and it does both until there
        is a second.

        Returns:
            Which of the points place the code, bool [n].
        """
        calibrating = held_out(groups, novelty.held_out, self.problems)
        placing = ~calibrating
        if self.problems == 0 and bool(placing.all()):
            calibrating = placing
        elif self.problems == 1 and bool(calibrating.any()):
            self.errors[-1] = []
        self.problems += len(set(groups))
        count = self.placed[-1] + int(placing.sum())
        self.codes[-1] = (self.codes[-1] * self.placed[-1] + points[placing].sum(0)) / count
        self.placed[-1] = count
        found = squared_distances(points[calibrating], self.codes[-1][None])[:, 0].tolist()
        self.errors[-1] = sorted([*self.errors[-1], *found])
        return placing


def held_out(groups: Sequence[Any], share: float, before: int = 0) -> torch.Tensor:
    """Which points calibrate, bool [n]: those of about this share of the groups, spread evenly in their order.

    Groups that are too few for one of them to be held out are counted on from those before, and of the first two or more of all
    one is held out in any case.

    Args:
        before: how many groups there were before these.
    """
    first = dict.fromkeys(groups)
    start = 0 if int(len(first) * share) else before
    numbers = {group: number for number, group in enumerate(first, start)}
    chosen = {group for group, at in numbers.items() if int((at + 1) * share) > int(at * share)}
    if not chosen and before < 2 <= before + len(first):
        chosen = {next(reversed(first))}
    return torch.tensor([group in chosen for group in groups], dtype=torch.bool)


@dataclass(frozen=True)
class Unit:
    """Examples that are trained together.

    Attributes:
        main: the module that most of them are of, and that learns if it was opened for them.
        opened: whether it was.
        examples: their numbers, in the order in which they came.
        modules: the module of each.
        placed: those of them that place its code.
    """

    main: int
    opened: bool
    examples: tuple[int, ...]
    modules: tuple[int, ...]
    placed: tuple[int, ...] = ()


def whole_task(
    calibration: Calibration, points: torch.Tensor, groups: Sequence[Any], novelty: Novelty
) -> tuple[Unit, float]:
    """Decide for a task whose boundaries are known.

    Args:
        calibration: of the modules that are open; grows where one is opened.
        points: features of its prompts [n, dim].
        groups: problem of each.

    Returns:
        The task as a unit, all of whose examples go to one module, and the share of its prompts that was new.
    """
    share = float(calibration.is_new(points, novelty).float().mean())
    every = tuple(range(len(points)))
    if share > novelty.share:
        placed = calibration.open(points, groups, novelty).nonzero()[:, 0].tolist()
        main = len(calibration.codes) - 1
        return Unit(main, True, every, (main,) * len(every), tuple(placed)), share
    main = int(calibration.nearest(points)[0].mode().values)
    return Unit(main, False, every, (main,) * len(every)), share


def chunks(groups: Sequence[Any], size: int) -> Iterator[list[int]]:
    """Numbers of about `size` examples that follow each other; those of one problem stay together."""
    chunk: list[int] = []
    for number, group in enumerate(groups):
        if len(chunk) >= size and group != groups[chunk[-1]]:
            yield chunk
            chunk = []
        chunk.append(number)
    if chunk:
        yield chunk


@dataclass
class Segmenter:
    """Cuts a stream whose boundaries are unknown into units, looking at each chunk once and never ahead.

    Attributes:
        novelty: when a module is opened.
        calibration: of the modules that are open; grows.
        growing: the module whose code still moves; -1 for none.
        waiting: new prompts of the last chunk, of which there were too few to open a module.
        unit: what is not complete yet.
        points: of the prompts that wait, and of those that place the code of `unit`, [dim] by number.
        groups: problems of the prompts that wait, by number.
        shares: for each chunk the share of its prompts that was new.
    """

    novelty: Novelty
    calibration: Calibration = field(default_factory=Calibration)
    growing: int = -1
    waiting: list[int] = field(default_factory=list)
    unit: Unit | None = None
    points: dict[int, torch.Tensor] = field(default_factory=dict)
    groups: dict[int, Any] = field(default_factory=dict)
    shares: list[float] = field(default_factory=list)

    def feed(
        self, fresh: Sequence[int], points: torch.Tensor, groups: Sequence[Any], *, last: bool
    ) -> tuple[Unit, torch.Tensor] | None:
        """Look at the next chunk.

        Args:
            fresh: numbers of its prompts in the stream.
            points: their features [n, dim].
            groups: the problem of each.
            last: whether the stream ends with it.

        Returns:
            The unit that is complete now, if one is, and the points that place its code.
        """
        self.points |= dict(zip(fresh, points, strict=True))
        self.groups |= dict(zip(fresh, groups, strict=True))
        numbers = [*self.waiting, *fresh]
        at, here = torch.tensor(numbers), torch.stack([self.points[number] for number in numbers])
        owners = [self.groups[number] for number in numbers]
        new = self.calibration.is_new(here, self.novelty)
        self.shares.append(float(new.float().mean()))
        modules = self.calibration.nearest(here)[0] if self.calibration.codes else torch.full_like(at, -1)
        before = self.unit
        if self.shares[-1] > self.novelty.share:
            placing = self.calibration.open(here[new], _chosen(owners, new), self.novelty)
            self.growing, self.waiting = len(self.calibration.codes) - 1, []
            opened = at[new]
            if before is not None and not bool(new.all()):  # the end of what came before lies in this chunk
                before = _joined(before, at[~new], modules[~new])
            fresh_unit = Unit(self.growing, True, (), ())
            self.unit = _joined(fresh_unit, opened, torch.full_like(opened, self.growing), opened[placing])
            return self._complete(before)
        # what is new may be the beginning of something: it is looked at once more, with the next chunk
        later = new & (torch.arange(len(at)) >= len(self.waiting)) & (not last)
        self.waiting = at[later].tolist()
        known = ~new
        main = int((modules[known] if bool(known.any()) else modules).mode().values)
        placed = at[:0]
        if main == self.growing:
            own = known & (modules == main)  # a prompt that is new would raise the threshold that called it so
            placed = at[own][self.calibration.extend(here[own], _chosen(owners, own), self.novelty)]
        else:
            self.growing = -1
        ends = before is None or before.main != main
        unit = Unit(main, False, (), ()) if ends or before is None else before
        self.unit = _joined(unit, at[~later], modules[~later], placed)
        return self._complete(before if ends else None)

    def finish(self) -> tuple[Unit, torch.Tensor] | None:
        """The last unit, after the last chunk."""
        unit, self.unit = self.unit, None
        return self._complete(unit)

    def _complete(self, unit: Unit | None) -> tuple[Unit, torch.Tensor] | None:
        """A complete unit with its points; what nothing needs any more is let go of."""
        found = None
        if unit is not None:
            placed = [self.points[number] for number in unit.placed]
            found = unit, torch.stack(placed) if placed else torch.empty(0)
        kept = {*self.waiting, *(self.unit.placed if self.unit is not None else ())}
        self.points = {number: point for number, point in self.points.items() if number in kept}
        self.groups = {number: group for number, group in self.groups.items() if number in self.waiting}
        return found


def segment(
    calibration: Calibration, points: torch.Tensor, groups: Sequence[Any], novelty: Novelty
) -> tuple[list[Unit], list[float]]:
    """Cut a whole stream (`Segmenter`).

    Args:
        calibration: of the modules that are open; grows.
        points: features of all prompts of the stream [n, dim].
        groups: problem of each.

    Returns:
        The units, and for each chunk the share of its prompts that was new.
    """
    segmenter, parts = Segmenter(novelty, calibration), list(chunks(groups, novelty.chunk))
    found = [
        segmenter.feed(part, points[part], [groups[number] for number in part], last=turn == len(parts) - 1)
        for turn, part in enumerate(parts)
    ]
    return [unit for unit, _ in filter(None, [*found, segmenter.finish()])], segmenter.shares


def _chosen(items: Sequence[Any], mask: torch.Tensor) -> list[Any]:
    return [item for item, take in zip(items, mask.tolist(), strict=True) if take]


def _joined(unit: Unit, numbers: torch.Tensor, modules: torch.Tensor, placed: torch.Tensor | None = None) -> Unit:
    """A unit with some further examples."""
    return replace(
        unit,
        examples=(*unit.examples, *numbers.tolist()),
        modules=(*unit.modules, *modules.tolist()),
        placed=(*unit.placed, *(() if placed is None else placed.tolist())),
    )
