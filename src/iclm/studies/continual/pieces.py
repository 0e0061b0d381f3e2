"""Examples of a sequence that are trained together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from iclm.data.collation import EncodedExample
from iclm.studies.continual.novelty import Unit


@dataclass(frozen=True)
class Piece:
    """Examples that are trained together.

    Attributes:
        unit: their modules.
        examples: encoded, each with the number of its module as domain.
        tasks: the task of each.
        name: of the module that is opened.
        ends: tasks that count as trained after it.
        share: of the prompts that were new, where that was asked.
        points: features in the router's space that place the code [n, dim]; None where there is no code.
    """

    unit: Unit
    examples: tuple[EncodedExample, ...]
    tasks: tuple[str, ...]
    name: str
    ends: tuple[str, ...]
    share: float | None = None
    points: torch.Tensor | None = None


def make_piece(
    unit: Unit,
    examples: Sequence[EncodedExample],
    tasks: Sequence[str],
    name: str,
    ends: Sequence[str],
    share: float | None = None,
    points: torch.Tensor | None = None,
) -> Piece:
    """A piece whose examples are numbered by their modules."""
    numbered = tuple(replace(item, domain=module) for item, module in zip(examples, unit.modules, strict=True))
    return Piece(unit, numbered, tuple(tasks), name, tuple(ends), share, points)
