"""`iclm bench` on the command line: figures on stdout, the file beside them, bad input in one line."""

import json
import sys

import pytest

from iclm import cli

FIGURE = {"name", "k", "ratio", "low", "high", "ours", "theirs", "unit"}


@pytest.fixture
def bench(monkeypatch, capsys, tmp_path, tiny_llama_folder):
    """Run `iclm bench` in an empty folder: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["iclm", "bench", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        found = capsys.readouterr()
        return code, found.out, found.err

    run.small = ("--model", tiny_llama_folder, "--k", "2", "--dtype", "float32", "--rounds", "5")
    return run


def test_steps_are_a_list_of_figures_and_a_file_that_says_how(bench, tmp_path):
    code, out, _ = bench("step", *bench.small, "--batch", 4, "--tokens", 8, "--json", "--out", "step.json")
    assert code == 0
    figures = json.loads(out)
    assert all(set(figure) == FIGURE for figure in figures)
    assert [figure["name"] for figure in figures] == [
        *("step_half", "step_full", "step_half_vs_peft", "step_lora_vs_peft")
    ]
    kept = json.loads((tmp_path / "step.json").read_text())
    assert kept["rows"] == figures and kept["command"].startswith("iclm bench step --model")
    assert kept["workload"]["dtype"] == "float32" and kept["rounds"] == 5
    before = (tmp_path / "step.json").read_bytes()
    code, _, err = bench("step", *bench.small, "--out", "step.json")
    assert code == 2 and "--overwrite" in err
    assert (tmp_path / "step.json").read_bytes() == before


def test_a_file_that_cannot_be_written_is_found_before_anything_is_measured(bench, tmp_path, monkeypatch):
    (tmp_path / "step.json").write_text("{}")
    monkeypatch.setattr("iclm.studies.bench.step.run", lambda *_, **__: pytest.fail("measured"))
    code, _, err = bench("step", *bench.small, "--out", "step.json/step.json")
    assert code == 2 and "step.json is a file" in err and err.count("\n") == 1
    code, _, err = bench("step", *bench.small, "--out", ".", "--overwrite")
    assert code == 2 and "is a folder" in err and err.count("\n") == 1


@pytest.mark.parametrize(("command", "options"), [("generate", ("--tokens", 8)), ("evaluate", ("--problems", 1))])
def test_a_benchmark_prints_its_table(bench, command, options):
    code, out, err = bench(command, *bench.small, *options)
    assert code == 0
    assert "ratio" in out and "goal" in out and "torch" in err


def test_a_benchmark_of_scoring_records_its_problems(bench, tmp_path):
    code, _, err = bench("evaluate", *bench.small, "--problems", 1, "--out", "evaluate.json")
    kept = json.loads((tmp_path / "evaluate.json").read_text())["workload"]
    assert code == 0 and (kept["problems"], kept["questions"]) == (1, 8) and "batch" not in kept
    assert "8 questions of 1 ACRE problems a format" in err


def test_learning_prints_a_line_for_each_contestant(bench, tiny_llama_folder):
    source = "[{{acre: IID, split: {}, problems: 2, format: text}}]"
    code, out, _ = bench(
        "learning",
        f"base={tiny_llama_folder}",
        "dtype=float32",
        f"data.train={source.format('train')}",
        f"data.validation={source.format('val')}",
        *("--splits", "0.5", "--points", "1"),
    )
    assert code == 0
    assert "plain LoRA" in out and "ICLM, split 0.5" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("step", "--k", "two"), "--k is 'two'"),
        (("step", "--k", "0"), "2,6,16"),
        (("step", "--against", "qlora"), "peft-lora"),
        (("memory", "--against", "lora,xlora"), "use lora, peft-lora"),
        (("memory", "--model", "./nowhere"), "nowhere"),
        (("generate", "--rounds", "2"), "at least 5"),
        (("learning", "--splits", "half"), "--splits is 'half'"),
        (("learning", "--splits", "1"), "share of the layers"),
        (("learning", "base=./nowhere", "--out", "."), "is a folder"),
        (("learning", "data.validation=[]"), "data.validation is empty"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_bad_input_is_one_line(bench, tiny_llama_folder, arguments, words):
    if arguments[0] == "generate":
        arguments = (*arguments, "--model", tiny_llama_folder, "--k", "2", "--tokens", "8", "--dtype", "float32")
    code, out, err = bench(*arguments)
    assert code == 2 and out == ""
    assert words in err and err.strip().splitlines()[-1].startswith("error: ")
