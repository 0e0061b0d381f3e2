"""The finished jobs of studies: collected from their folders, or from the files that a report leaves, which say as much.

    OUT/results.jsonl     the rows of all reports, as the jobs left them
    OUT/tries.jsonl       the rows of all tries, by which hyper-parameters were chosen
    OUT/jobs.jsonl        a line a job: what it was given, chosen hyper-parameters, versions, device, seconds; and what was not run
    OUT/questions.jsonl   a line a test source: which of its questions are of which kind

A report that is made from these files again is the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from iclm.data.files import open_for_reading
from iclm.errors import CheckpointError, ConfigurationError, DataError
from iclm.model.checkpoint import read_json
from iclm.studies.study.grid import Job, comparable, id_of, jobs_of, value_of
from iclm.studies.study.job import DONE, FAILED, SEQUENCES, SPEC, kind_of
from iclm.studies.study.recipe import UNTRAINED, StudyRecipe, load_study
from iclm.studies.study.report_lines import (
    JobLine,
    QuestionsLine,
    check_bits,
    check_line,
    check_once,
    check_row,
    check_whole,
)
from iclm.studies.study.rows import BY_EXCLUSION
from iclm.studies.study.runner import JOBS, RECIPE, read_rows

RESULTS, TRIES, JOBS_FILE, QUESTIONS = "results.jsonl", "tries.jsonl", "jobs.jsonl", "questions.jsonl"
_SPEC = ("method", "kind", "strategy", "data", "seed", "trial", "shots")
DONE_FIELDS = ("device", "processor", "threads", "dtype", "train_seconds", "total_seconds", "versions")


@dataclass(frozen=True)
class FinishedJob:
    """A job and what it found.

    Attributes:
        line: its line of jobs.jsonl: `id`, `name`, what it was given and what done.json says, without a path of the machine.
        rows: in the order in which it left them.
        questions: for each source which of its questions are of which kind.
    """

    line: dict[str, Any]
    rows: list[dict[str, Any]]
    questions: list[dict[str, str]]

    @property
    def name(self) -> str:
        """As `iclm.studies.study.grid.Job.name`."""
        return str(self.line["name"])


@dataclass
class Collected:
    """The finished jobs of studies.

    Attributes:
        jobs: in the order of the grid.
        not_run: "not run" or "failed", by the name of each job of the grid that is not among them.
        left_out: names of finished jobs that the grid does not hold, or holds with other settings.
    """

    jobs: list[FinishedJob] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @property
    def reports(self) -> list[FinishedJob]:
        """The jobs that are reported; the others are tries."""
        return [job for job in self.jobs if job.line["trial"] is None]

    @property
    def tries(self) -> list[FinishedJob]:
        """The jobs by which hyper-parameters were chosen."""
        return [job for job in self.jobs if job.line["trial"] is not None]

    def files(self) -> dict[str, str]:
        """The text of each file that a report leaves of them, by its name."""
        lines = [{"state": "done", **job.line} for job in self.jobs]
        lines += [{"state": state, "name": name} for name, state in self.not_run.items()]
        questions = [
            {"data": data, "source": number, "kinds": kinds}
            for data, sources in questions_of(self.reports).items()
            for number, kinds in enumerate(sources)
        ]
        return {
            RESULTS: _lines(row for job in self.reports for row in job.rows),
            TRIES: _lines(row for job in self.tries for row in job.rows),
            JOBS_FILE: _lines(lines),
            QUESTIONS: _lines(questions),
        }


def _lines(values: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def questions_of(reports: Sequence[FinishedJob]) -> dict[str, list[dict[str, str]]]:
    """The kinds of the test questions by data set; raises `DataError` where jobs were asked different ones.

    Jobs of earlier versions say nothing of what needs exclusion, and of fewer settings; they were asked the same nevertheless.
    """
    first: dict[str, FinishedJob] = {}
    found: dict[str, list[dict[str, str]]] = {}
    for job in reports:
        data = job.line["data"]
        other = first.setdefault(data, job)
        same = comparable(other.line["evaluate"]) == comparable(job.line["evaluate"])
        if not same or _without_exclusion(other.questions) != _without_exclusion(job.questions):
            raise DataError(f"{other.name} and {job.name} were tested on different questions; report them apart")
        known = found.setdefault(data, job.questions)
        found[data] = [one | two for one, two in zip(known, job.questions, strict=True)]
    return {data: [dict(sorted(kinds.items())) for kinds in sources] for data, sources in found.items()}


def _without_exclusion(questions: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    return [{kind: marks for kind, marks in kinds.items() if kind != BY_EXCLUSION} for kinds in questions]


def collect(folders: Iterable[Path]) -> Collected:
    """The finished jobs of some studies; a job found twice counts once, as a report has it, else as the first folder.

    What counts is the grid as STUDY/study.yaml has it: a job that was done with other settings is left out.

    Args:
        folders: of studies, parts of one study among them, or with the files that a report leaves.

    Raises:
        ConfigurationError: a folder that holds neither, or jobs of one name with different settings.
        CheckpointError, DataError: damaged files.
    """
    found: _Found = {}
    failed: set[str] = set()
    studies: list[StudyRecipe] = []
    whole = Collected()
    for out in folders:
        if _is_report(out):
            _add(whole, read_files(out))
            continue
        done, failures = _of_folder(out)
        found = done | found
        failed |= failures
        if (out / RECIPE).is_file():
            studies.append(load_study(out / RECIPE))
    for part in [_of_grid(study, found, failed) for study in studies] or [_of_no_grid(found)]:
        _add(whole, part)
    placed = {job.line["id"] for job in whole.jobs}
    whole.left_out = sorted({_name(spec) for id, (spec, _, _) in found.items() if id not in placed})
    return whole


def finished(folders: Iterable[Path]) -> dict[str, FinishedJob]:
    """All finished jobs of some folders by their ids, whatever the grid of a study is now.

    Of a report that comes without the rows of its tries these are not among them.

    Raises:
        ConfigurationError, CheckpointError, DataError: as `collect`.
    """
    jobs: dict[str, FinishedJob] = {}
    for out in folders:
        if _is_report(out):
            found = {job.line["id"]: job for job in read_files(out).jobs if job.rows}
        else:
            found = {}
            for spec, done, rows in _of_folder(out)[0].values():
                id = id_of(spec)  # a folder's name is that of the version that made it
                found[id] = FinishedJob(_line(id, _name(spec), spec, done, {}), rows, done["questions"])
        jobs = found | jobs
    return jobs


def _is_report(out: Path) -> bool:
    """Whether a folder holds the files of a report; False for that of a study; raises `ConfigurationError` if it holds neither."""
    if kind_of(out) == SEQUENCES:
        raise ConfigurationError(f"{out} holds sequences of iclm continual; use iclm continual report")
    if (out / JOBS).is_dir():
        return False
    if (out / JOBS_FILE).is_file():
        return True
    raise ConfigurationError(f"{out} holds no study: there is neither a folder {JOBS} nor a file {JOBS_FILE}")


def _of_folder(out: Path) -> tuple[_Found, set[str]]:
    """The finished jobs of a study's folder, and the ids of those that failed."""
    found: _Found = {}
    failed = set()
    for folder in sorted((out / JOBS).glob("*/")):
        if (folder / DONE).is_file():
            found[folder.name] = (read_json(folder / SPEC), _done(folder), read_rows(folder))
        elif (folder / FAILED).is_file():
            failed.add(folder.name)
    return found, failed


_Found = dict[str, tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]]
"""What is given, what done.json says, and the rows of finished jobs, by their ids."""


def _of_grid(study: StudyRecipe, found: _Found, failed: Set[str]) -> Collected:
    """The jobs of a study's grid."""
    names = _short_names(spec for spec, _, _ in found.values())
    part = Collected()
    for job in jobs_of(study, {id: rows for id, (spec, _, rows) in found.items() if spec["trial"] is not None}):
        id = None if job.spec is None else job.id  # none as long as its tries are missing
        if id is None or id not in found:
            part.not_run[job.name] = "failed" if id in failed else "not run"
            continue
        spec, done, rows = found[id]
        chooses = spec["kind"] not in UNTRAINED and study.data[job.data].search
        searched = study.search.space if study.search is not None and chooses else {}
        line = _line(id, job.name, spec, done, names)
        line["chosen"] = {name: value_of(spec["recipe"], name) for name in sorted(searched)}
        line |= {"reference": study.reference, "tuned_as": study.methods[job.method].tuned_as}
        line["tuned_on"] = study.data[job.data].tuned_as
        line["compared_with"] = study.methods[job.method].compared_with
        part.jobs.append(FinishedJob(line, rows, done["questions"]))
    return part


def _of_no_grid(found: _Found) -> Collected:
    """All finished jobs, where no grid says which there should be."""
    names = _short_names(spec for spec, _, _ in found.values())
    part = Collected()
    for id, (spec, done, rows) in sorted(found.items(), key=lambda item: (_name(item[1][0]), item[0])):
        line = _line(id, _name(spec), spec, done, names) | {
            "chosen": {},
            "reference": None,
            "tuned_as": None,
            "tuned_on": None,
            "compared_with": [],
        }
        _add(part, Collected([FinishedJob(line, rows, done["questions"])]))
    return part


def _done(folder: Path) -> dict[str, Any]:
    done = read_json(folder / DONE)
    if "questions" not in done:
        raise CheckpointError(
            f"{folder / DONE} is damaged: questions is missing; remove {folder} to have it done again"
        )
    return done


def _name(spec: Mapping[str, Any]) -> str:
    return Job(spec["method"], spec["data"], spec["seed"], spec["trial"]).name


def _line(
    id: str, name: str, spec: Mapping[str, Any], done: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "id": id,
        "name": name,
        **{key: spec[key] for key in _SPEC if key in spec},
        **{key: done[key] for key in DONE_FIELDS},
        **({"diverged": True} if done.get("diverged") else {}),
        "recipe": _portable(spec["recipe"], names),
        "evaluate": _portable(spec["evaluate"], names),
    }


def _add(whole: Collected, part: Collected) -> None:
    """Add the jobs of a study, or of a part of one."""
    known = {job.name: job for job in whole.jobs}
    for job in part.jobs:
        same = known.get(job.name)
        if same is None:
            whole.jobs.append(job)
        elif same.line["id"] != job.line["id"]:
            raise ConfigurationError(
                f"{job.name} was done twice with different settings (jobs {same.line['id']} and {job.line['id']}); "
                "report these studies apart"
            )
    done = {job.name for job in whole.jobs}
    whole.not_run = {name: state for name, state in (part.not_run | whole.not_run).items() if name not in done}


# -- names in place of the paths of a machine --------------------------------------------------------------------------


_PATHS = ("base", "file", "dataset", "start_from")  # fields of a training recipe


def _paths(value: Any) -> Iterator[str]:
    """The absolute paths below a place of a job's object."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if key in _PATHS and isinstance(entry, str) and _is_absolute(entry):
                yield entry
            else:
                yield from _paths(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _paths(entry)


def _is_absolute(text: str) -> bool:
    return PurePath(text).is_absolute() or PureWindowsPath(text).is_absolute()


def _parts(path: str) -> tuple[str, ...]:
    return (PurePath(path) if PurePath(path).is_absolute() else PureWindowsPath(path)).parts[1:]


def _short_names(values: Iterable[Any]) -> dict[str, str]:
    """For each absolute path in some objects the shortest end of it that no other path has too."""
    paths = sorted({path for value in values for path in _paths(value)})
    names = {}
    for path in paths:
        parts, others = _parts(path), [_parts(other) for other in paths if other != path]
        length = 1
        while length < len(parts) and any(other[-length:] == parts[-length:] for other in others):
            length += 1
        names[path] = "/".join(parts[-length:])
    return names


def _portable(value: Any, names: Mapping[str, str]) -> Any:
    """A value with each absolute path in it replaced by its short name."""
    if isinstance(value, Mapping):
        shortened = {key: names.get(entry, entry) for key, entry in value.items() if key in _PATHS}
        return {key: shortened.get(key, _portable(entry, names)) for key, entry in value.items()}
    return [_portable(entry, names) for entry in value] if isinstance(value, list) else value


# -- from the files of a report ----------------------------------------------------------------------------------------


def read_files(folder: Path) -> Collected:
    """The finished jobs from the files that a report left; the rows of tries may be missing.

    Raises:
        DataError: a file is missing or damaged, or a row is of no job.
    """
    lines = _read(folder / JOBS_FILE, "name", "state")
    done = [line for line in lines if line["state"] == "done"]
    for line in done:
        check_line(JobLine, line, f"{folder / JOBS_FILE}: {line['name']}")
    check_once((line["id"] for line in done), f"{folder / JOBS_FILE}", "job")
    rows: dict[str, list[dict[str, Any]]] = {}
    for name in (RESULTS, TRIES):
        if name == RESULTS or (folder / name).is_file():
            found = _read(folder / name, "job")
            for number, row in enumerate(found, start=1):
                check_row(row, f"{folder / name}:{number}")
                rows.setdefault(row["job"], []).append(row)
            keys = (f"{row['job']}, source {row['source']}, {row['module']}" for row in found)
            check_once(keys, f"{folder / name}", "the row of job")
    strange = sorted(set(rows) - {line["id"] for line in done})
    if strange:
        raise DataError(f"{folder / RESULTS} holds rows of job {strange[0]}, which {JOBS_FILE} does not name")
    sizes = {
        (line["data"], row["source"]): row["n"]
        for line in done
        if line["trial"] is None
        for row in rows.get(line["id"], ())
    }
    questions: dict[str, list[dict[str, str]]] = {}
    for number, line in enumerate(_read(folder / QUESTIONS, "data"), start=1):
        where = f"{folder / QUESTIONS}:{number}"
        check_line(QuestionsLine, line, where)
        for kind, marks in line["kinds"].items():
            check_bits(f"kinds.{kind}", marks, sizes.get((line["data"], line["source"]), 4 * len(marks)), where)
        questions.setdefault(line["data"], []).append(line["kinds"])
    whole = Collected(not_run={line["name"]: line["state"] for line in lines if line["state"] != "done"})
    for line in done:
        if line["trial"] is None and line["id"] not in rows:
            raise DataError(f"{folder / RESULTS} lacks the rows of {line['name']} (job {line['id']})")
        if line["id"] in rows:
            check_whole(
                line["name"],
                rows[line["id"]],
                len(line["evaluate"]),
                f"{folder / (RESULTS if line['trial'] is None else TRIES)}",
            )
        asked = questions.get(line["data"], []) if line["trial"] is None else []
        if line["trial"] is None and len(asked) != len(line["evaluate"]):
            raise DataError(
                f"{folder / QUESTIONS} has {len(asked)} lines of {line['data']}, not {len(line['evaluate'])}"
            )
        line = {key: value for key, value in line.items() if key != "state"}
        whole.jobs.append(FinishedJob(line, rows.get(line["id"], []), asked))
    return whole


def _read(path: Path, *keys: str) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, each of which has some keys."""
    with open_for_reading(path) as stream:
        text = stream.read()
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            value = json.loads(line)
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(f"{path}:{number}: no JSON object: {error}") from error
        missing = [key for key in keys if not isinstance(value, dict) or key not in value]
        if missing:
            raise DataError(f"{path}:{number}: {missing[0]} is missing; `iclm study report` writes it")
        found.append(value)
    return found
