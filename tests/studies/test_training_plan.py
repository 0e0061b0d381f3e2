"""Plans: parameters exactly, memory and time beside those of the real training."""

import json
import time

import pytest
import torch
from transformers import CONFIG_MAPPING, LlamaConfig

from iclm.errors import BackboneError, ConfigurationError
from iclm.model import ICLMForCausalLM
from iclm.model.backbone import freeze
from iclm.studies.bench.contestants import Workload
from iclm.studies.plan import measure
from iclm.studies.plan.bases import build, configuration_of, first_layers, on_meta, published, shallow
from iclm.studies.plan.plan import plan
from iclm.studies.plan.process import process_peak


@pytest.fixture
def quick(monkeypatch):
    """No process is started, and one step is timed."""
    monkeypatch.setattr("iclm.studies.plan.plan.process_peak", lambda *args: 1)


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
