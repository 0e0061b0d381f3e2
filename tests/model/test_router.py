"""The routers: what they read, and what they make of it."""

import warnings

import pytest
import torch

from iclm.errors import ConfigurationError
from iclm.model import ICLMConfig
from iclm.model.router import Prompt, VQRouter, build_router, pool


def prompt_of(features, tokens=None):
    """Prompts of one token with these hidden states [n, hidden]."""
    n = len(features)
    tokens = torch.zeros(n, 1, dtype=torch.long) if tokens is None else tokens
    mask = torch.ones(n, tokens.shape[1], dtype=torch.bool)
    return Prompt(tokens, mask, torch.arange(n), features[:, None].expand(-1, tokens.shape[1], -1))


def clusters(n=100, hidden=16, distance=4.0, seed=0, offset=50.0, number=2):
    """Features of clusters on a common offset, as hidden states of a language model have, and their labels."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % number
    centres = torch.randn(number, hidden, generator=torch.Generator().manual_seed(99)) * distance
    return centres[labels] + offset + torch.randn(n, hidden, generator=source), labels


def vq(**settings):
    settings = {"hidden_size": 16, "router_dim": 8, **settings}
    return VQRouter(ICLMConfig(**settings)).eval()


def test_pool_is_the_mean_over_prompt_tokens_and_ignores_the_rest():
    hidden = torch.randn(2, 5, 16)
    mask = torch.tensor([[False, True, True, False, False], [True, True, True, True, False]])
    prompt = Prompt(torch.zeros(2, 5, dtype=torch.long), mask, torch.arange(2), hidden)
    expected = torch.stack([hidden[0, 1:3].mean(0), hidden[1, :4].mean(0)])
    torch.testing.assert_close(pool(prompt), expected)
    spoilt = hidden.masked_fill(~mask[..., None], float("nan"))
    torch.testing.assert_close(pool(Prompt(prompt.tokens, mask, prompt.owner, spoilt)), expected)


def test_pool_of_bf16_states_is_computed_in_float32():
    hidden = torch.full((1, 3000, 4), 1.0078125, dtype=torch.bfloat16)
    mask = torch.ones(1, 3000, dtype=torch.bool)
    found = pool(Prompt(torch.zeros(1, 3000, dtype=torch.long), mask, torch.arange(1), hidden))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((1, 4), 1.0078125))


@pytest.mark.parametrize("number", [2, 5])
def test_vq_recovers_clusters_it_was_started_on_and_new_examples_of_them(number):
    router = vq(num_domains=number)
    features, labels = clusters(number=number)
    router.fit(features)
    for seed in (0, 1):
        new, labels = clusters(seed=seed, number=number)
        route = router(prompt_of(new)).indices[:, 0]
        table = torch.stack([torch.bincount(route[labels == i], minlength=number) for i in range(number)])
        assert (table > 0).sum() == number, f"each cluster has a code of its own: {table.tolist()}"


def test_vq_routes_to_the_nearest_codes_in_order_with_weights_that_fall_with_distance():
    router = vq(num_domains=5, active_domains=3)
    features, _ = clusters(number=5)
    router.fit(features)
    route = router(prompt_of(features))
    distance = torch.cdist(router.project(features), router.codes).square() / router.dim
    torch.testing.assert_close(route.indices, distance.argsort(dim=1)[:, :3])
    torch.testing.assert_close(route.weights, torch.softmax(-distance.gather(1, route.indices), 1))
    torch.testing.assert_close(route.weights.sum(1), torch.ones(100))
    assert (route.weights.diff(dim=1) <= 0).all()


def test_every_code_is_used_by_the_examples_it_was_started_on():
    for seed in range(5):
        router = vq(num_domains=5, seed=seed)
        features = torch.randn(60, 16, generator=torch.Generator().manual_seed(seed))
        router.fit(features)
        assert len(router(prompt_of(features)).indices.unique()) == 5


def test_vq_before_fit_is_refused():
    with pytest.raises(ConfigurationError, match="not fitted"):
        vq()(prompt_of(torch.zeros(2, 16)))


def test_fit_on_fewer_examples_than_codes_is_refused():
    with pytest.raises(ConfigurationError, match="5 codes but only 4"):
        vq(num_domains=5).fit(torch.randn(4, 16))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_fit_on_features_that_are_not_finite_is_refused(value):
    features = torch.randn(9, 16)
    features[3, 2] = value
    with pytest.raises(ConfigurationError, match="finite"):
        vq().fit(features)


def test_constant_features_are_no_division_by_zero():
    features = torch.randn(30, 16)
    features[:, 4] = 3.0
    router = vq()
    router.fit(features)
    assert torch.isfinite(router.project(features)).all()
    same = vq()
    same.fit(torch.ones(30, 16))
    route = same(prompt_of(torch.ones(4, 16)))
    assert torch.isfinite(route.weights).all() and torch.isfinite(route.error).all()


def test_codebook_follows_the_features_in_training_with_gradients_only():
    router = vq(num_domains=2, codebook_decay=0.5)
    features, _ = clusters()
    router.fit(features)
    start = router.codes.clone()
    router(prompt_of(features + 1))
    assert torch.equal(router.codes, start), "evaluation mode"
    router.train()
    with torch.no_grad():
        router(prompt_of(features + 1))
    assert torch.equal(router.codes, start), "no gradients: a measurement while training"
    router(prompt_of(features + 1))
    assert not torch.equal(router.codes, start)


def test_a_code_stays_bitwise_the_same_however_long_its_domain_is_away():
    router = vq(num_domains=3, codebook_decay=0.5)
    features, labels = clusters(number=3)
    router.fit(features, labels)
    rare = router.codes[2].clone()
    router.train()
    for step in range(300):  # without care its averages underflow, and it goes to the middle of all features
        route = router(prompt_of(features[labels == step % 2][:2]))
        assert int(route.revived) == 0
    assert torch.equal(router.codes[2], rare)
    assert router.eval()(prompt_of(features)).indices[:, 0].tolist() == labels.tolist()


def test_with_a_threshold_a_code_that_is_not_used_becomes_a_feature_of_the_batch():
    router = vq(num_domains=3, codebook_decay=0.5, dead_code_threshold=0.1)
    features, labels = clusters(number=3)
    router.fit(features, labels)
    router.train()
    batch = features[labels == 0][:1]
    counts = [int(router(prompt_of(batch)).revived) for _ in range(20)]
    assert max(counts) == 1, "no more codes than there are features to become"
    assert torch.allclose(router.codes, router.project(batch), atol=0.01), "all codes went to the only domain left"


@pytest.mark.parametrize("active", [1, 2])
def test_error_of_a_route_is_that_of_the_codes_it_was_decided_with(active):
    router = vq(num_domains=3, active_domains=active, codebook_decay=0.5)
    features, _ = clusters(number=3)
    router.fit(features)
    expected = router(prompt_of(features[:8]))
    found = router.train()(prompt_of(features[:8]))
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.weights, expected.weights)
    torch.testing.assert_close(found.error, expected.error)


def test_random_router_is_a_function_of_the_prompt_tokens_alone():
    router = build_router(ICLMConfig(hidden_size=16, num_domains=5, active_domains=2, router="random", seed=3))
    tokens = torch.randint(2, 99, (40, 6))
    first = router(prompt_of(torch.randn(40, 16), tokens)).indices
    order = torch.randperm(40)
    again = build_router(ICLMConfig(hidden_size=16, num_domains=5, active_domains=2, router="random", seed=3))
    assert torch.equal(again(prompt_of(torch.randn(40, 16), tokens[order])).indices, first[order])
    wide = torch.cat([torch.zeros(40, 3, dtype=torch.long), tokens], 1)
    mask = torch.cat([torch.zeros(40, 3), torch.ones(40, 6)], 1).bool()
    padded = Prompt(wide, mask, torch.arange(40), torch.randn(40, 9, 16))
    assert torch.equal(router(padded).indices, first)
    assert all(len(set(row)) == 2 for row in first.tolist())


def test_random_router_is_near_chance():
    router = build_router(ICLMConfig(hidden_size=16, num_domains=4, router="random"))
    tokens = torch.arange(4000).view(2000, 2) + 2
    share = torch.bincount(router(prompt_of(torch.zeros(2000, 16), tokens)).indices[:, 0], minlength=4) / 2000
    assert (share - 0.25).abs().max() < 0.04


def test_another_seed_routes_at_random_in_another_way():
    tokens = torch.arange(200).view(100, 2) + 2
    one, two = (build_router(ICLMConfig(hidden_size=4, router="random", seed=seed)) for seed in (0, 1))
    prompt = prompt_of(torch.zeros(100, 4), tokens)
    assert not torch.equal(one(prompt).indices, two(prompt).indices)


def test_oracle_and_fixed_routers_do_as_told():
    oracle = build_router(ICLMConfig(hidden_size=4, num_domains=3, router="oracle"))
    prompt = prompt_of(torch.zeros(3, 4))
    with pytest.raises(ConfigurationError, match="domain_ids"):
        oracle(prompt)
    told = Prompt(prompt.tokens, prompt.mask, prompt.owner, prompt.hidden, torch.tensor([2, 0, 1]))
    assert oracle(told).indices.tolist() == [[2], [0], [1]]
    for wrong in ([3, 0, 1], [-1, 0, 1]):
        with pytest.raises(ConfigurationError, match="domain"):
            oracle(Prompt(prompt.tokens, prompt.mask, prompt.owner, prompt.hidden, torch.tensor(wrong)))
    fixed = build_router(ICLMConfig(hidden_size=4, num_domains=3, router="fixed:2"))
    assert fixed(prompt).indices.tolist() == [[2]] * 3


def test_fit_router_reads_prompts_only(make_iclm, labelled):
    """The same prompts with other answers start the same router."""
    found = []
    for change in (0, 13):
        model = make_iclm(num_domains=2, fit=False)
        batch = labelled((6, 9, 4, 11, 8, 7), answer=3)
        answer = batch["labels"] != -100
        batch["input_ids"] = torch.where(answer, (batch["input_ids"] + change) % 500, batch["input_ids"])
        batch["labels"] = torch.where(answer, batch["input_ids"], -100)
        assert model.fit_router([batch]) == 6
        found.append(model.router.state_dict())
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=0, atol=1e-5)


def test_fit_router_names_the_domains_that_it_does_not_tell_apart(make_iclm):
    """Domain 0 looks like two, domains 1 and 2 like one."""
    model = make_iclm(num_domains=3, router="kmeans", fit=False)
    ids = torch.tensor([[3] * 6, [200] * 6, [400] * 6, [400] * 6]).repeat(10, 1)
    domains = torch.tensor([0, 0, 1, 2]).repeat(10)
    with pytest.warns(UserWarning, match=r"no module of their own for domains \[(1|2)\]") as caught:
        model.fit_router([{"input_ids": ids, "domain_ids": domains}])
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit_router([{"input_ids": ids, "domain_ids": domains}], warn_unmatched=False)
        model.fit_router([{"input_ids": ids, "domain_ids": torch.tensor([2, 0, 1, 1]).repeat(10)}])
    assert model.matched_domains == {0, 1, 2}


@pytest.mark.parametrize("router", ["random", "oracle", "fixed:0"])
def test_a_router_that_learns_nothing_is_left_as_it_is(make_iclm, labelled, router):
    assert make_iclm(router=router).fit_router([labelled()]) == 0


def test_router_layer_names_the_layer_whose_input_is_read(make_iclm, load_tiny_base, random_prompts, architecture):
    ids = random_prompts([7])[0][None]
    states = load_tiny_base(architecture)(ids, output_hidden_states=True).hidden_states
    for layer in (0, 1, 2):
        model = make_iclm(architecture, router_layer=layer, split_layer=2)
        found = model.router_features(ids, torch.ones_like(ids))
        torch.testing.assert_close(found[0], states[layer][0].mean(0), rtol=0, atol=1e-5)


def test_a_router_of_many_units_is_fitted_on_units_from_all_batches(make_iclm, monkeypatch, random_prompts, padded):
    monkeypatch.setattr("iclm.model.routing.ROUTER_UNITS", 8)
    model = make_iclm(num_domains=2, router="kmeans", fit=False)
    batches = [padded(random_prompts([5] * 6, seed)) for seed in range(4)]
    seen = []
    monkeypatch.setattr(model.router, "fit", lambda features, domains=None: seen.append(features))
    assert model.fit_router(batches) == 24
    every = torch.cat([model.batch_features(batch) for batch in batches])
    torch.testing.assert_close(seen[0], every[::3])
