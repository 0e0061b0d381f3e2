"""The configuration of a base by name, and what it is made of, without a weight being downloaded or allocated."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from iclm.errors import BackboneError, ConfigurationError, first_line
from iclm.model.backbone import PACKAGED, anatomy, highest_split, locate_base, require_decoder
from iclm.model.modules import targets_by_layer

Kind = tuple[tuple[str, str, tuple[torch.Size, ...]], ...]  # of a layer: name, class and shapes of each module in it


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
        config = of_values(entries[base.lower()]["config"])
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
        reason = first_line(error)
        raise ConfigurationError(f"base {base!r} holds no configuration that transformers reads: {reason}") from error


def of_values(values: Mapping[str, Any]) -> PreTrainedConfig:
    """A configuration from its values, of which `model_type` says the kind."""
    return CONFIG_MAPPING[values["model_type"]](**{name: each for name, each in values.items() if name != "model_type"})


def on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """A base of a configuration on the meta device: shapes without memory.

    Raises:
        ConfigurationError: transformers does not build it.
    """
    with torch.device("meta"):
        return _from_config(config)


def _from_config(config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    try:
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), **options)
    except Exception as error:
        raise ConfigurationError(
            f"transformers builds no {config.model_type} model of this configuration: {_one_line(error)}"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True)
class Outline:
    """What a base is made of, on the meta device.

    Attributes:
        parameters: number of those of the frozen base.
        layers: its decoder layers.
        highest_split: the highest layer at which it can be split.
    """

    parameters: int
    layers: tuple[nn.Module, ...]
    highest_split: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Outline:
        """The outline of a configuration.

        Raises:
            BackboneError: no decoder layers are found.
            ConfigurationError: transformers does not build it.
        """
        base = on_meta(config)
        return cls(sum(p.numel() for p in base.parameters()), _layers(base), highest_split(base))

    @property
    def default_split(self) -> int:
        """Where an ICLM splits the base if nothing is said, as `ICLMForCausalLM` does."""
        return min(len(self.layers) // 4, self.highest_split)

    def module(self, rank: int, targets: str | list[str], split: int) -> int:
        """Number of parameters of one module's adapters, of this rank in the layers from the split on.

        Raises:
            ConfigurationError: `targets` match nothing there.
        """
        layers = self.layers[split:]
        found = 0
        for layer, names in zip(layers, targets_by_layer(layers, targets), strict=True):
            for name in names:
                out, into = layer.get_parameter(f"{name}.weight").shape
                found += rank * (out + into)
        return found


def kinds_of(config: PreTrainedConfig) -> list[Kind]:
    """The kind of each layer of a base: what modules it has, and the shapes of their parameters.

    Raises:
        BackboneError: no decoder layers are found.
        ConfigurationError: transformers does not build it.
    """
    return [kind_of(layer) for layer in _layers(on_meta(config))]


def kind_of(layer: nn.Module) -> Kind:
    """The kind of a layer; see `kinds_of`."""
    return tuple(
        (name, type(module).__name__, tuple(p.shape for p in module.parameters(recurse=False)))
        for name, module in layer.named_modules()
    )


def _layers(base: PreTrainedModel) -> tuple[nn.Module, ...]:
    found = base.get_submodule(anatomy(base).layers_path)
    assert isinstance(found, nn.ModuleList)
    return tuple(found)


def shallow(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The same configuration with so many layers.

    Raises:
        ConfigurationError: it cannot be cut so.
    """
    found = copy.deepcopy(config)
    text = found.get_text_config(decoder=True)
    try:
        text.num_hidden_layers = layers
        kinds = getattr(text, "layer_types", None)
        if kinds and len(kinds) != layers:  # some follow the number of layers
            text.layer_types = [kinds[number % len(kinds)] for number in range(layers)]
        of_values(found.to_dict())  # checks them together, as the process will that memory is measured in
    except Exception as error:
        raise ConfigurationError(
            f"a {config.model_type} configuration cannot be cut to {layers} of its layers: {_one_line(error)}"
        ) from error
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
        model = _from_config(config, dtype=dtype)
    model.tie_weights()
    return model.eval()
