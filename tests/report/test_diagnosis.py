"""Verdicts on diagnoses written by hand: a healthy one in which one thing at a time goes wrong; tables and the folder."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from iclm.errors import ConfigurationError
from iclm.evaluation.independence import hsic_test
from iclm.evaluation.metrics import Accuracy
from iclm.report.diagnosis import (
    DOUBTFUL,
    FAILED,
    FAILURES,
    FILE,
    HEALTHY,
    NOT_MEASURED,
    check_folder,
    diagnosis_tables,
    verdicts,
    write_diagnosis,
)


def judged(report, failure, words):
    """The verdict of a failure whose figure holds these words."""
    found = [v for v in verdicts(report) if v.failure == failure and words in v.figure]
    assert len(found) == 1, [v.figure for v in verdicts(report)]
    return found[0]


@pytest.fixture
def healthy(make_diagnosis):
    return make_diagnosis()


def test_a_run_in_which_nothing_is_wrong_is_healthy(healthy):
    found = verdicts(healthy)
    assert {v.verdict for v in found} == {HEALTHY}
    assert [f for f in FAILURES if any(v.failure == f for v in found)] == list(FAILURES)
    assert [v.failure for v in found] == sorted((v.failure for v in found), key=FAILURES.index)


# -- routing -----------------------------------------------------------------------------------------------------------


def test_one_module_for_everything_is_a_collapse(healthy):
    healthy["routing"]["iid"] |= {
        "collapsed": True,
        "usage": [1.0, 0.0],
        "accuracy": 0.5,
        "p_value": 1.0,
        "dead_codes": 1,
    }
    found = [v for v in verdicts(healthy) if v.failure == "routing" and "distribution" not in v.figure]
    assert [(v.verdict, v.value, v.reference) for v in found] == [(FAILED, 1.0, 0.5), (FAILED, 0.5, 0.5)]
    assert "kmeans" in found[0].words


def test_a_module_that_is_never_used_is_doubtful(healthy):
    healthy["routing"]["ood"] |= {"dead_codes": 1}
    assert judged(healthy, "routing", "most used module, out of distribution").verdict == DOUBTFUL


@pytest.mark.parametrize(("side", "place"), [("iid", ""), ("ood", ", out of distribution")])
def test_a_module_whose_domain_is_not_among_the_data_may_rest(healthy, side, place):
    healthy["routing"]["trained"] = [*healthy["domains"], "a third"]
    for dead, verdict in ((1, HEALTHY), (2, DOUBTFUL)):
        healthy["routing"][side] |= {"dead_codes": dead}
        found = [v for v in verdicts(healthy) if v.figure == f"share of the most used module{place}"]
        assert [v.verdict for v in found] == [verdict]


@pytest.mark.parametrize(
    ("accuracy", "p_value", "verdict"), [(0.95, 0.005, HEALTHY), (0.7, 0.005, DOUBTFUL), (0.7, 0.2, FAILED)]
)
def test_routes_are_judged_by_their_match_with_the_domains_and_its_p_value(healthy, accuracy, p_value, verdict):
    healthy["routing"]["ood"] |= {"accuracy": accuracy, "p_value": p_value}
    found = judged(healthy, "routing", "routing accuracy, out of distribution")
    assert (found.verdict, found.value, found.reference) == (verdict, accuracy, 0.5)


@pytest.mark.parametrize("change", [{"learned": False}, {"one domain": True}, {"one module": True}], ids=str)
def test_routes_that_cannot_be_wrong_are_not_judged(healthy, change):
    healthy["routing"]["learned"] = change.get("learned", True)
    if "one domain" in change:
        healthy["routing"]["iid"]["domains"] = ["text"]
    if "one module" in change:
        healthy["routing"]["iid"]["usage"] = [1.0]
    found = [v for v in verdicts(healthy) if v.failure == "routing" and "out of" not in v.figure]
    assert [v.verdict for v in found] == [NOT_MEASURED]


# -- independence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statistic", "p_value", "verdict"),
    [(0.02, 0.01, DOUBTFUL), (0.6, 0.01, DOUBTFUL), (0.6, 0.5, HEALTHY), (0.95, 0.01, FAILED), (-0.1, 0.9, HEALTHY)],
)
def test_dependence_is_judged_by_normalised_hsic(healthy, statistic, p_value, verdict):
    found = healthy["independence"]["by_domain"]["kind_of_text_1"]
    found["hsic"] |= {"statistic": statistic, "p_value": p_value}
    judgement = judged(healthy, "independence", "kind_of_text_1")
    assert judgement.verdict == verdict and judgement.value == statistic


@pytest.mark.parametrize(("rho", "verdict"), [(0.5, DOUBTFUL), (0.8, DOUBTFUL), (1.0, FAILED)])
def test_the_verdict_on_dependence_does_not_change_with_the_number_of_examples(healthy, rho, verdict):
    for n in (120, 1000):
        rng = np.random.default_rng(n)
        x, noise = rng.normal(size=(2, n, 2))
        found = hsic_test(x, rho * x + (1 - rho**2) ** 0.5 * noise, permutations=50)
        healthy["independence"]["by_domain"]["kind_of_text_1"]["hsic"] = found.to_dict()
        assert judged(healthy, "independence", "kind_of_text_1").verdict == verdict


@pytest.mark.parametrize(
    "of", [np.square, lambda x: 0.3 * x + 0.91**0.5 * np.roll(x, 1, axis=0)], ids=["square", "rho 0.3"]
)
def test_states_of_many_dimensions_that_depend_are_not_healthy_for_a_small_hsic(healthy, of):
    x = np.random.default_rng(0).normal(size=(300, 64))
    found = hsic_test(x, of(x), permutations=50)
    healthy["independence"]["by_domain"]["kind_of_text_1"]["hsic"] = found.to_dict()
    judgement = judged(healthy, "independence", "kind_of_text_1")
    assert found.statistic < 0.1 and judgement.verdict == DOUBTFUL
    assert "how strongly, this figure cannot tell" in judgement.words


@pytest.mark.parametrize(("p_value", "verdict"), [(0.02, DOUBTFUL), (0.03, HEALTHY)])
def test_the_smaller_of_two_p_values_is_doubled(healthy, p_value, verdict):
    found = healthy["independence"]["by_domain"]["kind_of_text_1"]
    found["ksg"]["p_value"] = 0.8
    found["hsic"] |= {"statistic": 0.05, "p_value": p_value}
    assert judged(healthy, "independence", "kind_of_text_1").verdict == verdict


def test_a_dependence_of_an_earlier_version_says_that_questions_of_one_problem_may_feign_it(healthy):
    found = healthy["independence"]["by_domain"]["kind_of_text_1"]
    found["hsic"] |= {"statistic": 0.05, "p_value": 0.01}
    found["groups"] = found["n"] // 4
    for shuffled, feigned in (({}, True), ({"shuffled": "groups"}, False)):
        found |= shuffled
        assert ("questions of one problem" in judged(healthy, "independence", "kind_of_text_1").words) == feigned


def test_states_that_do_not_vary_or_are_too_few_are_not_judged(healthy):
    domains = healthy["independence"]["by_domain"]
    domains["kind_of_text_0"]["identical"]["estimate"] = 0.0
    domains["kind_of_text_1"] = {"n": 3, "skipped": "3 examples"}
    healthy["independence"]["leakage"] = {"n": 3, "skipped": "one domain"}
    assert {v.verdict for v in verdicts(healthy) if v.failure == "independence"} == {NOT_MEASURED}


def test_invariant_states_that_tell_the_domain_are_a_warning_only(healthy):
    healthy["independence"]["leakage"] |= {"accuracy": 1.0, "p_value": 0.02}
    assert judged(healthy, "independence", "domain told").verdict == DOUBTFUL


# -- overfitting -------------------------------------------------------------------------------------------------------


def set_accuracy(report, module, gap, ood, base_gap=0.05):
    for row in report["overfitting"]["modules"]:
        if row["module"] == module:
            row["gap"]["overall"] = dict(zip(("value", "low", "high"), gap, strict=True))
            row["ood"]["overall"] = Accuracy(*ood).to_dict()
        if row["module"] == "base":
            row["gap"]["overall"]["value"] = base_gap


@pytest.mark.parametrize(
    ("gap", "ood", "base_gap", "verdict"),
    [
        ((0.3, 0.2, 0.4), (42, 80), 0.0, FAILED),
        ((0.3, 0.2, 0.4), (70, 80), 0.0, DOUBTFUL),
        ((0.3, 0.2, 0.4), (42, 80), 0.3, HEALTHY),
        ((0.1, -0.02, 0.22), (60, 80), 0.0, HEALTHY),
        ((0.1, -0.1, 0.3), (60, 80), 0.0, DOUBTFUL),
        ((-0.2, -0.3, -0.1), (80, 80), 0.0, HEALTHY),
    ],
    ids=["nothing holds", "part holds", "so does the base", "chance", "too few", "better outside"],
)
@pytest.mark.parametrize("module", ["mixture", "invariant"])
def test_a_gap_is_judged_beside_the_base_and_the_most_frequent_answer(healthy, module, gap, ood, base_gap, verdict):
    set_accuracy(healthy, module, gap, ood, base_gap)
    found = judged(healthy, "overfitting", f"out of distribution, {module}")
    assert (found.verdict, found.value, found.reference) == (verdict, gap[0], base_gap)


def test_a_run_that_learned_nothing_is_doubtful_and_its_gap_no_failure(healthy):
    set_accuracy(healthy, "mixture", (0.2, 0.1, 0.3), (40, 80))
    healthy["overfitting"]["modules"][0]["iid"]["overall"] = Accuracy(41, 80).to_dict()
    assert judged(healthy, "overfitting", "accuracy of the mixture").verdict == DOUBTFUL
    assert judged(healthy, "overfitting", "distribution, mixture").verdict == HEALTHY


def test_a_gap_between_different_domains_is_not_judged_as_one(healthy):
    healthy["overfitting"]["modules"][0]["gap"]["by_domain"] = {}
    found = judged(healthy, "overfitting", "distribution, mixture")
    assert found.verdict == DOUBTFUL and found.reference is None and "FILE=DOMAIN" in found.words


def test_without_data_out_of_distribution_the_gap_is_not_measured(healthy):
    section = healthy["overfitting"]
    section["reason"] = "pass --ood FILE"
    for row in section["modules"]:
        row |= {"ood": None, "gap": None}
    del healthy["routing"]["ood"], section["majority"]["ood"]
    for failure, words in (("overfitting", "distribution, mixture"), ("routing", "out of distribution")):
        found = judged(healthy, failure, words)
        assert found.verdict == NOT_MEASURED and "--ood" in found.words
    assert diagnosis_tables(healthy)


def test_a_module_that_answers_more_alone_than_the_mixture_is_a_warning(healthy):
    rows = healthy["overfitting"]["modules"]
    found = judged(healthy, "overfitting", "minus the mixture")
    assert (found.verdict, found.value, found.reference) == (HEALTHY, -0.02, 0.0)
    rows[2]["ahead"] = {"value": 0.06, "low": 0.01, "high": 0.11}
    found = judged(healthy, "overfitting", "minus the mixture")
    assert found.verdict == DOUBTFUL and "domain_0" in found.figure and "alone answers more" in found.words
    rows[1]["ahead"] = {"value": 0.07, "low": -0.01, "high": 0.15}
    assert "domain_0" in judged(healthy, "overfitting", "minus the mixture").figure, (
        "not the largest, but told from nothing"
    )
    for row in rows:
        row.pop("ahead", None)
    assert not any("minus the mixture" in v.figure for v in verdicts(healthy)), "a diagnosis of an earlier version"


# -- forgetting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "p_value", "verdict"),
    [(0.8, 0.6, 0.0001, FAILED), (0.8, 0.6, 0.02, DOUBTFUL), (0.8, 0.77, 0.0001, HEALTHY), (0.6, 0.8, 0.0001, HEALTHY)],
)
def test_the_domain_that_lost_most_is_judged_with_a_corrected_p_value(healthy, before, now, p_value, verdict):
    rows = healthy["forgetting"]["base"]
    row = next(r for r in rows if (r["module"], r["domain"]) == ("mixture", "kind_of_text_1"))
    row |= {"before": before, "now": now, "p_value": p_value}
    found = judged(healthy, "forgetting", "the base")
    assert found.verdict == verdict
    if before > now:
        assert found.value == pytest.approx(before - now) and "kind_of_text_1" in found.words


def test_a_clear_loss_is_not_hidden_by_a_few_examples_that_lost_more(healthy):
    rows = healthy["forgetting"]["base"]
    one, other = [row for row in rows if row["module"] == "mixture" and row["domain"] is not None][:2]
    one |= {"before": 0.80, "now": 0.65, "p_value": 1e-9}
    other |= {"before": 0.50, "now": 0.25, "p_value": 0.25}
    found = judged(healthy, "forgetting", "the base")
    assert (found.verdict, found.value) == (FAILED, pytest.approx(0.15)) and one["domain"] in found.words


def test_a_domain_module_need_not_keep_what_others_are_for(healthy):
    for row in healthy["forgetting"]["base"]:
        if row["module"] == "domain_0":
            row |= {"before": 0.8, "now": 0.0, "p_value": 1e-9}
    assert judged(healthy, "forgetting", "the base").verdict == HEALTHY


def test_without_an_earlier_run_or_a_common_module_there_is_no_verdict(healthy):
    earlier = healthy["forgetting"]["earlier"]
    earlier["rows"] = []
    assert judged(healthy, "forgetting", "the earlier run").verdict == NOT_MEASURED
    healthy["forgetting"]["earlier"] = {"measured": False, "reason": "pass --before RUN"}
    assert "--before" in judged(healthy, "forgetting", "the earlier run").words


# -- interventions -----------------------------------------------------------------------------------------------------


def test_a_move_of_another_module_is_a_failure(healthy):
    section = healthy["interventions"]
    section["isolated"] = False
    section["effects"]["moved"]["noise"][0][1] = 1e-6
    found = judged(healthy, "interventions", "move of other modules")
    assert (found.verdict, found.value) == (FAILED, 1e-6)


def test_a_changed_route_is_a_failure(healthy):
    healthy["interventions"]["effects"]["routes_changed"] = 1
    assert judged(healthy, "interventions", "move of other modules").verdict == FAILED


def advantage(low, high):
    return {"value": (low + high) / 2, "low": low, "high": high}


@pytest.mark.parametrize(
    ("low", "high", "verdict", "words"),
    [
        (0.1, 0.5, HEALTHY, "have specialised"),
        (-0.02, 0.03, DOUBTFUL, "have not specialised"),
        (-0.1, 0.3, DOUBTFUL, "up to 0.30 better or no better"),
        (-0.5, -0.1, FAILED, "answer better"),
    ],
)
def test_the_routers_module_should_answer_better_than_the_others(healthy, low, high, verdict, words):
    healthy["interventions"]["swap"]["advantage"] = advantage(low, high)
    found = judged(healthy, "interventions", "above the others")
    assert found.verdict == verdict and words in found.words and found.value == pytest.approx((low + high) / 2)


def test_one_module_has_no_other_to_be_swapped_with(healthy):
    healthy["interventions"]["swap"]["advantage"] = None
    assert judged(healthy, "interventions", "above the others").verdict == NOT_MEASURED


# -- what is missing, tables, folder -----------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", ["routing", "independence", "interventions"])
def test_a_section_that_does_not_apply_is_not_measured_and_says_why(healthy, failure):
    healthy[failure] = {"measured": False, "reason": "the model has no domain modules"}
    found = [v for v in verdicts(healthy) if v.failure == failure]
    assert [(v.verdict, v.words) for v in found] == [(NOT_MEASURED, "the model has no domain modules")]
    assert len(diagnosis_tables(healthy)) == len(FAILURES)


def shown(report):
    console = Console(file=io.StringIO(), width=400)
    for table in diagnosis_tables(report):
        console.print(table)
    return console.file.getvalue()


def test_the_tables_show_every_figure_with_its_verdict(healthy):
    text = shown(healthy)
    for found in verdicts(healthy):
        (line,) = [line for line in text.splitlines() if f" {found.figure} " in line]
        assert found.verdict in line and found.words in line
    for detail in ("40 kind_of_text_0", "0.80 [", "majority 0.50", "0.40 → 0.80", "domain_1 0.500", "linear CKA"):
        assert detail in text, detail


def test_the_folder_holds_the_report_with_its_verdicts_and_the_plots(healthy, tmp_path):
    out = tmp_path / "new" / "diagnosis"
    files = write_diagnosis(healthy, out)
    assert sorted(out.iterdir()) == sorted(files)
    kept = json.loads((out / FILE).read_text())
    assert kept["routing"] == healthy["routing"] and len(kept["verdicts"]) == len(verdicts(healthy))
    assert list(out.parent.iterdir()) == [out], "nothing is left beside it"


def test_an_existing_diagnosis_is_replaced_only_when_asked_to(healthy, tmp_path):
    out = tmp_path / "diagnosis"
    write_diagnosis(healthy, out)
    first = (out / FILE).read_bytes()
    (out / FILE).write_text("{}")
    with pytest.raises(ConfigurationError, match="--overwrite"):
        write_diagnosis(healthy, out)
    assert (out / FILE).read_text() == "{}"
    write_diagnosis(healthy, out, overwrite=True)
    assert (out / FILE).read_bytes() == first


def test_a_diagnosis_with_a_file_of_somebody_else_is_not_replaced(healthy, tmp_path):
    write_diagnosis(healthy, tmp_path / "diagnosis")
    (tmp_path / "diagnosis" / "notes.md").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"holds notes\.md"):
        write_diagnosis(healthy, tmp_path / "diagnosis", overwrite=True)
    assert (tmp_path / "diagnosis" / "notes.md").read_text() == "mine"


def test_what_is_no_diagnosis_is_never_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigurationError, match="not a diagnosis"):
        check_folder(tmp_path / "mine", overwrite=True)
    with pytest.raises(ConfigurationError, match="is a file"):
        check_folder(tmp_path / "mine" / "thesis.tex" / "out", overwrite=False)


def test_nothing_is_left_where_a_plot_cannot_be_drawn(healthy, tmp_path):
    healthy["features"]["x"] = ["not a number"]
    with pytest.raises(Exception, match=r"."):
        write_diagnosis(healthy, tmp_path / "diagnosis")
    assert list(tmp_path.iterdir()) == []
