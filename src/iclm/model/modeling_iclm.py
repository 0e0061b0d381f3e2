"""ICLMForCausalLM: a frozen language model split into independent causal mechanisms.

    prompt ─▶ trunk (B rows) ─▶ router ─▶ plan ─▶ upper layers with LoRA modules (R rows) ─▶ aggregator ─▶ shared head

    loss = LM(mixture) + w_router router + w_mi MI + w_inv LM(invariant) + w_dom LM(domain)

Source: Gendron et al., Can Large Language Models Learn Independent Causal Mechanisms?, arXiv 2402.02636 (EMNLP 2024).
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from iclm.errors import ConfigurationError
from iclm.model import arguments, checkpoint
from iclm.model.aggregator import build_aggregator, weigh
from iclm.model.arguments import KeepsBase
from iclm.model.attention import use_fast_attention
from iclm.model.backbone import Head, anatomy, check_head, freeze, highest_split, identify, load_base, require_decoder
from iclm.model.cache import ICLMCache
from iclm.model.compiling import compile_layers
from iclm.model.configuration_iclm import ICLMConfig, check_settings
from iclm.model.fidelity import check_fresh
from iclm.model.generation import RoutedGenerationMixin
from iclm.model.independence import build_independence
from iclm.model.losses import before_labels, five_term_loss
from iclm.model.modules import Activation, AdaptedLayer, LoRABank, Runtime, adapt, in_float32, require_bare
from iclm.model.outputs import Encoded, ICLMOutput
from iclm.model.packing import Packing, packing_obstacle
from iclm.model.plan import INVARIANT, ActivationPlan, Route
from iclm.model.quantization import parameter_count
from iclm.model.router import build_router
from iclm.model.routing import RoutingMixin
from iclm.yaml_file import place_of

LOADING_INFO = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
BASE_OPTIONS = ("attn_implementation", "revision", "token", "local_files_only")


class ICLMForCausalLM(KeepsBase, PreTrainedModel, RoutingMixin, RoutedGenerationMixin):
    """A pretrained causal language model with one invariant and K routed domain modules.

    Make one with `from_base`, load one with `from_pretrained`. Only its own parameters are trained and saved; the base
    model is named in the configuration and recognised by its fingerprint.
    """

    config_class = ICLMConfig
    config: ICLMConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False

    def __init__(self, config: ICLMConfig, base: PreTrainedModel | None = None) -> None:
        if base is None:
            base = checkpoint.load_named_base(config)
        require_bare(base)
        require_decoder(config.base.get("name") or type(base).__name__, base.config)
        parts = anatomy(base)
        config.vocab_size, config.hidden_size = parts.vocab_size, parts.hidden_size
        config.num_hidden_layers = parts.num_layers
        highest = highest_split(base)
        if config.split_layer is None:
            config.split_layer = 0 if config.method == "lora" else min(parts.num_layers // 4, highest)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, name, getattr(base.config.get_text_config(decoder=True), name, None))
        config.check()
        if config.split_layer > highest:
            raise ConfigurationError(
                f"split_layer is {config.split_layer}; upper layers of this base read keys and values of layer {highest}, so use {highest} or less"
            )
        super().__init__(config)
        quantization, found = identify(base)
        freeze(base)
        self.no_packing = packing_obstacle(base)
        use_fast_attention(base)
        check_head(base, parts)
        checkpoint.check_fingerprint(
            config, found, getattr(base.config, "_name_or_path", "") or config.base.get("name", "")
        )
        config.base["fingerprint"] = found
        config.base["dtype"] = str(base.dtype).removeprefix("torch.")
        config.base["quantization"] = quantization
        of_base = {id(tensor) for tensor in (*base.parameters(), *base.buffers())}
        self.generation_config = base.generation_config
        self.base = base
        self.decoder_path = next(name for name, module in base.named_modules() if module is parts.decoder)
        self.runtime = Runtime()
        with in_float32():
            self.router = build_router(config)
            self.aggregator = build_aggregator(config, base.get_output_embeddings())
            self.independence = None if self.aggregator is None else build_independence(config)
            adapt(base.get_submodule(parts.layers_path), config, self.runtime)
        self.mi_scale = 1.0  # of mi_weight; a schedule moves it
        self.compiled = False
        for module in (self.router, self.aggregator, self.independence):
            if module is not None:
                module.to(base.device)
        # a packed weight's scales are in the state dict too, but are neither parameters nor buffers
        own = {id(tensor) for tensor in (*self.parameters(), *self.buffers())} - of_base
        state = self.state_dict(keep_vars=True)
        self.own_names = frozenset(name for name, tensor in state.items() if id(tensor) in own)

    # -- making, saving, loading ---------------------------------------------------------------------------------------

    @classmethod
    def from_base(
        cls,
        base: str | PreTrainedModel,
        config: ICLMConfig | None = None,
        *,
        dtype: Any = "auto",
        quantization: str = "none",
        **settings: Any,
    ) -> ICLMForCausalLM:
        """Make a fresh ICLM, which gives the base model's own logits.

        Args:
            base: name of a base model (see `iclm.model.backbone`), or a loaded one, which is frozen and adapted in place.
            config: an `ICLMConfig`; else one is made from `settings`.
            dtype: of the base's weights: "auto", a name or a torch dtype; a loaded base keeps its own.
            quantization: "none" or "nf4", a 4-bit base on the GPU; a loaded base keeps its own (see `load_base`).
            settings: fields of `ICLMConfig`.

        Raises:
            BackboneError: a base that cannot be found, read or adapted, or whose own logits the ICLM does not give.
            ConfigurationError: a setting out of its range, or one that there is not.
        """
        check_settings(settings)
        if config is not None and settings:
            raise ConfigurationError(
                f"config is given, so {next(iter(settings))} would change nothing; set it in the config"
            )
        # a base's fingerprint is noted in it
        config = ICLMConfig(**settings) if config is None else copy.deepcopy(config)
        if isinstance(base, str):
            config.base["name"] = place_of(base)
            base = load_base(base, dtype, quantization)
        else:
            name = getattr(base.config, "_name_or_path", "") or ""
            config.base.setdefault("name", place_of(name) if name else "")
        return check_fresh(cls(config, base))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *args: Any,
        config: ICLMConfig | None = None,
        base: str | PreTrainedModel | None = None,
        dtype: Any = "auto",
        quantization: str | None = None,
        **kwargs: Any,
    ) -> ICLMForCausalLM:
        """Load an ICLM saved by `save_pretrained`; it is in evaluation mode.

        Args:
            pretrained_model_name_or_path: the folder.
            base: the base model, or where it lies now, if not where the configuration says.
            dtype, quantization: of the base's weights; "auto" and None mean as they were when the ICLM was made. A loaded base
                keeps its own: another dtype or attention than it has is refused.
            kwargs: `device_map` (a device, {"": device}, or "auto" for a GPU if there is one) moves the model there;
                `generation_config` takes the place of the folder's; `attn_implementation`, `revision`, `token`
                and `local_files_only` are for the base; what transformers passes and means nothing here is ignored.

        Raises:
            CheckpointError: a missing or damaged file, or another base than the ICLM was made from.
            BackboneError: the base cannot be loaded.
            ConfigurationError: an option of transformers that an ICLM cannot honour, or one that there is not.
        """
        arguments.check_loading(kwargs)
        if kwargs.get("torch_dtype") is not None and dtype in (None, "auto"):
            dtype = kwargs["torch_dtype"]  # the name of transformers before 4.56
        folder = Path(pretrained_model_name_or_path)
        config = checkpoint.read_config(folder) if config is None else copy.deepcopy(config)
        state = checkpoint.read_weights(folder)
        if isinstance(base, PreTrainedModel):
            arguments.check_loaded_base(base, dtype, kwargs.get("attn_implementation"))
        else:
            options = {name: kwargs[name] for name in BASE_OPTIONS if kwargs.get(name) is not None}
            dtype = config.base.get("dtype", "auto") if dtype in (None, "auto") else dtype
            base = checkpoint.load_named_base(config, base, dtype, quantization, **options)
        model = cls(config, base)
        checkpoint.load_own_state(model, state, folder)
        model.generation_config = copy.deepcopy(kwargs.get("generation_config")) or (
            checkpoint.read_generation_config(folder) or model.generation_config
        )
        device = arguments.device_of(kwargs.get("device_map"))
        if device is not None:
            model.to(device)
        model.eval()
        if kwargs.get("output_loading_info"):  # anything missing or unexpected was an error
            return model, {name: [] for name in LOADING_INFO}  # type: ignore[return-value]
        return model

    def own_state_dict(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers that are not the base's: adapters, router, aggregator, queue."""
        return {name: tensor for name, tensor in self.state_dict().items() if name in self.own_names}

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:  # type: ignore[override]
        """Write config.json, generation_config.json and model.safetensors (own parameters only) to a folder.

        Args:
            save_directory: made if it does not exist.
            kwargs: `state_dict` (of the whole model, as the Trainer passes it) is reduced to our own entries; with
                `is_main_process` False nothing is written; the rest of transformers' options are accepted and ignored.

        Raises:
            ConfigurationError: the folder holds another model, as that of the base does.
        """
        if not kwargs.get("is_main_process", True):
            return
        state = self.own_state_dict()
        given = kwargs.get("state_dict")
        if given is not None:
            state = {name: given[name] for name in state}
        checkpoint.write(Path(save_directory), self, state)

    # -- what transformers asks of a model -----------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        """The base's token embeddings."""
        return self.base.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The base's output projection."""
        return self.base.get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        """The base's decoder, which returns final hidden states."""
        return self.base.get_submodule(self.decoder_path)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the base's weights, those that are not quantised."""
        return self.base.dtype

    @property
    def base_parameters(self) -> int:
        """Number of parameters of the frozen base."""
        return sum(parameter_count(p) for name, p in self.named_parameters() if name not in self.own_names)

    def train(self, mode: bool = True) -> ICLMForCausalLM:
        """Set training mode; the frozen base itself stays in evaluation mode, so that its own dropout is off."""
        super().train(mode)
        self.base.eval()
        for module in self.base.modules():
            if isinstance(module, (LoRABank, AdaptedLayer)):
                module.training = mode
        return self

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Recompute the adapted layers in the backward pass instead of keeping their activations."""
        for layer in self.adapted_layers():
            layer.checkpointing = True

    def activation_checkpointing_disable(self) -> None:
        """Keep the activations of the adapted layers again."""
        for layer in self.adapted_layers():
            layer.checkpointing = False

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether the adapted layers are recomputed in the backward pass."""
        return any(layer.checkpointing for layer in self.adapted_layers())

    # the names of transformers before 5.20
    gradient_checkpointing_enable = activation_checkpointing_enable
    gradient_checkpointing_disable = activation_checkpointing_disable
    is_gradient_checkpointing = is_activation_checkpointing

    def compile_layers(self) -> bool:
        """Compile the decoder layers with `torch.compile` when they first run: faster steps after a first one of half a
        minute or more. Results stay the same up to rounding. Returns False, after a warning, where it does not work."""
        self.compiled = compile_layers(self.base.get_submodule(anatomy(self.base).layers_path), self.device)
        return self.compiled

    def packs(self, wanted: bool = True) -> bool:
        """Whether examples share sequences where that is wanted: not on a base that cannot part them, of which a warning says why."""
        if wanted and self.no_packing is not None:
            warnings.warn(
                f"{self.no_packing}, so every example of this base runs in a sequence of its own", stacklevel=2
            )
        return wanted and self.no_packing is None

    def adapted_layers(self) -> Iterable[AdaptedLayer]:
        """The wrapped layers of the base."""
        return (module for module in self.base.modules() if isinstance(module, AdaptedLayer))

    # -- forward -------------------------------------------------------------------------------------------------------

    def module_number(self, name: str) -> int | None:
        """Number of a module in the bank: 0 for "invariant", 1 + i for "domain_i", None for "mixture"."""
        known = self.config.module_names
        if name not in known and not (name == "invariant" and self.config.num_domains == 0):
            raise ConfigurationError(f"module {name!r} is unknown; use one of {', '.join(known)}")
        if name == "mixture":
            return INVARIANT if self.config.num_domains == 0 else None
        return INVARIANT if name == "invariant" else 1 + int(name.removeprefix("domain_"))

    def encode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        packing: Packing | None = None,
        prompt_mask: torch.Tensor | None = None,
        domain_ids: torch.Tensor | None = None,
        router_features: torch.Tensor | None = None,
        route: torch.Tensor | Route | None = None,
        module: str = "mixture",
        every_module: bool = False,
        past_key_values: ICLMCache | None = None,
        use_cache: bool = False,
    ) -> Encoded:
        """Run trunk, router and upper layers; no head.

        Args:
            input_ids: [batch, tokens]; with a filled cache the new tokens only.
            attention_mask: [batch, past + tokens], 1 for real tokens; None means all.
            packing: where several examples share a sequence; `examples` below are then its branches. No cache.
            prompt_mask: [batch, tokens], the tokens that the router may read; None means all real ones.
            domain_ids: true domain of each example [examples], for the oracle router.
            router_features: what the router decides on [examples, hidden], as the method of that name gives it, computed
                before; a router above the split then costs no pass of its own. None means that it is read here.
            route: domain modules [examples] or [examples, active] instead of the router's decision; of the mixture only.
            module: "mixture", or one module alone.
            every_module: a row for each of the M modules of every example, and the route beside it.
            past_key_values, use_cache: the cache of earlier tokens, and whether to keep one.

        Raises:
            ConfigurationError: arguments whose shapes or values do not fit the model.
        """
        past = arguments.past_of(past_key_values)
        mask = arguments.real_tokens(input_ids, attention_mask, past)
        batch, tokens = input_ids.shape
        caches = bool(use_cache) or past_key_values is not None
        if caches and self.training and torch.is_grad_enabled() and self.is_activation_checkpointing:
            use_cache = arguments.cache_of_recomputed(past_key_values)
        decision: list[Route | None] = [None]
        owner = packing.owner if packing is not None else torch.arange(batch, device=input_ids.device)
        number = None if every_module else self.module_number(module)
        arguments.check_route(module, number, route)
        if past_key_values is not None:
            past_key_values.check(number, route, every_module=every_module)

        def make_plan(hidden: torch.Tensor) -> ActivationPlan:
            if past_key_values is not None and past_key_values.plan is not None:
                decision[0] = past_key_values.route
                return past_key_values.plan
            shared = None if packing is None else owner
            if number is not None:
                return ActivationPlan.everywhere((number,), batch, shared, input_ids.device)
            if route is not None or self.router is None:
                decision[0] = self._given(route, len(owner), tokens)
            else:
                readable = mask[:, past:]
                decision[0] = self._decide(
                    self._prompt(input_ids, readable, hidden, prompt_mask, packing, domain_ids, router_features)
                )
            if every_module:
                return ActivationPlan.everywhere(self.config.modules, batch, shared, input_ids.device, decision[0])
            assert decision[0] is not None
            return ActivationPlan.mixture(decision[0], shared, batch, fixed)

        fixed = tuple(m for m in self.config.modules if m == INVARIANT)
        activation = Activation(make_plan, self.config.lora_rank, self.config.lora_alpha / self.config.lora_rank)
        if self.config.feature_layer > (self.config.split_layer or 0):
            decided = past_key_values is not None and past_key_values.plan is not None
            reads = not decided and number is None and route is None and router_features is None
            activation.route(self._read(input_ids, mask, packing) if reads else input_ids, self.dtype)
        if use_cache and past_key_values is None:
            past_key_values = ICLMCache(self.base.config, self.config.split_layer or 0)
        hidden = self._run_decoder(activation, input_ids, mask, packing, past_key_values)
        assert activation.plan is not None
        if past_key_values is not None:
            past_key_values.keep(activation.plan, decision[0], fixed, number)
        return Encoded(hidden, activation.plan, decision[0], past_key_values if use_cache else None)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        domain_ids: torch.Tensor | None = None,
        branch_ids: torch.Tensor | None = None,
        prompt_mask: torch.Tensor | None = None,
        router_features: torch.Tensor | None = None,
        route: torch.Tensor | Route | None = None,
        module: str = "mixture",
        past_key_values: ICLMCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ICLMOutput | tuple[Any, ...]:
        """Next-token logits, or the five-term loss where labels are given; in evaluation mode then both.

        Args:
            input_ids, attention_mask, domain_ids, router_features, route, module, past_key_values: see `encode`.
            labels: [batch, tokens], -100 where nothing is to be learned. The router then reads only the tokens before the
                first label of each example: its prompt. An example without one, as in plain text whose labels are its
                tokens, is read whole.
            branch_ids: [batch, tokens], where several examples share a sequence (`iclm.model.packing`); needs labels.
            prompt_mask: [batch, tokens], the tokens that the router may read; overrides the above.
            use_cache: None means not while training or with labels, nor where the base needs a cache of its own kind. In training
                with gradient checkpointing none is kept.
            logits_to_keep: logits of the last n tokens only, or at these positions [n]; 0 means all. None are given for branches.
            num_items_in_batch: labelled tokens over all batches of an accumulated step; the loss is then their share.
            return_dict: False gives a tuple of what there is, as in transformers.
            kwargs: what transformers passes to every model and means nothing here is ignored.

        Raises:
            ConfigurationError: arguments whose shapes or values do not fit the model, or that it cannot honour.
        """
        if input_ids is None:
            raise ConfigurationError("input_ids is missing; an ICLM takes token ids, no inputs_embeds")
        if getattr(self, "_is_replica", False):
            raise ConfigurationError("torch.nn.DataParallel cannot split an ICLM; start a process a GPU with torchrun")
        beside = {"labels": labels, "branch_ids": branch_ids}
        arguments.check_arguments(kwargs, input_ids, attention_mask, past_key_values, beside)
        decided = past_key_values is not None and past_key_values.plan is not None  # nothing reads the prompt again
        if labels is not None and prompt_mask is None and not decided:
            prompt_mask = before_labels(labels, branch_ids, attention_mask)
        packing = None if branch_ids is None else Packing.of(branch_ids)
        use_cache = arguments.wants_cache(use_cache, self.base, self.training)
        if labels is None and num_items_in_batch is not None and self.router is not None:
            arguments.warn_of_missing_labels()
        if packing is not None and labels is None:
            raise ConfigurationError("branch_ids needs labels; logits are returned for one example a sequence only")
        encoded = self.encode(
            input_ids,
            attention_mask,
            packing=packing,
            prompt_mask=prompt_mask,
            domain_ids=domain_ids,
            router_features=router_features,
            route=route,
            module=module,
            past_key_values=past_key_values,
            use_cache=bool(use_cache) and labels is None,
        )
        loss = terms = logits = None
        if labels is not None:
            loss, terms = five_term_loss(self, encoded, labels, packing, num_items_in_batch)
        if packing is None and not (labels is not None and self.training):
            logits = self._all_logits(encoded, input_ids, logits_to_keep)
        route_indices = None if encoded.route is None else encoded.route.indices
        output = ICLMOutput(loss, logits, encoded.cache, route_indices, encoded.route, terms)
        return output if return_dict is not False else output.to_tuple()

    def _all_logits(self, encoded: Encoded, input_ids: torch.Tensor, keep: int | torch.Tensor) -> torch.Tensor:
        """Logits [batch, kept, vocabulary] of the last `keep` tokens (0 for all), or at positions [kept]."""
        batch, tokens = input_ids.shape
        if isinstance(keep, torch.Tensor):
            kept = torch.arange(tokens, device=input_ids.device)[keep.to(input_ids.device)]
        else:
            kept = torch.arange(max(tokens - keep, 0) if keep else 0, tokens, device=input_ids.device)
        examples = torch.arange(batch, device=input_ids.device).repeat_interleave(len(kept))
        positions = kept.repeat(batch)
        logits = self.logits(encoded, encoded.at(examples, positions), examples, positions)
        return logits.unflatten(0, (batch, len(kept)))

    # -- heads -------------------------------------------------------------------------------------------------------

    @property
    def head(self) -> Head:
        """The shared head: the base model's own."""
        return Head.of(self.base)

    def logits(
        self, encoded: Encoded, states: torch.Tensor, examples: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Logits [n, vocabulary] of the states [n, width, hidden] at n (example, position) pairs."""
        if encoded.route is None:
            return self.head(states[:, 0])
        return self.mix(*encoded.sides(states, examples, positions))

    def mix(self, invariant: torch.Tensor | None, domains: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Logits of the mixture: states [n, hidden], [n, active, hidden] and weights [n, active] (`Encoded.sides`)."""
        if invariant is None or self.aggregator is None:
            return self.head(weigh(domains, weights))
        return self.aggregator(invariant, domains, weights, self.head)


AutoConfig.register("iclm", ICLMConfig)
AutoModelForCausalLM.register(ICLMConfig, ICLMForCausalLM)
