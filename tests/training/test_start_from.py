"""Starting from a saved ICLM: its weights and its router are taken over, and one that does not fit is named."""

import shutil

import pytest
import torch

from iclm.errors import CheckpointError, ConfigurationError
from iclm.model.router import VQRouter
from iclm.recipe import load_recipe
from iclm.training.run import build_model, train

MODEL = {"num_domains": 3, "mix": "low_rank"}


@pytest.fixture(scope="module")
def source(make_recipe, tmp_path_factory):
    """A finished run to start from."""
    out = tmp_path_factory.mktemp("source") / "run"
    train(make_recipe(model=MODEL, training={"learning_rate": 1e-2}), out, progress_bar=False)
    return out


@pytest.fixture
def untrained(monkeypatch):
    """No training at all: a run then ends with the weights that it starts with."""
    from iclm.training.trainer import ICLMTrainer

    class Result:
        global_step, training_loss = 0, 0.0

    monkeypatch.setattr(ICLMTrainer, "train", lambda *args, **kwargs: Result)


def test_a_training_starts_from_the_saved_weights_and_router(
    make_recipe, source, tmp_path, untrained, weights, assert_bitwise, monkeypatch
):
    monkeypatch.setattr(VQRouter, "fit", lambda *args: pytest.fail("the router was fitted anew"))
    recipe = make_recipe(model=MODEL, training={"start_from": str(source)}, seed=9)
    train(recipe, tmp_path / "run", progress_bar=False)
    assert_bitwise(weights(tmp_path / "run"), weights(source))


def test_a_training_goes_on_from_the_end_of_a_first_stage(make_recipe, tmp_path, weights):
    two = {"stages": "two_stage", "warmup": 0.0}
    train(make_recipe(model=MODEL, training=two), tmp_path / "two", progress_bar=False)
    start = tmp_path / "two" / "stages" / "invariant"
    train(make_recipe(model=MODEL, training={"start_from": str(start)}), tmp_path / "run", progress_bar=False)
    before, after = weights(start), weights(tmp_path / "run")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before if "lora_B.1" in name)


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ({"num_domains": 2}, "model.num_domains is 3; this recipe has 2"),
        ({"lora_rank": 4}, "model.lora_rank is 2; this recipe has 4"),
        ({"lora_alpha": 1.0}, "model.lora_alpha"),
        ({"split_layer": 2}, "model.split_layer"),
        ({"target_modules": ["q_proj"]}, "model.target_modules"),
        ({"router": "kmeans"}, "model.router"),
        ({"router_layer": 2}, "model.router_layer"),
        ({"router_dim": 4}, "model.router_dim"),
        ({"mix": "fixed"}, "model.mix"),
        ({"mi_loss": "hsic"}, "model.mi_loss"),
        ({"mi_queue": 8}, "model.mi_queue"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_configuration_is_refused_with_the_name_of_the_field(make_recipe, source, tmp_path, model, field):
    recipe = make_recipe(model={**MODEL, **model}, training={"start_from": str(source)})
    with pytest.raises(ConfigurationError) as caught:
        train(recipe, tmp_path / "run", progress_bar=False)
    assert field in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_shape_the_weights_may_differ(make_recipe, source, tmp_path, untrained):
    model = {**MODEL, "mi_weight": 0.5, "mi_temperature": 2.0, "lora_dropout": 0.5, "codebook_decay": 0.5}
    train(make_recipe(model=model, training={"start_from": str(source)}), tmp_path / "run", progress_bar=False)
    assert (tmp_path / "run" / "run.json").is_file()


def test_another_base_is_refused(make_recipe, source, tmp_path, base_folders):
    recipe = make_recipe(model=MODEL, training={"start_from": str(source)}, base=base_folders["qwen2"])
    with pytest.raises(ConfigurationError, match="fingerprint"):
        train(recipe, tmp_path / "run", progress_bar=False)


def test_a_folder_that_holds_no_iclm_is_refused(make_recipe, tmp_path):
    for place in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CheckpointError, match=str(place)):
            train(make_recipe(training={"start_from": str(place)}), tmp_path / "run", progress_bar=False)
    assert list(tmp_path.iterdir()) == []


def test_the_run_that_is_started_from_cannot_be_replaced(make_recipe, source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "run")
    recipe = make_recipe(model=MODEL, training={"start_from": str(copy)})
    with pytest.raises(ConfigurationError, match="replace"):
        train(recipe, copy, overwrite=True, progress_bar=False)
    assert (copy / "run.json").is_file()


def test_the_place_is_looked_for_beside_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "recipes" / "run").mkdir(parents=True)
    path = tmp_path / "recipes" / "recipe.yaml"
    path.write_text("data: {train: [{acre: IID, problems: 1, format: text}]}\ntraining: {start_from: run}\n")
    monkeypatch.chdir(tmp_path)
    assert load_recipe("recipes/recipe.yaml").training.start_from == tmp_path / "recipes" / "run"
    assert load_recipe(path, ["training.start_from=elsewhere"]).training.start_from == tmp_path / "elsewhere"


def test_a_fresh_model_has_no_fitted_router(make_recipe):
    assert not bool(build_model(make_recipe(model=MODEL)).router.fitted)


# -- the domains of both -----------------------------------------------------------------------------------------------


def source_of(form):
    return {"acre": "IID", "problems": 3, "format": form}


def sources(*forms):
    return {"train": [source_of(form) for form in forms]}


def test_domains_in_another_order_are_refused_with_both_orders(make_recipe, source, tmp_path):
    recipe = make_recipe(model=MODEL, data=sources("text", "symbolic"), training={"start_from": str(source)})
    with pytest.raises(ConfigurationError) as caught:
        train(recipe, tmp_path / "run", progress_bar=False)
    message = str(caught.value)
    assert "[symbolic, text]" in message and "[text, symbolic]" in message and "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_domain_of_the_run_alone_keeps_its_number(make_recipe, source, tmp_path, untrained):
    """The first domain alone keeps its number; the second alone would get the module of the first."""
    first = make_recipe(model=MODEL, data=sources("symbolic"), training={"start_from": str(source)})
    train(first, tmp_path / "run", progress_bar=False)
    second = make_recipe(model=MODEL, data=sources("text"), training={"start_from": str(source)})
    with pytest.raises(ConfigurationError, match=r"text would get domain module 0, and its own is 1"):
        train(second, tmp_path / "other", progress_bar=False)


def test_a_domain_that_had_no_module_may_get_any(make_recipe, tmp_path, untrained):
    one = {**MODEL, "num_domains": 1}
    train(make_recipe(model=one), tmp_path / "one", progress_bar=False)
    start = {"start_from": str(tmp_path / "one")}
    train(make_recipe(model=one, data=sources("text"), training=start), tmp_path / "two", progress_bar=False)
    assert (tmp_path / "two" / "run.json").is_file()


def test_plain_lora_has_no_modules_to_confuse(make_recipe, tmp_path, untrained):
    train(make_recipe(method="lora"), tmp_path / "one", progress_bar=False)
    again = {"data": sources("text", "symbolic"), "training": {"start_from": str(tmp_path / "one")}}
    train(make_recipe(method="lora", **again), tmp_path / "two", progress_bar=False)
    assert (tmp_path / "two" / "run.json").is_file()


@pytest.mark.parametrize(("router", "second"), [("vq", "text"), ("oracle", "late")])
def test_names_stay_and_a_module_without_one_gets_that_of_its_domain(make_recipe, tmp_path, untrained, router, second):
    """A learned router has no code for a domain that comes new; the oracle sends it to the module of its number."""
    from iclm.evaluation.runs import load_run
    from iclm.training.run_modules import rename

    model = {**MODEL, "router": router}
    train(make_recipe(model=model, data=sources("symbolic")), tmp_path / "first", progress_bar=False)
    assert load_run(tmp_path / "first").model.config.names == ["symbolic", "domain_1", "domain_2"]
    rename(tmp_path / "first", "domain_0", "symbols", overwrite=True)
    rename(tmp_path / "first", "domain_2", "spare", overwrite=True)
    more = {"train": [source_of("symbolic"), {**source_of("text"), "domain": second}]}
    start = {"start_from": str(tmp_path / "first")}
    train(make_recipe(model=model, data=more, training=start), tmp_path / "run", progress_bar=False)
    middle = "late" if router == "oracle" else "domain_1"
    assert load_run(tmp_path / "run").model.config.names == ["symbols", middle, "spare"]
