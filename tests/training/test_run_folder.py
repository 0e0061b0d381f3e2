"""A training from recipe to run folder: what it leaves, what it refuses, and that a seed decides everything."""

import json
import math
import shutil

import pytest
import torch
from safetensors import safe_open

from iclm.errors import ConfigurationError, DataError, ICLMError
from iclm.evaluation.runs import load_run
from iclm.recipe import dump_recipe, load_recipe
from iclm.training.folder import check_folder, clear_folder
from iclm.training.run import train
from iclm.training.run_modules import list_modules
from iclm.version import software

PLAIN = {".json", ".jsonl", ".yaml", ".safetensors", ".txt", ".model", ".jinja"}


@pytest.fixture(scope="module")
def trained(make_recipe, tmp_path_factory):
    """A finished run: its folder, its recipe, the model and the record."""
    out = tmp_path_factory.mktemp("runs") / "run"
    recipe = make_recipe(training={"epochs": 2, "save_steps": 2})
    model, record = train(recipe, out, progress_bar=False)
    return out, recipe, model, record


def files(folder):
    """Every file below a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_folder_holds_nothing_that_could_be_unpickled(trained):
    names = [path for path in trained[0].rglob("*") if path.is_file()]
    assert {path.suffix for path in names} <= PLAIN
    with safe_open(trained[0] / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    for path in names:
        if path.suffix not in (".safetensors", ".jsonl"):
            path.read_text(encoding="utf-8")


def test_the_checkpoints_are_gone_when_the_training_is_done(trained):
    assert not (trained[0] / "checkpoints").exists()
    assert {p.name for p in trained[0].iterdir() if p.is_dir()} == set()


def test_the_record_says_what_was_trained(trained):
    out, recipe, model, record = trained
    assert json.loads((out / "run.json").read_text()) == record
    expected = {
        "method": "iclm",
        "base": recipe.base,
        "domains": ["symbolic", "text"],
        "examples": 24,
        "examples_seen": 48,
        "steps": 6,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "base_parameters": model.base_parameters,
        "dtype": "float32",
    }
    assert {name: record[name] for name in expected} == expected
    assert math.isfinite(record["train_loss"]) and record["train_loss"] > 0
    assert record["versions"] == software()


def test_the_recipe_in_the_folder_is_the_recipe_that_was_run(trained):
    assert load_recipe(trained[0] / "recipe.yaml") == trained[1]


def test_the_log_has_a_line_for_every_step(trained):
    lines = [json.loads(line) for line in (trained[0] / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    names = {"loss", "loss_lm", "loss_invariant", "loss_domain", "loss_mi", "loss_router", "learning_rate", "grad_norm"}
    assert all(names <= line.keys() for line in steps)


def test_the_saved_run_loads_as_the_model_that_was_trained(trained, assert_bitwise):
    model = trained[2]
    assert not model.training
    assert_bitwise(load_run(trained[0], dtype="float32").model.own_state_dict(), model.own_state_dict())


def test_a_run_is_loaded_in_the_dtype_that_the_recipe_asks_for(make_recipe, tmp_path):
    for dtype in ("float32", "bfloat16"):
        recipe = make_recipe(method="lora", dtype=dtype)
        train(recipe, tmp_path / dtype, progress_bar=False)
        assert load_run(tmp_path / dtype).model.dtype == getattr(torch, dtype)


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(make_recipe, tmp_path, weights, assert_bitwise):
    settings = {"model": {"lora_dropout": 0.1}}
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        torch.manual_seed(len(name))
        train(make_recipe(seed=seed, **settings), tmp_path / name, progress_bar=False)
    one, two, other = (weights(tmp_path / name) for name in ("one", "two", "other"))
    assert_bitwise(one, two)
    lora = [name for name in one if "lora_" in name]
    assert lora and not any(torch.equal(one[name], other[name]) for name in lora)


def test_the_log_is_given_to_the_caller(make_recipe, tmp_path):
    found = []
    train(make_recipe(method="lora"), tmp_path / "run", progress_bar=False, on_log=found.append)
    assert [line["loss"] for line in found if "loss" in line]


DIVERGED = {"learning_rate": 1e30, "max_grad_norm": 0, "warmup": 0.0, "epochs": 2}


def test_a_diverged_training_is_not_reported_as_a_loss_of_zero(make_recipe, tmp_path):
    logged = []
    try:
        train(make_recipe(training=DIVERGED), tmp_path / "run", progress_bar=False, on_log=logged.append)
    except ICLMError:
        return  # refusing to leave such a run is as good
    losses = [line["loss"] for line in logged if "loss" in line]
    assert not math.isfinite(losses[-1]), losses


def test_the_files_of_a_diverged_training_are_json_that_any_reader_takes(make_recipe, tmp_path):
    out = tmp_path / "run"
    try:
        train(make_recipe(training=DIVERGED), out, progress_bar=False)
    except ICLMError:
        return
    for text in [(out / "run.json").read_text(), *(out / "log.jsonl").read_text().splitlines()]:
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"train": [{"file": "nowhere.jsonl"}]}}, "nowhere.jsonl"),
        ({"data": {"max_tokens": 20}}, "the limit is 20"),
        ({"base": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"model": {"num_domains": 0}}, "num_domains is 0"),
        ({"model": {"split_layer": 9}}, "split_layer is 9"),
        ({"model": {"router": "oracle", "num_domains": 1}}, "num_domains is 1"),
        ({"model": {"target_modules": ["nope"]}}, "nope"),
        ({"model": {"num_domains": 50}}, "50 codes"),
    ],
    ids=["data", "too long", "base", "no domain", "split", "oracle", "targets", "few examples"],
)
def test_a_training_that_cannot_begin_leaves_no_folder(make_recipe, tmp_path, change, words):
    with pytest.raises(ICLMError, match=words):
        train(make_recipe(**change), tmp_path / "run", progress_bar=False)
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_cannot_begin_leaves_no_parent_folder(make_recipe, tmp_path):
    with pytest.raises(DataError):
        train(make_recipe(data={"train": [{"file": "nowhere.jsonl"}]}), tmp_path / "a/b/run", progress_bar=False)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_validation_file_is_found_before_the_training(make_recipe, tmp_path, monkeypatch):
    from iclm.training.trainer import ICLMTrainer

    monkeypatch.setattr(ICLMTrainer, "train", lambda *args, **kwargs: pytest.fail("the training began"))
    with pytest.raises(ICLMError, match=r"nowhere\.jsonl"):
        train(make_recipe(data={"validation": [{"file": "nowhere.jsonl"}]}), tmp_path / "run", progress_bar=False)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (
            {"acre": "IID", "problems": 1, "format": "text"},
            r"data\.validation\.0 \(acre-IID-train-text\) asks problems that",
        ),
        ({"file": "free.jsonl"}, r"free\.jsonl:1 has no choices, .* --generate"),
    ],
)
def test_validation_that_means_nothing_is_refused_before_the_training(make_recipe, tmp_path, monkeypatch, source, why):
    from iclm.training.trainer import ICLMTrainer

    monkeypatch.chdir(tmp_path)
    (tmp_path / "free.jsonl").write_text('{"input": [{"role": "user", "content": "1 + 1 = "}], "ideal": "2"}\n')
    monkeypatch.setattr(ICLMTrainer, "train", lambda *args, **kwargs: pytest.fail("the training began"))
    with pytest.raises(ICLMError, match=why):
        train(make_recipe(data={"validation": [source]}), tmp_path / "run", progress_bar=False)


def test_an_existing_run_is_not_touched_without_overwrite(trained, make_recipe):
    before = files(trained[0])
    with pytest.raises(ConfigurationError, match="--overwrite"):
        train(make_recipe(), trained[0], progress_bar=False)
    assert files(trained[0]) == before


def test_overwrite_does_not_lose_the_old_run_to_a_recipe_that_cannot_begin(make_recipe, tmp_path):
    train(make_recipe(method="lora"), tmp_path / "run", progress_bar=False)
    before = files(tmp_path / "run")
    with pytest.raises(DataError):
        recipe = make_recipe(data={"train": [{"file": "nowhere.jsonl"}]})
        train(recipe, tmp_path / "run", overwrite=True, progress_bar=False)
    assert files(tmp_path / "run") == before


def test_overwrite_replaces_a_run_and_leaves_nothing_of_it(make_recipe, tmp_path, weights):
    out = tmp_path / "run"
    train(make_recipe(), out, progress_bar=False)
    (out / "quickstart.json").write_text("{}")
    train(make_recipe(method="lora"), out, overwrite=True, progress_bar=False)
    assert not (out / "quickstart.json").exists()
    assert json.loads((out / "run.json").read_text())["method"] == "lora"
    assert not any(name.startswith("router.") for name in weights(out))


@pytest.mark.parametrize("options", [{"overwrite": True}, {"resume": True}], ids=["overwrite", "resume"])
def test_a_folder_that_is_no_run_is_not_touched(make_recipe, tmp_path, options):
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / "model.safetensors").write_text("not ours")
    with pytest.raises(ICLMError):
        train(make_recipe(method="lora"), folder, progress_bar=False, **options)
    assert files(folder) == {"model.safetensors": b"not ours"}


def test_a_run_that_holds_something_else_too_is_not_replaced(make_recipe, tmp_path):
    out = tmp_path / "run"
    train(make_recipe(method="lora"), out, progress_bar=False)
    (out / "notes").mkdir()
    (out / "notes" / "thesis.tex").write_text("mine")
    before = files(out)
    with pytest.raises(
        ConfigurationError, match="holds notes, which is none of its files; a run folder is replaced only"
    ):
        train(make_recipe(method="lora"), out, overwrite=True, progress_bar=False)
    assert files(out) == before


MINE = (
    "mine.safetensors",
    "tokenizer_experiments/notes.txt",
    "vocabulary.csv",
    "diagnosis/my_notes.md",
    "lora/paper.md",
    "stages/invariant/notes/plan.md",
)


@pytest.mark.parametrize("name", MINE)
def test_a_file_of_ones_own_is_not_lost_whatever_it_is_called_and_wherever_it_lies(make_recipe, tmp_path, name):
    out = tmp_path / "run"
    train(make_recipe(method="lora"), out, progress_bar=False)
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("mine")
    before = files(out)
    with pytest.raises(ConfigurationError, match="which is none of its files; a run folder is replaced only"):
        train(make_recipe(method="lora"), out, overwrite=True, progress_bar=False)
    assert files(out) == before


def test_a_run_is_replaced_with_all_that_commands_leave_in_it(make_recipe, tmp_path):
    from iclm.report.diagnosis import FILE
    from iclm.report.plots import PLOTS

    out = tmp_path / "run"
    train(make_recipe(training={"stages": "two_stage"}), out, progress_bar=False)
    shutil.copytree(out, out / "lora")
    left = [f"diagnosis/{name}" for name in (FILE, *PLOTS)] + [
        f"lora/diagnosis/{FILE}",
        "quickstart.json",
        "report.html",
    ]
    left += [
        ".iclm-0123456789abcdef.tmp/diagnosis.json",
        ".iclm-fedcba9876543210.tmp",
        ".tmpcbgeJA",
        ".model.safetensors.part",
        "log_before_removal.jsonl",
        "stages/invariant/report.html",
    ]
    left += ["checkpoints/runs/events", "checkpoints/invariant/checkpoint-3/optimizer.pt", ".config.part/config.json"]
    for name in left:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("left")
    kept = tmp_path / "elsewhere"
    kept.mkdir()
    (kept / "config.json").write_text("mine")
    (out / "stages" / ".invariant.part").symlink_to(kept)
    check_folder(out, overwrite=True, resume=False)
    clear_folder(out)
    assert list(out.iterdir()) == [] and files(kept) == {"config.json": b"mine"}


def test_to_replace_and_to_resume_exclude_each_other(make_recipe, tmp_path):
    with pytest.raises(ConfigurationError, match="--overwrite and --resume exclude each other"):
        train(make_recipe(), tmp_path / "run", overwrite=True, resume=True, progress_bar=False)
    assert not (tmp_path / "run").exists()


def test_a_module_that_gets_no_example_of_a_domain_is_not_called_by_it(make_recipe, tmp_path):
    """Examples of one text: the router has one code for both domains, and another that nothing is near."""
    row = {"input": [{"role": "user", "content": "Is 7 prime? "}], "choice_strings": ["no", "yes"], "ideal": "yes"}
    for name in ("early", "late"):
        (tmp_path / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 4)
    data = {"train": [{"file": str(tmp_path / f"{name}.jsonl")} for name in ("early", "late")]}
    with pytest.warns(UserWarning, match="no module of its own for domain 'late'"):
        train(make_recipe(data=data), tmp_path / "run", progress_bar=False)
    assert load_run(tmp_path / "run").model.config.names == ["early", "domain_1"]
    assert [row["name"] for row in list_modules(tmp_path / "run")] == ["invariant", "early", "domain_1"]


def test_somebodys_own_recipe_is_no_run(make_recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text("data: {train: [{acre: IID, problems: 1, format: text}]}\n")
    before = files(tmp_path)
    with pytest.raises(ConfigurationError, match="is not a run folder"):
        train(make_recipe(method="lora"), tmp_path, overwrite=True, progress_bar=False)
    assert files(tmp_path) == before
    recipe = make_recipe(method="lora")
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))  # a run that was killed at once
    check_folder(tmp_path, overwrite=True, resume=False)


@pytest.mark.parametrize("written_out", [True, False])
def test_resuming_in_a_folder_of_ones_own_files_is_refused_and_deletes_nothing(make_recipe, tmp_path, written_out):
    recipe = make_recipe(method="lora")
    text = dump_recipe(recipe)
    (tmp_path / "recipe.yaml").write_text(text if written_out else "# mine\n" + text)
    (tmp_path / "notes").mkdir()
    for name in ("data.csv", "base.safetensors", "notes/paper.md"):
        (tmp_path / name).write_text("mine")
    before = files(tmp_path)
    with pytest.raises(ConfigurationError, match="is not a run folder, so it is neither replaced nor resumed"):
        train(recipe, tmp_path, resume=True, progress_bar=False)
    assert files(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_read(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda place, mode: False)
    with pytest.raises(ConfigurationError, match=r"run cannot be written: no permission to write to "):
        train(make_recipe(method="lora"), tmp_path / "run", progress_bar=False)


def test_a_training_that_diverged_says_so(make_recipe, tmp_path):
    from iclm.errors import CheckpointError
    from iclm.evaluation.evaluate_run import answer
    from iclm.evaluation.runs import load_run

    recipe = make_recipe(method="lora", training=DIVERGED)
    _, record = train(recipe, tmp_path / "run", progress_bar=False)
    assert record["diverged"]
    with pytest.raises(CheckpointError, match=r"has diverged: weights of"):
        answer(load_run(tmp_path / "run"), "1 + 1 = ")


def test_an_empty_folder_may_become_a_run(make_recipe, tmp_path):
    train(make_recipe(method="lora"), tmp_path, progress_bar=False)
    assert (tmp_path / "run.json").is_file()


def test_a_link_to_an_empty_folder_may_become_a_run(make_recipe, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")
    train(make_recipe(method="lora"), tmp_path / "run", progress_bar=False)
    assert (tmp_path / "disk" / "run.json").is_file()


def test_the_current_folder_may_become_a_run(make_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(make_recipe(method="lora"), ".", progress_bar=False)
    assert (tmp_path / "run.json").is_file()


@pytest.mark.parametrize("out", ["file", "file/run"])
def test_a_file_in_the_way_is_refused(make_recipe, tmp_path, out):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigurationError, match="file"):
        train(make_recipe(method="lora"), tmp_path / out, overwrite=True, progress_bar=False)
    assert files(tmp_path) == {"file": b"mine"}


def test_max_tokens_cannot_exceed_the_context_of_the_base(make_recipe, tmp_path, tiny_tokenizer):
    row = {"input": [{"role": "user", "content": "zq " * 2000}], "choice_strings": ["a", "b"], "ideal": "b"}
    (tmp_path / "long.jsonl").write_text(json.dumps(row) + "\n")
    assert len(tiny_tokenizer(row["input"][0]["content"])["input_ids"]) > 4096
    data = {"train": [{"file": str(tmp_path / "long.jsonl")}], "max_tokens": 100_000}
    with pytest.raises(ICLMError, match="4096"):
        train(make_recipe(method="lora", data=data), tmp_path / "run", progress_bar=False)


@pytest.mark.parametrize("compiled", [False, True])
def test_layers_are_compiled_where_the_recipe_says_so(make_recipe, tmp_path, monkeypatch, compiled):
    from iclm.model import ICLMForCausalLM

    calls = []
    monkeypatch.setattr(ICLMForCausalLM, "compile_layers", lambda self: calls.append(self))
    model, _ = train(make_recipe(training={"compile": compiled}), tmp_path / "run", progress_bar=False)
    assert calls == ([model] if compiled else [])
