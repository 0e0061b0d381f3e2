"""Invariant 2: training on one domain leaves every other domain module and its optimizer state bitwise unchanged."""

import copy

import pytest
import torch


def snapshot(model, optimizer, names):
    parameters = dict(model.named_parameters())
    return {n: (parameters[n].detach().clone(), copy.deepcopy(optimizer.state.get(parameters[n], {}))) for n in names}


def assert_unchanged(before, after):
    for name, (values, state) in before.items():
        assert torch.equal(values, after[name][0]), f"{name} changed"
        assert state.keys() == after[name][1].keys()
        for key, value in state.items():
            assert torch.equal(value, after[name][1][key]), f"optimizer state {key} of {name} changed"


def start(model, labelled, trainable, domains):
    """Train one step on every domain, so that every module has an optimizer state."""
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.05, weight_decay=0.1)
    model.train()
    for first in range(0, domains, 2):
        route = torch.tensor([first, min(first + 1, domains - 1)] * 2)
        model(**labelled(seed=3), route=route).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize("domains, split, routed, aggregator", [(2, 0, 1, "mix"), (5, 2, 3, "concat")])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_idle_module_is_bitwise_unchanged(
    make_iclm, labelled, trainable, parameters_of, architecture, domains, split, routed, aggregator, checkpointing
):
    mix = "gate" if aggregator == "mix" else "fixed"
    model = make_iclm(
        architecture, num_domains=domains, split_layer=split, router="oracle", aggregator=aggregator, mix=mix
    )
    if checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = start(model, labelled, trainable, domains)
    idle = [name for d in range(domains) if d != routed for name in parameters_of(model, 1 + d)]
    busy = [name for number in (0, 1 + routed) for name in parameters_of(model, number)]
    before, used = snapshot(model, optimizer, idle), snapshot(model, optimizer, busy)
    assert all(state for _, state in before.values()), "the test needs an optimizer state to guard"
    for seed in (5, 6):  # gradient accumulation: two microbatches a step
        batch = labelled(seed=seed)
        model(**batch, domain_ids=torch.full((4,), routed), num_items_in_batch=16).loss.backward()
    parameters = dict(model.named_parameters())
    assert all(parameters[name].grad is None for name in idle)
    assert all(parameters[name].grad is not None and parameters[name].grad.abs().sum() > 0 for name in busy)
    optimizer.step()
    assert_unchanged(before, snapshot(model, optimizer, idle))
    after = snapshot(model, optimizer, busy)
    assert all(not torch.equal(values, after[name][0]) for name, (values, _) in used.items())


def test_only_the_active_domains_of_a_top_2_route_are_trained(make_iclm, labelled, trainable, parameters_of):
    model = make_iclm(num_domains=5, active_domains=2)
    optimizer = start(model, labelled, trainable, 5)
    idle = [name for d in (0, 2, 4) for name in parameters_of(model, 1 + d)]
    before = snapshot(model, optimizer, idle)
    model(**labelled(seed=7), route=torch.tensor([[1, 3], [3, 1], [1, 3], [1, 3]])).loss.backward()
    optimizer.step()
    assert_unchanged(before, snapshot(model, optimizer, idle))


def test_training_the_invariant_module_alone_leaves_every_domain_unchanged(
    make_iclm, labelled, trainable, parameters_of
):
    model = make_iclm(num_domains=2, router="oracle")
    optimizer = start(model, labelled, trainable, 2)
    idle = [name for d in (0, 1) for name in parameters_of(model, 1 + d)]
    before = snapshot(model, optimizer, idle)
    model(**labelled(seed=8), module="invariant").loss.backward()
    optimizer.step()
    assert_unchanged(before, snapshot(model, optimizer, idle))


def test_the_base_is_bitwise_unchanged_by_training(make_iclm, load_tiny_base, labelled, trainable, architecture):
    model = make_iclm(architecture, router="oracle", aggregator="concat")
    optimizer = start(model, labelled, trainable, 2)
    model(**labelled(seed=9), domain_ids=torch.tensor([0, 1, 0, 1])).loss.backward()
    optimizer.step()
    own = {
        n.replace(".layer.", ".").replace(".base.", "."): p
        for n, p in model.base.named_parameters()
        if "lora_" not in n
    }
    base = dict(load_tiny_base(architecture).named_parameters())
    assert own.keys() == base.keys()
    assert all(torch.equal(own[name], base[name]) for name in base)
