"""Cross-correlation: every dimension of the one side is to be uncorrelated with every dimension of the other.

With both sides standardised, x and y [N, D],

    C = x^T y / N                 [D, D], the Pearson correlations
    value = mean_ab C_ab^2        0 <= value <= 1

The matrix is that of J. Zbontar et al., "Barlow Twins: self-supervised learning via redundancy reduction", ICML 2021,
where its diagonal is pushed to 1; here all entries are pushed to 0.
"""

from __future__ import annotations

import torch

from iclm.model.independence.base import IndependenceLoss


class CrossCorrelation(IndependenceLoss):
    """Mean squared correlation, no critic: the cheapest of the losses, blind to all but linear dependence.

    - Value: without unit, 0 to 1. Identical states whose D dimensions are uncorrelated give 1/D, not 1: only the D
      entries of the diagonal are then 1. So do rotated ones.
    - Bias: upwards, 1/(N - 1) for independent pairs; identical states stand out only where N is well above D.
    - Gradient: the deviations that it is standardised by carry none, so most of that of near identical states shrinks them
      rather than parts them: 94% of its norm at |r| 0.96 in 16 equal dimensions. What is left parts them all the same.
    - Useful range: any D; x and x^2 count as independent.
    - Cost: O(N D^2) time, D^2 memory.

    Args:
        config: as for `IndependenceLoss`.
    """

    def estimate(self, pairs: torch.Tensor) -> torch.Tensor:
        """Mean squared correlation of pairs [pairs, 2, dim]."""
        x, y = pairs.unbind(1)
        return (x.T @ y / len(pairs)).square().mean()
