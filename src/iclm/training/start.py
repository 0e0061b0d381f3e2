"""Starting a training from the weights of a saved ICLM instead of fresh ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iclm.errors import ConfigurationError
from iclm.model import ICLMConfig, ICLMForCausalLM, checkpoint

# What the weights are made for: another value would give them another shape or another meaning.
SHAPING = (
    "method",
    "ablation",
    "num_domains",
    "split_layer",
    "lora_rank",
    "lora_alpha",
    "target_modules",
    "router",
    "router_level",
    "feature_layer",
    "router_reduction",
    "router_dim",
    "aggregator",
    "mix",
    "mix_rank",
    "mi_loss",
    "mi_projection",
    "mi_queue",
)


def check_base(model: ICLMForCausalLM, folder: Path) -> None:
    """Raise `CheckpointError` if the ICLM saved in a folder is of another base than the model; no configuration says nothing."""
    if (folder / "config.json").is_file():
        name = model.config.base.get("name", "")
        checkpoint.check_fingerprint(checkpoint.read_config(folder), model.config.base["fingerprint"], name)


def start_from(model: ICLMForCausalLM, folder: Path) -> None:
    """Copy the own weights of a saved ICLM, its router included, into a fresh one.

    Raises:
        ConfigurationError: it is of another base or configuration; the message names the field.
        CheckpointError: there is no whole ICLM in the folder.
    """
    saved = checkpoint.read_config(folder)
    given, wanted = saved.base.get("fingerprint"), model.config.base["fingerprint"]
    if given != wanted:
        raise ConfigurationError(
            f"training.start_from {folder}: its base has fingerprint {str(given)[:12]}, that of this training {wanted[:12]}"
        )
    for name in SHAPING:
        given, wanted = _value(saved, name), _value(model.config, name)
        if given != wanted:
            field = {"method": "method", "feature_layer": "model.router_layer"}.get(name, f"model.{name}")
            raise ConfigurationError(
                f"training.start_from {folder}: its {field} is {given!r}; this recipe has {wanted!r}"
            )
    checkpoint.load_own_state(model, checkpoint.read_weights(folder), folder)


def _value(config: ICLMConfig, name: str) -> Any:
    value = getattr(config, name)
    return sorted(value) if isinstance(value, list) else value  # target_modules in any order
