"""What happens over the steps: the weight of the independence loss, the groups of the optimizer, router health in the log."""

import json
import warnings

import pytest
import torch

from iclm.model.health import RouterCollapseWarning
from iclm.model.plan import Route
from iclm.training.run import train
from iclm.training.stages import Ramp


def lines(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize(
    ("start", "length", "scales"),
    [
        (0.0, 0.0, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (0.3, 0.0, [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]),
        (0.0, 0.5, [0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1]),
        (0.2, 0.5, [0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1]),
        (1.0, 0.0, [0] * 10),
    ],
)
def test_the_weight_waits_and_then_rises_linearly(start, length, scales):
    assert [Ramp(start, length).scale(step, 10) for step in range(10)] == pytest.approx(scales)


def test_the_scale_is_set_before_each_step_logged_and_put_back(make_recipe, make_trainer, monkeypatch):
    recipe = make_recipe(model={"mi_weight": 0.5}, training={"epochs": 2, "mi_start": 0.3, "mi_ramp": 0.5})
    trainer = make_trainer(recipe)
    seen = []
    forward = trainer.model.forward
    monkeypatch.setattr(
        trainer.model,
        "forward",
        lambda *args, **kwargs: seen.append(trainer.model.mi_scale) or forward(*args, **kwargs),
    )
    trainer.train()
    expected = [Ramp(0.3, 0.5).scale(step, 6) for step in range(6)]
    assert seen == expected and len(set(seen)) == 5
    assert lines(trainer, "mi_weight") == [0.5 * scale for scale in expected]
    assert trainer.model.mi_scale == 1.0


def test_a_weight_of_zero_trains_as_without_the_loss_but_fills_the_queue(make_recipe, make_trainer):
    states = []
    for model, training in (({"mi_weight": 0.0}, {}), ({"mi_weight": 0.5}, {"mi_start": 1.0})):
        trainer = make_trainer(make_recipe(model=model, training=training))
        trainer.train()
        states.append(trainer.model.own_state_dict())
    without, waiting = states
    assert all(torch.equal(waiting[name], without[name]) for name in without if "lora_" in name)
    assert waiting["independence.filled"] > without["independence.filled"] == 0


def test_a_constant_weight_is_not_logged(make_recipe, make_trainer):
    trainer = make_trainer(make_recipe())
    trainer.train()
    assert lines(trainer, "mi_weight") == []


def test_router_and_critic_have_learning_rates_of_their_own_and_no_weight_decay(make_recipe, make_trainer):
    training = {"learning_rate": 0.5, "weight_decay": 0.1, "router_learning_rate": 0.25, "critic_learning_rate": 0.125}
    trainer = make_trainer(make_recipe(model={"router": "soft", "mi_loss": "club", "mix": "gate"}, training=training))
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    found = {}
    for group in trainer.create_optimizer().param_groups:
        parts = {names[id(p)].partition(".")[0] for p in group["params"]}
        found[(group["lr"], group["weight_decay"])] = parts
    assert found == {
        (0.5, 0.1): {"base"},
        (1e-4, 0.1): {"aggregator"},
        (0.25, 0.0): {"router"},
        (0.125, 0.0): {"independence"},
    }


def test_every_line_of_the_log_has_the_health_of_the_router_since_the_last(make_recipe, make_trainer, monkeypatch):
    trainer = make_trainer(make_recipe(training={"logging_steps": 2}))
    routes = iter([[0], [1], [1]])

    def route(prompt):
        return Route.to(torch.tensor(next(routes) * prompt.examples))

    monkeypatch.setattr(trainer.model.router, "forward", route)
    trainer.train()
    assert lines(trainer, "router_usage_0") == [0.5, 0.0]
    assert lines(trainer, "router_usage_1") == [0.5, 1.0]
    assert lines(trainer, "router_dead") == [0.0, 1.0]
    assert all(0.5 <= agreement <= 1 for agreement in lines(trainer, "router_agreement"))


def test_the_log_of_a_run_has_the_figures_of_its_router(make_recipe, tmp_path):
    train(make_recipe(model={"num_domains": 3}), tmp_path / "run", progress_bar=False)
    steps = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    names = {"router_perplexity", "router_dead", "router_revived", "router_error", "router_agreement"}
    for line in steps:
        if "loss" in line:
            assert names <= line.keys()
            assert sum(line[f"router_usage_{code}"] for code in range(3)) == pytest.approx(1.0)


def test_plain_lora_has_no_router_to_report(make_recipe, make_trainer):
    trainer = make_trainer(make_recipe(method="lora"))
    trainer.train()
    assert not any(name.startswith("router") for entry in trainer.state.log_history for name in entry)


@pytest.mark.parametrize(("router", "count"), [("vq", 1), ("fixed:1", 0)])
def test_a_collapsed_router_is_told_once_and_a_fixed_one_never(make_recipe, make_trainer, monkeypatch, router, count):
    monkeypatch.setattr("iclm.model.health.WINDOW", 20)
    trainer = make_trainer(make_recipe(model={"router": router}, training={"epochs": 3}))
    monkeypatch.setattr(
        trainer.model.router, "forward", lambda prompt: Route.to(torch.ones(prompt.examples, dtype=torch.long))
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    assert sum(item.category is RouterCollapseWarning for item in caught) == count


def test_the_last_steps_are_logged_although_no_line_was_due(make_recipe, make_trainer):
    trainer = make_trainer(make_recipe(training={"logging_steps": 2}))
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [2, 3]
