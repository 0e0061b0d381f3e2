"""`torch.compile` for the decoder layers, one layer at a time.

All layers are alike, so that one is compiled with adapters and one without; shapes are dynamic, so that a longer batch compiles
nothing again. What was compiled is kept on disk (`$TORCHINDUCTOR_CACHE_DIR`, else in the folder of `cache_folder`).
"""

from __future__ import annotations

import os
import warnings

import torch
from torch import nn

from iclm.errors import first_line
from iclm.model.backbone import cache_folder
from iclm.model.modules import AdaptedLayer


def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` works for this device; if not, there is a warning that says why."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))

    def nothing(x: torch.Tensor) -> torch.Tensor:
        return x * 2 + 1

    try:
        torch.compile(nothing, dynamic=True)(torch.ones(3, device=device))
    except Exception as error:  # no compiler, a Python that it does not know, a device without a backend, ...
        reason = first_line(error)
        warnings.warn(f"torch.compile does not work here, so layers run uncompiled: {reason}", stacklevel=3)
        return False
    return True


def compile_layers(layers: nn.ModuleList, device: torch.device) -> bool:
    """Compile each decoder layer when it first runs; returns whether that is possible here."""
    if not can_compile(device):
        return False
    for layer in layers:
        inner = layer.layer if isinstance(layer, AdaptedLayer) else layer
        inner.compile(dynamic=True)
    return True
