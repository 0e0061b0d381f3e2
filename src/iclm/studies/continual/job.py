"""A sequence, a joint training or the untouched base as a job of a continual-learning experiment.

FOLDER/job.json       what it is given
FOLDER/run/           the model at the end, as a run folder
FOLDER/rows.jsonl     a line a module, task trained through and task tested on
FOLDER/done.json      units, seconds, versions, device; written last: a folder that holds it is whole
FOLDER/failed.json    in place of it, where the job failed; gone when it is started again

    python -m iclm.studies.continual.job FOLDER
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from iclm.data.files import atomic_write
from iclm.evaluation.runs import FINISHED, load_run
from iclm.model.checkpoint import read_json
from iclm.studies.continual.asking import ask
from iclm.studies.continual.sequence import RUN, UNITS, WORK, TaskSequence
from iclm.studies.study.job import DONE, FAILED, LOCK, ROWS, worker
from iclm.training.folder import RECIPE, write_record
from iclm.training.run import device_name, train
from iclm.version import software


def run_joint(sequence: TaskSequence) -> list[dict[str, Any]]:
    """Train on all tasks mixed, and ask."""
    out = sequence.folder / RUN
    if (out / FINISHED).is_file():
        run = load_run(out)
        sequence.model, record = run.model, run.record
    else:
        resume = (out / RECIPE).is_file()
        sequence.model, record = train(sequence.training, out, resume=resume, progress_bar=False)
    unit = {"trainable": record["trainable_parameters"], "steps": record["steps"], "opened": False, "added": 0}
    sequence.state.units = [{**unit, "train_seconds": record["train_seconds"], "guard_seconds": 0.0}]
    return _asked_once(sequence, {name: at for at, name in enumerate(record["domains"])}, len(sequence.order))


def run_base(sequence: TaskSequence) -> list[dict[str, Any]]:
    """Ask the untouched base."""
    return _asked_once(sequence, {}, 0)


def _asked_once(sequence: TaskSequence, homes: dict[str, int], position: int) -> list[dict[str, Any]]:
    tests = sequence.reader().tests()
    found = ask(sequence.model, tests, homes, sequence.pad, range(sequence.model.config.num_domains))
    sequence.add_rows(position, None, found, tests)
    return sequence.state.rows


def run_job(folder: Path) -> dict[str, Any]:
    """Do the sequence whose object lies in a folder; returns what done.json says.

    Raises:
        ICLMError: data, a setting or a base that cannot be used; what was learned before stays.
        filelock.Timeout: another process does it.
    """
    with FileLock(folder / LOCK, timeout=0):
        if (folder / DONE).is_file():
            return read_json(folder / DONE)
        (folder / FAILED).unlink(missing_ok=True)
        sequence = TaskSequence(folder)
        kinds = {"sequence": TaskSequence.run, "joint": run_joint, "base": run_base}
        rows = kinds[sequence.method.kind](sequence)
        with atomic_write(folder / ROWS, overwrite=True) as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
        model = sequence.model
        done = {
            "name": sequence.spec["name"],
            "units": sequence.state.units,
            "homes": sequence.state.homes,
            "total_seconds": round(sequence.seconds, 1),
            "device": device_name(model.device),
            "threads": torch.get_num_threads(),
            "dtype": str(model.dtype).removeprefix("torch."),
            "versions": software(),
        }
        write_record(folder / DONE, done)
        for name in (UNITS, WORK):
            shutil.rmtree(folder / name, ignore_errors=True)
        return done


if __name__ == "__main__":
    sys.exit(worker(run_job, Path(sys.argv[1])))
