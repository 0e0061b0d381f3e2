"""What an ICLM does with its router: read the frozen base at the router's layer, decide, and fit."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch

from iclm.errors import ConfigurationError
from iclm.model.arguments import check_shape, real_tokens
from iclm.model.cache import ICLMCache
from iclm.model.losses import before_labels
from iclm.model.modules import Activation
from iclm.model.outputs import EnoughError
from iclm.model.packing import Packing
from iclm.model.plan import ActivationPlan, Route
from iclm.model.router import LearnedRouter, Prompt, check_domains

ROUTER_UNITS = 16384  # that a router is fitted on at most; only prompt tokens can be more


class RoutingMixin:
    """The routing of an `ICLMForCausalLM`."""

    base: Any
    router: Any
    runtime: Any
    config: Any
    device: Any
    dtype: Any
    get_decoder: Any
    no_packing: str | None
    matched_domains: frozenset[int] | None = None
    """The domains that the module of their number got an example of when the router was fitted; None where that is not known."""

    def _run_decoder(
        self,
        activation: Activation,
        input_ids: torch.Tensor,
        mask: torch.Tensor,
        packing: Packing | None,
        cache: ICLMCache | None = None,
    ) -> torch.Tensor:
        if packing is None:
            positions = (mask.long().cumsum(-1) - 1).clamp_min(0)[:, mask.shape[1] - input_ids.shape[1] :]
            attention: Any = mask
        else:
            if self.no_packing is not None:
                raise ConfigurationError(f"examples cannot share a sequence of this base: {self.no_packing}")
            positions = packing.positions
            attention = packing.attention(self.base.config.get_text_config(decoder=True), self.dtype)
        with self.runtime.use(activation):
            output = self.get_decoder()(
                input_ids=input_ids,
                attention_mask=attention,
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        return output.last_hidden_state

    def _prompt(
        self,
        input_ids: torch.Tensor,
        mask: torch.Tensor,
        hidden: torch.Tensor,
        prompt_mask: torch.Tensor | None,
        packing: Packing | None,
        domains: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
    ) -> Prompt:
        check_shape("prompt_mask", prompt_mask, input_ids)
        readable = mask.bool() if prompt_mask is None else prompt_mask.bool() & mask.bool()
        if packing is None:
            owner, example_at = torch.arange(len(input_ids), device=input_ids.device), None
        else:
            readable, owner, example_at = packing.readable(readable), packing.owner, packing.example_at()
        if features is not None:
            features = self._check_features(features, len(owner))
        return Prompt(input_ids, readable, owner, hidden, domains, example_at, features)

    def _check_features(self, features: torch.Tensor, examples: int) -> torch.Tensor:
        """Features that were computed before, in float32; raises `ConfigurationError` unless there is one an example."""
        if self.config.router_level != "input":
            raise ConfigurationError("router_features are of whole prompts; with router_level 'token' leave them out")
        wanted = [examples, self.config.hidden_size]
        if list(features.shape) != wanted:
            raise ConfigurationError(f"router_features is {list(features.shape)}; for this batch it must be {wanted}")
        return features.float()

    def _given(self, route: torch.Tensor | Route | None, examples: int, tokens: int) -> Route | None:
        """A route that is given, for so many examples of so many tokens; None without domain modules."""
        if self.router is None or route is None:
            return None
        count = len(route.indices) if isinstance(route, Route) else len(route)
        if count != examples:
            raise ConfigurationError(f"route is for {count} examples; the batch has {examples}")
        if isinstance(route, Route):
            return route.extended(tokens)
        return Route.to(check_domains(route, self.config.num_domains))

    def _decide(self, prompt: Prompt) -> Route:
        """The router's own decision, at full precision also under autocast: a prompt goes where it goes without."""
        with torch.autocast(prompt.tokens.device.type, enabled=False):
            return self.router(prompt)

    @torch.no_grad()
    def _read(self, input_ids: torch.Tensor, mask: torch.Tensor, packing: Packing | None) -> torch.Tensor:
        """Hidden states of the frozen base at the router's layer, [batch, tokens, hidden]; runs no further than that."""

        def stop(hidden: torch.Tensor) -> ActivationPlan:
            raise EnoughError(hidden)

        try:
            return self._run_decoder(Activation(stop, 1, 1.0), input_ids, mask, packing)  # the last hidden state
        except EnoughError as enough:
            return enough.found

    @torch.no_grad()
    def router_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        prompt_mask: torch.Tensor | None = None,
        packing: Packing | None = None,
    ) -> torch.Tensor:
        """What the router decides on at its layer: pooled prompts [examples, hidden], or with router_level "token" the
        prompt tokens [n, hidden]; a pure function of the text.

        Raises:
            ConfigurationError: there is no router.
        """
        if self.router is None:
            raise ConfigurationError("there is no router: the model has no domain modules")
        mask = real_tokens(input_ids, attention_mask, 0)
        hidden = self._read(input_ids, mask, packing)
        return self.router.units(self._prompt(input_ids, mask, hidden, prompt_mask, packing))

    def batch_features(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the router decides on for a batch of training examples (keys as for `forward`, on the model's device).

        Raises:
            ConfigurationError: there is no router, or the batch's own `router_features` are of another shape.
        """
        branch_ids, prompt = batch.get("branch_ids"), batch.get("prompt_mask")
        mask = real_tokens(batch["input_ids"], batch.get("attention_mask"), 0)
        packing = None if branch_ids is None else Packing.of(branch_ids)
        given = batch.get("router_features")
        if given is not None:
            return self._check_features(given, len(batch["input_ids"] if packing is None else packing.owner))
        if prompt is None and "labels" in batch:
            check_shape("labels", batch["labels"], batch["input_ids"])
            prompt = before_labels(batch["labels"], branch_ids, mask)
        return self.router_features(batch["input_ids"], mask, prompt, packing)

    @torch.no_grad()
    def route(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, domain_ids: torch.Tensor | None = None
    ) -> Route | None:
        """The router's decision for a batch of prompts [batch, tokens]; None without domain modules. Runs the trunk only."""
        if self.router is None:
            return None
        mask = real_tokens(input_ids, attention_mask, 0)
        hidden = self._read(input_ids, mask, None)
        return self._decide(self._prompt(input_ids, mask, hidden, None, None, domain_ids))

    def fit_router(self, batches: Iterable[dict[str, torch.Tensor]], *, warn_unmatched: bool = True) -> int:
        """Start the router from batches of training examples (keys as for `forward`); returns how many there were, or
        with router_level "token" how many prompt tokens.

        A router that learns nothing from examples is left as it is, and 0 is returned. The codes are found without the domains.
        Where `domain_ids` of all examples are given (not by token), they number the codes: code i is the one that most agrees with
        domain i, one code a domain. Domains that look alike may share one, and one that looks like two takes two.

        Args:
            warn_unmatched: warn of the domains none of whose examples goes to the module of their number.

        Raises:
            ConfigurationError: there is no batch.
        """
        if not isinstance(self.router, LearnedRouter):
            return 0
        features, domains = [], []
        for given in batches:
            batch = {name: tensor.to(self.device) for name, tensor in given.items()}
            features.append(self.batch_features(batch))
            domains += [batch["domain_ids"]] if "domain_ids" in batch else []
        if not features:
            raise ConfigurationError("fit_router got no batch; a router is started from training examples")
        joined, every = torch.cat(features), -(-sum(map(len, features)) // ROUTER_UNITS)
        known = self.router.level == "input" and sum(map(len, domains)) == len(joined)
        units, numbers = joined[::every], torch.cat(domains)[::every] if known else None
        self.router.fit(units, numbers)
        if numbers is not None:
            nearest = self.router.nearest(self.router.project(units.float()), self.router.codes)[0][:, 0]
            self.matched_domains = frozenset(numbers[nearest == numbers].tolist())
            if warn_unmatched:
                self._warn_of_unmatched(set(numbers.tolist()) & set(range(self.config.num_domains)))
        return len(joined)

    def _warn_of_unmatched(self, domains: set[int]) -> None:
        lost = sorted(domains - (self.matched_domains or frozenset()))
        if lost:
            warnings.warn(
                f"the router found no module of their own for domains {lost}: their examples go to the modules of others; give examples "
                "that differ more, or router='oracle' with domain_ids",
                stacklevel=3,
            )
