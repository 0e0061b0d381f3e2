"""Two-stage training: what each stage trains, what it leaves behind, and which trainings cannot have stages."""

import json

import pytest
import torch

from iclm.errors import ConfigurationError, ICLMError
from iclm.evaluation.runs import load_run
from iclm.model import ICLMForCausalLM
from iclm.training.run import build_model, train
from iclm.training.stages import stages_of

TWO = {"stages": "two_stage", "learning_rate": 1e-2, "warmup": 0.0}
MODEL = {"mix": "gate", "mi_weight": 0.1}


@pytest.fixture
def seen(monkeypatch):
    """Of each batch of a training: its tokens, the module that ran and the names of the loss terms."""
    found = []
    original = ICLMForCausalLM.forward

    def record(self, input_ids, *args, module="mixture", **kwargs):
        output = original(self, input_ids, *args, module=module, **kwargs)
        if output.terms is not None:  # not the look at a fresh model before the first step
            found.append((input_ids.tolist(), module, set(output.terms)))
        return output

    monkeypatch.setattr(ICLMForCausalLM, "forward", record)
    return found


@pytest.fixture(scope="module")
def trained(make_recipe, tmp_path_factory):
    """A two-stage run: its folder, its recipe, the model and the record."""
    out = tmp_path_factory.mktemp("two_stage") / "run"
    recipe = make_recipe(model=MODEL, training={**TWO, "invariant_epochs": 2, "epochs": 1, "save_steps": 2})
    model, record = train(recipe, out, progress_bar=False)
    return out, recipe, model, record


def changed(one, two):
    """Names of the tensors that differ between two states."""
    return {name for name in one if not torch.equal(one[name], two[name])}


def of_invariant(name):
    return name.endswith(("lora_A.0", "lora_B.0"))


def test_the_first_stage_trains_the_invariant_module_and_nothing_else(trained, make_recipe, make_trainer, weights):
    out, recipe, _, _ = trained
    fresh = make_trainer(recipe)
    fresh.fit_router()
    before, middle = fresh.model.own_state_dict(), weights(out / "stages" / "invariant")
    assert changed(before, middle) == {name for name in before if of_invariant(name)}


def test_the_second_stage_trains_everything_but_the_frozen_invariant_module(trained, weights):
    middle, end = weights(trained[0] / "stages" / "invariant"), weights(trained[0])
    different = changed(middle, end)
    assert not any(of_invariant(name) for name in different)
    assert any(name.endswith("lora_B.1") for name in different)
    assert any(name.startswith("aggregator.") for name in different)
    assert any(name.startswith("router.") for name in different)


def test_a_slowed_invariant_module_moves_with_its_share_of_the_learning_rate(make_recipe, make_trainer):
    trainer = make_trainer(make_recipe(model=MODEL, training={**TWO, "invariant_rate": 0.25}), stage=1)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert {rate for name, rate in rates.items() if of_invariant(name)} == {0.0025}
    assert {rate for name, rate in rates.items() if "lora_" in name and not of_invariant(name)} == {0.01}
    assert groups[0]["lr"] == 0.01, "the rate that is logged"
    before = trainer.model.own_state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    trainer.train()
    assert any(of_invariant(name) for name in changed(before, trainer.model.own_state_dict()))


def test_each_stage_runs_its_own_module_with_its_own_loss(make_recipe, tmp_path, seen):
    train(make_recipe(training=TWO), tmp_path / "run", progress_bar=False)
    assert [module for _, module, _ in seen] == ["invariant"] * 3 + ["mixture"] * 3
    assert [terms for _, _, terms in seen[:3]] == [{"lm"}] * 3
    assert all({"lm", "invariant", "domain", "mi"} <= terms for _, _, terms in seen[3:])


def test_two_stages_of_one_pass_see_the_batches_of_a_joint_training_of_two(make_recipe, tmp_path, seen):
    train(make_recipe(training=TWO), tmp_path / "two", progress_bar=False)
    stages = [tokens for tokens, _, _ in seen]
    seen.clear()
    train(make_recipe(training={"epochs": 2}), tmp_path / "joint", progress_bar=False)
    assert stages == [tokens for tokens, _, _ in seen]


def test_the_end_of_the_first_stage_is_a_whole_run(trained, weights, assert_bitwise):
    folder = trained[0] / "stages" / "invariant"
    run = load_run(folder, dtype="float32")
    assert_bitwise(run.model.own_state_dict(), weights(folder))
    assert bool(run.model.router.fitted)
    assert list(run.domains) == ["symbolic", "text"]
    assert run.tokenizer("x")["input_ids"]


def test_the_record_and_the_log_tell_the_stages_apart(trained):
    out, _, model, record = trained
    assert json.loads((out / "run.json").read_text()) == record
    assert [stage["stage"] for stage in record["stages"]] == ["invariant", "domains"]
    assert [stage["epochs"] for stage in record["stages"]] == [2, 1]
    assert [stage["steps"] for stage in record["stages"]] == [6, 3]
    assert (record["steps"], record["examples_seen"]) == (9, 3 * record["examples"])
    assert record["train_seconds"] == pytest.approx(sum(stage["train_seconds"] for stage in record["stages"]))
    assert record["train_loss"] == record["stages"][1]["train_loss"]
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    steps = [(line["stage"], line["step"]) for line in lines if "loss" in line]
    assert steps == [(1, step) for step in range(1, 7)] + [(2, step) for step in range(7, 10)]
    assert not any(name.startswith("router") for line in lines if line["stage"] == 1 for name in line)
    assert record["trainable_parameters"] == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_each_stage_has_its_own_learning_rate_schedule(trained):
    lines = [json.loads(line) for line in (trained[0] / "log.jsonl").read_text().splitlines()]
    for number in (1, 2):
        rates = [line["learning_rate"] for line in lines if line["stage"] == number and "loss" in line]
        assert rates[0] == 0.01 and rates == sorted(rates, reverse=True) and rates[-1] < 0.01


def test_a_finished_two_stage_run_keeps_no_checkpoint(trained):
    assert {path.name for path in trained[0].iterdir() if path.is_dir()} == {"stages"}
    assert [path.name for path in (trained[0] / "stages").iterdir()] == ["invariant"]


def test_a_joint_record_has_one_stage(make_recipe, tmp_path):
    _, record = train(make_recipe(), tmp_path / "run", progress_bar=False)
    assert [(stage["stage"], stage["steps"]) for stage in record["stages"]] == [("joint", 3)]
    assert not (tmp_path / "run" / "stages").exists()
    assert "stage" not in (tmp_path / "run" / "log.jsonl").read_text()


def test_a_stage_gives_back_the_gradients_that_it_took(make_recipe, monkeypatch):
    recipe = make_recipe(training=TWO)
    model = build_model(recipe)
    before = {name for name, p in model.named_parameters() if p.requires_grad}
    for stage in stages_of(recipe.training):
        with pytest.raises(KeyboardInterrupt), stage.only(model):
            during = {name for name, p in model.named_parameters() if p.requires_grad}
            assert during == {name for name in before if of_invariant(name) == (stage.number == 1)}
            raise KeyboardInterrupt
        assert {name for name, p in model.named_parameters() if p.requires_grad} == before


def test_the_end_of_a_stage_that_could_not_be_written_is_not_there(make_recipe, tmp_path, monkeypatch):
    original = ICLMForCausalLM.save_pretrained

    def fail(self, folder, **kwargs):
        original(self, folder, **kwargs)
        raise OSError("no space left on device")

    monkeypatch.setattr(ICLMForCausalLM, "save_pretrained", fail)
    with pytest.raises(OSError, match="no space"):
        train(make_recipe(training=TWO), tmp_path / "run", progress_bar=False)
    assert list((tmp_path / "run" / "stages").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "lora"}, "method: lora"),
        ({"model": {"ablation": "no_invariant"}}, "no_invariant"),
        ({"model": {"ablation": "no_domain"}}, "no_domain"),
    ],
)
def test_a_training_of_one_side_has_no_two_stages(make_recipe, tmp_path, change, words):
    with pytest.raises(ConfigurationError, match=words):
        make_recipe(training=TWO, **change)
    recipe = make_recipe(**change).model_copy(update={"training": make_recipe(training=TWO).training})
    with pytest.raises(ConfigurationError, match=words):
        train(recipe, tmp_path / "run", progress_bar=False)
    assert list(tmp_path.iterdir()) == []


def test_a_second_stage_that_diverges_leaves_files_that_are_json(make_recipe, tmp_path):
    training = {**TWO, "learning_rate": 1e30, "max_grad_norm": 0}
    try:
        train(make_recipe(training=training), tmp_path / "run", progress_bar=False)
    except ICLMError:
        return
    records = [(tmp_path / "run" / part / "run.json").read_text() for part in (".", "stages/invariant")]
    for text in [*records, *(tmp_path / "run" / "log.jsonl").read_text().splitlines()]:
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
