"""Loading a run folder: what it gives, and one line for everything that can be wrong with it."""

import json
import shutil

import pytest
import torch

from iclm.errors import ICLMError
from iclm.evaluation.runs import context_length, load_run

MODEL = {"lora_rank": 2, "router_dim": 8, "mi_projection": 8, "mi_queue": 32}


@pytest.fixture(scope="module")
def trained(tiny_llama_folder, tmp_path_factory):
    """A finished run of the tiny base."""
    from iclm.recipe import parse_recipe
    from iclm.training.run import train

    out = tmp_path_factory.mktemp("runs") / "run"
    sources = [{"acre": "IID", "problems": 1, "format": form} for form in ("symbolic", "text")]
    recipe = {"base": tiny_llama_folder, "dtype": "float32", "model": MODEL, "data": {"train": sources}}
    train(parse_recipe(recipe), out, progress_bar=False)
    return out


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def refused(folder, **options):
    with pytest.raises(ICLMError) as caught:
        load_run(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_run_knows_its_domains_and_is_ready_to_evaluate(trained):
    run = load_run(trained)
    assert run.domains == {"symbolic": 0, "text": 1}
    assert not run.model.training
    assert run.tokenizer.pad_token_id is not None
    assert run.record["examples"] == 8


def test_the_context_is_that_of_the_base(trained):
    assert context_length(load_run(trained).model) == 4096


def test_a_run_moved_with_its_base_is_loaded_with_the_new_place(trained, tiny_llama_folder, tmp_path):
    base = shutil.copytree(tiny_llama_folder, tmp_path / "base")
    here, there = load_run(trained, dtype="float32"), load_run(trained, base=str(base), dtype="float32")
    one, two = here.model.state_dict(), there.model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("name", ["run.json", "config.json", "model.safetensors"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    message = refused(copy)
    assert name in message and str(copy) in message


@pytest.mark.parametrize("name", ["run.json", "config.json", "model.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b'{"a": ', b"[]", b"\xff\xfe\x00\x01"], ids=["empty", "cut", "list", "binary"]
)
def test_a_damaged_file_is_named(copy, name, content):
    (copy / name).write_bytes(content)
    assert str(copy / name) in refused(copy)


@pytest.mark.parametrize("size", [7, 100, -8])
def test_a_weight_file_that_was_cut_off_is_named(copy, size):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert str(path) in refused(copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_domains", "many"),
        ("num_domains", 3),
        ("lora_rank", None),
        ("split_layer", "x"),
        ("router", None),
        ("method", "peft"),
        ("base", {"name": 5}),
    ],
)
def test_a_configuration_with_a_value_that_cannot_be_is_refused(copy, key, value):
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    refused(copy)


@pytest.mark.parametrize("domains", [5, None, "text", [["text"]]], ids=str)
def test_a_record_with_domains_that_cannot_be_is_refused(copy, domains):
    path = copy / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "domains": domains}))
    assert "run.json" in refused(copy)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [None, "{", "[]"], ids=["missing", "cut", "list"])
def test_a_tokenizer_that_cannot_be_read_is_refused(copy, name, content):
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(content)
    refused(copy)


def test_another_base_is_recognised_by_its_weights_and_named(trained, base_folders):
    message = refused(trained, base=base_folders["qwen2"])
    assert base_folders["qwen2"] in message and base_folders["llama"] not in message


def test_a_base_whose_weights_changed_after_the_training_is_recognised(trained, tiny_llama_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(tiny_llama_folder, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    assert "fingerprint" in refused(trained, base=str(base))


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_folder_that_is_no_run_is_named(tmp_path, name):
    assert str(tmp_path / name) in refused(tmp_path / name)


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "run").write_text("x")
    assert "it is a file" in refused(tmp_path / "run")


@pytest.mark.parametrize(
    ("field", "value"), [("changes", 3), ("changes", [3]), ("homes", 3), ("homes", {"a": "b"})], ids=str
)
def test_a_record_of_changes_or_homes_that_cannot_be_is_damaged(copy, field, value):
    record(copy, **{field: value})
    assert f"run.json is damaged: {field} must" in refused(copy)


# -- domains and modules -----------------------------------------------------------------------------------------------


def record(folder, **values):
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_run_may_say_which_module_is_of_which_domain(copy):
    record(copy, domains=["text", "late"], domain_modules={"late": 4, "text": 1})
    run = load_run(copy)
    assert run.domains == {"late": 4, "text": 1}
    assert run.numbered == ["symbolic", "text", "domain 2", "domain 3", "late"]


@pytest.mark.parametrize(
    "numbers",
    [{"symbolic": 0}, {"symbolic": 0, "text": 0}, {"symbolic": 0, "text": -1}, {"symbolic": 0, "text": "1"}, [0, 1]],
)
def test_modules_of_domains_that_cannot_be_are_refused(copy, numbers):
    record(copy, domain_modules=numbers)
    assert "domain_modules" in refused(copy)


def test_a_run_without_names_calls_its_modules_by_their_domains(copy):
    path = copy / "config.json"
    values = json.loads(path.read_text())
    assert values.pop("domain_names") == ["symbolic", "text"]
    path.write_text(json.dumps(values))
    assert load_run(copy).names == {"domain_0": "symbolic", "domain_1": "text"}
