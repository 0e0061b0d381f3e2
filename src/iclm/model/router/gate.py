"""Learned gates: a linear layer on the reduced features z, trained by the language-modelling loss.

    logits = W z + b,  started so that softmax(logits) favours the nearest k-means centre c:  -|z - c|^2 / (dim τ)

    soft     all K modules, weights softmax(logits): every module costs its rows
    topk     the `active` modules with the largest logits, weights softmax among them
    gumbel   the same, in training with Gumbel noise on the logits (a sample of softmax(logits); Jang et al. 2017,
             Maddison et al. 2017); without noise in evaluation

With one active module its weight is 1, and the gradient of its probability is passed straight through. The router's own
loss is the load balance of Fedus et al. 2022, K Σ_i f_i p_i with p the mean probabilities of the batch; f, the share of
examples on module i, is a moving average over batches, because one batch may well be of one domain. It is 1 where all
modules are used alike.
"""

from __future__ import annotations

import torch
from torch import nn

from iclm.model.configuration_iclm import ICLMConfig
from iclm.model.plan import Route
from iclm.model.router.base import LearnedRouter, squared_distances
from iclm.model.router.cluster import centres_of
from iclm.model.router.prompt import Units

USAGE_DECAY = 0.95


class GateRouter(LearnedRouter):
    """A linear gate over the domain modules; see the head of this module."""

    centres: torch.Tensor
    usage: torch.Tensor

    def __init__(self, config: ICLMConfig) -> None:
        super().__init__(config)
        self.temperature = config.router_temperature
        self.weight = nn.Parameter(torch.zeros(config.num_domains, self.dim))
        self.bias = nn.Parameter(torch.zeros(config.num_domains))
        self.register_buffer("centres", torch.zeros(config.num_domains, self.dim))
        self.register_buffer("usage", torch.full((config.num_domains,), 1.0 / max(config.num_domains, 1)))

    @property
    def codes(self) -> torch.Tensor:
        """The centres that the gate was started from, float32 [K, dim]."""
        return self.centres

    def start(self, features: torch.Tensor, domains: torch.Tensor | None = None) -> None:
        """Start the gate from k-means on reduced features [n, dim]."""
        self.centres.copy_(centres_of(features, self.num_domains, self.seed, domains))
        self._favour(slice(None))

    def place(self, code: torch.Tensor, examples: int) -> None:
        """Start the last gate from its centre; it has no share of the examples seen in training."""
        self.centres[-1], self.usage[-1] = code, 0.0
        self._favour(slice(-1, None))

    def _favour(self, rows: slice) -> None:
        """Give these rows of the gate the start that favours their centres."""
        scale = self.dim * self.temperature
        self.weight[rows] = 2 * self.centres[rows] / scale
        self.bias[rows] = -self.centres[rows].square().sum(1) / scale

    def decide(self, units: Units) -> Route:
        """Weigh the modules for each unit."""
        features = self.reduced(units)
        logits = features @ self.weight.T + self.bias
        learning = self.training and torch.is_grad_enabled()
        noisy = logits
        if self.kind == "gumbel" and learning:
            noisy = logits - torch.empty_like(logits).exponential_().clamp_min(1e-20).log()
        probabilities = torch.softmax(noisy, dim=1)
        chosen, indices = probabilities.topk(self.active, dim=1)
        if self.active == 1:
            weights = (chosen - chosen.detach()) + 1  # straight through: exactly 1, with the gradient of chosen
        else:
            weights = chosen / chosen.sum(1, keepdim=True)
        error = squared_distances(features.detach(), self.centres).gather(1, indices[:, :1])[:, 0]
        return Route(indices, weights, error=error, loss=self._balance(logits, indices, learning))

    def _balance(self, logits: torch.Tensor, indices: torch.Tensor, learning: bool) -> torch.Tensor | None:
        if not len(logits):
            return None
        mean = torch.softmax(logits, dim=1).mean(0)
        with torch.no_grad():
            if self.kind == "soft":
                share = mean
            else:
                share = torch.bincount(indices.flatten(), minlength=self.num_domains) / indices.numel()
            usage = self.usage.lerp(share.to(self.usage), 1 - USAGE_DECAY)
            if learning:
                self.usage.copy_(usage)
        return self.num_domains * (usage * mean).sum()
