"""Routers that learn nothing: always the same module, the true domain, or chance."""

from __future__ import annotations

import numpy as np
import torch

from iclm.errors import ConfigurationError
from iclm.model.configuration_iclm import ICLMConfig
from iclm.model.plan import Route
from iclm.model.router.base import Router
from iclm.model.router.prompt import Units


class FixedRouter(Router):
    """Always the same domain module ("fixed:i")."""

    def __init__(self, config: ICLMConfig) -> None:
        super().__init__(config)
        self.domain = int(config.router.removeprefix("fixed:"))

    def decide(self, units: Units) -> Route:
        """Send every unit to the one domain module."""
        return Route.to(torch.full((len(units),), self.domain, device=units.tokens.device))


class OracleRouter(Router):
    """The true domain of each example, given with the batch."""

    def decide(self, units: Units) -> Route:
        """Send each unit to the module of its domain; raises `ConfigurationError` where the domain is not known."""
        if units.domains is None:
            raise ConfigurationError("the oracle router needs the domain of each example; pass domain_ids, or --domain")
        return Route.to(check_domains(units.domains, self.num_domains))


def check_domains(domains: torch.Tensor, num_domains: int) -> torch.Tensor:
    """Return the domains unchanged, or raise `ConfigurationError` if one has no module."""
    if bool(((domains < 0) | (domains >= num_domains)).any()):
        raise ConfigurationError(
            f"domain_ids holds {sorted(set(domains.tolist()))}; the model has domain modules 0 to {num_domains - 1}"
        )
    return domains


class RandomRouter(Router):
    """A domain drawn by a hash of the prompt: as good as chance, and still the same for the same prompt anywhere.

    By token the hash is that of the token alone (a hash layer, Roller et al. 2021).
    """

    def __init__(self, config: ICLMConfig) -> None:
        super().__init__(config)
        self.seed = config.seed

    def decide(self, units: Units) -> Route:
        """Send each unit to domains that depend on nothing but its tokens and the seed."""
        drawn: dict[tuple[int, ...], np.ndarray] = {}
        order = []
        for tokens, mask in zip(units.tokens.cpu().numpy(), units.mask.cpu().numpy(), strict=True):
            key = (self.seed, *(int(token) for token in tokens[mask]))
            if key not in drawn:
                drawn[key] = np.random.default_rng(key).permutation(self.num_domains)[: self.active]
            order.append(drawn[key])
        return Route.to(torch.from_numpy(np.stack(order)).to(units.tokens.device))
