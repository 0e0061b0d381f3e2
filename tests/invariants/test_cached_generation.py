"""Invariant 5: cached generation equals uncached; the route is decided on the prompt, once."""

import pytest
import torch

from iclm.errors import ConfigurationError
from iclm.model.cache import ICLMCache

CASES = [(a, *router) for a in ("llama", "qwen2", "gpt_neox", "gemma3") for router in (("vq", 2, 1), ("vq", 5, 2))]
CASES += [("llama", "oracle", 2, 1), ("gemma3", "random", 5, 2), ("qwen2", "fixed:1", 2, 1)]
HOW = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 1.3, "top_k": 0},
    "beam": {"do_sample": False, "num_beams": 3},
    "beam-all": {"do_sample": False, "num_beams": 2, "num_return_sequences": 2},
}


@pytest.fixture(scope="module")
def models():
    """ICLMs made already."""
    return {}


@pytest.fixture(params=CASES, ids=lambda c: f"{c[0]}-{c[1]}-K{c[2]}-active{c[3]}")
def model(request, make_iclm, models):
    """An ICLM in evaluation mode whose modules differ, for each router."""
    architecture, router, domains, active = request.param
    if request.param not in models:
        settings = {"router": router, "num_domains": domains, "active_domains": active, "mix": "gate"}
        models[request.param] = make_iclm(architecture, **settings)
    return models[request.param]


def generate(model, batch, **kwargs):
    domains = {"domain_ids": torch.arange(len(batch["input_ids"])) % 2} if model.config.router == "oracle" else {}
    torch.manual_seed(0)
    with torch.no_grad():
        return model.generate(
            **batch, **domains, max_new_tokens=6, min_new_tokens=6, pad_token_id=0, eos_token_id=1, **kwargs
        )


@pytest.mark.parametrize("how", HOW)
def test_cached_generation_equals_uncached(model, random_prompts, padded, how):
    batch = padded(random_prompts((5, 9, 3, 12, 7, 10), seed=6), "left", 1)
    cached = generate(model, batch, use_cache=True, **HOW[how])
    assert torch.equal(cached, generate(model, batch, use_cache=False, **HOW[how]))


def test_guesses_that_are_taken_back_are_refused(make_iclm, random_prompts, padded):
    with pytest.raises(ConfigurationError, match="assisted generation"):
        generate(make_iclm(), padded(random_prompts((5,))), do_sample=False, prompt_lookup_num_tokens=2)


def test_a_batch_generates_what_each_prompt_generates_alone(model, random_prompts, padded):
    prompts = random_prompts((5, 9, 3, 12, 7, 10), seed=6)
    together = generate(model, padded(prompts, "left", 1), do_sample=False)[:, -6:]
    for row, prompt in enumerate(prompts):
        batch = {"input_ids": prompt[None], "attention_mask": torch.ones(1, len(prompt), dtype=torch.long)}
        if model.config.router == "oracle":
            with torch.no_grad():
                alone = model.generate(
                    **batch, domain_ids=torch.tensor([row % 2]), max_new_tokens=6, min_new_tokens=6, do_sample=False
                )
        else:
            alone = generate(model, batch, do_sample=False)
        assert torch.equal(alone[0, -6:], together[row])


@pytest.mark.parametrize("module", ["invariant", "domain_0", "domain_1"])
def test_one_module_generates_the_same_with_and_without_cache(make_iclm, random_prompts, padded, architecture, module):
    model, batch = make_iclm(architecture), padded(random_prompts(), "left")
    for how in ("greedy", "beam"):
        cached = generate(model, batch, module=module, use_cache=True, **HOW[how])
        assert torch.equal(cached, generate(model, batch, module=module, use_cache=False, **HOW[how]))


def test_the_modules_of_these_tests_answer_differently(make_iclm, random_prompts, padded, architecture):
    model, batch = make_iclm(architecture), padded(random_prompts(), "left")
    answers = {m: generate(model, batch, module=m, do_sample=False) for m in ("invariant", "domain_0", "domain_1")}
    assert not torch.equal(answers["invariant"], answers["domain_0"])
    assert not torch.equal(answers["domain_0"], answers["domain_1"])


@pytest.mark.parametrize("router", ["vq", "random"])
def test_generated_tokens_do_not_change_the_route(make_iclm, random_prompts, padded, architecture, router):
    """At least one prompt would be routed elsewhere if the router read the answer; generation keeps its route."""
    model = make_iclm(architecture, router=router, num_domains=5)
    prompts = random_prompts((2, 3, 4) * 10, seed=9)
    batch = padded(prompts, "left")
    with torch.no_grad():
        routes = model(**batch).route
        out = generate(model, batch, do_sample=False)
        mask = torch.cat([batch["attention_mask"], torch.ones(len(prompts), 6, dtype=torch.long)], dim=1)
        assert not torch.equal(model(input_ids=out, attention_mask=mask).route, routes), "the test needs such a prompt"
        given = model.generate(
            **batch, route=routes, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0
        )
    assert torch.equal(out, given)


@pytest.mark.parametrize("split", [0, 2])
def test_step_by_step_logits_with_a_cache_equal_those_of_one_forward(make_iclm, random_prompts, architecture, split):
    model = make_iclm(architecture, num_domains=5, active_domains=2, split_layer=split)
    tokens = torch.stack(random_prompts((14, 14, 14), seed=2))
    with torch.no_grad():
        whole = model(tokens, route=model(tokens[:, :6]).route)
        start = model(tokens[:, :6], use_cache=True)
        weights = start.past_key_values.route
        whole = model(tokens, route=weights).logits
        found, cache = [start.logits], start.past_key_values
        for at in range(6, 14):
            step = model(tokens[:, at : at + 1], past_key_values=cache, use_cache=True)
            assert torch.equal(step.route, start.route)
            found.append(step.logits)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("split", [0, 2, 3])
def test_a_reordered_cache_continues_the_reordered_examples(make_iclm, random_prompts, split, architecture):
    model = make_iclm(architecture, num_domains=5, active_domains=2, router="random", split_layer=split)
    tokens = torch.stack(random_prompts((9, 9, 9), seed=5))
    order = torch.tensor([2, 0, 0])
    with torch.no_grad():
        cache = model(tokens[:, :6], use_cache=True).past_key_values
        assert isinstance(cache, ICLMCache)
        cache.reorder_cache(order)
        found = model(tokens[order, 6:], past_key_values=cache, use_cache=True)
        fresh = model(tokens[order, :6], use_cache=True)
        expected = model(tokens[order, 6:], past_key_values=fresh.past_key_values)
    assert torch.equal(found.route, fresh.route)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)


def test_the_cache_holds_examples_below_the_split_and_rows_above(make_iclm, random_prompts, architecture):
    model = make_iclm(architecture, num_domains=5, active_domains=2, router="random", split_layer=3)
    with torch.no_grad():
        cache = model(torch.stack(random_prompts((6, 6))), use_cache=True).past_key_values
    assert [layer.keys.shape[0] for layer in cache.layers] == [2, 2, 2, 6]


def test_a_cache_repeated_or_selected_keeps_plan_and_route_in_step(make_iclm, random_prompts):
    model = make_iclm(num_domains=5, active_domains=2, router="random", split_layer=2)
    tokens = torch.stack(random_prompts((7, 7, 7), seed=8))
    with torch.no_grad():
        for change, order in (
            (lambda cache: cache.batch_repeat_interleave(2), torch.tensor([0, 0, 1, 1, 2, 2])),
            (lambda cache: cache.batch_select_indices(torch.tensor([2, 1])), torch.tensor([2, 1])),
        ):
            first = model(tokens[:, :5], use_cache=True)
            change(first.past_key_values)
            found = model(tokens[order, 5:], past_key_values=first.past_key_values)
            assert torch.equal(found.route, first.route[order])
            again = model(tokens[order, :5], use_cache=True).past_key_values
            expected = model(tokens[order, 5:], past_key_values=again)
            torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)
