"""Plug-in mutual information of soft symbols: the paper's loss.

The softmax of a state over its C dimensions is taken as a distribution over C symbols. With p_n and q_n those of the two
modules at token n,

    joint J = 1/N sum_n p_n q_n^T = P^T Q / N      [C, C], one matrix product
    MI      = KL(J || p q^T) = sum_ij J_ij log( J_ij / (p_i q_j) )        0 <= MI <= ln C

with p, q the marginals of J (Gendron et al., arXiv 2402.02636, section 3; the order of the divergence is that of mutual
information).
"""

from __future__ import annotations

import torch

from iclm.model.configuration_iclm import ICLMConfig
from iclm.model.independence.base import IndependenceLoss


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


class PluginMutualInformation(IndependenceLoss):
    """The plug-in loss with enough samples to mean something.

    - Value: nats of the soft symbols, 0 to ln D; by no means the mutual information of the states. The softer the symbols
      (the higher mi_temperature), the smaller it is, for identical states too.
    - Bias: upwards, by about (D - 1)^2 / 2N for N pairs with one-hot symbols, less with soft ones. At the defaults (64
      dimensions, 1,040 pairs) independent Gaussians give 0.04 and identical ones 0.26.
    - Useful range: N of at least several times D; 16 tokens in all dimensions cannot tell identical from independent.
      It sees dependence, linear or not, between which dimensions are large on the two sides, and is blind to one
      direction: a shift of all dimensions alike, which the softmax takes out.
    - Cost: O(N D^2) time, D^2 memory.

    Args:
        config: as for `IndependenceLoss`, and mi_temperature. With mi_projection None the symbols are all hidden
            dimensions and states are not standardised, as in the paper.
    """

    def __init__(self, config: ICLMConfig) -> None:
        super().__init__(config)
        self.temperature = config.mi_temperature

    def standardise(self, pairs: torch.Tensor) -> torch.Tensor:
        """As in the base class, but for the paper's own variant (no projection), and with a floor for constants."""
        if self.projection is None:
            return pairs
        with torch.no_grad():
            mean, deviation = pairs.mean(0), pairs.std(0, correction=0).clamp_min(1e-6)
        return (pairs - mean) / deviation

    def estimate(self, pairs: torch.Tensor) -> torch.Tensor:
        """Plug-in mutual information of pairs [pairs, 2, dim]."""
        p, q = torch.softmax(pairs / self.temperature, dim=-1).unbind(1)
        return plugin_mutual_information(p, q)
