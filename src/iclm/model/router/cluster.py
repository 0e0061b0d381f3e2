"""Clustering of the training features by scikit-learn: the nearest centre, which does not move afterwards.

`kmeans` is Lloyd's algorithm from ten starts; `bisecting_kmeans` splits the largest cluster in two until there are K, which
finds nested structure (all text before this text). Of both only the centres are kept, as a tensor.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import BisectingKMeans, KMeans
from sklearn.exceptions import ConvergenceWarning

from iclm.model.configuration_iclm import ICLMConfig
from iclm.model.plan import Route
from iclm.model.router.base import LearnedRouter
from iclm.model.router.prompt import Units


def centres_of(
    features: torch.Tensor, number: int, seed: int, domains: torch.Tensor | None = None, *, bisecting: bool = False
) -> torch.Tensor:
    """Centres [number, dim] of a clustering of features [n, dim]; where fewer points differ, some centres coincide.

    Args:
        domains: true domain of each feature, long [n], where known: it moves no centre, but centre i is then the one that
            matches domain i best, so that module i is the module of domain i.
    """
    kind = BisectingKMeans if bisecting else KMeans
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters: told by the usage
        found = kind(number, n_init=10, random_state=seed).fit(features.cpu().double().numpy())
    centres = torch.from_numpy(found.cluster_centers_).to(features)
    return centres if domains is None else centres[_order(found.labels_, domains.cpu().numpy(), number)]


def _order(labels: np.ndarray, domains: np.ndarray, number: int) -> list[int]:
    """The cluster for each of the first `number` domains, by the one-to-one match that most points agree with."""
    counts = np.zeros((number, number), dtype=int)  # domain x cluster
    known = (domains >= 0) & (domains < number)
    np.add.at(counts, (domains[known], labels[known]), 1)
    return [int(cluster) for cluster in linear_sum_assignment(counts, maximize=True)[1]]


class ClusterRouter(LearnedRouter):
    """Nearest centre of a clustering, one centre a domain module."""

    centres: torch.Tensor

    def __init__(self, config: ICLMConfig) -> None:
        super().__init__(config)
        self.register_buffer("centres", torch.zeros(config.num_domains, self.dim))

    @property
    def codes(self) -> torch.Tensor:
        """The centres, float32 [K, dim]."""
        return self.centres

    def start(self, features: torch.Tensor, domains: torch.Tensor | None = None) -> None:
        """Cluster reduced features [n, dim]."""
        bisecting = self.kind == "bisecting_kmeans"
        self.centres.copy_(centres_of(features, self.num_domains, self.seed, domains, bisecting=bisecting))

    def place(self, code: torch.Tensor, examples: int) -> None:
        """Set the last centre."""
        self.centres[-1] = code

    def decide(self, units: Units) -> Route:
        """Send each unit to the modules of its nearest centres."""
        indices, weights, error = self.nearest(self.reduced(units), self.centres)
        return Route(indices, weights, error=error)
