"""What a forward pass of an ICLM returns, after the head and before it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from iclm.model.cache import ICLMCache
from iclm.model.plan import INVARIANT, ActivationPlan, Route


@dataclass
class ICLMOutput(ModelOutput):
    """Result of a forward pass.

    Attributes:
        loss: scalar, where labels were given.
        logits: [batch, tokens, vocabulary]; None in training with labels, where the head runs at labelled tokens only, and for
            examples that share a sequence.
        past_key_values: the cache, where asked for.
        route: active domain modules [examples, active]; None for plain LoRA or a single module.
        decision: the same with weights and the router's own figures.
        terms: the unweighted terms of the loss by name, detached scalars.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: ICLMCache | None = None
    route: torch.Tensor | None = None
    decision: Route | None = None
    terms: dict[str, torch.Tensor] | None = None


@dataclass(frozen=True)
class Encoded:
    """Final hidden states of all rows, before any head.

    Attributes:
        hidden: [rows, tokens, hidden], the base's final normalisation applied.
        plan: which row is which example and module.
        route: the router's decision; None where it was not asked.
        cache: the key-value cache; None where not asked for.
    """

    hidden: torch.Tensor
    plan: ActivationPlan
    route: Route | None
    cache: ICLMCache | None

    def at(self, examples: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """States [n, width, hidden] in the slots of n (example, position) pairs."""
        return self.hidden[self.plan.slots.index_select(0, examples), positions[:, None]]

    def sides(
        self, states: torch.Tensor, examples: torch.Tensor, positions: torch.Tensor, route: Route | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """The two sides of the mixture at n (example, position) pairs.

        Args:
            states: what `at` gave for them, [n, width, hidden].
            route: another than the router's, one decision an example; needs a row for every module.

        Returns:
            States of the invariant module [n, hidden] (None where it is left out), states [n, active, hidden] of the routed
            domain modules, and their weights [n, active].
        """
        fixed, chosen = self.plan.fixed, route if route is not None else self.route
        assert chosen is not None
        indices, weights = chosen.at(examples, positions)
        invariant = states[:, fixed.index(INVARIANT)] if INVARIANT in fixed else None
        if route is None and self.plan.width > len(fixed):
            return invariant, states[:, len(fixed) :], weights
        first = fixed.index(1)  # domain modules follow each other
        return invariant, states.gather(1, first + indices[..., None].expand(-1, -1, states.shape[-1])), weights


class EnoughError(Exception):
    """Ends a forward pass at the router's layer, and carries the hidden states found there."""

    def __init__(self, found: torch.Tensor) -> None:
        super().__init__()
        self.found = found
