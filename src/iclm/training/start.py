"""Starting a training from the weights of a saved ICLM instead of fresh ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iclm.errors import ConfigurationError
from iclm.evaluation.runs import FINISHED, domains_of, read_record
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


def names_in(folder: Path) -> list[str]:
    """What the domain modules of an ICLM saved in a folder are called; empty where nobody said."""
    return list(checkpoint.read_config(folder).domain_names or ()) if (folder / "config.json").is_file() else []


def start_from(model: ICLMForCausalLM, folder: Path, domains: dict[str, int]) -> list[str]:
    """Copy the own weights of a saved ICLM, its router included, into a fresh one.

    Args:
        domains: numbers of the domains that it will be trained on. A saved ICLM that is a run knows its own: a domain
            that has a module there must keep its number, which is that of the module and of its code.

    Returns:
        What to call the domain modules: as the saved ones are called, and those that nobody named by their domain,
        where it is known to be theirs (it was so in the saved run, or the router is the oracle).

    Raises:
        ConfigurationError: it is of another base or configuration, or numbers the domains otherwise; the message names
            the field.
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
    known = domains_of(read_record(folder)) if (folder / FINISHED).is_file() else {}
    known = {name: at for name, at in known.items() if at < saved.num_domains}  # those that have a module
    if model.config.num_domains:
        _check_domains(known, domains, folder)
    checkpoint.load_own_state(model, checkpoint.read_weights(folder), folder)
    # the code of a domain that comes new to a learned router is not of its number
    own = domains if saved.router == "oracle" else {name: number for name, number in domains.items() if name in known}
    return model.config.names_after(own, saved.domain_names or ())


def _check_domains(before: dict[str, int], now: dict[str, int], folder: Path) -> None:
    """Raise `ConfigurationError` where a domain that had a module has another number now."""
    moved = [name for name in now if before.get(name, now[name]) != now[name]]
    if moved:
        there, here = (", ".join(sorted(numbers, key=lambda name: numbers[name])) for numbers in (before, now))
        raise ConfigurationError(
            f"training.start_from {folder}: its domains are in the order [{there}]; this recipe has [{here}]: "
            f"{moved[0]} would get domain module {now[moved[0]]}, and its own is {before[moved[0]]}; give data.train in the "
            "order of the former"
        )


def _value(config: ICLMConfig, name: str) -> Any:
    value = getattr(config, name)
    return sorted(value) if isinstance(value, list) else value  # target_modules in any order
