"""The study on a tiny base: the grid, honest choices, jobs done once, failures that stop nothing."""

import json
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import yaml

from iclm.data.example import Example, Message
from iclm.data.loading import read_source
from iclm.errors import ConfigurationError
from iclm.evaluation.scoring import score
from iclm.recipe import DataSource
from iclm.report.study_tables import not_run_line
from iclm.studies.study import grid, job, runner
from iclm.studies.study.recipe import Range, StudyRecipe, load_study
from iclm.studies.study.results import collect
from iclm.studies.study.rows import bits, from_bits, problem_sizes, problems_of
from iclm.studies.study.rows import test_names as names_of_tests
from iclm.studies.study.summary import summarise


@pytest.fixture
def values(tiny_llama_folder):
    def acre(regime, split, problems, format):
        return {"acre": regime, "split": split, "problems": problems, "format": format}

    formats = ("symbolic", "text")
    return {
        "base": str(tiny_llama_folder),
        "dtype": "float32",
        "model": {"lora_rank": 2, "router_dim": 4, "mi_projection": 4, "mi_queue": 16},
        "training": {"batch_size": 8, "router_examples": 8},
        "data": {
            "acre": {
                "train": [acre("IID", "train", 3, f) for f in formats],
                "validation": [acre("IID", "val", 2, f) for f in formats],
                "test": [acre(regime, "test", 2, f) for regime in ("IID", "Sys") for f in formats],
                "model": {"num_domains": 2},
            }
        },
        "methods": {
            "base": {"kind": "base"},
            "lora": {"method": "lora"},
            "iclm": {},
            "iclm-no-mi": {"model": {"mi_weight": 0.0}, "tuned_as": "iclm"},
        },
        "grid": [{"methods": ["base", "lora", "iclm", "iclm-no-mi"], "seeds": [0, 1]}],
    }


ROOT = Path(__file__).parents[2]
SEARCH = {"tries": 2, "seed": 9, "space": {"training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}}


def study_of(values, **changes):
    return StudyRecipe.model_validate({**values, **changes})


def rows_of(number, correct, **changes):
    row = {
        "trial": number,
        "split": "val",
        "shifted": False,
        "module": "mixture",
        "n": 10,
        "correct": correct,
        "job": "j",
    }
    return [{**row, **changes}]


# -- the grid ----------------------------------------------------------------------------------------------------------


def test_jobs_come_block_by_block_and_once(values):
    blocks = [{"methods": ["lora", "iclm"], "seeds": [0, 1]}, {"methods": ["base", "lora"], "seeds": [1, 2]}]
    names = [found.name for found in grid.jobs_of(study_of(values, grid=blocks), {})]
    first = ["acre/lora/seed-0", "acre/iclm/seed-0", "acre/lora/seed-1", "acre/iclm/seed-1"]
    assert names == [*first, "acre/base", "acre/lora/seed-2"]  # the untouched base depends on no seed


def test_a_seed_sets_the_training_problems_and_leaves_the_test_problems(values):
    first, second = (found for found in grid.jobs_of(study_of(values), {}) if found.method == "iclm")
    assert [source["seed"] for source in first.spec["recipe"]["data"]["train"]] == [0, 0]
    assert [source["seed"] for source in second.spec["recipe"]["data"]["train"]] == [1, 1]
    assert first.spec["evaluate"] == second.spec["evaluate"] and first.id != second.id
    assert second.spec["recipe"]["seed"] == 1


def test_the_same_settings_are_the_same_job_wherever_they_run(values):
    ids = [[found.id for found in grid.jobs_of(study_of(json.loads(json.dumps(values))), {})] for _ in range(2)]
    assert ids[0] == ids[1] and len(set(ids[0])) == len(ids[0]) == 7


def test_a_setting_that_was_added_later_leaves_the_jobs_that_do_not_use_it(values):
    spec = grid.jobs_of(study_of(values), {})[0].spec
    before = json.loads(json.dumps(spec))
    for place in (*before["evaluate"], *before["recipe"]["data"]["train"], *before["recipe"]["data"]["validation"]):
        assert place.pop("ask") == "letter"
    assert grid.digest(before) == grid.digest(spec)
    spec["evaluate"][0]["ask"] = "panel"
    assert grid.digest(before) != grid.digest(spec)


def test_a_job_on_a_file_is_another_job_when_the_file_has_changed(values, tmp_path):
    line = '{"input": [{"role": "user", "content": "1 + %d ="}], "ideal": "2"}\n'
    (tmp_path / "other.jsonl").write_text("".join(line % number for number in range(4)))
    data = {
        "acre": {**values["data"]["acre"], "test": [{"file": str(tmp_path / "other.jsonl"), "choices": ["1", "2"]}]}
    }
    study = study_of(values, data=data, grid=[{"methods": ["base"], "seeds": [0]}])
    runner.Study(study, tmp_path / "s").run()
    assert not runner.Study(study, tmp_path / "s").state.waiting
    (tmp_path / "other.jsonl").rename(tmp_path / "kept.jsonl")
    assert [done.rows[0]["n"] for done in collect([tmp_path / "s"]).jobs] == [4]  # a report does without the file
    (tmp_path / "other.jsonl").write_text("".join(line % number for number in range(6)))
    again = runner.Study(study, tmp_path / "s")
    assert [found.name for found in again.state.waiting] == ["acre/base"]
    again.run()
    found = collect([tmp_path / "s"])
    assert [done.rows[0]["n"] for done in found.jobs] == [6] and found.left_out == ["acre/base"]
    noted = load_study(tmp_path / "s" / runner.RECIPE)  # what it was run on is not what lies there now
    (tmp_path / "kept.jsonl").replace(tmp_path / "other.jsonl")
    for folder in (tmp_path / "s" / runner.JOBS).iterdir():
        (folder / job.DONE).unlink()
    state = runner.Study(noted, tmp_path / "s").run()
    assert "other.jsonl has another content than that whose sha256" in state.failed["acre/base"]


def test_shards_share_all_jobs_among_them(values):
    jobs = grid.jobs_of(study_of(values, grid=[{"methods": ["lora", "iclm"], "seeds": list(range(20))}]), {})
    parts = [{found.name for found in jobs if found.in_shard(part, 3)} for part in (1, 2, 3)]
    assert set.union(*parts) == {found.name for found in jobs} and sum(map(len, parts)) == len(jobs)
    assert all(parts)


# -- choices -----------------------------------------------------------------------------------------------------------


def test_tries_are_given_the_validation_questions_and_no_test_source(values):
    jobs = grid.jobs_of(study_of(values, search=SEARCH), {})
    tries = [found for found in jobs if found.trial is not None]
    assert [found.name for found in tries] == [f"acre/{m}/try-{n}" for m in ("lora", "iclm") for n in (0, 1)]
    for found in tries:
        assert {source["split"] for source in found.spec["evaluate"]} == {"val"}
        assert '"test"' not in json.dumps(found.spec)
        assert "Sys" not in json.dumps(found.spec)


def test_a_block_without_seeds_is_its_tries_alone(values):
    blocks = [{"methods": ["lora"], "seeds": [0]}, {"methods": ["iclm", "lora"], "tries": 1}]
    names = [found.name for found in grid.jobs_of(study_of(values, grid=blocks, search=SEARCH), {})]
    assert names == ["acre/lora/try-0", "acre/lora/try-1", "acre/lora/seed-0", "acre/iclm/try-0"]
    every = study_of(values, grid=[{"methods": ["iclm"]}], search=SEARCH)
    assert [found.trial for found in grid.jobs_of(every, {})] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"grid": [{"methods": ["iclm"]}]}, "no search whose tries could be run"),
        ({"grid": [{"methods": ["base"]}], "search": SEARCH}, "'base' has no tries of its own"),
        ({"grid": [{"methods": ["iclm-no-mi"]}], "search": SEARCH}, "'iclm-no-mi' has no tries of its own"),
        ({"grid": [{"methods": ["iclm"], "tries": 3}], "search": SEARCH}, "grid.0.tries is 3; search.tries is 2"),
        ({"grid": [{"methods": ["iclm"], "tries": 1, "seeds": [0]}], "search": SEARCH}, "a block without seeds"),
    ],
)
def test_a_block_without_seeds_that_has_nothing_to_run(values, changes, fault):
    with pytest.raises(ValueError, match=fault):
        study_of(values, **changes)


def test_a_file_whose_content_is_noted_is_the_same_in_another_folder():
    def spec(path, content="a" * 64):
        return {"evaluate": [{"file": path, "sha256": content, "domain": None}], "base": path}

    one = grid.digest({**spec("/home/alice/test.jsonl"), "base": "b"})
    assert grid.digest({**spec("C:\\data\\test.jsonl"), "base": "b"}) == one
    assert grid.digest({**spec("/home/alice/text.jsonl"), "base": "b"}) != one, "its name is that of a domain"
    assert grid.digest({**spec("/home/alice/test.jsonl", "b" * 64), "base": "b"}) != one
    assert grid.digest(spec("/one/x", None)) != grid.digest(spec("/two/x", None))


def test_a_study_goes_on_and_is_reported_where_its_files_lie_elsewhere_now(values, tmp_path):
    line = '{"input": [{"role": "user", "content": "1 + %d ="}], "ideal": "2"}\n'

    def study(folder, seeds):
        data = {**values["data"]["acre"], "test": [{"file": str(folder / "sums.jsonl"), "choices": ["1", "2"]}]}
        return study_of(values, data={"acre": data}, grid=[{"methods": ["lora"], "seeds": seeds}])

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sums.jsonl").write_text("".join(line % number for number in range(4)))
    first = runner.Study(study(tmp_path / "one", [0]), tmp_path / "s")
    first.run()
    second = runner.Study(study(tmp_path / "two", [0, 1]), tmp_path / "s")
    assert [found.name for found in second.state.waiting] == ["acre/lora/seed-1"]
    second.run()
    assert len(summarise(collect([tmp_path / "s"]), resamples=100)["figures"]) > 0


def test_a_copy_of_the_test_questions_is_no_validation(values, tmp_path):
    line = '{"input": [{"role": "user", "content": "1 + 1 ="}], "ideal": "2"}\n'
    for name in ("one.jsonl", "two.jsonl"):
        (tmp_path / name).write_text(line)
    one, two = (
        {"file": str(tmp_path / name), "choices": ["1", "2"], "shifted": False} for name in ("one.jsonl", "two.jsonl")
    )
    for part, fault in (
        ("validation", "data.acre: validation.0 asks problems of a test"),
        ("train", "data.acre.test.0"),
    ):
        own = {key: [{**one, "file": str(tmp_path / "none.jsonl")}] for key in ("train", "validation")}
        data = {"acre": {**own, part: [one], "test": [two]}}
        study = study_of(values, data=data, grid=[{"methods": ["base"], "seeds": [0]}])
        with pytest.raises(ConfigurationError, match=fault):
            runner.Study(study, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_data_can_take_what_was_chosen_for_others(values):
    data = {**values["data"], "more": {**values["data"]["acre"], "tuned_as": "acre"}}
    study = study_of(values, data=data, search=SEARCH, grid=[{"data": ["more"], "methods": ["lora"], "seeds": [0]}])
    *tries, report = grid.jobs_of(study, {})
    assert [found.name for found in tries] == ["acre/lora/try-0", "acre/lora/try-1"] and report.spec is None
    results = {found.id: rows_of(found.trial, 3 + found.trial) for found in tries}
    report = grid.jobs_of(study, results)[-1]
    assert (report.name, report.chosen) == ("more/lora/seed-0", tries[1].chosen)


@pytest.mark.parametrize(
    ("others", "changes", "fault"),
    [
        ({"more": "none"}, {}, "data.more.tuned_as is 'none'; name a data set with tries of its own"),
        ({"more": "acre", "third": "more"}, {}, "data.third.tuned_as is 'more'"),
        ({"more": "acre"}, {"grid": [{"data": ["more"], "methods": ["iclm"]}]}, "there are no tries on 'more'"),
    ],
)
def test_data_tuned_as_something_without_tries(values, others, changes, fault):
    acre = values["data"]["acre"]
    data = {"acre": acre, **{name: {**acre, "tuned_as": other} for name, other in others.items()}}
    with pytest.raises(ValueError, match=fault):
        study_of(values, data=data, search=SEARCH, **changes)


def test_what_is_tuned_as_other_data_is_not_tested_on_what_is_chosen_by_there(values):
    acre = values["data"]["acre"]
    own = {**acre, "validation": [{**acre["validation"][0], "seed": 77}], "tuned_as": "acre"}
    study_of(values, data={"acre": acre, "more": own}, search=SEARCH)
    own["test"] = [{**acre["validation"][0], "problems": 1, "format": "text"}]
    with pytest.raises(
        ValueError, match=r"data\.more\.tuned_as is 'acre', whose validation\.0 asks problems that more is"
    ):
        study_of(values, data={"acre": acre, "more": own}, search=SEARCH)
    own |= {"test": acre["test"], "training": {"learning_rate": 5e-5}}
    with pytest.raises(ValueError, match=r"data\.more sets training\.learning_rate, which is chosen for 'acre'"):
        study_of(values, data={"acre": acre, "more": own}, search=SEARCH)


SPLITS_OF = ("train", "validation", "test")


def regime(name, split, seed):
    return {"acre": name, "split": split, "seed": seed, "problems": 2, "format": "text"}


def test_what_is_tuned_as_other_data_is_not_tuned_on_what_its_tests_hold_out(values):
    own = {"train": [regime("Sys", "train", 0)], "test": [regime("Sys", "test", 0)]}
    own["validation"] = [regime("Sys", "train", 1000002)]
    own["model"] = {"num_domains": 1}
    blocks = [{"data": ["sys"], "methods": ["lora", "iclm-no-mi"], "seeds": [0]}]
    data = {**values["data"], "sys": {**own, "tuned_as": "acre"}}
    with pytest.raises(
        ValueError,
        match=r"data\.sys\.tuned_as is 'acre', whose validation\.0 lies outside the training distribution of",
    ):
        study_of(values, data=data, search=SEARCH, grid=blocks)
    data["sys"] = {**own, "search": False}
    found = grid.jobs_of(study_of(values, data=data, search=SEARCH, grid=blocks), {})
    assert [job.name for job in found] == ["sys/lora/seed-0", "sys/iclm-no-mi/seed-0"]
    assert all(job.spec is not None and not job.chosen and not job.needs for job in found)
    raven = {**own, "tuned_as": "acre"}
    for part, split in (("train", "train"), ("validation", "val"), ("test", "test")):
        raven[part] = [{"raven": "center_single", "split": split, "problems": 2, "format": "text"}]
    study_of(values, data={**values["data"], "raven": raven}, search=SEARCH)  # other problems altogether
    four = {
        **{part: [{**sources[0], "raven": "distribute_four"}] for part, sources in raven.items() if part in SPLITS_OF},
        "model": {"num_domains": 1},
        "tuned_as": "raven",
    }
    raven.pop("tuned_as")
    study_of(values, data={**values["data"], "raven": raven, "four": four}, search=SEARCH)  # nothing of it is held out
    four |= {"train": raven["train"], "validation": raven["validation"]}
    raven["validation"] = [{**raven["validation"][0], "raven": "distribute_four"}]
    raven["train"] = [{**raven["train"][0], "raven": "distribute_four"}]
    with pytest.raises(ValueError, match=r"data\.four\.tuned_as is 'raven', whose validation\.0 lies outside"):
        study_of(values, data={**values["data"], "raven": raven, "four": four}, search=SEARCH)
    official = {"file": "IID_val.json", "format": "text"}
    data = {"acre": {**values["data"]["acre"], "validation": [official]}, "sys": {**own, "tuned_as": "acre"}}
    with pytest.raises(ValueError, match=r"data\.sys\.tuned_as is 'acre', whose validation\.0 lies outside"):
        study_of(values, data=data, search=SEARCH, grid=blocks)


@pytest.mark.parametrize(
    ("more", "changes", "fault"),
    [
        ({"tuned_as": "acre", "search": False}, {}, "tuned_as is 'acre' and search false"),
        ({"search": False}, {"grid": [{"data": ["more"], "methods": ["iclm"]}]}, "there are no tries on 'more'"),
        (
            {"search": False},
            {"third": {"tuned_as": "more"}},
            "data.third.tuned_as is 'more'; name a data set with tries",
        ),
    ],
)
def test_data_without_a_search(values, more, changes, fault):
    acre = values["data"]["acre"]
    data = {"acre": acre, "more": {**acre, **more}}
    data |= {"third": {**acre, **changes["third"]}} if "third" in changes else {}
    with pytest.raises(ValueError, match=fault):
        study_of(values, data=data, search=SEARCH, **{k: v for k, v in changes.items() if k != "third"})


def test_reports_wait_for_their_tries_and_take_the_best(values):
    study = study_of(values, search=SEARCH)
    jobs = {found.name: found for found in grid.jobs_of(study, {})}
    assert jobs["acre/iclm/seed-0"].spec is None and jobs["acre/base"].spec is not None
    with pytest.raises(ValueError, match="waits"):
        _ = jobs["acre/iclm/seed-0"].id
    results = {jobs[f"acre/iclm/try-{n}"].id: rows_of(n, correct) for n, correct in ((0, 4), (1, 6))}
    later = {found.name: found for found in grid.jobs_of(study, results)}
    assert later["acre/lora/seed-0"].spec is None
    drawn = dict(jobs["acre/iclm/try-1"].chosen)["training.learning_rate"]
    for name in ("acre/iclm/seed-0", "acre/iclm-no-mi/seed-1"):
        assert later[name].spec["recipe"]["training"]["learning_rate"] == drawn
    assert later["acre/iclm-no-mi/seed-1"].spec["recipe"]["model"]["mi_weight"] == 0.0


def test_an_ablation_trains_as_the_best_try_did_also_where_that_is_the_first(values):
    methods = {**values["methods"], "iclm": {"training": {"learning_rate": 2e-3}}}
    study = study_of(values, methods=methods, search=SEARCH)
    tries = {
        found.trial: found for found in grid.jobs_of(study, {}) if found.method == "iclm" and found.trial is not None
    }
    results = {tries[0].id: rows_of(0, 6), tries[1].id: rows_of(1, 4)}
    later = {found.name: found for found in grid.jobs_of(study, results)}
    for name in ("acre/iclm/seed-0", "acre/iclm-no-mi/seed-0"):
        assert later[name].spec["recipe"]["training"]["learning_rate"] == 2e-3


def test_a_shard_has_the_tries_that_its_reports_need_and_all_shards_have_all_jobs(values):
    study = study_of(values, search=SEARCH, grid=[{"methods": ["lora", "iclm", "iclm-no-mi"], "seeds": [0, 1, 2, 3]}])
    names = {found.name for found in grid.jobs_of(study, {})}
    parts = [runner.Study(study, Path("nowhere"), shard=(part, 3)).state.jobs for part in (1, 2, 3)]
    assert {found.name for part in parts for found in part} == names
    reports = [found.name for part in parts for found in part if found.trial is None]
    assert len(reports) == len(set(reports)) == 12
    for part in parts:
        assert {name for found in part for name in found.needs} == {f.name for f in part if f.trial is not None}


def test_only_a_report_brings_its_tries(values, tmp_path):
    found = runner.Study(study_of(values, search=SEARCH), tmp_path, only=["acre/iclm-no-mi/seed-0"]).state.jobs
    assert [one.name for one in found] == ["acre/iclm/try-0", "acre/iclm/try-1", "acre/iclm-no-mi/seed-0"]


def test_every_method_has_the_same_draws_and_the_first_try_is_the_recipes_own(values):
    jobs = grid.jobs_of(study_of(values, search={**SEARCH, "tries": 3}), {})
    rates = {
        method: [
            j.spec["recipe"]["training"]["learning_rate"] for j in jobs if j.method == method and j.trial is not None
        ]
        for method in ("lora", "iclm")
    }
    assert rates["lora"] == rates["iclm"] and rates["lora"][0] == 1e-3
    assert len(set(rates["lora"])) == 3 and all(1e-4 <= rate <= 1e-2 for rate in rates["lora"])


@pytest.mark.parametrize("change", [{"split": "test"}, {"shifted": True}, {"trial": None}, {"trial": 1}], ids=str)
def test_choosing_refuses_rows_that_are_not_validation_rows_of_the_try(change):
    with pytest.raises(ConfigurationError, match="cannot choose"):
        grid.choose({0: rows_of(0, 5, **change)})


def test_of_equal_tries_the_first_is_taken_and_only_the_mixture_counts():
    tries = {0: rows_of(0, 5), 1: rows_of(1, 5) + rows_of(1, 10, module="invariant")}
    assert grid.choose(tries) == 0


def test_draws_stay_in_their_ranges_and_more_of_them_leave_the_first_as_they_are():
    space = {"a": Range(low=0.1, high=0.3), "b": Range(values=[1, 2]), "c": Range(low=1e-4, high=1e-2, log=True)}
    found = grid.draws(space, 0, 64)
    assert all(0.1 <= f["a"] <= 0.3 and f["b"] in (1, 2) and 1e-4 <= f["c"] <= 1e-2 for f in found)
    assert sum(f["c"] < 1e-3 for f in found) == 32  # half of them below the middle of the logarithm
    assert sum(f["b"] == 1 for f in found) == 32
    assert grid.draws(space, 0, 5) == found[:5] != grid.draws(space, 1, 5)


# -- jobs --------------------------------------------------------------------------------------------------------------


def test_bits_come_back():
    right = np.random.default_rng(0).random(37) < 0.5
    assert (from_bits(bits(right.tolist()), 37) == right).all()


def test_a_study_is_run_once_and_its_rows_say_what_they_are_of(values, tmp_path):
    study = study_of(values, grid=[{"methods": ["base", "iclm"], "seeds": [3]}])
    state = runner.Study(study, tmp_path / "s").run()
    assert sorted(state.done) == ["acre/base", "acre/iclm/seed-3"] and not state.failed
    found = {done.line["method"]: done.rows for done in collect([tmp_path / "s"]).jobs}
    assert {row["module"] for row in found["iclm"]} == {"mixture", "invariant", "domain_0", "domain_1", "oracle"}
    sets = [(row["test_set"], row["format"], row["shifted"]) for row in found["base"]]
    expected = [
        (f"ACRE {regime}", format, regime == "Sys") for regime in ("IID", "Sys") for format in ("symbolic", "text")
    ]
    assert sets == expected
    for row in found["iclm"]:
        assert row["n"] == 8 == sum(n for _, n in row["by_kind"].values())
        assert from_bits(row["answers"], 8).sum() == row["correct"] == sum(c for c, _ in row["by_kind"].values())
        assert (row["train_set"], row["seed"], row["split"], row["strict"]) == ("acre", 3, "test", False)
        assert row["trainable"] > 0 and row["examples"] == 24 and row["problems"] == 4
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}
    assert len(before) == 2
    runner.Study(study, tmp_path / "s").run()
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}


def test_a_failed_job_is_reported_tried_again_and_stops_nothing(values, tmp_path):
    broken = {**values["methods"], "iclm": {"model": {"target_modules": ["no_such_layer"]}}}
    study = study_of(values, methods=broken, grid=[{"methods": ["iclm", "base"], "seeds": [0]}])
    state = runner.Study(study, tmp_path / "s").run()
    assert list(state.done) == ["acre/base"]
    assert "no_such_layer" in state.failed["acre/iclm/seed-0"] and "\n" not in state.failed["acre/iclm/seed-0"]
    again = runner.Study(study, tmp_path / "s")
    assert [found.name for found in again.state.waiting] == ["acre/iclm/seed-0"]


def test_a_job_that_was_cut_short_goes_on_and_ends_the_same(values, tmp_path, monkeypatch):
    spec = next(j for j in grid.jobs_of(study_of(values), {}) if j.method == "iclm").spec
    rows = {}
    for name in ("whole", "cut"):
        folder = tmp_path / name / "0"
        folder.mkdir(parents=True)
        (folder / job.SPEC).write_text(json.dumps(spec))
        if name == "cut":  # killed while it was evaluated
            with monkeypatch.context() as patch:
                patch.setattr(job, "evaluate_job", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    job.run_job(folder)
            assert not (folder / job.DONE).exists() and (folder / "run" / "run.json").is_file()
            patched = (folder / "run" / "model.safetensors").stat().st_mtime_ns
        job.run_job(folder)
        if name == "cut":
            assert (folder / "run" / "model.safetensors").stat().st_mtime_ns == patched  # it was not trained again
        rows[name] = [json.loads(line) for line in (folder / job.ROWS).read_text().splitlines()]
    for whole, cut in zip(rows["whole"], rows["cut"], strict=True):
        assert {**whole, "seconds": 0} == {**cut, "seconds": 0}


def test_the_seconds_of_a_resumed_job_are_those_of_all_its_processes(values, tmp_path, monkeypatch):
    spec = next(j for j in grid.jobs_of(study_of(values), {}) if j.method == "iclm").spec
    folder = tmp_path / "0"
    folder.mkdir()
    (folder / job.SPEC).write_text(json.dumps(spec))
    trained = job._trained
    monkeypatch.setattr(job, "_trained", lambda *a: (trained(*a)[0], {**trained(*a)[1], "train_seconds": 5000.0}))
    assert 5000 <= job.run_job(folder)["total_seconds"] < 6000


def test_files_of_one_name_are_told_apart_by_their_folders():
    files = ["a/iid/test.jsonl", "b/iid/test.jsonl", "a/ood.jsonl"]
    sources = [DataSource(file=file) for file in files] + [DataSource(**ACRE)]
    assert names_of_tests(sources) == ["a/iid/test", "b/iid/test", "ood", "ACRE IID"]


def test_two_splits_of_one_distribution_are_two_test_sets():
    sources = [
        DataSource.model_validate({"acre": regime, "split": split, "problems": 1, "format": "text"})
        for regime, split in (("Sys", "train"), ("Sys", "test"), ("IID", "test"))
    ]
    assert names_of_tests(sources) == ["ACRE Sys, train", "ACRE Sys, test", "ACRE IID"]


def test_a_job_that_another_process_does_is_left_to_it(values, tmp_path):
    from filelock import FileLock

    study = runner.Study(study_of(values, grid=[{"methods": ["base"], "seeds": [0]}]), tmp_path / "s")
    folder = study.folder(study.state.jobs[0])
    folder.mkdir(parents=True)
    with FileLock(folder / job.LOCK):
        state = study.run()
    assert state.busy == {"acre/base"} and not state.done and not state.failed


def test_shots_are_solved_training_examples_of_the_same_domain(values):
    from iclm.data.loading import read_sources

    study = study_of(values)
    train, test = (read_sources(getattr(study.data["acre"], part)) for part in ("train", "test"))
    found = job.with_shots(test, train, 2, seed=0)
    assert all(len(new.messages) == len(old.messages) + 1 for new, old in zip(found, test, strict=True))
    known = {example.domain: [e for e in train if e.domain == example.domain] for example in train}
    for new in found:
        solved = new.messages[0].content
        assert sum(f"{e.prompt}{e.answer}\n" in solved for e in known[new.domain]) >= 2
    with pytest.raises(ConfigurationError, match=r"shots is 4; .* 3 problems"):
        job.with_shots(test, train, 4, seed=0)


def test_panels_are_asked_for_once_however_many_ways_they_are_scored(values, tmp_path, monkeypatch):
    panels = {"raven": "center_single", "format": "text", "ask": "panel", "split": "test", "problems": 3}
    tests = [panels, {**panels, "raven": "distribute_four"}, {**panels, "score": "mean"}]
    spec = next(j for j in grid.jobs_of(study_of(values), {}) if j.method == "iclm").spec
    spec["evaluate"] = [DataSource.model_validate(source).model_dump(mode="json") for source in tests]
    asked = []
    monkeypatch.setattr(job, "score", lambda *a, **k: asked.append(len(a[1])) or score(*a, **k))
    (tmp_path / job.SPEC).write_text(json.dumps(spec))
    job.run_job(tmp_path)
    rows = runner.read_rows(tmp_path)
    assert asked == [3, 3]
    assert [(row["source"], row["score"]) for row in rows if row["module"] == "mixture"] == [
        (0, "sum"),
        (1, "sum"),
        (2, "mean"),
    ]


def test_a_study_goes_on_with_jobs_of_an_earlier_version(values, tmp_path):
    study = study_of(values, grid=[{"methods": ["base", "lora"], "seeds": [0]}])
    runner.Study(study, tmp_path / "s").run()
    now = summarise(collect([tmp_path / "s"]), resamples=100)
    folder = next(path for path in (tmp_path / "s" / runner.JOBS).iterdir() if "lora" in (path / job.SPEC).read_text())
    for name in (job.SPEC, job.DONE):
        found = json.loads((folder / name).read_text())
        for source in found.get("evaluate", ()):
            del source["sha256"], source["score"]
        for kinds in found.get("questions", ()):
            kinds.pop("indirect by exclusion", None)
        (folder / name).write_text(json.dumps(found))
    rows = [json.loads(line) for line in (folder / job.ROWS).read_text().splitlines()]
    for row in rows:
        del row["score"], row["given"]
    (folder / job.ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert not runner.Study(study, tmp_path / "s").state.waiting
    then = summarise(collect([tmp_path / "s"]), resamples=100)
    assert [g["kind"] for g in then["groups"]] == [g["kind"] for g in now["groups"]]
    plain = [[{k: v for k, v in f.items() if k != "taken"} for f in found["figures"]] for found in (now, then)]
    assert plain[0] == plain[1]


def test_sources_of_several_kinds_of_problems_are_reported_together(values, tmp_path):
    acre = values["data"]["acre"]
    one = {"acre": "IID", "split": "test", "problems": 1, "format": "symbolic"}  # none of its questions needs exclusion
    others = [
        {"corr2cause": "official", "split": "test", "problems": 4},
        {"raven": "center_single", "split": "test", "problems": 3, "format": "text"},
    ]
    data = {"acre": {**acre, "test": [one, *acre["test"], *others]}}
    study = study_of(values, data=data, grid=[{"methods": ["base", "lora"], "seeds": [0]}])
    runner.Study(study, tmp_path / "s").run()
    found = summarise(collect([tmp_path / "s"]), resamples=100)
    assert all(group["n"] > 0 for group in found["groups"])
    labels = [(group["group"], group["format"], group["kind"]) for group in found["groups"]]
    assert len(labels) == len(set(labels)) and not any(f["mean"] != f["mean"] for f in found["figures"])


LETTERS = [{"raven": "center_single", "problems": 2, "format": "text"}]
ACRE = {"acre": "IID", "problems": 2, "format": "text"}
PANELS = [{**LETTERS[0], "ask": "panel"}]

# -- recipes and folders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": [{"methods": ["lorra"], "seeds": [0]}]}, r"grid\.0\.methods names 'lorra'; known are base, "),
        ({"grid": [{"methods": ["lora"], "seeds": [0], "data": ["x"]}]}, r"grid\.0\.data names 'x'; known are acre"),
        ({"search": {**SEARCH, "seed": 1}}, r"grid\.0\.seeds holds 1, the seed of the search"),
        ({"methods": {"lora": {"tuned_as": "x"}}, "grid": [{"methods": ["lora"], "seeds": [0]}]}, "tuned_as is 'x'"),
        ({"methods": {"lora": {"kind": "base", "model": {"lora_rank": 2}}}}, "untouched base takes no model"),
        ({"methods": {"lora": {"kind": "strategy"}}}, "belong together"),
        ({"methods": {"lora": {"strategy": "majority"}}}, "belong together"),
        (
            {"methods": {"lora": {"kind": "strategy", "strategy": "x"}}},
            "strategy is 'x'; known are majority; .*shallow rule",
        ),
        (
            {"methods": {"lora": {"kind": "strategy", "strategy": "majority", "tuned_as": "lora"}}},
            "a cheap strategy takes no",
        ),
        (
            {
                "methods": {"b": {"kind": "base"}, "lora": {"tuned_as": "b"}},
                "grid": [{"methods": ["lora"], "seeds": [0]}],
            },
            "name a method with tries of its own",
        ),
        ({"reference": "x"}, "reference is 'x'"),
        ({"grid": [{"methods": ["lora"], "seeds": [0, 0]}]}, r"grid\.0: seeds is \[0, 0\]; each comes once"),
        (
            {"methods": {**{name: {} for name in ("base", "lora", "iclm-no-mi")}, "iclm": {"compared_with": ["lora"]}}},
            "methods.iclm.compared_with names 'lora'; name methods other than itself, the reference",
        ),
        ({"methods": {"lora": {"modle": {}}}}, r"methods\.lora\.modle is not a recipe key; did you mean model\?"),
        ({"search": {**SEARCH, "space": {"training.learning_rate": {"low": 2, "high": 1}}}}, "low must be below high"),
        ({"seeds": [1]}, "seeds is not a recipe key"),
        ({"search": {**SEARCH, "space": {"seed": {"values": [5]}}}}, "space names 'seed'; name a field of model or"),
        ({"search": {**SEARCH, "space": {"training.rate": {"values": [5]}}}}, "space names 'training.rate'"),
        (
            {"search": {**SEARCH, "space": {"model.mi_weight": {"low": 0.1, "high": 1.0}}}},
            "methods.iclm-no-mi sets model.mi_weight, which is chosen for 'iclm'",
        ),
        (
            {"data": {"a": {"train": [ACRE], "validation": [{**ACRE, "split": "test"}], "test": [ACRE]}}},
            "validation.0 is of split test; hyper-parameters are chosen by it",
        ),
        (
            {
                "data": {
                    "a": {"train": [ACRE], "validation": [{**ACRE, "split": "val"}], "test": [{**ACRE, "split": "val"}]}
                }
            },
            "validation.0 asks problems of a test source",
        ),
        (
            {"data": {"a": {"train": [ACRE], "validation": [{**ACRE, "split": "val", "acre": "Sys"}], "test": [ACRE]}}},
            "validation.0 lies outside the training distribution",
        ),
        (
            {"data": {"r": dict.fromkeys(("train", "validation", "test"), LETTERS + PANELS)}},
            "validation asks RAVEN problems for letters and for panels",
        ),
        ({"methods": {"b/lora": {}}}, "methods holds the name 'b/lora'; a job is named data/method"),
        (
            {"data": {"a\nb": {"train": [ACRE], "validation": [{**ACRE, "split": "val"}], "test": LETTERS}}},
            "data holds the name",
        ),
    ],
    ids=[
        *("method", "data", "seed", "tuned_as", "base", "no_strategy", "no_kind", "strategy", "tuned", "untunable"),
        *(
            "reference",
            "twice",
            "compared",
            "typo",
            "range",
            "section",
            "space",
            "field",
            "lost",
            "split",
            "same",
            "shifted",
            "asked",
            "slash",
            "line",
        ),
    ],
)
def test_faults_of_a_recipe_are_named(values, tmp_path, change, message):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**values, **change}))
    with pytest.raises(ConfigurationError, match=message):
        load_study(path)


def test_a_method_with_settings_that_no_training_takes_is_named_before_anything_runs(values, tmp_path):
    study = study_of(values, methods={"lora": {"training": {"epoch": 2}}}, grid=[{"methods": ["lora"], "seeds": [0]}])
    with pytest.raises(ConfigurationError, match=r"method lora on acre: training\.epoch is not a recipe key.*epochs"):
        runner.Study(study, tmp_path / "s")
    methods = {"lora": {"method": "lora"}, "more": {"model": {"lora_rnk": 2}, "tuned_as": "lora"}}
    study = study_of(values, methods=methods, search=SEARCH, grid=[{"methods": ["more"], "seeds": [0]}])
    with pytest.raises(ConfigurationError, match=r"method more on acre: model\.lora_rnk is not a recipe key"):
        runner.Study(study, tmp_path / "s")  # not only when its tries are done
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("text", ["3", "0/2", "3/2", "a/b", "1/0"])
def test_wrong_shards_are_refused(values, tmp_path, text):
    with pytest.raises(ConfigurationError, match="shard is"):
        runner.Study(study_of(values), tmp_path / "s", shard=runner.parse_shard(text))


def test_a_folder_with_something_else_is_refused(values, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="something else than a study"):
        runner.Study(study_of(values), tmp_path)


def test_only_names_parts_or_patterns_of_job_names(values, tmp_path):
    study = study_of(values)
    names = [found.name for found in runner.Study(study, tmp_path, only=["lora", "acre/iclm/*-1"]).state.jobs]
    assert names == ["acre/lora/seed-0", "acre/lora/seed-1", "acre/iclm/seed-1"]
    with pytest.raises(ConfigurationError, match="fits no job; names are such as acre/base,"):
        runner.Study(study, tmp_path, only=["raven"])


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/studies/*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_can_be_planned(path):
    study = load_study(path)
    jobs = grid.jobs_of(study, {})
    assert {found.method for found in jobs} == set(study.methods)
    results = {found.id: rows_of(found.trial, 5) for found in jobs if found.trial is not None}
    assert all(found.spec is not None for found in grid.jobs_of(study, results))


# -- what must not be asked, and what has no score ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "changes", "why"),
    [
        ("test", {"split": "train"}, r"data\.acre\.test\.0 .* asks problems that are trained on with seed 0"),
        ("test", {"split": "train", "seed": 1, "format": "text"}, "trained on with seed 1"),
        ("test", {"split": "train", "seed": 9}, "trained on with seed 9"),  # that of the search
        ("validation", {"split": "train", "seed": 1}, r"data\.acre\.validation\.0 .* trained on with seed 1"),
        ("validation", {"split": "val", "problems": 7, "regime": "Sys"}, "outside the training distribution"),
    ],
)
def test_a_source_whose_problems_are_trained_on_is_refused(values, part, changes, why):
    source = {"acre": changes.pop("regime", "IID"), "problems": 2, "format": "symbolic", **changes}
    data = {"acre": {**values["data"]["acre"], part: [source]}}
    with pytest.raises(ValueError, match=why):
        study_of(values, data=data, search=SEARCH)


def test_a_split_of_training_with_a_seed_of_its_own_may_be_asked(values):
    source = {"acre": "IID", "split": "train", "seed": 1000003, "problems": 2, "format": "symbolic"}
    assert study_of(values, data={"acre": {**values["data"]["acre"], "test": [source]}}, search=SEARCH)


def test_validation_and_test_share_no_problem_however_many_and_however_rendered(values):
    test = [{"acre": "IID", "split": "val", "problems": 5, "format": "text"}]
    with pytest.raises(ValueError, match=r"validation\.0 asks problems of a test source"):
        study_of(values, data={"acre": {**values["data"]["acre"], "test": test}})


def test_a_try_without_rows_chooses_nothing():
    with pytest.raises(ConfigurationError, match="try 1 has no row"):
        grid.choose({0: rows_of(0, 3), 1: []})


def test_a_module_without_scores_is_right_nowhere_and_the_report_says_so(values, tmp_path):
    methods = {**values["methods"], "lora": {"method": "lora", "training": {"learning_rate": 1e30, "max_grad_norm": 0}}}
    study = study_of(values, methods=methods, grid=[{"methods": ["base", "lora"], "seeds": [0]}])
    state = runner.Study(study, tmp_path / "s").run()
    assert state.done["acre/lora/seed-0"]["diverged"] and "diverged" not in state.done["acre/base"]
    found = collect([tmp_path / "s"])
    rows = {job.line["method"]: job.rows for job in found.jobs}
    assert all(row["correct"] == 0 for row in rows["lora"]) and any(row["correct"] for row in rows["base"])
    summary = summarise(found, resamples=100)
    assert summary["diverged"] == ["acre/lora/seed-0"]
    assert "answered wrong: acre/lora/seed-0" in not_run_line(summary)


def test_what_cannot_be_asked_is_found_before_anything_is_trained(values, tmp_path):
    test = [{"file": str(tmp_path / "gone.jsonl")}]
    data = {"acre": {**values["data"]["acre"], "test": test}}
    study = study_of(values, data=data, grid=[{"methods": ["lora"], "seeds": [0]}])
    state = runner.Study(study, tmp_path / "s").run()
    assert "gone.jsonl" in state.failed["acre/lora/seed-0"]
    assert not list((tmp_path / "s").glob("jobs/*/run"))


def test_a_folder_of_another_study_is_left_alone(values, tmp_path):
    runner.Study(study_of(values), tmp_path / "s").write_recipe()
    kept = (tmp_path / "s" / runner.RECIPE).read_text()
    more = study_of(values, training={"batch_size": 2}, grid=[{"methods": ["lora", "iclm"], "seeds": [0, 7]}])
    assert runner.Study(more, tmp_path / "s").state.waiting  # other settings, but jobs of the same names
    other = study_of(values, grid=[{"methods": ["lora"], "seeds": [5]}])
    with pytest.raises(ConfigurationError, match=r"holds another study, of jobs such as acre/base"):
        runner.Study(other, tmp_path / "s")
    assert (tmp_path / "s" / runner.RECIPE).read_text() == kept


def test_variants_of_a_distribution_are_told_apart_in_its_name_where_there_are_several():
    def raven(**values):
        return DataSource.model_validate({"raven": "left_right", "problems": 2, "format": "text", **values})

    assert names_of_tests([raven(), raven(answers="fair")]) == ["RAVEN left_right, iraven", "RAVEN left_right, fair"]
    assert names_of_tests([raven(), raven(score="mean")]) == ["RAVEN left_right"] * 2  # never in one table
    assert names_of_tests([raven(), raven(split="test")]) == ["RAVEN left_right, train", "RAVEN left_right, test"]
    questions = [DataSource(corr2cause="official", problems=4, balanced=balanced) for balanced in (True, False)]
    assert names_of_tests(questions[:1]) == ["CORR2CAUSE official"]
    assert names_of_tests(questions) == ["CORR2CAUSE official, balanced", "CORR2CAUSE official, unbalanced"]


def test_questions_of_one_problem_that_comes_again_are_of_one_problem():
    found = read_source(DataSource(corr2cause="official", problems=60, balanced=True, split="test", variables=[3, 4]))
    sizes = problem_sizes(found)
    assert isinstance(sizes, dict)
    numbers = problems_of(sizes, len(found))
    groups = [example.group for example in found]
    assert len(set(numbers)) == len(set(groups)) < len(list(groupby(groups)))
    assert all((numbers[i] == numbers[j]) == (groups[i] == groups[j]) for i in range(60) for j in range(60))
    assert problems_of(4, 8).tolist() == [0] * 4 + [1] * 4 and problems_of([1, 2], 3).tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match="not 9"):
        problems_of([4, 4], 9)


def val_row(number, correct, n=10):
    return {
        "trial": number,
        "split": "val",
        "shifted": False,
        "module": "mixture",
        "n": n,
        "correct": correct,
        "job": "j",
    }


def test_a_try_is_chosen_by_all_its_questions_however_they_are_shared_among_sources():
    tries = {0: [val_row(0, 9), val_row(0, 30, 100)], 1: [val_row(1, 5), val_row(1, 60, 100)]}
    assert grid.choose(tries) == 1


def test_another_seed_gives_other_shots():
    train = [Example((Message("user", f"q {n}"),), ("a", "b"), "a", domain="d", group=f"p{n}") for n in range(30)]
    asked = [Example((Message("user", "?"),), ("a", "b"), "a", domain="d")]
    found = {job.with_shots(asked, train, 2, seed)[0].messages[0].content for seed in range(4)}
    assert len(found) > 1
