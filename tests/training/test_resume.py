"""A training that was interrupted and goes on: it ends where it would have ended without the interruption."""

import itertools
import json
import shutil

import pytest
import torch
import yaml

from iclm.data.files import sha256_of
from iclm.errors import CheckpointError, ConfigurationError, ICLMError
from iclm.training.folder import Clock, newest_checkpoint
from iclm.training.run import train
from iclm.training.trainer import ICLMTrainer

SETTINGS = {
    "model": {"lora_dropout": 0.1, "mix": "low_rank", "num_domains": 3},
    "training": {"epochs": 2, "save_steps": 2, "learning_rate": 1e-2},
}


def interrupt(recipe, out, step, **options):
    """Train until a step has been logged, then stop as Ctrl-C does."""
    steps = iter(range(1, step + 1))

    def stop(logs):
        if next(steps) == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, out, progress_bar=False, on_log=stop, **options)


@pytest.fixture(scope="module")
def whole(make_recipe, tmp_path_factory):
    """The run that was never interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(make_recipe(**SETTINGS), out, progress_bar=False)
    return out


@pytest.fixture(scope="module")
def interrupted(make_recipe, tmp_path_factory):
    """A run that was stopped at step 4 of 6, with a checkpoint of step 2; copy it before using it."""
    out = tmp_path_factory.mktemp("interrupted") / "run"
    interrupt(make_recipe(**SETTINGS), out, 4)
    return out


@pytest.fixture
def stopped(interrupted, tmp_path):
    """A copy of the interrupted run."""
    return shutil.copytree(interrupted, tmp_path / "run")


def test_an_interrupted_run_keeps_its_last_checkpoint_and_is_not_finished(interrupted):
    assert [p.name for p in (interrupted / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert not (interrupted / "run.json").exists()


def test_a_checkpoint_holds_our_own_parameters_only(interrupted, weights):
    names = weights(interrupted / "checkpoints" / "checkpoint-2").keys()
    assert any("lora_A" in name for name in names)
    assert not any(name.endswith(("embed_tokens.weight", "lm_head.weight", "proj.weight")) for name in names)


def test_a_resumed_training_ends_bitwise_where_an_uninterrupted_one_does(
    stopped, whole, make_recipe, weights, assert_bitwise
):
    _, record = train(make_recipe(**SETTINGS), stopped, resume=True, progress_bar=False)
    assert_bitwise(weights(stopped), weights(whole))
    expected = json.loads((whole / "run.json").read_text())
    for name in ("steps", "examples_seen", "domains", "trainable_parameters"):
        assert record[name] == expected[name]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_training_resumed_twice_ends_bitwise_where_an_uninterrupted_one_does(
    make_recipe, tmp_path, weights, assert_bitwise, accumulation
):
    training = {"gradient_accumulation": accumulation, "batch_size": 4, "epochs": 2, "save_steps": 2}
    recipe = make_recipe(model=SETTINGS["model"], training=training)
    train(recipe, tmp_path / "whole", progress_bar=False)
    interrupt(recipe, tmp_path / "run", 3)
    interrupt(recipe, tmp_path / "run", 3, resume=True)
    train(recipe, tmp_path / "run", resume=True, progress_bar=False)
    assert_bitwise(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_a_resumed_log_has_each_step_once_with_the_same_figures(stopped, whole, make_recipe):
    train(make_recipe(**SETTINGS), stopped, resume=True, progress_bar=False)

    def steps(folder):
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        return [(line["step"], line["loss"], line["loss_lm"]) for line in lines if "loss" in line]

    assert steps(stopped) == steps(whole)


def test_a_line_of_the_log_that_was_cut_off_does_not_block_the_resume(stopped, whole, make_recipe):
    with (stopped / "log.jsonl").open("a") as stream:
        stream.write('{"step": 5, "lo')
    train(make_recipe(**SETTINGS), stopped, resume=True, progress_bar=False)
    assert figures(stopped) == figures(whole)


def test_a_resumed_record_reports_the_loss_of_the_whole_training(stopped, whole, make_recipe):
    _, record = train(make_recipe(**SETTINGS), stopped, resume=True, progress_bar=False)
    expected = json.loads((whole / "run.json").read_text())["train_loss"]
    assert record["train_loss"] == pytest.approx(expected, abs=1e-4)


def test_resuming_with_another_recipe_is_refused(stopped, make_recipe):
    before = (stopped / "recipe.yaml").read_text()
    with pytest.raises(CheckpointError, match="differs"):
        train(make_recipe(**SETTINGS, seed=5), stopped, resume=True, progress_bar=False)
    assert (stopped / "recipe.yaml").read_text() == before
    assert (stopped / "checkpoints" / "checkpoint-2").is_dir()


def test_resuming_a_finished_run_is_refused(whole, make_recipe):
    with pytest.raises(ConfigurationError, match="finished"):
        train(make_recipe(**SETTINGS), whole, resume=True, progress_bar=False)


def test_an_interrupted_run_is_not_taken_for_a_finished_one(interrupted):
    from iclm.evaluation.runs import load_run

    with pytest.raises(CheckpointError, match="did not finish"):
        load_run(interrupted)


@pytest.mark.parametrize("missing", ["trainer_state.json", "seconds.json", "rng_state.pth"])
def test_a_checkpoint_that_was_cut_off_while_it_was_written_does_not_block_the_resume(
    stopped, whole, make_recipe, weights, assert_bitwise, missing
):
    half = shutil.copytree(stopped / "checkpoints" / "checkpoint-2", stopped / "checkpoints" / "checkpoint-4")
    (half / missing).unlink()
    train(make_recipe(**SETTINGS), stopped, resume=True, progress_bar=False)
    assert_bitwise(weights(stopped), weights(whole))


def test_a_checkpoint_of_several_processes_is_whole_with_the_state_of_each(tmp_path):
    names = ("trainer_state.json", "rng_state_0.pth", "rng_state_1.pth", "seconds.json")
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in names:
            (tmp_path / f"checkpoint-{step}" / name).write_text('{"seconds": 1.0, "processes": 2}')
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    (tmp_path / "checkpoint-4" / "rng_state_1.pth").unlink()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_the_checkpoint_before_is_there_until_the_new_one_is_whole(
    make_recipe, tmp_path, monkeypatch, whole, weights, assert_bitwise
):
    keep = Clock.on_save

    def killed(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise KeyboardInterrupt
        keep(self, args, state, control, **kwargs)

    monkeypatch.setattr(Clock, "on_save", killed)
    with pytest.raises(KeyboardInterrupt):
        train(make_recipe(**SETTINGS), tmp_path / "run", progress_bar=False)
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").name == "checkpoint-2"
    train(make_recipe(**SETTINGS), tmp_path / "run", resume=True, progress_bar=False)
    assert_bitwise(weights(tmp_path / "run"), weights(whole))


@pytest.mark.parametrize("save_steps", [None, 5])
def test_a_resume_that_starts_over_says_so(make_recipe, tmp_path, save_steps):
    recipe, said = make_recipe(method="lora", training={"save_steps": save_steps}), []
    interrupt(recipe, tmp_path / "run", 1)
    train(recipe, tmp_path / "run", resume=True, progress_bar=False, say=said.append)
    hint = "" if save_steps else "; set training.save_steps to have some"
    assert said == [f"no checkpoint in {tmp_path / 'run'}: starts at step 0{hint}"]


def test_a_damaged_checkpoint_is_named(stopped, make_recipe):
    path = stopped / "checkpoints" / "checkpoint-2" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ICLMError, match="checkpoint-2"):
        train(make_recipe(**SETTINGS), stopped, resume=True, progress_bar=False)


def test_an_interruption_before_the_first_checkpoint_leaves_a_run_that_can_be_resumed_from_the_start(
    make_recipe, tmp_path, whole, weights, assert_bitwise
):
    interrupt(make_recipe(**SETTINGS), tmp_path / "run", 1)
    train(make_recipe(**SETTINGS), tmp_path / "run", resume=True, progress_bar=False)
    assert_bitwise(weights(tmp_path / "run"), weights(whole))


def test_a_resume_from_the_start_leaves_what_is_not_of_the_run(make_recipe, tmp_path):
    interrupt(make_recipe(**SETTINGS), tmp_path / "run", 1)
    (tmp_path / "run" / "plots").mkdir()
    mine = ("NOTES.md", "plots/loss.svg", "base.safetensors", "vocabulary.csv", "lora/paper.md")
    (tmp_path / "run" / "lora").mkdir()
    for name in mine:
        (tmp_path / "run" / name).write_text("mine")
    train(make_recipe(**SETTINGS), tmp_path / "run", resume=True, progress_bar=False)
    assert all((tmp_path / "run" / name).read_text() == "mine" for name in mine)


def test_a_run_on_a_file_that_was_begun_before_it_was_noted_goes_on(make_recipe, tmp_path):
    line = '{"input": [{"role": "user", "content": "%d + 1 ="}], "ideal": "2"}\n'
    (tmp_path / "own.jsonl").write_text("".join(line % number for number in range(24)))
    settings = {**SETTINGS, "data": {"train": [{"file": str(tmp_path / "own.jsonl")}]}}
    interrupt(make_recipe(**settings), tmp_path / "run", 4)
    saved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    del saved["data"]["train"][0]["sha256"]
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(saved))
    train(make_recipe(**settings), tmp_path / "run", resume=True, progress_bar=False)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["examples"] == 24


def test_a_run_goes_on_with_the_same_file_in_another_folder(make_recipe, tmp_path):
    line = '{"input": [{"role": "user", "content": "%d + 1 ="}], "ideal": "2"}\n'
    places = [tmp_path / name / "own.jsonl" for name in ("one", "two")]
    for place in places:
        place.parent.mkdir()
        place.write_text("".join(line % number for number in range(24)))
    one, two = (make_recipe(**{**SETTINGS, "data": {"train": [{"file": str(place)}]}}) for place in places)
    interrupt(one, tmp_path / "run", 4)
    said = []
    train(two, tmp_path / "run", resume=True, progress_bar=False, say=said.append)
    assert said == [], "it goes on from its checkpoint"


def test_a_run_does_not_go_on_with_a_file_that_has_changed(make_recipe, tmp_path):
    line = '{"input": [{"role": "user", "content": "%d + 1 ="}], "ideal": "2"}\n'
    (tmp_path / "own.jsonl").write_text("".join(line % number for number in range(24)))
    settings = {**SETTINGS, "data": {"train": [{"file": str(tmp_path / "own.jsonl")}]}}
    interrupt(make_recipe(**settings), tmp_path / "run", 4)
    saved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["data"]["train"][0]
    assert saved["sha256"] == sha256_of(tmp_path / "own.jsonl")
    with (tmp_path / "own.jsonl").open("a") as stream:
        stream.write(line % 24)
    with pytest.raises(
        CheckpointError, match="or a file of it has changed since; --resume needs the recipe and the data"
    ):
        train(make_recipe(**settings), tmp_path / "run", resume=True, progress_bar=False)


TWO = {
    "model": SETTINGS["model"],
    "training": {"stages": "two_stage", "epochs": 2, "invariant_epochs": 2, "save_steps": 2, "learning_rate": 1e-2},
}


@pytest.fixture(scope="module")
def staged(make_recipe, tmp_path_factory):
    """The two-stage run that was never interrupted: six steps a stage."""
    out = tmp_path_factory.mktemp("staged") / "run"
    train(make_recipe(**TWO), out, progress_bar=False)
    return out


def figures(folder):
    """What the log says of each step, but for the time."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


# the first stage logs a line at its end too, so line 7 is that end and line 8 is step 7
@pytest.mark.parametrize(
    ("lines", "left"),
    [
        (1, None),
        (4, "checkpoints/invariant/checkpoint-2"),
        (7, "checkpoints/invariant/checkpoint-6"),
        (8, "stages/invariant"),
        (11, "checkpoints/domains/checkpoint-2"),
    ],
    ids=["start", "first stage", "end of the first", "start of the second", "second stage"],
)
def test_a_two_stage_training_goes_on_in_its_stage_and_ends_bitwise_where_an_uninterrupted_one_does(
    make_recipe, tmp_path, staged, weights, assert_bitwise, lines, left
):
    recipe, out = make_recipe(**TWO), tmp_path / "run"
    interrupt(recipe, out, lines)
    found = [*out.glob("checkpoints/*/*/trainer_state.json"), *out.glob("stages/*/run.json")]
    places = {str(path.parent.relative_to(out)) for path in found}
    assert left in places if left else not places
    assert (out / "stages" / "invariant").exists() == (lines > 7)
    _, record = train(recipe, out, resume=True, progress_bar=False)
    assert_bitwise(weights(out), weights(staged))
    assert_bitwise(weights(out / "stages" / "invariant"), weights(staged / "stages" / "invariant"))
    assert figures(out) == figures(staged)
    expected = json.loads((staged / "run.json").read_text())
    for name in ("steps", "examples_seen", "trainable_parameters"):
        assert record[name] == expected[name]
    for one, two in zip(record["stages"], expected["stages"], strict=True):
        assert one["train_loss"] == pytest.approx(two["train_loss"], abs=1e-6)
        assert {name: one[name] for name in ("stage", "epochs", "steps")} == {
            n: two[n] for n in ("stage", "epochs", "steps")
        }
    assert not (out / "checkpoints").exists()


def test_a_first_stage_that_was_cut_off_while_it_was_saved_is_done_again(
    make_recipe, tmp_path, staged, weights, assert_bitwise
):
    recipe, out = make_recipe(**TWO), tmp_path / "run"
    interrupt(recipe, out, 4)
    (out / "stages" / ".invariant.part").mkdir(parents=True)
    (out / "stages" / ".invariant.part" / "run.json").write_text("{")
    train(recipe, out, resume=True, progress_bar=False)
    assert_bitwise(weights(out), weights(staged))
    assert [path.name for path in (out / "stages").iterdir()] == ["invariant"]


def test_a_training_resumed_between_two_lines_of_its_log_has_the_same_log(make_recipe, tmp_path):
    recipe = make_recipe(training={"epochs": 2, "save_steps": 2, "logging_steps": 3, "mi_start": 0.3, "mi_ramp": 0.4})
    train(recipe, tmp_path / "whole", progress_bar=False)
    interrupt(recipe, tmp_path / "run", 2)
    assert [line["step"] for line in figures(tmp_path / "run")] == [2, 3]
    _, record = train(recipe, tmp_path / "run", resume=True, progress_bar=False)
    assert [line["step"] for line in figures(tmp_path / "run")] == [2, 3, 4, 6]
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")
    assert record["train_loss"] == json.loads((tmp_path / "whole" / "run.json").read_text())["train_loss"]


def test_a_resumed_record_has_the_seconds_of_all_parts(stopped, make_recipe):
    path = stopped / "checkpoints" / "checkpoint-2" / "seconds.json"
    assert json.loads(path.read_text())["seconds"] > 0
    path.write_text('{"seconds": 1000.0}')
    _, record = train(make_recipe(**SETTINGS), stopped, resume=True, progress_bar=False)
    assert record["train_seconds"] > 1000 and record["total_seconds"] > 1000


def another_base(folder):
    """Change one number of a base model's weights."""
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if name.endswith("layers.0.mlp.up_proj.weight"))
    state[name] = state[name] + torch.eye(*state[name].shape)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(("settings", "lines"), [(SETTINGS, 4), (TWO, 8)], ids=["joint", "second stage"])
def test_resuming_on_another_base_of_the_same_name_is_refused(
    make_recipe, tiny_llama_folder, tmp_path, settings, lines
):
    base = shutil.copytree(tiny_llama_folder, tmp_path / "base")
    recipe = make_recipe(base=str(base), **settings)
    interrupt(recipe, tmp_path / "run", lines)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    another_base(base)
    with pytest.raises(CheckpointError, match="fingerprint"):
        train(recipe, tmp_path / "run", resume=True, progress_bar=False)
    assert (tmp_path / "run" / "log.jsonl").read_text() == log


def test_a_run_begun_before_a_field_of_the_recipe_was_there_can_be_resumed(
    stopped, whole, make_recipe, weights, assert_bitwise
):
    saved = yaml.safe_load((stopped / "recipe.yaml").read_text())
    for name in ("stages", "mi_start", "critic_learning_rate"):
        del saved["training"][name]
    (stopped / "recipe.yaml").write_text(yaml.safe_dump(saved))
    train(make_recipe(**SETTINGS), stopped, resume=True, progress_bar=False)
    assert_bitwise(weights(stopped), weights(whole))


def out_of_memory(monkeypatch, rows, after):
    """Let a training step of more than so many sequences run out of memory, the first `after` of them excepted."""
    compute, passes = ICLMTrainer.compute_loss, itertools.count(1)

    def small(self, model, inputs, *args, **kwargs):
        if len(inputs["input_ids"]) > rows and next(passes) > after:
            raise RuntimeError("CUDA out of memory. Tried to allocate more than there is")
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(ICLMTrainer, "compute_loss", small)


SHRINKING = {"batch_size": 5, "auto_find_batch_size": True, "epochs": 2, "save_steps": 3}


def test_the_log_holds_only_the_attempt_that_went_through(make_recipe, tmp_path, monkeypatch):
    out_of_memory(monkeypatch, 4, after=3)
    recipe = make_recipe(data={"pack": False}, training=SHRINKING)
    _, record = train(recipe, tmp_path / "run", progress_bar=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, record["steps"] + 1))
    assert record["steps"] == 12, "24 examples in batches of 4, twice"


def test_a_training_that_shrank_its_batches_is_resumed_from_its_own_checkpoints(
    make_recipe, tmp_path, monkeypatch, weights, assert_bitwise
):
    recipe = make_recipe(data={"pack": False}, training=SHRINKING)
    out_of_memory(monkeypatch, 4, after=3)  # past the checkpoint of step 3
    train(recipe, tmp_path / "whole", progress_bar=False)
    monkeypatch.undo()
    out_of_memory(monkeypatch, 4, after=3)
    interrupt(recipe, tmp_path / "run", 5)  # the second attempt has not come to its first checkpoint
    assert not list((tmp_path / "run" / "checkpoints").glob("checkpoint-*")), "those of the first attempt are of no use"
    shutil.rmtree(tmp_path / "run")
    monkeypatch.undo()
    out_of_memory(monkeypatch, 4, after=3)
    interrupt(recipe, tmp_path / "run", 9)  # it has
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-3"]
    train(recipe, tmp_path / "run", resume=True, progress_bar=False)
    assert_bitwise(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("run", "whole")]
    steps = [[json.loads(line)["step"] for line in log] for log in logs]
    assert steps[0] == steps[1]
    losses = [[json.loads(line).get("loss_lm") for line in log] for log in logs]
    assert losses[0] == losses[1]
