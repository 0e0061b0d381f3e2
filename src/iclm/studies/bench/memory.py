"""Peak memory of training, each contestant in a process of its own: an ICLM of half the layers beside plain LoRA and PEFT's.

On a CPU it is the most memory the process ever held, Python and libraries included; on a GPU the most that tensors held.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from iclm.errors import ConfigurationError
from iclm.studies.bench import contestants as of
from iclm.studies.bench.contestants import Contestant, Workload
from iclm.studies.bench.step import HALF, check
from iclm.studies.bench.timing import Comparison, compare

STEPS = 3
RIVALS = ("lora", "peft-lora")  # making X-LoRA takes a second copy of the base, which would count
GIB = 2**30


def peak_bytes() -> int:
    """The most memory that this process (on a GPU: its tensors) has held."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.is_file():  # of this program alone; what getrusage says may be of the one that started it
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def build(name: str, workload: Workload, k: int) -> Contestant:
    """A contestant by its name: "iclm", "lora" or "peft-lora"."""
    if name == "iclm":
        return of.iclm(workload, HALF, k)
    return of.lora(workload) if name == "lora" else of.peft_lora(workload)


def measure(name: str, workload: Workload, k: int) -> int:
    """Peak memory of a few training steps of a contestant, in bytes, in a new process."""
    task = json.dumps({"name": name, "workload": asdict(workload), "k": k})
    # the package may lie where only this process finds it
    path = os.pathsep.join([str(Path(__file__).resolve().parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = subprocess.run(
        [sys.executable, "-m", __name__, task], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    if found.returncode:
        reason = (found.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigurationError(f"memory of {name} could not be measured: {reason}")
    return int(found.stdout.strip().splitlines()[-1])


def run(
    workload: Workload,
    k: Sequence[int] = (2, 6, 16),
    against: Sequence[str] = RIVALS,
    *,
    rounds: int = 1,
    tick: Callable[[str, int], Callable[[int], None]] | None = None,
) -> list[Comparison]:
    """Measure each contestant in so many processes: `memory_half` and `memory_half_vs_peft` for each K, in GiB."""
    numbers, rivals = check(k, against, RIVALS)
    names: list[tuple[str, int]] = [("lora", 1), *(("iclm", count) for count in numbers)]
    if "peft-lora" in rivals:
        names.append(("peft-lora", 1))
    progress = None if tick is None else tick("memory", rounds * len(names))
    peaks: dict[tuple[str, int], list[float]] = {one: [] for one in names}
    for _ in range(rounds):
        for one in names:
            peaks[one].append(measure(one[0], workload, one[1]) / GIB)
            if progress is not None:
                progress(1)
    found = []
    for count in numbers:
        found.append(compare("memory_half", count, peaks["iclm", count], peaks["lora", 1], "GiB"))
        if ("peft-lora", 1) in peaks:
            found.append(compare("memory_half_vs_peft", count, peaks["iclm", count], peaks["peft-lora", 1], "GiB"))
    return found


def _main(task: dict[str, Any]) -> None:
    contestant = build(task["name"], Workload(**task["workload"]), task["k"])
    for _ in range(STEPS):
        contestant.step()
    print(peak_bytes())


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
