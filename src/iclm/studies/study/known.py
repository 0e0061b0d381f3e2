"""Jobs that were done elsewhere count as done: what they left is laid into the folder of a study that has the same jobs.

A study's folder holds trained weights and stays on its machine; a report of it (`iclm.studies.study.results`) is small, and says of
each job all that was found. From a report a study goes on where its folder is gone: its tries choose, its rows are reported, and
only what is missing is run. A job is known again by the hash of what it is given, so that one with other settings never is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from iclm.data.files import atomic_write
from iclm.studies.study.grid import jobs_of
from iclm.studies.study.job import DONE, FAILED, LOCK, ROWS, SPEC
from iclm.studies.study.results import DONE_FIELDS, finished
from iclm.studies.study.runner import Study


def take_over(study: Study, folders: Iterable[Path]) -> list[str]:
    """Lay what the finished jobs of some folders left into that of a study; what is done there stays as it is.

    Args:
        study: all of its jobs are looked for, also those of other shards.
        folders: of studies, or with the files that a report leaves.

    Returns:
        Names of the jobs that the study had not done yet, in the order in which it would run them.

    Raises:
        ConfigurationError, CheckpointError, DataError: a folder that holds neither, or damaged files.
    """
    known = finished(folders)
    results = study.results() | {id: job.rows for id, job in known.items() if job.line["trial"] is not None}
    study.write_recipe()
    taken = []
    for job in jobs_of(study.recipe, results):
        found = None if job.spec is None else known.get(job.id)
        if found is None or job.spec is None:
            continue
        done = {"name": f"{job.data}/{job.method}", **{key: found.line[key] for key in DONE_FIELDS}}
        done |= {"diverged": True} if found.line.get("diverged") else {}
        if lay(study.folder(job), job.spec, found.rows, {**done, "questions": found.questions}):
            taken.append(job.name)
    study.refresh()
    return taken


def lay(folder: Path, spec: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], done: Mapping[str, Any]) -> bool:
    """Make the folder of a finished job; False where the job is done there, or another process is doing it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            if (folder / DONE).is_file():
                return False
            with atomic_write(folder / SPEC, overwrite=True) as stream:
                json.dump(spec, stream, indent=1, sort_keys=True)
            with atomic_write(folder / ROWS, overwrite=True) as stream:
                stream.writelines(json.dumps(row) + "\n" for row in rows)
            with atomic_write(folder / DONE, overwrite=True) as stream:  # last, as a job writes it
                json.dump(done, stream, indent=2)
            (folder / FAILED).unlink(missing_ok=True)
            return True
    except Timeout:
        return False
