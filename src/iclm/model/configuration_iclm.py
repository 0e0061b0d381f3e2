"""Everything that an ICLM is built from, as a transformers configuration."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from iclm.errors import ConfigurationError

METHODS = ("iclm", "lora")
LEARNED_ROUTERS = ("vq", "kmeans", "bisecting_kmeans", "gumbel", "soft", "topk")  # started from training examples
ROUTERS = (*LEARNED_ROUTERS, "oracle", "random")
ROUTER_LEVELS = ("input", "token")
REDUCTIONS = ("pca", "mds", "none")
AGGREGATORS = ("mix", "concat", "logits", "probas")
ABLATIONS = ("none", "no_invariant", "no_domain")
INDEPENDENCE_LOSSES = ("plugin", "club", "infonce", "hsic", "cross_correlation")
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
    "seed",
)
FINITE_NUMBERS = (
    *("lora_alpha", "lora_dropout", "router_temperature", "codebook_decay", "dead_code_threshold", "mi_temperature"),
    *("router_weight", "mi_weight", "invariant_weight", "domain_weight"),
)
RESERVED = ("mixture", "invariant", "oracle", "base")  # names of figures, never of a domain module
MIXES = ("fixed", "gate", "low_rank")


def check_settings(settings: Iterable[str]) -> None:
    """Raise `ConfigurationError` for a name that is no field of `ICLMConfig`, which would be kept and change nothing."""
    known = [name for name in inspect.signature(ICLMConfig.__init__).parameters if name not in ("self", "kwargs")]
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise ConfigurationError(f"{name} is not a setting of an ICLM; {hint}")


class ICLMConfig(PreTrainedConfig):
    """Configuration of an `ICLMForCausalLM` (Gendron et al., arXiv 2402.02636).

    Args:
        base: where the frozen base came from: `name` and, once built, `dtype`, `quantization` and `fingerprint`.
        method: "iclm", or "lora" for plain LoRA: the invariant module alone, no router, no domain module.
        num_domains: K, the number of domain-specific modules; 0 with method "lora" and only there.
        domain_names: what a user calls each domain module, K different names (`name_fault`); None means domain_0, ...
        active_domains: how many domain modules the router activates for each example, 1 <= active <= K.
        split_layer: s; layers below s carry no adapter and run once for all modules. None means a quarter of the layers
            for "iclm" and 0 for "lora".
        lora_rank, lora_alpha, lora_dropout: rank r of each module, its scale alpha / r, dropout before A (Hu et al. 2021).
        target_modules: "attention" (every linear layer inside attention), "all-linear", or a list of name endings.
        ablation: "none"; "no_invariant" leaves the invariant module out, "no_domain" the domain modules and the router.
        router: "vq" (nearest code of a learned codebook), "kmeans", "bisecting_kmeans" (nearest centre of a clustering),
            "gumbel", "soft", "topk" (learned gates), "oracle" (the true domain), "random" (a hash of the prompt) or
            "fixed:i"; see `iclm.model.router`.
        router_level: "input": one route an example; "token": one a prompt token, and the last one for what follows.
        router_layer: the layer whose input the router reads; the number of layers, or -1, is the last hidden state. Above
            split_layer it costs a second pass of the frozen base. None means split_layer.
        router_reduction: how features are reduced to router_dim dimensions: "pca", "mds" (a linear map to a metric
            scaling of the training features) or "none".
        router_dim: dimensions of the features after the reduction.
        router_temperature: of the gates: the higher, the more even the weights.
        codebook_decay, dead_code_threshold: exponential moving average of the codes, and the average number of examples
            a batch below which a code is replaced by a feature of the batch; 0 means that none is, and that idle codes stay.
        aggregator: "mix" (the base head on a weighted mean of the states), "concat" (a 2H -> V head on both), "logits" or
            "probas" (a weighted mean of the modules' logits or probabilities).
        mix: how the weight of the invariant side is learned: "fixed" at one half, "gate" (one scalar), and for
            "mix" also "low_rank" (plus a residual of rank `mix_rank` that starts at zero).
        router_weight, mi_weight, invariant_weight, domain_weight: weights of the loss terms beside the language-modelling
            loss of the mixture. That of the router trains nothing where codes are no parameters (vq, kmeans). The first two are the paper's; its 0.1 for the others let each module learn little of its own
            (docs/results.md).
        mi_loss: "plugin" (the paper's), "club", "infonce", "hsic" or "cross_correlation"; see `iclm.model.independence`.
        mi_detach_domain: the loss moves the invariant module only.
        mi_projection, mi_queue, mi_temperature: see `iclm.model.independence`.
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
        ablation: str = "none",
        router: str = "vq",
        router_level: str = "input",
        router_layer: int | None = None,
        router_reduction: str = "pca",
        router_dim: int = 32,
        router_temperature: float = 1.0,
        codebook_decay: float = 0.99,
        dead_code_threshold: float = 0.0,
        aggregator: str = "mix",
        mix: str = "fixed",
        mix_rank: int = 8,
        router_weight: float = 0.1,
        mi_weight: float = 0.01,
        invariant_weight: float = 1.0,
        domain_weight: float = 1.0,
        mi_loss: str = "plugin",
        mi_detach_domain: bool = False,
        mi_projection: int | None = 64,
        mi_queue: int = 1024,
        mi_temperature: float = 0.5,
        seed: int = 0,
        domain_names: list[str] | None = None,
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
        self.domain_names = domain_names
        self.active_domains = active_domains
        self.split_layer = split_layer
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.lora_dropout = lora_dropout
        self.target_modules = target_modules
        self.ablation = ablation
        self.router = router
        self.router_level = router_level
        self.router_layer = router_layer
        self.router_reduction = router_reduction
        self.router_dim = router_dim
        self.router_temperature = router_temperature
        self.codebook_decay = codebook_decay
        self.dead_code_threshold = dead_code_threshold
        self.aggregator = aggregator
        self.mix = mix
        self.mix_rank = mix_rank
        self.router_weight = router_weight
        self.mi_weight = mi_weight
        self.invariant_weight = invariant_weight
        self.domain_weight = domain_weight
        self.mi_loss = mi_loss
        self.mi_detach_domain = mi_detach_domain
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

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; what is meant for the base is handed on to `ICLMForCausalLM.from_pretrained` among what is not
        used (`return_unused_kwargs`): its attention, and a `base` that is no entry of the configuration, but a model or its name.
        """
        if not kwargs.get("return_unused_kwargs"):
            return super().from_dict(config_dict, **kwargs)
        if isinstance(kwargs.get("base"), dict):
            config_dict = {**config_dict, "base": kwargs.pop("base")}
        handed = {name: kwargs.pop(name) for name in ("base", "attn_implementation") if kwargs.get(name) is not None}
        config, unused = super().from_dict(config_dict, **kwargs)
        return config, {**unused, **handed}

    @property
    def modules(self) -> tuple[int, ...]:
        """Numbers of the modules that there are: 0 the invariant module, 1 + i domain module i."""
        return tuple(range(1 if self.ablation == "no_invariant" else 0, 1 + self.num_domains))

    @property
    def num_modules(self) -> int:
        """M, the number of modules: 1 + K unless one side is left out."""
        return len(self.modules)

    @property
    def module_names(self) -> list[str]:
        """What can be asked for an answer: the mixture, the invariant module, each domain module."""
        if self.num_domains == 0:
            return ["mixture"]
        return ["mixture", *("invariant" if number == 0 else f"domain_{number - 1}" for number in self.modules)]

    @property
    def names(self) -> list[str]:
        """What a user calls each domain module, [K]."""
        return list(self.domain_names or (default_name(number) for number in range(self.num_domains)))

    def place(self, name: str) -> str:
        """The place of the module that a user means: domain_1 for the own name of domain module 1; anything else as it is."""
        if name in self.module_names or name not in self.names:
            return name
        return default_name(self.names.index(name))

    def names_after(self, domains: Mapping[str, int], before: Sequence[str] = ()) -> list[str]:
        """Names for the domain modules of a model that was trained on these domains.

        A module is called by the domain of its number where routing says that it is that domain's: the oracle's, and
        that of a learned router by input with a module for every domain, whose codes are numbered by the domains they
        match.

        Args:
            domains: number of each domain.
            before: what the modules were called before this training; such a name stays.
        """
        told = self.router == "oracle" or (self.router in LEARNED_ROUTERS and self.router_level == "input")
        known = {number: name for name, number in domains.items()} if told and len(domains) <= self.num_domains else {}
        given = [
            None if name == default_name(number) else name for number, name in enumerate(before[: self.num_domains])
        ]
        given += [None] * (self.num_domains - len(given))
        found: list[str] = []
        for number in range(self.num_domains):
            name = given[number] or known.get(number)
            others = [*found, *(name for name in given[number + 1 :] if name is not None)]
            found.append(default_name(number) if name is None or name_fault(name, number, others) else name)
        return found

    @property
    def feature_layer(self) -> int:
        """The layer whose input the router reads, counted from 0; the number of layers means the last hidden state."""
        assert self.split_layer is not None and self.num_hidden_layers is not None
        if self.router_layer is None:
            return self.split_layer
        return self.num_hidden_layers if self.router_layer == -1 else self.router_layer

    def check(self) -> None:
        """Raise `ConfigurationError` for a value of the wrong type or out of its range, or values that exclude each other."""
        for name in WHOLE_NUMBERS:
            value = getattr(self, name)
            optional = name in ("split_layer", "router_layer", "mi_projection")
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(whole or (optional and value is None), f"{name} is {value!r}; it must be a whole number")
        for name in FINITE_NUMBERS:
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            require(number, f"{name} is {value!r}; it must be a finite number")
        targets = self.target_modules
        require(
            isinstance(targets, str)
            or (isinstance(targets, (list, tuple)) and all(isinstance(t, str) for t in targets)),
            f"target_modules is {targets!r}; use attention, all-linear or a list of name endings",
        )
        require(isinstance(self.router, str), f"router is {self.router!r}; it must be a name")
        require(self.method in METHODS, f"method is {self.method!r}; use one of {', '.join(METHODS)}")
        require(self.ablation in ABLATIONS, f"ablation is {self.ablation!r}; use one of {', '.join(ABLATIONS)}")
        require(
            self.method == "iclm" or self.ablation == "none",
            f"ablation is {self.ablation!r}; plain LoRA (method: lora) has no modules to leave out",
        )
        if self.method == "lora" or self.ablation == "no_domain":
            self.num_domains = 0
            self.domain_names = None
        else:
            if self.router == "soft":
                self.active_domains = self.num_domains
            require(
                self.num_domains >= 1,
                f"num_domains is {self.num_domains}; an ICLM needs at least 1 domain module (plain LoRA is method: lora)",
            )
            require(
                1 <= self.active_domains <= self.num_domains,
                f"active_domains is {self.active_domains}; it must lie between 1 and num_domains = {self.num_domains}",
            )
        require(self.lora_rank >= 1, f"lora_rank is {self.lora_rank}; it must be at least 1")
        require(0 <= self.lora_dropout < 1, f"lora_dropout is {self.lora_dropout}; it must lie in [0, 1)")
        require(self.router_dim >= 1, f"router_dim is {self.router_dim}; it must be at least 1")
        require(0 < self.codebook_decay < 1, f"codebook_decay is {self.codebook_decay}; it must lie in (0, 1)")
        require(
            self.dead_code_threshold >= 0,
            f"dead_code_threshold is {self.dead_code_threshold}; it must not be negative",
        )
        require(self.aggregator in AGGREGATORS, f"aggregator is {self.aggregator!r}; use {' or '.join(AGGREGATORS)}")
        require(self.mix in MIXES, f"mix is {self.mix!r}; use one of {', '.join(MIXES)}")
        require(
            self.mix != "low_rank" or self.aggregator == "mix",
            f"mix is 'low_rank'; it is of aggregator 'mix', and not of {self.aggregator!r}",
        )
        require(
            self.mix == "fixed" or self.aggregator != "concat",
            f"mix is {self.mix!r}; aggregator 'concat' weighs no sides, so leave it fixed",
        )
        require(
            self.mi_loss in INDEPENDENCE_LOSSES,
            f"mi_loss is {self.mi_loss!r}; use one of {', '.join(INDEPENDENCE_LOSSES)}",
        )
        require(
            isinstance(self.mi_detach_domain, bool), f"mi_detach_domain is {self.mi_detach_domain!r}; use true or false"
        )
        require(
            self.mi_projection is None or self.mi_projection >= 1,
            f"mi_projection is {self.mi_projection}; it must be at least 1, or null for no projection",
        )
        require(self.mix_rank >= 1, f"mix_rank is {self.mix_rank}; it must be at least 1")
        require(self.mi_queue >= 0, f"mi_queue is {self.mi_queue}; it must not be negative")
        require(self.mi_temperature > 0, f"mi_temperature is {self.mi_temperature}; it must be positive")
        for name in ("router_weight", "mi_weight", "invariant_weight", "domain_weight"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; a loss weight must not be negative")
        if self.num_domains:
            self._check_router()
        if self.domain_names is not None:
            self._check_names(self.domain_names)
        if self.num_hidden_layers is not None and self.split_layer is not None:
            require(
                0 <= self.split_layer < self.num_hidden_layers,
                f"split_layer is {self.split_layer}; it must lie between 0 and {self.num_hidden_layers - 1}, "
                f"below the base's {self.num_hidden_layers} layers",
            )
            if self.router_layer is not None:
                require(
                    -1 <= self.router_layer <= self.num_hidden_layers,
                    f"router_layer is {self.router_layer}; it must lie between 0 and {self.num_hidden_layers}, "
                    "the last hidden state, which -1 means too",
                )

    def _check_names(self, names: list[str]) -> None:
        whole = isinstance(names, list) and len(names) == self.num_domains
        require(whole, f"domain_names is {names!r}; it must be a list of {self.num_domains} names")
        for number, name in enumerate(names):
            fault = name_fault(name, number, names[:number])
            require(not fault, f"domain_names[{number}] is {name!r}; {fault}")

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
        require(
            self.router_level in ROUTER_LEVELS,
            f"router_level is {self.router_level!r}; use {' or '.join(ROUTER_LEVELS)}",
        )
        require(
            self.router_reduction in REDUCTIONS,
            f"router_reduction is {self.router_reduction!r}; use one of {', '.join(REDUCTIONS)}",
        )
        require(
            self.router_temperature > 0,
            f"router_temperature is {self.router_temperature}; it must be positive",
        )


def default_name(number: int) -> str:
    """What a domain module is called in every figure, and by a user where nothing else was said."""
    return f"domain_{number}"


def name_fault(name: Any, number: int, others: Sequence[str] = ()) -> str:
    """What is wrong with a name for domain module `number`, in words; empty where nothing is."""
    if not isinstance(name, str) or not name.strip() or name != name.strip() or not name.isprintable():
        return "a name is a text of one line, without white space at its ends"
    if name in RESERVED or (re.fullmatch(r"(domain|route)_\d+", name) and name != default_name(number)):
        return "that is what another module is called"
    return "two modules cannot have one name" if name in others else ""


def describe(config: ICLMConfig, number: int) -> str:
    """A domain module in a message: its place, and its name where it has one."""
    name = config.names[number]
    return default_name(number) if name == default_name(number) else f"{default_name(number)} ({name})"


def require(condition: bool, message: str) -> None:
    """Raise `ConfigurationError` with the message unless the condition holds."""
    if not condition:
        raise ConfigurationError(message)
