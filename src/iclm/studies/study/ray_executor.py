"""Jobs of a study as tasks of a Ray cluster (extra `iclm[ray]`).

    the study's folder                             a machine of the cluster
    jobs/ID/job.json       ─── text ───▶    job.json in a temporary folder; the same worker does it
    jobs/ID/rows.jsonl     ◀── text ───     rows.jsonl
    jobs/ID/done.json      ◀── text ───     done.json, or failed.json

No file system is shared: a job travels as the text of its object, its results as the text of small files, and what was
trained stays behind and is removed. So a job that is lost begins anew when the study is started again. Each machine needs the
same version of iclm, and the base model and data files where the recipe says. Ray moves those texts with its own
serialisation inside the cluster; no file is ever unpickled. Who reaches a Ray cluster can run code on it: use your own.
"""

from __future__ import annotations

import importlib
import math
import os
import platform
import socket
import tempfile
import threading
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from iclm.data.files import atomic_write
from iclm.errors import ConfigurationError
from iclm.model.checkpoint import read_json
from iclm.studies.study.job import DONE, FAILED, LOCK, ROWS, SPEC, main
from iclm.version import __version__

GRACE = 10.0  # seconds that an interrupted job has to end
Machine = Mapping[str, float]
"""What a machine of the cluster has, as Ray counts it: CPU, GPU, ..."""


@dataclass(frozen=True)
class Share:
    """What one job has of a machine.

    Attributes:
        cpus: cores.
        a_gpu: how many jobs share a GPU; 0 where the cluster has none.
    """

    cpus: int
    a_gpu: int

    @property
    def gpus(self) -> float:
        """The part of a GPU, in the ten-thousandths that Ray counts in."""
        return math.floor(10_000 / self.a_gpu) / 10_000 if self.a_gpu else 0.0

    def slots(self, machines: Iterable[Machine]) -> int:
        """How many jobs run on these machines at a time."""
        return sum(
            min(int(machine.get("CPU", 0)) // self.cpus, int(machine.get("GPU", 0)) * self.a_gpu)
            if self.a_gpu
            else int(machine.get("CPU", 0)) // self.cpus
            for machine in machines
        )


def share_of(machines: Iterable[Machine], jobs: int, cpus: int | None = None) -> Share:
    """What each job is given where so many share a machine, or a GPU; where there are GPUs, only they are used.

    Args:
        machines: what each machine of the cluster has.
        jobs: how many jobs share a machine, or each GPU of it.
        cpus: cores of a job; None means that the jobs share all cores of a machine, of the smallest where they differ.

    Raises:
        ConfigurationError: no machine has what a job needs.
    """
    if jobs < 1 or (cpus is not None and cpus < 1):
        raise ConfigurationError(f"jobs is {jobs} and cpus is {cpus}; each is at least 1")
    held = [machine for machine in machines if machine.get("CPU", 0) >= 1]
    usable = [machine for machine in held if machine.get("GPU", 0) >= 1] or held
    if not usable:
        raise ConfigurationError("no machine of the Ray cluster has a core for jobs; add one with `ray start`")
    gpus = usable[0].get("GPU", 0) >= 1
    if cpus is None:
        cpus = max(1, min(int(m["CPU"]) // (jobs * (int(m["GPU"]) if gpus else 1)) for m in usable))
    share = Share(cpus, jobs if gpus else 0)
    if not share.slots(usable):
        most = max(int(machine["CPU"]) for machine in usable)
        raise ConfigurationError(f"cpus is {cpus}; the largest machine of the Ray cluster has {most} cores")
    return share


def do_job(spec: str, name: str, threads: int, version: str) -> dict[str, str]:
    """Do a job in this process, which is that of a Ray task, in a folder that is removed again.

    Args:
        spec: text of job.json.
        name: the job's id.
        threads: cores that it may use.
        version: of iclm where the study runs.

    Returns:
        The text of each result file by its name.

    Raises:
        ConfigurationError: this machine has another version of iclm.
    """
    if version != __version__:
        raise ConfigurationError(
            f"iclm {__version__} is installed on {platform.node()}; the study is run by {version}, install that"
        )
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="iclm-") as place:
        folder = Path(place) / name
        folder.mkdir()
        (folder / SPEC).write_text(spec, encoding="utf-8")
        try:
            main(folder)
        except Exception:
            if not (folder / FAILED).is_file():
                raise
            traceback.print_exc()  # to the log that Ray keeps of its workers
        kept = [folder / file for file in (ROWS, DONE, FAILED) if (folder / file).is_file()]
        return {path.name: path.read_text(encoding="utf-8") for path in kept}


class RayExecutor:
    """A task of a Ray cluster for each job, each in a worker process of its own; an `Executor`, and a context manager.

    Args:
        address: "auto" (the cluster that was started on this machine, or `RAY_ADDRESS`), "local" (one of this machine alone, which
            ends with the study) or HOST:PORT. Where this process is connected to Ray already, that connection is used, and kept.
        jobs: how many jobs share a machine, or each GPU of it.
        cpus: cores of a job; None means that the jobs share all cores.

    Raises:
        ConfigurationError: Ray is not installed, no cluster answers, or none of its machines has what a job needs.
    """

    def __init__(self, address: str = "auto", *, jobs: int = 1, cpus: int | None = None) -> None:
        self._ray = _import_ray()
        self._own = not self._ray.is_initialized()
        if self._own:
            _connect(self._ray, address)
        self._lock = threading.Lock()
        self._references: set[Any] = set()
        self._stopped = False
        try:
            self.share = share_of(self._machines(), jobs, cpus)
        except ConfigurationError:
            self.close()
            raise
        # A worker ends with its job, and what that left in memory with it. A lost job is reported, not done again unasked.
        options = {"max_calls": 1, "max_retries": 0, "scheduling_strategy": "SPREAD"}
        self._task = self._ray.remote(num_cpus=self.share.cpus, num_gpus=self.share.gpus, **options)(do_job)

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster; one that was started for the study ends."""
        if self._own:
            self._ray.shutdown()

    @property
    def slots(self) -> int:
        """How many jobs the machines that there are now run at a time, at least 1."""
        return max(1, self.share.slots(self._machines()))

    def run(self, folder: Path) -> str | None:
        """Do a job somewhere on the cluster; as `Executor.run`."""
        try:
            with FileLock(folder / LOCK, timeout=0):
                if (folder / DONE).is_file():
                    return None
                (folder / FAILED).unlink(missing_ok=True)
                found = self._remote((folder / SPEC).read_text(encoding="utf-8"), folder.name)
                if isinstance(found, str):
                    return found
                for file in (ROWS, FAILED, DONE):  # done.json last: a folder that holds it is whole
                    if file in found:
                        with atomic_write(folder / file, overwrite=True) as stream:
                            stream.write(found[file])
                if DONE in found:
                    return None
                return str(read_json(folder / FAILED).get("error")) if FAILED in found else "its task left no result"
        except Timeout:
            return ""

    def _remote(self, spec: str, name: str) -> dict[str, str] | str:
        """The texts of the result files, or why there are none."""
        errors = self._ray.exceptions
        with self._lock:
            if self._stopped:
                return "stopped before it began"
            reference = self._task.remote(spec, name, self.share.cpus, __version__)
            self._references.add(reference)
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            return _line(getattr(error, "cause", error), -1)
        except errors.RayError as error:
            return f"lost with its worker: {_line(error, 0)}"
        finally:
            with self._lock:
                self._references.discard(reference)

    def stop(self) -> None:
        """Interrupt all jobs, so that they remove their folders, and kill what has not ended after some seconds."""
        with self._lock:
            self._stopped = True
            left = list(self._references)
        for force in (False, True):
            for reference in left:
                self._ray.cancel(reference, force=force)
            if left:
                left = self._ray.wait(left, num_returns=len(left), timeout=GRACE)[1]

    def _machines(self) -> list[Machine]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]


def _line(error: object, number: int) -> str:
    """A line of what an error says, which may be many, or the error's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[number] if lines else type(error).__name__


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigurationError("Ray is not installed; install it with: pip install 'iclm[ray]'") from error


def _connect(ray: Any, address: str) -> None:
    """Connect to a cluster, or start one of this machine alone, which tells nobody that it is used."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address not in ("auto", "local"):
        _check_answers(address)
    alone = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **alone)
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        raise ConfigurationError(
            f"no Ray cluster to use at {address!r} ({_line(error, 0)}); start one with `ray start --head`, and where it asks for a "
            "token give it in RAY_AUTH_TOKEN; or use local"
        ) from error


def _check_answers(address: str) -> None:
    """Raise `ConfigurationError` unless something answers at HOST:PORT; Ray itself would wait for it for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigurationError(f"ray is {address!r}; it is auto, local or HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigurationError(
            f"no Ray cluster answers at {address} ({error.strerror or error}); start one with `ray start --head`, which names its "
            "HOST:PORT"
        ) from error
