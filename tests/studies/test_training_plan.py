"""Plans: parameters exactly, memory and time beside those of the real training."""

import json
import runpy
import time
from pathlib import Path

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING, LlamaConfig

from iclm.errors import BackboneError, ConfigurationError
from iclm.model import ICLMForCausalLM
from iclm.model.attention import attention
from iclm.model.backbone import freeze
from iclm.report.plan import plan_lines, plan_table
from iclm.studies.bench.contestants import Workload
from iclm.studies.plan import measure
from iclm.studies.plan.bases import build, configuration_of, first_layers, on_meta, published, shallow
from iclm.studies.plan.plan import plan
from iclm.studies.plan.process import process_peak

OTHER = runpy.run_path(str(Path(__file__).parents[1] / "invariants" / "test_other_bases.py"))["BASES"]
UNLIKE = {
    "DeepseekV3Config": "(layer 1 from layer 0)",
    "Qwen3NextConfig": "(layer 1 from layer 0)",
    "Lfm2Config": "(layer 1 from layer 0)",
}
UNLIKE |= {
    "Gemma4TextConfig": "(layer 2 from layer 0)",
    "GPTNeoConfig": "a gpt_neo configuration cannot be cut to 1 of its layers",
}


@pytest.fixture
def quick(monkeypatch):
    """No process is started, and one step is timed."""
    monkeypatch.setattr("iclm.studies.plan.plan.process_peak", lambda *args: 1)


@pytest.fixture
def counted(monkeypatch):
    """Nothing is measured."""
    monkeypatch.setattr("iclm.studies.plan.plan._predict", lambda *args: {"seconds": None, "flops": 0})


@pytest.fixture
def other(tmp_path):
    """Path of the config.json of another base."""

    def write(name):
        getattr(transformers, name)(**OTHER[name]).to_json_file(tmp_path / "config.json", use_diff=False)
        return str(tmp_path / "config.json")

    return write


def own(model, module=""):
    return sum(p.numel() for name, p in model.named_parameters() if "lora_" in name and name.endswith(module))


def test_published_configurations_have_the_published_number_of_parameters():
    for name, entry in published().items():
        counted = sum(p.numel() for p in on_meta(configuration_of(name)).parameters())
        assert counted == entry["parameters"], name
    assert len(published()) >= 15


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "meta-llama/llama-3.1-8b", "META-LLAMA/Llama-3.1-8B"])
def test_a_published_configuration_is_found_with_and_without_its_organisation(name):
    assert configuration_of(name).intermediate_size == 14336


@pytest.mark.parametrize(("split", "k", "targets"), [(0, 2, "attention"), (2, 5, "all-linear")])
def test_parameters_are_those_of_the_real_model(base_folders, load_tiny_base, architecture, split, k, targets, quick):
    found = plan(
        base_folders[architecture], k=k, batch=2, tokens=8, rank=4, targets=targets, split_layer=split, rounds=0
    )["parameters"]
    settings = {"lora_rank": 4, "target_modules": targets}
    model = ICLMForCausalLM.from_base(load_tiny_base(architecture), num_domains=k, split_layer=split, **settings)
    lora = ICLMForCausalLM.from_base(load_tiny_base(architecture), method="lora", **settings)
    assert found["modules"] == own(model) == (1 + k) * own(model, ".0")
    assert found["module"] == own(model, ".1") and found["lora"] == own(lora)
    assert found["base"] == model.base_parameters and found["copies"] == (k + 2) * model.base_parameters


@pytest.mark.parametrize("targets", ["attention", "all-linear"])
@pytest.mark.parametrize("name", OTHER)
def test_parameters_are_those_of_the_real_model_also_where_layers_differ(other, name, targets, counted):
    found = plan(other(name), k=2, batch=2, tokens=8, rank=4, targets=targets)
    settings = {"lora_rank": 4, "target_modules": targets, "router": "oracle"}

    def base():
        return transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**OTHER[name]))

    model = ICLMForCausalLM.from_base(base(), num_domains=2, **settings)
    lora = ICLMForCausalLM.from_base(base(), method="lora", **settings)
    assert found["settings"]["split_layer"] == model.config.split_layer
    parameters = found["parameters"]
    assert (parameters["modules"], parameters["lora"]) == (own(model), own(lora))
    assert (parameters["module"], parameters["base"]) == (own(model, ".1"), model.base_parameters)


@pytest.mark.parametrize("name", OTHER)
def test_memory_and_time_are_planned_where_layers_are_alike_and_else_it_is_said(other, name, counted):
    found = plan(other(name), batch=2, tokens=8)
    if name not in UNLIKE:
        assert found["not_planned"] is None and found["iclm"] and found["lora"]
        return
    assert UNLIKE[name] in found["not_planned"] and "\n" not in found["not_planned"]
    assert found["iclm"] is None and found["lora"] is None
    lines = plan_lines(found)
    assert lines[0] == f"memory and time are not planned: {found['not_planned']}" and "4 copies" in lines[1]
    assert plan_table(found).row_count == 2


def test_a_base_whose_layers_have_their_kinds_from_their_number_is_planned_whole(other, quick):
    path = other("FalconH1Config")
    found = plan(path, batch=2, tokens=8, targets="all-linear", split_layer=2, dtype="float32", rounds=0)
    workload, trained = Workload(batch=2, tokens=8, targets="all-linear"), measure.Trained({"num_domains": 2})
    whole = measure.make(freeze(build(configuration_of(path), torch.float32)), workload, trained, 2)
    whole.step()
    real = measure._cost(whole, None)
    assert found["iclm"]["flops"] == pytest.approx(real.flops, rel=0.01)
    assert found["iclm"]["memory"]["tensors"] == pytest.approx(real.bytes, rel=0.15)


def test_layers_that_share_keys_and_values_stay_above_the_split(other, counted):
    with pytest.raises(ConfigurationError, match=r"split is 1; .* of layer 0, so use 0 or less"):
        plan(other("Gemma4TextConfig"), batch=2, tokens=8, split_layer=1)


def test_what_transformers_does_not_build_is_one_line(tmp_path):
    values = {**LlamaConfig(num_hidden_layers=2, vocab_size=64).to_dict(), "hidden_act": "no_such"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigurationError, match=r"builds no llama model of this configuration: .*no_such") as error:
        plan(str(tmp_path / "config.json"))
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigurationError, match="cannot be cut to 2 of its layers: ") as error:
        shallow(transformers.GPTNeoConfig(**OTHER["GPTNeoConfig"]), 2)
    assert "\n" not in str(error.value)


# -- operations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("key_heads", [4, 2])
def test_attention_on_a_cpu_is_counted(dtype, key_heads):
    made = [torch.randn(3, heads, 10, 8, dtype=dtype, requires_grad=True) for heads in (4, key_heads, key_heads)]
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 4 // key_heads, True
    with measure.operations() as flops:
        attention(module, *made, None)[0].sum().backward()
    product = 2 * 3 * 4 * 10 * 10 * 8  # each of 3 rows, 4 heads, 10 queries and 10 keys, of 8 dimensions
    assert flops.get_total_flops() == (2 + 5) * product


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="of later versions of torch")
def test_products_of_experts_are_counted():
    a, b = torch.randn(6, 8), torch.randn(3, 8, 16)
    with measure.operations() as flops:
        torch._grouped_mm(a.bfloat16(), b.bfloat16(), offs=torch.tensor([1, 4, 6], dtype=torch.int32))
    assert flops.get_total_flops() == 2 * 6 * 8 * 16


def test_operations_of_a_step_are_those_counted_by_hand():
    hidden, inner, heads, vocabulary, batch, rank, layers = 32, 48, 4, 96, 3, 2, 2
    config = LlamaConfig(
        **{"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocabulary},
        **{"num_attention_heads": heads, "num_key_value_heads": 2, "max_position_embeddings": 256},
    )
    key = hidden // heads * 2  # of two key heads

    def by_hand(tokens):
        rows = batch * tokens
        attended = [(hidden, hidden), (hidden, key), (hidden, key), (hidden, hidden)]
        frozen = [*attended, (hidden, inner), (hidden, inner), (inner, hidden)]
        products = 2 * sum(a * b for a, b in frozen)  # forward, and the gradient of what comes in
        adapters = sum(rank * (a + b) for a, b in attended) * 3  # these, and the gradients of A and B
        first = sum(a * b + rank * a for a, b in attended[:3])  # embeddings need no gradient
        linear = layers * (products + adapters) - first
        return 2 * (
            rows * linear
            + layers * 7 * batch * heads * tokens**2 * (hidden // heads)
            + 2 * (2 * batch) * hidden * vocabulary  # the head at two labels, and the gradient of what comes in
        )

    def counted(tokens):
        workload = Workload(batch=batch, tokens=tokens, rank=rank)
        made = measure.make(freeze(build(config, torch.float32)), workload, measure.Trained({"method": "lora"}), 0)
        made.step()
        return measure._cost(made, None).flops

    assert [counted(tokens) for tokens in (8, 32)] == [by_hand(tokens) for tokens in (8, 32)]
    assert by_hand(32) / 32 > by_hand(8) / 8


def test_live_memory_counts_a_storage_once_and_until_it_is_freed():
    kept = torch.zeros(1000)
    with measure.LiveMemory([kept, kept[10:]]) as memory:
        assert memory.live == 4000
        other = kept * 2
        assert (memory.live, memory.peak) == (8000, 8000)
        view = other[:5]
        assert memory.live == 8000
        del other, view
        assert (memory.live, memory.peak) == (4000, 8000)


def test_live_memory_knows_what_waits_for_the_backward_pass():
    x = torch.ones(1000, requires_grad=True)
    with measure.LiveMemory([x]) as memory:
        y = x.exp()  # keeps its result
        z = (y * 2).sum()
        assert 8000 <= memory.live < 8100  # x and exp(x), not 2 exp(x)
        z.backward()
        assert memory.peak >= 12000


@pytest.mark.parametrize(
    ("split", "k", "checkpointing"), [(3, 2, False), (0, 8, False), (3, 8, True)], ids=["upper", "all", "checkpointing"]
)
def test_memory_of_tensors_is_that_of_the_whole_model(split, k, checkpointing):
    config = LlamaConfig(
        **{"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 7, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "vocab_size": 500, "max_position_embeddings": 256},
    )
    workload = Workload(batch=8, tokens=64, rank=4)
    trained = measure.Trained({"num_domains": k}, checkpointing)
    line = measure.line(config, torch.float32, workload, trained, has_trunk=split > 0, rounds=0)
    whole = measure.make(freeze(build(config, torch.float32)), workload, trained, split)
    whole.step()
    real = measure._cost(whole, None)
    predicted = line.at(split, 7 - split)
    assert predicted.bytes == pytest.approx(real.bytes, rel=0.15)
    assert predicted.flops == pytest.approx(real.flops, rel=0.01)
    assert predicted.seconds is None


def test_first_layers_share_the_weights_of_the_whole():
    config = shallow(configuration_of("SmolLM2-135M"), 3)
    config.hidden_size, config.intermediate_size, config.vocab_size = 36, 48, 100
    config.head_dim = 4
    whole = build(config, torch.float32)
    part = first_layers(whole, 2)
    ids = torch.arange(6)[None]
    assert len(part.model.layers) == 2 and part.lm_head.weight is part.model.embed_tokens.weight
    hidden = whole.model(ids, output_hidden_states=True).hidden_states[2]
    assert torch.allclose(part.model.norm(hidden), part.model(ids).last_hidden_state, atol=1e-6)
    assert part.model.layers[1].mlp.up_proj.weight.data_ptr() == whole.model.layers[1].mlp.up_proj.weight.data_ptr()


def test_a_smaller_batch_is_measured_where_a_step_would_take_too_long(tiny_llama_folder, quick, monkeypatch):
    whole = plan(str(tiny_llama_folder), k=2, batch=12, tokens=16, rounds=0)
    monkeypatch.setattr("iclm.studies.plan.plan.affordable", lambda *args: 4)
    small = plan(str(tiny_llama_folder), k=2, batch=12, tokens=16, rounds=1)
    assert (whole["iclm"]["measured"]["batch"], small["iclm"]["measured"]["batch"]) == (12, 4)
    assert small["iclm"]["memory"]["tensors"] == pytest.approx(whole["iclm"]["memory"]["tensors"], rel=0.15)
    assert small["iclm"]["flops"] == pytest.approx(whole["iclm"]["flops"], rel=0.02)
    assert small["iclm"]["seconds"] > 0 and "process" not in small["iclm"]["memory"]


def test_what_follows_from_a_step(tiny_llama_folder, quick):
    found = plan(str(tiny_llama_folder), batch=4, tokens=8, examples=10, tflops=2.0, rounds=1)["lora"]
    assert found["training_seconds"] == pytest.approx(3 * found["seconds"])
    assert found["examples_a_second"] == pytest.approx(4 / found["seconds"])
    assert found["seconds_at_tflops"] == pytest.approx(found["flops"] / 2e12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": "Lama-3.1-8B"}, r"did you mean .*Llama-3\.1-8B.*folder or config\.json"),
        ({"k": 0}, "k is 0; it must be at least 1"),
        ({"tokens": 2}, "tokens is 2; it must be at least 3"),
        ({"tokens": 5000}, "tokens is 5000; the context of this base is 4096"),
        ({"split_layer": 4}, "split is 4; this base has 4 layers, use 0 to 3"),
        ({"active": 3}, "active is 3; it must lie between 1 and k = 2"),
        ({"targets": "q"}, "target_modules is 'q'"),
    ],
    ids=["base", "k", "tokens", "context", "split", "active", "targets"],
)
def test_wrong_settings_are_named(tiny_llama_folder, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        plan(**{"base": str(tiny_llama_folder), **settings})


def test_what_is_no_decoder_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**CONFIG_MAPPING["t5"]().to_dict(), "architectures": ["T5ForConditionalGeneration"]}))
    with pytest.raises(BackboneError, match="not a decoder-only"):
        plan(str(path))
    path.write_text("{")
    with pytest.raises(ConfigurationError, match="no configuration that transformers reads"):
        plan(str(path))


SMALL = {
    **{"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 14, "num_attention_heads": 6},
    **{"num_key_value_heads": 2, "vocab_size": 16_000, "max_position_embeddings": 512},
}


@pytest.mark.slow
@pytest.mark.parametrize(("split", "k"), [(7, 2), (7, 8), (0, 2)])
def test_time_and_process_of_a_small_model_are_predicted_within_15_percent(tmp_path, split, k):
    config = LlamaConfig(**SMALL)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    predicted = plan(str(path), k=k, batch=16, tokens=96, split_layer=split, dtype="float32")["iclm"]
    workload, trained = Workload(batch=16, tokens=96), measure.Trained({"num_domains": k})
    real = process_peak(config, torch.float32, workload, trained, split, 14 - split)
    assert predicted["memory"]["process"] == pytest.approx(real, rel=0.15)
    whole = measure.make(freeze(build(config, torch.float32)), workload, trained, split)
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        whole.step()
        seconds.append(time.perf_counter() - started)
    assert predicted["seconds"] == pytest.approx(sorted(seconds[2:])[2], rel=0.15)


def test_a_usual_step_is_the_fastest_of_a_model_times_what_all_models_share():
    found = measure.steady({(1, 1): [1.0, 1.1, 9.0], (1, 3): [2.0, 2.4, 2.2], (3, 1): []})
    assert found == {(1, 1): pytest.approx(1.1), (1, 3): pytest.approx(2.2), (3, 1): None}
