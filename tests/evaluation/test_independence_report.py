import json
from functools import partial

import numpy as np
import pytest

from iclm.errors import ConfigurationError
from iclm.evaluation.independence import (
    correlation_report,
    hsic_test,
    independence_report,
    linear_cka,
    mutual_information_report,
)
from iclm.evaluation.independence.samples import Shuffles


def states(n, dims=6, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dims))


def test_it_holds_every_measure_within_each_domain_and_the_leakage_over_all():
    x, y, domains = states(80), states(80, seed=1), np.repeat([3, -1], 40)
    report = json.loads(json.dumps(independence_report(x, y, domains.tolist()), allow_nan=False))
    assert set(report) == {"3", "-1", "leakage"}
    measures = {"n", "groups", "shuffled", "ksg", "identical", "cka", "cka_permuted_mean", "hsic", "correlation"}
    assert set(report["3"]) == set(report["-1"]) == measures
    assert (report["3"]["n"], report["3"]["groups"], report["leakage"]["n"]) == (40, 40, 80)
    assert report["3"]["ksg"] == mutual_information_report(x[:40], y[:40], pca=4, permutations=99).to_dict()
    assert report["3"]["cka"] == linear_cka(x[:40], y[:40])


def test_identical_sides_reach_the_reference_and_independent_ones_do_not():
    x = states(60)
    same, other = (independence_report(x, y, [0] * 60)["0"] for y in (x, states(60, seed=1)))
    assert same["ksg"]["estimate"] == same["identical"]["estimate"] and same["ksg"]["p_value"] < 0.05
    assert same["hsic"]["statistic"] == pytest.approx(1.0) and same["correlation"]["mean"] == pytest.approx(1.0)
    assert same["cka"] == pytest.approx(1.0)
    assert other["ksg"]["estimate"] < 0.3 * other["identical"]["estimate"]
    assert other["cka"] == pytest.approx(other["cka_permuted_mean"], abs=0.1) and other["hsic"]["statistic"] < 0.1


def test_what_both_sides_know_of_the_domain_is_no_dependence_within_it():
    domains = np.arange(120) % 2
    x, y = states(120) + 9.0 * domains[:, None], states(120, seed=1) - 9.0 * domains[:, None]
    within, over_all = independence_report(x, y, domains), independence_report(x, y, [0] * 120)
    assert over_all["0"]["hsic"]["statistic"] > 0.9
    assert all(within[number]["hsic"]["statistic"] < 0.1 for number in ("0", "1"))
    assert within["leakage"]["accuracy"] == 1.0


def test_a_domain_of_few_examples_is_listed_and_left_out_of_the_leakage():
    report = independence_report(states(60), states(60, seed=1), [0] * 25 + [1] * 25 + [2] * 10)
    assert report["2"] == {"n": 10, "groups": 10, "skipped": "10 examples: the measures need at least 11"}
    assert (report["leakage"]["n"], report["leakage"]["domains"]) == (50, 2)


def test_a_domain_of_one_group_is_left_out_of_the_leakage_and_switches_it_off_for_no_other():
    domains, groups = np.repeat([0, 1, 2], 20), np.arange(60)
    groups[domains == 2] = 99
    report = independence_report(states(60), states(60, seed=1), domains, groups=groups)
    reason = "20 examples of 1 problem(s): shuffled pairs need at least 5 problems of as many examples"
    assert report["2"] == {"n": 20, "groups": 1, "skipped": reason}
    assert [report["leakage"][name] for name in ("n", "domains", "groups")] == [40, 2, 40]


@pytest.mark.parametrize(
    ("domains", "groups", "reason"),
    [
        ([0] * 30, None, "1 domain"),
        ([0] * 25 + [1] * 5, None, "1 domain"),
        (list(range(30)), None, "0 domain"),
        ([0] * 15 + [1] * 15, [0] * 15 + [1] * 15, "in one group"),
    ],
)
def test_where_no_probe_is_possible_the_leakage_says_why(domains, groups, reason):
    report = independence_report(states(30), states(30, seed=1), domains, groups=groups)
    assert reason in report["leakage"]["skipped"] and report["leakage"]["n"] <= 30


def test_groups_are_counted_in_each_domain_and_may_be_names():
    names = [f"problem {index // 3}" for index in range(60)]
    report = independence_report(states(60), states(60, seed=1), [0] * 30 + [1] * 30, groups=names)
    assert (report["0"]["groups"], report["1"]["groups"], report["leakage"]["groups"]) == (10, 10, 20)


def test_constant_states_and_states_of_fewer_dimensions_than_components_have_defined_figures():
    report = independence_report(np.ones((24, 2)), states(24, dims=2), [0] * 12 + [1] * 12)
    for number in ("0", "1"):
        found = report[number]
        assert (found["ksg"]["estimate"], found["cka"], found["hsic"]["statistic"]) == (0.0, 0.0, 0.0)
        assert found["correlation"]["p_value"] == 1.0
    json.dumps(report, allow_nan=False)


def test_it_is_deterministic():
    x, y, domains = states(40), states(40, seed=1), np.arange(40) % 2
    assert independence_report(x, y, domains, seed=4) == independence_report(x, y, domains, seed=4)
    assert independence_report(x, y, domains, seed=4) != independence_report(x, y, domains, seed=5)


def test_no_example_gives_no_figure():
    assert independence_report(np.zeros((0, 4)), np.zeros((0, 4)), []) == {
        "leakage": {"n": 0, "skipped": "examples of 0 domain(s): a probe needs at least 2 domains to tell apart"}
    }


@pytest.mark.parametrize(
    ("x", "domains", "groups", "message"),
    [
        (states(19), [0] * 20, None, "x has 19 rows and y has 20"),
        (np.full((20, 6), np.nan), [0] * 20, None, "x has 120 of 120 values"),
        (states(20), [0] * 19, None, "domains of shape .19. for 20 examples"),
        (states(20), [0] * 20, ["a"], "groups of shape .1. for 20 examples"),
    ],
)
def test_unusable_input_is_refused_with_what_was_given(x, domains, groups, message):
    with pytest.raises(ConfigurationError, match=message):
        independence_report(x, states(20, seed=1), domains, groups=groups)


def in_groups(groups: int, size: int, seed: int) -> np.ndarray:
    """States [groups * size, 4], nearly the same for all of a group."""
    rng = np.random.default_rng(seed)
    return np.repeat(rng.normal(size=(groups, 4)), size, axis=0) + 0.1 * rng.normal(size=(groups * size, 4))


@pytest.mark.parametrize("measure", [hsic_test, correlation_report, partial(mutual_information_report, k=5)])
def test_independent_states_of_groups_are_rejected_no_more_often_than_they_should_be(measure):
    """Of 40 pairs at 5% some 2 would be, 6 or more in 1.4% of such trials; taken one by one nearly all are."""
    groups = np.repeat(np.arange(12), 4)
    pairs = [(in_groups(12, 4, seed), in_groups(12, 4, 1000 + seed)) for seed in range(40)]
    low = [measure(x, y, groups=groups, permutations=59).p_value <= 0.05 for x, y in pairs]
    assert sum(low) < 6
    apart = [measure(x, y, permutations=59).p_value <= 0.05 for x, y in pairs]
    assert sum(apart) > 12


def test_dependence_of_whole_groups_is_found():
    x = in_groups(12, 4, 0)
    groups = np.repeat(np.arange(12), 4)
    assert hsic_test(x, x + 0.1, groups=groups).p_value < 0.01


def test_orders_keep_groups_and_give_each_the_place_of_one_of_as_many():
    groups = np.array(["a", "b", "b", "c", "a", "d", "d", "d"])
    shuffles, rng = Shuffles(8, groups), np.random.default_rng(0)
    assert shuffles.distinct == 2
    orders = {tuple(shuffles.draw(rng).tolist()) for _ in range(30)}
    assert orders == {tuple(range(8)), (1, 0, 4, 3, 2, 5, 6, 7)}
    assert Shuffles(4).distinct == 24 and Shuffles(0).draw(rng).shape == (0,)
    with pytest.raises(ConfigurationError, match="3 groups for 4 examples"):
        Shuffles(4, [0, 0, 1])
