"""Router health: figures that agree with the routing report, sums that can be cut anywhere, and the warning of a collapse."""

import math
import warnings

import pytest
import torch

from iclm.evaluation.routing import routing_report
from iclm.model.health import CollapseWatch, RouterCollapseWarning, RouterHealth
from iclm.model.plan import Route, TokenRoute


def drawn(seed, examples=60, codes=3, domains=4):
    source = torch.Generator().manual_seed(seed)
    routes = torch.randint(codes, (examples,), generator=source)
    return routes, torch.randint(domains, (examples,), generator=source)


def counts_of(codes, domains=None, num_domains=4, size=4):
    health = RouterHealth(size, num_domains)
    health.add(Route.to(torch.tensor(codes)), None if domains is None else torch.tensor(domains))
    return health.counts()


def warned(watch, *parts):
    """The messages of the collapse warnings that these stretches cause."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for part in parts:
            watch.add(part)
    assert all(issubclass(item.category, RouterCollapseWarning) for item in caught)
    return [str(item.message) for item in caught]


@pytest.mark.parametrize(("codes", "domains"), [(3, 4), (4, 3), (2, 2), (1, 3)])
def test_the_figures_are_those_of_the_routing_report(codes, domains):
    for seed in range(5):
        routes, truth = drawn(seed, codes=codes, domains=domains)
        health = RouterHealth(codes, domains)
        health.add(Route.to(routes), truth)
        figures = health.figures()
        report = routing_report(routes.numpy(), truth.numpy(), codes, permutations=1)
        assert figures["router_agreement"] == pytest.approx(report.accuracy)
        assert figures["router_perplexity"] == pytest.approx(report.perplexity, rel=1e-5)
        assert figures["router_dead"] == report.dead_codes
        assert [figures[f"router_usage_{code}"] for code in range(codes)] == pytest.approx(report.usage)


def test_batches_add_up_to_the_figures_of_all_examples_together():
    routes, truth = drawn(0)
    whole, parts = RouterHealth(3, 4), RouterHealth(3, 4)
    whole.add(Route(routes[:, None], torch.ones(60, 1), error=torch.arange(60.0), revived=torch.tensor(3)), truth)
    for start, revived in ((0, 1), (20, 0), (40, 2)):
        cut = slice(start, start + 20)
        error = torch.arange(60.0)[cut]
        parts.add(Route(routes[cut, None], torch.ones(20, 1), error, revived=torch.tensor(revived)), truth[cut])
    assert parts.figures() == whole.figures()
    assert parts.figures()["router_revived"] == 3
    assert parts.figures()["router_error"] == pytest.approx(29.5)
    assert parts.counts().examples == 60


def test_usage_is_the_share_of_the_routing_weight():
    health = RouterHealth(3)
    health.add(Route(torch.tensor([[0, 2], [2, 1]]), torch.tensor([[0.75, 0.25], [0.5, 0.5]])))
    figures = health.figures()
    assert [figures[f"router_usage_{code}"] for code in range(3)] == pytest.approx([0.375, 0.25, 0.375])


def test_the_figures_of_a_router_by_token_count_the_tokens_that_were_read():
    indices = torch.tensor([[[0], [0], [1], [1]], [[1], [1], [1], [0]]])
    read = torch.tensor([[True, True, True, False], [True, False, False, False]])
    tokens = TokenRoute(indices, torch.ones(2, 4, 1), torch.arange(2), read)
    health = RouterHealth(2, 2)
    health.add(Route(torch.tensor([[1], [1]]), torch.ones(2, 1), tokens=tokens), torch.tensor([0, 1]))
    figures = health.figures()
    assert (figures["router_usage_0"], figures["router_usage_1"]) == (0.5, 0.5)
    assert figures["router_agreement"] == 0.5, "examples, by the route of their last prompt token"


def test_what_is_not_known_is_left_out():
    assert RouterHealth(2, 2).figures() == {}
    health = RouterHealth(2, 2)
    health.add(Route.to(torch.tensor([0, 1])))
    assert set(health.figures()) == {"router_perplexity", "router_dead", "router_usage_0", "router_usage_1"}
    health.add(Route.to(torch.tensor([0, 1])), torch.tensor([-1, 1]))
    assert health.figures()["router_agreement"] == 1.0, "the one example whose domain is known"


def test_a_cleared_health_starts_anew():
    health = RouterHealth(2, 2)
    health.add(Route.to(torch.tensor([0, 0])), torch.tensor([0, 1]))
    health.clear()
    assert health.figures() == {}
    health.add(Route.to(torch.tensor([1])), torch.tensor([0]))
    assert (health.figures()["router_usage_1"], health.counts().examples) == (1.0, 1)


def test_a_routing_weight_that_is_no_number_shows():
    health = RouterHealth(2)
    health.add(Route(torch.tensor([[0], [1]]), torch.tensor([[math.nan], [1.0]])))
    assert math.isnan(health.figures()["router_perplexity"])


def test_the_figures_of_a_real_router_have_its_error_and_its_revived_codes(make_iclm, labelled):
    model = make_iclm(num_domains=2, router="vq").train()
    health = RouterHealth(2)
    health.add(model(**labelled()).decision)
    figures = health.figures()
    assert figures["router_error"] > 0 and figures["router_revived"] >= 0
    assert figures["router_usage_0"] + figures["router_usage_1"] == pytest.approx(1.0)


def test_a_collapse_is_told_once_and_says_what_to_try():
    watch = CollapseWatch()
    part = counts_of([2] * 100, [0, 1] * 50)
    assert warned(watch, part, part) == [], "200 examples are too few"
    [message] = warned(watch, part)
    assert "100%" in message and "300 examples" in message and "module 2 of 4" in message
    assert "router: kmeans" in message and "router_layer" in message
    assert warned(watch, part, part, part) == []


@pytest.mark.parametrize(
    ("codes", "domains", "size", "collapsed"),
    [
        ([0] * 98 + [1] * 2, [0, 1] * 50, 4, True),
        ([0] * 95 + [1] * 5, [0, 1] * 50, 4, False),
        ([0] * 100, None, 4, True),
        ([0] * 100, [1] * 100, 4, False),
        ([0] * 100, [1] * 96 + [0] * 4, 4, False),
        ([0] * 100, [1] * 95 + [0] * 5, 4, True),
        ([0] * 100, [0, 1] * 50, 1, False),
    ],
    ids=["98 %", "95 %", "domains unknown", "one domain", "nearly one domain", "two domains", "one module"],
)
def test_a_collapse_is_more_than_95_percent_on_one_module_of_several_domains(codes, domains, size, collapsed):
    part = counts_of(codes, domains, size=size)
    assert bool(warned(CollapseWatch(), part, part, part)) == collapsed


def test_the_window_forgets_a_healthy_past():
    healthy, collapsed = counts_of([0, 1, 2, 3] * 32, [0, 1] * 64), counts_of([3] * 128, [0, 1] * 64)
    assert warned(CollapseWatch(), healthy, healthy, healthy, collapsed) == []
    assert len(warned(CollapseWatch(), healthy, healthy, healthy, collapsed, collapsed)) == 1
