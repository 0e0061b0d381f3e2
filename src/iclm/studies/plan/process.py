"""The most memory that a process of a training holds on a CPU: a model of a few layers, trained in a process of its own.

python -m iclm.studies.plan.process TASK      TASK as JSON; prints the bytes
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from iclm.errors import ConfigurationError
from iclm.model.backbone import freeze
from iclm.studies.bench.contestants import Workload
from iclm.studies.bench.memory import STEPS, peak_bytes
from iclm.studies.plan.bases import build, of_values, shallow
from iclm.studies.plan.measure import Trained, make


def process_peak(
    config: PreTrainedConfig, dtype: torch.dtype, workload: Workload, trained: Trained, trunk: int, adapted: int
) -> int:
    """Peak memory in bytes of a new process that makes a few steps with a model of so many layers."""
    task = {
        "config": {**shallow(config, trunk + adapted).to_dict(), "dtype": None},
        "dtype": str(dtype).removeprefix("torch."),
        "workload": asdict(workload),
        "trained": asdict(trained),
        "trunk": trunk,
    }
    path = os.pathsep.join([str(Path(__file__).resolve().parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(task)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    if found.returncode:
        reason = (found.stderr.strip().splitlines() or [f"exit code {found.returncode}; out of memory?"])[-1]
        raise ConfigurationError(f"memory of a training could not be measured: {reason}")
    return int(found.stdout.strip().splitlines()[-1])


def _main(task: dict[str, Any]) -> None:
    base = freeze(build(of_values(task["config"]), getattr(torch, task["dtype"])))
    contestant = make(base, Workload(**task["workload"]), Trained(**task["trained"]), task["trunk"])
    for _ in range(STEPS):
        contestant.step()
    print(peak_bytes())


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
