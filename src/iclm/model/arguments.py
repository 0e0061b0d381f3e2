"""Arguments that transformers and its users pass to every model: what an ICLM cannot honour is refused, never ignored."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from iclm.errors import ConfigurationError
from iclm.model.backbone import resolve_dtype
from iclm.model.cache import ICLMCache, can_cache

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
    "state_dict": "the weights are those of the folder: leave it out, and call load_state_dict on the loaded ICLM",
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
    "ignore_mismatched_sizes",
}
_KNOWN = _HONOURED | _OF_THE_HUB | _OF_WEIGHTS
_KNOWN |= {"trust_remote_code", "generation_config", "framework", "experts_implementation", "use_kernels"}


def past_of(past_key_values: Any) -> int:
    """Number of tokens that a cache holds, 0 without one; raises `ConfigurationError` for another cache than an ICLM's own."""
    if past_key_values is None:
        return 0
    if not isinstance(past_key_values, ICLMCache):
        raise ConfigurationError(
            f"past_key_values is a {type(past_key_values).__name__}; an ICLM makes its own cache, which knows rows and routes: leave "
            "it out at first, and then pass on what the output has"
        )
    return past_key_values.get_seq_length()


def check_route(module: str, number: int | None, route: Any) -> None:
    """Raise `ConfigurationError` for a route that is given beside a single module, which is its number and no route's to choose."""
    if number is not None and route is not None:
        raise ConfigurationError(
            f"route is given, but {module!r} of this model is one module, which needs none; leave it out"
        )


def real_tokens(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, past: int) -> torch.Tensor:
    """The mask of real tokens, long [batch, past + tokens]: 1 where the given one is not 0, and everywhere without one.

    Raises `ConfigurationError` for ids that are no batch of sequences, and for a mask of another shape.
    """
    if input_ids.dim() != 2 or 0 in input_ids.shape:
        raise ConfigurationError(
            f"input_ids is {list(input_ids.shape)}; it must be [batch, tokens], with a token at least"
        )
    batch, tokens = input_ids.shape
    mask = input_ids.new_ones(batch, past + tokens) if attention_mask is None else (attention_mask != 0).long()
    if mask.shape != (batch, past + tokens):
        raise ConfigurationError(f"attention_mask is {list(mask.shape)}; it must be {[batch, past + tokens]}")
    return mask


def check_shape(name: str, given: torch.Tensor | None, input_ids: torch.Tensor) -> None:
    """Raise `ConfigurationError` unless what is given has a value for each token [batch, tokens]."""
    if given is not None and given.shape != input_ids.shape:
        raise ConfigurationError(f"{name} is {list(given.shape)}; it must be {list(input_ids.shape)}, as input_ids is")


def check_arguments(
    given: Mapping[str, Any],
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: ICLMCache | None,
    beside: Mapping[str, torch.Tensor | None],
) -> None:
    """Raise `ConfigurationError` for an argument of a forward pass that would have changed what another model returns.

    Args:
        given: by name; None and False mean that it was not given.
        input_ids: [batch, tokens].
        attention_mask: [batch, past + tokens]; None means all.
        past_key_values: the cache of earlier tokens; None means that there are none.
        beside: what has a value for each token [batch, tokens], by name; None means that it was not given.
    """
    mask = real_tokens(input_ids, attention_mask, past_of(past_key_values))
    for name, values in beside.items():
        check_shape(name, values, input_ids)
    for name, right in _FORWARD.items():
        if given.get(name) is not None and given[name] is not False:
            raise ConfigurationError(f"{name} is given; {right}")
    positions = given.get("position_ids")
    if positions is None:
        return
    tokens = input_ids.shape[1]
    own, real = (mask.cumsum(-1) - 1)[:, -tokens:], mask[:, -tokens:] == 1
    if positions.shape[-1] != tokens or bool(((positions != own) & real).any()):
        raise ConfigurationError(
            "position_ids are not those of the attention mask (without one: of tokens that follow the cache), which an ICLM goes by; "
            "several examples in one sequence need branch_ids, for each has a route of its own"
        )


def wants_cache(asked: bool | None, base: Any, training: bool) -> bool:
    """Whether to keep a cache: as asked for, else not while training, nor with a base that cannot use an ICLM's cache.

    Raises `ConfigurationError` where one is asked for and such a base cannot.
    """
    if asked is None:
        return not training and can_cache(base)
    if asked and not can_cache(base):
        raise ConfigurationError(f"use_cache=True, but {type(base).__name__} cannot use an ICLM's cache; leave it out")
    return asked


def cache_of_recomputed(past_key_values: ICLMCache | None) -> bool:
    """Whether layers that the backward pass recomputes may use a cache: no, they would append to it once more, as a warning says.

    Raises `ConfigurationError` for a cache that is given, without which the pass would be another.
    """
    if past_key_values is not None:
        raise ConfigurationError(
            "past_key_values is given where gradient checkpointing would append to it again in the backward pass; give the whole "
            "sequence, or call gradient_checkpointing_disable"
        )
    warnings.warn("use_cache=True does not go with gradient checkpointing in training: no cache is kept", stacklevel=4)
    return False


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


def check_loaded_base(base: Any, dtype: Any, attention: str | None) -> None:
    """Raise `ConfigurationError` for a dtype ("auto" and None mean any) or an attention other than those of a loaded base."""
    if dtype not in (None, "auto") and resolve_dtype(dtype) != base.dtype:
        raise ConfigurationError(f"dtype is {dtype}, but base is a loaded model in {base.dtype}; load it in that dtype")
    own = base.config._attn_implementation
    if attention not in (None, own):
        raise ConfigurationError(
            f"attn_implementation is {attention!r}, but base is a loaded model with {own!r}; load it with that attention"
        )


def device_of(device_map: Any) -> Any:
    """The one device that a `device_map` means for an ICLM; None where it stays where it was loaded."""
    if isinstance(device_map, Mapping):
        return next(iter(device_map.values()))
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return "cuda" if torch.cuda.is_available() else None
    return device_map


class KeepsBase:
    """A model whose base stays as it was chosen: it moves to a device, and refuses another dtype or vocabulary."""

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """The base's token embeddings; another size is refused, before anything has changed."""
        if new_num_tokens is not None or any(args[:1]) or kwargs.get("pad_to_multiple_of"):
            raise ConfigurationError(
                "an ICLM keeps its base as it is, by which it is recognised; resize the base before from_base"
            )
        return self.get_input_embeddings()  # type: ignore[attr-defined]

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move the model to a device; the dtype of the base is chosen when it is loaded, adapters stay in float32."""
        _, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is not None:
            self.type(dtype)
        return super().to(*args, **kwargs)  # type: ignore[misc]

    def type(self, dst_type: Any) -> Any:
        """Refused, as every change of dtype is (see `to`)."""
        raise ConfigurationError("an ICLM keeps its dtypes; choose the base's with from_base(..., dtype=...)")

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
