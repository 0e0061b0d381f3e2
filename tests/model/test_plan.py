"""The activation plan: every example finds the rows of exactly its modules."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from iclm.model import ActivationPlan, Route


@st.composite
def routes(draw, least=1):
    """A route of distinct domains for each example, and K."""
    domains = draw(st.integers(1, 6))
    active = draw(st.integers(1, domains))
    count = draw(st.integers(least, 8))
    return Route.to(torch.tensor([draw(st.permutations(range(domains)))[:active] for _ in range(count)])), domains


@st.composite
def packed(draw):
    """A route and the sequence of each example; every sequence has an example."""
    route, _ = draw(routes(least=2))
    count = len(route.indices)
    sequences = draw(st.integers(1, count))
    rest = draw(st.lists(st.integers(0, sequences - 1), min_size=count - sequences, max_size=count - sequences))
    return route, torch.tensor(sorted([*range(sequences), *rest])), sequences


def assert_slots_hold(plan, route, owner):
    for example, slots in enumerate(plan.slots.tolist()):
        assert [int(plan.sequence[row]) for row in slots] == [int(owner[example])] * len(slots)
        assert [int(plan.module[row]) for row in slots] == [0, *(1 + i for i in route.indices[example].tolist())]
    assert plan.active == tuple(sorted(set(plan.module.tolist())))
    assert (plan.sequence.diff() >= 0).all() and plan.rows == len(plan.module)


@given(routes())
def test_slots_name_the_rows_of_an_examples_own_modules(drawn):
    route, _ = drawn
    plan = ActivationPlan.mixture(route)
    assert_slots_hold(plan, route, torch.arange(len(route.indices)))
    assert plan.rows == len(route.indices) * (1 + route.indices.shape[1])


@given(packed())
def test_examples_of_a_sequence_share_a_row_exactly_when_they_share_a_module(drawn):
    route, owner, sequences = drawn
    plan = ActivationPlan.mixture(route, owner, sequences)
    assert_slots_hold(plan, route, owner)
    pairs = list(zip(plan.sequence.tolist(), plan.module.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs), "a (sequence, module) pair needs one row"
    assert set(plan.slots.flatten().tolist()) == set(range(plan.rows)), "a row that no example uses"


@given(routes(), st.data())
def test_selecting_examples_equals_planning_for_them(drawn, data):
    route, _ = drawn
    order = torch.tensor(data.draw(st.lists(st.integers(0, len(route.indices) - 1), min_size=1, max_size=9)))
    chosen, expected = ActivationPlan.mixture(route).select(order), ActivationPlan.mixture(route.select(order))
    assert torch.equal(chosen.module, expected.module) and torch.equal(chosen.slots, expected.slots)
    assert torch.equal(chosen.sequence, expected.sequence) and chosen.sequences == len(order)
    assert set(expected.active) <= set(chosen.active)


@given(packed(), st.integers(1, 4))
def test_everywhere_gives_each_example_the_modules_asked_for(drawn, width):
    _, owner, sequences = drawn
    modules = tuple(range(width))
    plan = ActivationPlan.everywhere(modules, sequences, owner, torch.device("cpu"))
    assert plan.rows == sequences * width
    for example, slots in enumerate(plan.slots.tolist()):
        assert [int(plan.module[row]) for row in slots] == list(modules)
        assert {int(plan.sequence[row]) for row in slots} == {int(owner[example])}


@given(routes())
def test_the_position_of_a_row_is_where_its_module_stands_among_the_active_ones(drawn):
    route, _ = drawn
    plan = ActivationPlan.mixture(route)
    assert [plan.active[position] for position in plan.position().tolist()] == plan.module.tolist()
    assert plan.gate(2, torch.float32) is None, "only tokens need a gate"


def test_one_module_alone_needs_no_choice_and_no_extra_row():
    plan = ActivationPlan.everywhere((3,), 4, None, torch.device("cpu"))
    assert plan.gate(8, torch.float32) is None and plan.position() is None
    assert plan.rows == 4 and plan.module.tolist() == [3] * 4


@given(routes())
def test_expansion_repeats_each_sequence_for_its_rows(drawn):
    route, _ = drawn
    plan = ActivationPlan.mixture(route)
    values = torch.arange(len(route.indices))[:, None]
    assert plan.expand(values)[plan.slots][..., 0].eq(values).all()


def test_weights_of_a_given_route_are_equal_and_sum_to_one():
    assert Route.to(torch.tensor([1, 0])).weights.tolist() == [[1.0], [1.0]]
    assert Route.to(torch.tensor([[1, 0], [2, 1]])).weights.tolist() == [[0.5, 0.5]] * 2
