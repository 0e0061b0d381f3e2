"""One training in several processes (torchrun, accelerate launch): who writes, and when the others wait.

Each process trains on its own share of the batches, and gradients are averaged over all (DistributedDataParallel, by the
Trainer). Files are those of the first process alone. In a single process nothing here does anything.
"""

from __future__ import annotations

import os

import torch
from accelerate import PartialState


def is_first() -> bool:
    """Whether this process writes the files and the report; the Trainer's arguments must have been made before."""
    return bool(PartialState().is_main_process)


def wait_for_all() -> None:
    """Go on when every process has come here; the Trainer's arguments must have been made before."""
    PartialState().wait_for_everyone()


def use_own_gpu() -> None:
    """Make the GPU of this process the current one, before anything is put on a GPU."""
    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
