"""Bases that differ more than in names: hybrid and recurrent layers, experts, latent attention, other positions, flat layers."""

from types import SimpleNamespace

import pytest
import torch
import transformers

from iclm.data.collation import EncodedExample
from iclm.data.example import Example, Message
from iclm.errors import BackboneError, ConfigurationError
from iclm.evaluation.scoring import score
from iclm.model import ICLMForCausalLM
from iclm.model.packing import Packing

TOKENS = {"vocab_size": 96, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
USUAL = {
    **TOKENS,
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.15},
}
SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, **TOKENS}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
HALF_SLIDING = ["sliding_attention", "full_attention"] * 2

BASES = {
    "OPTConfig": {**SMALL, "ffn_dim": 48, "max_position_embeddings": 256, "word_embed_proj_dim": 32, "init_std": 0.15},
    "MptConfig": {"d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 256, "initializer_range": 0.15, **TOKENS},
    "GPTNeoConfig": {
        **{"hidden_size": 32, "num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]]},
        **{"window_size": 8, "max_position_embeddings": 256, "initializer_range": 0.15, **TOKENS},
    },
    "Qwen2MoeConfig": {**USUAL, **EXPERTS, "shared_expert_intermediate_size": 24},
    "GptOssConfig": {**USUAL, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "DeepseekV3Config": {
        **{**USUAL, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4},
        **{"qk_nope_head_dim": 8, "v_head_dim": 6, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2},
        **{"topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1},
    },
    "Qwen3NextConfig": {
        **{**USUAL, **EXPERTS, "head_dim": 8, "shared_expert_intermediate_size": 16, "linear_num_value_heads": 4},
        **{"linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "FalconH1Config": {
        **{**USUAL, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
        **{"mamba_n_groups": 1, "mamba_chunk_size": 8, "lm_head_multiplier": 0.25},
    },
    "Lfm2Config": {**USUAL, "layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 8},
    "Gemma4TextConfig": {
        **{**USUAL, "head_dim": 8, "global_head_dim": 8, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8},
        **{"vocab_size_per_layer_input": 96, "layer_types": HALF_SLIDING},
    },
}
NEVER_PACKED = {"MptConfig", "GPTNeoConfig", "Qwen3NextConfig", "FalconH1Config", "Lfm2Config"}


def base_of(name):
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**BASES[name])).float().eval()
    made.generation_config.eos_token_id = None
    return made


@pytest.fixture
def iclm(request, differ):
    """An ICLM on all linear layers whose modules differ, and the logits of its base on `prompts`."""
    base = base_of(request.param)
    with torch.no_grad():
        own = base(input_ids=prompts(), use_cache=False).logits
    settings = {"lora_rank": 2, "router_dim": 4, "mi_projection": 4, "mi_queue": 8, "router": "oracle"}
    model = ICLMForCausalLM.from_base(base, num_domains=2, target_modules="all-linear", **settings).eval()
    with torch.no_grad():
        fresh = model(input_ids=prompts(), route=ROUTE).logits
    torch.testing.assert_close(fresh, own, rtol=1e-4, atol=1e-4, msg="a fresh ICLM gives the base's own logits")
    return differ(model)


ROUTE = torch.tensor([0, 1, 1])
each = pytest.mark.parametrize("iclm", BASES, indirect=True)


def prompts():
    return torch.randint(3, 96, (3, 14), generator=torch.Generator().manual_seed(1))


@each
def test_each_example_of_a_batch_has_its_own_module_and_learns(iclm):
    with torch.no_grad():
        together = iclm(input_ids=prompts(), route=ROUTE).logits
        for row, module in enumerate(ROUTE):
            alone = iclm(input_ids=prompts()[row : row + 1], route=module[None]).logits
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-3, atol=1e-4)
        other = iclm(input_ids=prompts(), route=1 - ROUTE).logits
    assert not torch.allclose(together, other, atol=1e-3)
    labels = prompts()
    labels[:, :-3] = -100
    iclm.train()(input_ids=prompts(), labels=labels, route=ROUTE).loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in iclm.named_parameters() if "lora_B.2" in n)


@each
def test_as_many_examples_as_heads_are_still_examples(iclm):
    """A layer's argument of one entry a head, such as MPT's bias by distance, is no batch."""
    four = torch.cat([prompts(), prompts()[:1]])
    with torch.no_grad():
        found = iclm(input_ids=four, route=torch.tensor([0, 1, 1, 0])).logits
        expected = iclm(input_ids=prompts(), route=ROUTE).logits
    torch.testing.assert_close(found[:3], expected, rtol=1e-3, atol=1e-4)


@each
def test_scores_are_those_of_each_choice_alone(iclm):
    tokens = prompts()[0].tolist()
    choices = ((5, 6, 7), (8, 9), (5, 10, 11))
    example = Example((Message("user", "?"),), ("a", "b", "c"), "a")
    found = score(
        iclm, [EncodedExample(tuple(tokens), choices, choices[0], 0, example)], modules=("mixture", "invariant")
    )
    for module in ("mixture", "invariant"):
        for choice, value in zip(choices, found.choices[module][0], strict=True):
            ids = torch.tensor([[*tokens, *choice]])
            with torch.no_grad():
                logits = iclm(input_ids=ids, module=module, route=None if module == "invariant" else ROUTE[:1]).logits
            steps = torch.log_softmax(logits[0, len(tokens) - 1 : -1], -1)
            assert value == pytest.approx(float(steps.gather(1, ids[0, len(tokens) :, None]).sum()), abs=1e-3)


@each
def test_cached_generation_is_that_without_a_cache(iclm):
    mask = torch.ones_like(prompts())
    mask[1, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "route": ROUTE}
    assert torch.equal(*(iclm.generate(prompts(), use_cache=cache, **options) for cache in (True, False)))


@pytest.mark.parametrize("name", BASES)
def test_routes_and_logits_do_not_depend_on_padding(name, differ, padded):
    ragged = [prompts()[0, :5], prompts()[1, :9], prompts()[2]]
    model = ICLMForCausalLM.from_base(base_of(name), num_domains=2, router_dim=4, lora_rank=2, mi_queue=8).eval()
    model.fit_router([padded(ragged), padded([prompts()[0], prompts()[1]])])
    differ(model)
    with torch.no_grad():
        alone = [model(input_ids=prompt[None]) for prompt in ragged]
        for side in ("left", "right"):
            batch = padded(ragged, side, extra=7)
            found = model(**batch)
            for row, own in enumerate(alone):
                assert torch.equal(found.route[row], own.route[0])
                kept = found.logits[row][batch["attention_mask"][row] == 1]
                torch.testing.assert_close(kept, own.logits[0], rtol=1e-3, atol=1e-4)


@each
def test_a_module_that_is_not_used_has_no_gradient_and_all_of_them_are_saved(iclm, request, tmp_path):
    labels = prompts().masked_fill(torch.arange(14) < 11, -100)
    iclm.train()(input_ids=prompts(), labels=labels, route=torch.zeros(3, dtype=torch.long)).loss.backward()
    grads = {name: p.grad for name, p in iclm.named_parameters() if ".lora_" in name}
    assert all((grad is None) == name.endswith(".2") for name, grad in grads.items())
    iclm.save_pretrained(tmp_path)
    again = ICLMForCausalLM.from_pretrained(tmp_path, base=base_of(request.node.callspec.params["iclm"]))
    own, loaded = iclm.own_state_dict(), again.own_state_dict()
    assert own.keys() == loaded.keys() and all(torch.equal(own[name], loaded[name]) for name in own)


@each
def test_a_base_that_cannot_part_examples_never_packs_them(iclm, request):
    name = request.node.callspec.params["iclm"]
    assert (iclm.no_packing is not None) == (name in NEVER_PACKED)
    if iclm.no_packing is None:
        assert iclm.packs() and not iclm.packs(False)
        return
    with pytest.warns(UserWarning, match="sequence of its own"):
        assert not iclm.packs()
    branches = torch.tensor([[0] * 6 + [1] * 4 + [2] * 4])
    with pytest.raises(ConfigurationError, match="cannot share a sequence"):
        iclm.encode(prompts()[:1], packing=Packing.of(branches), module="invariant")


def test_shared_keys_and_values_stay_above_the_split():
    assert (
        ICLMForCausalLM.from_base(base_of("Gemma4TextConfig"), num_domains=2, router="oracle").config.split_layer == 0
    )
    with pytest.raises(ConfigurationError, match="split_layer is 1"):
        ICLMForCausalLM.from_base(base_of("Gemma4TextConfig"), num_domains=2, router="oracle", split_layer=1)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, **TOKENS), "Conv1D"),
        (transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **TOKENS), "bias"),
    ],
    ids=["gpt2", "bloom"],
)
def test_a_base_that_is_not_understood_is_refused(config, why):
    with pytest.raises(BackboneError, match=why):
        ICLMForCausalLM.from_base(transformers.AutoModelForCausalLM.from_config(config), num_domains=2)


def test_a_base_that_reads_the_weights_of_a_linear_layer_says_so():
    config = transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8, **TOKENS)
    base = transformers.AutoModelForCausalLM.from_config(config).float()
    settings = {"num_domains": 2, "router": "oracle", "split_layer": 0}
    with pytest.raises(BackboneError, match=r"weight of mixer\.dt_proj .* name the other layers in target_modules"):
        ICLMForCausalLM.from_base(base, target_modules="all-linear", **settings)
    base = transformers.AutoModelForCausalLM.from_config(config).float()
    model = ICLMForCausalLM.from_base(base, target_modules=["in_proj", "out_proj"], **settings)
    assert model(input_ids=prompts(), route=ROUTE).logits.isfinite().all()


def test_a_base_that_cannot_be_run_in_rows_is_refused_when_the_model_is_made_and_stays_as_it_was():
    config = transformers.GPTBigCodeConfig(n_embd=32, n_layer=2, n_head=4, **TOKENS)
    base = transformers.AutoModelForCausalLM.from_config(config).eval()
    names, own = [name for name, _ in base.named_modules()], base(input_ids=prompts()).logits
    for _ in range(2):
        with pytest.raises(
            BackboneError, match=r"GPTBigCodeForCausalLM with attn_implementation=.* cannot be run as an ICLM"
        ):
            ICLMForCausalLM.from_base(base, num_domains=2)
        assert [name for name, _ in base.named_modules()] == names
        assert base(input_ids=prompts()).logits.equal(own)


@pytest.mark.parametrize(("size", "refused"), [(0.0, False), (0.003, False), (0.03, True)])
def test_a_base_that_computes_another_function_in_rows_is_refused(size, refused):
    base = base_of("OPTConfig")
    own = base.forward

    def forward(attention_mask=None, **given):
        logits = own(attention_mask=attention_mask, **given).logits
        # adds to sequences with a mask what no part of it says: a share of the spread of the logits
        added = size * logits.std() * torch.linspace(-1, 1, 96) * 3**0.5
        return SimpleNamespace(logits=logits if attention_mask is None else logits + added)

    base.forward = forward
    if not refused:
        ICLMForCausalLM.from_base(base, num_domains=2)
        return
    with pytest.raises(BackboneError, match="OPTForCausalLM gives other logits as an ICLM runs it"):
        ICLMForCausalLM.from_base(base, num_domains=2)


def test_a_base_whose_logits_are_not_finite_is_refused():
    base = base_of("OPTConfig")
    with torch.no_grad():
        base.get_output_embeddings().weight.fill_(float("inf"))
    with pytest.raises(BackboneError, match=r"not finite|changes its logits"):
        ICLMForCausalLM.from_base(base, num_domains=2)


CACHES = {
    "MiniMaxConfig": {**USUAL, "num_local_experts": 2, "head_dim": 8},
    "MambaConfig": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, **TOKENS},
    "FalconMambaConfig": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, **TOKENS},
}


@pytest.mark.parametrize("name", CACHES)
def test_a_base_that_cannot_use_the_cache_generates_without_one(name):
    torch.manual_seed(0)
    config = getattr(transformers, name)(**CACHES[name])
    base = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    base.generation_config.eos_token_id = None
    wanted = base.generate(prompts(), max_new_tokens=4, do_sample=False)
    targets = "attention" if "MiniMax" in name else ["in_proj", "x_proj", "out_proj"]
    model = ICLMForCausalLM.from_base(base, num_domains=2, router="oracle", target_modules=targets).eval()
    options = {"domain_ids": ROUTE, "max_new_tokens": 4, "do_sample": False}
    assert model.generate(prompts(), **options).equal(wanted)
    assert model.generate(prompts(), num_beams=2, **options).shape == wanted.shape
    with pytest.raises(ConfigurationError, match="cannot use an ICLM's cache"):
        model(input_ids=prompts(), route=ROUTE, use_cache=True)


def test_a_recurrent_base_in_bfloat16_has_float32_states_between_its_layers():
    base = transformers.AutoModelForCausalLM.from_config(transformers.MambaConfig(**CACHES["MambaConfig"]))
    base = base.to(torch.bfloat16).eval()
    model = ICLMForCausalLM.from_base(base, num_domains=2, router="oracle", target_modules=["in_proj", "out_proj"])
    labels = prompts().masked_fill(torch.arange(14) < 11, -100)
    model.train()(input_ids=prompts(), labels=labels, route=ROUTE).loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "lora_B.1" in n)
