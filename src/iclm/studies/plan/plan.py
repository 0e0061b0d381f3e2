"""The plan of a training: what it would have in parameters, hold in memory, and take in time.

    parameters   counted on the meta device, exactly
    memory       the most that tensors hold in a step, from models of a few layers; on a CPU also that of the process
    time         from the same models' steps, on this machine

Where layers differ, as those of hybrid bases and of experts after dense layers do, parameters alone are planned.
Where a step of such a model takes too long, a smaller batch is measured; what depends on the batch is then drawn as a line
through two batches, and the time taken to be proportional.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedConfig

from iclm.errors import ConfigurationError
from iclm.model.backbone import resolve_dtype
from iclm.studies.bench.contestants import Workload
from iclm.studies.plan.bases import Outline, configuration_of
from iclm.studies.plan.measure import Cost, Line, Trained, affordable, line, obstacle, points_of, through
from iclm.studies.plan.process import process_peak

ROUNDS = 5


def plan(
    base: str,
    *,
    k: int = 2,
    batch: int = 16,
    tokens: int = 512,
    rank: int = 8,
    targets: str = "attention",
    split_layer: int | None = None,
    active: int = 1,
    dtype: str = "auto",
    checkpointing: bool = False,
    examples: int | None = None,
    tflops: float | None = None,
    rounds: int = ROUNDS,
    tick: Callable[[str, int], Callable[[int], None]] | None = None,
) -> dict[str, Any]:
    """Plan a training, and plain LoRA of the same rank beside it.

    Args:
        base: a name, folder or file (`configuration_of`).
        k, active: domain modules, and how many of them an example activates.
        batch, tokens: examples in a batch, and tokens of each; the last two are labels.
        rank, targets: of the adapters.
        split_layer: layers below it carry none; None means a quarter of the layers, as in an ICLM.
        dtype: of the frozen base.
        checkpointing: adapted layers are computed anew in the backward pass.
        examples: to train on; gives the time of the whole training.
        tflops: sustained 10^12 operations a second of some device; gives the time of a step there.
        rounds: steps of each measured model that are timed.
        tick: makes a progress callback from a title and a total.

    Returns:
        A JSON object: `base` and its settings; `parameters`; `iclm` and `lora`, each with `memory` (bytes), `seconds` of a step
        and what follows from them, and `measured`, the batch and layers of the models that were measured; `not_planned`, why
        both of these are None where memory and time cannot be planned.

    Raises:
        ConfigurationError: a setting out of its range.
        BackboneError: no decoder-only causal language model.
    """
    config = configuration_of(base)
    outline = Outline.of(config)
    split = outline.default_split if split_layer is None else split_layer
    _check(config, outline, split, k, active, batch, tokens, rank)
    workload = Workload(batch=batch, tokens=tokens, rank=rank, targets=targets)
    torch_dtype = resolve_dtype(dtype)
    contenders = {
        "iclm": (Trained({"num_domains": k, "active_domains": active}, checkpointing), split),
        "lora": (Trained({"method": "lora"}, checkpointing), 0),
    }
    result: dict[str, Any] = {
        "base": {"name": base, "layers": len(outline.layers), "dtype": str(torch_dtype).removeprefix("torch.")},
        "settings": {
            **{"k": k, "active_domains": active, "batch": batch, "tokens": tokens, "rank": rank, "targets": targets},
            **{"split_layer": split, "gradient_checkpointing": checkpointing, "examples": examples},
        },
        "parameters": _parameters(outline, rank, targets, split, k),
        "not_planned": obstacle(config, outline),
    }
    if result["not_planned"] is not None:
        return {**result, **dict.fromkeys(contenders)}
    for name, (trained, below) in contenders.items():
        result[name] = _predict(config, torch_dtype, workload, trained, below, len(outline.layers), rounds, tick, name)
        _conclude(result[name], batch, examples, tflops)
    return result


def _check(
    config: PreTrainedConfig, outline: Outline, split: int, k: int, active: int, batch: int, tokens: int, rank: int
) -> None:
    least = {"k": k, "active": active, "batch": batch, "rank": rank, "tokens": tokens - 2}
    for name, value in least.items():
        if value < 1:
            raise ConfigurationError(
                f"{name} is {value + 2 * (name == 'tokens')}; it must be at least {1 + 2 * (name == 'tokens')}"
            )
    if active > k:
        raise ConfigurationError(f"active is {active}; it must lie between 1 and k = {k}")
    layers, highest = len(outline.layers), outline.highest_split
    if not 0 <= split < layers:
        raise ConfigurationError(f"split is {split}; this base has {layers} layers, use 0 to {highest}")
    if split > highest:
        raise ConfigurationError(
            f"split is {split}; upper layers of this base read keys and values of layer {highest}, so use {highest} or less"
        )
    context = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if context is not None and tokens > context:
        raise ConfigurationError(f"tokens is {tokens}; the context of this base is {context}")


def _parameters(outline: Outline, rank: int, targets: str, split: int, k: int) -> dict[str, int]:
    module = outline.module(rank, targets, split)
    return {
        "base": outline.parameters,
        "module": module,
        "modules": module * (1 + k),
        "lora": outline.module(rank, targets, 0),
        "copies": outline.parameters * (k + 2),
    }


def _predict(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    workload: Workload,
    trained: Trained,
    split: int,
    layers: int,
    rounds: int,
    tick: Callable[[str, int], Callable[[int], None]] | None,
    name: str,
) -> dict[str, Any]:
    measured = affordable(config, dtype, workload, trained)
    small = replace(workload, batch=measured)
    points = points_of(split > 0)
    progress = (lambda done: None) if tick is None else tick(name, rounds + 2 + 2 * len(points))
    found = line(config, dtype, small, trained, has_trunk=split > 0, rounds=rounds, tick=progress)
    cost = found.at(split, layers - split)
    if measured < workload.batch:
        half = replace(workload, batch=max(1, measured // 2)) if measured > 1 else replace(workload, batch=2)
        other = line(config, dtype, half, trained, has_trunk=split > 0, rounds=0)
        cost = _at_batch(workload.batch, (measured, cost), (half.batch, other.at(split, layers - split)))
    result: dict[str, Any] = {
        "memory": {"tensors": round(cost.bytes)},
        "flops": round(cost.flops),
        "seconds": cost.seconds,
        "measured": {"batch": measured, "layers": [list(point) for point in points], "rounds": rounds},
    }
    if not torch.cuda.is_available() and measured == workload.batch:
        result["memory"]["process"] = round(
            _process(config, dtype, small, trained, progress).at(split, layers - split).bytes
        )
    return result


def _at_batch(batch: int, first: tuple[int, Cost], second: tuple[int, Cost]) -> Cost:
    """Cost at a batch from those at two smaller ones; time is proportional to the batch."""
    (size, cost), (other, elsewhere) = first, second
    slope = (cost + elsewhere * -1) * (1 / (size - other))
    found = cost + slope * (batch - size)
    return Cost(None if cost.seconds is None else cost.seconds * batch / size, found.bytes, found.flops)


def _process(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    workload: Workload,
    trained: Trained,
    tick: Callable[[int], None],
) -> Line:
    costs = {}
    for point in points_of(trained.settings.get("method") != "lora"):
        costs[point] = Cost(None, float(process_peak(config, dtype, workload, trained, *point)), 0.0)
        tick(1)
    return through(costs)


def _conclude(found: dict[str, Any], batch: int, examples: int | None, tflops: float | None) -> None:
    """Add what follows from the seconds of a step."""
    if found["seconds"] is not None:
        found["examples_a_second"] = batch / found["seconds"]
        if examples is not None:
            found["training_seconds"] = found["seconds"] * -(-examples // batch)
    if tflops is not None:
        found["seconds_at_tflops"] = found["flops"] / (tflops * 1e12)
