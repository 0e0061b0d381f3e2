"""The key-value cache of an ICLM: B rows in the trunk's layers, R rows above the split, and the route decided once."""

from __future__ import annotations

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from iclm.errors import ConfigurationError
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
        self.module: int | None = None  # number of the module that the plan runs alone, None for the mixture

    def keep(
        self, plan: ActivationPlan, route: Route | None, fixed: tuple[int, ...], module: int | None = None
    ) -> None:
        """Keep what was decided on the prompt, for all tokens after it.

        Args:
            plan, route: of the prompt; where routing is by token, later tokens follow the last one.
            fixed: the modules of every example in a mixture.
            module: number of the module that runs alone, None for the mixture.
        """
        self.module = module
        if route is not None and route.tokens is not None:
            route = Route(route.indices, route.weights)
            plan = ActivationPlan.mixture(route, fixed=fixed)
        self.plan, self.route = plan, route

    def reset(self) -> None:
        """Forget all tokens, and what was decided on their prompt."""
        super().reset()
        self.plan, self.route, self.module = None, None, None

    def check(self, module: int | None, route: torch.Tensor | Route | None, *, every_module: bool = False) -> None:
        """Raise `ConfigurationError` for modules or a route that are not those whose keys and values the cache holds."""
        if self.plan is None:
            return
        if module != self.module or every_module:
            raise ConfigurationError(
                "past_key_values holds the keys and values of another module than the one asked for; a module goes on with the "
                "cache of its own prompt"
            )
        if route is None or route is self.route or self.route is None:
            return
        given, own = route if isinstance(route, Route) else Route.to(route), self.route
        same = given.indices.shape == own.indices.shape
        same = same and torch.equal(given.indices.to(own.indices), own.indices)
        if not same or not torch.equal(given.weights.to(own.weights), own.weights):
            raise ConfigurationError(
                "route differs from that of past_key_values, whose keys and values are of the modules chosen on the prompt; leave it "
                "out, or run the prompt again"
            )

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


def can_cache(base: PreTrainedModel) -> bool:
    """Whether a base works with an `ICLMCache`: not one with a cache of its own kind (MiniMax), or of recurrent layers alone (Mamba)."""
    if not base._supports_default_dynamic_cache():
        return False
    try:
        ICLMCache(base.config, 0).get_seq_length()
    except ValueError:  # no layer has keys, by which tokens are counted
        return False
    return True
