"""Every kind of router that learns: one behaviour matrix; then what each kind does on its own."""

import pytest
import torch

from iclm.errors import ConfigurationError
from iclm.model import ICLMConfig
from iclm.model.packing import Packing
from iclm.model.plan import ActivationPlan
from iclm.model.router import LearnedRouter, Prompt, build_router
from iclm.model.router.base import squared_distances
from iclm.model.router.cluster import centres_of
from iclm.model.router.prompt import TokenUnits

KINDS = ("vq", "kmeans", "bisecting_kmeans", "gumbel", "soft", "topk")
REDUCTIONS = ("pca", "mds", "none")


def make(kind="vq", domains=3, **settings):
    settings = {"hidden_size": 16, "router_dim": 4, "router": kind, "num_domains": domains, **settings}
    return build_router(ICLMConfig(**settings)).eval()


def prompt_of(features):
    """Prompts of one token with these hidden states [n, hidden]."""
    n = len(features)
    return Prompt(torch.zeros(n, 1).long(), torch.ones(n, 1).bool(), torch.arange(n), features[:, None])


def clusters(n=120, number=3, seed=0, distance=4.0):
    """Features of clusters [n, 16] on a common offset, and their labels."""
    labels = torch.arange(n) % number
    centres = torch.randn(number, 16, generator=torch.Generator().manual_seed(99)) * distance
    return centres[labels] + 50 + torch.randn(n, 16, generator=torch.Generator().manual_seed(seed)), labels


def purity(route, labels, codes):
    """Share of the examples that are in the most frequent cluster of their code."""
    table = torch.zeros(codes, int(labels.max()) + 1)
    table.index_put_((route, labels), torch.ones(len(labels)), accumulate=True)
    return float(table.max(1).values.sum() / len(labels))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_clusters_are_told_apart_in_new_examples_too(kind, reduction):
    router = make(kind, router_reduction=reduction)
    router.fit(clusters()[0])
    features, labels = clusters(seed=1)
    assert purity(router(prompt_of(features)).indices[:, 0], labels, 3) > 0.95


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("codes", [1, 2, 7])
def test_more_codes_than_domains_and_fewer_work(kind, codes):
    router = make(kind, codes)
    features, labels = clusters()
    router.fit(features)
    route = router(prompt_of(features))
    assert route.indices.max() < codes and torch.isfinite(route.weights).all()
    torch.testing.assert_close(route.dense(codes).sum(1), torch.ones(120))
    if codes == 7:  # a domain may have several codes, a code has one domain
        assert purity(route.indices[:, 0], labels, codes) > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_one_code_is_a_weight_of_one(kind):
    router = make(kind, 1)
    router.fit(clusters()[0])
    route = router(prompt_of(clusters(5)[0]))
    assert route.indices.tolist() == [[0]] * 5 and route.weights.tolist() == [[1.0]] * 5


@pytest.mark.parametrize("kind", KINDS)
def test_more_codes_than_examples_are_refused(kind):
    with pytest.raises(ConfigurationError, match="5 codes but only 4 examples"):
        make(kind, 5).fit(torch.randn(4, 16))


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_codes_as_examples_work(kind):
    router, features = make(kind, 4), torch.randn(4, 16)
    router.fit(features)
    assert sorted(router(prompt_of(features)).indices[:, 0].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_constant_features_give_finite_routes(kind, reduction):
    router = make(kind, router_reduction=reduction)
    router.fit(torch.ones(30, 16))
    route = router(prompt_of(torch.ones(4, 16)))
    assert torch.isfinite(route.weights).all() and torch.isfinite(route.error).all()
    assert len(route.indices.unique(dim=0)) == 1, "equal prompts have equal routes"


@pytest.mark.parametrize("level", ["input", "token"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_feature_that_is_not_finite_is_refused_when_fitting_and_when_routing(kind, level, value):
    router, (features, _) = make(kind, router_level=level), clusters()
    bad = features.clone()
    bad[3, 2] = value
    with pytest.raises(ConfigurationError, match="finite"):
        router.fit(bad)
    assert not router.fitted
    router.fit(features)
    with pytest.raises(ConfigurationError, match="finite"):
        router(prompt_of(bad))


@pytest.mark.parametrize("kind", KINDS)
def test_before_fit_routing_is_refused(kind):
    with pytest.raises(ConfigurationError, match=f"{kind} router was not fitted"):
        make(kind)(prompt_of(torch.zeros(2, 16)))


@pytest.mark.parametrize("kind", KINDS)
def test_fitting_depends_on_the_seed_alone(kind):
    features, states = clusters()[0], []
    for seed in (0, 7):
        torch.manual_seed(seed)
        router = make(kind, router_reduction="mds")
        router.fit(features)
        states.append(router.state_dict())
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name]), name


def test_state_of_a_router_without_reduction_has_no_projection():
    assert "projection" not in make("kmeans", router_reduction="none").state_dict()
    assert make("kmeans", router_reduction="none").dim == 16


def test_mds_keeps_the_distances_of_the_features():
    features = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    router = make("kmeans", router_dim=16, router_reduction="mds")
    router.fit(features)
    standard = (features - router.mean) / router.deviation
    found, expected = torch.pdist(router.project(features)), torch.pdist(standard)
    assert (found / expected - 1).abs().max() < 0.15


def test_bisecting_k_means_finds_nested_clusters():
    centres = torch.tensor([[-20.0, 0], [-20, 3], [20, 0], [20, 3]])
    features = (centres.repeat_interleave(25, 0) + torch.randn(100, 2) * 0.3) @ torch.randn(2, 16)
    router = make("bisecting_kmeans", 4)
    router.fit(features)
    labels = torch.arange(4).repeat_interleave(25)
    assert purity(router(prompt_of(features)).indices[:, 0], labels, 4) == 1.0


def test_centres_of_fewer_points_than_clusters_are_finite_and_warn_of_nothing(recwarn):
    assert torch.isfinite(centres_of(torch.ones(10, 3), 4, 0)).all()
    assert not recwarn.list


# -- gates -------------------------------------------------------------------------------------------------------------


def fitted_gate(kind, domains=3, **settings):
    router = make(kind, domains, **settings)
    router.fit(clusters(distance=1.0)[0])
    return router


def test_a_gate_starts_as_the_softmax_of_the_distances_to_its_centres():
    router, features = fitted_gate("soft", router_temperature=2.0), clusters(distance=1.0)[0][:9]
    route = router(prompt_of(features))
    distance = torch.cdist(router.project(features), router.codes).square() / router.dim
    torch.testing.assert_close(route.dense(3), torch.softmax(-distance / 2.0, 1))


def test_a_higher_temperature_makes_weights_more_even():
    features = clusters(distance=1.0)[0]
    largest = [fitted_gate("soft", router_temperature=t)(prompt_of(features)).weights.max(1).values for t in (1, 8)]
    assert (largest[0] > largest[1]).all()


def test_topk_weighs_the_best_modules_in_the_ratio_of_their_probabilities():
    features = clusters(distance=1.0)[0]
    soft = fitted_gate("soft")(prompt_of(features)).dense(3)
    route = fitted_gate("topk", active_domains=2)(prompt_of(features))
    best = soft.topk(2, dim=1)
    assert torch.equal(route.indices, best.indices)
    torch.testing.assert_close(route.weights, best.values / best.values.sum(1, keepdim=True))


def test_gumbel_samples_the_gates_probabilities_in_training_and_takes_the_best_in_evaluation():
    router, features = fitted_gate("gumbel", router_temperature=0.5), clusters(distance=1.0)[0]
    one = features[:1].expand(4000, -1)
    probabilities = fitted_gate("soft", router_temperature=0.5)(prompt_of(features[:1])).dense(3)[0]
    assert router(prompt_of(one)).indices.unique().tolist() == [int(probabilities.argmax())]
    torch.manual_seed(0)
    drawn = router.train()(prompt_of(one))
    share = torch.bincount(drawn.indices[:, 0], minlength=3) / 4000
    torch.testing.assert_close(share, probabilities.detach(), rtol=0, atol=0.03)
    assert (drawn.weights == 1).all()
    with torch.no_grad():
        assert len(router(prompt_of(one)).indices.unique()) == 1, "no gradients: a measurement while training"


@pytest.mark.parametrize("kind", ["gumbel", "topk"])
def test_the_weight_of_a_single_active_module_passes_its_gradient_to_the_gate(kind):
    router = fitted_gate(kind).train()
    route = router(prompt_of(clusters()[0]))
    assert (route.weights == 1).all()
    (route.weights * torch.arange(120.0)[:, None]).sum().backward()
    assert router.weight.grad.abs().sum() > 0


def test_the_load_balance_is_one_for_even_use_and_larger_for_uneven():
    features, _ = clusters(distance=8.0)
    router = fitted_gate("topk")
    router.fit(features)
    even = router(prompt_of(features)).loss
    torch.testing.assert_close(even, torch.tensor(1.0), rtol=0, atol=0.05)
    router.train()
    with torch.no_grad():
        router.bias[0] += 1e4
    for _ in range(200):
        uneven = router(prompt_of(features)).loss
    assert uneven > 2.5
    uneven.backward()
    assert torch.isfinite(router.bias.grad).all()


# -- routing by token --------------------------------------------------------------------------------------------------


def test_tokens_are_routed_one_by_one_and_what_follows_the_prompt_as_its_last_token():
    router = make("kmeans", router_level="token")
    features, _ = clusters(24)
    router.fit(features)
    hidden = features.view(3, 8, 16)
    mask = torch.ones(3, 8).bool()
    mask[0, 5:], mask[2, :3] = False, False
    spoilt = hidden.masked_fill(~mask[..., None], float("nan"))
    route = router(Prompt(torch.zeros(3, 8).long(), mask, torch.arange(3), spoilt))
    whole = router(Prompt(torch.zeros(3, 8).long(), torch.ones(3, 8).bool(), torch.arange(3), hidden))
    assert torch.equal(route.tokens.indices[mask], whole.tokens.indices[mask])
    assert len(whole.tokens.indices[0].unique()) == 3, "tokens of one prompt take several routes"
    assert (route.tokens.indices[0, 5:] == whole.tokens.indices[0, 4]).all()
    assert torch.equal(route.indices[0], whole.tokens.indices[0, 4])
    assert (route.tokens.indices[2, :3] == whole.tokens.indices[2, 7]).all()


def test_an_example_without_a_prompt_has_a_defined_route_at_both_levels():
    for level in ("input", "token"):
        router = make("kmeans", router_level=level)
        features, _ = clusters(24)
        router.fit(features)
        mask = torch.tensor([[True, True], [False, False]])
        prompt = Prompt(torch.zeros(2, 2).long(), mask, torch.arange(2), features[:4].view(2, 2, 16))
        alone = Prompt(prompt.tokens[1:], mask[1:], torch.arange(1), prompt.hidden[1:])
        route = router(prompt)
        assert torch.equal(route.indices[1], router(alone).indices[0])
        assert torch.isfinite(route.weights).all()


def test_a_plan_by_token_has_a_row_for_each_choice_whatever_its_modules():
    router = make("kmeans", 3, router_level="token", active_domains=2)
    features, _ = clusters(30)
    router.fit(features)
    prompt = Prompt(torch.zeros(3, 10).long(), torch.ones(3, 10).bool(), torch.arange(3), features.view(3, 10, 16))
    route = router(prompt)
    plan = ActivationPlan.mixture(route)
    assert plan.rows == 9 and plan.width == 3 and plan.fixed == (0,)
    assert plan.position() is None, "its rows have no single module"
    columns = plan.gate(2, torch.float32).view(9, 10, -1, 2)
    assert torch.equal(columns[..., 0], columns[..., 1]) and set(columns.unique().tolist()) == {0.0, 1.0}
    gate = columns[..., 0]
    for row in range(9):
        for token in range(10):
            used = [plan.active[i] for i in gate[row, token].nonzero()[:, 0].tolist()]
            expected = 0 if row % 3 == 0 else 1 + int(route.tokens.indices[row // 3, token, row % 3 - 1])
            assert used == [expected]


def test_tokens_of_packed_examples_are_units_once():
    branch = torch.tensor([[0, 0, 1, 1, 2, -1]])
    packing = Packing.of(branch)
    mask = packing.readable(torch.tensor([[1, 1, 1, 0, 1, 0]]).bool())
    hidden = torch.arange(6.0)[None, :, None].expand(1, 6, 16)
    prompt = Prompt(torch.arange(6)[None], mask, packing.owner, hidden, torch.tensor([1, 1]), packing.example_at())
    units = TokenUnits.of(prompt)
    assert units.units.tokens[:, 0].tolist() == [0, 1, 2, 4]
    assert units.units.features[:, 0].tolist() == [0.0, 1.0, 2.0, 4.0]
    assert units.units.domains.tolist() == [1, 1, 1, 1]


# -- in a model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_one_labelled_token_trains(make_iclm, labelled, kind):
    model = make_iclm(router=kind, num_domains=3, mi_weight=0.5).train()
    batch = {name: value[:1, :6] for name, value in labelled(answer=1).items()}
    assert (batch["labels"] != -100).sum() == 1
    loss = model(**batch).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("layer", [0, 1, 2, 3, 4, -1])
def test_the_router_reads_the_frozen_base_at_any_layer(make_iclm, load_tiny_base, architecture, random_prompts, layer):
    model = make_iclm(architecture, router_layer=layer, router="kmeans")
    base, prompt = load_tiny_base(architecture), random_prompts((7,))[0][None]
    with torch.no_grad():
        states = base(prompt, output_hidden_states=True).hidden_states
        found = model.router_features(prompt, torch.ones_like(prompt))
    torch.testing.assert_close(found, states[layer].float().mean(1), rtol=0, atol=1e-4)


def test_only_a_router_above_the_split_costs_a_second_pass(make_iclm, random_prompts, padded):
    for layer, passes in ((2, 1), (3, 2), (-1, 2)):
        model, calls = make_iclm(router_layer=layer, split_layer=2), []
        model.get_decoder().register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        with torch.no_grad():
            model(**padded(random_prompts()))
            assert len(calls) == passes
            model(**padded(random_prompts()), module="invariant")
            model(**padded(random_prompts()), route=torch.zeros(4).long())
        assert len(calls) == passes + 2, "no route, no pass for it"


def test_fit_router_by_token_counts_tokens(make_iclm, random_prompts, padded):
    model = make_iclm(router="kmeans", router_level="token", fit=False)
    assert model.fit_router([padded(random_prompts((5, 9, 3)))]) == 17
    assert isinstance(model.router, LearnedRouter)


@pytest.mark.parametrize("kind", ["vq", "kmeans", "bisecting_kmeans", "soft", "topk", "gumbel"])
def test_codes_are_numbered_by_the_domains_they_match_and_not_moved_by_them(kind):
    features, _ = clusters(60)
    plain, named = make(kind, 3), make(kind, 3)
    plain.fit(features)
    found = squared_distances(plain.project(features), plain.codes).argmin(1)
    wanted = torch.tensor([2, 0, 1])[found]  # every domain is the cluster of another number
    named.fit(features, wanted)
    assert torch.equal(squared_distances(named.project(features), named.codes).argmin(1), wanted)
    assert torch.equal(named.codes[torch.tensor([2, 0, 1])], plain.codes)


def test_more_domains_than_codes_and_unknown_ones_number_what_they_can():
    features, _ = clusters(60)
    router = make("kmeans", 3)
    router.fit(features)
    found = squared_distances(router.project(features), router.codes).argmin(1)
    domains = torch.tensor([7, 1, -1])[found]
    router.fit(features, domains)
    again = squared_distances(router.project(features), router.codes).argmin(1)
    assert set(again[domains == 1].tolist()) == {1} and len(set(again.tolist())) == 3


def clusters_of(counts):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    centres = torch.randn(len(counts), 16, generator=torch.Generator().manual_seed(99)) * 4
    return centres[labels] + torch.randn(len(labels), 16, generator=torch.Generator().manual_seed(0)), labels


def router_of(kind, features, labels=None):
    router = build_router(ICLMConfig(hidden_size=16, router_dim=4, router=kind, num_domains=2)).eval()
    router.fit(features, labels)
    return router


@pytest.mark.parametrize("kind", ["soft", "topk", "gumbel"])
def test_a_measurement_does_not_move_the_usage_of_a_gate(kind):
    features, _ = clusters_of([40, 10])
    router = router_of(kind, features)
    before = router.usage.clone()
    router(prompt_of(features))
    with torch.no_grad():
        router.train()(prompt_of(features))
    assert torch.equal(router.usage, before)
    router(prompt_of(features))
    assert not torch.equal(router.usage, before)


def test_a_code_starts_with_the_weight_of_its_examples():
    features, labels = clusters_of([90, 10])
    router = router_of("vq", features, labels)
    codebook = router.quantiser._codebook
    assert codebook.cluster_size.flatten().tolist() == [90, 10]
    torch.testing.assert_close(codebook.embed_avg[0] / codebook.cluster_size[0][:, None], router.codes)


def test_the_usage_of_a_gate_is_an_average_of_some_twenty_batches():
    features, _ = clusters_of([40, 10])
    router = router_of("topk", features).train()
    routes = router(prompt_of(features)).indices[:, 0]
    share = torch.bincount(routes, minlength=2) / 50
    torch.testing.assert_close(router.usage, 0.95 * torch.full((2,), 0.5) + 0.05 * share)


def test_gumbel_noise_samples_the_probabilities_of_several_gates():
    router = build_router(ICLMConfig(hidden_size=16, router_dim=4, router="gumbel", num_domains=5)).train()
    router.fitted.fill_(True)
    wanted = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1])
    with torch.no_grad():
        router.bias.copy_(wanted.log())  # of five the mirror image of the noise would give another share
    torch.manual_seed(0)
    drawn = router(prompt_of(torch.zeros(20_000, 16))).indices[:, 0]
    torch.testing.assert_close(torch.bincount(drawn, minlength=5) / 20_000, wanted, rtol=0, atol=0.015)


def test_centres_are_the_best_of_several_runs():
    source = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 4, generator=source) * 6
    features = centres.repeat_interleave(50, 0) + torch.randn(400, 4, generator=source)
    errors = [
        float(squared_distances(features, centres_of(features, 8, seed)).min(1).values.sum()) for seed in range(12)
    ]
    assert max(errors) < 1.05 * min(errors)
