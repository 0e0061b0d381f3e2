"""HSIC: the cross-covariance of the two sides in the feature spaces of Gaussian kernels.

With K_ij = exp(-|x_i - x_j|^2 / 2 sigma_x^2), L alike for y, and K', L' centred in rows and columns,

    value = <K', L'> / (|K'| |L'|)            <K', L'> / N^2 is the biased estimate of HSIC(x, y)

sigma is the median distance of different pairs, a constant in the gradient. The population value is 0 if and only if x
and y are independent, of any form of dependence; that of identical states is 1.

Sources: A. Gretton et al., "Measuring statistical dependence with Hilbert-Schmidt norms", ALT 2005; the normalisation is
that of C. Cortes, M. Mohri, A. Rostamizadeh, "Algorithms for learning kernels based on centered alignment", JMLR 2012.
"""

from __future__ import annotations

import torch

from iclm.model.independence.base import IndependenceLoss


class HSIC(IndependenceLoss):
    """Normalised HSIC, no critic: zero for independent states and one for identical ones.

    - Value: without unit, 0 to 1.
    - Bias: upwards, the more the more dimensions and the fewer pairs, as the diagonal of the kernels counts: independent
      Gaussians in 4 dimensions give 0.02 with 512 pairs and 0.13 with 64, in 64 dimensions 0.18 and 0.64.
    - Useful range: up to some tens of dimensions with hundreds of pairs; in more, all distances are alike and the kernels
      say little.
    - Cost: O(n^2 D) time and n^2 memory; at most the newest 512 pairs are used, whatever the queue.

    Args:
        config: as for `IndependenceLoss`.
    """

    limit = 512

    def estimate(self, pairs: torch.Tensor) -> torch.Tensor:
        """Normalised HSIC of pairs [pairs, 2, dim]."""
        first, second = (_centred_kernel(side) for side in pairs.unbind(1))
        norms = [kernel.square().mean().clamp_min(1e-12).sqrt() for kernel in (first, second)]
        # constant states have a centred kernel of zeros: the floor makes their value 0
        return (first * second).mean() / (norms[0] * norms[1])


def _centred_kernel(states: torch.Tensor) -> torch.Tensor:
    """Doubly centred Gaussian kernel [n, n] of states [n, dim]."""
    squares = states.square().sum(-1)
    distances = (squares[:, None] + squares[None, :] - 2 * states @ states.T).clamp_min(0.0)
    kernel = torch.exp(-distances / (2 * _bandwidth(distances.detach())))
    return kernel - kernel.mean(0, keepdim=True) - kernel.mean(1, keepdim=True) + kernel.mean()


def _bandwidth(distances: torch.Tensor) -> torch.Tensor:
    """Median of the squared distances [n, n] of different pairs; their mean where most are 0."""
    if len(distances) < 2:
        return torch.ones_like(distances.sum())
    apart = distances[~torch.eye(len(distances), dtype=torch.bool, device=distances.device)]
    median = apart.median()
    return torch.where(median == 0, apart.mean(), median).clamp_min(1e-6)
