"""Invariant 6: save, then load, gives bitwise equal logits, routes and next training step; safetensors only."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from iclm.errors import CheckpointError, ICLMError
from iclm.model import ICLMConfig, ICLMForCausalLM

SETTINGS = [
    {"router": "vq", "num_domains": 3, "aggregator": "mix", "mix": "low_rank", "dead_code_threshold": 0.1},
    {"router": "vq", "num_domains": 3, "active_domains": 2, "aggregator": "concat"},
    {"router": "oracle", "num_domains": 2, "mix": "gate", "mi_projection": None},
    {"router": "random", "num_domains": 2, "mi_queue": 0},
    {"method": "lora"},
]


def step(model, labelled, trainable, seed):
    """One training step with a fresh optimizer."""
    torch.manual_seed(seed)
    model.train()
    batch = labelled(seed=seed)
    extra = {"domain_ids": torch.tensor([0, 1, 0, 1])} if model.config.router == "oracle" else {}
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.01)
    loss = model(**batch, **extra).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    model.eval()
    return loss.detach()


@pytest.fixture
def trained(request, base_folders, random_prompts, padded, labelled, trainable, differ):
    """An ICLM made by folder name, with modules that differ, after two training steps."""

    def make(architecture="llama", dtype="float32", **settings):
        folder = base_folders[architecture]
        model = ICLMForCausalLM.from_base(folder, dtype=dtype, lora_rank=2, **{"mi_projection": 8, **settings})
        differ(model)
        model.fit_router([padded(random_prompts([3 + n % 9 for n in range(30)], seed=1))])
        for seed in (1, 2):
            step(model, labelled, trainable, seed)
        return model

    return make


def answers(model, batch):
    extra = {"domain_ids": torch.tensor([0, 1, 0, 1])} if model.config.router == "oracle" else {}
    with torch.no_grad():
        return model(**batch, **extra)


def assert_bitwise(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), f"{name} differs"


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_reloaded_model_continues_bitwise(
    trained, architecture, settings, tmp_path, random_prompts, padded, labelled, trainable
):
    model = trained(architecture, **settings)
    model.save_pretrained(tmp_path / "run")
    loaded = ICLMForCausalLM.from_pretrained(tmp_path / "run", dtype="float32")
    assert not loaded.training
    assert_bitwise(loaded.own_state_dict(), model.own_state_dict())
    batch = padded(random_prompts(), "left", 2)
    one, two = answers(model, batch), answers(loaded, batch)
    assert torch.equal(one.logits, two.logits)
    assert (one.route is None and two.route is None) or torch.equal(one.route, two.route)
    assert torch.equal(step(model, labelled, trainable, 3), step(loaded, labelled, trainable, 3))
    assert_bitwise(loaded.own_state_dict(), model.own_state_dict())
    one.route is None or torch.equal(answers(model, batch).route, answers(loaded, batch).route)


def test_queue_and_codebook_are_part_of_what_is_saved(trained, tmp_path):
    model = trained(num_domains=2)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert int(saved["independence.filled"]) > 0
    assert saved["router.projection"].abs().sum() > 0
    assert {"router.mean", "router.deviation", "router.fitted", "independence.queue"} <= saved.keys()
    assert any("codebook" in name for name in saved)


def test_folder_holds_json_and_safetensors_only(trained, tmp_path, architecture):
    trained(architecture, num_domains=2).save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "iclm"


def test_only_own_parameters_are_saved(trained, tmp_path, architecture, trainable):
    model = trained(architecture, num_domains=2)
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    with safe_open(weights, "pt") as file:
        names = set(file.keys())
    assert not [n for n in names if n.startswith("base.") and "lora_" not in n]
    assert trainable(model).keys() <= names
    own = sum(tensor.numel() * tensor.element_size() for tensor in model.own_state_dict().values())
    assert weights.stat().st_size < own + 200 * len(names) + 1000


def test_saving_again_after_loading_writes_the_same_bytes(trained, tmp_path):
    trained(num_domains=2).save_pretrained(tmp_path / "one")
    ICLMForCausalLM.from_pretrained(tmp_path / "one", dtype="float32").save_pretrained(tmp_path / "two")
    one, two = (Path(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_auto_classes_load_the_saved_model(trained, tmp_path, random_prompts, padded):
    model = trained(num_domains=2)
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), ICLMConfig)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32")
    assert isinstance(loaded, ICLMForCausalLM)
    batch = padded(random_prompts())
    assert torch.equal(answers(model, batch).logits, answers(loaded, batch).logits)


def test_configuration_survives(trained, tmp_path):
    weights = {"mi_weight": 0.07, "invariant_weight": 0.3, "domain_weight": 0.0, "router_weight": 0.9}
    model = trained(num_domains=4, active_domains=2, split_layer=1, router_layer=0, lora_alpha=7.0, **weights)
    model.save_pretrained(tmp_path)
    loaded = ICLMForCausalLM.from_pretrained(tmp_path, dtype="float32").config
    for name in (*weights, "num_domains", "active_domains", "split_layer", "router_layer", "lora_alpha", "base"):
        assert getattr(loaded, name) == getattr(model.config, name), name


def test_generation_after_reload_is_the_same(trained, tmp_path, random_prompts, padded):
    model = trained(num_domains=2)
    model.save_pretrained(tmp_path)
    loaded = ICLMForCausalLM.from_pretrained(tmp_path, dtype="float32")
    how = {**padded(random_prompts(), "left"), "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**how), loaded.generate(**how))


def test_bf16_model_runs_and_trains_after_reload(
    trained, tmp_path, architecture, random_prompts, padded, labelled, trainable
):
    model = trained(architecture, dtype="bfloat16", num_domains=2)
    model.save_pretrained(tmp_path)
    loaded = ICLMForCausalLM.from_pretrained(tmp_path, dtype="bfloat16")
    assert loaded.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in trainable(loaded).values()), "adapters are kept in float32"
    batch = padded(random_prompts())
    assert torch.equal(answers(model, batch).logits, answers(loaded, batch).logits)
    assert torch.equal(step(model, labelled, trainable, 3), step(loaded, labelled, trainable, 3))
    assert_bitwise(loaded.own_state_dict(), model.own_state_dict())


def test_a_run_made_in_bf16_loads_on_a_base_in_fp32(trained, tmp_path, random_prompts):
    trained(dtype="bfloat16", num_domains=2).save_pretrained(tmp_path)
    loaded = ICLMForCausalLM.from_pretrained(tmp_path, dtype="float32")
    assert torch.isfinite(loaded(random_prompts()[0][None]).logits).all()


def test_dtype_of_the_base_is_that_of_the_saved_model_unless_asked_otherwise(trained, tmp_path, monkeypatch):
    """A model in float32 must not come back in bfloat16 because this machine computes bfloat16 well."""
    model = trained(dtype="float32", num_domains=2)
    model.save_pretrained(tmp_path)
    for preferred in (torch.bfloat16, torch.float32):
        monkeypatch.setattr("iclm.model.backbone.preferred_dtype", lambda device=None, p=preferred: p)
        assert ICLMForCausalLM.from_pretrained(tmp_path).dtype == torch.float32


def test_changed_base_is_refused(trained, tmp_path, base_folders, load_tiny_base):
    trained(num_domains=2).save_pretrained(tmp_path / "run")
    other = tmp_path / "other"
    shutil.copytree(base_folders["llama"], other)
    weights = load_file(other / "model.safetensors")
    name = sorted(weights)[-1]
    weights[name] = weights[name].clone()
    weights[name].view(-1)[0] += 0.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="fingerprint"):
        ICLMForCausalLM.from_pretrained(tmp_path / "run", base=str(other), dtype="float32")
    with pytest.raises(CheckpointError, match="fingerprint"):
        ICLMForCausalLM.from_pretrained(tmp_path / "run", base=load_tiny_base("qwen2"))
    moved = tmp_path / "moved"
    shutil.copytree(base_folders["llama"], moved)
    ICLMForCausalLM.from_pretrained(tmp_path / "run", base=str(moved), dtype="float32")


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def scramble(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 500)


def drop_a_tensor(folder):
    state = load_file(folder / "model.safetensors")
    del state[next(n for n in state if "lora_B" in n)]
    save_file(state, folder / "model.safetensors")


def add_a_tensor(folder):
    state = load_file(folder / "model.safetensors")
    save_file({**state, "router.extra": torch.zeros(2)}, folder / "model.safetensors")


def another_rank(folder):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "lora_rank": 3}))


def another_type(folder):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "model_type": "llama"}))


DAMAGE = {
    "weights-missing": lambda folder: (folder / "model.safetensors").unlink(),
    "weights-empty": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "weights-truncated": truncate,
    "weights-scrambled": scramble,
    "tensor-missing": drop_a_tensor,
    "tensor-unknown": add_a_tensor,
    "another-rank": another_rank,
    "config-missing": lambda folder: (folder / "config.json").unlink(),
    "config-broken": lambda folder: (folder / "config.json").write_text('{"model_type": "iclm"'),
    "config-list": lambda folder: (folder / "config.json").write_text("[]"),
    "config-binary": lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"),
    "another-model": another_type,
    "folder-missing": shutil.rmtree,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, base_folders):
    folder = tmp_path_factory.mktemp("saved") / "run"
    ICLMForCausalLM.from_base(base_folders["llama"], dtype="float32", router="oracle").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folder_is_a_checkpoint_error_of_one_line(saved, tmp_path, damage):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    DAMAGE[damage](folder)
    with pytest.raises(CheckpointError) as caught:
        ICLMForCausalLM.from_pretrained(folder, dtype="float32")
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_missing_base_is_named(saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    values = json.loads((folder / "config.json").read_text())
    for name in (str(tmp_path / "nowhere"), ""):
        values["base"]["name"] = name
        (folder / "config.json").write_text(json.dumps(values))
        with pytest.raises(ICLMError, match="nowhere" if name else "no name"):
            ICLMForCausalLM.from_pretrained(folder, dtype="float32")


def test_a_model_that_cannot_be_described_leaves_the_saved_one_whole(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = ICLMForCausalLM.from_pretrained(folder, dtype="float32")
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(1.0)
    model.config.base["note"] = object()  # no JSON
    with pytest.raises(TypeError):
        model.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_failed_save_leaves_the_old_weights(saved, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = ICLMForCausalLM.from_pretrained(folder, dtype="float32")
    model.config.lora_dropout = 0.5

    def fail(tensors, path, **kwargs):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("iclm.model.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(folder)
    assert {name: (folder / name).read_bytes() for name in before} == before
