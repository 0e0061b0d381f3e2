"""When a module is opened: decided on points whose clusters are known."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iclm.data.collation import EncodedExample
from iclm.data.example import Example, Message
from iclm.model import ICLMConfig
from iclm.model.router import build_router
from iclm.studies.continual.novelty import Calibration, chunks, held_out, segment, whole_task
from iclm.studies.continual.recipe import Novelty
from iclm.studies.continual.stream import completed

DIM = 16


def cluster(centre, count, seed, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    return centre + spread * torch.randn(count, DIM, generator=generator)


def stream(*parts):
    """Points of clusters that follow each other, their tasks, and a problem for each four of them."""
    points = torch.cat([cluster(centre, count, seed) for seed, (centre, count) in enumerate(parts)])
    tasks = [f"task {number}" for number, (_, count) in enumerate(parts) for _ in range(count)]
    return points, tasks, [number // 4 for number in range(len(points))]


def test_a_far_task_opens_a_module_and_fresh_examples_of_a_known_one_do_not():
    calibration, novelty = Calibration(), Novelty()
    first, share = whole_task(calibration, cluster(0.0, 80, 0), range(80), novelty)
    assert (first.main, first.opened, share) == (0, True, 1.0)
    second, share = whole_task(calibration, cluster(10.0, 80, 1), range(80), novelty)
    assert (second.main, second.opened, share) == (1, True, 1.0)
    again, share = whole_task(calibration, cluster(0.0, 80, 2), range(80), novelty)
    assert (again.main, again.opened) == (0, False) and share < 0.1
    assert len(calibration.codes) == 2


def test_a_code_is_the_mean_of_what_placed_it_and_is_calibrated_by_the_others():
    calibration, novelty, points = Calibration(), Novelty(held_out=0.25), cluster(3.0, 40, 0)
    unit, _ = whole_task(calibration, points, range(40), novelty)
    rest = sorted(set(range(40)) - set(unit.placed))
    assert len(rest) == 10 and calibration.placed == [30]
    assert torch.allclose(calibration.codes[0], points[list(unit.placed)].mean(0))
    errors = (points[rest] - calibration.codes[0]).square().mean(1).sort().values
    assert calibration.errors[0] == pytest.approx(errors.tolist())
    assert calibration.threshold(0, novelty) == pytest.approx(1.5 * float(torch.quantile(errors, 0.95)))


def test_a_problem_is_held_out_whole():
    groups = [number // 4 for number in range(32)]
    chosen = held_out(groups, 0.25)
    assert int(chosen.sum()) == 8
    assert all(len(set(chosen[i : i + 4].tolist())) == 1 for i in range(0, 32, 4))


def test_a_single_problem_places_its_code_and_calibrates_it():
    calibration = Calibration()
    unit, _ = whole_task(calibration, cluster(0.0, 4, 0), [0] * 4, Novelty())
    assert unit.placed == (0, 1, 2, 3) and len(calibration.errors[0]) == 4


@pytest.mark.parametrize(
    ("sizes", "held"),
    [
        ([8, 5, 4], [3, 7, 11, 16]),  # enough in each for the share: counted anew
        ([3, 3, 3, 3, 3], [2, 3, 7, 11]),  # too few: counted on, and one of the first two or more
        ([2, 1, 1], [1, 3]),
        ([1, 1, 2], [1, 3]),
        ([1], []),
    ],
)
def test_problems_are_held_out_however_few_of_them_come_together(sizes, held):
    found, before = [], 0
    for size in sizes:
        found += [before + at for at in held_out(range(size), 0.25, before).nonzero()[:, 0].tolist()]
        before += size
    assert found == held


def test_the_threshold_of_small_chunks_is_not_of_the_prompts_that_place_the_code():
    """Chunks of three problems each, whose prompts are alike within a problem: about a quarter of the problems calibrates."""
    centres = cluster(0.0, 30, 0)
    points = torch.cat([cluster(centre, 2, seed, 0.01) for seed, centre in enumerate(centres)])
    calibration, novelty, groups = Calibration(), Novelty(), [number // 2 for number in range(60)]
    placed = calibration.open(points[:6], groups[:6], novelty).tolist()
    for start in range(6, 60, 6):
        placed += calibration.extend(points[start : start + 6], groups[start : start + 6], novelty).tolist()
    rest = [number for number in range(60) if not placed[number]]
    assert sorted({number // 2 for number in rest}) == [2, 3, 7, 11, 15, 19, 23, 27]
    assert len(calibration.errors[0]) == len(rest) and calibration.placed == [60 - len(rest)]
    assert calibration.problems == 30
    assert torch.allclose(calibration.codes[0], points[placed].mean(0), atol=1e-6)


def test_a_problem_that_calibrated_its_own_code_does_so_until_there_is_a_second():
    calibration, points = Calibration(), torch.cat([cluster(0.0, 4, 0, 0.01), cluster(1.0, 4, 1, 0.01)])
    calibration.open(points[:4], [0] * 4, Novelty())
    low = calibration.threshold(0, Novelty())
    assert not calibration.extend(points[4:], [1] * 4, Novelty()).any(), "the second is held out"
    assert torch.allclose(calibration.codes[0], points[:4].mean(0))
    assert len(calibration.errors[0]) == 4 and calibration.threshold(0, Novelty()) > 100 * low


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.sampled_from([0.1, 0.25, 0.5, 0.9]))
def test_of_two_problems_or_more_one_places_and_one_calibrates(sizes, share):
    calibration, novelty, before, placed = Calibration(), Novelty(held_out=share), 0, []
    for size in sizes:
        take = calibration.open if not before else calibration.extend
        placed += take(cluster(0.0, size, before), range(before, before + size), novelty).tolist()
        before += size
    count = sum(placed)
    assert calibration.placed == [count] and calibration.problems == before
    assert len(calibration.errors[0]) == (before - count or 1) and count >= 1


def test_a_stream_is_cut_where_it_changes_even_within_a_chunk():
    points, tasks, groups = stream((0.0, 100), (8.0, 100), (-8.0, 100))
    units, shares = segment(Calibration(), points, groups, Novelty(chunk=32))
    assert [(unit.main, unit.opened) for unit in units] == [(0, True), (1, True), (2, True)]
    for unit, task in zip(units, ("task 0", "task 1", "task 2"), strict=True):
        assert {tasks[number] for number in unit.examples} == {task}
        assert set(unit.modules) == {unit.main}
    assert shares[0] == 1.0


@pytest.mark.parametrize("first", range(96, 128, 4))
def test_a_few_prompts_of_a_new_task_at_the_end_of_a_chunk_do_not_make_it_known(first):
    """Wherever in a chunk the boundary lies, also where most of the chunk is of the task before."""
    points, tasks, groups = stream((0.0, first), (8.0, 96))
    units, _ = segment(Calibration(), points, groups, Novelty(chunk=32))
    assert [(unit.main, unit.opened) for unit in units] == [(0, True), (1, True)]
    assert [{tasks[number] for number in unit.examples} for unit in units] == [{"task 0"}, {"task 1"}]


def test_a_task_that_comes_back_goes_to_its_module_which_is_not_opened_again():
    points, _, groups = stream((0.0, 96), (8.0, 96), (0.0, 96))
    units, _ = segment(Calibration(), points, groups, Novelty(chunk=32))
    assert [(unit.main, unit.opened) for unit in units] == [(0, True), (1, True), (0, False)]
    assert units[2].placed == ()


def test_a_code_stands_still_once_another_module_was_opened():
    points, _, groups = stream((0.0, 96), (8.0, 96), (0.5, 96))
    calibration = Calibration()
    units, _ = segment(calibration, points, groups, Novelty(chunk=32))
    assert torch.allclose(calibration.codes[0], points[list(units[0].placed)].mean(0), atol=1e-5)
    assert max(units[0].placed) < 96


def test_nothing_is_decided_by_what_comes_later():
    points, _, groups = stream((0.0, 96), (8.0, 96), (-8.0, 96))
    whole, shares = segment(Calibration(), points, groups, Novelty(chunk=32))
    part, early = segment(Calibration(), points[:192], groups[:192], Novelty(chunk=32))
    assert early == shares[: len(early)] and part == whole[:2]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(4, 20), st.integers(0, 99))
def test_every_example_is_in_one_unit(sizes, size, seed):
    groups = [number for number, count in enumerate(sizes) for _ in range(count)]
    parts = list(chunks(groups, size))
    assert [number for part in parts for number in part] == list(range(len(groups)))
    assert all(groups[one[-1]] != groups[two[0]] for one, two in pairwise(parts))
    points = torch.randn(len(groups), DIM, generator=torch.Generator().manual_seed(seed)) * 3
    calibration = Calibration()
    units, shares = segment(calibration, points, groups, Novelty(chunk=size, margin=0.6))
    assert sorted(number for unit in units for number in unit.examples) == list(range(len(groups)))
    assert len(shares) == len(parts) and len(calibration.codes) == sum(unit.opened for unit in units)
    assert all(0 <= module < len(calibration.codes) for unit in units for module in unit.modules)


def test_a_task_counts_as_trained_when_nine_tenths_of_it_are():
    assert completed({"a": 9, "b": 8, "c": 0}, [("a", 10), ("b", 9), ("c", 3), ("d", 1)]) == ["a"]
    assert completed({"a": 8}, [("a", 10)]) == []


def item(number, group=None, domain="d", answer="a"):
    example = Example((Message("user", f"q {number}"),), ("a", "b"), answer, domain=domain, group=group)
    return EncodedExample((1, 2), ((5,), (6,)), (5,), 0, example)


def far_and_near(counts):
    """Points of two far clusters in turn, so many of the near one and then so many of the far one."""
    generator = torch.Generator().manual_seed(0)
    return torch.cat([8.0 * (at % 2) + torch.randn(count, 16, generator=generator) for at, count in enumerate(counts)])


def test_a_module_is_opened_for_more_than_the_share_alone():

    calibration = Calibration([torch.zeros(2)], [[1.0]], [1], 2)
    unit, share = whole_task(
        calibration, torch.tensor([[0.0, 0.0], [2.0, 2.0]]), [0, 1], Novelty(margin=1.0, quantile=1.0)
    )
    assert share == 0.5 and not unit.opened


def test_new_prompts_are_looked_at_once_more_and_do_not_pile_up():

    points = far_and_near([56, 8, *[24, 8] * 5])
    units, shares = segment(Calibration(), points, [n // 4 for n in range(len(points))], Novelty(chunk=32))
    assert [(unit.main, unit.opened) for unit in units] == [(0, True)]
    assert max(shares[1:]) < 0.5


def test_what_is_new_after_a_task_is_asked_of_prompts_that_its_code_never_saw():
    from iclm.studies.continual.boundaries import FRESH, _curve

    examples = [item(n, f"p{n}") for n in range(16)]
    fresh = held_out(range(16), FRESH)
    features = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) + 100.0 * fresh[:, None]
    router = build_router(ICLMConfig(hidden_size=16, router_dim=4, router="kmeans", num_domains=1))
    (row,) = _curve(router, [(examples, features)], ["a"], Novelty())
    assert (row["fresh"], row["new_before"], row["new_after"]) == (4, None, 1.0)
