"""The configuration of a base by name, and what it is made of, without a weight being downloaded or allocated."""

from __future__ import annotations

import copy
import difflib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from iclm.errors import BackboneError, ConfigurationError
from iclm.model.backbone import PACKAGED, anatomy, locate_base, require_decoder
from iclm.model.modules import target_linears


def published() -> dict[str, dict[str, Any]]:
    """Published configurations by name: `parameters`, as stated there, and `config` with its `model_type`."""
    text = (resources.files("iclm.studies.plan") / "published.yaml").read_text(encoding="utf-8")
    return {entry["name"]: entry for entry in yaml.safe_load(text)}


def configuration_of(base: str) -> PreTrainedConfig:
    """The configuration that `--base` names: a published one, a folder, a config.json, or a packaged model.

    Args:
        base: such as "Llama-3.1-8B", with or without the organisation, in any case.

    Raises:
        ConfigurationError: nothing of that name, or a file that is no configuration.
        BackboneError: no decoder-only causal language model.
    """
    entries = {name.lower(): entry for name, entry in published().items()}
    entries |= {name.rpartition("/")[2]: entry for name, entry in entries.items()}
    if base in PACKAGED or Path(base).expanduser().exists():
        config = _read(base)
    elif base.lower() in entries:
        values = dict(entries[base.lower()]["config"])
        config = CONFIG_MAPPING[values.pop("model_type")](**values)
    else:
        known = [name.rpartition("/")[2] for name in published()]
        close = difflib.get_close_matches(base.rpartition("/")[2], known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)};"
        raise ConfigurationError(
            f"base {base!r} is no published configuration; {hint} a folder or config.json works too"
        )
    require_decoder(base, config)
    return config


def _read(base: str) -> PreTrainedConfig:
    path = Path(base).expanduser()
    try:
        if path.suffix == ".json":
            return AutoConfig.from_pretrained(path)
        return AutoConfig.from_pretrained(locate_base(base))
    except BackboneError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(f"base {base!r} holds no configuration that transformers reads: {reason}") from error


def on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """A base of a configuration on the meta device: shapes without memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config))


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters.

    Attributes:
        layers: of the base.
        base: of the frozen base.
        layer: of one decoder layer, without adapters.
        module: of one module's adapters in one layer.
    """

    layers: int
    base: int
    layer: int
    module: int

    @classmethod
    def of(cls, config: PreTrainedConfig, rank: int, targets: str | list[str]) -> Sizes:
        """Count on the meta device; layers are taken to be alike.

        Raises:
            BackboneError: no decoder layers are found.
            ConfigurationError: `targets` match nothing.
        """
        base = on_meta(config)
        parts = anatomy(base)
        layer = base.get_submodule(parts.layers_path)[-1]
        names = target_linears(layer, targets)
        shapes = [layer.get_submodule(name).weight.shape for name in names]
        return cls(
            parts.num_layers,
            sum(p.numel() for p in base.parameters()),
            sum(p.numel() for p in layer.parameters()),
            sum(rank * (out + into) for out, into in shapes),
        )


def shallow(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The same configuration with so many layers."""
    found = copy.deepcopy(config)
    found.num_hidden_layers = layers
    kinds = getattr(found, "layer_types", None)
    if kinds:
        found.layer_types = [kinds[number % len(kinds)] for number in range(layers)]
    return found


def build(config: PreTrainedConfig, dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    """A base of random weights: every matrix repeats one drawn block, which is faster than drawing all of it."""
    model = _empty(config, dtype)
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(seed)).to(dtype) * 0.02
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            flat = parameter.view(-1)
            for start in range(0, flat.numel(), block.numel()):
                part = flat[start : start + block.numel()]
                part.copy_(block[: part.numel()])
    return model


def first_layers(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """A base of the first layers of another, whose weights it shares."""
    found = _empty(shallow(model.config, layers), model.dtype)
    names = set(found.state_dict())
    found.load_state_dict({name: t for name, t in model.state_dict().items() if name in names}, assign=True)
    found.tie_weights()
    return found


def _empty(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A base whose weights are whatever lay in memory; its buffers are right."""
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    model.tie_weights()
    return model.eval()
