"""Routers: from the frozen base's hidden states to one route for each example, or each token.

    fixed:i, oracle, random        learn nothing                         static.py
    vq                             a learned codebook, the paper's       vq.py
    kmeans, bisecting_kmeans       a clustering of training features     cluster.py
    soft, topk, gumbel             learned gates                         gate.py

The base is frozen and the reduction fixed, so the features are a pure function of the text.
"""

from iclm.model.configuration_iclm import ICLMConfig
from iclm.model.router.base import LearnedRouter, Router
from iclm.model.router.cluster import ClusterRouter
from iclm.model.router.gate import GateRouter
from iclm.model.router.prompt import Prompt, pool
from iclm.model.router.static import FixedRouter, OracleRouter, RandomRouter, check_domains
from iclm.model.router.vq import VQRouter

__all__ = ["LearnedRouter", "Prompt", "Router", "VQRouter", "build_router", "check_domains", "pool"]

KINDS: dict[str, type[Router]] = {
    "vq": VQRouter,
    "kmeans": ClusterRouter,
    "bisecting_kmeans": ClusterRouter,
    "gumbel": GateRouter,
    "soft": GateRouter,
    "topk": GateRouter,
    "oracle": OracleRouter,
    "random": RandomRouter,
}


def build_router(config: ICLMConfig) -> Router | None:
    """The router that a configuration asks for; None where there is no domain module to choose."""
    if config.num_domains == 0:
        return None
    kind = FixedRouter if config.router.startswith("fixed:") else KINDS[config.router]
    return kind(config)
