"""The exchange with PEFT: a module as a LoRA adapter folder, and such a folder as a module.

    FOLDER/adapter_config.json         rank r', alpha', which layers; all that PEFT needs to load it again
    FOLDER/adapter_model.safetensors   base_model.model.LAYER.lora_A.weight [r', in] and .lora_B.weight [out, r']

Both sides compute W x + s B A x, PEFT with s' = alpha' / r' (alpha' / sqrt(r') with use_rslora), a model with
s = alpha / r for all its modules. So an adapter becomes a module by

    A = [A' ; start]      B = [s'/s B' , 0]      r - r' rows and columns more

with the usual random start in the new rows of A: they add exactly zero, and can still learn. So do layers that the
adapter leaves alone. s'/s is multiplied in float64 and rounded once; where it is 1, B is B' bitwise. What cannot be said
this way is refused with the field that says it. Which layers an adapter adapts is read from its weights: target_modules,
layers_to_transform and the like are how PEFT once found them. On some bases PEFT takes layers of certain names for
something else, or refuses them: modules that adapt such a layer are not written.

Formats: Hu et al. 2021 (LoRA), Kalajdzievski 2023 (rslora); PEFT's developer guide, "PEFT checkpoint format".
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from iclm.errors import CheckpointError, ConfigurationError
from iclm.model.backbone import anatomy, load_base
from iclm.model.checkpoint import read_json, write_tensors
from iclm.model.configuration_iclm import ICLMConfig, check_settings
from iclm.model.modeling_iclm import ICLMForCausalLM
from iclm.model.surgery import banks, fresh_weights, set_weights, weights_of
from iclm.yaml_file import place_of

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
PREFIX = "base_model.model."

# Fields with no say in what a trained adapter computes: how it was found, started or trained, and where it came from.
NEUTRAL = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules",
    "velora_config",
}  # fmt: skip
READ = {
    "alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "peft_type", "r", "rank_pattern", "task_type",
    "use_rslora",
}  # fmt: skip
STARTS = (True, False, "gaussian", "eva", "orthogonal", "mica")  # the others change the base's weights too

# What PEFT 0.21 does not load as it is written, by model type of the base and last part of the layer's name.
# utils/transformers_weight_conversion.py: where transformers 5 has fused the experts, every layer of a name that theirs had
# is taken for theirs, be it a shared expert or a dense layer.
FUSED_BASES = {
    "afmoe", "beam", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe", "exaone_moe",
    "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "hunyuan_v1_moe", "longcat_flash", "mellum", "minimax",
    "minimax_m2", "mixtral", "olmoe", "qwen3_moe", "qwen3_next", "solar_open",
}  # fmt: skip
FUSED_LAYERS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
# tuners/tuners_utils.py: refused, as these bases read the weight of the layer.
MAMBA_BASES = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
MAMBA_LAYERS = {"out_proj"}

ORIGINS = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""What adapters call a packaged base (`iclm.model.backbone.PACKAGED`)."""


@dataclass(frozen=True)
class Adapter:
    """A PEFT LoRA adapter as it was read.

    Attributes:
        folder: where it lies.
        base: the base model that it names; empty where it names none.
        weights: A [rank, in] and B [out, rank] in float32 by the name of the linear layer in the base model.
        scales: the factor on B A of each of these layers.
    """

    folder: Path
    base: str
    weights: dict[str, tuple[torch.Tensor, torch.Tensor]]
    scales: dict[str, float]

    @property
    def rank(self) -> int:
        """The largest rank of its layers."""
        return max(a.shape[0] for a, _ in self.weights.values())


# -- reading -----------------------------------------------------------------------------------------------------------


def read_adapter(folder: str | Path) -> Adapter:
    """Read a LoRA adapter that PEFT has saved.

    Raises:
        CheckpointError: no such folder, a file that is missing, damaged or pickled.
        ConfigurationError: an adapter that is more than A and B of linear layers; the message names the field.
    """
    folder = Path(folder)
    path = folder / CONFIG
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no adapter folder: there is no such folder")
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {CONFIG}; it is not a PEFT adapter")
    values = read_json(path)
    _check_fields(values, path)
    weights = _pairs(folder)
    patterns = {name: _mapping(values, name, path) for name in ("rank_pattern", "alpha_pattern")}
    scales = {}
    for layer, (a, _) in weights.items():
        rank = _number(_by_pattern(patterns["rank_pattern"], layer, values.get("r", 8)), "r", path)
        alpha = _number(_by_pattern(patterns["alpha_pattern"], layer, values.get("lora_alpha", 8)), "lora_alpha", path)
        if rank != a.shape[0]:
            raise CheckpointError(
                f"{folder}: {layer} has rank {a.shape[0]}; {CONFIG} says {rank:g}: one of them is damaged"
            )
        scales[layer] = alpha / (rank**0.5 if values.get("use_rslora") else rank)
    return Adapter(folder, str(values.get("base_model_name_or_path") or ""), weights, scales)


def _check_fields(values: dict[str, Any], path: Path) -> None:
    """Raise `ConfigurationError` for what a module cannot be."""
    for field, wanted in (("peft_type", ("LORA",)), ("task_type", (None, "CAUSAL_LM")), ("bias", (None, "none"))):
        if values.get(field) not in wanted:
            raise ConfigurationError(f"{path}: {field} is {values.get(field)!r}; only {wanted[-1]} can become a module")
    start = values.get("init_lora_weights", True)
    if (start.lower() if isinstance(start, str) else start) not in STARTS:
        raise ConfigurationError(
            f"{path}: init_lora_weights is {start!r}, which changes the base's weights too; save it "
            "with PEFT's path_initial_model_for_weight_conversion, which makes plain LoRA of it"
        )
    for field, value in values.items():
        if field not in NEUTRAL | READ and value not in (None, False, "", 0) and value != {} and value != []:
            raise ConfigurationError(f"{path}: {field} is {_short(value)}; a module is A and B of linear layers alone")


def _pairs(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B of every adapted layer, in float32."""
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / PICKLED).is_file():
            raise CheckpointError(f"{folder / PICKLED} is pickled, so it is not read; re-save with safe_serialization")
        raise CheckpointError(f"{folder} holds no {WEIGHTS}; the weights of the adapter are missing")
    try:
        tensors = load_file(path)
    except Exception as error:
        raise CheckpointError(f"{path} is damaged: {error}; copy or save it again") from error
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", name)
        if match is None:
            raise ConfigurationError(f"{path} holds {name}; a module is A and B of linear layers alone")
        # in float32, as there is no isfinite of float8
        if tensor.dim() != 2 or not tensor.is_floating_point() or not bool(torch.isfinite(tensor.float()).all()):
            raise CheckpointError(f"{path}: {name} is no matrix of finite numbers; train or save the adapter again")
        found.setdefault(match[1], {})[match[2]] = tensor.float()
    if not found:
        raise CheckpointError(f"{path} holds no weights; the adapter adapts nothing")
    for layer, pair in found.items():
        if pair.keys() != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
            raise CheckpointError(f"{path} is damaged: A and B of {layer} do not fit each other")
    return {layer: (pair["A"], pair["B"]) for layer, pair in found.items()}


def _mapping(values: dict[str, Any], field: str, path: Path) -> dict[str, Any]:
    found = values.get(field) or {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is damaged: {field} is {_short(found)}, not a mapping")
    return found


def _by_pattern(patterns: dict[str, Any], layer: str, otherwise: Any) -> Any:
    """The value of the first pattern that a layer's name ends with (PEFT's rule), else the common one."""
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", layer):
                return value
        except re.error as error:
            raise ConfigurationError(f"{CONFIG}: pattern {pattern!r} is no regular expression: {error}") from error
    return otherwise


def _number(value: Any, field: str, path: Path) -> float:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not usable or (field == "r" and value < 1):
        raise CheckpointError(f"{path} is damaged: {field} is {_short(value)}, not a number that can be used")
    return float(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# -- an adapter as a module --------------------------------------------------------------------------------------------


def fit_adapter(
    adapter: Adapter, model: ICLMForCausalLM, seed: int = 0
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The weights that make a module of a model compute what an adapter computes; see the head of this file.

    Args:
        seed: of the start of what the adapter leaves open.

    Returns:
        What `surgery.add_module` and `surgery.set_weights` take.

    Raises:
        ConfigurationError: the adapter has a higher rank, or adapts what the model does not.
        CheckpointError: it was made for another base, whose layers have other sizes.
    """
    config, known = model.config, banks(model)
    if config.lora_alpha == 0:
        raise ConfigurationError("the model's lora_alpha is 0: its modules have no effect, so none can be an adapter's")
    extra = [layer for layer in adapter.weights if layer not in known]
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise ConfigurationError(
            f"{adapter.folder} adapts {extra[0]}{more}, which this model does not adapt; it adapts "
            f"{_coverage(model)}: set split_layer and target_modules to what the adapter has"
        )
    if adapter.rank > config.lora_rank:
        raise ConfigurationError(
            f"{adapter.folder} has rank {adapter.rank}; modules of this model have rank {config.lora_rank}, and need "
            f"lora_rank: {adapter.rank} or more to hold it"
        )
    weights = fresh_weights(model, seed)
    for layer, (a, b) in adapter.weights.items():
        rank, (start, zeros) = a.shape[0], weights[layer]
        if a.shape[1] != start.shape[1] or b.shape[0] != zeros.shape[0]:
            raise CheckpointError(
                f"{adapter.folder} was made for another base: {layer} maps {a.shape[1]} to {b.shape[0]} dimensions "
                f"there, {start.shape[1]} to {zeros.shape[0]} here"
            )
        start[:rank] = a
        ratio = adapter.scales[layer] / (config.lora_alpha / config.lora_rank)
        zeros[:, :rank] = b if ratio == 1 else (b.double() * ratio).float()
    return weights


def _coverage(model: ICLMForCausalLM) -> str:
    """Which layers a model adapts, in words."""
    config, path = model.config, anatomy(model.base).layers_path
    inside = dict.fromkeys(_in_layer(name, path)[1] for name in banks(model))
    assert config.num_hidden_layers is not None
    return f"{', '.join(inside)} of layers {config.split_layer} to {config.num_hidden_layers - 1}"


def _in_layer(name: str, path: str) -> tuple[int, str]:
    """Number of the decoder layer that a linear layer lies in, and its name there."""
    number, _, inside = name.removeprefix(path + ".").partition(".")
    return int(number), inside


def from_adapters(
    base: str | PreTrainedModel,
    adapters: dict[str, str | Path],
    *,
    dtype: Any = "auto",
    quantization: str = "none",
    **settings: Any,
) -> ICLMForCausalLM:
    """Make an ICLM whose domain modules are LoRA adapters that PEFT has trained on the same base.

    Rank, scale, targets and split are chosen so that all of them fit. The invariant module is fresh, and gives the base
    model's own states; with ablation "no_invariant" there is none, and the mixture of one active module is that adapter
    alone.
    A router that learns is started with `fit_router`; with `domain_ids` of the examples code i is the one of adapter i.

    Args:
        base: name of the base model, or a loaded one, which is frozen and adapted in place.
        adapters: name of each domain module and the PEFT folder that it comes from, in the order of their numbers.
        dtype, quantization: of the base's weights, as in `ICLMForCausalLM.from_base`.
        settings: fields of `ICLMConfig` other than num_domains and domain_names; they go before what the adapters ask for.

    Raises:
        ICLMError: no adapter, one that cannot be read or does not fit, or a setting out of its range.
    """
    if not adapters:
        raise ConfigurationError("adapters is empty; name at least one PEFT folder")
    check_settings(settings)
    for name, what in (("num_domains", "number"), ("domain_names", "names")):
        if name in settings:
            raise ConfigurationError(f"{name} is given, which is the {what} of the adapters; leave it out")
    read = [read_adapter(folder) for folder in adapters.values()]
    if isinstance(base, str):
        settings.setdefault("base", {"name": place_of(base)})
        base = load_base(base, dtype, quantization)
    _warn_of_other_bases(read, (settings.get("base", {}).get("name"), getattr(base.config, "_name_or_path", None)))
    path, layers = anatomy(base).layers_path, {layer for adapter in read for layer in adapter.weights}
    outside = sorted(layer for layer in layers if not re.match(rf"{re.escape(path)}\.\d+\.", layer))
    if outside:
        raise ConfigurationError(
            f"an adapter adapts {outside[0]}, which lies in no decoder layer ({path}.i) of this base"
        )
    places = [_in_layer(layer, path) for layer in layers]
    rank = max(adapter.rank for adapter in read)
    found = {
        "lora_rank": rank,
        "lora_alpha": rank * next(iter(read[0].scales.values())),
        "split_layer": min(index for index, _ in places),
        "target_modules": sorted({inside for _, inside in places}),
    }
    config = ICLMConfig(num_domains=len(read), domain_names=list(adapters), **{**found, **settings})
    model = ICLMForCausalLM.from_base(base, config)
    for number, adapter in enumerate(read):
        set_weights(model, 1 + number, fit_adapter(adapter, model, config.seed + 1 + number))
    return model.eval()


def _warn_of_other_bases(adapters: Iterable[Adapter], names: Iterable[str | None]) -> None:
    """Warn of adapters that name another base, whose layers fit by chance; of a path only the last part is compared."""

    def last_part(name: str) -> str:
        return PurePath(ORIGINS.get(name, name)).name.lower()

    known = {last_part(name): ORIGINS.get(name, name) for name in names if name}
    for adapter in adapters:
        if adapter.base and known and last_part(adapter.base) not in known:
            base = next(iter(known.values()))
            warnings.warn(f"{adapter.folder} says that it was trained on {adapter.base}, not on {base}", stacklevel=3)


# -- a module as an adapter --------------------------------------------------------------------------------------------


def write_adapter(model: ICLMForCausalLM, module: int, folder: str | Path) -> None:
    """Write a module as a LoRA adapter, which PEFT loads onto the base model; each file is whole or not there.

    Args:
        module: its number in the bank: 0 the invariant module, 1 + i domain module i.
        folder: made if it does not exist.

    Raises:
        ConfigurationError: no such module, or one with a layer that PEFT would not load as it is on this base.
    """
    if module not in model.config.modules:
        raise ConfigurationError(f"there is no module {module}; the model has {list(model.config.modules)}")
    _check_loadable(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for layer, (a, b) in weights_of(model, module).items():
        tensors[f"{PREFIX}{layer}.lora_A.weight"] = a.cpu().contiguous()
        tensors[f"{PREFIX}{layer}.lora_B.weight"] = b.cpu().contiguous()
    write_tensors(folder / WEIGHTS, tensors)
    part = folder / f".{CONFIG}.part"
    part.write_text(json.dumps(adapter_config(model), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(part, folder / CONFIG)


def _check_loadable(model: ICLMForCausalLM) -> None:
    """Raise `ConfigurationError` where PEFT would refuse an adapted layer, or take it for another one."""
    kind = getattr(model.base.config, "model_type", None)
    refused, why = set[str](), ""
    if kind in FUSED_BASES:
        refused, why = FUSED_LAYERS, "would take for weights of its fused experts"
    elif kind in MAMBA_BASES:
        refused, why = MAMBA_LAYERS, "refuses"
    for layer in banks(model):
        if layer.rpartition(".")[2] in refused:
            raise ConfigurationError(
                f"the model adapts {layer}, which PEFT {why} on a base of type {kind}: it could not load the module as it is; "
                "only a model without such layers can be exported (target_modules: attention)"
            )


def adapter_config(model: ICLMForCausalLM) -> dict[str, Any]:
    """What adapter_config.json says of any module of a model."""
    config, path = model.config, anatomy(model.base).layers_path
    places = [_in_layer(name, path) for name in banks(model)]
    layers = sorted({index for index, _ in places})
    upper = layers != list(range(anatomy(model.base).num_layers))
    alpha = config.lora_alpha
    return {
        "base_model_name_or_path": getattr(model.base.config, "_name_or_path", "") or config.base.get("name") or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": path.rpartition(".")[2] if upper else None,
        "layers_to_transform": layers if upper else None,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": config.lora_dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.lora_rank,
        "target_modules": sorted({inside for _, inside in places}),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
