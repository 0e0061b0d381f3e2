"""How the states of the invariant module and of the active domain modules become one next-token distribution.

    mix      head( M [h_inv ; h_dom] ),  M = [g I, (1 - g) I] with g = 1/2 at the start, the base model's own head
    concat   W [h_inv ; h_dom],          W = [1/2 W_base, 1/2 W_base] at the start, a trainable 2H -> V head
    logits   g head(h_inv) + (1 - g) sum_k w_k head(h_k)
    probas   log( g p_inv + (1 - g) sum_k w_k p_k ),  p = softmax(head(h)), plus the same mean of the log-normalisers

h_dom is the weighted mean of the active domain states h_k; every state has already passed the base's final normalisation,
which is the normalisation of the concatenation too: statistics of the batch play no part. At the start all modules give
the base's own states, so each aggregator gives exactly the base's logits (for `probas` the log-normalisers see to it; they
change no probability).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from iclm.model.backbone import Head
from iclm.model.configuration_iclm import ICLMConfig


def weigh(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum [n, hidden] of domain states [n, active, hidden] with weights [n, active]."""
    if states.shape[1] == 1 and not weights.requires_grad:
        return states[:, 0]  # the weight of a single module is one
    return (states * weights[..., None].to(states.dtype)).sum(1)


class Aggregator(nn.Module):
    """Base of the aggregators that share a weight of the invariant side: fixed at one half, or a learned scalar gate."""

    def __init__(self, config: ICLMConfig) -> None:
        super().__init__()
        self.kind = config.mix
        if self.kind == "gate":
            self.logit = nn.Parameter(torch.zeros(()))

    def share(self, dtype: torch.dtype) -> torch.Tensor | float:
        """The weight g of the invariant side."""
        return torch.sigmoid(self.logit).to(dtype) if self.kind == "gate" else 0.5

    def forward(
        self, invariant: torch.Tensor, domains: torch.Tensor, weights: torch.Tensor, head: Head
    ) -> torch.Tensor:
        """Logits [n, vocabulary] of the states of both sides.

        Args:
            invariant: states [n, hidden].
            domains: states [n, active, hidden].
            weights: of the domain modules [n, active], summing to 1.
            head: the base model's own.
        """
        raise NotImplementedError


class MixAggregator(Aggregator):
    """The base head on a weighted mean of the two states; "low_rank" adds a residual on both that starts at zero."""

    def __init__(self, config: ICLMConfig) -> None:
        super().__init__(config)
        assert config.hidden_size is not None
        if self.kind == "low_rank":
            generator = torch.Generator().manual_seed(config.seed)
            down = torch.randn(config.mix_rank, 2 * config.hidden_size, generator=generator)
            self.down = nn.Parameter(down / (2 * config.hidden_size) ** 0.5)
            self.up = nn.Parameter(torch.zeros(config.hidden_size, config.mix_rank))

    def forward(
        self, invariant: torch.Tensor, domains: torch.Tensor, weights: torch.Tensor, head: Head
    ) -> torch.Tensor:
        """See `Aggregator.forward`."""
        domain, share = weigh(domains, weights), self.share(invariant.dtype)
        mixed = share * invariant + (1 - share) * domain
        if self.kind == "low_rank":
            both = torch.cat([invariant, domain], dim=-1)
            mixed = mixed + F.linear(F.linear(both, self.down.to(both.dtype)), self.up.to(both.dtype))
        return head(mixed)


class ConcatAggregator(nn.Module):
    """The paper's head on the normalised concatenation, started from the base head instead of at random."""

    def __init__(self, base_head: nn.Linear) -> None:
        super().__init__()
        half = base_head.weight.detach().float() / 2
        self.weight = nn.Parameter(torch.cat([half, half], dim=1))
        self.bias = None if base_head.bias is None else nn.Parameter(base_head.bias.detach().float().clone())

    def forward(
        self, invariant: torch.Tensor, domains: torch.Tensor, weights: torch.Tensor, head: Head
    ) -> torch.Tensor:
        """See `Aggregator.forward`; of `head` only the finish is used."""
        both = torch.cat([invariant, weigh(domains, weights)], dim=-1)
        bias = None if self.bias is None else self.bias.to(both.dtype)
        return head.finish(F.linear(both, self.weight.to(both.dtype), bias))


class LogitsAggregator(Aggregator):
    """A weighted mean of the modules' logits."""

    def forward(
        self, invariant: torch.Tensor, domains: torch.Tensor, weights: torch.Tensor, head: Head
    ) -> torch.Tensor:
        """See `Aggregator.forward`."""
        share = self.share(torch.float32)
        return share * head(invariant).float() + (1 - share) * weigh(head(domains).float(), weights)


class ProbasAggregator(Aggregator):
    """A weighted mean of the modules' probabilities, as a mixture of experts in the strict sense."""

    def forward(
        self, invariant: torch.Tensor, domains: torch.Tensor, weights: torch.Tensor, head: Head
    ) -> torch.Tensor:
        """See `Aggregator.forward`."""
        share = self.share(torch.float32)
        logits = torch.cat([head(invariant)[:, None], head(domains)], dim=1).float()
        sides = torch.cat([torch.ones_like(weights[:, :1]) * share, weights * (1 - share)], dim=1).float()
        normalisers = torch.logsumexp(logits, dim=-1, keepdim=True)
        mixed = torch.logsumexp(logits - normalisers + sides.clamp_min(1e-30).log()[..., None], dim=1)
        return mixed + (sides * normalisers[..., 0]).sum(1, keepdim=True)


def build_aggregator(config: ICLMConfig, base_head: nn.Linear) -> nn.Module | None:
    """The aggregator that a configuration asks for; None where the mixture has one side only."""
    if config.num_domains == 0 or config.ablation == "no_invariant":
        return None
    if config.aggregator == "concat":
        return ConcatAggregator(base_head)
    return {"mix": MixAggregator, "logits": LogitsAggregator, "probas": ProbasAggregator}[config.aggregator](config)
