"""The units of a sequence: what is read, where the router sends it, and what is trained together.

    boundaries known      a task is a unit, read when its turn comes
    boundaries unknown    the tasks' examples one after another as a stream, cut by the router's error (`stream.Stream`)

With an oracle router each task opens a module of its own, and plain LoRA has none to open: its units are the tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from iclm.data.collation import EncodedExample, encode, training_packs
from iclm.data.loading import read_sources
from iclm.errors import DataError, ICLMError
from iclm.evaluation.runs import context_length
from iclm.model import ICLMForCausalLM
from iclm.model.router import LearnedRouter
from iclm.recipe import DataSource
from iclm.studies.continual.novelty import Calibration, Unit, held_out, whole_task
from iclm.studies.continual.pieces import Piece, make_piece
from iclm.studies.continual.recipe import ContinualRecipe, sources_of
from iclm.training.features import prompt_features


class Reader:
    """Reads the tasks of a recipe, and decides where their examples go.

    Args:
        recipe: of the experiment.
        order: the tasks in the order in which they come.
        seed: of generated training problems.
        tokenizer: the base's.
        model: whose router decides; the modules that were opened are in it.
        max_tokens: of a prompt and its answer; None means what the base takes.
        pack: whether questions of a problem share a sequence, where the base can part them.
    """

    def __init__(
        self,
        recipe: ContinualRecipe,
        order: Sequence[str],
        seed: int,
        tokenizer: PreTrainedTokenizerBase,
        model: ICLMForCausalLM,
        max_tokens: int | None = None,
        pack: bool = True,
    ) -> None:
        self.recipe, self.order, self.seed = recipe, tuple(order), seed
        self.tokenizer, self.model = tokenizer, model
        self.max_tokens, self.pack = max_tokens or context_length(model), pack

    def read(self, task: str, sources: Sequence[DataSource], what: str) -> list[EncodedExample]:
        """The encoded examples of a task; raises `DataError` that names it where there are none or they cannot be read."""
        try:
            found = read_sources(sources)
            if not found:
                raise DataError("there is no example; give it at least one")
            return encode(found, self.tokenizer, max_tokens=self.max_tokens)
        except ICLMError as error:
            raise DataError(f"task {task!r}, {what}: {error}") from error

    def tests(self) -> dict[str, list[EncodedExample]]:
        """The test questions of every task."""
        return {task: self.read(task, self.recipe.tasks[task].test, "test questions") for task in self.order}

    def train_examples(self, task: str) -> list[EncodedExample]:
        """What a task is learned from."""
        return self.read(task, sources_of(self.recipe, task, self.seed), "training examples")

    def pieces(self, done: int, calibration: Calibration) -> Iterator[Piece]:
        """The units after the first `done` where a task is one, each made when it is asked for.

        Args:
            calibration: of the modules that are open; grows with those that are opened.
        """
        learns_codes = isinstance(self.model.router, LearnedRouter)
        for number in range(done, len(self.order)):
            task = self.order[number]
            examples = self.train_examples(task)
            if learns_codes:
                yield self._decided(task, examples, calibration)
                continue
            opened = self.model.router is not None
            module = number if opened else -1
            every = tuple(range(len(examples)))
            unit = Unit(module, opened, every, (module,) * len(every))
            yield make_piece(unit, examples, [task] * len(examples), task, (task,))

    def _decided(self, task: str, examples: list[EncodedExample], calibration: Calibration) -> Piece:
        """A task whose boundaries are known, with the module that the router's error sends it to."""
        groups, features = groups_of(examples), self.features(examples)
        if not calibration.codes:
            self.start(features, groups)
        points = self.project(features)
        unit, share = whole_task(calibration, points, groups, self.recipe.novelty)
        placed = points[list(unit.placed)] if unit.opened else None
        return make_piece(unit, examples, [task] * len(examples), task, (task,), share, placed)

    def features(self, examples: list[EncodedExample]) -> torch.Tensor:
        """What the router reads of each prompt, float32 [n, hidden]."""
        packs = training_packs(examples, self.tokenizer.eos_token_id, pack=self.model.packs(self.pack))
        return prompt_features(self.model, packs, int(self.tokenizer.pad_token_id))

    def start(self, features: torch.Tensor, groups: Sequence[Any]) -> None:
        """Set the standardisation and reduction of a router that knows nothing yet."""
        assert isinstance(self.model.router, LearnedRouter)
        placing = ~held_out(groups, self.recipe.novelty.held_out)
        self.model.router.fit((features[placing] if bool(placing.any()) else features).to(self.model.device))

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Features in the router's space, on the CPU."""
        assert isinstance(self.model.router, LearnedRouter)
        return self.model.router.project(features.to(self.model.device)).cpu()


def groups_of(examples: Sequence[EncodedExample], tasks: Sequence[str] | None = None) -> list[Any]:
    """The problem of each example; one without a group is a problem of its own."""
    return [
        (None if tasks is None else tasks[number], item.example.group or number) for number, item in enumerate(examples)
    ]
