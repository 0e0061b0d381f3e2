"""The key-value cache of an ICLM: B rows in the trunk's layers, R rows above the split, and the route decided once."""

from __future__ import annotations

import torch
from transformers import DynamicCache, PreTrainedConfig

from iclm.model.plan import ActivationPlan, Route


class ICLMCache(DynamicCache):
    """A dynamic cache that keeps the plan of the prompt and reorders trunk and upper layers each in its own rows.

    Args:
        config: configuration of the base model.
        split_layer: the first layer that holds rows instead of examples.
    """

    def __init__(self, config: PreTrainedConfig, split_layer: int) -> None:
        super().__init__(config=config)
        self.split_layer = split_layer
        self.plan: ActivationPlan | None = None
        self.route: Route | None = None

    def keep(self, plan: ActivationPlan, route: Route | None, fixed: tuple[int, ...]) -> None:
        """Keep what was decided on the prompt, for all tokens after it.

        Args:
            plan, route: of the prompt; where routing is by token, later tokens follow the last one.
            fixed: the modules of every example in a mixture.
        """
        if route is not None and route.tokens is not None:
            route = Route(route.indices, route.weights)
            plan = ActivationPlan.mixture(route, fixed=fixed)
        self.plan, self.route = plan, route

    def rows_of(self, examples: torch.Tensor) -> torch.Tensor:
        """Row numbers [n * width] of the examples [n] named by index."""
        width = self.plan.width if self.plan is not None else 1
        return (examples[:, None] * width + torch.arange(width, device=examples.device)).reshape(-1)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep the examples named by `beam_idx` [batch], in that order, as beam search asks for."""
        rows = self.rows_of(beam_idx)
        for index, layer in enumerate(self.layers):
            layer.reorder_cache(beam_idx if index < self.split_layer else rows)
        self._select(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only the examples named by `indices`."""
        rows = self.rows_of(indices)
        for index, layer in enumerate(self.layers):
            layer.batch_select_indices(indices if index < self.split_layer else rows)
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every example `repeats` times, beside each other."""
        batch = self.plan.sequences if self.plan is not None else self.layers[0].keys.shape[0]
        device = self.layers[0].keys.device
        self.batch_select_indices(torch.arange(batch, device=device).repeat_interleave(repeats))

    def _select(self, examples: torch.Tensor) -> None:
        if self.route is not None:
            self.route = self.route.select(examples)
        if self.plan is not None:
            self.plan = self.plan.select(examples)
