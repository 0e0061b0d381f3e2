"""PEFT's adapter folders: PEFT computes what a module does, and a module what PEFT's adapter does."""

import json
import os
import runpy
from pathlib import Path

import peft
import pytest
import torch
from peft.utils import transformers_weight_conversion
from safetensors.torch import load_file, save_file
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from iclm.errors import CheckpointError, ConfigurationError, ICLMError
from iclm.model import ICLMForCausalLM, peft_format
from iclm.model.backbone import PACKAGED
from iclm.model.peft_format import fit_adapter, from_adapters, read_adapter, write_adapter
from iclm.model.surgery import add_module, set_weights, weights_of

EXACT = 1e-5
ATTENTION = {"llama": ["q_proj", "v_proj"], "gpt_neox": ["query_key_value"]}
FEED_FORWARD = {"llama": "down_proj", "gpt_neox": "dense_4h_to_h"}
OTHER = runpy.run_path(str(Path(__file__).parents[1] / "invariants" / "test_other_bases.py"))


def attention(architecture):
    return ATTENTION.get(architecture, ATTENTION["llama"])


@pytest.fixture
def adapter_of(load_tiny_base, tmp_path):
    """A LoRA adapter as PEFT makes and saves it, with weights as after training: its folder, and PEFT's model."""

    def make(architecture="llama", folder="adapter", seed=0, **settings):
        settings = {"r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM", **settings}
        settings.setdefault("target_modules", attention(architecture))
        model = peft.get_peft_model(load_tiny_base(architecture), peft.LoraConfig(**settings))
        source = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.15)
        model.save_pretrained(tmp_path / folder)
        return tmp_path / folder, model.eval()

    return make


@pytest.fixture
def same_logits(random_prompts, padded):
    """Assert that a module alone gives the logits of another model on real tokens, and not those of the bare base."""

    def check(model, other, module="domain_0", atol=EXACT):
        batch = padded(random_prompts())
        real = batch["attention_mask"].bool()
        with torch.no_grad():
            ours, theirs = model(**batch, module=module).logits[real], other(**batch).logits[real]
            with other.disable_adapter():
                base = other(**batch).logits[real]
        assert (ours - theirs).abs().max() <= atol
        assert (theirs - base).abs().max() > 100 * atol

    return check


def changed(folder, **values):
    """Change fields of an adapter's configuration."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def refused(folder, model=None, kind=ICLMError):
    with pytest.raises(kind) as caught:
        adapter = read_adapter(folder)
        fit_adapter(adapter, model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- export ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [0, 2])
@pytest.mark.parametrize(("number", "module"), [(0, "invariant"), (2, "domain_1")])
def test_peft_computes_what_the_module_computes(
    make_iclm, load_tiny_base, architecture, same_logits, tmp_path, split, number, module
):
    model = make_iclm(architecture, split_layer=split, target_modules="all-linear", lora_alpha=3.0)
    write_adapter(model, number, tmp_path / "out")
    loaded = peft.PeftModel.from_pretrained(load_tiny_base(architecture), tmp_path / "out").eval()
    same_logits(model, loaded, module)


def test_plain_lora_is_an_adapter_too(make_iclm, load_tiny_base, same_logits, tmp_path):
    model = make_iclm(method="lora")
    write_adapter(model, 0, tmp_path / "out")
    same_logits(model, peft.PeftModel.from_pretrained(load_tiny_base(), tmp_path / "out").eval(), "invariant")


def test_peft_finds_every_weight_in_its_place(make_iclm, load_tiny_base, architecture, tmp_path):
    """All tensors that PEFT holds after loading are those of the file: it adapts neither more nor fewer layers."""
    model = make_iclm(architecture, split_layer=2, target_modules="attention")
    write_adapter(model, 1, tmp_path / "out")
    loaded = peft.PeftModel.from_pretrained(load_tiny_base(architecture), tmp_path / "out")
    held = peft.get_peft_model_state_dict(loaded)
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert held.keys() == written.keys()
    assert all(torch.equal(held[name], written[name]) for name in held)


def test_a_base_is_named_where_peft_looks_for_it(make_iclm, base_folders, tmp_path):
    write_adapter(make_iclm(), 1, tmp_path / "out")
    config = peft.PeftConfig.from_pretrained(tmp_path / "out")
    assert config.base_model_name_or_path == base_folders["llama"]
    assert (config.r, config.lora_alpha, config.task_type) == (2, 4, "CAUSAL_LM")
    assert isinstance(peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out"), peft.PeftModel)


@pytest.mark.skipif(os.name == "nt", reason="permission bits are those of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_weights_are_as_readable_as_every_other_file(make_iclm, tmp_path, umask):
    before = os.umask(umask)
    try:
        write_adapter(make_iclm(), 1, tmp_path / "adapter")
        make_iclm().save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.glob("*/*")}
    assert {"adapter_model.safetensors", "model.safetensors", "config.json"} <= set(modes)
    assert set(modes.values()) == {oct(0o666 & ~umask)}


def test_a_module_that_is_not_there_is_not_written(make_iclm, tmp_path):
    with pytest.raises(ConfigurationError, match="module 3"):
        write_adapter(make_iclm(num_domains=2), 3, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# what PEFT would take for something else, or refuse
UNLOADABLE = {
    "DeepseekV3Config": "mlp.gate_proj, which PEFT would take for weights of its fused experts",
    "Qwen3NextConfig": "mlp.shared_expert.gate_proj, which PEFT would take for weights of its fused experts",
    "FalconH1Config": "mamba.out_proj, which PEFT refuses",
}


@pytest.mark.parametrize("target", ["all-linear", "attention"])
@pytest.mark.parametrize("name", OTHER["BASES"])
def test_on_other_bases_peft_computes_the_same_or_nothing_is_written(name, target, differ, tmp_path):
    settings = {"lora_rank": 2, "lora_alpha": 3.0, "router": "oracle", "split_layer": 0, "mi_projection": 4}
    made = ICLMForCausalLM.from_base(OTHER["base_of"](name), num_domains=2, target_modules=target, **settings)
    model, prompts, out = differ(made).eval(), OTHER["prompts"](), tmp_path / "out"
    if target == "all-linear" and name in UNLOADABLE:
        with pytest.raises(ConfigurationError, match=UNLOADABLE[name]) as caught:
            write_adapter(model, 1, out)
        assert "\n" not in str(caught.value) and not out.exists()
        return
    write_adapter(model, 1, out)
    loaded = peft.PeftModel.from_pretrained(OTHER["base_of"](name), out).eval()
    with torch.no_grad():
        ours, theirs = (
            model(input_ids=prompts, module="domain_0").logits,
            loaded(input_ids=prompts, use_cache=False).logits,
        )
        with loaded.disable_adapter():
            base = loaded(input_ids=prompts, use_cache=False).logits
    assert (ours - theirs).abs().max() <= 10 * EXACT
    assert (theirs - base).abs().max() > 100 * EXACT


def test_the_bases_whose_layers_peft_renames_are_those_of_its_own_table():
    renamed = transformers_weight_conversion._MOE_TARGET_MODULE_MAPPING
    kinds = transformers_weight_conversion._MODEL_TO_CONVERSION_PATTERN
    found = {kind for kind, like in kinds.items() if like in renamed and kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    assert found == peft_format.FUSED_BASES
    assert set().union(*renamed.values()) == peft_format.FUSED_LAYERS


# -- import ------------------------------------------------------------------------------------------------------------


def test_a_module_computes_what_peft_computes(make_iclm, adapter_of, architecture, same_logits):
    folder, theirs = adapter_of(architecture)
    model = make_iclm(architecture, router="oracle", split_layer=0, target_modules=attention(architecture))
    number = add_module(model, "new", weights=fit_adapter(read_adapter(folder), model))
    same_logits(model, theirs, f"domain_{number}")


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 3, "use_rslora": True},
        {"r": 1, "lora_alpha": 7},
        {"target_modules": r".*\.layers\.[23]\.self_attn\.(q|o)_proj"},
        {"target_modules": "all-linear"},
        {"target_modules": ["v_proj"], "layers_to_transform": [1, 3], "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "o_proj"], "exclude_modules": ["model.layers.0.self_attn.o_proj"]},
        {
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"v_proj": 3},
            "alpha_pattern": {"1.self_attn.v_proj": 9},
        },
        {"init_lora_weights": "gaussian", "lora_dropout": 0.3},
        {"init_lora_weights": "Gaussian"},
        {"init_lora_weights": "mica"},
    ],
    ids=lambda s: "-".join(map(str, s)),
)
def test_however_peft_was_told_it_is_the_same_module(make_iclm, adapter_of, same_logits, settings):
    folder, theirs = adapter_of(**settings)
    model = make_iclm(router="oracle", split_layer=0, target_modules="all-linear", lora_rank=4, lora_alpha=5.0)
    set_weights(model, 1, fit_adapter(read_adapter(folder), model))
    same_logits(model, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
def test_weights_of_lower_precision_are_taken_exactly(make_iclm, adapter_of, dtype):
    folder, _ = adapter_of()
    path = folder / "adapter_model.safetensors"
    halves = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(halves, path)
    model = make_iclm(router="oracle", split_layer=0, target_modules=["q_proj", "v_proj"])
    for layer, (a, b) in fit_adapter(read_adapter(folder), model).items():
        assert a.dtype == b.dtype == torch.float32
        assert torch.equal(a, halves[f"base_model.model.{layer}.lora_A.weight"].float())
        assert torch.equal(b, halves[f"base_model.model.{layer}.lora_B.weight"].float())


def test_out_and_in_again_is_bitwise_the_same_module(make_iclm, architecture, tmp_path):
    model = make_iclm(architecture, split_layer=1, target_modules="all-linear", lora_alpha=3.0, router="oracle")
    write_adapter(model, 2, tmp_path / "out")
    found = fit_adapter(read_adapter(tmp_path / "out"), model)
    for layer, (a, b) in weights_of(model, 2).items():
        assert torch.equal(found[layer][0], a) and torch.equal(found[layer][1], b)


def test_what_an_adapter_leaves_open_adds_nothing_and_can_learn(make_iclm, adapter_of, labelled, parameters_of):
    folder, _ = adapter_of(target_modules=["v_proj"], r=1)
    model = make_iclm(router="oracle", num_domains=2, split_layer=0, target_modules=["q_proj", "v_proj"], lora_rank=3)
    set_weights(model, 1, fit_adapter(read_adapter(folder), model))
    b = {name: p for name, p in parameters_of(model, 1).items() if "lora_B" in name}
    assert all(not p[:, 1:].any() for p in b.values())
    assert all(bool(p[:, 0].any()) == ("v_proj" in name) for name, p in b.items())
    model.train()
    model(**labelled(), domain_ids=torch.zeros(4, dtype=torch.long)).loss.backward()
    assert all(p.grad[:, column].any() for p in b.values() for column in range(3))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("lora_bias", True),
        ("bias", "lora_only"),
        ("modules_to_save", ["lm_head"]),
        ("fan_in_fan_out", True),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("trainable_token_indices", [1, 2]),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("alora_invocation_tokens", [5]),
        ("use_qalora", True),
        ("megatron_config", {"a": 1}),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "loftq"),
        ("task_type", "SEQ_CLS"),
        ("peft_type", "IA3"),
        ("a_field_of_a_later_peft", 3),
    ],
)
def test_what_a_module_cannot_be_is_refused_with_the_name_of_the_field(make_iclm, adapter_of, field, value):
    folder, _ = adapter_of()
    message = refused(changed(folder, **{field: value}), kind=ConfigurationError)
    assert field in message and repr(value) in message


def test_an_adapter_with_dora_made_by_peft_is_refused(adapter_of):
    folder, _ = adapter_of(use_dora=True)
    assert "use_dora is True" in refused(folder, kind=ConfigurationError)
    assert "lora_magnitude_vector" in refused(changed(folder, use_dora=False), kind=ConfigurationError)


def test_a_higher_rank_is_refused_with_the_rank_that_is_needed(make_iclm, adapter_of):
    folder, _ = adapter_of(r=5)
    model = make_iclm(split_layer=0, target_modules=["q_proj", "v_proj"], lora_rank=4)
    assert "lora_rank: 5" in refused(folder, model, ConfigurationError)


@pytest.mark.parametrize("settings", [{"split_layer": 1}, {"split_layer": 0, "target_modules": ["q_proj"]}], ids=str)
def test_layers_that_a_model_does_not_adapt_are_named(make_iclm, adapter_of, settings):
    folder, _ = adapter_of()
    message = refused(folder, make_iclm(**{"target_modules": ["q_proj", "v_proj"], **settings}), ConfigurationError)
    assert "model.layers.0.self_attn." in message and f"layers {settings['split_layer']} to 3" in message


def test_an_adapter_of_a_base_of_another_size_is_refused(make_iclm, adapter_of):
    folder, _ = adapter_of()
    path = folder / "adapter_model.safetensors"
    save_file({n: torch.cat([t, t], 1) if "lora_A" in n else t for n, t in load_file(path).items()}, path)
    model = make_iclm(split_layer=0, target_modules=["q_proj", "v_proj"])
    assert "64 to 32 dimensions there, 32 to 32 here" in refused(folder, model, CheckpointError)


def test_an_adapter_of_another_architecture_is_refused(make_iclm, adapter_of):
    folder, _ = adapter_of("gpt_neox")
    assert "gpt_neox.layers.0" in refused(folder, make_iclm(split_layer=0), ConfigurationError)


def test_a_pickled_adapter_is_not_read(adapter_of, monkeypatch):
    folder, theirs = adapter_of()
    (folder / "adapter_model.safetensors").unlink()
    theirs.save_pretrained(folder, safe_serialization=False)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("it was unpickled"))
    assert "re-save with safe_serialization" in refused(folder, kind=CheckpointError)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter_config.json", None),
        ("adapter_config.json", "{"),
        ("adapter_config.json", "[]"),
        ("adapter_model.safetensors", None),
        ("adapter_model.safetensors", "no tensors"),
    ],
)
def test_a_damaged_folder_is_named(adapter_of, name, content):
    folder, _ = adapter_of()
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    assert str(folder) in refused(folder, kind=CheckpointError)


@pytest.mark.parametrize(
    "values",
    [{"r": 3}, {"r": 0}, {"r": "2"}, {"lora_alpha": None}, {"lora_alpha": float("nan")}, {"rank_pattern": [1]}],
    ids=str,
)
def test_numbers_that_cannot_be_are_refused(adapter_of, values):
    folder, _ = adapter_of()
    assert "damaged" in refused(changed(folder, **values), kind=CheckpointError)


def test_weights_that_are_not_finite_or_lack_their_pair_are_refused(adapter_of):
    folder, _ = adapter_of()
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    save_file({**tensors, name: torch.full_like(tensors[name], torch.nan)}, path)
    assert name in refused(folder, kind=CheckpointError)
    save_file({n: t for n, t in tensors.items() if n != name}, path)
    assert "do not fit" in refused(folder, kind=CheckpointError)
    save_file({**tensors, "base_model.model.lm_head.weight": torch.zeros(2, 2)}, path)
    assert "lm_head" in refused(folder, kind=ConfigurationError)


# -- a model of adapters -----------------------------------------------------------------------------------------------


def test_an_adapter_of_another_base_is_warned_of(base_folders, adapter_of, recwarn):
    folder, _ = adapter_of("llama", "one", seed=1)
    from_adapters(base_folders["llama"], {"a": folder}, router="oracle")
    assert not [w for w in recwarn if "was trained on" in str(w.message)]
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "org/Other-7B"}))
    with pytest.warns(UserWarning, match=r"one says that it was trained on org/Other-7B, not on "):
        from_adapters(base_folders["llama"], {"a": folder}, router="oracle")


@pytest.mark.parametrize(
    ("named", "other"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", False),
        ("smollm2-135m", False),
        ("HuggingFaceTB/SmolLM2-135M", True),
        ("org/Other-7B", True),
    ],
)
def test_a_packaged_base_is_known_by_the_name_of_what_it_was_made_from(
    adapter_of, load_tiny_base, monkeypatch, recwarn, named, other
):
    folder = changed(adapter_of()[0], base_model_name_or_path=named)
    monkeypatch.setattr(peft_format, "load_base", lambda *how: load_tiny_base())
    from_adapters("smollm2-135m", {"a": folder}, router="oracle")
    found = [str(w.message) for w in recwarn if "was trained on" in str(w.message)]
    assert (
        found == [f"{folder} says that it was trained on {named}, not on {peft_format.ORIGINS['smollm2-135m']}"] * other
    )


def test_every_packaged_base_has_an_origin():
    assert peft_format.ORIGINS.keys() == PACKAGED.keys()


def test_adapters_become_a_model_that_answers_as_each_of_them(
    base_folders, adapter_of, architecture, same_logits, random_prompts, padded
):
    one, first = adapter_of(architecture, "one", seed=1)
    two, second = adapter_of(
        architecture, "two", 2, r=4, lora_alpha=3, target_modules=[FEED_FORWARD.get(architecture, "down_proj")]
    )
    model = from_adapters(
        base_folders[architecture],
        {"letters": one, "numbers": two},
        dtype="float32",
        router="oracle",
        ablation="no_invariant",
    )
    assert model.config.names == ["letters", "numbers"] and model.config.lora_rank == 4
    same_logits(model, first, "domain_0")
    same_logits(model, second, "domain_1")
    batch = padded(random_prompts())
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        mixed = model(**batch, domain_ids=torch.tensor([1, 0, 1, 0])).logits
        wanted = torch.where(
            torch.tensor([1, 0, 1, 0])[:, None, None].bool(), second(**batch).logits, first(**batch).logits
        )
    assert (mixed[real] - wanted[real]).abs().max() <= EXACT


def test_adapters_of_upper_layers_leave_the_lower_ones_to_the_trunk(adapter_of, load_tiny_base):
    folder, _ = adapter_of(layers_to_transform=[2, 3])
    model = from_adapters(load_tiny_base(), {"a": folder}, router="oracle")
    assert model.config.split_layer == 2
    assert from_adapters(load_tiny_base(), {"a": folder}, router="oracle", split_layer=1).config.split_layer == 1


def test_no_adapter_and_one_outside_the_layers_are_refused(adapter_of, load_tiny_base):
    with pytest.raises(ConfigurationError, match="adapters is empty"):
        from_adapters(load_tiny_base(), {})
    with pytest.raises(ConfigurationError, match="did you mean active_domains"):
        from_adapters(load_tiny_base(), {"a": "adapter"}, active_domain=2)
    for given in ({"num_domains": 1}, {"domain_names": ["b"]}):
        with pytest.raises(ConfigurationError, match=f"{next(iter(given))} is given, which is"):
            from_adapters(load_tiny_base(), {"a": "adapter"}, **given)
    folder, _ = adapter_of(target_modules=["lm_head"])
    with pytest.raises(ConfigurationError, match="lm_head"):
        from_adapters(load_tiny_base(), {"head": folder})
