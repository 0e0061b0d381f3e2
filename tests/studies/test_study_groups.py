"""Rows of reports summed up by groups, and what is compared on them."""

import dataclasses
from collections import defaultdict

import numpy as np
import pytest

from iclm.errors import ConfigurationError, DataError
from iclm.studies.study.groups import IN, OUT, by_data
from iclm.studies.study.results import Collected
from iclm.studies.study.statistics import holm
from iclm.studies.study.summary import summarise

FAST = 200


@pytest.fixture(scope="module")
def summary(collected):
    return summarise(collected, resamples=FAST)


def only(entries, **wanted):
    (found,) = (entry for entry in entries if all(entry[key] == value for key, value in wanted.items()))
    return found


WHOLE = {"format": None, "kind": None}


def test_a_figure_is_right_answers_by_questions_of_each_seed(collected, summary):
    found = only(summary["figures"], group=OUT, **WHOLE, method="iclm", module="invariant")
    counts = defaultdict(lambda: np.zeros(2))
    for job in collected.reports:
        for row in job.rows:
            if (row["method"], row["module"], row["test_set"]) == ("iclm", "invariant", "ACRE Sys"):
                counts[row["seed"]] += (row["correct"], row["n"])
    assert found["values"] == pytest.approx([c / n for c, n in counts.values()], abs=1e-6)
    assert found["seeds"] == [0, 1, 2] and found["n"] == 96
    assert found["mean"] == pytest.approx(np.mean(found["values"]), abs=1e-6)
    assert found["low"] < found["mean"] < found["high"]


def test_the_groups_are_pools_test_sets_formats_and_kinds(summary):
    found = [(g["group"], g["format"], g["kind"], g["n"], g["problems"], g["shifted"]) for g in summary["groups"]]
    kinds = ("direct", "indirect", "indirect by exclusion", "potential", "screen_off")
    forms = ("symbolic", "text")
    asked = dict.fromkeys(kinds, (24, 12)) | {"indirect by exclusion": (12, 6)}
    expected = []
    for name, shifted in ((IN, False), (OUT, True), ("ACRE IID", False), ("ACRE Sys", True)):
        expected.append((name, None, None, 96, 12, shifted))
        if name.startswith("ACRE"):
            expected += [(name, form, None, 48, 12, shifted) for form in forms]
        expected += [(name, None, kind, *asked[kind], shifted) for kind in kinds]
        if not name.startswith("ACRE"):
            expected += [
                (name, form, kind, n // 2, problems, shifted) for form in forms for kind, (n, problems) in asked.items()
            ]
    assert found == expected


def test_the_same_problem_in_two_formats_is_one_problem(collected):
    (results,) = by_data(collected)
    group = next(g for g in results.groups if (g.name, g.format, g.kind) == (OUT, None, None))
    places, sizes = results.problems(group)
    assert (places[0] == places[1]).all() and sizes.tolist() == [8] * 12
    right = results.right(group, "iclm", "mixture", [0, 1, 2])
    assert right.shape == (3, 12) and right.max() <= 8
    rows = [r for j in collected.reports for r in j.rows if (r["method"], r["module"]) == ("iclm", "mixture")]
    total = [sum(r["correct"] for r in rows if r["seed"] == seed and r["shifted"]) for seed in (0, 1, 2)]
    assert right.sum(axis=1).tolist() == total


def test_other_problems_in_another_format_are_others(make_collected):
    found = make_collected({"lora": {"mixture": 0.5}})
    for job in found.jobs:
        job.line["evaluate"] = [{**source, "seed": number} for number, source in enumerate(job.line["evaluate"])]
    (results,) = by_data(found)
    sizes = results.problems(next(g for g in results.groups if (g.name, g.format, g.kind) == (OUT, None, None)))[1]
    assert sizes.tolist() == [4] * 24


def test_problems_of_different_sizes_keep_their_questions(make_collected):
    found = make_collected({"lora": {"mixture": 0.5}}, problems=2)
    for job in found.jobs:
        for row in job.rows:
            row["problems"] = [1, 5, 2]
    (results,) = by_data(found)
    group = next(g for g in results.groups if (g.name, g.format, g.kind) == (OUT, None, "indirect"))
    places, sizes = results.problems(group)
    # questions 1 and 5 of eight are indirect; both are of the second problem, in each of two formats
    assert [place.tolist() for place in places] == [[0, 0], [0, 0]] and sizes.tolist() == [4]


def test_a_kind_has_its_own_questions_alone(collected, summary):
    shallow = {
        kind: only(summary["figures"], group=OUT, format=None, kind=kind, method="shallow")["mean"]
        for kind in ("direct", "indirect", "potential", "screen_off")
    }
    assert shallow == {"direct": 1.0, "indirect": 0.0, "potential": 1.0, "screen_off": 1.0}
    for kind in shallow:
        found = only(summary["figures"], group=IN, format=None, kind=kind, method="lora")
        rows = [r for j in collected.reports for r in j.rows if r["method"] == "lora" and not r["shifted"]]
        by_seed = [sum(r["by_kind"][kind][0] for r in rows if r["seed"] == seed) / 24 for seed in (0, 1, 2)]
        assert found["values"] == pytest.approx(by_seed, abs=1e-6)


def test_what_is_compared_with_what(summary):
    pairs = {
        question: {
            (c["method"], c["module"], c["against"], c["against_module"])
            for c in summary["comparisons"]
            if c["question"] == question
        }
        for question in ("reference", "ablation", "module")
    }
    assert pairs["reference"] == {
        ("base", "mixture", "lora", "mixture"),
        ("iclm", "mixture", "lora", "mixture"),
        ("iclm-no-mi", "mixture", "lora", "mixture"),
        ("shallow", "strategy", "lora", "mixture"),
    }
    assert pairs["ablation"] == {("iclm-no-mi", "mixture", "iclm", "mixture")}
    alone = ("invariant", "domain_0", "domain_1", "oracle")
    assert pairs["module"] == {(m, module, m, "mixture") for m in ("iclm", "iclm-no-mi") for module in alone}


def test_a_method_is_compared_with_those_that_the_recipe_names(make_collected):
    methods = {"lora": {"mixture": 0.5}, "wide": {"mixture": 0.6}, "iclm": {"mixture": 0.7, "invariant": 0.6}}
    found = summarise(make_collected(methods, lines={"iclm": {"compared_with": ["wide"]}}), resamples=200)
    further = [one for one in found["comparisons"] if one["question"] == "further"]
    assert {(one["method"], one["module"], one["against"]) for one in further} == {("iclm", "mixture", "wide")}
    one = only(further, group=OUT, **WHOLE)
    means = {m: only(found["figures"], group=OUT, **WHOLE, method=m, module="mixture")["mean"] for m in methods}
    assert one["difference"] == pytest.approx(means["iclm"] - means["wide"], abs=1e-5)
    assert one["p_holm"] == one["p"], "a family of its own"


def test_a_difference_is_that_of_the_means_over_common_seeds(summary):
    figures = {
        m: only(summary["figures"], group=OUT, **WHOLE, method=m, module="mixture") for m in ("base", "lora", "iclm")
    }
    found = only(summary["comparisons"], group=OUT, **WHOLE, question="reference", method="iclm")
    assert found["difference"] == pytest.approx(figures["iclm"]["mean"] - figures["lora"]["mean"], abs=2e-6)
    assert found["low"] < found["difference"] < found["high"] and found["problems"] == 12
    assert found["by_seed"] == pytest.approx(
        np.subtract(figures["iclm"]["values"], figures["lora"]["values"]).tolist(), abs=1e-5
    )
    base = only(summary["comparisons"], group=OUT, **WHOLE, question="reference", method="base")
    assert base["seeds"] == [0] and base["only_one_side"] == {"method": [], "against": [1, 2]}
    assert base["resampled"] == "problems" and found["resampled"] == "seeds and problems"
    assert base["difference"] == pytest.approx(figures["base"]["mean"] - figures["lora"]["values"][0], abs=2e-6)


def test_p_values_are_corrected_within_data_group_and_question(summary):
    families = defaultdict(list)
    for one in summary["comparisons"]:
        families[one["group"], one["format"], one["kind"], one["question"]].append(one)
    assert {len(family) for key, family in families.items() if key[3] == "reference"} == {4}
    for family in families.values():
        assert [one["p_holm"] for one in family] == pytest.approx(holm([one["p"] for one in family]), abs=2e-6)


def test_strict_and_published_questions_never_pool(make_collected):
    found = make_collected({"lora": {"mixture": 0.5}})
    for job in found.jobs:
        for row in job.rows:
            row["strict"] = row["format"] == "text"
    summary = summarise(found, resamples=FAST)
    pooled = [(g["strict"], g["group"], g["n"]) for g in summary["groups"] if g["kind"] is None and g["format"] is None]
    assert pooled == [(strict, name, 48) for strict in (False, True) for name in (IN, OUT, "ACRE IID", "ACRE Sys")]


def test_questions_scored_by_sums_and_by_means_never_pool(make_collected):
    found = make_collected({"lora": {"mixture": 0.5}})
    for job in found.jobs:
        for row in job.rows:
            row["score"] = "mean" if row["format"] == "text" else "sum"
    summary = summarise(found, resamples=FAST)
    pooled = [(g["score"], g["group"], g["n"]) for g in summary["groups"] if g["kind"] is None and g["format"] is None]
    assert pooled == [(score, name, 48) for score in ("sum", "mean") for name in (IN, OUT, "ACRE IID", "ACRE Sys")]
    for job in found.jobs:  # rows had no score when there was one
        for row in job.rows:
            del row["score"]
    assert {g["score"] for g in summarise(found, resamples=FAST)["groups"]} == {"sum"}


def test_a_module_that_answered_only_some_sources_has_no_figure_there(make_collected):
    found = make_collected({"lora": {"mixture": 0.5}, "iclm": {"mixture": 0.5, "oracle": 0.5}})
    for job in found.jobs:
        job.rows[:] = [
            r for r in job.rows if (r["module"], r["test_set"], r["format"]) != ("oracle", "ACRE Sys", "text")
        ]
    oracle = [f for f in summarise(found, resamples=FAST)["figures"] if f["module"] == "oracle" and f["kind"] is None]
    assert [(f["group"], f["format"]) for f in oracle] == [
        *((IN, None), ("ACRE IID", None), ("ACRE IID", "symbolic"), ("ACRE IID", "text"), ("ACRE Sys", "symbolic"))
    ]


def test_costs_are_means_and_ratios_to_the_reference_on_the_same_machine(collected, summary):
    cost = {entry["method"]: entry for entry in summary["cost"]}
    assert cost["iclm"]["values"] == [12.0, 12.1, 12.2] and cost["iclm"]["mean"] == pytest.approx(12.1)
    assert cost["iclm"]["ratio"] == pytest.approx(36.3 / 33.3, abs=1e-6) and cost["lora"]["ratio"] == 1.0

    def changed(method, **fields):
        jobs = [
            dataclasses.replace(job, line={**job.line, **fields}) if job.line["method"] == method else job
            for job in collected.jobs
        ]
        return {entry["method"]: entry for entry in summarise(Collected(jobs), resamples=FAST)["cost"]}

    cost = changed("iclm", threads=8)
    assert cost["iclm"]["ratio"] is None and cost["iclm-no-mi"]["ratio"] is not None
    cost = changed("lora", processor="x86_64")  # of which many machines are
    assert cost["iclm"]["ratio"] is None and cost["iclm-no-mi"]["ratio"] is None


def test_another_reference_can_be_asked_for(collected):
    found = summarise(collected, reference="iclm", resamples=FAST)
    assert {c["against"] for c in found["comparisons"] if c["question"] == "reference"} == {"iclm"}
    with pytest.raises(ConfigurationError, match="reference is 'x'; methods with a finished job are base, lora, iclm"):
        summarise(collected, reference="x")


def test_without_the_reference_nothing_is_compared_with_it(make_collected):
    found = summarise(make_collected({"iclm": {"mixture": 0.5}}), resamples=FAST)
    assert found["comparisons"] == [] and len(found["figures"]) == len(found["groups"])


def test_nothing_done_is_nothing_to_report():
    with pytest.raises(
        ConfigurationError, match="none of the finished jobs, such as acre/lora/seed-0, is one of the study's"
    ):
        summarise(Collected(left_out=["acre/lora/seed-0"]))
    with pytest.raises(ConfigurationError, match="no job of the study is done yet"):
        summarise(Collected())


@pytest.mark.parametrize("field", ["n", "format", "problems", "shifted", "correct"])
def test_rows_that_contradict_each_other_are_refused(make_collected, field):
    found = make_collected({"lora": {"mixture": 0.5}, "iclm": {"mixture": 0.5}})
    row = found.jobs[1].rows[2]
    row[field] = {"n": 47, "format": "text", "problems": 2, "shifted": False, "correct": row["correct"] - 1}[field]
    with pytest.raises(DataError):
        summarise(found, resamples=FAST)


def test_jobs_that_were_asked_different_questions_are_refused(make_collected):
    found = make_collected({"lora": {"mixture": 0.5}, "iclm": {"mixture": 0.5}})
    found.jobs[1].line["evaluate"] = [{**source, "seed": 7} for source in found.jobs[1].line["evaluate"]]
    with pytest.raises(DataError, match=r"acre/lora/seed-0 and acre/iclm/seed-0 were tested on different questions"):
        summarise(found, resamples=FAST)


def test_what_depends_on_no_seed_is_compared_on_all_seeds_of_the_other(make_collected):
    found = make_collected({"lora": {"mixture": 0.7}, "base": {"mixture": 0.4}})
    kept = [job for job in found.jobs if job.line["method"] != "base" or job.line["seed"] == 0]
    for job in kept:
        if job.line["method"] == "base":
            job.line["seed"] = None
            for row in job.rows:
                row["seed"] = None
    summary = summarise(dataclasses.replace(found, jobs=kept), resamples=FAST)
    base = only(summary["figures"], group=OUT, **WHOLE, method="base")
    lora = only(summary["figures"], group=OUT, **WHOLE, method="lora")
    assert base["seeds"] == [None] and base["low"] is None and len(lora["seeds"]) > 1
    compared = only(summary["comparisons"], group=OUT, **WHOLE, method="base")
    assert compared["seeds"] == lora["seeds"] and compared["resampled"] == "seeds and problems"
    assert compared["difference"] == pytest.approx(base["mean"] - lora["mean"], abs=1e-6)
    assert compared["only_one_side"] == {"method": [], "against": []}


MODULES = {"mixture": 0.8, "invariant": 0.7, "domain_0": [1.0, 0.0, 1.0, 0.0], "domain_1": 0.5}
HOME = {"symbolic": 0, "text": 1}


def with_routes(found, routes=None):
    """Jobs whose questions were routed by their format, or as said by source."""
    for row in (row for job in (*found.jobs, *found.tries) for row in job.rows):
        row["routes"] = [row["n"] * (HOME[row["format"]] == number) for number in (0, 1)]
        if routes is not None and row["source"] in routes:
            row["routes"] = routes[row["source"]]
    return found


def test_the_routed_domain_module_alone_is_each_sources_own(make_collected):
    found = with_routes(make_collected({"iclm": MODULES}))
    (results,) = by_data(found)
    assert results.modules["iclm"] == ["mixture", "invariant", "routed", "domain_0", "domain_1"]
    for source, row in results.sources.items():
        for seed in (0, 1, 2):
            own = results.answers["iclm", f"domain_{HOME[row['format']]}", seed, source]
            assert (results.answers["iclm", "routed", seed, source] == own).all()
    figures = summarise(found, resamples=FAST)["figures"]
    groups = {(f["group"], f["format"]) for f in figures if f["module"] == "routed" and f["kind"] is None}
    assert groups == {(name, None) for name in (IN, OUT, "ACRE IID", "ACRE Sys")}, "of one format it is one module"
    whole, text = (
        only(figures, group="ACRE Sys", format=form, kind=None, module=module)["values"]
        for form, module in ((None, "routed"), ("text", "domain_1"))
    )
    assert whole == pytest.approx([(0.5 + value) / 2 for value in text], abs=1e-6)


def test_where_a_source_goes_to_several_modules_there_is_no_routed_one(make_collected):
    """Not even where it happens in one seed: a mean over the others would be one over chosen seeds."""
    found = with_routes(make_collected({"iclm": MODULES}))
    for row in (row for row in found.jobs[1].rows if row["source"] == 3):
        row["routes"] = [1, 47]
    summary = summarise(found, resamples=FAST)
    for part in ("figures", "comparisons"):
        assert {f["group"] for f in summary[part] if f["module"] == "routed"} == {IN, "ACRE IID"}


def test_a_try_tells_of_the_routed_domain_module_too(make_collected):
    for routes in (None, {0: [1, 47]}):
        found = with_routes(make_collected({"iclm": MODULES}, seeds=(0,)), routes)
        job = found.jobs[0]
        job.line["trial"] = 0
        job.line["seed"] = 1001
        whole = make_collected({"lora": {"mixture": 0.5}})
        both = Collected([*whole.jobs, job])
        (tried,) = summarise(both, resamples=FAST)["tried"]
        own = sum(r["correct"] for r in job.rows if r["module"] == f"domain_{HOME[r['format']]}")
        assert tried["correct"].get("routed") == (own if routes is None else None)
