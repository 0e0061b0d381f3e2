"""Taking turns: contestants run one after the other, round by round, so that a drift of the machine's speed hits them all."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from iclm.errors import ConfigurationError
from iclm.training.run import device_name

LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Comparison:
    """One figure: ours beside theirs.

    Attributes:
        name: as in `GOALS`, or another that says what is compared.
        k: number of domain modules.
        ratio: median over the rounds of ours divided by theirs in the same round.
        low, high: smallest and largest of these ratios.
        ours, theirs: medians, in `unit`.
        unit: of the two.
    """

    name: str
    k: int
    ratio: float
    low: float
    high: float
    ours: float
    theirs: float
    unit: str

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


GOALS: dict[str, tuple[str, float]] = {
    "step_half": ("at most", 1.15),
    "step_full": ("at most", 2.0),
    "step_k16": ("at most", 1.1),
    "memory_half": ("at most", 1.3),
    "decode_half": ("at most", 1.6),
    "prefill_half": ("at most", 1.6),
    "step_lora_vs_peft": ("at most", 1.0),
    "score_speedup": ("at least", 5.0),
}


def is_met(name: str, ratio: float) -> bool | None:
    """Whether a ratio reaches the goal of that name; None where there is no goal."""
    if name not in GOALS:
        return None
    kind, bound = GOALS[name]
    return ratio <= bound if kind == "at most" else ratio >= bound


def take_turns(
    contestants: Mapping[str, Callable[[], float | None]],
    rounds: int,
    warmup: int = 1,
    tick: Callable[[int], None] | None = None,
) -> dict[str, list[float]]:
    """Run every contestant once a round.

    Args:
        contestants: each does its work, and may return the seconds that count; else all that it took do.
        rounds: that count, at least five.
        warmup: rounds before them.
        tick: called after each run.

    Returns:
        The seconds of every round, for each contestant.
    """
    if rounds < LEAST_ROUNDS:
        raise ConfigurationError(f"rounds is {rounds}; a median needs at least {LEAST_ROUNDS}")
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(warmup + rounds):
        for name, work in contestants.items():
            started = now()
            seconds = work()
            taken = now() - started
            if seconds is None:
                seconds = taken
            if number >= warmup:
                found[name].append(seconds)
            if tick is not None:
                tick(1)
    return found


def now() -> float:
    """The clock in seconds, read when the device has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def compare(name: str, k: int, ours: list[float], theirs: list[float], unit: str) -> Comparison:
    """One figure from the rounds of both sides."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Comparison(name, k, median(ratios), min(ratios), max(ratios), median(ours), median(theirs), unit)


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    return {
        "device": device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }


def processor_name() -> str:
    """Name of this machine's processor; of its architecture where that is all that is known."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            for line in stream:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
