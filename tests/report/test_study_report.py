"""The report of a study: tables, files and plots."""

import json

import pytest

from iclm.errors import ConfigurationError
from iclm.report.paper import FIGURES, SOURCE
from iclm.report.study import check_blocks, write_blocks, write_report
from iclm.report.study_cells import Grid, probability, share, signed
from iclm.report.study_plots import plot_ablations, plot_accuracy, plot_scatter
from iclm.report.study_tables import grids, texts
from iclm.studies.study.groups import OUT
from iclm.studies.study.results import collect
from iclm.studies.study.summary import summarise

FAST = 200


@pytest.fixture(scope="module")
def summary(collected):
    return summarise(collected, resamples=FAST)


@pytest.fixture(scope="module")
def tables(summary):
    return {grid.name: grid for grid in grids(summary)}


def column(grid, heading):
    place = grid.header.index(heading)
    return {row[0]: row[place] for row in grid.rows}


def figure(summary, method, module, kind=None, group=OUT):
    (found,) = (
        f
        for f in summary["figures"]
        if (f["group"], f["format"], f["kind"], f["method"], f["module"]) == (group, None, kind, method, module)
    )
    return found


# -- tables ------------------------------------------------------------------------------------------------------------


def test_every_table_has_a_name(tables):
    names = (
        "overview",
        "accuracy",
        "formats",
        "kinds",
        "inference",
        "modules",
        "comparisons",
        "ablations",
        "ablation-costs",
        "parts",
        "cost",
        "chosen",
    )
    assert list(tables) == [*(f"acre/{name}" for name in names), "headline", "paper"]
    for grid in tables.values():
        assert grid.rows and all(len(row) == len(grid.header) for row in grid.rows)


def test_the_main_table_has_methods_cheap_strategies_and_the_indirect_questions(summary, tables):
    found = column(tables["acre/accuracy"], OUT)
    assert list(found) == ["base", "lora", "iclm", "iclm-no-mi", "shallow", "most frequent answer", "questions"]
    assert found["iclm"] == share(figure(summary, "iclm", "mixture"))
    assert (found["shallow"], found["questions"]) == ("0.750 [0.750 0.750]", "96")
    assert "[" not in found["base"], "one seed has no interval"
    indirect = column(tables["acre/accuracy"], f"{OUT}, indirect")
    assert indirect["shallow"] == "0.000 [0.000 0.000]"
    assert indirect["iclm"] == share(figure(summary, "iclm", "mixture", kind="indirect"))


def test_the_overview_has_accuracy_beside_the_difference_to_the_reference(summary, tables):
    grid = tables["acre/overview"]
    pools = ["in distribution", "out of distribution"]
    assert grid.header == ["method", "seeds", *(name for pool in pools for name in (pool, "against lora", "indirect"))]
    rows = {row[0]: row[1:] for row in grid.rows}
    assert list(rows) == ["base", "lora", "iclm", "iclm-no-mi", "shallow"]
    assert [rows[name][0] for name in ("base", "lora", "iclm")] == ["1", "3", "3"]
    for name, module in ((name, "mixture") for name in ("base", "lora", "iclm")):
        overall = [share(figure(summary, name, module, group=pool)) for pool in pools]
        indirect = [f"{figure(summary, name, module, 'indirect', pool)['mean']:.3f}" for pool in pools]
        assert (rows[name][1::3], rows[name][3::3]) == (overall, indirect)
    differences = {row[0]: row[3] for row in tables["acre/comparisons"].rows if row[:2] == [OUT, "iclm"]}
    assert rows["iclm"][5] == differences[OUT]
    assert rows["lora"][2::3] == ["–", "–"]


def test_the_overview_counts_no_seeds_of_what_depends_on_none(summary):
    figures = [{**f, "seeds": [None]} if f["method"] == "base" else f for f in summary["figures"]]
    (grid,) = (grid for grid in grids({**summary, "figures": figures}) if grid.name == "acre/overview")
    assert [row[:2] for row in grid.rows[:2]] == [["base", "–"], ["lora", "3"]]


def told_apart(found, form):
    (table,) = [g for g in grids(summarise(found, resamples=FAST)) if g.name == "acre/inference"]
    rows = column(table, f"{OUT}: told apart")
    return table, {name.partition(", ")[0]: cell for name, cell in rows.items() if name.endswith(f", {form}")}


def test_what_is_told_apart_is_at_least_what_accuracies_add_up_to_above_one(make_collected):
    """Accuracies by kind: direct, indirect, potential, screen_off."""
    methods = {
        "lora": {"mixture": [1.0, 0.0, 1.0, 1.0]},  # the shallow rule
        "on": {"mixture": [1.0, 1.0, 0.0, 1.0]},  # always on
        "infers": {"mixture": [1.0, 1.0, 1.0, 1.0]},
        "off": {"mixture": [1.0, 0.0, 0.0, 1.0]},
    }
    table, told = told_apart(make_collected(methods), "text")
    assert told == {
        "lora": "≥ 0.000 [+0.000 +0.000]",
        "on": "≥ 0.000 [+0.000 +0.000]",
        "infers": "≥ +1.000 [+1.000 +1.000]",
        "off": "≥ -1.000 [-1.000 -1.000]",
    }
    kinds = ("on, by exclusion", "undetermined, potential")
    parts = [column(table, f"{OUT}: {kind}")["on, symbolic"] for kind in kinds]
    assert parts == ["1.000 [1.000 1.000]", "0.000 [0.000 0.000]"]


def test_what_is_told_apart_is_known_where_rows_say_what_was_answered(make_collected):
    """Choices by kind: 0 off, 1 undetermined, 2 on."""
    found = make_collected({"off": {"mixture": [1.0, 1.0, 0.0, 1.0]}, "on": {"mixture": [1.0, 1.0, 0.0, 1.0]}})
    for job in found.jobs:
        for row in job.rows:
            wrong = "0" if row["method"] == "off" else "2"
            row["given"] = f"22{wrong}0" * 12
    assert told_apart(found, "text")[1] == {"off": "+1.000 [+1.000 +1.000]", "on": "0.000 [+0.000 +0.000]"}
    found.jobs[0].rows[0].pop("given")  # of symbols out of distribution all rows still say
    assert set(told_apart(found, "symbolic")[1].values()) == {"+1.000 [+1.000 +1.000]", "0.000 [+0.000 +0.000]"}
    for row in found.jobs[0].rows:
        row.pop("given", None)
    assert found.jobs[0].line["method"] == "off"
    assert told_apart(found, "text")[1] == {"off": "≥ 0.000 [+0.000 +0.000]", "on": "0.000 [+0.000 +0.000]"}


def test_test_sets_have_columns_where_there_are_several(make_collected):
    found = make_collected({"lora": {"mixture": 0.5}})
    for job in found.jobs:
        for row in job.rows:
            if row["shifted"] and row["format"] == "text":
                row["test_set"] = "ACRE Comp"
    (grid,) = (g for g in grids(summarise(found, resamples=FAST)) if g.name == "acre/accuracy")
    assert [heading for heading in grid.header if "indirect" not in heading] == [
        *("method", "in distribution", OUT, "ACRE Sys", "ACRE Comp")
    ]


def test_modules_stand_below_their_mixture(summary, tables):
    rows = tables["acre/modules"].rows
    assert [row[0] for row in rows[:5]] == [
        "iclm: mixture",
        "iclm: invariant module alone",
        "iclm: domain module 0 alone",
        "iclm: domain module 1 alone",
        "iclm: mixture, oracle routing",
    ]
    assert column(tables["acre/modules"], OUT)["iclm: invariant module alone"] == share(
        figure(summary, "iclm", "invariant")
    )
    assert not any(row[0].startswith(("lora", "shallow")) for row in rows)


def test_a_comparison_says_by_how_much_how_surely_and_on_what(summary, tables):
    (one,) = (
        c
        for c in summary["comparisons"]
        if (c["group"], c["format"], c["kind"], c["question"], c["method"]) == (OUT, None, None, "reference", "iclm")
    )
    (row,) = (r for r in tables["acre/comparisons"].rows if r[:2] == [OUT, "iclm"])
    interval = f"{signed(one['difference'])} [{signed(one['low'])} {signed(one['high'])}]"
    assert row[2:] == ["lora", interval, probability(one["p"]), probability(one["p_holm"]), "3", "12"]
    (row,) = (r for r in tables["acre/comparisons"].rows if r[:2] == [OUT, "base"])
    assert row[6] == "1 (problems alone resampled)"
    assert {tuple(r[1:3]) for r in tables["acre/ablations"].rows} == {("iclm-no-mi", "iclm")}
    assert ["iclm: mixture, oracle routing", "iclm: mixture"] in [r[1:3] for r in tables["acre/parts"].rows]


def test_an_ablation_has_one_row_with_what_it_costs(summary, tables):
    grid = tables["acre/ablation-costs"]
    pools = [(group, kind) for group in ("in distribution", OUT) for kind in (None, "indirect")]
    assert grid.header[2:] == ["in distribution", "in distribution, indirect", OUT, f"{OUT}, indirect"]
    costs = []
    for pool in pools:
        (one,) = (
            c
            for c in summary["comparisons"]
            if (c["question"], c["format"]) == ("ablation", None) and (c["group"], c["kind"]) == pool
        )
        costs.append(f"{signed(one['difference'])} [{signed(one['low'])} {signed(one['high'])}]")
    assert grid.rows == [["iclm-no-mi - iclm", "3", *costs]] and len(set(costs)) == 4


def test_the_headline_has_a_row_for_each_data_set_that_has_both(summary, tables, make_collected):
    overview = {row[0]: row for row in tables["acre/overview"].rows}
    assert tables["headline"].rows == [["acre", "iclm - lora", "3", overview["iclm"][3], overview["iclm"][6]]]
    alone = grids(summarise(make_collected({"lora": {"mixture": 0.5}}), resamples=FAST))
    assert "headline" not in {grid.name for grid in alone}


def test_the_papers_figures_stand_in_a_column_of_their_own(summary, tables):
    grid = tables["paper"]
    assert grid.header == ["model", SOURCE, f"ours, acre, {OUT}"] and "LLaMA-2 7B" in SOURCE
    assert [row[1] for row in grid.rows] == ["–" if f.accuracy is None else f"{f.accuracy:.4f}" for f in FIGURES]
    best = max((figure(summary, "iclm", m) for m in ("invariant", "domain_0", "domain_1")), key=lambda f: f["mean"])
    ours = [*(figure(summary, *one) for one in (("iclm", "mixture"), ("lora", "mixture"), ("iclm", "invariant"))), best]
    assert [row[2] for row in grid.rows] == [share(f) for f in ours]


def test_the_invariant_module_stands_beside_the_paper_where_a_domain_module_is_better(make_collected):
    modules = {"mixture": 0.5, "invariant": 0.25, "domain_0": 0.9}
    found = summarise(make_collected({"lora": {"mixture": 0.5}, "iclm": modules}), resamples=FAST)
    (grid,) = (grid for grid in grids(found) if grid.name == "paper")
    assert [row[2] for row in grid.rows[2:]] == [
        share(figure(found, "iclm", name)) for name in ("invariant", "domain_0")
    ]


def test_costs_and_choices_have_tables(tables):
    cost = {row[0]: row[1:] for row in tables["acre/cost"].rows}
    assert cost["lora"][1:] == ["1.00", "1,000", "24", "3", "cpu"] and cost["iclm"][1] == "1.09"
    assert tables["acre/chosen"].rows[2] == ["iclm-no-mi", "0 of iclm", "0.001"]


def test_jobs_of_another_number_type_are_named(make_collected):
    found = make_collected({"lora": {"mixture": 0.6}, "iclm": {"mixture": 0.8}})
    assert texts(summarise(found, resamples=FAST))["setup"].startswith("tiny in float32 on cpu (")
    for job in found.jobs:
        if job.line["name"] in ("acre/iclm/seed-0", "acre/iclm/seed-2"):
            job.line["dtype"] = "bfloat16"
    said = texts(summarise(found, resamples=FAST))["setup"]
    assert said.startswith("tiny in float32 (in bfloat16 acre/iclm/seed-0,2) on cpu (")
    for job in found.jobs:
        if job.line["name"] != "acre/lora/seed-1":
            job.line["dtype"] = "bfloat16"
    said = texts(summarise(found, resamples=FAST))["setup"]
    assert said.startswith("tiny in bfloat16 (in float32 acre/lora/seed-1) on cpu ("), "the commonest first"


def test_what_was_not_run_is_named(summary):
    assert texts(summary)["not-run"] == "not run: acre/iclm/seed-3\n"
    assert texts({**summary, "not_run": {}})["not-run"] == "All jobs of the study were run.\n"
    assert texts({**summary, "not_run": {"a": "failed"}})["not-run"] == "not run: a (failed)\n"
    left = {f"acre/no-mi/{place}": "not run" for place in ("try-0", "seed-0", "seed-2")}
    left |= {"acre/base-few": "not run", "acre/no-mi/seed-3": "failed"}
    told = "acre/no-mi/try-0, acre/no-mi/seed-0,2, acre/base-few, acre/no-mi/seed-3 (failed)"
    assert texts({**summary, "not_run": left})["not-run"] == f"not run: {told}\n"


def test_cells():
    assert share({"mean": 0.5, "low": 0.25, "high": 1.0}) == "0.500 [0.250 1.000]"
    assert share({"mean": 2 / 3, "low": None, "high": None}) == "0.667"
    assert [signed(value) for value in (0.0124, -0.5, -0.0004)] == ["+0.012", "-0.500", "0.000"]
    assert [probability(p) for p in (0.0002, 0.001, 1.0)] == ["< 0.001", "0.001", "1.000"]
    grid = Grid("a/b", "t", ["x", "y"], [["p|q", "1"]])
    assert grid.markdown() == "| x | y |\n| :-- | --: |\n| p\\|q | 1 |\n"


def test_strict_tables_have_their_own_names(make_collected):
    found = make_collected({"lora": {"mixture": 0.5}}, strict=True)
    names = [grid.name for grid in grids(summarise(found, resamples=FAST))]
    kinds = [f"acre/strict/{name}" for name in ("overview", "accuracy", "formats", "kinds", "inference")]
    assert names == [*kinds, "acre/cost", "paper"]


def test_tables_and_plots_of_means_have_their_own_names(make_collected, tmp_path):
    found = make_collected({"lora": {"mixture": 0.5}, "iclm": {"mixture": 0.5}}, strict=True)
    for job in found.jobs:
        for row in job.rows:
            row["score"] = "mean" if row["format"] == "text" else "sum"
    summary = summarise(found, resamples=FAST)
    named = {grid.name: grid.title for grid in grids(summary)}
    assert {"acre/strict/accuracy", "acre/strict/mean/accuracy"} <= set(named)
    assert named["acre/strict/mean/accuracy"].endswith("acre, strictly rendered, choices by the mean of their tokens")
    drawn = {path.name for path in write_report(found, summary, tmp_path / "out")}
    assert {"accuracy-acre-strict.png", "accuracy-acre-strict-mean.png"} <= drawn


# -- files -------------------------------------------------------------------------------------------------------------

FILES = [
    *("ablations-acre.png", "accuracy-acre.png", "comparisons.json", "jobs.jsonl", "questions.jsonl", "results.jsonl"),
    *("scatter-acre.png", "tables.md", "tries.jsonl"),
]


def test_a_report_made_again_from_its_own_files_is_the_same(collected, summary, tmp_path):
    files = write_report(collected, summary, tmp_path / "first")
    assert [path.name for path in files] == FILES == sorted(path.name for path in (tmp_path / "first").iterdir())
    again = collect([tmp_path / "first"])
    write_report(again, summarise(again, resamples=FAST), tmp_path / "second")
    for name in FILES:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_the_files_hold_every_row_and_every_figure(collected, summary, tmp_path):
    write_report(collected, summary, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert rows == [row for job in collected.reports for row in job.rows]
    plots = sorted(path.name for path in tmp_path.glob("*.png"))
    written = json.loads((tmp_path / "comparisons.json").read_text())
    assert plots and written == json.loads(json.dumps({**summary, "plots": plots}))
    text = (tmp_path / "tables.md").read_text()
    assert all(grid.markdown() in text for grid in grids(summary)) and "not run: acre/iclm/seed-3" in text


def test_nothing_is_replaced_unless_told(collected, summary, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    write_report(collected, summary, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigurationError, match=r"results\.jsonl exists; pass --overwrite"):
        write_report(collected, summary, tmp_path)
    (tmp_path / "accuracy-mine.png").write_bytes(b"")  # of no report
    (tmp_path / "accuracy-gone.png").write_bytes(b"")  # of the earlier report
    earlier = json.loads((tmp_path / "comparisons.json").read_text())
    earlier["plots"] += ["accuracy-gone.png", "../accuracy-other.png", "notes.txt"]
    (tmp_path / "comparisons.json").write_text(json.dumps(earlier))
    write_report(collected, summary, tmp_path, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before | {"accuracy-mine.png": b""}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / earlier["plots"][0]).write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"\.png exists; pass --overwrite"):
        write_report(collected, summary, tmp_path / "other")
    assert len(list((tmp_path / "other").iterdir())) == 1
    with pytest.raises(ConfigurationError, match="is a file"):
        write_report(collected, summary, tmp_path / "notes.txt" / "x")


def test_blocks_are_written_in_all_files_or_in_none(summary, tmp_path):
    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    good.write_text("# A\n<!-- study: acre/accuracy -->\n<!-- /study -->\n")
    bad.write_text("<!-- study: acre -->\n<!-- /study -->\n")
    with pytest.raises(ConfigurationError, match=r"bad\.md: there is no table 'acre'"):
        write_blocks(summary, [good, bad])
    assert good.read_text() == "# A\n<!-- study: acre/accuracy -->\n<!-- /study -->\n"
    write_blocks(summary, [good])
    assert good.read_text() == f"# A\n<!-- study: acre/accuracy -->\n{texts(summary)['acre/accuracy']}<!-- /study -->\n"
    assert check_blocks(summary, [good])[good] == good.read_text()


# -- plots -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [plot_accuracy, plot_scatter, plot_ablations])
def test_a_plot_has_a_title_and_named_axes_within_the_page(summary, draw):
    drawn = draw(summary, "acre")
    drawn.canvas.draw()
    (axes,) = drawn.axes
    assert axes.get_title().endswith(": acre") and axes.get_xlabel() and axes.get_ylabel()
    page, renderer = drawn.bbox.padded(1), drawn.canvas.get_renderer()
    legends = [legend for legend in (axes.get_legend(), *drawn.legends) if legend]
    assert len(legends) == 1
    for thing in (*legends, axes.title, axes.xaxis.label, axes.yaxis.label):
        box = thing.get_window_extent(renderer)
        assert page.contains(box.x0, box.y0) and page.contains(box.x1, box.y1)


def test_plots_say_how_many_seeds_a_mean_is_of(make_collected):
    methods = {"lora": {"mixture": 0.5}, "iclm": {"mixture": 0.5}, "iclm-no-mi": {"mixture": 0.4}}
    found = make_collected(methods, lines={"iclm-no-mi": {"tuned_as": "iclm", "seeds": [0]}})
    summary = summarise(found, resamples=FAST)
    accuracy, ablations = (
        [label.get_text() for label in draw(summary, "acre").axes[0].get_yticklabels()]
        for draw in (plot_accuracy, plot_ablations)
    )
    assert accuracy == ["lora (3 seeds)", "iclm (3 seeds)", "iclm-no-mi (1 seed)"]
    assert ablations == ["iclm-no-mi − iclm (1 seed)"]
    legend = {text.get_text() for text in plot_scatter(summary, "acre").axes[0].get_legend().get_texts()}
    assert set(accuracy) <= legend
    untouched = {**summary, "figures": [{**entry, "seeds": [None]} for entry in summary["figures"]]}
    assert "lora" in [label.get_text() for label in plot_accuracy(untouched, "acre").axes[0].get_yticklabels()]


def test_bars_reach_over_the_intervals(summary):
    axes = plot_accuracy(summary, "acre").axes[0]
    group = "ACRE Sys"
    ends = {
        round(f["low"], 6): round(f["high"], 6)
        for f in summary["figures"]
        if (f["group"], f["format"], f["kind"]) == (group, None, None)
        and f["module"] in ("mixture", "strategy")
        and f["low"]
    }
    bars = axes.containers[1].lines[2][0].get_segments()
    drawn = {round(float(bar[0][0]), 6): round(float(bar[1][0]), 6) for bar in bars}
    assert ends.items() <= drawn.items()


def test_the_scatter_shows_all_of_every_interval(summary):
    axes = plot_scatter(summary, "acre").axes[0]
    assert len(axes.containers) == 5
    for group, (low, high) in (("in distribution", axes.get_xlim()), (OUT, axes.get_ylim())):
        for f in summary["figures"]:
            if (f["group"], f["format"], f["kind"]) == (group, None, None) and f["module"] == "mixture":
                assert low <= (f["low"] if f["low"] is not None else f["mean"])
                assert (f["high"] if f["high"] is not None else f["mean"]) <= high


def test_without_ablations_or_another_side_there_is_no_such_plot(make_collected):
    found = make_collected({"lora": {"mixture": 0.5}, "iclm": {"mixture": 0.5}})
    for job in found.jobs:
        job.rows[:] = [row for row in job.rows if not row["shifted"]]
    summary = summarise(found, resamples=FAST)
    assert plot_ablations(summary, "acre") is None and plot_scatter(summary, "acre") is None
    assert plot_accuracy(summary, "acre") is not None
