"""What a router above the split reads of the training examples: computed once a data set, and kept on disk.

    packs ─▶ key ─▶ <cache folder>/router-features/<key>.safetensors ─▶ the same packs, each with its `features`
                          │ not there, damaged or stale
                          └─▶ one pass of the frozen base over the prompts ─▶ written whole or not at all

The base is frozen, so that these features are a pure function of the text; without them every step of every epoch pays a
pass of its own. A router at or below the split reads the trunk that runs in any case and needs nothing of this.

The key is a SHA-256 over the token ids of all packs and over what else decides the bits of the result: the base, its dtype, quantisation and
attention, the layer, device, threads and versions. So a training is bitwise the same whether the file was there or not.
What a key cannot see (the fingerprint of a base rounds its weights, and leaves out its configuration) is found by computing the
longest pack anew and comparing. A file holds 4 bytes a hidden dimension and example; it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save
from tqdm.auto import tqdm

from iclm.data.collation import Pack, collate
from iclm.data.files import atomic_write_bytes
from iclm.errors import ConfigurationError, first_line
from iclm.model import ICLMForCausalLM
from iclm.model.backbone import cache_folder
from iclm.model.router import LearnedRouter
from iclm.model.router.base import check_finite

FOLDER = "router-features"  # in the cache folder
FORM = 1  # counts up when what a feature is changes
NAME = "features"
TOKENS = 4096  # padded tokens of a batch, at most; a longer pack is a batch of its own


def reads_above(model: ICLMForCausalLM) -> bool:
    """Whether the router decides on whole prompts that it reads in a pass of its own, above the split."""
    config = model.config
    if not isinstance(model.router, LearnedRouter) or model.router.level != "input":
        return False
    return config.feature_layer > (config.split_layer or 0)


def with_features(model: ICLMForCausalLM, packs: Sequence[Pack], pad: int, *, progress_bar: bool = False) -> list[Pack]:
    """The packs with the features that the model's router reads, from the disk if they are there, else computed and kept.

    Args:
        model: on the device that it is trained on.
        packs: what is trained on.
        pad: id of the pad token.
        progress_bar: show on stderr how far the computation is.

    Returns:
        New packs in the same order; the packs as they are where the router reads no layer above the split. A file that is
        damaged or stale is warned of and made anew; where none can be written there is a warning, and nothing is kept.

    Raises:
        ConfigurationError: a feature is not finite.
    """
    if not reads_above(model) or not packs:
        return list(packs)
    plain = [replace(pack, features=None) for pack in packs]
    counts = [len(pack.branches) for pack in plain]
    key = features_key(model, plain)
    path = cache_folder() / FOLDER / f"{key}.safetensors"
    first, *others = _batches(plain)
    found = dict(zip(first, _compute(model, plain, first, pad), strict=True))
    known = _read(path, key, (sum(counts), int(model.config.hidden_size or 0)))
    if known is not None:
        kept = known.split(counts)
        if all(torch.equal(kept[number], features) for number, features in found.items()):
            return [replace(pack, features=part) for pack, part in zip(plain, kept, strict=True)]
        _warn(f"{path} is stale: the base gives other features now; they are computed and written anew")
    for numbers in tqdm(others, "router features", leave=False, disable=not progress_bar):
        found.update(zip(numbers, _compute(model, plain, numbers, pad), strict=True))
    features = torch.cat([found[number] for number in range(len(plain))])
    _write(path, key, features)
    return [replace(pack, features=part) for pack, part in zip(plain, features.split(counts), strict=True)]


def prompt_features(model: ICLMForCausalLM, packs: Sequence[Pack], pad: int) -> torch.Tensor:
    """What the model's router reads of every prompt, float32 [examples, hidden] on the host; nothing is kept on disk.

    Raises:
        ConfigurationError: there is no router, or a feature is not finite.
    """
    plain = [replace(pack, features=None) for pack in packs]
    found: dict[int, torch.Tensor] = {}
    for numbers in _batches(plain) if plain else []:
        found.update(zip(numbers, _compute(model, plain, numbers, pad), strict=True))
    return torch.cat([found[number] for number in range(len(plain))])


def features_key(model: ICLMForCausalLM, packs: Sequence[Pack]) -> str:
    """SHA-256 over the packs' token ids and whatever else decides the bits of their features."""
    described = {
        "form": FORM,
        "base": model.config.base["fingerprint"],
        "dtype": str(model.dtype),
        "quantization": model.config.base.get("quantization"),
        "attention": getattr(model.base.config, "_attn_implementation", None),
        "layer": model.config.feature_layer,
        "compiled": model.compiled,
        "machine": [*_machine(model.device), torch.get_num_threads()],
        "versions": [torch.__version__, transformers.__version__],
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for pack in packs:
        digest.update(json.dumps([pack.prefix, [[b.tokens, b.labelled] for b in pack.branches]]).encode())
    return digest.hexdigest()


def _machine(device: torch.device) -> list[str]:
    if device.type == "cuda":
        return ["cuda", torch.cuda.get_device_name(device)]
    return [device.type, torch.backends.cpu.get_cpu_capability()]


def _batches(packs: Sequence[Pack]) -> list[list[int]]:
    """Numbers of the packs, the longest alone and then batches of similar length: the same ones in every training."""
    longest, *order = sorted(range(len(packs)), key=lambda number: -packs[number].tokens)
    batches: list[list[int]] = [[longest]]
    run: list[int] = []
    for number in order:  # the first of a run is its longest, so padding is counted too
        if run and (len(run) + 1) * packs[run[0]].tokens > TOKENS:
            batches.append(run)
            run = []
        run.append(number)
    return [*batches, run] if run else batches


def _compute(model: ICLMForCausalLM, packs: Sequence[Pack], numbers: list[int], pad: int) -> tuple[torch.Tensor, ...]:
    """Features [branches, hidden] of each of the packs with these numbers, on the host."""
    chosen = [packs[number] for number in numbers]
    batch = {name: tensor.to(model.device) for name, tensor in collate(chosen, pad).items()}
    features = check_finite(model.batch_features(batch)).cpu()
    return features.split([len(pack.branches) for pack in chosen])


def _read(path: Path, key: str, shape: tuple[int, int]) -> torch.Tensor | None:
    """The features in a file; None if there is no file, or after a warning if it is not as it was written."""
    if not os.path.isfile(path):
        return None
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            features = file.get_tensor(NAME).clone()  # our own, whatever becomes of the file
        if said.get("key") != key:
            raise ValueError("it is of other examples or another base")
        if features.dtype != torch.float32 or tuple(features.shape) != shape:
            raise ValueError(f"it holds {features.dtype} {list(features.shape)}, not torch.float32 {list(shape)}")
        if said.get("sha256") != _digest(features) or not bool(torch.isfinite(features).all()):
            raise ValueError("its values are not those that were written")
    except Exception as error:  # whatever a damaged file makes the reader raise
        reason = first_line(error)
        _warn(f"{path} is damaged: {reason}; the router's features are computed and written anew")
        return None
    return features


def _write(path: Path, key: str, features: torch.Tensor) -> None:
    said: dict[str, Any] = {"key": key, "sha256": _digest(features)}
    try:
        with atomic_write_bytes(path, overwrite=True) as stream:
            stream.write(save({NAME: features}, metadata=said))
    except (ConfigurationError, OSError) as error:
        _warn(f"the router's features are not kept for the next training: {error}")


def _digest(features: torch.Tensor) -> str:
    return hashlib.sha256(features.numpy().data).hexdigest()


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)
