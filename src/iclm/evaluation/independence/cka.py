"""How alike two representations of the same inputs are, up to rotation and scale.

With X and Y centred,

    CKA = ‖YᵀX‖²_F / ( ‖XᵀX‖_F ‖YᵀY‖_F )

the cosine of the two Gram matrices XXᵀ and YYᵀ, so that only distances between inputs count, not directions.

    S. Kornblith et al., "Similarity of neural network representations revisited", ICML 2019 (linear CKA).
"""

from typing import Any

import numpy as np

from iclm.errors import ConfigurationError
from iclm.evaluation.independence.samples import check_pair, standardise


def linear_cka(x: Any, y: Any) -> float:
    """Linear centred kernel alignment: how alike two representations of the same n inputs are, in [0, 1].

    With X and Y centred: ‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F). It does not change with a rotation, a shift or a common scale of
    either side; it does with a stretch along one direction. 1: the same up to those; 0: no linear relation at all.

    - Bias: with fewer inputs than dimensions unrelated representations score far above 0 (towards 1 as d/n grows); use
      n of several times d.
    - It sees linear relations only: a CKA of 0 is not independence.
    - Cost: O(n · d1 · d2).

    Args:
        x: one row an input, [n, d1] (or [n]).
        y: one row an input, [n, d2] (or [n]), row i of the same input as row i of x.

    Returns:
        The alignment; 0.0 where x or y is constant.

    Raises:
        ConfigurationError: shapes that do not pair, fewer than 2 rows, or a value that is not finite.
    """
    left, right = check_pair(x, y)
    if len(left) < 2:
        raise ConfigurationError(f"n={len(left)} rows: linear CKA needs at least 2")
    left, right = standardise(left, each=False), standardise(right, each=False)
    if left.shape[1] == 0 or right.shape[1] == 0:
        return 0.0
    cross = np.linalg.norm(right.T @ left) ** 2
    return min(1.0, float(cross / (np.linalg.norm(left.T @ left) * np.linalg.norm(right.T @ right))))
