"""`iclm study` and `iclm study report` on the command line, from a recipe to tables in a document."""

import json
import sys

import pytest
import yaml

from iclm import cli


@pytest.fixture
def study(monkeypatch, capsys):
    """Run `iclm study ...`: exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["iclm", "study", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_llama_folder):
    """The recipe of a small study: two methods and a rule, one of them tuned."""

    def acre(regime, split, format):
        return {"acre": regime, "split": split, "problems": 2, "format": format}

    values = {
        "base": str(tiny_llama_folder),
        "dtype": "float32",
        "model": {"lora_rank": 2, "router_dim": 4, "mi_projection": 4, "mi_queue": 16},
        "training": {"batch_size": 8, "router_examples": 8},
        "data": {
            "acre": {
                "train": [acre("IID", "train", f) for f in ("symbolic", "text")],
                "validation": [acre("IID", "val", "text")],
                "test": [acre(regime, "test", f) for regime in ("IID", "Sys") for f in ("symbolic", "text")],
            }
        },
        "methods": {
            "lora": {"method": "lora"},
            "iclm": {},
            "rule": {"kind": "strategy", "strategy": "shallow rule"},
        },
        "grid": [{"methods": ["lora", "iclm", "rule"], "seeds": [0]}, {"methods": ["rule"], "seeds": [1]}],
    }
    path = tmp_path_factory.mktemp("recipe") / "study.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_from_a_recipe_to_tables_in_a_document(study, recipe, tmp_path):
    out, results, document = tmp_path / "s", tmp_path / "r", tmp_path / "doc.md"
    code, said, _ = study(recipe, "--out", out, "--plan")
    assert code == 0 and said.splitlines()[-1] == "0 of 4 jobs are done" and said.startswith("left: acre/lora/seed-0")
    assert not out.exists()
    code, said, err = study(recipe, "--out", out, "--only", "seed-0")
    assert (code, said) == (0, "3 of 3 jobs are done\n"), err
    assert "began acre/iclm/seed-0" in err and "done acre/rule/seed-0" in err and "3 of 3 jobs done" in err

    document.write_text(
        "# Mine\n\n<!-- study: acre/accuracy -->\n<!-- /study -->\n\n<!-- study: not-run -->\n<!-- /study -->\n"
    )
    code, said, err = study("report", out, "--out", results, "--write", document, "--resamples", 100)
    assert code == 0, err
    assert "acre/accuracy" in said and said.endswith("not run: acre/rule/seed-1\n") and f"written to {results}" in err
    text = document.read_text()
    assert (
        text.startswith("# Mine\n\n<!-- study: acre/accuracy -->\n| method |") and "not run: acre/rule/seed-1" in text
    )

    rows = [json.loads(line) for line in (results / "results.jsonl").read_text().splitlines()]
    code, said, err = study(recipe, "--out", tmp_path / "t", "--known", results, "--plan")
    assert code == 0 and said == "left: acre/rule/seed-1\n3 of 4 jobs are done\n" and "3 jobs are known" in err
    assert not (tmp_path / "t").exists()
    wanted = {"method", "module", "train_set", "test_set", "split", "format", "strict", "seed", "n", "correct"}
    assert all({*wanted, "job", "device", "seconds"} <= set(row) for row in rows)
    rule = [row for row in rows if row["method"] == "rule"]
    assert {row["module"] for row in rule} == {"strategy"} and {
        row["by_kind"].get("indirect", [0])[0] for row in rule
    } == {0}
    assert str(tmp_path) not in (results / "jobs.jsonl").read_text() + (results / "comparisons.json").read_text()
    assert recipe.parent.name not in (results / "jobs.jsonl").read_text()

    before = {path.name: path.read_bytes() for path in results.iterdir()}
    code, _, err = study("report", results, "--out", results, "--overwrite", "--write", document, "--resamples", 100)
    assert code == 0, err
    assert {path.name: path.read_bytes() for path in results.iterdir()} == before and document.read_text() == text

    code, said, _ = study("report", results, "--resamples", 100, "--json")
    assert code == 0 and json.loads(said)["references"] == {"acre": "lora"}
    refusals = {
        ("report", results, "--out", results): "exists; pass --overwrite",
        ("report", results, "--reference", "x"): "reference is 'x'; methods with a finished job are lora, iclm, rule",
        ("report", results, "--write", recipe): "has no line <!-- study: NAME -->",
        ("report", tmp_path): "holds no study",
        ("report", out, "--out", document): "is a file",
    }
    for arguments, message in refusals.items():
        code, said, err = study(*arguments)
        assert (code, said, len(err.splitlines())) == (2, "", 1) and message in err, err
    document.write_text("<!-- study: acre -->\n<!-- /study -->\n")
    code, said, err = study("report", results, "--out", tmp_path / "new", "--write", document, "--resamples", 100)
    assert code == 2 and "there is no table 'acre' in these results; there are acre/overview, acre/accuracy, " in err
    assert not (tmp_path / "new").exists() and document.read_text() == "<!-- study: acre -->\n<!-- /study -->\n"


def test_a_study_of_which_nothing_is_done_has_no_report(study, tmp_path):
    (tmp_path / "jobs").mkdir()
    code, said, err = study("report", tmp_path)
    assert (code, said) == (2, "") and err == (
        "error: no job of the study is done yet, so there is nothing to report; run it with `iclm study`\n"
    )


def test_a_file_to_write_tables_into_is_looked_at_before_the_bootstrap(study, recipe, tmp_path, monkeypatch):
    from iclm.studies.study import summary

    values = {**yaml.safe_load(recipe.read_text()), "grid": [{"methods": ["rule"], "seeds": [0]}]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
    assert study(tmp_path / "study.yaml", "--out", tmp_path / "s")[0] == 0
    monkeypatch.setattr(summary, "summarise", lambda *given, **options: pytest.fail("the bootstrap was begun"))
    code, said, err = study("report", tmp_path / "s", "--write", tmp_path / "none.md")
    assert (code, said) == (2, "") and "none.md: cannot be read" in err


def test_a_strategy_needs_no_base(study, recipe, tmp_path):
    values = {**yaml.safe_load(recipe.read_text()), "base": str(tmp_path / "no-such-model")}
    values["grid"] = [{"methods": ["rule"], "seeds": [0]}]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
    code, _, err = study(tmp_path / "study.yaml", "--out", tmp_path / "s")
    assert code == 0, err
