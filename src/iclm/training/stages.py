"""The stages of a training: which module learns when.

    joint        mixture, all losses at once                                             training.epochs
    two_stage    1 invariant: the invariant module alone on all domains, plain LM loss   training.invariant_epochs
                 2 domains: router, domain modules and aggregator, all losses, the       training.epochs
                   invariant module frozen (invariant_rate 0) or slowed

Each stage has an optimizer, a learning-rate schedule and checkpoints of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from iclm.model.plan import INVARIANT
from iclm.recipe import TrainingSection


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: joint, invariant or domains.
        epochs: passes over the training examples.
        number: 1 or 2, None where it is the only one.
        first_epoch: passes that came before, whose orders are not used again.
        module: what runs, as in `ICLMForCausalLM.forward`.
        invariant_rate: factor on the learning rate of the invariant module; 0 freezes it.
    """

    name: str = "joint"
    epochs: int = 1
    number: int | None = None
    first_epoch: int = 0
    module: str = "mixture"
    invariant_rate: float = 1.0

    def trains(self, name: str) -> bool:
        """Whether a parameter of this name is trained."""
        if self.module == "invariant":
            return is_invariant(name)
        return self.invariant_rate > 0 or not is_invariant(name)

    @contextmanager
    def only(self, model: nn.Module) -> Iterator[None]:
        """Freeze what this stage does not train; what was frozen by it is trainable again afterwards."""
        idle = [p for name, p in model.named_parameters() if p.requires_grad and not self.trains(name)]
        for parameter in idle:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in idle:
                parameter.requires_grad_(True)


def stages_of(section: TrainingSection) -> tuple[Stage, ...]:
    """The stages of a training."""
    if section.stages == "joint":
        return (Stage(epochs=section.epochs),)
    before = section.invariant_epochs
    return (
        Stage("invariant", before, number=1, module="invariant"),
        Stage("domains", section.epochs, number=2, first_epoch=before, invariant_rate=section.invariant_rate),
    )


def is_invariant(name: str) -> bool:
    """Whether a parameter belongs to the invariant module."""
    return name.endswith((f"lora_A.{INVARIANT}", f"lora_B.{INVARIANT}"))


@dataclass(frozen=True)
class Ramp:
    """The weight of the independence loss over the steps: 0 up to `start`, then rising linearly for `length`.

    Step t of n, counted from 0, lies at the share t / n; the whole weight is reached where that is `start + length` or more, so that with a
    sum of 1 the last step is one step's rise below it.

    Attributes:
        start, length: shares of all steps, `start + length` at most 1.
    """

    start: float = 0.0
    length: float = 0.0

    @property
    def flat(self) -> bool:
        """Whether the weight is the same in every step."""
        return self.start == 0 and self.length == 0

    def scale(self, step: int, steps: int) -> float:
        """Factor in [0, 1] on the weight in step `step` of `steps`, counted from 0."""
        past = step / max(steps, 1) - self.start
        if past < 0:
            return 0.0
        return 1.0 if past >= self.length else past / self.length


@dataclass(frozen=True)
class Rates:
    """Peak learning rates of what is no adapter.

    Attributes:
        aggregator: of `aggregator.*`; None means that of the adapters.
        router, critic: of `router.*` and `independence.*`, without weight decay.
    """

    aggregator: float | None = None
    router: float = 1e-3
    critic: float = 1e-3
