"""The quickstart on a tiny base: the figures, the files that it leaves, and what it refuses."""

import json

import pytest

from iclm.errors import ICLMError
from iclm.evaluation.evaluate_run import evaluate_run, evaluation_source
from iclm.evaluation.runs import load_run
from iclm.recipe import load_recipe
from iclm.studies.quickstart import COLUMNS, quickstart, quickstart_recipe
from iclm.studies.quickstart import test_examples as problems_of  # pytest would take it for a test

MODULES = [
    ("iclm", "mixture"),
    ("iclm", "invariant"),
    ("iclm", "domain_0"),
    ("iclm", "domain_1"),
    ("iclm", "oracle"),
    ("lora", "mixture"),
    ("base", "mixture"),
]


@pytest.fixture(scope="module")
def overrides(tiny_llama_folder):
    """What makes the quickstart small enough for a test."""
    small = ["model.lora_rank=2", "model.router_dim=8", "model.mi_projection=8", "model.mi_queue=32", "dtype=float32"]
    return [f"base={tiny_llama_folder}", "data.train.0.problems=2", "data.train.1.problems=2", *small]


@pytest.fixture(scope="module")
def finished(overrides, tmp_path_factory):
    """Folder, summary, what was said, and the progress that was made."""
    out = tmp_path_factory.mktemp("runs") / "quickstart"
    said, done = [], {}

    def progress(title, total):
        done[title] = [0, total]

        def tick(count):
            done[title][0] += count

        return tick

    summary = quickstart(out, overrides=overrides, test_problems=2, say=said.append, progress=progress)
    return out, summary, said, done


def test_every_module_is_measured_on_every_column(finished):
    summary = finished[1]
    assert summary["columns"] == [column.name for column in COLUMNS]
    assert {"IID symbolic", "IID text", "Sys symbolic", "Sys text"} <= set(summary["columns"])
    found = {(row["method"], row["module"], f"{row['regime']} {row['format']}") for row in summary["rows"]}
    assert found == {(*module, column) for module in MODULES for column in summary["columns"]}
    assert len(summary["rows"]) == len(found)


def test_the_lines_on_disk_are_the_rows(finished):
    out, summary, _, _ = finished
    lines = [json.loads(line) for line in (out / "quickstart.jsonl").read_text().splitlines()]
    assert lines == summary["rows"]
    needed = {"method", "module", "regime", "format", "correct", "n", "value", "low", "high"}
    for line in lines:
        assert needed <= line.keys()
        assert line["n"] == 8 and line["value"] == line["correct"] / 8 and line["low"] <= line["value"] <= line["high"]
    assert json.loads((out / "quickstart.json").read_text()) == summary


def test_the_table_shows_every_row_and_column(finished):
    import io

    from rich.console import Console

    from iclm.report.tables import quickstart_table

    console = Console(file=io.StringIO(), width=200)
    console.print(quickstart_table(finished[1]))
    text = console.file.getvalue()
    lines = [line for line in text.splitlines() if line.count("│") > 2]
    assert len(lines) == len(MODULES) + 1, "and the majority answer"
    assert "…" not in text


def test_both_methods_were_trained_on_the_same_examples(finished):
    out, summary, _, _ = finished
    one, two = load_recipe(out / "recipe.yaml"), load_recipe(out / "lora" / "recipe.yaml")
    assert (one.method, two.method) == ("iclm", "lora")
    assert (one.data, one.seed, one.base) == (two.data, two.seed, two.base)
    schedules = [recipe.training.model_dump() for recipe in (one, two)]
    assert schedules[0] == schedules[1]
    assert summary["iclm"]["examples_seen"] == summary["lora"]["examples_seen"] == 16
    assert summary["iclm"]["domains"] == ["symbolic", "text"]


def test_routing_and_dependence_are_reported_over_all_columns(finished):
    summary = finished[1]
    assert summary["routing"]["n"] == 8 * len(COLUMNS)
    assert set(summary["dependence"]) == {"0", "1"}
    json.dumps(summary, allow_nan=False)


def test_the_stages_are_announced_and_the_progress_adds_up(finished):
    _, _, said, done = finished
    assert len(said) == 4
    total = 8 * len(COLUMNS)
    assert done == {f"evaluating {method}": [total, total] for method in ("iclm", "lora", "base")}


@pytest.mark.parametrize("folder", [".", "lora"])
def test_what_it_leaves_is_usable_by_evaluate_and_gives_the_same_figures(finished, tmp_path, folder):
    from iclm.data.evals import write_evals

    out, summary, _, _ = finished
    column = COLUMNS[0]
    path = tmp_path / f"{column.format}.jsonl"
    write_evals(path, problems_of(column, 2, summary["objects"]), extras=True)
    run = load_run(out / folder, dtype="float32")
    (row,) = evaluate_run(run, [evaluation_source(str(path), run)])["data"]
    (found,) = row["modules"]
    method = "lora" if folder == "lora" else "iclm"
    (expected,) = [
        r["correct"]
        for r in summary["rows"]
        if (r["method"], r["module"], r["regime"], r["format"]) == (method, "mixture", column.regime, column.format)
    ]
    assert found["correct"] == expected


def test_test_problems_are_none_of_the_training_problems():
    recipe = quickstart_recipe()
    train = load_prompts(recipe.data.train)
    for column in COLUMNS:
        assert not {e.prompt for e in problems_of(column, 25, recipe.data.train[0].objects)} & train


def load_prompts(sources):
    from iclm.data.loading import read_sources

    return {example.prompt for example in read_sources(sources)}


def test_an_existing_folder_is_refused_and_not_touched(finished, overrides):
    out = finished[0]
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ICLMError, match="--overwrite"):
        quickstart(out, overrides=overrides, test_problems=2)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_quickstart_that_cannot_begin_leaves_no_folder(tmp_path):
    with pytest.raises(ICLMError, match="/nowhere/at/all"):
        quickstart(tmp_path / "run", overrides=["base=/nowhere/at/all"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "override",
    [
        "method=lora",
        "model.num_domains=1",
        "data.train.1.domain=prose",
        "data.train=[{acre: IID, problems: 2, format: text}]",
    ],
)
def test_an_override_that_the_comparison_cannot_use_is_refused_before_the_training(
    overrides, tmp_path, monkeypatch, override
):
    from iclm.training.trainer import ICLMTrainer

    monkeypatch.setattr(ICLMTrainer, "train", lambda *args, **kwargs: pytest.fail("the training began"))
    with pytest.raises(ICLMError):
        quickstart(tmp_path / "run", overrides=[*overrides, override], test_problems=2)


def test_the_shipped_recipe_takes_overrides():
    recipe = quickstart_recipe(["training.epochs=3", "data.train.0.problems=5"])
    assert (recipe.training.epochs, recipe.data.train[0].problems) == (3, 5)
    assert [source.format for source in recipe.data.train] == ["symbolic", "text"]
