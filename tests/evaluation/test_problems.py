"""Questions of one problem stand or fall together: every interval and p-value of an evaluation takes problems as what is drawn."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from iclm.data.collation import EncodedExample
from iclm.data.example import Example, Message
from iclm.evaluation.comparison import difference_interval, mcnemar, paired_difference
from iclm.evaluation.diagnose import _compare, accuracy_gap, independence_section, overfitting_section
from iclm.evaluation.evaluate import accuracies, dependence_of
from iclm.evaluation.independence import (
    correlation_report,
    domain_leakage,
    hsic_test,
    independence_report,
    linear_cka,
    mutual_information_report,
)
from iclm.evaluation.independence.samples import Shuffles, permutation_p
from iclm.evaluation.intervention import _swap, module_effects
from iclm.evaluation.metrics import Accuracy, design_effect
from iclm.evaluation.scoring import Scores
from iclm.evaluation.sides import Side


def item(number, group=None, domain="d", answer="a"):
    example = Example((Message("user", f"q {number}"),), ("a", "b"), answer, domain=domain, group=group)
    return EncodedExample((1, 2), ((5,), (6,)), (5,), 0, example)


def in_groups(seed):
    rng = np.random.default_rng(seed)
    return np.repeat(rng.normal(size=(12, 4)), 4, axis=0) + 0.1 * rng.normal(size=(48, 4))


def test_the_gap_of_questions_that_come_in_problems_is_wider():
    inside, outside = Accuracy(30, 40, 4.0), Accuracy(20, 40, 4.0)
    sides = [{"overall": one.to_dict(), "by_domain": {"a": one.to_dict()}} for one in (inside, outside)]
    found = accuracy_gap(*sides)["overall"]
    assert (found["value"], found["low"], found["high"]) == pytest.approx(difference_interval(inside, outside))


def test_answers_of_one_problem_are_lost_and_gained_together():
    examples = [item(n, f"p{n // 4}") for n in range(20)]
    side = Side("iid", [], examples, Scores(), {"mixture": np.ones(20, bool)})
    row = _compare(side, "mixture", "base", np.arange(20) >= 8)[0]
    assert row["gained"] == 8 and row["p_value"] == pytest.approx(0.5)  # two problems of either sign


def test_the_intervals_of_modules_ahead_hold_together():
    rng = np.random.default_rng(0)
    names = ("mixture", "invariant", "domain_0")
    correct = {name: rng.random(40) < 0.5 for name in (*names, "base")}
    side = Side("iid", [], [item(n) for n in range(40)], Scores(), correct)
    run = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(module_names=names)))
    row = overfitting_section(run, side, None)["modules"][1]
    wanted = paired_difference(correct["invariant"], correct["mixture"], list(range(40)), comparisons=2)
    assert tuple(row["ahead"].values()) == pytest.approx(wanted)


def test_independence_is_that_of_the_two_sides():
    rng = np.random.default_rng(0)
    states = {name: rng.standard_normal((24, 5)) for name in ("invariant", "domain")}
    side = Side("iid", [], [item(n, f"p{n // 2}") for n in range(24)], Scores(states=states), {})
    run = SimpleNamespace(numbers_with=lambda names: {"d": 0})
    found = independence_section(run, side)["by_domain"]["d"]
    groups = [n // 2 for n in range(24)]
    assert found == independence_report(states["invariant"], states["domain"], [0] * 24, groups=groups)["0"]


def test_the_majority_is_that_of_each_domain():
    examples = [item(n, domain="one" if n < 10 else "two", answer="a" if n < 10 else "b") for n in range(20)]
    found = Side("iid", [], examples, Scores(), {}).majority()
    assert found["overall"]["correct"] == 20 and found["by_domain"]["two"]["n"] == 10


def test_the_interval_of_a_side_knows_of_problems():
    right = np.repeat([True, False, True, True, False], 4)
    side = Side("iid", [], [item(n, f"p{n // 4}") for n in range(20)], Scores(), {"mixture": right})
    assert side.accuracy("mixture")["overall"]["effect"] == pytest.approx(19 / 4)


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("ksg", lambda x, y, g: mutual_information_report(x, y, pca=4, groups=g, permutations=99)),
        ("hsic", lambda x, y, g: hsic_test(x, y, groups=g)),
        ("correlation", lambda x, y, g: correlation_report(x, y, groups=g)),
    ],
)
def test_every_measure_shuffles_whole_groups(name, measure):
    x, y, groups = in_groups(0), in_groups(1), np.repeat(np.arange(12), 4)
    found = independence_report(x, y, [0] * 48, groups=groups)["0"]
    assert found[name] == measure(x, y, groups).to_dict()


def test_shuffled_alignment_keeps_groups():
    """States that are the same in a group stay so: of two groups of as many rows there are two orders."""
    groups = np.repeat(np.arange(12), 4)
    same = np.repeat(np.arange(2.0), 24)[:, None] * np.ones((1, 2))
    found = independence_report(same, same, [0] * 48, groups=groups)["0"]
    rng = np.random.default_rng([0, 2])
    shuffles = Shuffles(48, groups)
    wanted = np.mean([linear_cka(same, same[shuffles.draw(rng)]) for _ in range(20)])
    assert found["cka_permuted_mean"] == pytest.approx(wanted)


def test_dependence_at_the_answer_shuffles_whole_problems():
    x, y = in_groups(0), in_groups(1)
    examples = [item(n, f"p{n // 4}") for n in range(48)]
    wanted = mutual_information_report(x, y, pca=4, groups=[n // 4 for n in range(48)]).to_dict()
    assert dependence_of({"invariant": x, "domain": y}, examples)["0"] == wanted


def test_the_interval_of_the_probe_knows_of_groups():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(24), 4)
    domains = groups % 2
    states = rng.standard_normal((24, 6))[groups] + 0.1 * rng.standard_normal((96, 6))
    found = domain_leakage(states, domains, groups=groups, permutations=1)
    alone = Accuracy(round(96 * found.accuracy), 96)
    assert found.high - found.low > 1.2 * (alone.high - alone.low)


def test_every_group_weighs_the_same_in_the_probe():
    groups, domains = [0] * 20 + [1] * 20 + list(range(2, 12)), [0] * 40 + [1] * 10
    found = domain_leakage(np.ones((50, 3)), domains, groups=groups, folds=2, permutations=1)
    assert (found.accuracy, found.chance) == (0.2, 0.8)  # two groups of the one domain, ten of the other


def test_the_swap_of_modules_knows_of_problems():
    rng = np.random.default_rng(0)
    examples = [item(n, f"p{n // 4}") for n in range(40)]
    good, groups = np.repeat(rng.random(10) < 0.7, 4), [n // 4 for n in range(40)]
    one = [np.array([1.0, 0.0]) if right else np.array([0.0, 1.0]) for right in good]
    other = [np.array([0.0, 1.0])] * 40
    scores = Scores({"mixture": one, "route_0": one, "route_1": other}, routes=np.zeros(40, int))
    found = _swap(scores, examples, 2)
    assert found.advantage == pytest.approx(paired_difference(good, np.zeros(40), groups))
    row = found.routed[0]
    assert (row.n, row.mixture.effect) == (40, pytest.approx(design_effect(good.tolist(), groups)))


def test_the_accuracy_under_an_intervention_knows_of_problems(make_iclm):
    model = make_iclm(num_domains=2, router="random")
    examples = [dataclasses.replace(item(n, f"p{n // 4}"), prompt=(3 + n // 4, 7, 9 + n // 4)) for n in range(24)]
    found = module_effects(model, examples, pad=0, kinds=("off",))
    for name, accuracy in found.before.items():
        assert accuracy.effect == pytest.approx(4.0, rel=0.3), name  # the four questions of a problem are one question


def test_the_interval_of_a_kind_knows_of_problems():
    right = np.repeat([True, False, True, True, False], 4).tolist()
    examples = [
        dataclasses.replace(one, example=dataclasses.replace(one.example, kind="k"))
        for one in (item(n, f"p{n // 4}") for n in range(20))
    ]
    found = accuracies("mixture", examples, right)
    assert found.by_kind["k"].effect == found.overall.effect == pytest.approx(19 / 4)


def test_questions_of_a_problem_are_thrown_as_one_coin_of_their_size():
    before = np.array([0, 0, 0, 0, 0, 0, 1, 0, 0], bool)
    now = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0], bool)
    found = mcnemar(before, now, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    # problems gain 3, gain 2 and lose 1: of the sums of +-3 +-2 +-1, 6, 4, -4 and -6 are as far from 0 as 4
    assert (found["lost"], found["gained"], found["p_value"]) == (1, 5, pytest.approx(4 / 8))


def test_a_shuffle_that_is_equal_up_to_rounding_reaches_the_statistic():
    assert permutation_p(np.array([0.3 - 1e-15, 0.1]), 0.3) == pytest.approx(2 / 3)
