"""What a layer costs: real training steps of models of a few layers, from which those of many follow.

    seconds, bytes, operations of a step  =  constant + trunk layers * per trunk layer + adapted layers * per adapted layer

Models of one and three layers of each kind have the widths, the vocabulary and the code path of the planned training, so
that no coefficient is guessed. Memory is what live tensors hold, counted as they come and go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from statistics import median
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from iclm.errors import ICLMError
from iclm.model.backbone import freeze
from iclm.studies.bench.contestants import Contestant, Workload, ours
from iclm.studies.bench.timing import now
from iclm.studies.plan.bases import Outline, build, first_layers, kind_of, kinds_of, shallow

WARM_UP = 2  # rounds
FEW, MORE = 1, 3  # layers of a kind in the models that are measured
BUDGET = 6.0  # seconds that a measured step may take; a smaller batch is measured where it would take longer


def obstacle(config: PreTrainedConfig, outline: Outline) -> str | None:
    """Why models of a few layers would not tell what a base of all its layers costs; None where they do."""
    kinds = [kind_of(layer) for layer in outline.layers]
    other = next((number for number, kind in enumerate(kinds) if kind != kinds[0]), None)
    if other is not None:
        return f"layers of this base differ (layer {other} from layer 0), so that models of a few layers would not tell what all cost"
    try:
        for layers in range(FEW, FEW + MORE + 1):
            if kinds_of(shallow(config, layers)) != kinds[:1] * layers:
                return f"this base cannot be cut to {layers} of its layers"
    except ICLMError as error:
        return str(error)
    return None


class LiveMemory(TorchDispatchMode):
    """Counts the bytes that tensors hold while it is active; `peak` is the most at any time.

    Every storage counts once, however many tensors look at it, from the operation that makes it until it is freed.
    """

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self._seen: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
        self.live = self.peak = 0
        for tensor in known:
            self._add(tensor)

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen[storage] = True
        self.live += size
        self.peak = max(self.peak, self.live)
        finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it returns."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        return out


Shape = Sequence[int]


def _forward(q: Shape, k: Shape, v: Shape, *rest: Any, **options: Any) -> int:
    """Q Kᵀ and P V, of queries, keys and values [rows, heads, tokens, D]; several heads of queries may share one of keys."""
    return 2 * prod(q[:3]) * k[2] * (q[3] + v[3])


def _backward(q: Shape, k: Shape, v: Shape) -> int:
    """Q Kᵀ anew, the gradients of P and V, and those of Q and K."""
    return 2 * prod(q[:3]) * k[2] * (3 * q[3] + 2 * v[3])


def _grouped(a: Shape, b: Shape, *rest: Any, **options: Any) -> int:
    """Products of some rows each with a matrix of its own (experts); where both are [_, _], of some columns and rows each."""
    return 2 * (prod(a[1:]) if (len(a), len(b)) == (3, 2) else prod(a)) * b[-1]


def operations() -> FlopCounterMode:
    """Counts matrix products and attention, also those that PyTorch's counter does not know; a causal mask spares none."""
    aten = torch.ops.aten
    known = {
        aten._scaled_dot_product_flash_attention_for_cpu: _forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: _backward(q, k, v),
        torch.ops.iclm.attention_gradients: lambda q, k, v, *_, **__: _backward(q, k, v),
    }
    if hasattr(aten, "_grouped_mm"):
        known[aten._grouped_mm] = _grouped
    return FlopCounterMode(display=False, custom_mapping=known)


@dataclass(frozen=True)
class Cost:
    """What a training step costs.

    Attributes:
        seconds: of a usual one (`steady`); None where it was not timed.
        bytes: the most that tensors hold.
        flops: floating-point operations of matrix products and attention kernels.
    """

    seconds: float | None
    bytes: float
    flops: float

    def __add__(self, other: Cost) -> Cost:
        seconds = None if self.seconds is None or other.seconds is None else self.seconds + other.seconds
        return Cost(seconds, self.bytes + other.bytes, self.flops + other.flops)

    def __mul__(self, factor: float) -> Cost:
        seconds = None if self.seconds is None else self.seconds * factor
        return Cost(seconds, self.bytes * factor, self.flops * factor)


@dataclass(frozen=True)
class Line:
    """Cost of a step by the numbers of layers."""

    constant: Cost
    trunk: Cost
    adapted: Cost

    def at(self, trunk: int, adapted: int) -> Cost:
        """Cost of a model of so many layers."""
        return self.constant + self.trunk * trunk + self.adapted * adapted


@dataclass(frozen=True)
class Trained:
    """What is trained.

    Attributes:
        settings: of the ICLM, besides the split and what the workload says: `method`, `num_domains`, `active_domains`.
        checkpointing: activations of adapted layers are computed anew in the backward pass.
    """

    settings: dict[str, Any]
    checkpointing: bool = False


def line(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    workload: Workload,
    trained: Trained,
    *,
    has_trunk: bool,
    rounds: int,
    tick: Callable[[int], None] = lambda done: None,
) -> Line:
    """Measure models of a few layers, which take turns and share the weights of their bases.

    Args:
        has_trunk: whether the planned model has layers below the split.
        rounds: steps of each that are timed, after two that are not; 0 measures memory and operations alone.
        tick: called after each round, and after each model's memory.
    """
    points = points_of(has_trunk)
    deepest = build(shallow(config, max(map(sum, points))), dtype)
    field = {point: make(freeze(first_layers(deepest, sum(point))), workload, trained, point[0]) for point in points}
    seconds: dict[tuple[int, int], list[float]] = {point: [] for point in points}
    for number in range(WARM_UP + rounds if rounds else 1):
        for point, contestant in field.items():
            started = now()
            contestant.step()
            if number >= WARM_UP:
                seconds[point].append(now() - started)
        tick(1)
    typical = steady(seconds)
    costs = {}
    for point in points:
        costs[point] = _cost(field.pop(point), typical[point])
        tick(1)
    return through(costs)


def steady(seconds: dict[tuple[int, int], list[float]]) -> dict[tuple[int, int], float | None]:
    """Seconds of a step of each model, from those of several; None where there are none.

    The fastest step of each, times how much longer than its model's fastest a step of any model usually is: what a line through a
    few layers is drawn out to many by must not carry each model's own noise.
    """
    fastest = {point: min(found) for point, found in seconds.items() if found}
    slower = [value / fastest[point] for point, found in seconds.items() for value in found]
    return {point: fastest[point] * median(slower) if point in fastest else None for point in seconds}


def points_of(has_trunk: bool) -> list[tuple[int, int]]:
    """(trunk layers, adapted layers) of the models that are measured."""
    first = FEW if has_trunk else 0
    return [(first, FEW), (first, MORE), *([(MORE, FEW)] if has_trunk else [])]


def through(costs: dict[tuple[int, int], Cost]) -> Line:
    """The line through the costs at `points_of`."""
    (first, _), origin = next(iter(costs.items()))
    per_adapted = (costs[first, MORE] + origin * -1) * (1 / (MORE - FEW))
    per_trunk = (costs[MORE, FEW] + origin * -1) * (1 / (MORE - FEW)) if first else Cost(0.0, 0.0, 0.0)
    return Line(origin + per_adapted * -FEW + per_trunk * -first, per_trunk, per_adapted)


def make(base: PreTrainedModel, workload: Workload, trained: Trained, trunk: int) -> Contestant:
    """A contestant on a frozen base with so many layers below the split."""
    found = ours(workload, base, split_layer=trunk, **trained.settings)
    if trained.checkpointing:
        found.model.activation_checkpointing_enable()
    return found


def _cost(contestant: Contestant, seconds: float | None) -> Cost:
    """Cost of a step of a contestant that has its optimizer's state."""
    optimizer = contestant.trainer.optimizer
    assert optimizer is not None
    tensors = [*contestant.model.parameters(), *contestant.model.buffers(), *contestant.batch.values()]
    tensors += [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    # one after the other: together they keep what a recomputed layer made until the garbage collector comes round
    with LiveMemory(tensors) as memory:
        contestant.step()
    with operations() as flops:
        contestant.step()
    return Cost(seconds, float(memory.peak), float(flops.get_total_flops()))


def affordable(config: PreTrainedConfig, dtype: torch.dtype, workload: Workload, trained: Trained) -> int:
    """The largest batch, at most the planned one, whose measured steps stay within the budget."""
    contestant = make(freeze(build(shallow(config, FEW), dtype)), replace(workload, batch=1), trained, 0)
    contestant.step()
    started = now()
    contestant.step()
    seconds = (now() - started) * (MORE + FEW)
    return max(1, min(workload.batch, int(BUDGET / max(seconds, 1e-9))))
