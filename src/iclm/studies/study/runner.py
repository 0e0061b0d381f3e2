"""Running the jobs of a study: what is missing is done, what fails is reported, what is done stays.

STUDY/study.yaml       the study's recipe, every field written out
STUDY/jobs/ID/         one folder a job (`iclm.studies.study.job`), named by the hash of what the job is given

Jobs run as processes of this machine or as tasks of a Ray cluster (`iclm.studies.study.executors`); the study's folder is
where all of them end. Folders of several machines merge by copying their jobs together.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from iclm.data.files import atomic_write
from iclm.errors import CheckpointError, ConfigurationError
from iclm.model.checkpoint import read_json
from iclm.studies.study.executors import Executor, LocalExecutor
from iclm.studies.study.grid import Job, jobs_of
from iclm.studies.study.job import DONE, ROWS, SEQUENCES, SPEC, STUDY, kind_of
from iclm.studies.study.recipe import StudyRecipe, load_study, with_pinned_files

RECIPE, JOBS = f"{STUDY}.yaml", "jobs"
_MOST_AT_ONCE = 1000


@dataclass
class State:
    """Where a study stands.

    Attributes:
        jobs: of this shard, in the order in which they run.
        done: what done.json says, by the job's name.
        failed: one line of what went wrong, by the job's name.
        running: when a job began (`time.monotonic`), by its name.
        busy: names of jobs that another process does.
    """

    jobs: list[Job] = field(default_factory=list)
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    running: dict[str, float] = field(default_factory=dict)
    busy: set[str] = field(default_factory=set)

    @property
    def waiting(self) -> list[Job]:
        """Jobs that are neither done, running, failed nor with another process."""
        over = {*self.done, *self.failed, *self.running, *self.busy}
        return [job for job in self.jobs if job.name not in over]

    def seconds_left(self, at_once: int) -> float | None:
        """Seconds until the waiting jobs are done: each taken as long as the mean done job of its method, else of all."""
        if not self.done:
            return None
        spent: dict[str, list[float]] = {}
        for name, record in self.done.items():
            spent.setdefault(name.rpartition("/")[0], []).append(record["total_seconds"])
        overall = [value for values in spent.values() for value in values]
        total = 0.0
        for job in (*self.waiting, *(job for job in self.jobs if job.name in self.running)):
            known = spent.get(job.name.rpartition("/")[0], overall)
            total += sum(known) / len(known)
            if job.name in self.running:
                total -= min(time.monotonic() - self.running[job.name], sum(known) / len(known))
        return total / at_once


class Study:
    """A study in a folder.

    Args:
        recipe: what is to be run.
        out: the study's folder; made, or gone on with if it holds the same study, or one that shares jobs with it by name.
        shard: (i, n), the i-th of n parts of the jobs, counted from 1.
        only: patterns of job names (`acre/lora/*`); a name that contains one counts too; empty means all.
            The tries that a chosen job needs are done with it, whatever shard or pattern they are of.

    Raises:
        ConfigurationError: a folder that holds something else, a shard or a pattern that fits nothing.
    """

    def __init__(
        self, recipe: StudyRecipe, out: Path, *, shard: tuple[int, int] = (1, 1), only: Sequence[str] = ()
    ) -> None:
        self.recipe, self.out, self.shard, self.only = with_pinned_files(recipe), out, shard, tuple(only)
        part, parts = shard
        if not 1 <= part <= parts:
            raise ConfigurationError(f"shard is {part}/{parts}; the first of four is 1/4, the last 4/4")
        self._check_folder()
        self.state = State()
        self.refresh()
        if self.only and not self.state.jobs:
            names = ", ".join(job.name for job in jobs_of(recipe, {})[:4])
            raise ConfigurationError(f"only {', '.join(self.only)!r} fits no job; names are such as {names}")

    def _check_folder(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise ConfigurationError(f"{self.out} is a file; --out names a folder")
        kept = self.out / RECIPE
        if self.out.is_dir() and any(self.out.iterdir()) and not kept.is_file() and not (self.out / JOBS).is_dir():
            raise ConfigurationError(f"{self.out} holds something else than a study; choose another --out")
        if kind_of(self.out) == SEQUENCES:
            raise ConfigurationError(f"{self.out} holds sequences of iclm continual, not a study; choose another --out")
        if kept.is_file():
            before = [job.name for job in jobs_of(load_study(kept), {})]
            if not {job.name for job in jobs_of(self.recipe, {})} & {*before}:
                raise ConfigurationError(
                    f"{self.out} holds another study, of jobs such as {before[0]}; choose another --out"
                )

    def refresh(self) -> None:
        """Look which jobs there are and which of them are done; a choice that can be made by now is made."""
        every = jobs_of(self.recipe, self.results())
        awaited = {name for job in every for name in job.needs} if self.shard[1] > 1 else set()
        chosen = [
            job for job in every if self._wanted(job.name) and job.in_shard(*self.shard) and job.name not in awaited
        ]
        names = {job.name for job in chosen} | {name for job in chosen for name in job.needs}
        self.state.jobs = [job for job in every if job.name in names]
        self.state.done = {
            job.name: read_json(self.folder(job) / DONE)
            for job in self.state.jobs
            if job.spec is not None and (self.folder(job) / DONE).is_file()
        }

    def results(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each finished try by its id."""
        return {
            folder.name: read_rows(folder)
            for folder in sorted((self.out / JOBS).glob("*/"))
            if (folder / DONE).is_file() and read_json(folder / SPEC).get("trial") is not None
        }

    def _wanted(self, name: str) -> bool:
        return not self.only or any(pattern in name or fnmatch(name, pattern) for pattern in self.only)

    def folder(self, job: Job) -> Path:
        """Folder of a job."""
        return self.out / JOBS / job.id

    def run(
        self,
        *,
        at_once: int = 1,
        executor: Executor | None = None,
        report: Callable[[State], None] = lambda state: None,
    ) -> State:
        """Do what is missing; a job that fails is kept for the report, and tried again when the study is started again.

        Args:
            at_once: processes of this machine side by side; they share the cores, and a GPU if there is one.
            executor: where jobs run instead, such as a Ray cluster, and how many at a time.
            report: called whenever a job begins or ends.

        Returns:
            Where the study stands; jobs still waiting wait for tries of another shard or of a failed job.
        """
        if at_once < 1:
            raise ConfigurationError(f"jobs is {at_once}; at least 1 runs at a time")
        self.write_recipe()
        executor = executor or LocalExecutor(at_once)
        going: dict[Future[str | None], Job] = {}
        with ThreadPoolExecutor(_MOST_AT_ONCE) as pool:  # a thread is made when it is needed, and does nothing but wait
            try:
                while True:
                    free = min(executor.slots, _MOST_AT_ONCE) - len(going)
                    ready = [job for job in self.state.waiting if job.spec is not None]
                    for job in ready[: max(free, 0)]:
                        self.state.running[job.name] = time.monotonic()
                        going[pool.submit(executor.run, self._prepare(job))] = job
                    report(self.state)
                    if not going:
                        return self.state
                    for future in wait(going, return_when=FIRST_COMPLETED).done:
                        self._end(going.pop(future), future.result())
            except BaseException:
                executor.stop()
                raise

    def write_recipe(self) -> None:
        """Leave the study's recipe in its folder, every field written out: what a report takes its grid from."""
        with atomic_write(self.out / RECIPE, overwrite=True) as stream:
            yaml.safe_dump(self.recipe.model_dump(mode="json"), stream, sort_keys=False, allow_unicode=True)

    def _prepare(self, job: Job) -> Path:
        folder = self.folder(job)
        with atomic_write(folder / SPEC, overwrite=True) as stream:
            json.dump(job.spec, stream, indent=1, sort_keys=True)
        return folder

    def _end(self, job: Job, failure: str | None) -> None:
        del self.state.running[job.name]
        if failure == "":
            self.state.busy.add(job.name)
        elif failure is not None:
            self.state.failed[job.name] = failure
        self.refresh()


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a finished job; raises `CheckpointError` if they are damaged."""
    try:
        return [json.loads(line) for line in (folder / ROWS).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / ROWS} is damaged: {error}; remove {folder} to have it done again") from error


def parse_shard(text: str) -> tuple[int, int]:
    """A shard as given on the command line, 2/4; raises `ConfigurationError`."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal()):
        raise ConfigurationError(f"shard is {text!r}; write it as 1/4, the first of four parts")
    return int(part), int(parts)
