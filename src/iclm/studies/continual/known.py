"""Sequences that were done elsewhere count as done: what they left is laid into the folder of an experiment that has the same ones.

As `iclm.studies.study.known` for studies: an experiment goes on from its report alone, where its folder is gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from iclm.studies.continual.results import SPEC_FIELDS, collect
from iclm.studies.continual.runner import Experiment
from iclm.studies.study.known import lay

_ADDED = {"job", *SPEC_FIELDS, "boundaries", "tasks", "kind", "recipe"}  # what a report's line has beside done.json


def take_over(experiment: Experiment, folders: Iterable[Path]) -> list[str]:
    """Lay what finished sequences of some folders left into that of an experiment; what is done there stays as it is.

    Args:
        experiment: only its wanted jobs are looked for.
        folders: of experiments or of reports.

    Returns:
        Names of the jobs that the experiment had not done yet.

    Raises:
        ConfigurationError, CheckpointError: a folder that holds neither, or damaged files.
    """
    found = collect(folders)
    known = {line["job"]: line for line in found.sequences}
    experiment.write_recipe()
    taken = []
    for job in experiment.standing.jobs:
        line = known.get(job.folder)
        if line is None:
            continue
        rows = [
            {key: value for key, value in row.items() if key != "job"} for row in found.rows if row["job"] == job.folder
        ]
        done = {"name": job.name, **{key: value for key, value in line.items() if key not in _ADDED}}
        if lay(experiment.folder(job), job.spec, rows, done):
            taken.append(job.name)
    experiment.refresh()
    return taken
