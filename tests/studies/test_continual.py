"""Sequences on a tiny base: earlier modules stay bitwise the same, a cut sequence ends in the same matrix, bad input."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from iclm.cli import app
from iclm.errors import CheckpointError, ConfigurationError, DataError
from iclm.studies.continual import job as jobs
from iclm.studies.continual import sequence as sequences
from iclm.studies.continual.boundaries import boundary_rows
from iclm.studies.continual.recipe import ContinualRecipe, load_continual, told_boundaries, training_recipe
from iclm.studies.continual.runner import Experiment, sequence_jobs
from iclm.studies.continual.sequence import TaskSequence
from iclm.studies.continual.stream import Stream
from iclm.studies.continual.units import Reader

ROOT = Path(__file__).parents[2]
TASKS = ("symbolic", "words", "raven")


@pytest.fixture(scope="module")
def values(tiny_llama_folder):
    """A recipe of three tasks with twelve training and eight test questions each."""

    def acre(split, problems, format):
        return {"acre": "IID", "split": split, "problems": problems, "format": format}

    def raven(split, problems):
        return {"raven": "center_single", "split": split, "problems": problems, "format": "symbolic"}

    return {
        "base": str(tiny_llama_folder),
        "dtype": "float32",
        "model": {"lora_rank": 2, "mi_projection": 4, "mi_queue": 16, "split_layer": 2},
        "training": {"batch_size": 8, "logging_steps": 1, "learning_rate": 0.01},
        "tasks": {
            "symbolic": {"train": [acre("train", 3, "symbolic")], "test": [acre("test", 2, "symbolic")]},
            "words": {"train": [acre("train", 3, "text")], "test": [acre("test", 2, "text")]},
            "raven": {"train": [raven("train", 12)], "test": [raven("test", 6)]},
        },
        "methods": {"iclm": {}},
        "novelty": {"chunk": 8},
        "ewc": {"problems": 2},
        "replay": {"problems": 2},
    }


def write_job(folder, values, method="iclm", **changes):
    """Write the job of a method; returns its folder."""
    recipe = ContinualRecipe.model_validate({**values, **changes})
    job = next(job for job in sequence_jobs(recipe, "tiny") if job.spec["method"] == method)
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(job.spec))
    return folder


def sequence_of(folder, values, **changes):
    return TaskSequence(write_job(folder, values, **changes))


def module_state(model, module):
    ends = (f"lora_A.{module}", f"lora_B.{module}")
    return {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith(ends)}


def outputs_of(model, examples, pad, number):
    """Log-likelihoods of the choices under a domain module alone."""
    from iclm.evaluation.scoring import score

    return score(model.eval(), examples, modules=(f"domain_{number}",), pad=pad).choices[f"domain_{number}"]


def test_a_sequence_on_a_file_is_another_one_when_the_file_has_changed(values, tmp_path):
    own = {"train": [{"file": str(tmp_path / "own.jsonl")}], "test": values["tasks"]["words"]["test"]}
    recipe = ContinualRecipe.model_validate({**values, "tasks": {**values["tasks"], "own": own}})
    folders = []
    for content in ("one", "two", "one"):
        (tmp_path / "own.jsonl").write_text(content)
        folders.append([job.folder for job in Experiment(recipe, "tiny", tmp_path / "out").standing.jobs])
    assert folders[0] == folders[2] != folders[1]


@pytest.mark.parametrize("guard", ["none", "ewc", "replay", "frozen_after_first"])
def test_learning_a_task_leaves_earlier_domain_modules_bitwise_the_same(guard, values, tmp_path, assert_same):
    sequence = sequence_of(tmp_path / "job", values, methods={"iclm": {"guard": guard}})
    reader, calibration = sequence.reader(), sequence._calibration()
    examples = [item for found in reader.tests().values() for item in found]
    before, weights, codes, invariant = {}, {}, {}, []
    for piece in reader.pieces(0, calibration):
        sequence.learn(piece)
        sequence.ask({})
        sequence.keep()
        model = sequence.model
        for number in before:  # of the tasks before this one
            after = outputs_of(model, examples, sequence.pad, number)
            assert all((one == two).all() for one, two in zip(before[number], after, strict=True)), number
            assert_same(module_state(model, 1 + number), weights[number])
            assert torch.equal(model.router.codes[number], codes[number])
        number = piece.unit.main
        before[number] = outputs_of(model, examples, sequence.pad, number)
        weights[number] = module_state(model, 1 + number)
        assert any(bool(p.any()) for name, p in weights[number].items() if ".lora_B." in name), "it learned nothing"
        codes[number] = model.router.codes[number].clone()
        invariant.append(module_state(model, 0))
    assert len(before) == 3
    same = all(torch.equal(invariant[0][name], invariant[2][name]) for name in invariant[0])
    assert same == (guard == "frozen_after_first")


@pytest.fixture(scope="session")
def assert_same():
    def check(one, two):
        assert one.keys() == two.keys() and one
        assert [name for name in one if not torch.equal(one[name], two[name])] == []

    return check


ALL_METHODS = {
    "base": {"kind": "base"},
    "joint": {"kind": "joint"},
    "lora": {"method": "lora"},
    "lora-ewc": {"method": "lora", "guard": "ewc"},
    "lora-replay": {"method": "lora", "guard": "replay"},
    "lora-per-task": {"model": {"router": "oracle", "ablation": "no_invariant"}},
    "iclm": {},
    "iclm-unknown": {"boundaries": "unknown"},
}


@pytest.fixture(scope="module")
def experiment(values, tmp_path_factory):
    """All methods, done; the folder and the rows by method."""
    out = tmp_path_factory.mktemp("continual")
    found = {}
    for method in ALL_METHODS:
        folder = write_job(out / method, {**values, "methods": ALL_METHODS}, method)
        jobs.run_job(folder)
        found[method] = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return out, found


def test_every_method_fills_its_matrix(experiment):
    _, rows = experiment
    places = {m: {(r["module"], r["trained_through"], r["tested_on"]) for r in found} for m, found in rows.items()}
    every = {(i, task) for i in (1, 2, 3) for task in TASKS}
    assert places["base"] == {("mixture", 0, task) for task in TASKS}
    assert {(i, task) for module, i, task in places["joint"] if module == "mixture"} == {(3, task) for task in TASKS}
    for method in ("lora", "lora-ewc", "lora-replay"):
        assert places[method] == {("mixture", *place) for place in every}
    assert {place[1:] for place in places["iclm"] if place[0] == "mixture"} == every
    assert {place[1:] for place in places["iclm"] if place[0] == "invariant"} == every
    for number, task in enumerate(TASKS):
        of_module = {place[1:] for place in places["iclm"] if place[0] == f"domain_{number}"}
        assert of_module == {(i, tested) for i, tested in every if i > number}
        asked = {p[1] for p in places["lora-per-task"] if p[0] == "mixture" and p[2] == task}
        assert asked == set(range(number + 1, 4)), "an oracle has no module for a task that did not come yet"
    assert all(row["n"] == (6 if row["tested_on"] == "raven" else 8) for found in rows.values() for row in found)


def test_rows_of_a_frozen_module_say_after_which_task_it_was_asked(experiment):
    rows = [row for row in experiment[1]["iclm"] if row["module"] == "domain_0"]
    assert {row["asked_after"] for row in rows} == {1}
    for task in TASKS:
        assert len({row["correct"] for row in rows if row["tested_on"] == task}) == 1


def test_with_one_module_a_task_oracle_and_mixture_are_asked_apart_only_where_they_differ(experiment):
    done = json.loads((experiment[0] / "iclm" / "done.json").read_text())
    assert done["homes"] == {"symbolic": 0, "words": 1, "raven": 2}
    assert [unit["opened"] for unit in done["units"]] == [True] * 3
    assert len({unit["added"] for unit in done["units"]}) == 1
    assert all(unit["trainable"] == 2 * unit["added"] > 0 for unit in done["units"]), "the new and the invariant module"
    assert not (experiment[0] / "iclm" / "units").exists()


def test_the_end_of_a_sequence_is_a_run_folder(experiment):
    from iclm.evaluation.runs import load_run

    run = load_run(experiment[0] / "iclm" / "run")
    assert run.domains == {"symbolic": 0, "words": 1, "raven": 2}
    assert run.names == {"domain_0": "symbolic", "domain_1": "words", "domain_2": "raven"}
    result = CliRunner().invoke(app, ["modules", str(experiment[0] / "iclm" / "run"), "list", "--json"])
    assert result.exit_code == 0 and "raven" in result.stdout


def test_unknown_boundaries_find_tasks_that_differ(experiment):
    done = json.loads((experiment[0] / "iclm-unknown" / "done.json").read_text())
    assert sum(unit["opened"] for unit in done["units"]) >= 2
    assert sum(sum(unit["tasks"].values()) for unit in done["units"]) == 12 + 12 + 12
    assert [task for unit in done["units"] for task in unit["ends"]] == list(TASKS)


class KilledError(Exception):
    """A process that is killed."""


def keep_and_die(self, keep=TaskSequence.keep):
    """In place of `TaskSequence.keep`."""
    keep(self)
    raise KilledError


@pytest.mark.parametrize("method", ["iclm", "lora-ewc", "lora-replay", "iclm-unknown"])
def test_a_sequence_killed_between_and_within_tasks_ends_in_the_same_matrix(
    method, values, experiment, tmp_path, monkeypatch
):
    """Stopped after the first task, and again in the middle of the second training."""
    saving = {**values, "methods": ALL_METHODS, "training": {**values["training"], "save_steps": 1}}
    whole = write_job(tmp_path / "whole", saving, method)
    jobs.run_job(whole)
    folder = write_job(tmp_path / "cut", saving, method)
    train = sequences.train_stage
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(TaskSequence, "keep", keep_and_die)
        jobs.run_job(folder)

    def train_and_die(trainer, place):
        from transformers import TrainerCallback

        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_save = True
                if state.global_step > 1:
                    raise KilledError

        trainer.add_callback(Stop)
        return train(trainer, place)

    monkeypatch.setattr(sequences, "train_stage", train_and_die)
    with pytest.raises(KilledError):
        jobs.run_job(folder)
    monkeypatch.setattr(sequences, "train_stage", train)
    assert list((folder / "work").glob("*/checkpoints/checkpoint-*"))
    jobs.run_job(folder)

    def matrix(place):
        found = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
        return [{name: value for name, value in row.items() if name != "seconds"} for row in found]

    assert matrix(folder) == matrix(whole)
    from safetensors.torch import load_file

    one, two = (load_file(place / "run" / "model.safetensors") for place in (folder, whole))
    assert [name for name in two if not torch.equal(one[name], two[name])] == []


# -- bad input ---------------------------------------------------------------------------------------------------------


def load(values, tmp_path, **changes):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**values, **changes}, sort_keys=False))
    return load_continual(tmp_path / "recipe.yaml")


def test_two_tasks_of_one_name_are_refused_with_the_line(values, tmp_path):
    text = yaml.safe_dump(values, sort_keys=False).replace("  words:", "  symbolic:")
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"line \d+: .*'symbolic' occurs twice"):
        load_continual(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("changes", [{}, {"format": "text"}, {"seed": 5}])
def test_a_test_that_asks_what_some_task_is_trained_on_is_refused(values, tmp_path, changes):
    asked = {"acre": "IID", "problems": 2, "format": "symbolic", **changes}  # the split is left out, which is train
    tasks = {**values["tasks"], "words": {**values["tasks"]["words"], "test": [asked]}}
    with pytest.raises(
        ConfigurationError, match=r"tasks\.words\.test\.0 \(acre-IID-train-\w+\) asks problems that are trained on"
    ):
        load(values, tmp_path, tasks=tasks, seeds=[0, 5])


def test_a_copy_of_what_is_trained_on_is_no_test(values, tmp_path):
    line = '{"input": [{"role": "user", "content": "1 + 1 ="}], "ideal": "2"}\n'
    for name in ("one.jsonl", "two.jsonl"):
        (tmp_path / name).write_text(line)
    own = {
        part: [{"file": name, "choices": ["1", "2"]}] for part, name in (("train", "one.jsonl"), ("test", "two.jsonl"))
    }
    recipe = load(values, tmp_path, tasks={**values["tasks"], "words": {**values["tasks"]["words"], **own}})
    with pytest.raises(ConfigurationError, match=r"tasks\.words\.test\.0 .* asks problems that are trained on"):
        Experiment(recipe, "x", tmp_path / "e")


def test_a_sequence_that_diverged_fails(values, tmp_path):
    training = {**values["training"], "learning_rate": 1e30, "max_grad_norm": 0}
    with pytest.raises(ConfigurationError, match="not finite: the training has diverged"):
        sequence_of(tmp_path / "job", values, training=training).run()


def test_what_is_known_is_only_looked_at_for_a_plan(values, tmp_path):
    changed = {**values, "methods": {"base": {"kind": "base"}, "lora": {"method": "lora"}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(changed))
    command = ["continual", str(tmp_path / "recipe.yaml"), "--out"]
    done = CliRunner().invoke(app, [*command, str(tmp_path / "a"), "--only", "base"])
    assert done.exit_code == 0, done.output
    planned = CliRunner().invoke(app, [*command, str(tmp_path / "b"), "--known", str(tmp_path / "a"), "--plan"])
    assert planned.exit_code == 0 and "1 of 2 sequences are done" in planned.stdout
    assert not (tmp_path / "b").exists()


def test_a_folder_of_other_sequences_is_left_alone(values, tmp_path):
    Experiment(ContinualRecipe.model_validate(values), "x", tmp_path / "out").write_recipe()
    other = {**values, "methods": {"lora": {"method": "lora"}}}
    with pytest.raises(ConfigurationError, match=r"holds other sequences, such as given/iclm/seed-0"):
        Experiment(ContinualRecipe.model_validate(other), "x", tmp_path / "out")


def test_an_empty_task_is_refused_by_name(values, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    tasks = {
        **values["tasks"],
        "words": {**values["tasks"]["words"], "train": [{"file": str(tmp_path / "empty.jsonl")}]},
    }
    folder = write_job(tmp_path / "job", values, tasks=tasks)
    with pytest.raises(DataError, match="task 'words', training examples"):
        jobs.run_job(folder)


def test_a_file_that_vanishes_midway_stops_the_sequence_and_nothing_is_lost(values, tmp_path):
    """The file of the second task is gone when its turn comes; with the file back the sequence goes on after the first."""
    from iclm.data import acre

    file = tmp_path / "words.jsonl"
    lines = [
        {"input": [{"role": "user", "content": example.prompt}], "ideal": example.answer}
        for problem in acre.generate("IID", "train", 3, 5)
        for example in acre.examples(problem, "text")
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    file.write_text(text)
    tasks = {**values["tasks"], "words": {**values["tasks"]["words"], "train": [{"file": str(file)}]}}
    folder = write_job(tmp_path / "job", values, tasks=tasks)
    file.unlink()
    with pytest.raises(DataError, match=r"task 'words', training examples: .*words\.jsonl"):
        jobs.run_job(folder)
    assert (folder / "units" / "000" / "state.json").is_file()
    file.write_text(text)
    done = jobs.run_job(folder)
    assert done["homes"].keys() == set(TASKS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"orders": {"a": ["symbolic", "word"]}}, "orders.a names 'word'; known are symbolic, words, raven"),
        ({"orders": {"a": ["words", "words"]}}, "orders.a has 'words' twice"),
        ({"methods": {"a/b": {}}}, "a name is part of a path"),
        ({"seeds": [1, 1]}, "each comes once"),
        ({"model": {"num_domains": 3}}, "modules are opened as tasks come"),
        ({"methods": {"m": {"kind": "base", "method": "lora"}}}, "untouched base"),
        ({"methods": {"m": {"kind": "joint", "guard": "ewc"}}}, "kind joint has no earlier task"),
        ({"methods": {"m": {"guard": "ewc", "model": {"ablation": "no_invariant"}}}}, "guards the invariant module"),
        ({"methods": {"m": {"method": "lora", "guard": "frozen_after_first"}}}, "leaves plain LoRA nothing"),
        ({"methods": {"m": {"guard": "ewc", "replay": {"problems": 2}}}}, "replay is given, but guard is ewc"),
        ({"methods": {"m": {"guard": "ewc", "ewc": {"weight": 0}}}}, "methods.m.ewc.weight"),
        ({"methods": {"m": {"model": {"router": "random"}}}}, "method m: router is 'random'"),
        ({"methods": {"m": {"model": {"ablation": "no_domain"}}}}, "use method: lora"),
        ({"methods": {"m": {"training": {"stages": "two_stage"}}}}, "training.stages is not for a sequence"),
        ({"methods": {"m": {"model": {"active_domains": 2}}}}, "active_domains"),
        ({"novelty": {"share": 1.0}}, "novelty.share"),
        ({"method": {}}, "method is not a recipe key; did you mean methods?"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(changes, message, values, tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        load(values, tmp_path, **changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_task_is_a_domain_of_its_own_and_its_seed_is_the_sequences(values):
    recipe = ContinualRecipe.model_validate({**values, "seeds": [7]})
    sources = training_recipe(recipe, "iclm", "given", 7).data.train
    assert [(source.domain, source.seed) for source in sources] == [(task, 7) for task in TASKS]
    assert training_recipe(recipe, "iclm", "given", 7).model.router_reduction == "none"


def test_a_job_does_not_change_with_what_it_does_not_read(values):
    two = ContinualRecipe.model_validate({**values, "methods": ALL_METHODS, "seeds": [0, 1]})
    one = ContinualRecipe.model_validate({**values, "methods": {"iclm": {}}, "seeds": [0]})
    folders = {job.name: job.folder for job in sequence_jobs(two, "x")}
    assert folders["given/iclm/seed-0"] == sequence_jobs(one, "x")[0].folder
    assert folders["given/iclm/seed-0"] != folders["given/iclm/seed-1"]
    assert "given/base" in folders and len(folders) == 2 * (len(ALL_METHODS) - 1) + 1
    other = {"ewc": {"weight": 7.0}, "replay": {"problems": 9}, "novelty": {"chunk": 16}, "boundaries": "unknown"}
    changed = ContinualRecipe.model_validate({**values, "methods": ALL_METHODS, "seeds": [0, 1], **other})
    moved = {job.name for job in sequence_jobs(changed, "x") if job.folder != folders[job.name]}
    read = {"iclm", "iclm-unknown", "lora-ewc", "lora-replay"}
    assert moved == {f"given/{method}/seed-{seed}" for method in read for seed in (0, 1)}


def test_a_failing_job_is_reported_and_does_not_stop_the_rest(values, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    tasks = {
        **values["tasks"],
        "gone": {"train": [{"file": str(tmp_path / "empty.jsonl")}], "test": values["tasks"]["raven"]["test"]},
    }
    changed = {
        **values,
        "tasks": tasks,
        "orders": {"bad": ["gone"], "good": ["symbolic"]},
        "methods": {"lora": {"method": "lora"}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(changed))
    arguments = ["continual", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 1
    summary = json.loads(result.stdout)
    assert summary["done"] == ["good/lora/seed-0"] and "task 'gone'" in summary["failed"]["bad/lora/seed-0"]
    planned = CliRunner().invoke(app, [*arguments, "--plan"])
    assert planned.exit_code == 0 and "1 of 2 sequences are done" in planned.stdout


def test_a_folder_of_something_else_is_not_written_into(values, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigurationError, match="holds something else"):
        Experiment(ContinualRecipe.model_validate(values), "x", tmp_path / "out")


@pytest.mark.parametrize("state", ['{"unit": 3}', "{}"])
def test_a_damaged_state_is_named(values, tmp_path, state):
    folder = write_job(tmp_path / "job", values)
    (folder / "units" / "000").mkdir(parents=True)
    (folder / "units" / "000" / "state.json").write_text(state)
    with pytest.raises(CheckpointError, match=r"state\.json is damaged.*remove "):
        jobs.run_job(folder)


def test_a_damaged_guard_is_named(values, tmp_path):
    sequence = sequence_of(tmp_path / "job", values, methods={"iclm": {"guard": "ewc"}})
    kept = sequence.folder / "units" / "000" / "guard.safetensors"
    for write in (lambda: None, lambda: kept.write_bytes(b"x")):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write()
        with pytest.raises(CheckpointError, match=r"guard\.safetensors is damaged: .*; remove "):
            sequence.guard(1)


def test_a_boundary_that_a_method_needs_cannot_be_unknown(values, tmp_path):
    for method in ({"method": "lora"}, {"model": {"router": "oracle"}}):
        with pytest.raises(ConfigurationError, match="method m: boundaries is unknown, but it opens no module"):
            load(values, tmp_path, methods={"m": {**method, "boundaries": "unknown"}})
    recipe = load(values, tmp_path, methods=ALL_METHODS, boundaries="unknown")
    told = {method: told_boundaries(recipe, method) for method in ALL_METHODS}
    assert {method for method, known in told.items() if known == "unknown"} == {"iclm", "iclm-unknown"}


def test_a_frozen_invariant_module_has_a_frozen_aggregator(values, tmp_path):
    for guard, same in (("none", False), ("frozen_after_first", True)):
        sequence = sequence_of(tmp_path / guard, values, methods={"iclm": {"guard": guard, "model": {"mix": "gate"}}})
        gates = []
        for piece in sequence.reader().pieces(0, sequence._calibration()):
            sequence.learn(piece)
            gates.append(sequence.model.aggregator.logit.item())
        assert (gates[0] == gates[-1]) == same


SOURCE = {"acre": "IID", "problems": 1, "format": "text"}
TASK = {"train": [SOURCE], "test": [{**SOURCE, "split": "test"}]}
UNKNOWN = {"iclm": {"boundaries": "unknown"}}

# -- streams -----------------------------------------------------------------------------------------------------------


def test_between_tasks_that_are_learned_together_nothing_was_measured(values, tmp_path):
    """Two tasks that the router cannot tell apart are one unit of a stream: there is no model that knows the first alone."""
    alike = dict.fromkeys(("one", "two"), values["tasks"]["symbolic"])
    folder = write_job(tmp_path / "job", values, tasks=alike, methods=UNKNOWN, novelty={"chunk": 12, "margin": 50})
    done = jobs.run_job(folder)
    assert [unit["ends"] for unit in done["units"]] == [["one", "two"]]
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert {row["trained_through"] for row in rows} == {2}


@pytest.fixture(scope="module")
def late(values):
    """A recipe whose last task counts as learned before its last prompts, which open a module of their own, are."""
    words, raven = (values["tasks"][name] for name in ("words", "raven"))
    more = [{**words["train"][0], "problems": 9}, {**raven["train"][0], "problems": 4}]
    tasks = {"symbolic": values["tasks"]["symbolic"], "last": {"train": more, "test": words["test"]}}
    training = {**values["training"], "batch_size": 16}
    return {**values, "tasks": tasks, "methods": UNKNOWN, "novelty": {"chunk": 12, "margin": 3}, "training": training}


@pytest.fixture(scope="module")
def late_rows(late, tmp_path_factory):
    """The folder of its sequence, done without a stop, and its rows."""
    folder = write_job(tmp_path_factory.mktemp("late") / "job", late)
    jobs.run_job(folder)
    return folder, rows_of(folder)


def rows_of(folder):
    found = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


def test_the_last_row_is_of_the_model_at_the_end(late, late_rows):
    """Also where units came after the one that ended the last task."""
    from iclm.evaluation.runs import load_run
    from iclm.studies.continual.asking import ask

    folder, rows = late_rows
    done = json.loads((folder / "done.json").read_text())
    units = done["units"]
    assert [task for unit in units for task in unit["ends"]] == ["symbolic", "last"]
    assert units[-1]["opened"] and not units[-1]["ends"], "what is tested here does not happen"
    last = [row for row in rows if row["trained_through"] == 2]
    assert {row["unit"] for row in last} == {len(units)}
    assert len({(row["module"], row["tested_on"]) for row in last}) == len(last)
    model = load_run(folder / "run").model
    sequence = TaskSequence(write_job(folder.parent / "again", late))
    found = ask(model, sequence.reader().tests(), done["homes"], sequence.pad, range(model.config.num_domains))
    assert {(row["module"], row["tested_on"]): row["correct"] for row in last} == found
    assert ("domain_2", "last") in found


def test_a_sequence_killed_after_any_unit_ends_in_the_same_last_row(late, late_rows, tmp_path, monkeypatch):
    folder = write_job(tmp_path / "cut", late)
    monkeypatch.setattr(TaskSequence, "keep", keep_and_die)
    stops = 0
    while not (folder / "done.json").is_file():
        try:
            jobs.run_job(folder)
        except KilledError:
            stops += 1
    assert stops == len(json.loads((folder / "done.json").read_text())["units"]) == 3
    assert rows_of(folder) == late_rows[1]


def test_a_stream_goes_on_from_where_an_earlier_version_left_it():
    """Which counted the prompts of a module, and not its problems."""

    class Fixed:
        order = ("a",)
        recipe = ContinualRecipe.model_validate({"tasks": {"a": TASK}, "methods": {"iclm": {}}})

    values = Stream(Fixed()).values
    values |= {"errors": [[0.5], [0.5]], "placed": [9, 6], "problems": 2}
    tensors = {"codes": torch.zeros(2, 4)}
    assert Stream(Fixed(), values, tensors).cut.calibration.problems == 2
    del values["problems"]
    assert Stream(Fixed(), values, tensors).cut.calibration.problems == 6


@pytest.mark.parametrize("change", ["starts", "unit", "points"])
def test_a_damaged_stream_is_named_and_a_changed_task_refused(change):
    class Fixed:  # what a stream needs of a reader
        order = ("a", "b")
        recipe = ContinualRecipe.model_validate({"tasks": {"a": TASK, "b": TASK}, "methods": {"iclm": {}}})

        def train_examples(self, task):
            return ["x"] * 3

    values = Stream(Fixed()).values | {"starts": [0], "end": 4, "next": 1}
    with pytest.raises(DataError, match="task 'a' has 3 training examples now; it had 4"):
        Stream(Fixed(), values)
    with pytest.raises(CheckpointError, match="where the stream stood is damaged"):
        Stream(Fixed(), {name: value for name, value in values.items() if name != change})


def test_a_task_of_a_stream_is_read_when_its_turn_comes_and_then_no_more(values, tmp_path, monkeypatch):
    read = []
    train_examples = Reader.train_examples
    monkeypatch.setattr(Reader, "train_examples", lambda self, task: read.append(task) or train_examples(self, task))
    folder = write_job(tmp_path / "job", values, methods=UNKNOWN, novelty={"chunk": 12, "margin": 0.01})
    read_by = []
    monkeypatch.setattr(TaskSequence, "keep", keep_and_die)
    for _ in range(20):
        read.clear()
        try:
            jobs.run_job(folder)
        except KilledError:
            read_by.append(list(read))
            continue
        break
    assert read_by[0][0] == "symbolic" and "raven" not in read_by[0]
    assert read_by[-1] == ["raven"], "tasks that were learned are read again"


# -- thresholds and shipped recipes ------------------------------------------------------------------------------------


def test_thresholds_are_measured_without_a_training(values, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    arguments = ["continual", "boundaries", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "found.jsonl")]
    result = CliRunner().invoke(app, [*arguments, "--margins", "0.01,1.5,1e9", "--json"])
    assert result.exit_code == 0, result.output
    low, _, high = json.loads(result.stdout)
    assert low["new_before"] == 1.0 and high["new_before"] == 0.0 and high["new_after"] == 0.0
    assert low["extra"] > 0 and high["extra"] == -2.0, "one module is always opened, for the first"
    rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * (3 + 1) and {row["sequence"] for row in rows} == {"recipe"}
    again = CliRunner().invoke(app, arguments)
    assert "exists" in str(again.exception)


@pytest.fixture(scope="module")
def hybrid(tiny_tokenizer, tmp_path_factory):
    """Folder of a tiny base with convolutions, whose examples cannot share a sequence."""
    import transformers

    folder = tmp_path_factory.mktemp("hybrid")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 4096, "block_multiple_of": 8}
    sizes["layer_types"] = ["conv", "full_attention"] * 2
    tokens = {"vocab_size": len(tiny_tokenizer), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(transformers.Lfm2Config(**sizes, **tokens)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.filterwarnings("ignore:.*sequence of its own")
@pytest.mark.parametrize("told", ["known", "unknown"])
def test_a_base_that_never_packs_learns_a_sequence(told, values, hybrid, tmp_path):
    tasks = {name: values["tasks"][name] for name in ("symbolic", "raven")}
    folder = write_job(tmp_path / "job", values, base=hybrid, tasks=tasks, boundaries=told)
    done = jobs.run_job(folder)
    assert sum(sum(unit["tasks"].values()) for unit in done["units"]) == 12 + 12
    assert {row["trained_through"] for row in rows_of(folder)} >= {2}


@pytest.mark.filterwarnings("ignore:.*sequence of its own")
def test_thresholds_are_measured_on_a_base_that_never_packs(values, hybrid):
    recipe = ContinualRecipe.model_validate({**values, "base": hybrid})
    found = list(boundary_rows(recipe, "tiny", [1.0]))
    assert [row["kind"] for row in found] == ["curve"] * 3 + ["stream"]


@pytest.mark.parametrize("margins", ["", "0", "1,x", "-1", "nan", "1,inf"])
def test_margins_that_are_none_are_refused(margins, values, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    arguments = ["continual", "boundaries", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "found.jsonl")]
    result = CliRunner().invoke(app, [*arguments, "--margins", margins])
    assert isinstance(result.exception, ConfigurationError) and "margins" in str(result.exception)


@pytest.mark.parametrize("name", ["recipe.yaml", "below.yaml", "mine.jsonl"])
def test_thresholds_do_not_replace_what_the_recipe_is_made_of(name, values, tmp_path):
    (tmp_path / "mine.jsonl").write_text("{}\n")
    tasks = {**values["tasks"], "words": {**values["tasks"]["words"], "train": [{"file": "mine.jsonl"}]}}
    (tmp_path / "below.yaml").write_text(yaml.safe_dump({**values, "tasks": tasks}))
    (tmp_path / "recipe.yaml").write_text("extends: below.yaml\n")
    before = (tmp_path / name).read_bytes()
    arguments = [str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / name), "--overwrite"]
    result = CliRunner().invoke(app, ["continual", "boundaries", *arguments])
    assert isinstance(result.exception, ConfigurationError) and "is a file that the recipe" in str(result.exception)
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "continual").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_sequences_can_be_planned(path):
    recipe = load_continual(path)
    found = sequence_jobs(recipe, path.stem)
    assert len({job.folder for job in found}) == len(found)
    assert all(set(order) == set(recipe.tasks) for order in recipe.orders.values())
    assert len(recipe.tasks) >= (10 if path.stem == "long" else 2)


def test_a_method_can_have_a_guard_of_its_own_strength(values, tmp_path):
    """Which takes the place of the recipe's, and leaves the jobs of the other methods where they are."""
    methods = {"iclm": {"guard": "ewc"}, "firm": {"guard": "ewc", "ewc": {"weight": 7.0}}}
    recipe = ContinualRecipe.model_validate({**values, "methods": methods})
    usual, firm = sequence_jobs(recipe, "x")
    del usual.spec["recipe"]["methods"]["iclm"]["ewc"]  # a job of before
    assert usual.folder == sequence_jobs(recipe, "x")[0].folder
    for job, weight in ((usual, 100.0), (firm, 7.0)):
        folder = tmp_path / job.folder
        folder.mkdir()
        (folder / "job.json").write_text(json.dumps(job.spec))
        elastic, _ = TaskSequence(folder).guard(0)
        assert elastic.weight == weight
    held = {"small": {"guard": "replay", "replay": {"problems": 5}}}
    _, buffer = sequence_of(tmp_path / "small", {**values, "methods": held}, method="small").guard(0)
    assert buffer.size == 5
