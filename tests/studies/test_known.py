"""A study, or sequences, that go on from a report alone."""

import json
import shutil

import pytest

from iclm.errors import CheckpointError, ConfigurationError, DataError
from iclm.studies.continual import known as sequences
from iclm.studies.continual.recipe import ContinualRecipe
from iclm.studies.continual.results import collect as collect_sequences
from iclm.studies.continual.runner import Experiment
from iclm.studies.study import known, runner
from iclm.studies.study.recipe import StudyRecipe
from iclm.studies.study.results import collect


def acre(split, problems=2, regime="IID"):
    return {"acre": regime, "split": split, "problems": problems, "format": "symbolic"}


@pytest.fixture(scope="module")
def recipe(tiny_llama_folder):
    return StudyRecipe.model_validate(
        {
            "base": str(tiny_llama_folder),
            "dtype": "float32",
            "model": {"lora_rank": 2},
            "training": {"batch_size": 8},
            "data": {
                "acre": {"train": [acre("train")], "validation": [acre("val")], "test": [acre("test", regime="Sys")]}
            },
            "methods": {"base": {"kind": "base"}, "lora": {"method": "lora"}},
            "search": {"tries": 2, "seed": 9, "space": {"training.learning_rate": {"low": 1e-4, "high": 1e-2}}},
            "grid": [{"methods": ["base", "lora"], "seeds": [0]}],
        }
    )


@pytest.fixture(scope="module")
def report(recipe, tmp_path_factory):
    """The files that a report leaves of a study whose folder is gone."""
    folder = tmp_path_factory.mktemp("known")
    state = runner.Study(recipe, folder / "study").run()
    assert len(state.done) == 4
    (folder / "report").mkdir()
    for name, text in collect([folder / "study"]).files().items():
        (folder / "report" / name).write_text(text, encoding="utf-8")
    shutil.rmtree(folder / "study")
    return folder / "report"


def test_a_study_goes_on_from_a_report_and_reports_the_same(recipe, report, tmp_path):
    more = recipe.model_copy(update={"grid": [recipe.grid[0].model_copy(update={"seeds": [0, 1]})]})
    study = runner.Study(more, tmp_path / "s", only=["acre/lora/seed-1"])
    names = ["acre/base", "acre/lora/try-0", "acre/lora/try-1", "acre/lora/seed-0"]
    assert known.take_over(study, [report]) == names
    assert [job.name for job in study.state.waiting] == ["acre/lora/seed-1"]  # its tries are known, so it can run
    assert study.state.waiting[0].spec is not None
    assert known.take_over(study, [report]) == []
    found = collect([tmp_path / "s"])
    assert list(found.not_run) == ["acre/lora/seed-1"]
    for name, text in found.files().items():
        kept = [line for line in text.splitlines() if '"state": "not run"' not in line]
        assert kept == (report / name).read_text(encoding="utf-8").splitlines()


def test_a_job_with_other_settings_is_not_taken_for_the_same(recipe, report, tmp_path):
    other = recipe.model_copy(update={"training": {"batch_size": 4}})
    study = runner.Study(other, tmp_path / "s")
    assert known.take_over(study, [report]) == []


def test_what_a_folder_has_finished_is_known_whatever_its_grid_is_now(recipe, report, tmp_path):
    small = recipe.model_copy(update={"grid": [recipe.grid[0].model_copy(update={"methods": ["base"]})]})
    known.take_over(runner.Study(recipe, tmp_path / "s"), [report])
    runner.Study(small, tmp_path / "s").write_recipe()
    assert len(known.take_over(runner.Study(recipe, tmp_path / "other"), [tmp_path / "s"])) == 4


def test_what_is_no_study_is_refused_and_nothing_is_written(recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    study = runner.Study(recipe, tmp_path / "s")
    with pytest.raises(ConfigurationError, match="holds no study"):
        known.take_over(study, [tmp_path / "empty"])
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("written", [True, False])
def test_a_study_and_sequences_are_not_taken_for_each_other(recipe, tmp_path, written):
    sources = {"train": [acre("train")], "test": [acre("test")]}
    of_tasks = ContinualRecipe.model_validate({"tasks": {"a": sources}, "methods": {"base": {"kind": "base"}}})
    study, tasks = tmp_path / "study", tmp_path / "tasks"
    if written:
        runner.Study(recipe, study).write_recipe()
        Experiment(of_tasks, "tiny", tasks).write_recipe()
        for out in (study, tasks):
            (out / "jobs").mkdir()
    else:  # jobs that were copied together, without a recipe
        known.lay(study / "jobs" / "x", {"data": "a", "trial": None}, [], {})
        known.lay(tasks / "jobs" / "x", {"sequence": "tiny"}, [], {})
    with pytest.raises(ConfigurationError, match="study holds a study, not sequences; use iclm study report"):
        collect_sequences([study])
    said = "tasks holds sequences of iclm continual; use iclm continual report"
    with pytest.raises(ConfigurationError, match=said):
        collect([tasks])
    with pytest.raises(ConfigurationError, match=said):
        known.take_over(runner.Study(recipe, tmp_path / "new"), [tasks])
    with pytest.raises(ConfigurationError, match="study holds a study, not sequences; choose another --out"):
        Experiment(of_tasks, "tiny", study)
    with pytest.raises(ConfigurationError, match="tasks holds sequences of iclm continual, not a study; choose"):
        runner.Study(recipe, tasks)


def test_a_job_that_is_being_done_is_left_alone(recipe, tmp_path):
    from filelock import FileLock

    (tmp_path / "j").mkdir()
    with FileLock(tmp_path / "j" / "lock"):
        assert not known.lay(tmp_path / "j", {}, [], {})
    assert known.lay(tmp_path / "j", {"a": 1}, [{"b": 2}], {"c": 3})
    assert json.loads((tmp_path / "j" / "rows.jsonl").read_text()) == {"b": 2}


def test_sequences_go_on_from_a_report_and_are_reported_the_same(tmp_path):
    sources = {"train": [acre("train")], "test": [acre("test")]}
    methods = {"base": {"kind": "base"}, "lora": {"method": "lora"}}
    recipe = ContinualRecipe.model_validate(
        {"tasks": {"a": sources, "b": sources}, "methods": methods, "seeds": [0, 1]}
    )
    experiment = Experiment(recipe, "tiny", tmp_path / "e")
    line = {"boundaries": "known", "tasks": ["a", "b"], "homes": {}, "units": [], "total_seconds": 3.0, "device": "cpu"}
    lines, rows = [], []
    for job in experiment.standing.jobs[:2]:
        head = {name: job.spec[name] for name in ("name", "sequence", "order", "method", "seed")}
        kind = recipe.methods[job.spec["method"]].kind
        lines.append({"job": job.folder, **head, "kind": kind, "recipe": job.spec["recipe"], **line})
        rows += [
            {
                "job": job.folder,
                **head,
                "module": "mixture",
                "trained_through": 2,
                "tested_on": task,
                "n": 2,
                "correct": 1,
            }
            for task in "ab"
        ]
    (tmp_path / "report").mkdir()
    for name, values in (("sequences.jsonl", lines), ("rows.jsonl", rows)):
        (tmp_path / "report" / name).write_text("".join(json.dumps(value) + "\n" for value in values))
    assert sequences.take_over(experiment, [tmp_path / "report"]) == ["given/base", "given/lora/seed-0"]
    assert [job.name for job in experiment.standing.waiting] == ["given/lora/seed-1"]
    assert sequences.take_over(experiment, [tmp_path / "report"]) == []
    found = collect_sequences([tmp_path / "e"])
    assert found.sequences == lines and found.rows == rows
    other = Experiment(recipe.model_copy(update={"training": {"batch_size": 3}}), "tiny", tmp_path / "o")
    assert sequences.take_over(other, [tmp_path / "report"]) == ["given/base"]


def test_tries_whose_rows_did_not_come_with_a_report_are_not_known(recipe, report, tmp_path):
    (tmp_path / "report").mkdir()
    for file in report.iterdir():
        if file.name != "tries.jsonl":
            shutil.copy(file, tmp_path / "report")
    study = runner.Study(recipe, tmp_path / "s")
    assert known.take_over(study, [tmp_path / "report"]) == ["acre/base"]
    assert [job.name for job in study.state.waiting] == ["acre/lora/try-0", "acre/lora/try-1", "acre/lora/seed-0"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"n": 0, "correct": 0}, "n is '0'"),
        ({"problems": 0}, "problems is 0"),
        ({"problems": {"of": [-1]}}, "problems"),
        ({"correct": 99}, "correct is 99"),
        ({"answers": "zz"}, "hexadecimal"),
        ({"answers": ""}, "hexadecimal"),
        ({"majority": None}, "majority is 'None'; input should be a valid number"),
        ({"seed": "a"}, "seed is 'a'"),
        ({"given": "0"}, "given is no row of"),
    ],
)
def test_a_damaged_row_of_a_report_is_named_with_its_line(report, tmp_path, changes, why):
    shutil.copytree(report, tmp_path / "r")
    lines = [json.loads(line) for line in (tmp_path / "r" / "results.jsonl").read_text().splitlines()]
    lines[1] |= changes
    (tmp_path / "r" / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=rf"results\.jsonl:2: .*{why}"):
        collect([tmp_path / "r"])


@pytest.mark.parametrize(
    ("file", "change", "why"),
    [
        (
            "questions.jsonl",
            lambda lines: lines[0]["kinds"].update(direct="zz"),
            "1: kinds.direct is no row of 1 bytes",
        ),
        ("questions.jsonl", lambda lines: lines[0].update(kinds=[]), r"1: kinds is '\[\]'"),
        ("jobs.jsonl", lambda lines: lines[0].update(evaluate=3), " acre/base: evaluate is '3'"),
        ("jobs.jsonl", lambda lines: lines.append(lines[0]), " has job [0-9a-f]+ 2 times"),
        ("results.jsonl", lambda lines: lines.append(lines[0]), " has the row of job .*mixture 2 times"),
        ("results.jsonl", lambda lines: lines[0].update(source=1), " lacks the rows of acre/base on its source 0"),
    ],
)
def test_a_damaged_report_is_named_with_what_is_wrong(report, tmp_path, file, change, why):
    shutil.copytree(report, tmp_path / "r")
    lines = [json.loads(line) for line in (tmp_path / "r" / file).read_text().splitlines()]
    change(lines)
    (tmp_path / "r" / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=rf"{file}:?{why}"):
        collect([tmp_path / "r"])


@pytest.mark.parametrize("line", ['{"a": 1}', "[1]", "3"])
def test_a_file_of_something_else_is_no_report_of_sequences(tmp_path, line):
    (tmp_path / "x.jsonl").write_text(line + "\n")
    with pytest.raises(
        CheckpointError, match=r"is no file of iclm continual boundaries: .*x\.jsonl:1: sequence is missing"
    ):
        collect_sequences([tmp_path / "x.jsonl"])


def test_a_finished_job_without_what_it_was_given_is_damaged(recipe, report, tmp_path):
    study = runner.Study(recipe, tmp_path / "s")
    known.take_over(study, [report])
    next((tmp_path / "s").glob("jobs/*/job.json")).unlink()
    with pytest.raises(CheckpointError, match=r"job\.json cannot be read"):
        runner.Study(recipe, tmp_path / "s")
