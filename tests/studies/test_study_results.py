"""Finished jobs collected from studies, and from the files that a report leaves."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from iclm.errors import CheckpointError, ConfigurationError, DataError
from iclm.report.study import write_report
from iclm.report.study_tables import grids
from iclm.studies.study.grid import jobs_of
from iclm.studies.study.groups import OUT, by_data
from iclm.studies.study.recipe import StudyRecipe
from iclm.studies.study.results import Collected, collect, read_files
from iclm.studies.study.summary import _about, summarise

VALUES = {
    "base": "/machine/models/tiny",
    "data": {
        "quiz": {
            "train": [{"file": "/machine/train/quiz.jsonl"}],
            "validation": [{"file": "/machine/val/quiz.jsonl"}],
            "test": [{"file": "/machine/test/quiz.jsonl"}],
        }
    },
    "methods": {
        "lora": {"method": "lora"},
        "iclm": {},
        "iclm-no-mi": {"model": {"mi_weight": 0.0}, "tuned_as": "iclm"},
    },
    "search": {"tries": 2, "seed": 9, "space": {"training.learning_rate": {"values": [0.1, 0.2]}}},
    "grid": [{"methods": ["lora", "iclm", "iclm-no-mi"], "seeds": [0, 1]}],
}
DONE = {
    "device": "cpu",
    "processor": "AMD EPYC 9V74",
    "threads": 2,
    "dtype": "float32",
    "train_seconds": 1.0,
    "total_seconds": 2.0,
    "versions": {"iclm": "0.1.0"},
    "questions": [{}],
}


def row_of(job, correct):
    return {
        **{"job": job.id, "method": job.method, "seed": job.seed, "trial": job.trial, "split": job.spec["split"]},
        **{"train_set": job.data, "test_set": "quiz", "source": 0, "shifted": False, "format": None, "strict": False},
        **{
            "module": "mixture",
            "n": 8,
            "correct": correct,
            "by_kind": {},
            "answers": "00",
            "problems": 1,
            "majority": 0.5,
        },
        **{"examples": 8, "trainable": 1, "device": "cpu", "seconds": 1.0},
    }


def finish(job, out, correct=0):
    folder = Path(out) / "jobs" / job.id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(json.dumps(job.spec))
    (folder / "rows.jsonl").write_text(json.dumps(row_of(job, correct)) + "\n")
    (folder / "done.json").write_text(json.dumps(DONE))
    return folder


@pytest.fixture
def study(tmp_path):
    """A study of which all is done but one report, and its jobs by name."""
    out = tmp_path / "study"
    out.mkdir()
    (out / "study.yaml").write_text(yaml.safe_dump(VALUES))
    recipe = StudyRecipe.model_validate(VALUES)
    tries = {}
    for job in jobs_of(recipe, {}):
        if job.trial is not None:
            finish(job, out, correct=job.trial)
            tries[job.id] = [row_of(job, job.trial)]
    jobs = {job.name: job for job in jobs_of(recipe, tries)}
    for name, job in jobs.items():
        if job.trial is None and name != "quiz/iclm/seed-1":
            finish(job, out)
    return out, jobs


def test_jobs_come_in_the_order_of_the_grid_and_what_is_missing_is_named(study):
    out, jobs = study
    found = collect([out])
    assert [job.name for job in found.jobs] == [name for name in jobs if name != "quiz/iclm/seed-1"]
    assert found.not_run == {"quiz/iclm/seed-1": "not run"} and found.left_out == []
    assert len(found.tries) == 4 and len(found.reports) == 5
    (out / "jobs" / jobs["quiz/iclm/seed-1"].id).mkdir()
    (out / "jobs" / jobs["quiz/iclm/seed-1"].id / "failed.json").write_text("{}")
    assert collect([out]).not_run == {"quiz/iclm/seed-1": "failed"}


def test_a_line_says_how_to_repeat_the_job_and_names_no_path_of_the_machine(study):
    out, jobs = study
    lines = {job.name: job.line for job in collect([out]).jobs}
    line = lines["quiz/iclm-no-mi/seed-1"]
    rate = jobs["quiz/iclm/try-1"].spec["recipe"]["training"]["learning_rate"]
    assert line["chosen"] == {"training.learning_rate": rate}
    assert line["recipe"]["training"]["learning_rate"] == rate and line["recipe"]["model"]["mi_weight"] == 0.0
    assert (line["reference"], line["tuned_as"], line["id"]) == ("lora", "iclm", jobs["quiz/iclm-no-mi/seed-1"].id)
    assert line["recipe"]["base"] == "tiny"
    assert [line["recipe"]["data"]["train"][0]["file"], line["evaluate"][0]["file"]] == [
        "train/quiz.jsonl",
        "test/quiz.jsonl",
    ]
    assert "machine" not in json.dumps(list(lines.values()))


def test_a_job_of_earlier_settings_is_left_out(study):
    out, _ = study
    changed = {**VALUES, "methods": {**VALUES["methods"], "lora": {"method": "lora", "model": {"lora_rank": 3}}}}
    (out / "study.yaml").write_text(yaml.safe_dump(changed))
    found = collect([out])
    assert sorted(set(found.left_out)) == [f"quiz/lora/{part}" for part in ("seed-0", "seed-1", "try-0", "try-1")]
    assert not any(job.line["method"] == "lora" for job in found.jobs)
    assert found.not_run["quiz/lora/try-0"] == "not run"


def test_parts_of_a_study_are_taken_together(study, tmp_path):
    out, jobs = study
    other = tmp_path / "other"
    (other / "jobs").mkdir(parents=True)
    (other / "study.yaml").write_text((out / "study.yaml").read_text())
    for name in list(jobs)[::2]:
        folder = out / "jobs" / jobs[name].id
        if folder.is_dir():
            folder.rename(other / "jobs" / folder.name)
    both = collect([out, other])
    assert {job.name for job in both.jobs} == set(jobs) - {"quiz/iclm/seed-1"}
    assert both.not_run == {"quiz/iclm/seed-1": "not run"}
    assert len(both.jobs) == len({job.name for job in both.jobs})


def test_a_job_that_several_have_counts_once_as_a_report_has_it_else_as_the_first(study, tmp_path):
    out, jobs = study
    report, other = tmp_path / "report", tmp_path / "other"
    report.mkdir()
    for name, text in collect([out]).files().items():
        (report / name).write_text(text)
    shutil.copytree(out, other)
    finish(jobs["quiz/lora/seed-0"], other, correct=7)

    def correct(*folders):
        (job,) = (job for job in collect(folders).jobs if job.name == "quiz/lora/seed-0")
        return job.rows[0]["correct"]

    assert (correct(out, other), correct(other, out), correct(other, report)) == (0, 7, 0)


def test_two_studies_whose_jobs_share_a_name_are_not_mixed(study, tmp_path):
    out, _ = study
    other = tmp_path / "other"
    other.mkdir()
    changed = {**VALUES, "search": None, "training": {"batch_size": 4}}
    (other / "study.yaml").write_text(yaml.safe_dump(changed))
    for job in jobs_of(StudyRecipe.model_validate(changed), {}):
        finish(job, other)
    with pytest.raises(ConfigurationError, match=r"quiz/lora/seed-0 was done twice with different settings"):
        collect([out, other])


def test_without_the_recipe_all_that_is_done_is_reported(study):
    out, _ = study
    (out / "study.yaml").unlink()
    found = collect([out])
    assert len(found.jobs) == 9 and found.not_run == {} and found.jobs[0].line["reference"] is None


def test_the_files_of_a_report_say_as_much_as_the_study(study, tmp_path):
    found = collect([study[0]])
    for name, text in found.files().items():
        (tmp_path / name).write_text(text)
    again = collect([tmp_path])
    assert again.files() == found.files()
    assert [job.line for job in again.jobs] == [job.line for job in found.jobs]
    assert again.not_run == found.not_run
    (tmp_path / "tries.jsonl").unlink()
    assert collect([tmp_path]).files()["results.jsonl"] == found.files()["results.jsonl"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("results.jsonl", lambda text: text[:-20], r"results\.jsonl:5: no JSON object"),
        ("results.jsonl", lambda text: text.splitlines()[0] + "\n", r"lacks the rows of quiz/iclm/seed-0"),
        ("results.jsonl", lambda text: text.replace('"source"', '"s"'), r"results\.jsonl:1: source is missing"),
        ("jobs.jsonl", lambda text: "".join(text.splitlines(True)[2:]), "which jobs.jsonl does not name"),
        ("jobs.jsonl", lambda text: text.replace('"trial"', '"t"'), "quiz/lora/try-0: trial is missing"),
        ("questions.jsonl", lambda text: "[]\n", r"questions\.jsonl:1: data is missing"),
        ("questions.jsonl", lambda text: "", r"questions\.jsonl has 0 lines of quiz, not 1"),
    ],
    ids=["cut", "rows", "field", "job", "spec", "questions", "no_questions"],
)
def test_damaged_files_are_named(study, tmp_path, name, change, message):
    for file, text in collect([study[0]]).files().items():
        (tmp_path / file).write_text(change(text) if file == name else text)
    with pytest.raises(DataError, match=message):
        read_files(tmp_path)


def test_a_folder_with_neither_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="holds no study"):
        collect([tmp_path])


def test_a_job_without_the_kinds_of_its_questions_is_to_be_done_again(study):
    out, jobs = study
    path = out / "jobs" / jobs["quiz/lora/seed-0"].id / "done.json"
    path.write_text(json.dumps({key: value for key, value in DONE.items() if key != "questions"}))
    with pytest.raises(CheckpointError, match=r"questions is missing; remove .* to have it done again"):
        collect([out])


def test_every_try_is_reported_with_what_it_reached(study):
    out, jobs = study
    rates = [jobs[f"quiz/iclm/try-{n}"].spec["recipe"]["training"]["learning_rate"] for n in (0, 1)]
    tried = [entry for entry in summarise(collect([out]), resamples=20)["tried"] if entry["method"] == "iclm"]
    values = [{"training.learning_rate": rate} for rate in rates]
    assert [entry["values"] for entry in tried] == values
    assert [(entry["n"], entry["correct"]) for entry in tried] == [(8, {"mixture": 0}), (8, {"mixture": 1})]
    grid = {grid.name: grid for grid in grids(summarise(collect([out]), resamples=20))}["quiz/tries"]
    assert grid.rows[1][2:] == ["0.125", "–", "–", "–", "8"] and [row[0] for row in grid.rows[2:]] == ["iclm", "iclm"]


def test_tries_alone_make_a_report(tmp_path):
    values = {**VALUES, "grid": [{"methods": ["lora", "iclm"], "tries": 1}]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
    for job in jobs_of(StudyRecipe.model_validate(values), {}):
        finish(job, tmp_path, correct=4)
    found = collect([tmp_path])
    summary = summarise(found, resamples=20)
    assert [grid.name for grid in grids(summary)] == ["quiz/tries"] and summary["setup"]["reports"] == 0
    write_report(found, summary, tmp_path / "report")
    assert summarise(collect([tmp_path / "report"]), resamples=20) == summary


def test_the_majority_of_several_sources_is_that_of_all_their_questions():
    rows = {0: {"majority": 0.5, "n": 10}, 1: {"majority": 1.0, "n": 30}}
    results = SimpleNamespace(
        sources={number: {**row, "test_set": "t", "shifted": False} for number, row in rows.items()},
        asked=lambda group, source: np.ones(rows[source]["n"], bool),
        problems=lambda group: ([], np.ones(1)),
    )
    assert _about(results, SimpleNamespace(sources=(0, 1), kind=None))["majority"] == pytest.approx(35 / 40)


def test_a_question_of_corr2cause_in_other_words_is_of_the_same_problem(make_collected):
    found = make_collected({"lora": {"mixture": 0.5}})
    for one in found.jobs:
        for source, name in zip(one.line["evaluate"], ("official", "renamed", "paraphrased", "official"), strict=True):
            source.clear()
            source.update({"corr2cause": name, "split": "test", "seed": 0, "problems": 12})
    (results,) = by_data(found)
    assert results.problem_count == 12


def test_what_was_not_answered_is_no_choice(make_collected):
    found = make_collected({"lora": {"mixture": 0.5}})
    for one in found.jobs:
        for row in one.rows:
            row["given"] = "-2" * (row["n"] // 2)
    figures = summarise(found, resamples=200)["figures"]
    (one,) = (f for f in figures if (f["group"], f["format"], f["kind"]) == (OUT, None, "direct"))
    assert one["taken"] == [[0.0]] * 3  # every direct question is at an even place


def test_seconds_in_another_number_type_are_not_compared(collected):
    jobs = [
        dataclasses.replace(one, line={**one.line, "dtype": "bfloat16"}) if one.line["method"] == "iclm" else one
        for one in collected.jobs
    ]
    cost = {entry["method"]: entry for entry in summarise(Collected(jobs), resamples=200)["cost"]}
    assert cost["iclm"]["ratio"] is None and cost["iclm-no-mi"]["ratio"] is not None
