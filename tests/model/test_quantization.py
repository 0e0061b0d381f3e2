"""4-bit bases: refused in one line where they cannot be; else a base of rounded weights, recognised as what it was."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from torch import nn

from iclm.errors import BackboneError
from iclm.model import ICLMForCausalLM, backbone, load_base, quantization
from iclm.model.backbone import fingerprint
from iclm.model.quantization import check_quantization

SETTINGS = {"router": "oracle", "num_domains": 2, "lora_rank": 2, "mi_projection": 8, "mi_queue": 32}
SHARED = ("embed", "norm", "lm_head")  # parts of the names of what is not quantised


@pytest.fixture
def make_four_bit(four_bit, base_folders):
    """Make a fresh ICLM on a 4-bit base: `make_four_bit(architecture, dtype, **settings)`."""

    def make(architecture="llama", dtype="float32", **settings):
        return ICLMForCausalLM.from_base(
            base_folders[architecture], dtype=dtype, quantization="nf4", **{**SETTINGS, **settings}
        ).eval()

    return make


@pytest.fixture
def batch(labelled):
    """A training batch of two domains on a model's device: `batch(model, domains)`."""

    def make(model, domains=(0, 1, 0, 1), seed=0):
        tensors = {**labelled(seed=seed), "domain_ids": torch.tensor(domains)}
        return {name: tensor.to(model.device) for name, tensor in tensors.items()}

    return make


def linears(model):
    return {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and "layers" in name
    }


def logits(model, given):
    with torch.no_grad():
        return model(**{name: tensor for name, tensor in given.items() if name != "labels"}).logits


def refused(call, match):
    with pytest.raises(BackboneError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_unknown_quantisation_is_refused(tiny_llama_folder):
    refused(lambda: load_base(tiny_llama_folder, "float32", "int3"), "'int3' is unknown; use none or nf4")


def test_without_a_gpu_a_4_bit_base_is_refused_before_anything_is_looked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(backbone, "locate_base", lambda name: pytest.fail("looked for the base"))
    refused(lambda: load_base("smollm2-135m", quantization="nf4"), "needs an NVIDIA GPU.*use quantization: none")


def test_without_bitsandbytes_a_4_bit_base_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: None)
    refused(lambda: check_quantization("nf4"), r"bitsandbytes, which is not installed; run: pip install 'iclm\[4bit\]'")


def test_a_base_that_says_that_it_is_quantised_is_not_quantised_again(tiny_llama_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(quantization, "require_bitsandbytes", lambda name: None)
    folder = shutil.copytree(tiny_llama_folder, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    refused(lambda: load_base(str(folder), "float32", "nf4"), "is quantised already; name the model it was made from")


def test_a_base_that_someone_else_quantised_is_refused(load_tiny_base):
    base = load_tiny_base()
    name, linear = next(iter(linears(base).items()))
    linear.weight = nn.Parameter(linear.weight.to(torch.uint8), requires_grad=False)
    refused(lambda: ICLMForCausalLM.from_base(base), f"quantised already \\({name}.weight is packed\\)")


def test_a_base_that_is_not_quantised_says_so(load_tiny_base):
    base = load_tiny_base()
    known, count = fingerprint(dict(base.named_parameters())), base.num_parameters()
    model = ICLMForCausalLM.from_base(base)
    assert model.config.base == {**model.config.base, "quantization": "none", "fingerprint": known}
    assert model.base_parameters == count


def test_the_linear_layers_are_packed_and_nothing_else(four_bit, base_folders, architecture):
    base = load_base(base_folders[architecture], "float32", "nf4")
    assert linears(base) and {type(module).__name__ for module in linears(base).values()} == {"Linear4bit"}
    for name, module in linears(base).items():
        state = module.weight.quant_state
        assert (module.weight.dtype, state.quant_type, state.nested) == (torch.uint8, "nf4", True), name
        assert module.compute_dtype == torch.bfloat16, name
    rest = {name: p for name, p in base.named_parameters() if any(part in name for part in SHARED)}
    assert rest and {p.dtype for p in rest.values()} == {torch.float32}


def test_in_float16_the_products_are_in_float16_too(four_bit, tiny_llama_folder):
    base = load_base(tiny_llama_folder, "float16", "nf4")
    assert {module.compute_dtype for module in linears(base).values()} == {torch.float16}


def test_a_fresh_iclm_gives_the_logits_of_its_4_bit_base(four_bit, base_folders, architecture, batch):
    base = load_base(base_folders[architecture], "float32", "nf4")
    given = batch(base)
    with torch.no_grad():
        expected = base(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits
    found = logits(ICLMForCausalLM.from_base(base, **SETTINGS).eval(), given)
    real = given["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], rtol=0.01, atol=0.01)


def test_it_is_recognised_and_counted_as_the_base_it_was(make_four_bit, make_iclm, architecture):
    four, whole = make_four_bit(architecture), make_iclm(architecture, fit=False)
    assert four.config.base["quantization"] == "nf4"
    assert four.config.base["fingerprint"] == whole.config.base["fingerprint"]
    assert four.base_parameters == whole.base_parameters
    assert four.dtype == torch.float32 and four.config.base["dtype"] == "float32"


def test_its_gradients_are_those_of_the_rounded_weights(make_four_bit, load_tiny_base, differ, batch, trainable):
    from bitsandbytes.functional import dequantize_4bit

    four = make_four_bit(split_layer=1)
    rounded = load_tiny_base()
    weights = {name.replace(".layer.", ".").removesuffix(".base"): m for name, m in linears(four.base).items()}
    for name, module in linears(rounded).items():
        weights[name].compute_dtype = torch.float32
        module.weight.data.copy_(dequantize_4bit(weights[name].weight, weights[name].weight.quant_state))
    whole = ICLMForCausalLM.from_base(rounded, split_layer=1, **SETTINGS).eval()
    found = []
    for model in (four, whole.to(four.device)):
        differ(model)
        model(**batch(model)).loss.backward()
        found.append({name: p.grad for name, p in trainable(model).items()})
    assert found[0].keys() == found[1].keys()
    for name, expected in found[1].items():
        distance = (found[0][name] - expected).norm() / expected.norm()
        assert distance < 1e-3, f"{name}: the gradients are {distance:.4f} of their length apart"


def test_a_step_leaves_the_idle_module_and_the_base_as_they_were(make_four_bit, batch, trainable, parameters_of):
    model = make_four_bit().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.01, weight_decay=0.1)
    for seed in (1, 2):
        model(**batch(model, (0, 0, 0, 0), seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    learned = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    active = set(parameters_of(model, 0)) | set(parameters_of(model, 1))
    assert active <= learned <= set(trainable(model))
    assert not learned & set(parameters_of(model, 2)), "domain 1 was idle"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_reloaded_model_is_4_bit_again_with_equal_logits(
    make_four_bit, make_iclm, batch, trainable, tmp_path, architecture, dtype
):
    model = make_four_bit(architecture, dtype).train()
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.01)
    for seed in (1, 2):
        model(**batch(model, seed=seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(make_iclm(architecture, fit=False, **SETTINGS).own_state_dict())
    again = ICLMForCausalLM.from_pretrained(tmp_path)
    assert {type(module).__name__ for name, module in linears(again).items() if name.endswith(".base")} == {
        "Linear4bit"
    }
    assert torch.equal(logits(again, batch(again)), logits(model, batch(model)))
    whole = ICLMForCausalLM.from_pretrained(tmp_path, quantization="none").to(model.device)
    assert whole.config.base["quantization"] == "none"
    assert not torch.equal(logits(whole, batch(whole)), logits(model, batch(model)))


def test_gradient_checkpointing_changes_nothing(make_four_bit, batch, trainable):
    found = []
    for checkpointing in (False, True):
        model = make_four_bit().train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**batch(model)).loss.backward()
        found.append({name: p.grad for name, p in trainable(model).items() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
