"""CLUB: a contrastive upper bound of mutual information with a learned conditional.

A critic q(y|x) = N(mu(x), diag exp s(x)) predicts the domain state y from the invariant state x. With log q averaged
over the N matching pairs and over all N^2 pairs,

    value  = 1/N sum_i log q(y_i|x_i) - 1/N^2 sum_ij log q(y_j|x_i)         >= MI if q is the true conditional
    critic = - mean over new pairs i of log q(y_i|x_i) / D

s and the constant cancel in the difference, and the mean over j needs only the first two moments of y, a and b
(a = mean y, b = mean y^2, for each dimension d):

    value = 1/2N sum_i sum_d exp(-s_id) [ b_d - y_id^2 - 2 mu_id (a_d - y_id) ]

Source: P. Cheng et al., "CLUB: a contrastive log-ratio upper bound of mutual information", ICML 2020 (the variational
form, vCLUB).
"""

from __future__ import annotations

import torch

from iclm.model.configuration_iclm import ICLMConfig
from iclm.model.independence.base import IndependenceLoss, constant, perceptron

LOG_VARIANCE = 2.0
"""Bound of |s|: no error of prediction weighs more than e^2 = 7.4 times one deviation, however well q predicts."""


class CLUB(IndependenceLoss):
    """Upper bound of mutual information: the states are to be what the critic cannot predict.

    - Value: nats, summed over the D dimensions. Gaussian pairs of correlation r in each dimension give
      D r^2 / (1 - r^2) with the true conditional, above their D/2 log 1/(1 - r^2). The bound on the variance keeps it
      below some 7 D: for D = 64 that is hundreds of nats, so mi_weight must be smaller than for the plug-in.
    - Bias: 0 while the critic has learned nothing; below MI, or below 0, where its q is poor; slightly upwards from what
      it keeps of the pairs in the queue (see `base`).
    - Useful range: a critic that learns faster than the states change; else they run from what it knew, and the value
      swings through 0 and below. |r| up to 0.93 in a dimension (the variance's bound). Only what a Gaussian with independent
      dimensions can express counts: mean and variance of y given x.
    - Cost: O(N D) beside two passes of the critic; no pairwise tensor.

    Args:
        config: as for `IndependenceLoss`.
    """

    def __init__(self, config: ICLMConfig) -> None:
        super().__init__(config)
        generator = torch.Generator().manual_seed(config.seed)
        self.critic = perceptron(self.dim, 2 * self.dim, generator, zero=True)

    def estimate(self, pairs: torch.Tensor) -> torch.Tensor:
        """The bound for pairs [pairs, 2, dim]."""
        x, y = pairs.unbind(1)
        mean, log_variance = self._conditional(constant(self.critic, x))
        square = y.square()
        gap = square.mean(0) - square - 2 * mean * (y.mean(0) - y)
        return 0.5 * (torch.exp(-log_variance) * gap).sum(-1).mean()

    def critic_loss(self, pairs: torch.Tensor, new: int) -> torch.Tensor:
        """Negative log-likelihood of the new pairs without its constant, for one dimension on average.

        The sum over dimensions would have the same minimum, but a gradient that fills the whole norm to which a trainer
        clips that of the model.
        """
        x, y = pairs[-new:].unbind(1)
        mean, log_variance = self._conditional(self.critic(x))
        return 0.5 * (log_variance + (y - mean).square() * torch.exp(-log_variance)).mean()

    @staticmethod
    def _conditional(output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and bounded log-variance, each [pairs, dim]."""
        mean, raw = output.chunk(2, dim=-1)
        return mean, LOG_VARIANCE * torch.tanh(raw / LOG_VARIANCE)
