"""The aggregators."""

import pytest
import torch
from torch import nn

from iclm.errors import ConfigurationError
from iclm.model import ICLMConfig
from iclm.model.aggregator import MixAggregator, build_aggregator
from iclm.model.backbone import Head

KINDS = [{"mix": "fixed"}, {"mix": "gate"}, {"mix": "low_rank"}, {"aggregator": "concat"}]
KINDS += [{"aggregator": "logits"}, {"aggregator": "probas"}, {"aggregator": "probas", "mix": "gate"}]


def build(settings, bias=True):
    torch.manual_seed(0)
    projection = nn.Linear(6, 11, bias=bias)
    return build_aggregator(ICLMConfig(hidden_size=6, **settings), projection), Head(projection, multiply=0.5, cap=3.0)


@pytest.mark.parametrize("settings", KINDS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_start_on_equal_states_is_the_base_head(settings, bias):
    aggregator, head = build(settings, bias)
    states, weights = torch.randn(4, 6), torch.tensor([[0.7, 0.3, 0.0]]).expand(4, -1)
    found = aggregator(states, states[:, None].expand(-1, 3, -1), weights, head)
    torch.testing.assert_close(found, head(states), rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_start_on_different_states_is_an_even_mixture_of_the_two_sides(settings):
    aggregator, head = build(settings)
    one, two, ones = torch.randn(4, 6), torch.randn(4, 6), torch.ones(4, 1)
    found = aggregator(one, two[:, None], ones, head)
    if settings.get("aggregator") == "probas":
        found, expected = found.softmax(-1), (head(one).softmax(-1) + head(two).softmax(-1)) / 2
    elif settings.get("aggregator") == "logits":
        expected = (head(one) + head(two)) / 2
    else:
        expected = head((one + two) / 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_module_of_weight_zero_has_no_say_and_no_gradient_that_is_not_finite():
    for settings in KINDS:
        aggregator, head = build(settings)
        one, weights = torch.randn(4, 6), torch.tensor([[1.0, 0.0]]).expand(4, -1).clone().requires_grad_()
        domains = torch.randn(4, 2, 6, requires_grad=True)
        found = aggregator(one, domains, weights, head)
        other = torch.stack([domains[:, 0], torch.randn(4, 6)], 1)
        torch.testing.assert_close(aggregator(one, other, weights, head), found, rtol=0, atol=1e-6)
        found.square().sum().backward()
        assert torch.isfinite(weights.grad).all() and torch.isfinite(domains.grad).all()


def test_low_rank_is_for_mix_only():
    with pytest.raises(ConfigurationError, match="low_rank"):
        build({"aggregator": "probas", "mix": "low_rank"})


SHAPES = [
    {},
    {"logit": ()},
    {"down": (8, 12), "up": (6, 8)},
    {"weight": (11, 12), "bias": (11,)},
    {},
    {},
    {"logit": ()},
]


@pytest.mark.parametrize("settings, shapes", list(zip(KINDS, SHAPES, strict=True)), ids=str)
def test_parameters_are_those_documented(settings, shapes):
    aggregator, _ = build(settings)
    assert {name: tuple(p.shape) for name, p in aggregator.named_parameters()} == shapes


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_both_sides_get_a_gradient_and_no_batch_statistics_act(settings):
    aggregator, head = build(settings)
    one, two = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    domains, weights = two[:, None], torch.ones(4, 1)
    aggregator.train()(one, domains, weights, head).square().sum().backward()
    assert one.grad.abs().sum() > 0 and two.grad.abs().sum() > 0
    alone = aggregator(one[:1], domains[:1], weights[:1], head)
    torch.testing.assert_close(alone, aggregator.eval()(one, domains, weights, head)[:1])


def test_the_trained_head_of_concat_leaves_the_base_head_alone(make_iclm, load_tiny_base, architecture, labelled):
    model = make_iclm(architecture, aggregator="concat", router="fixed:0").train()
    assert model.aggregator.weight.dtype == torch.float32
    model(**labelled()).loss.backward()
    assert model.aggregator.weight.grad is not None
    assert model.get_output_embeddings().weight.grad is None


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_changing_a_domain_module_changes_the_mixture(make_iclm, parameters_of, settings, random_prompts):
    model, ids = make_iclm(router="fixed:0", **settings), random_prompts([6])[0][None]
    with torch.no_grad():
        before = model(ids).logits
        for number, expected in ((2, False), (1, True)):
            for parameter in parameters_of(model, number).values():
                parameter.mul_(1.5)
            assert ((model(ids).logits - before).abs().max() > 1e-3) == expected


def test_the_low_rank_residual_starts_at_the_scale_of_its_inputs():

    down = MixAggregator(ICLMConfig(hidden_size=256, mix="low_rank")).down
    assert float(down.std()) * 512**0.5 == pytest.approx(1.0, abs=0.1)
