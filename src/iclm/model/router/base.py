"""What all routers share: the interface, and the features of those that are started from training examples."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import MDS
from torch import nn

from iclm.errors import ConfigurationError
from iclm.model.configuration_iclm import ICLMConfig
from iclm.model.plan import Route
from iclm.model.router.prompt import Prompt, TokenUnits, Units, by_example

SCALING_EXAMPLES = 512  # of the metric scaling, whose cost grows with their square


class Router(nn.Module):
    """Turns a `Prompt` into a `Route`; a kind of router says in `decide` how it decides on units.

    Args:
        config: reads router_level, num_domains and active_domains.
    """

    def __init__(self, config: ICLMConfig) -> None:
        super().__init__()
        self.level = config.router_level
        self.num_domains, self.active = config.num_domains, config.active_domains

    def forward(self, prompt: Prompt) -> Route:
        """Decide the route of each example, or of each prompt token."""
        if self.level == "input":
            return self.decide(by_example(prompt))
        tokens = TokenUnits.of(prompt)
        return tokens.spread(self.decide(tokens.units))

    def decide(self, units: Units) -> Route:
        """Decide on each of n units: indices and weights [n, active]."""
        raise NotImplementedError

    def units(self, prompt: Prompt) -> torch.Tensor:
        """What the router would decide on, float32 [n, hidden]: pooled examples, or prompt tokens."""
        return by_example(prompt).features if self.level == "input" else TokenUnits.of(prompt).units.features


class LearnedRouter(Router):
    """A router on standardised, reduced features, started from those of training examples.

    `fit` sets the mean and deviation of each hidden dimension and a linear reduction to `dim` dimensions; then `start` sets
    what the kind of router needs. All of it is kept in the checkpoint, and none of it moves in training: the features stay
    a pure function of the text. The reduction is the projection to the principal components ("pca"), its linear map to a
    metric multidimensional scaling of the training features ("mds", which itself has no place for new examples), or
    none. With router_level "token" the features are those of tokens.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    projection: torch.Tensor
    fitted: torch.Tensor

    def __init__(self, config: ICLMConfig) -> None:
        super().__init__(config)
        assert config.hidden_size is not None
        self.seed, self.kind = config.seed, config.router
        self.reduction = config.router_reduction
        reduced = self.reduction != "none"
        self.dim = min(config.router_dim, config.hidden_size) if reduced else config.hidden_size
        self.register_buffer("mean", torch.zeros(config.hidden_size))
        self.register_buffer("deviation", torch.ones(config.hidden_size))
        if reduced:
            self.register_buffer("projection", torch.zeros(config.hidden_size, self.dim))
        self.register_buffer("fitted", torch.tensor(False))

    @property
    def codes(self) -> torch.Tensor:
        """The point of each domain module among the reduced features, float32 [K, dim]."""
        raise NotImplementedError

    def start(self, features: torch.Tensor, domains: torch.Tensor | None = None) -> None:
        """Set the router's own state from reduced features [n, dim] of training examples, and their domains [n]."""
        raise NotImplementedError

    def place(self, code: torch.Tensor, examples: int) -> None:
        """Set what the router knows of the last domain module: its point [dim], the mean of so many examples."""
        raise NotImplementedError

    @torch.no_grad()
    def fit(self, features: torch.Tensor, domains: torch.Tensor | None = None) -> None:
        """Set standardisation, reduction and start from features of training examples [n, hidden].

        Args:
            domains: true domain of each, long [n], where known. The codes are found without it; it only numbers them.

        Raises:
            ConfigurationError: fewer examples than codes, or a feature that is not finite.
        """
        if features.shape[0] < self.num_domains:
            raise ConfigurationError(
                f"the router has {self.num_domains} codes but only {features.shape[0]} examples to start from"
            )
        features = check_finite(features.float())
        self.mean.copy_(features.mean(0))
        deviation = features.std(0, correction=0)
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))
        if self.reduction != "none":
            standard = ((features - self.mean) / self.deviation).cpu().double().numpy()
            components = PCA(min(self.dim, *standard.shape), svd_solver="full").fit(standard).components_
            if self.reduction == "mds":
                components = _scale(standard[:SCALING_EXAMPLES], components, self.seed)
            self.projection.zero_()
            self.projection[:, : len(components)] = torch.from_numpy(components.T).to(self.projection)
        self.start(self.project(features), domains)
        self.fitted.fill_(True)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Standardise and reduce features [n, hidden] to [n, dim]."""
        standard = (features - self.mean) / self.deviation
        return standard if self.reduction == "none" else standard @ self.projection

    def reduced(self, units: Units) -> torch.Tensor:
        """Reduced features of units [n, dim]; raises `ConfigurationError` before `fit`, or where one is not finite."""
        if not bool(self.fitted):
            raise ConfigurationError(
                f"the {self.kind} router was not fitted; call fit_router with training examples first"
            )
        return self.project(check_finite(units.features))

    def nearest(self, features: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Indices, weights [n, active] and mean squared distance [n] of the nearest codes to features [n, dim]."""
        distance = squared_distances(features, codes)
        chosen, indices = distance.topk(self.active, dim=1, largest=False)
        return indices, torch.softmax(-chosen, dim=1), chosen[:, 0]


def squared_distances(features: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Mean over the dimensions of the squared differences of features [n, dim] and codes [K, dim]: [n, K]."""
    return (features[:, None, :] - codes[None]).square().mean(-1)


def check_finite(features: torch.Tensor) -> torch.Tensor:
    """Return the features unchanged, or raise `ConfigurationError` if one is not finite."""
    if not bool(torch.isfinite(features).all()):
        raise ConfigurationError("a router feature is not finite; the base model's hidden states overflow")
    return features


def _scale(standard: np.ndarray, components: np.ndarray, seed: int) -> np.ndarray:
    """The linear map [dim, hidden] from standardised features to a metric scaling of them, by least squares."""
    scores = standard @ components.T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about the default of a start that is given here
        placed = MDS(scores.shape[1], n_init=1, random_state=seed).fit_transform(standard, init=scores)
    weights = np.linalg.lstsq(scores, placed - placed.mean(0), rcond=None)[0]
    return weights.T @ components
