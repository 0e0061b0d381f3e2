"""Invariant 1: an ICLM fresh from a base model gives that model's logits."""

import pytest
import torch

AGGREGATORS = [
    {"aggregator": "mix", "mix": "fixed"},
    {"aggregator": "mix", "mix": "gate"},
    {"aggregator": "mix", "mix": "low_rank"},
    {"aggregator": "concat"},
    {"aggregator": "logits"},
    {"aggregator": "probas"},
]


@pytest.fixture
def compare(load_tiny_base, random_prompts, padded, architecture):
    """Assert that a model's logits of padded prompts are the base's logits of each prompt alone."""

    def check(model):
        base, prompts = load_tiny_base(architecture), random_prompts()
        with torch.no_grad():
            expected = [base(prompt[None]).logits[0] for prompt in prompts]
            for side in ("right", "left"):
                batch = padded(prompts, side, extra=3)
                logits = model(**batch).logits
                for row, own in enumerate(expected):
                    torch.testing.assert_close(logits[row][batch["attention_mask"][row] == 1], own, rtol=0, atol=1e-5)

    return check


@pytest.mark.parametrize("domains, active", [(2, 1), (5, 2)])
@pytest.mark.parametrize("split", [0, 2])
@pytest.mark.parametrize("aggregator", AGGREGATORS, ids=lambda a: "-".join(a.values()))
def test_fresh_iclm_gives_the_logits_of_its_base(make_iclm, compare, architecture, aggregator, split, domains, active):
    settings = {"num_domains": domains, "active_domains": active, "split_layer": split, "router": "random"}
    compare(make_iclm(architecture, fresh=True, **settings, **aggregator))


def test_fresh_iclm_with_a_fitted_router_gives_the_logits_of_its_base(make_iclm, compare, architecture):
    compare(make_iclm(architecture, fresh=True, num_domains=3, router="vq"))


@pytest.mark.parametrize("module", ["invariant", "domain_0", "domain_1"])
def test_each_fresh_module_alone_gives_the_logits_of_its_base(
    make_iclm, load_tiny_base, random_prompts, module, architecture
):
    model, prompt = make_iclm(architecture, fresh=True), random_prompts([7])[0][None]
    with torch.no_grad():
        own = model(prompt, module=module).logits
        torch.testing.assert_close(own, load_tiny_base(architecture)(prompt).logits, rtol=0, atol=1e-5)


def test_fresh_plain_lora_gives_the_logits_of_its_base(make_iclm, compare, architecture):
    compare(make_iclm(architecture, fresh=True, method="lora"))


@pytest.mark.parametrize("targets", ["all-linear", "attention"])
def test_start_holds_for_every_choice_of_layers_with_adapters(make_iclm, compare, architecture, targets):
    compare(make_iclm(architecture, fresh=True, router="fixed:1", target_modules=targets))
