"""Where the jobs of a study run: the interface, and the processes of this machine.

The loop of `iclm.studies.study.runner` hands a job's folder to an executor and is told how the job ended; what that
leaves is in the folder (`iclm.studies.study.job`), wherever the work was done.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Protocol

from iclm.model.checkpoint import read_json
from iclm.studies.study.job import BUSY, DONE, FAILED


class Executor(Protocol):
    """What runs jobs; `run` is called from a thread of its own for each job."""

    @property
    def slots(self) -> int:
        """How many jobs run at a time, at least 1; it may change while a study runs."""

    def run(self, folder: Path) -> str | None:
        """Do the job whose object lies in a folder, and wait for its end.

        Returns:
            None where done.json is there now, "" if another process does it, else what went wrong in one line.
        """

    def stop(self) -> None:
        """End all jobs; `run` returns soon after, and begins no other."""


class LocalExecutor:
    """A process of this machine for each job: what it leaves in memory is gone with it, and one that is killed takes no other.

    Args:
        at_once: processes side by side; they share the cores, and a GPU if there is one.
        worker: module that does a job; it is given the folder, and leaves in it what `iclm.studies.study.job` does.
    """

    def __init__(self, at_once: int = 1, worker: str = "iclm.studies.study.job") -> None:
        self._at_once, self._worker = at_once, worker
        self._threads = max(1, (os.cpu_count() or 1) // at_once)
        self._processes: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    @property
    def slots(self) -> int:
        """How many jobs run at a time."""
        return self._at_once

    def run(self, folder: Path) -> str | None:
        """Do a job; as `Executor.run`."""
        environment = {"OMP_NUM_THREADS": str(self._threads), **os.environ}
        with self._lock:
            if self._stopped:
                return "stopped before it began"
            process = subprocess.Popen(
                [sys.executable, "-m", self._worker, str(folder)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            self._processes.add(process)
        _, errors = process.communicate()
        with self._lock:
            self._processes.discard(process)
        if process.returncode == 0 and (folder / DONE).is_file():
            return None
        if process.returncode == BUSY:
            return ""
        if (folder / FAILED).is_file():
            return str(read_json(folder / FAILED).get("error"))
        if process.returncode < 0:
            return f"killed by {signal.Signals(-process.returncode).name}; out of memory?"
        return (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1]

    def stop(self) -> None:
        """End all of them; their trainings go on from their checkpoints another time."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.terminate()
