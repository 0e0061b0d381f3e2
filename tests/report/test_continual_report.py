"""The report of continual learning on rows made by hand: metrics, matrices, tables, plots, blocks."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from iclm.cli import app
from iclm.errors import CheckpointError, ConfigurationError
from iclm.report.continual import grids, texts, write_blocks, write_report
from iclm.studies.continual.recipe import ContinualRecipe, with_boundaries
from iclm.studies.continual.results import Found, collect, summarise
from iclm.studies.continual.runner import sequence_jobs

TASKS = ["a", "b"]
# of 10 questions right: rows are after task 1 and 2, columns tasks
MIXTURE = {"iclm": [[[8, 4], [6, 9]], [[6, 4], [6, 7]]], "lora": [[[9, 3], [4, 9]], [[9, 3], [2, 9]]]}


def line(method, seed, kind="sequence", boundaries="known", **settings):
    settings = {"method": "lora" if method.startswith("lora") else "iclm", **settings}
    units = [
        {
            "module": number if method != "lora" else -1,
            "opened": method != "lora",
            "tasks": {task: 10},
            "trainable": 100,
            "added": 50 * (method != "lora"),
            "train_seconds": 30.0,
            "guard_seconds": 0.0,
        }
        for number, task in enumerate(TASKS)
    ]
    return {
        "job": f"o-{method}-{boundaries}-{seed}",
        "name": f"o/{method}/seed-{seed}",
        "sequence": "tiny",
        "order": "o",
        "method": method,
        "seed": seed,
        "boundaries": boundaries,
        "tasks": TASKS,
        "kind": kind,
        "units": units if kind == "sequence" else [],
        "homes": {"a": 0, "b": 1} if method == "iclm" else {},
        "total_seconds": 60.0,
        "device": "cpu",
        "recipe": {"methods": {method: settings}},
    }


def row(found, module, i, j, correct):
    head = {name: found[name] for name in ("job", "sequence", "order", "method", "seed", "boundaries")}
    return {**head, "module": module, "trained_through": i, "tested_on": TASKS[j], "n": 10, "correct": correct}


@pytest.fixture(scope="module")
def found():
    result = Found()
    base = line("base", None, "base")
    result.sequences.append(base)
    result.rows += [row(base, "mixture", 0, j, correct) for j, correct in enumerate((5, 2))]
    for method, seeds in MIXTURE.items():
        for seed, values in enumerate(seeds):
            one = line(method, seed)
            result.sequences.append(one)
            result.rows += [row(one, "mixture", i + 1, j, values[i][j]) for i in (0, 1) for j in (0, 1)]
            if method == "iclm":
                result.rows += [row(one, "domain_0", i, j, 7) for i in (1, 2) for j in (0, 1)]
                result.rows += [row(one, "domain_1", 2, j, 8) for j in (0, 1)]
    for margin, before, after, opened in ((1.0, 1.0, 0.25, 4), (2.0, 0.9, 0.0, 2)):
        head = {"sequence": "tiny", "order": "o", "seed": 0, "margin": margin}
        result.boundaries += [
            {**head, "kind": "curve", "position": 1, "task": "a", "new_before": None, "new_after": after},
            {**head, "kind": "curve", "position": 2, "task": "b", "new_before": before, "new_after": after},
            {**head, "kind": "stream", "tasks": 2, "opened": opened, "units": 2, "rand": 1.0, "n": 20},
        ]
    return result


def entry(summary, part, **wanted):
    (only,) = [e for e in summary[part] if all(e[name] == value for name, value in wanted.items())]
    return only


def test_metrics_are_means_over_seeds_with_the_base_before_the_first_task(found):
    summary = summarise(found)
    lora = entry(summary, "metrics", method="lora", module="mixture")
    assert lora["average"]["mean"] == pytest.approx((0.65 + 0.55) / 2)
    assert lora["backward"]["mean"] == pytest.approx((-0.5 - 0.7) / 2)
    assert lora["forward"]["mean"] == pytest.approx(0.3 - 0.2)
    assert lora["forgetting"]["mean"] == pytest.approx(0.6)
    assert lora["average"]["low"] < lora["average"]["mean"] < lora["average"]["high"] and lora["seeds"] == 2
    matrix = entry(summary, "matrices", method="iclm", module="mixture")
    assert matrix["values"] == [[0.5, 0.2], [0.7, 0.4], [0.6, 0.8]]


def test_a_method_is_set_against_lora_seed_by_seed(found):
    (only,) = summarise(found)["differences"]
    assert (only["method"], only["against"], only["seeds"]) == ("iclm", "lora", 2)
    # by seed: average .75 and .65 less .65 and .55, backward transfer -.2 and .0 less -.5 and -.7
    assert only["average"]["mean"] == pytest.approx(0.1) and only["average"]["low"] == pytest.approx(0.1)
    assert only["backward"]["mean"] == pytest.approx((0.3 + 0.7) / 2) and only["forward"]["mean"] == pytest.approx(0.1)
    assert "| o | iclm | lora | +0.100 [+0.10 +0.10] |" in texts(summarise(found))["tiny/differences"]


def test_under_a_guard_an_iclm_is_set_against_lora_under_the_same():
    result = Found()
    names = {
        "lora": "none",
        "lora-ewc": "ewc",
        "lora-replay": "replay",
        "iclm-replay": "replay",
        "iclm-frozen": "frozen_after_first",
    }
    for name, guard in names.items():
        one = line(name, 0, guard=guard)
        result.sequences.append(one)
        result.rows += [row(one, "mixture", i + 1, j, 5) for i in (0, 1) for j in (0, 1)]
    pairs = {e["method"]: e["against"] for e in summarise(result)["differences"]}
    assert pairs == {"lora-ewc": "lora", "lora-replay": "lora", "iclm-replay": "lora-replay", "iclm-frozen": "lora"}


def test_the_same_guard_is_one_of_the_same_strength():
    """Which is the method's own, else the recipe's; an ICLM under another is set against LoRA without one."""
    result, recipe = Found(), {"ewc": {"weight": 100.0}, "replay": {"problems": 8}}
    weights = {"lora": None, "lora-ewc-1": 1.0, "lora-ewc-100": 100.0, "iclm-ewc-7": 7.0, "iclm-ewc-100": 100.0}
    lines = [
        line(name, 0, **({"guard": "ewc", "ewc": {"weight": weight}} if weight else {}))
        for name, weight in weights.items()
    ]
    lines += [line("iclm-ewc", 0, guard="ewc", ewc=None)]
    lines += [line("lora-replay", 0, guard="replay"), line("iclm-replay", 0, guard="replay", replay={"problems": 8})]
    for one in lines:
        one["recipe"] |= recipe
        result.sequences.append(one)
        result.rows += [row(one, "mixture", i + 1, j, 5) for i in (0, 1) for j in (0, 1)]
    pairs = {e["method"]: e["against"] for e in summarise(result)["differences"] if e["method"].startswith("iclm")}
    assert pairs == {
        "iclm-ewc-7": "lora",
        "iclm-ewc-100": "lora-ewc-100",
        "iclm-ewc": "lora-ewc-100",
        "iclm-replay": "lora-replay",
    }


def test_the_own_module_of_a_task_is_the_one_it_was_trained_with(found):
    own = entry(summarise(found), "metrics", method="iclm", module="own module")
    assert own["average"]["mean"] == pytest.approx((0.7 + 0.8) / 2)
    assert own["backward"]["mean"] == 0 and own["forgetting"]["mean"] == 0
    assert own["forward"] is None, "a task has no module before it was learned"


def test_a_task_that_went_to_a_frozen_module_has_none_of_its_own(found):
    result = Found()
    for seed, (home, opened) in enumerate(((0, False), (1, True))):
        one = line("iclm", seed)
        one["homes"]["b"], one["units"][1] = (
            home,
            {**one["units"][1], "module": home, "opened": opened, "added": 50 * opened},
        )
        result.sequences.append(one)
        result.rows += [row(one, "mixture", i + 1, j, 5) for i in (0, 1) for j in (0, 1)]
        result.rows += [row(one, "domain_0", i, j, (7, 1)[j]) for i in (1, 2) for j in (0, 1)]
        result.rows += [row(one, "domain_1", 2, j, (2, 8)[j]) for j in (0, 1) if opened]
    summary = summarise(result)
    own = entry(summary, "metrics", module="own module")
    assert own["counted"] == [1, 2]
    assert own["average"]["mean"] == own["learned"]["mean"] == pytest.approx((0.7 + (0.7 + 0.8) / 2) / 2)
    assert own["backward"] is None, "of a single task there is none"
    assert entry(summary, "matrices", module="own module")["values"] == [[None, None], [0.7, None], [0.7, None]]
    assert "| o | iclm | own module (1 or 2 of 2 tasks) | 0.725 " in texts(summary)["tiny/modules"]
    assert "| own module | 0.750 [" in texts(summarise(found))["tiny/modules"]


def test_trained_parameters_are_a_mean_over_seeds():
    """Of models that opened other numbers of modules, whichever seed comes first."""
    for opened in ((False, True), (True, False)):
        result = Found()
        for seed, second in enumerate(opened):
            one = line("iclm", seed)
            one["units"][1] |= {"opened": second, "added": 50 * second}
            result.sequences.append(one)
            result.rows += [row(one, "mixture", i + 1, j, 5) for i in (0, 1) for j in (0, 1)]
        iclm = next(text for text in texts(summarise(result))["tiny/metrics"].splitlines() if "| iclm |" in text)
        assert iclm.endswith("| 2 | 1 or 2 | 38 | 125 | – | 30 |")


def test_the_base_has_an_average_and_no_metrics_of_a_sequence(found):
    base = entry(summarise(found), "metrics", method="base")
    assert base["average"]["mean"] == pytest.approx(0.35) and base["backward"] is None and base["area"] is None


def test_thresholds_are_counted(found):
    one, two = summarise(found)["boundaries"]
    assert (one["new_before"], one["new_after"], one["right"], one["extra"]) == (1.0, 0.25, 0, 2)
    assert (two["new_before"], two["new_after"], two["right"], two["streams"]) == (0.9, 0.0, 1, 1)


def test_tables_show_figures_with_their_intervals_and_signs(found):
    tables = texts(summarise(found))
    assert list(tables) == [
        "tiny/metrics",
        "tiny/modules",
        "tiny/differences",
        "tiny/matrix/o/iclm",
        "tiny/matrix/o/lora",
        "tiny/thresholds",
    ]
    lora = next(text for text in tables["tiny/metrics"].splitlines() if "| lora |" in text)
    assert "| 0.600 [0.00 1.00] |" in lora and "| -0.600 [" in lora and lora.endswith("| 2 | – | 0 | 100 | – | 30 |")
    iclm = next(text for text in tables["tiny/metrics"].splitlines() if "| iclm |" in text)
    assert iclm.endswith("| 2 | 2 | 50 | 150 | – | 30 |")
    assert "| b | 0.60 | 0.80 |" in tables["tiny/matrix/o/iclm"]
    assert "| 2 | 0.900 | 0.000 | 1 of 1 | +0.0 | 1.00 |" in tables["tiny/thresholds"]
    assert all(len(cells) == len(grid.header) for grid in grids(summarise(found)) for cells in grid.rows)


def test_a_report_says_all_and_is_the_same_when_made_again(found, tmp_path):
    summary = summarise(found)
    write_report(found, summary, tmp_path / "one")
    again = collect([tmp_path / "one"])
    assert summarise(again) == summary
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {"rows.jsonl", "sequences.jsonl", "boundaries.jsonl", "summary.json", "tables.md"} <= names
    assert {"matrix-tiny-o-iclm.png", "tasks-tiny-o.png", "thresholds-tiny.png", "opened-tiny.png"} <= names
    with pytest.raises(ConfigurationError, match="exists; pass --overwrite"):
        write_report(found, summary, tmp_path / "one")


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(found, tmp_path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryDirectory", denied)
    with pytest.raises(ConfigurationError, match=r"cannot write .*: Permission denied"):
        write_report(found, summarise(found), tmp_path / "out")


def test_a_report_of_what_is_no_number_leaves_nothing(found, tmp_path):
    summary = summarise(found)
    summary["boundaries"][0]["margin"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(found, summary, tmp_path / "r")
    assert not list((tmp_path / "r").iterdir())
    (tmp_path / "b.jsonl").write_text('{"sequence": "tiny", "margin": NaN}\n')
    with pytest.raises(CheckpointError, match=r"b\.jsonl cannot be read: it holds NaN, which is no finite number"):
        collect([tmp_path / "b.jsonl"])


def test_blocks_are_filled(found, tmp_path):
    (tmp_path / "doc.md").write_text("a\n<!-- continual: tiny/matrix/o/lora -->\nold\n<!-- /continual -->\nb\n")
    write_blocks(summarise(found), [tmp_path / "doc.md"])
    text = (tmp_path / "doc.md").read_text()
    assert texts(summarise(found))["tiny/matrix/o/lora"] in text and "old" not in text


def test_results_that_contradict_each_other_are_refused(found, tmp_path):
    summary = summarise(found)
    write_report(found, summary, tmp_path / "one")
    write_report(found, summary, tmp_path / "two")
    again = summarise(collect([tmp_path / "one", tmp_path / "two", tmp_path / "two" / "boundaries.jsonl"]))
    assert (again["metrics"], again["boundaries"]) == (summary["metrics"], summary["boundaries"])
    rows = [json.loads(text) for text in (tmp_path / "two" / "rows.jsonl").read_text().splitlines()]
    rows[0]["correct"] += 1
    (tmp_path / "two" / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    with pytest.raises(ConfigurationError, match="done twice with other results"):
        collect([tmp_path / "one", tmp_path / "two"])


def test_other_settings_are_no_further_seed(found, tmp_path):
    summary = summarise(found)
    write_report(found, summary, tmp_path / "one")
    lines = [json.loads(text) for text in (tmp_path / "one" / "sequences.jsonl").read_text().splitlines()]
    lora = next(line for line in lines if line["name"] == "o/lora/seed-0")
    for number, change in enumerate(({"seed": 0}, {"seed": 7, "recipe": {"ewc": {"weight": 7.0}}})):
        out = tmp_path / f"other-{number}"
        out.mkdir()
        (out / "sequences.jsonl").write_text(json.dumps({**lora, "job": "another", **change}) + "\n")
        (out / "rows.jsonl").write_text("")
        with pytest.raises(ConfigurationError, match="o/lora/seed-0 was done with other settings"):
            collect([tmp_path / "one", out])


ACRE = {"acre": "IID", "problems": 3, "format": "text"}
ASKED = {"train": [{**ACRE, "split": "train"}], "test": [{**ACRE, "split": "test"}]}


def written(folder, one, recipe, **changes):
    """The files of one sequence with a recipe of its own; returns their folder."""
    folder.mkdir()
    one = {**one, **changes, "recipe": {**one["recipe"], **recipe}}
    (folder / "sequences.jsonl").write_text(json.dumps(one) + "\n")
    (folder / "rows.jsonl").write_text("")
    return folder


OF_ALL = {"base": "x", "dtype": "auto", "tasks": {"a": ASKED, "b": ASKED}}


@pytest.mark.parametrize(
    ("recipe", "changes", "said"),
    [
        ({"base": "y"}, {}, "base"),
        ({"dtype": "float32"}, {}, "dtype"),
        (
            {"tasks": {"a": ASKED, "b": {**ASKED, "test": [{**ACRE, "split": "val"}]}}},
            {},
            "the test questions of task b",
        ),
        (
            {"tasks": {"a": {**ASKED, "train": [{**ACRE, "problems": 4}]}, "b": ASKED}},
            {},
            "the training data of task a",
        ),
        ({}, {"tasks": ["b", "a"]}, "their tasks"),
    ],
)
def test_methods_of_other_questions_are_not_reported_together(recipe, changes, said, tmp_path):
    one = written(tmp_path / "one", line("lora", 0), OF_ALL)
    two = written(tmp_path / "two", line("iclm", 1), {**OF_ALL, **recipe}, **changes)
    message = f"two: o/iclm/seed-1 and o/lora/seed-0 of sequence tiny differ in {said}, .*; report them apart"
    with pytest.raises(ConfigurationError, match=message):
        collect([one, two])
    for name in ("sequence", "order"):  # of another sequence, or order, it may be anything
        other = written(tmp_path / name, line("iclm", 1), {**OF_ALL, **recipe}, **changes, **{name: "another"})
        assert len(collect([one, other]).sequences) == 2


def test_methods_of_the_same_questions_are_reported_together(tmp_path):
    """Whatever else a method changes, where a file with its SHA-256 lies, and if a setting was added since."""
    own = {"train": [{"file": "/one/own.jsonl", "sha256": "0" * 64}], "test": ASKED["test"]}
    elsewhere = {**own, "train": [{**own["train"][0], "file": "/two/own.jsonl", "score": "sum"}]}
    one = written(tmp_path / "one", line("lora", 0), {**OF_ALL, "tasks": {"a": own, "b": ASKED}})
    recipe = {**OF_ALL, "tasks": {"a": elsewhere, "b": ASKED}, "training": {"batch_size": 7}, "ewc": {"weight": 7.0}}
    assert len(collect([one, written(tmp_path / "two", line("iclm", 1), recipe)]).sequences) == 2


def test_what_is_no_experiment_is_refused_in_one_line(tmp_path):
    result = CliRunner().invoke(app, ["continual", "report", str(tmp_path)])
    assert "neither an experiment of iclm continual nor a report" in str(result.exception)


SOURCE = {"acre": "IID", "problems": 1, "format": "text"}
RECIPE = {
    "tasks": {task: {"train": [SOURCE], "test": [{**SOURCE, "split": "test"}]} for task in TASKS},
    "orders": {"o": TASKS},
    "methods": {"lora": {"method": "lora"}, "iclm": {}},
}


def test_an_experiments_sequences_are_those_of_its_recipe_in_its_order(tmp_path):
    """One whose settings were changed since is left out by name; both kinds of task boundaries stay."""
    old = ContinualRecipe.model_validate({**RECIPE, "training": {"batch_size": 7}})
    recipe = ContinualRecipe.model_validate(RECIPE)
    (tmp_path / "continual.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    unknown = with_boundaries(recipe, "unknown")
    for job in [*sequence_jobs(old, "tiny")[:1], *sequence_jobs(unknown, "tiny"), *sequence_jobs(recipe, "tiny")]:
        folder = tmp_path / "jobs" / job.folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "job.json").write_text(json.dumps(job.spec))
        (folder / "done.json").write_text("{}")
        (folder / "rows.jsonl").write_text("")
    found = collect([tmp_path])
    told = [(line["method"], line["boundaries"]) for line in found.sequences]
    assert told == [("lora", "known"), ("iclm", "known"), ("iclm", "unknown")]
    assert found.left_out == ["o/lora/seed-0"]
