"""Guards of a module that goes on learning: the penalty and its Fisher information by hand, a fair reservoir."""

import json
from collections import Counter

import pytest
import torch

from iclm.data.collation import Branch, Pack, collate, training_packs
from iclm.errors import CheckpointError
from iclm.training.guards import (
    ElasticWeights,
    Reservoir,
    TaskStage,
    TaskTrainer,
    adapter_names,
    fisher_information,
    routed,
)


@pytest.fixture
def model(make_recipe):
    """An ICLM whose modules differ, and whose router is not asked."""
    from iclm.training.run import build_model

    model = build_model(make_recipe(model={"mi_weight": 0.5}))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def packs(make_recipe):
    """Three problems of four questions, of modules 0, 1 and 1."""
    from dataclasses import replace

    from iclm.data.collation import encode
    from iclm.data.loading import read_sources
    from iclm.model import load_tokenizer

    recipe = make_recipe()
    tokenizer = load_tokenizer(recipe.base)
    encoded = encode(read_sources(recipe.data.train[:1]), tokenizer)
    numbered = [replace(item, domain=min(number // 4, 1)) for number, item in enumerate(encoded)]
    return training_packs(numbered, tokenizer.eos_token_id)


def test_the_fisher_information_is_the_mean_squared_gradient_of_a_problem(model, packs):
    names = list(adapter_names(model, 0))
    assert names and all(name.endswith((".0",)) for name in names)
    found = fisher_information(model, packs, names, 0)
    model.eval()
    model.config.mi_weight = 0.0  # no likelihood, so no part of it
    total = dict.fromkeys(names, 0.0)
    for pack in packs:
        model.zero_grad()
        loss = model(**routed(collate([pack], 0))).loss
        (loss * sum(branch.labelled for branch in pack.branches)).backward()
        for name, parameter in model.named_parameters():
            if name in total:
                total[name] = total[name] + parameter.grad.square() / len(packs)
    for name in names:
        torch.testing.assert_close(found[name], total[name], rtol=1e-4, atol=1e-9)
    assert any(bool(value.any()) for value in found.values())


def test_measuring_it_changes_nothing(model, packs):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    needed = {name: p.requires_grad for name, p in model.named_parameters()}
    model.train()
    fisher_information(model, packs, adapter_names(model, 0), 0)
    assert model.training and model.mi_scale == 1.0
    assert needed == {name: p.requires_grad for name, p in model.named_parameters()}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_penalty_is_half_the_weight_times_the_weighted_squared_distance(model, packs):
    names = list(adapter_names(model, 0))
    guard = ElasticWeights(3.0)
    assert guard.penalty(model) is None
    guard.consolidate(model, packs, names, 0)
    assert float(guard.penalty(model)) == 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 if parameter.requires_grad else 0.0)
    expected = 1.5 * sum(float(guard.fisher[name].sum()) * 0.25 for name in names)
    assert float(guard.penalty(model)) == pytest.approx(expected, rel=1e-5)
    dict(model.named_parameters())[names[0]].requires_grad_(False)
    less = expected - 1.5 * 0.25 * float(guard.fisher[names[0]].sum())
    assert float(guard.penalty(model)) == pytest.approx(less, rel=1e-4)


def test_tasks_add_up_and_the_anchor_is_the_last(model, packs):
    names = list(adapter_names(model, 0))
    guard = ElasticWeights(1.0)
    guard.consolidate(model, packs[:1], names, 0)
    first = {name: value.clone() for name, value in guard.fisher.items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in names:
                parameter.add_(0.01)
    guard.consolidate(model, packs[1:], names, 0)
    second = fisher_information(model, packs[1:], names, 0)
    for name in names:
        torch.testing.assert_close(guard.fisher[name], first[name] + second[name])
        assert torch.equal(guard.anchor[name], dict(model.named_parameters())[name])


def test_its_state_comes_back_and_half_a_state_is_refused(model, packs):
    guard = ElasticWeights(2.0)
    guard.consolidate(model, packs, adapter_names(model, 0), 0)
    again = ElasticWeights(2.0, guard.state)
    assert again.fisher.keys() == guard.fisher.keys() == again.anchor.keys()
    with pytest.raises(CheckpointError, match="not of the same parameters"):
        ElasticWeights(2.0, {name: value for name, value in guard.state.items() if name.startswith("fisher.")})


def pack_of(number):
    return Pack((number,), (Branch((number, 1), 1, 0), Branch((number, 2), 1, 0)))


def test_a_reservoir_keeps_each_problem_with_the_same_probability():
    counts = Counter()
    for seed in range(3000):
        buffer = Reservoir(5, seed)
        buffer.offer([pack_of(number) for number in range(20)])
        counts.update(pack.prefix[0] for pack in buffer.packs)
    # each of 20 is kept with probability 1/4: 750 of 3000 times, with a standard deviation of 24
    assert len(counts) == 20 and all(abs(count - 750) < 5 * 24 for count in counts.values())


def test_a_reservoir_in_two_parts_is_the_one_in_one():
    whole, part = Reservoir(4, 1), Reservoir(4, 1)
    packs = [pack_of(number) for number in range(30)]
    whole.offer(packs)
    part.offer(packs[:11])
    part = Reservoir(4, 1, json.loads(json.dumps(part.values)))
    part.offer(packs[11:])
    assert part.packs == whole.packs and part.offered == 30 and len(whole.packs) == 4


def test_a_small_reservoir_holds_all_that_was_offered():
    buffer = Reservoir(10, 0)
    buffer.offer([pack_of(number) for number in range(3)])
    assert buffer.packs == [pack_of(number) for number in range(3)]


@pytest.mark.parametrize(
    "values", [{"offered": 1, "packs": [{}]}, {"offered": 1, "packs": [{"prefix": [1], "branches": [3]}]}]
)
def test_a_damaged_buffer_is_named(values):
    with pytest.raises(CheckpointError, match="replay buffer is damaged"):
        Reservoir(1, 0, values)


def test_a_stage_trains_its_modules_and_no_router():
    stage = TaskStage(modules=frozenset({0, 2}))
    assert stage.trains("base.layers.3.q_proj.lora_A.0") and stage.trains("base.layers.3.q_proj.lora_B.2")
    assert not stage.trains("base.layers.3.q_proj.lora_B.1") and not stage.trains("base.layers.3.q_proj.lora_B.20")
    assert stage.trains("aggregator.gate") and not stage.trains("router.gate.weight")


def test_the_penalty_is_a_share_of_an_accumulated_step(make_recipe, model, packs, tmp_path):
    """Accumulating over batches gives the gradient of one batch, penalty included."""
    from iclm.training.run import make_trainer, training_arguments

    guard = ElasticWeights(5.0)
    guard.consolidate(model, packs, adapter_names(model, 0), 0)
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    found = []
    for size, accumulation in ((12, 1), (4, 3)):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in start:
                    parameter.copy_(start[name] + 0.02)
        recipe = make_recipe(
            model={"mi_weight": 0.0},
            training={
                "batch_size": size,
                "gradient_accumulation": accumulation,
                "warmup": 0.0,
                "max_grad_norm": 0.0,
                "schedule": "constant_with_warmup",
            },
        )
        model.config.mi_weight = 0.0
        stage = TaskStage(modules=frozenset({0}))
        arguments = training_arguments(recipe, tmp_path / str(size), stage)
        arguments.disable_tqdm = True
        trainer = make_trainer(recipe, model, arguments, packs, 0, stage, [], TaskTrainer, elastic=guard)
        trainer.train()
        assert trainer.state.global_step == 1
        found.append({name: dict(model.named_parameters())[name].detach().clone() for name in adapter_names(model, 0)})
        line = next(entry for entry in trainer.state.log_history if "loss_elastic" in entry)
        assert line["loss_elastic"] > 0
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=0, atol=2e-5)
