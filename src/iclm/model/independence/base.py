"""What every independence loss shares: enough samples, comparable scales, and a gradient for each of the two sides.

    states of both modules [tokens, H]
        ─▶ fixed random orthonormal projection ─▶ joined with a queue of past pairs ─▶ standardised ─▶ estimate
           [tokens, 2, D]                         [pairs, 2, D]

A batch has a few dozen labelled tokens and a state hundreds of dimensions: at that size no estimator can tell
independent states from identical ones. Hence the projection to D dimensions and the queue. Past pairs carry no gradient,
so the gradient of the batch is multiplied by pairs / tokens: it is that of an estimate from new pairs alone, whatever the
length of the queue. The mean and deviation of the standardisation count as constants in the gradient, so part of it only
shrinks the states, which makes no pair less dependent; how much depends on the loss (see `cross_correlation`). Past pairs
are also out of date: states that change much within the mi_queue / tokens steps of a queue are pushed past independence
and back, and a smaller weight or queue is then the cure.

A variational estimate has a critic, which is trained against the states. Two terms keep the sides apart in one backward
pass of `weight * value + critic`: the gradient of `value` reaches the states only, that of `critic` the critic only. The
critic learns from the pairs of the batch alone, so from each pair once: trained on the whole queue at every step it knows
its 1,024 pairs by heart, and finds 5 to 6 nats (CLUB) or 3 (InfoNCE) in independent states of 64 dimensions, where it
finds 0.5 and 0.15 this way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import nn

from iclm.errors import ConfigurationError
from iclm.model.configuration_iclm import ICLMConfig

CRITIC_WIDTH = 128  # of the one hidden layer of a critic: some 10^4 parameters, to be learned from some 10^3 pairs


@dataclass
class IndependenceTerms:
    """What one batch says about the dependence of the two modules."""

    value: torch.Tensor
    """The estimate, a scalar; its gradient reaches the states and no parameter of the loss."""
    critic: torch.Tensor | None = None
    """The critic's own loss, a scalar whose gradient reaches the critic's parameters only; None without a critic."""


class IndependenceLoss(nn.Module, ABC):
    """Base class: projects, remembers and standardises the pairs; a child estimates their dependence.

    Args:
        config: reads hidden_size, mi_projection (dimensions D after the projection; None: all hidden dimensions, no
            projection), mi_queue (past pairs kept; 0: none), mi_detach_domain, mi_temperature (plugin only) and seed (of
            the projection and the critic's start; the global random state is neither read nor moved).

    The queue and its fill are buffers, so training resumed from a checkpoint goes on with the same estimate.

    Raises:
        ConfigurationError: a configuration without hidden_size.
    """

    projection: torch.Tensor | None
    queue: torch.Tensor
    filled: torch.Tensor

    limit: int | None = None
    """Pairs that one estimate uses at most, for a child whose cost is quadratic in them: the newest, and of a batch that
    has more than that alone, tokens spread evenly over it."""

    def __init__(self, config: ICLMConfig) -> None:
        super().__init__()
        if config.hidden_size is None:
            raise ConfigurationError("hidden_size is None; an independence loss needs that of the base model")
        self.hidden_size = config.hidden_size
        self.dim = min(config.mi_projection or config.hidden_size, config.hidden_size)
        self.detach_domain = config.mi_detach_domain
        if config.mi_projection is not None:
            generator = torch.Generator().manual_seed(config.seed)
            square = torch.randn(config.hidden_size, self.dim, generator=generator)
            self.register_buffer("projection", torch.linalg.qr(square).Q.contiguous())
        else:
            self.projection = None
        self.register_buffer("queue", torch.zeros(config.mi_queue, 2, self.dim))
        self.register_buffer("filled", torch.tensor(0))

    @abstractmethod
    def estimate(self, pairs: torch.Tensor) -> torch.Tensor:
        """The dependence, a scalar, of standardised pairs [pairs, 2, dim]; the critic's parameters are constants in it."""

    def critic_loss(self, pairs: torch.Tensor, new: int) -> torch.Tensor | None:
        """The critic's loss on detached pairs [pairs, 2, dim], the last `new` of them from this batch; None: no critic."""
        return None

    def forward(self, invariant: torch.Tensor, domain: torch.Tensor) -> IndependenceTerms:
        """Estimate the dependence of paired states; while training with gradients the queue takes them in.

        Args:
            invariant, domain: states [tokens, hidden] of the two sides at the same tokens, of any float dtype; all is
                computed in float32, under autocast too. Without a token the value is 0 and so is every gradient.

        Returns:
            Value and critic loss. A state that is not finite gives a value that is not finite, for that batch: such pairs
            do not enter the queue.

        Raises:
            ConfigurationError: states of other shapes.
        """
        if invariant.shape != domain.shape or invariant.dim() != 2 or invariant.shape[1] != self.hidden_size:
            raise ConfigurationError(
                f"invariant states are {list(invariant.shape)}, domain states {list(domain.shape)}; "
                f"both must be [tokens, {self.hidden_size}]"
            )
        if self.detach_domain:
            domain = domain.detach()
        with torch.autocast(invariant.device.type, enabled=False):
            if len(invariant) == 0:
                return self._of_no_tokens(invariant, domain)
            now = torch.stack([self.reduce(invariant), self.reduce(domain)], dim=1)
            past = self.queue[: int(self.filled)]
            new = now if self.limit is None else now[self._spread(len(now))]
            pairs = torch.cat([past, new])
            if self.limit is not None:
                pairs = pairs[-self.limit :]
            if self.training and torch.is_grad_enabled():
                self._remember(now.detach())
            pairs = self.standardise(pairs)
            estimate = self.estimate(pairs)
            # past pairs have no gradient: without this, a full queue would shrink that of the batch to its share
            share = len(new) / len(pairs)
            value = estimate.detach() + (estimate - estimate.detach()) / max(share, 1e-6)
            return IndependenceTerms(value, self.critic_loss(pairs.detach(), len(new)))

    def reduce(self, states: torch.Tensor) -> torch.Tensor:
        """Project states [tokens, hidden] to [tokens, dim] in float32."""
        return states.float() if self.projection is None else states.float() @ self.projection

    def standardise(self, pairs: torch.Tensor) -> torch.Tensor:
        """Bring every dimension of pairs [pairs, 2, dim] to mean 0 and variance 1; a constant dimension becomes 0.

        Mean and deviation carry no gradient: to shrink the states seems to lower an estimate that grows with them, and does not.
        """
        with torch.no_grad():
            mean, deviation = pairs.mean(0), pairs.std(0, correction=0)
            # at most the rounding of equal values: to divide by it would make noise of size 1 and a gradient of size 1e6
            deviation = deviation.masked_fill(deviation <= 1e-6 * mean.abs(), torch.inf)
        return (pairs - mean) / deviation

    def _of_no_tokens(self, invariant: torch.Tensor, domain: torch.Tensor) -> IndependenceTerms:
        parameters = list(self.parameters())
        critic = sum((0.0 * parameter.sum() for parameter in parameters), torch.zeros((), device=invariant.device))
        return IndependenceTerms(invariant.float().sum() + domain.float().sum(), critic if parameters else None)

    def _spread(self, tokens: int) -> torch.Tensor:
        """Positions of at most `limit` tokens spread evenly over those of the batch."""
        used = min(tokens, self.limit or tokens)
        return torch.arange(used, device=self.queue.device) * tokens // used

    @torch.no_grad()
    def _remember(self, now: torch.Tensor) -> None:
        size = self.queue.shape[0]
        if size == 0:
            return
        now = now[now.isfinite().flatten(1).all(1)]
        kept = torch.cat([self.queue[: int(self.filled)], now])[-size:]
        self.queue[: len(kept)] = kept
        self.filled.fill_(len(kept))


def perceptron(inputs: int, outputs: int, generator: torch.Generator, *, zero: bool) -> nn.Sequential:
    """A network of one hidden layer [.., inputs] -> [.., outputs] that starts from the generator.

    With `zero` its output starts at 0, so that a critic that has learned nothing moves no state.
    """
    # skip_init leaves out nn.Linear's own start, which would draw from the global random state
    first, last = (
        nn.utils.skip_init(nn.Linear, fan_in, fan_out)
        for fan_in, fan_out in ((inputs, CRITIC_WIDTH), (CRITIC_WIDTH, outputs))
    )
    with torch.no_grad():
        for layer in (first, last):
            bound = 0.0 if zero and layer is last else layer.in_features**-0.5
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)
    return nn.Sequential(first, nn.GELU(), last)


def constant(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Apply a network whose parameters get no gradient; its inputs do."""
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return torch.func.functional_call(network, parameters, (inputs,))
