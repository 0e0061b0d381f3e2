"""Recipes for tiny trainings, and the trainer that a recipe makes."""

import pytest
from safetensors.torch import load_file

MODEL = {"lora_rank": 2, "router_dim": 8, "mi_projection": 8, "mi_queue": 32}
SYMBOLIC = {"acre": "IID", "problems": 3, "format": "symbolic"}
TEXT = {"acre": "IID", "problems": 3, "format": "text"}


@pytest.fixture(scope="session")
def make_recipe(tiny_llama_folder):
    """Make the recipe of a tiny training: 12 symbolic and 12 text examples, 3 steps an epoch."""
    from iclm.recipe import parse_recipe

    def make(model=(), data=(), training=(), **values):
        return parse_recipe(
            {
                "base": tiny_llama_folder,
                "dtype": "float32",
                "model": {**MODEL, **dict(model)},
                "data": {"train": [SYMBOLIC, TEXT], **dict(data)},
                "training": {"batch_size": 8, "logging_steps": 1, **dict(training)},
                **values,
            }
        )

    return make


@pytest.fixture
def make_trainer(tmp_path):
    """Make the trainer of a recipe's stage, as `iclm train` does, for its own training examples."""
    from iclm.data.loading import training_data
    from iclm.model import load_tokenizer
    from iclm.training.run import build_model, training_arguments
    from iclm.training.run import make_trainer as make_stage
    from iclm.training.stages import stages_of

    def make(recipe, stage=0, model=None):
        tokenizer = load_tokenizer(recipe.base)
        packs, _, _ = training_data(recipe.data.train, tokenizer, max_tokens=None, pack=recipe.data.pack)
        stage = stages_of(recipe.training)[stage]
        arguments = training_arguments(recipe, tmp_path / "trainer", stage)
        arguments.disable_tqdm = True
        model = build_model(recipe) if model is None else model
        return make_stage(recipe, model, arguments, packs, tokenizer.pad_token_id, stage)

    return make


@pytest.fixture(scope="session")
def weights():
    """The tensors that a run folder holds, by name."""
    return lambda folder: load_file(folder / "model.safetensors")


@pytest.fixture(scope="session")
def assert_bitwise():
    """Assert that two states hold the same tensors."""
    import torch

    def check(one, two):
        assert one.keys() == two.keys()
        different = [name for name in one if not torch.equal(one[name], two[name])]
        assert not different, f"{len(different)} of {len(one)} tensors differ, for instance {different[0]}"

    return check
