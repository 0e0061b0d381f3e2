"""Everything that an ICLM is built from, as a transformers configuration."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from iclm.errors import ConfigurationError

METHODS = ("iclm", "lora")
ROUTERS = ("vq", "oracle", "random")
AGGREGATORS = ("mix", "concat")
WHOLE_NUMBERS = (
    "num_domains",
    "active_domains",
    "split_layer",
    "lora_rank",
    "router_layer",
    "router_dim",
    "mix_rank",
    "mi_projection",
    "mi_queue",
)
MIXES = ("fixed", "gate", "low_rank")


class ICLMConfig(PreTrainedConfig):
    """Configuration of an `ICLMForCausalLM` (Gendron et al., arXiv 2402.02636).

    Args:
        base: where the frozen base came from: `name`, `dtype` and, once built, `fingerprint`.
        method: "iclm", or "lora" for plain LoRA: the invariant module alone, no router, no domain module.
        num_domains: K, the number of domain-specific modules; 0 with method "lora" and only there.
        active_domains: how many domain modules the router activates for each example, 1 <= active <= K.
        split_layer: s; layers below s carry no adapter and run once for all modules. None means half of the layers
            for "iclm" and 0 for "lora".
        lora_rank, lora_alpha, lora_dropout: rank r of each module, its scale alpha / r, dropout before A (Hu et al. 2021).
        target_modules: "attention" (every linear layer inside attention), "all-linear", or a list of name endings.
        router: "vq" (nearest code of a learned codebook), "oracle" (the true domain), "random" (a hash of the prompt)
            or "fixed:i".
        router_layer: the layer whose input the router reads, at most split_layer; None means split_layer.
        router_dim: dimensions of the codebook, after a fixed projection to the principal components.
        codebook_decay, dead_code_threshold: exponential moving average of the codes, and the average number of examples
            a batch below which a code is replaced by a feature of the batch.
        aggregator: "mix" (the base head on a weighted mean of the states) or "concat" (a 2H -> V head on both).
        mix: how the weights of "mix" are learned: "fixed" at one half, "gate" (one scalar), "low_rank" (plus a
            residual of rank `mix_rank` that starts at zero).
        router_weight, mi_weight, invariant_weight, domain_weight: weights of the loss terms beside the language-modelling
            loss of the mixture; the defaults are the paper's.
        mi_projection, mi_queue, mi_temperature: see `iclm.model.independence.PluginMutualInformation`.
        seed: of the adapters' start and of every fixed random choice.
        vocab_size, hidden_size, num_hidden_layers: V, H and the number of layers, copied from the base.

    Raises:
        ConfigurationError: a value out of its range; the message names the field.
    """

    model_type = "iclm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "route", "decision", "terms"]

    def __init__(
        self,
        base: dict[str, Any] | None = None,
        method: str = "iclm",
        num_domains: int = 2,
        active_domains: int = 1,
        split_layer: int | None = None,
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        lora_dropout: float = 0.0,
        target_modules: str | list[str] = "attention",
        router: str = "vq",
        router_layer: int | None = None,
        router_dim: int = 32,
        codebook_decay: float = 0.99,
        dead_code_threshold: float = 0.1,
        aggregator: str = "mix",
        mix: str = "fixed",
        mix_rank: int = 8,
        router_weight: float = 0.1,
        mi_weight: float = 0.01,
        invariant_weight: float = 0.1,
        domain_weight: float = 0.1,
        mi_projection: int | None = 64,
        mi_queue: int = 1024,
        mi_temperature: float = 0.5,
        seed: int = 0,
        vocab_size: int | None = None,
        hidden_size: int | None = None,
        num_hidden_layers: int | None = None,
        **kwargs: Any,
    ) -> None:
        named = base is None or (isinstance(base, dict) and isinstance(base.get("name", ""), str))
        require(named, f"base is {base!r}; it must be a mapping with the base's name")
        self.base = dict(base or {})
        self.method = method
        self.num_domains = num_domains
        self.active_domains = active_domains
        self.split_layer = split_layer
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.lora_dropout = lora_dropout
        self.target_modules = target_modules
        self.router = router
        self.router_layer = router_layer
        self.router_dim = router_dim
        self.codebook_decay = codebook_decay
        self.dead_code_threshold = dead_code_threshold
        self.aggregator = aggregator
        self.mix = mix
        self.mix_rank = mix_rank
        self.router_weight = router_weight
        self.mi_weight = mi_weight
        self.invariant_weight = invariant_weight
        self.domain_weight = domain_weight
        self.mi_projection = mi_projection
        self.mi_queue = mi_queue
        self.mi_temperature = mi_temperature
        self.seed = seed
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        # base and adapters share the base's tied embeddings; the ICLM ties nothing itself
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)
        self.check()

    @property
    def num_modules(self) -> int:
        """M = 1 + K: the invariant module and the domain modules."""
        return 1 + self.num_domains

    @property
    def module_names(self) -> list[str]:
        """What can be asked for an answer: the mixture, the invariant module, each domain module."""
        if self.num_domains == 0:
            return ["mixture"]
        return ["mixture", "invariant", *(f"domain_{i}" for i in range(self.num_domains))]

    def check(self) -> None:
        """Raise `ConfigurationError` for a value of the wrong type or out of its range, or values that exclude each other."""
        for name in WHOLE_NUMBERS:
            value = getattr(self, name)
            optional = name in ("split_layer", "router_layer", "mi_projection")
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(whole or (optional and value is None), f"{name} is {value!r}; it must be a whole number")
        require(isinstance(self.router, str), f"router is {self.router!r}; it must be a name")
        require(self.method in METHODS, f"method is {self.method!r}; use one of {', '.join(METHODS)}")
        if self.method == "lora":
            self.num_domains = 0
        else:
            require(
                self.num_domains >= 1,
                f"num_domains is {self.num_domains}; an ICLM needs at least 1 domain module (plain LoRA is method: lora)",
            )
            require(
                1 <= self.active_domains <= self.num_domains,
                f"active_domains is {self.active_domains}; it must lie between 1 and num_domains = {self.num_domains}",
            )
        require(math.isfinite(self.lora_alpha), f"lora_alpha is {self.lora_alpha}; it must be a finite number")
        require(self.lora_rank >= 1, f"lora_rank is {self.lora_rank}; it must be at least 1")
        require(0 <= self.lora_dropout < 1, f"lora_dropout is {self.lora_dropout}; it must lie in [0, 1)")
        require(self.router_dim >= 1, f"router_dim is {self.router_dim}; it must be at least 1")
        require(0 < self.codebook_decay < 1, f"codebook_decay is {self.codebook_decay}; it must lie in (0, 1)")
        require(self.aggregator in AGGREGATORS, f"aggregator is {self.aggregator!r}; use {' or '.join(AGGREGATORS)}")
        require(self.mix in MIXES, f"mix is {self.mix!r}; use one of {', '.join(MIXES)}")
        require(
            self.mi_projection is None or self.mi_projection >= 1,
            f"mi_projection is {self.mi_projection}; it must be at least 1, or null for no projection",
        )
        require(self.mix_rank >= 1, f"mix_rank is {self.mix_rank}; it must be at least 1")
        require(self.mi_queue >= 0, f"mi_queue is {self.mi_queue}; it must not be negative")
        require(self.mi_temperature > 0, f"mi_temperature is {self.mi_temperature}; it must be positive")
        for name in ("router_weight", "mi_weight", "invariant_weight", "domain_weight"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; a loss weight must not be negative")
        if self.method == "iclm":
            self._check_router()
        if self.num_hidden_layers is not None and self.split_layer is not None:
            require(
                0 <= self.split_layer < self.num_hidden_layers,
                f"split_layer is {self.split_layer}; it must lie between 0 and {self.num_hidden_layers - 1}, "
                f"below the base's {self.num_hidden_layers} layers",
            )
            if self.router_layer is not None:
                require(
                    0 <= self.router_layer <= self.split_layer,
                    f"router_layer is {self.router_layer}; it must lie between 0 and split_layer = {self.split_layer}",
                )

    def _check_router(self) -> None:
        single = self.router == "oracle" or self.router.startswith("fixed:")
        require(
            not single or self.active_domains == 1,
            f"active_domains is {self.active_domains}; router {self.router!r} activates exactly 1 domain module",
        )
        if self.router.startswith("fixed:"):
            index = self.router.removeprefix("fixed:")
            require(
                index.isdecimal() and int(index) < self.num_domains,
                f"router is {self.router!r}; fixed:i needs a domain i between 0 and {self.num_domains - 1}",
            )
        else:
            require(self.router in ROUTERS, f"router is {self.router!r}; use one of {', '.join(ROUTERS)}, fixed:i")


def require(condition: bool, message: str) -> None:
    """Raise `ConfigurationError` with the message unless the condition holds."""
    if not condition:
        raise ConfigurationError(message)
