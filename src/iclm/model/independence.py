"""The mutual-information loss between the invariant module and the active domain module.

The paper's plug-in estimate treats the softmax of a state over its C dimensions as a distribution over C symbols. With
p_n and q_n those of the two modules at token n,

    joint J = 1/N sum_n p_n q_n^T = P^T Q / N      [C, C], one matrix product
    MI      = KL(J || p q^T) = sum_ij J_ij log( J_ij / (p_i q_j) )        0 <= MI <= ln C

with p, q the marginals of J (Gendron et al. 2024, section 3; the order of the divergence is that of mutual information).

A batch has a few dozen labelled tokens and a state hundreds of dimensions: at that size the plug-in cannot tell
independent states from identical ones. So states are first projected to fewer dimensions (a fixed random orthonormal
map), standardised, and joined with a queue of detached states of recent batches.
"""

from __future__ import annotations

import torch
from torch import nn

from iclm.model.configuration_iclm import ICLMConfig


def plugin_mutual_information(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Mutual information in nats of two symbols given as N paired distributions.

    Args:
        p, q: float [tokens, symbols], rows on the simplex.

    Returns:
        A scalar between 0 and ln C (zero if there is no token).
    """
    if p.shape[0] == 0:
        return p.sum()
    tiny = torch.finfo(p.dtype).tiny
    joint = p.T @ q / p.shape[0]
    log_product = p.mean(0).clamp_min(tiny).log()[:, None] + q.mean(0).clamp_min(tiny).log()[None, :]
    information = (joint * (joint.clamp_min(tiny).log() - log_product)).sum()
    return information.clamp_min(0.0)


class PluginMutualInformation(nn.Module):
    """The plug-in loss with enough samples to mean something.

    Args:
        config: reads hidden_size, mi_projection (dimensions of the projection; None: the paper's softmax over all hidden
            dimensions, not standardised), mi_queue (past tokens kept; 0: none), mi_temperature, seed.

    The queue and its fill are buffers, so training resumed from a checkpoint goes on with the same estimate.
    """

    projection: torch.Tensor
    queue: torch.Tensor
    filled: torch.Tensor

    def __init__(self, config: ICLMConfig) -> None:
        super().__init__()
        assert config.hidden_size is not None
        self.temperature = config.mi_temperature
        self.standardised = config.mi_projection is not None
        self.dim = min(config.mi_projection or config.hidden_size, config.hidden_size)
        if self.standardised:
            generator = torch.Generator().manual_seed(config.seed)
            square = torch.randn(config.hidden_size, self.dim, generator=generator)
            self.register_buffer("projection", torch.linalg.qr(square).Q.contiguous())
        self.register_buffer("queue", torch.zeros(config.mi_queue, 2, self.dim))
        self.register_buffer("filled", torch.tensor(0))

    def forward(self, invariant: torch.Tensor, domain: torch.Tensor) -> torch.Tensor:
        """Estimate the mutual information of paired states [tokens, hidden]; the queue takes them in while training."""
        now = torch.stack([self.reduce(invariant), self.reduce(domain)], dim=1)
        past = self.queue[: int(self.filled)]
        pairs = torch.cat([past, now])
        if self.training and torch.is_grad_enabled():
            self._remember(now.detach())
        if self.standardised:
            with torch.no_grad():
                mean, deviation = pairs.mean(0), pairs.std(0, correction=0).clamp_min(1e-6)
            pairs = (pairs - mean) / deviation
        p, q = torch.softmax(pairs / self.temperature, dim=-1).unbind(1)
        estimate = plugin_mutual_information(p, q)
        # past tokens have no gradient: without this, a full queue would shrink that of the batch to its share
        share = len(now) / max(len(pairs), 1)
        return estimate.detach() + (estimate - estimate.detach()) / max(share, 1e-6)

    def reduce(self, states: torch.Tensor) -> torch.Tensor:
        """Project states [tokens, hidden] to [tokens, dim] in float32."""
        return states.float() @ self.projection if self.standardised else states.float()

    @torch.no_grad()
    def _remember(self, now: torch.Tensor) -> None:
        size = self.queue.shape[0]
        if size == 0:
            return
        kept = torch.cat([self.queue[: int(self.filled)], now])[-size:]
        self.queue[: len(kept)] = kept
        self.filled.fill_(len(kept))
