"""Vector quantisation, the paper's router: the nearest code of a learned codebook (van den Oord et al. 2017).

    hidden [B, L, H] ─ mean over the prompt's tokens ─▶ standardise ─▶ project ─▶ nearest code ─▶ Route

The codes start from k-means, the best of ten runs (one run alone often merges two domains and splits a third), and follow
the features by exponential moving average (the library vector-quantize-pytorch). A code that no unit of a batch goes to stays as it is,
however rare its domain. With a threshold above 0 dead codes are revived instead: one that fewer units a batch went to, in the moving
average, becomes a feature of the batch, which is of another domain where its own is only rare or batches are small.
"""

from __future__ import annotations

import torch
from vector_quantize_pytorch import VectorQuantize

from iclm.model.configuration_iclm import ICLMConfig
from iclm.model.plan import Route
from iclm.model.router.base import LearnedRouter, squared_distances
from iclm.model.router.cluster import centres_of
from iclm.model.router.prompt import Units


class VQRouter(LearnedRouter):
    """Nearest code of a learned codebook, one code a domain module.

    While training, the codes follow the features. The commitment loss is reported with each route; with the features
    fixed it has no gradient.
    """

    def __init__(self, config: ICLMConfig) -> None:
        super().__init__(config)
        self.decay, self.threshold = config.codebook_decay, config.dead_code_threshold
        self.quantiser = VectorQuantize(
            dim=self.dim,
            codebook_size=config.num_domains,
            kmeans_init=True,  # marks the codes as not yet set
            decay=self.decay,
            threshold_ema_dead_code=self.threshold,
            commitment_weight=1.0,
            rotation_trick=False,
        )

    @property
    def codes(self) -> torch.Tensor:
        """The codebook, float32 [K, dim]."""
        return self.quantiser.codebook.view(self.num_domains, self.dim)

    def start(self, features: torch.Tensor, domains: torch.Tensor | None = None) -> None:
        """Start the codes from k-means on reduced features [n, dim]; each counts as many examples as it has now."""
        centres = centres_of(features, self.num_domains, self.seed, domains)
        nearest = squared_distances(features, centres).argmin(1)
        sizes = torch.bincount(nearest, minlength=self.num_domains).to(centres)
        codebook = self.quantiser._codebook
        codebook.embed.copy_(centres.view_as(codebook.embed))
        codebook.embed_avg.copy_((centres * sizes[:, None]).view_as(codebook.embed_avg))
        codebook.cluster_size.copy_(sizes.view_as(codebook.cluster_size))
        codebook.initted.fill_(True)

    def place(self, code: torch.Tensor, examples: int) -> None:
        """Set the last code, which counts as many examples as it is the mean of."""
        codebook = self.quantiser._codebook
        codebook.embed[..., -1, :] = code
        codebook.embed_avg[..., -1, :] = code * examples
        codebook.cluster_size[..., -1] = examples

    def decide(self, units: Units) -> Route:
        """Send each unit to the modules of its nearest codes."""
        features = self.reduced(units)
        codes = self.codes.clone()  # those that decide: a training step moves them
        learns = self.training and torch.is_grad_enabled()
        before = self._state() if learns else {}
        _, nearest, loss = self.quantiser(features, freeze_codebook=not torch.is_grad_enabled())
        if self.active == 1:
            indices = nearest[:, None]
            error = squared_distances(features, codes).gather(1, indices)[:, 0]
            weights = torch.ones_like(indices, dtype=features.dtype)
        else:
            indices, weights, error = self.nearest(features, codes)
        revived = None
        if learns and self.threshold:
            counts = torch.bincount(nearest, minlength=self.num_domains)
            sizes = before["cluster_size"].view(-1)
            dead = (sizes.lerp(counts.to(sizes), 1 - self.decay) < self.threshold).sum()
            revived = dead.clamp(max=len(features))  # no more at once than there are features to become
        elif learns:
            revived = torch.zeros((), dtype=torch.long, device=features.device)
            self._keep_idle(before)
        return Route(indices, weights, error=error, loss=loss.sum(), revived=revived)

    def _state(self) -> dict[str, torch.Tensor]:
        """What a training step moves of the codebook, for each code."""
        codebook = self.quantiser._codebook
        return {name: getattr(codebook, name).clone() for name in ("embed", "embed_avg", "cluster_size")}

    def _keep_idle(self, before: dict[str, torch.Tensor]) -> None:
        """Undo what a step did to codes that no unit went to, in any process: their averages would fade, and they with them."""
        codebook, sizes = self.quantiser._codebook, before["cluster_size"]
        idle = codebook.cluster_size == sizes.lerp(torch.zeros_like(sizes), 1 - self.decay)
        for name, kept in before.items():
            now = getattr(codebook, name)
            now.copy_(torch.where(idle.view(*idle.shape, *[1] * (now.dim() - idle.dim())), kept, now))
