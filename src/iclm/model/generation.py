"""Generation with a route that is decided once, on the prompt."""

from __future__ import annotations

from typing import Any

from transformers import GenerationMixin
from transformers.generation import GenerationMode

from iclm.errors import ConfigurationError
from iclm.model.cache import can_cache
from iclm.model.plan import Route


class RoutedGenerationMixin(GenerationMixin):
    """transformers' generation, told two things about an ICLM.

    The cache is made by the model, which knows rows and routes, not by `generate`; and the route of the first forward pass
    is handed to all later ones, so that decoding without a cache takes the same modules as decoding with one.
    """

    def _expand_inputs_for_generation(self, expand_size: int = 1, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; a route that was given is expanded too, so that every beam of an example follows it."""
        route = kwargs.pop("route", None)
        ids, expanded = super()._expand_inputs_for_generation(expand_size, *args, **kwargs)
        if isinstance(route, Route):
            route = route.repeat(expand_size)
        elif route is not None:
            route = route.repeat_interleave(expand_size, dim=0)
        return ids, expanded if route is None else {**expanded, "route": route}

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """As in transformers; a base that cannot use an ICLM's cache goes without one."""
        if not can_cache(self.base):  # type: ignore[attr-defined]
            generation_config.use_cache = model_kwargs["use_cache"] = False
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)

    def _validate_generation_mode(self, generation_mode: Any, *args: Any, **kwargs: Any) -> None:
        """As in transformers; guesses that are taken back are refused, as the rows and the route of a cache cannot be."""
        if generation_mode == GenerationMode.ASSISTED_GENERATION:
            raise ConfigurationError(
                "assisted generation (assistant_model, prompt_lookup_num_tokens) takes back tokens, which the cache of an ICLM "
                "cannot; leave it out"
            )
        super()._validate_generation_mode(generation_mode, *args, **kwargs)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        if model_kwargs.get("past_key_values") is not None:
            model_kwargs.pop("route", None)  # the cache knows it
        elif outputs.decision is not None:
            model_kwargs["route"] = outputs.decision
        return model_kwargs
