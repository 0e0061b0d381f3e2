"""InfoNCE: a lower bound of mutual information by a critic that finds the matching pair.

A critic f(x, y) = g(x) . h(y), two small networks, scores how well an invariant and a domain state fit. Among the N
domain states it must find the one that belongs to x_i:

    value  = log N + 1/N sum_i log softmax_j f(x_i, y_j) at j = i         <= min(MI, log N) on average over fresh pairs
    critic = - the same with the mean over new pairs i only

The critic raises the bound, the states lower it. Source: A. van den Oord, Y. Li, O. Vinyals, "Representation learning
with contrastive predictive coding", arXiv 1807.03748, 2018 (section 2.3).
"""

from __future__ import annotations

import math

import torch

from iclm.model.configuration_iclm import ICLMConfig
from iclm.model.independence.base import IndependenceLoss, constant, perceptron

EMBEDDING = 64


class InfoNCE(IndependenceLoss):
    """Lower bound of mutual information: the states are to be pairs that the critic cannot match.

    - Value: nats, never above log N; negative for a critic that is worse than guessing.
    - Bias: downwards by what the critic misses and by the ceiling log N, 6.9 for 1,000 pairs; slightly upwards from what
      it keeps of the pairs in the queue (see `base`). 0 while it has learned nothing.
    - Useful range: mutual information well below log N. To lower a lower bound is no proof: the states may hide their
      dependence from this critic, so look at other measures too.
    - Cost: two passes of the critic and a score for each of N^2 pairs; at most the newest 2,048 pairs are used.

    Args:
        config: as for `IndependenceLoss`.
    """

    limit = 2048

    def __init__(self, config: ICLMConfig) -> None:
        super().__init__(config)
        generator = torch.Generator().manual_seed(config.seed)
        self.invariant_critic = perceptron(self.dim, EMBEDDING, generator, zero=False)
        # one side of the product starts at 0, so that all scores do; both would leave the critic without a gradient
        self.domain_critic = perceptron(self.dim, EMBEDDING, generator, zero=True)

    def estimate(self, pairs: torch.Tensor) -> torch.Tensor:
        """The bound for pairs [pairs, 2, dim]."""
        x, y = pairs.unbind(1)
        return _bound(constant(self.invariant_critic, x), constant(self.domain_critic, y))

    def critic_loss(self, pairs: torch.Tensor, new: int) -> torch.Tensor:
        """The negative bound, where the new invariant states look for theirs among all domain states."""
        x, y = pairs.unbind(1)
        return -_bound(self.invariant_critic(x[-new:]), self.domain_critic(y))


def _bound(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """InfoNCE of embeddings [rows, embedding] and [pairs, embedding]; the rows belong to the last pairs."""
    scores = left @ right.T
    matching = scores.diagonal(len(right) - len(left))
    return math.log(len(right)) + (matching - scores.logsumexp(1)).mean()
