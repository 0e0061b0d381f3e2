"""Arguments that transformers and its users pass to every model: what an ICLM cannot honour is refused, never ignored."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from iclm.errors import ConfigurationError

_FORWARD = {
    "inputs_embeds": "an ICLM takes token ids: give input_ids",
    "output_hidden_states": "hidden states are not returned; `encode` gives those before the head",
    "output_attentions": "attention weights are not returned",
    "cu_seq_lens_q": "several examples in one sequence need branch_ids, for each has a route of its own",
    "cu_seq_lens_k": "several examples in one sequence need branch_ids, for each has a route of its own",
}
_LOADING = {
    "quantization_config": "say quantization='nf4' for a base in 4 bits",
    "load_in_4bit": "say quantization='nf4' for a base in 4 bits",
    "load_in_8bit": "say quantization='nf4' for a base in 4 bits",
    "subfolder": "give the folder itself",
    "variant": "an ICLM is saved in one form",
    "gguf_file": "the base may be a GGUF file: base='model.gguf'",
}
# of from_pretrained: what is honoured, and what Auto classes, pipelines and the Trainer pass that means nothing to a folder
_HONOURED = {
    "device_map",
    "attn_implementation",
    "revision",
    "token",
    "local_files_only",
    "torch_dtype",
    "output_loading_info",
}
_OF_THE_HUB = {
    "cache_dir",
    "force_download",
    "proxies",
    "resume_download",
    "code_revision",
    "use_auth_token",
    "mirror",
    "user_agent",
}
_OF_WEIGHTS = {
    "use_safetensors",
    "low_cpu_mem_usage",
    "weights_only",
    "adapter_kwargs",
    "state_dict",
    "ignore_mismatched_sizes",
}
_KNOWN = _HONOURED | _OF_THE_HUB | _OF_WEIGHTS
_KNOWN |= {"trust_remote_code", "generation_config", "framework", "experts_implementation", "use_kernels"}


def check_arguments(given: Mapping[str, Any], input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
    """Raise `ConfigurationError` for an argument of a forward pass that would have changed what another model returns.

    Args:
        given: by name; None and False mean that it was not given.
        input_ids: [batch, tokens].
        attention_mask: [batch, past + tokens]; None means all.
    """
    for name, right in _FORWARD.items():
        if given.get(name) is not None and given[name] is not False:
            raise ConfigurationError(f"{name} is given; {right}")
    positions = given.get("position_ids")
    if positions is None:
        return
    tokens = input_ids.shape[1]
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    own = ((mask != 0).long().cumsum(-1) - 1)[:, -tokens:]
    real = (mask != 0)[:, -tokens:]
    if attention_mask is None and positions.shape[-1] == tokens:  # of tokens that follow a cache, wherever that ends
        own = own + positions[:, :1]
    if positions.shape[-1] != tokens or bool(((positions != own) & real).any()):
        raise ConfigurationError(
            "position_ids are not those of the attention mask, which an ICLM goes by; several examples in one sequence need "
            "branch_ids, for each has a route of its own"
        )


def warn_of_missing_labels() -> None:
    """Warn of a Trainer that keeps the labels to itself: it trains less than an ICLM, on other routes."""
    warnings.warn(
        "the Trainer kept the labels to itself, as label_smoothing_factor and compute_loss_func make it: the losses of router, modules and "
        "independence are not in its loss, and the router reads all tokens, answers too (unless prompt_mask says which)",
        stacklevel=3,
    )


def check_loading(given: Mapping[str, Any]) -> None:
    """Raise `ConfigurationError` for an option of `from_pretrained` that cannot be honoured, or that there is not."""
    for name, value in given.items():
        if name in _LOADING and value not in (None, False, ""):
            raise ConfigurationError(f"{name} is given; {_LOADING[name]}")
        if name not in _KNOWN and name not in _LOADING and not name.startswith("_"):
            raise ConfigurationError(f"{name} is no option of an ICLM's from_pretrained; leave it out")
    devices = given.get("device_map")
    if isinstance(devices, Mapping) and len(devices) != 1:
        raise ConfigurationError(
            f"device_map names {len(devices)} places; an ICLM lies on one device: {{'': 'cuda:0'}}"
        )


def device_of(device_map: Any) -> Any:
    """The one device that a `device_map` means for an ICLM; None where it stays where it was loaded."""
    if isinstance(device_map, Mapping):
        return next(iter(device_map.values()))
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return "cuda" if torch.cuda.is_available() else None
    return device_map


class KeepsDtypes:
    """A model whose dtypes are chosen when it is made: it moves to a device, and refuses another dtype."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move the model to a device; the dtype of the base is chosen when it is loaded, adapters stay in float32."""
        _, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is not None:
            raise ConfigurationError("an ICLM keeps its dtypes; choose the base's with from_base(..., dtype=...)")
        return super().to(*args, **kwargs)  # type: ignore[misc]

    def half(self) -> Any:
        """Refused, as every change of dtype is (see `to`)."""
        return self.to(torch.float16)

    def bfloat16(self) -> Any:
        """Refused, as every change of dtype is (see `to`)."""
        return self.to(torch.bfloat16)

    def float(self) -> Any:
        """Refused, as every change of dtype is (see `to`)."""
        return self.to(torch.float32)

    def double(self) -> Any:
        """Refused, as every change of dtype is (see `to`)."""
        return self.to(torch.float64)
