"""Trainings on a 4-bit base."""

import pytest
import torch

from iclm.errors import BackboneError
from iclm.evaluation.runs import load_run
from iclm.recipe import parse_recipe
from iclm.training import run
from iclm.training.run import train


def test_without_a_gpu_nothing_is_loaded_and_the_folder_is_left_alone(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(run, "load_tokenizer", lambda name: pytest.fail("loaded the tokenizer"))
    with pytest.raises(BackboneError, match="needs an NVIDIA GPU"):
        train(make_recipe(quantization="nf4"), tmp_path / "run", progress_bar=False)
    assert not (tmp_path / "run").exists()


def test_a_run_says_that_its_base_was_4_bit_and_is_loaded_so(four_bit, make_recipe, tmp_path, weights, assert_bitwise):
    recipe = make_recipe(quantization="nf4", training={"save_steps": 2})
    model, record = train(recipe, tmp_path / "run", progress_bar=False)
    _, expected = train(make_recipe(), tmp_path / "plain", progress_bar=False)
    assert (record["quantization"], expected["quantization"]) == ("nf4", "none")
    assert record["base_parameters"] == expected["base_parameters"]
    assert weights(tmp_path / "run").keys() == weights(tmp_path / "plain").keys()
    assert record["train_loss"] == pytest.approx(expected["train_loss"], rel=0.2)
    loaded = load_run(tmp_path / "run").model
    assert loaded.config.base == model.config.base
    assert_bitwise(loaded.own_state_dict(), model.own_state_dict())


def test_an_interrupted_training_on_a_4_bit_base_goes_on_as_if_it_had_not_been(
    four_bit, make_recipe, tmp_path, weights, assert_bitwise
):
    recipe = make_recipe(quantization="nf4", training={"epochs": 2, "save_steps": 2})
    train(recipe, tmp_path / "whole", progress_bar=False)
    steps = iter(range(1, 5))

    def stop(logs):
        if next(steps) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", progress_bar=False, on_log=stop)
    train(recipe, tmp_path / "run", resume=True, progress_bar=False)
    assert_bitwise(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_a_4_bit_training_may_start_from_a_model_on_the_whole_base(four_bit, make_recipe, tmp_path):
    train(make_recipe(), tmp_path / "first", progress_bar=False)
    values = make_recipe(quantization="nf4").model_dump()
    values["training"]["start_from"] = tmp_path / "first"
    _, record = train(parse_recipe(values), tmp_path / "second", progress_bar=False)
    assert record["quantization"] == "nf4"
