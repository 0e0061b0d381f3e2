"""A base whose frozen weights take 4 bits each.

    W  ─▶  4-bit NormalFloat codes, 64 weights a block, the blocks' scales in 8 bits   (QLoRA: Dettmers et al. 2023)

The linear layers of the decoder are quantised while they are loaded and turned back to 16 bits for each product;
embeddings, norms and the head keep the base's dtype, the modules stay in float32. bitsandbytes does it, through
transformers.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from iclm.errors import BackboneError

QUANTIZATIONS = ("none", "nf4")


def check_quantization(quantization: str) -> None:
    """Raise `BackboneError` for a name that is unknown, or for a base that cannot be quantised on this machine."""
    if quantization not in QUANTIZATIONS:
        raise BackboneError(f"quantization {quantization!r} is unknown; use {' or '.join(QUANTIZATIONS)}")
    if quantization != "none":
        require_bitsandbytes(quantization)


def require_bitsandbytes(quantization: str) -> None:
    """Raise `BackboneError` unless there are a GPU and bitsandbytes.

    On a CPU bitsandbytes would run too, but its kernels for inference, which it chooses by itself, let no gradient
    through.
    """
    if not torch.cuda.is_available():
        raise BackboneError(
            f"quantization is {quantization}: a 4-bit base needs an NVIDIA GPU with bitsandbytes, and there is no such "
            "GPU here; use quantization: none (with dtype: bfloat16 a base takes 16 bits a weight)"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BackboneError(
            f"quantization is {quantization}: a 4-bit base needs bitsandbytes, which is not installed; "
            "run: pip install 'iclm[4bit]'"
        )


def quantization_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """The settings of QLoRA: NF4, quantised scales, products in bfloat16 (in float16 where that is the base's dtype)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float16 if dtype == torch.float16 else torch.bfloat16,
    )


def packed_parameter(model: nn.Module) -> str | None:
    """Name of a parameter that holds codes instead of numbers; None where there is none."""
    return next((name for name, tensor in model.named_parameters() if not tensor.is_floating_point()), None)


def parameter_count(parameter: torch.Tensor) -> int:
    """How many weights a parameter holds, packed ones counted one by one."""
    state: Any = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()
