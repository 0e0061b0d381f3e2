"""The command line: results on stdout, progress on stderr, exit code 2 and one line for bad input, 1 for our own faults."""

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
import yaml

from iclm import cli
from iclm.version import __version__

MODEL = {"lora_rank": 2, "router_dim": 8, "mi_projection": 8, "mi_queue": 32}


@dataclass
class Result:
    """What a command line left behind."""

    code: int
    out: str
    err: str

    def refused(self, progress=False):
        """The one line of an error, of which nothing is on stdout; with `progress`, lines on that may come before."""
        assert self.code == 2, self.err or self.out
        assert self.out == ""
        *before, line = self.err.splitlines()
        assert line.startswith("error: ") and (progress or not before), self.err
        assert "Traceback" not in self.err
        return line

    @property
    def json(self):
        assert self.code == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def iclm(monkeypatch, capsys):
    """Run the command line in this process; a fault of ours comes out as the exception that it is."""

    def run(*arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", ["iclm", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
        return Result(code, *capsys.readouterr())

    return run


def process(*arguments, cwd, stdin="", code="from iclm.cli import main; main()"):
    """Run the command line in a process of its own."""
    env = {
        **os.environ,
        "PYTHONPATH": str(Path(cli.__file__).parents[1]),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    found = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env=env,
        input=stdin,
        capture_output=True,
        text=True,
    )
    return Result(found.returncode, found.stdout, found.stderr)


def tree(folder):
    """Every file and folder below, with the content of files."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_llama_folder):
    """A folder with a recipe on a tiny base, problems, their renderings, and a run trained on them; not to be changed."""
    from iclm.data.commands import generate_acre, render_file
    from iclm.recipe import load_recipe
    from iclm.training.run import train

    folder = tmp_path_factory.mktemp("place")
    for split in ("train", "val"):
        generate_acre("IID", split, 2, 0, folder / f"IID_{split}.json")
        for form in ("symbolic", "text"):
            render_file(
                folder / f"IID_{split}.json", form, "official", folder / f"IID_{split}_{form}.jsonl", extras=True
            )
    shutil.copy(folder / "IID_val_text.jsonl", folder / "mystery.jsonl")
    recipe = {
        "base": tiny_llama_folder,
        "dtype": "float32",
        "model": MODEL,
        "data": {"train": [{"file": f"IID_train_{form}.jsonl", "domain": form} for form in ("symbolic", "text")]},
        "training": {"batch_size": 8, "logging_steps": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train(load_recipe(folder / "recipe.yaml"), folder / "run", progress_bar=False)
    return folder


@pytest.fixture
def workplace(place, tmp_path, monkeypatch):
    """A copy of that folder to work in."""
    copy = shutil.copytree(place, tmp_path / "work")
    monkeypatch.chdir(copy)
    return copy


def commands(command=None, path=()):
    """Every command with its path of names."""
    command = typer.main.get_command(cli.app) if command is None else command
    if not hasattr(command, "commands"):
        return [path]
    return [found for name, child in command.commands.items() for found in commands(child, (*path, name))]


# -- all commands in turn, mostly in processes of their own ---------------------------------------------------------------------------


def test_all_commands_lead_from_problems_to_an_answer(iclm, tmp_path, monkeypatch, tiny_llama_folder):
    made = process("data", "acre", "--regime", "IID", "--problems", 3, "--out", "IID_train.json", cwd=tmp_path)
    assert (made.code, made.err) == (0, "") and "12 queries" in made.out and made.out.endswith(" IID_train.json\n")
    monkeypatch.chdir(tmp_path)
    for form in ("symbolic", "text"):
        made = iclm("data", "render", "IID_train.json", "--format", form, "--out", f"{form}.jsonl")
        assert (made.code, made.err) == (0, "") and "12 queries" in made.out and made.out.endswith(f" {form}.jsonl\n")
    assert iclm("data", "solve", "IID_train.json").out == "agreement 1.0000 (12/12)\n"

    recipe = {
        "base": tiny_llama_folder,
        "model": MODEL,
        "data": {"train": [{"file": "symbolic.jsonl"}, {"file": "text.jsonl"}]},
        "training": {"logging_steps": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    trained = process("train", "recipe.yaml", "training.batch_size=8", "--out", "run", "--json", cwd=tmp_path)
    assert trained.code == 0, trained.err
    assert trained.json["domains"] == ["symbolic", "text"], "nothing but one JSON object is on stdout"
    assert trained.json["examples"] == 24

    data = ("--data", "symbolic.jsonl", "--data", "text.jsonl")
    report = process("evaluate", "run", *data, "--module", "all", "--json", cwd=tmp_path)
    assert [row["domain"] for row in report.json["data"]] == ["symbolic", "text"]
    assert [found["module"] for found in report.json["data"][0]["modules"]] == [
        "mixture",
        "invariant",
        "domain_0",
        "domain_1",
    ]
    answer = process("generate", "run", "--prompt", "-", cwd=tmp_path, stdin="[3, 7] -> ")
    assert answer.code == 0 and answer.out
    assert [line for line in answer.err.splitlines() if line.startswith("module: invariant + domain_")]


def test_a_fault_of_ours_is_a_traceback_with_exit_code_1(tmp_path):
    code = (
        "import iclm.data.commands as commands\n"
        "def broken(file): raise RuntimeError('a fault of ours')\n"
        "commands.solve_file = broken\n"
        "from iclm.cli import main; main()"
    )
    found = process("data", "solve", "x.json", cwd=tmp_path, code=code)
    assert (found.code, found.out) == (1, "")
    assert "Traceback" in found.err and found.err.rstrip().endswith("RuntimeError: a fault of ours")


# -- what every command has in common ----------------------------------------------------------------------------------


def typed(path):
    """The words of a command as they are typed: `iclm modules` takes its run before the command."""
    return [path[0], "runs/acre", *path[1:]] if path[0] == "modules" else list(path)


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_a_command_has_help_with_an_example_of_itself(iclm, path):
    found = iclm(*path, "--help")
    assert found.code == 0
    words = " ".join(found.out.split())
    assert f"Example: iclm {' '.join(typed(path))} " in f"{words} "
    assert iclm(*typed(path), "--help").out.split()[-20:] == found.out.split()[-20:]


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_the_example_in_the_help_of_a_command_can_be_typed(path):
    import shlex

    command = typer.main.get_command(cli.app)
    for name in path:
        command = command.commands[name]
    words = shlex.split(" ".join(command.help.split()).partition("Example: iclm ")[2])
    length = len(typed(path))
    assert words[:length] == typed(path)
    command.make_context(path[-1], words[length:])


def test_the_version_is_printed(iclm):
    assert iclm("--version") == Result(0, f"iclm {__version__}\n", "")


def test_the_package_runs_as_a_module_too():
    found = subprocess.run([sys.executable, "-m", "iclm", "--version"], capture_output=True, text=True, check=True)
    assert found.stdout == f"iclm {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("data",),
        ("train",),
        ("train", "recipe.yaml"),
        ("evaluate", "run"),
        ("generate", "run", "--prompt", "x", "--max-new-tokens", "many"),
        ("generate", "run", "--prompt", "x", "--max-new-tokens", "0"),
        ("quickstart", "--test-problems", "0"),
        ("diagnose",),
        ("diagnose", "run", "--limit", "0"),
        ("modules",),
        ("modules", "run"),
        ("modules", "run", "rename", "domain_0"),
        ("estimators", "--repetitions", "0"),
        ("train", "recipe.yaml", "--out", "x", "--fast"),
    ],
    ids=" ".join,
)
def test_a_command_line_that_cannot_be_read_is_exit_code_2(iclm, arguments):
    assert iclm(*arguments).code == 2


def test_a_number_of_new_tokens_needs_generation(iclm, workplace):
    asked = ("evaluate", "run", "--data", "mystery.jsonl=text", "--max-new-tokens", 3)
    assert "--max-new-tokens is for --generate" in iclm(*asked).refused()


# -- results -----------------------------------------------------------------------------------------------------------


def test_questions_that_come_again_are_said_to(iclm, tmp_path):
    made = iclm("data", "corr2cause", "--variables", 2, "--problems", 100, "--out", tmp_path / "a.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    different = len({json.dumps(row["input"]) for row in rows})
    assert (
        made.out == f"100 problems, of which {different} differ, written to {tmp_path / 'a.jsonl'}\n"
        and different < 100
    )
    once = iclm("data", "corr2cause", "--variables", 3, "--problems", 20, "--out", tmp_path / "b.jsonl")
    assert once.out == f"20 problems written to {tmp_path / 'b.jsonl'}\n"


def test_training_prints_its_result_alone_on_stdout(iclm, workplace):
    found = iclm("train", "recipe.yaml", "--out", "other")
    assert found.code == 0
    (line,) = found.out.splitlines()
    assert line.startswith("16 examples in ") and line.endswith("run folder other")


def test_a_diverged_training_is_no_fault_of_the_command_line(iclm, workplace):
    diverge = ("training.learning_rate=1e30", "training.max_grad_norm=0", "training.warmup=0", "training.epochs=3")
    found = iclm("train", "recipe.yaml", *diverge, "--out", "other", "--json")
    assert found.code == 1 and json.loads(found.out)["diverged"]
    assert found.err.splitlines()[-1].startswith(
        "error: the training has diverged: weights of other are not finite; train anew"
    )
    record = (workplace / "other" / "run.json").read_text()
    assert json.loads(record, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["diverged"]


def test_training_with_validation_reports_it(iclm, workplace):
    validation = "data.validation=[{file: IID_val_text.jsonl, domain: text}]"
    found = iclm("train", "recipe.yaml", validation, "method=lora", "--out", "other", "--json").json
    assert found["method"] == "lora"
    assert [row["domain"] for row in found["validation"]["data"]] == ["text"]


def test_without_files_a_run_is_evaluated_on_the_validation_sources_of_its_recipe(iclm, workplace):
    validation = "data.validation=[{file: IID_val_text.jsonl, domain: text, limit: 8}]"
    trained = iclm("train", "recipe.yaml", validation, "method=lora", "--out", "other", "--json").json["validation"]
    assert iclm("evaluate", "other", "--module", "all", "--json").json["data"] == trained["data"]
    asked = [iclm("evaluate", "other", "--limit", limit, "--json").json["data"][0]["n"] for limit in (3, 100)]
    assert asked == [3, 8], "never more than the recipe asks"
    assert (
        "--format is for files; name them with --data FILE" in iclm("evaluate", "other", "--format", "text").refused()
    )
    assert "--ask panel" in iclm("evaluate", "other", "--ask", "panel").refused()


def test_an_evaluation_is_a_table_with_every_module_and_the_routing(iclm, workplace):
    found = iclm(
        "evaluate", "run", "--data", "IID_val_text.jsonl", "--data", "IID_val_symbolic.jsonl", "--module", "all"
    )
    assert found.code == 0
    assert all(name in found.out for name in ("mixture", "invariant", "domain_0", "domain_1", "majority answer"))
    assert "routing accuracy" in found.out and "perplexity" in found.out


def test_a_table_that_does_not_go_to_a_terminal_is_not_cut(iclm, workplace):
    name = f"{'a-very-long-name-' * 12}text.jsonl"
    shutil.copy("IID_val_text.jsonl", name)
    found = iclm("evaluate", "run", "--data", name)
    assert name in found.out and "…" not in found.out


def test_an_evaluation_with_oracle_routing(iclm, workplace):
    found = iclm("evaluate", "run", "--data", "IID_val_text.jsonl", "--routing", "oracle", "--json").json
    assert [result["module"] for result in found["data"][0]["modules"]] == ["oracle"]


def test_an_evaluation_by_greedy_decoding(iclm, workplace):
    arguments = ("--data", "mystery.jsonl=text", "--generate", "--max-new-tokens", "3", "--limit", "2", "--json")
    found = iclm("evaluate", "run", *arguments).json
    assert found["answers"] == "greedy decoding"
    (result,) = found["data"][0]["modules"]
    assert result["n"] == result["partial"]["n"] == 2


def test_the_loss_of_answers_is_a_table_with_the_routing(iclm, workplace):
    found = iclm("evaluate", "run", "--data", "IID_val_text.jsonl", "--loss", "--module", "all")
    assert found.code == 0 and not found.err
    assert all(
        word in found.out for word in ("nats a token", "perplexity", "invariant", "domain_1 (text)", "routing accuracy")
    )


def test_a_domain_that_the_run_does_not_know_is_said_to_be_unknown(iclm, workplace):
    for command in ("evaluate", "diagnose"):
        found = iclm(
            command, "run", "--data", "IID_val_text.jsonl=Text", "--data", "IID_val_symbolic.jsonl", "--limit", 4
        )
        assert (
            found.code == 0 and "was not trained on 'Text', but on symbolic, text; say --data FILE=DOMAIN" in found.err
        )


def test_a_plan_that_cannot_be_made_is_one_line(iclm, workplace):
    assert "k is 0" in iclm("plan", "--base", "Qwen3-0.6B", "--k", 0).refused()


def test_an_evaluation_of_problems_as_they_lie(iclm, workplace):
    found = iclm(
        "evaluate", "run", "--data", "IID_val.json", "--format", "symbolic", "--strict", "--limit", 4, "--json"
    )
    assert [(row["domain"], row["n"]) for row in found.json["data"]] == [("symbolic", 4)]


def test_an_answer_is_on_stdout_and_the_module_on_stderr(iclm, workplace):
    found = iclm("generate", "run", "--prompt", "[3, 7] -> ", "--domain", "text", "--max-new-tokens", 4)
    assert (found.code, found.err) == (0, "module: invariant + domain_1 (the module of domain text)\n")
    values = iclm("generate", "run", "--prompt", "[3, 7] -> ", "--domain", "text", "--max-new-tokens", 4, "--json").json
    assert values["answer"] == found.out.removesuffix("\n")
    assert values["domain_modules"] == ["domain_1"]


def test_a_prompt_from_standard_input_is_answered_like_one_on_the_command_line(iclm, workplace):
    one = iclm("generate", "run", "--prompt", "[3, 7] -> ")
    assert iclm("generate", "run", "--prompt", "-", stdin="[3, 7] -> ") == one
    assert iclm("generate", "run", "--prompt", "-", stdin="[3, 7] -> \n") == one, "echo ends in a line break"


DATA = ("--data", "IID_val_text.jsonl", "--data", "IID_val_symbolic.jsonl")


def test_a_diagnosis_is_tables_on_stdout_and_a_folder_with_plots(iclm, workplace):
    found = iclm("diagnose", "run", *DATA, "--ood", "mystery.jsonl=text", "--limit", 6)
    assert found.code == 0
    for words in ("routing of run", "forgetting of run", "base → mixture, iid", "not measured"):
        assert words in found.out
    names = sorted(path.name for path in (workplace / "run" / "diagnosis").iterdir())
    assert names == ["accuracy.png", "diagnosis.json", "features.png", "routing.png", "swap.png", "training.png"]
    assert found.err.startswith("written to run/diagnosis: diagnosis.json, ")


def test_a_diagnosis_as_json_is_the_one_that_is_kept(iclm, workplace):
    arguments = ("diagnose", "run", *DATA, "--before", "run", "--limit", 4, "--out", "mine", "--json")
    found = iclm(*arguments).json
    assert found == json.loads(Path("mine/diagnosis.json").read_text())
    assert [(row["domains"], row["n"]) for row in found["data"]["iid"]] == [({"text": 4}, 4), ({"symbolic": 4}, 4)]
    assert found["forgetting"]["earlier"]["measured"] and found["training"]["curves"]["loss"]["step"]
    assert {"routing", "overfitting"} <= {verdict["failure"] for verdict in found["verdicts"]}
    before = tree(Path("mine"))
    assert "--overwrite" in iclm(*arguments).refused()
    assert tree(Path("mine")) == before
    assert iclm(*arguments, "--overwrite").code == 0


def test_a_diagnosis_without_data_takes_the_validation_sources_of_the_recipe(iclm, workplace):
    assert "--data" in iclm("diagnose", "run").refused()
    recipe = yaml.safe_load(Path("run/recipe.yaml").read_text())
    sources = [{"acre": regime, "split": "val", "problems": 1, "format": "text"} for regime in ("IID", "Sys")]
    recipe["data"]["validation"] = sources
    Path("run/recipe.yaml").write_text(yaml.safe_dump(recipe))
    data = iclm("diagnose", "run", "--ood", "mystery.jsonl=text", "--json").json["data"]
    assert [row["source"] for row in data["iid"]] == ["acre-IID-val-text"]
    assert [row["source"] for row in data["ood"]] == ["acre-Sys-val-text", "mystery.jsonl"]


def test_the_page_of_a_run_is_one_file_whose_name_is_on_stdout(iclm, workplace):
    assert iclm("diagnose", "run", *DATA, "--limit", 6).code == 0
    assert iclm("report", "run") == Result(0, "run/report.html\n", "")
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and "routing accuracy" in page and page.count("data:image/png") == 5
    before = tree(workplace)
    assert "--overwrite" in iclm("report", "run").refused()
    assert "run.json" in iclm("report", ".", "--out", "x.html").refused()
    assert "diagnosis.json" in iclm("report", "run", "--diagnosis", ".", "--out", "x.html").refused()
    assert "is a folder" in iclm("report", "run", "--out", "run").refused()
    assert tree(workplace) == before
    assert iclm("report", "run", "--out", "new/page.html", "--json").json == {"report": "new/page.html"}
    assert Path("new/page.html").read_text(encoding="utf-8") == page


def test_the_estimators_are_tried_as_often_as_asked(iclm, workplace, monkeypatch):
    from iclm.studies import estimators

    asked = {}
    row = {"estimator": "ksg", "kind": "measure", "distribution": "gaussian", "dims": 1, "rho": 0.5, "n": 200}
    row |= {"truth": 0.25, "mean": 0.24, "sd": 0.05, "rejected": 1.0, "repetitions": 3, "seconds": 0.1}

    def run(out, **options):
        asked.update(options, out=out)
        return [row]

    monkeypatch.setattr(estimators, "run", run)
    arguments = ("estimators", "--out", "rows.jsonl", "--repetitions", 3, "--seed", 5, "--overwrite")
    assert iclm(*arguments, "--json").json == [row]
    asked.pop("progress")
    assert asked == {"out": Path("rows.jsonl"), "repetitions": 3, "seed": 5, "overwrite": True}
    assert "0.24" in iclm(*arguments).out


def test_a_wrong_label_is_reported_by_the_solver(iclm, workplace):
    problems = json.loads(Path("IID_val.json").read_text())
    query = problems[0][6]
    query["label"] = (query["label"] + 1) % 3
    Path("wrong.json").write_text(json.dumps(problems))
    found = iclm("data", "solve", "wrong.json")
    assert found.code == 1 and "(7/8)" in found.out and "problem 0 query 0" in found.err
    assert iclm("data", "solve", "wrong.json", "--json").code == 1


# -- bad input ---------------------------------------------------------------------------------------------------------

BROKEN = {
    "empty.jsonl": b"",
    "cut.jsonl": b'{"input": [{"role": "user", "con',
    "fieldless.jsonl": b'{"input": [{"role": "user", "content": "x"}], "choice_strings": ["a"]}\n',
    "outside.jsonl": b'{"input": [{"role": "user", "content": "x"}], "choice_strings": ["a"], "ideal": "b"}\n',
    "binary.jsonl": b"\xff\xfe\x00\x01",
    "cut.json": b"[[[1, 2",
    "hollow.json": b"[]",
}


BAD_TRAININGS = [
    ("model.num_domain=3", "did you mean num_domains?"),
    ("training.epochs=two", "training.epochs"),
    ("training.epochs", "section.field=value"),
    ("data.train.4.file=x", "0 to 1"),
    ("model.num_domains=0", "num_domains is 0"),
    ("model.num_domains=50", "50 codes"),
    ("model.router=fixed:7", "fixed:7"),
    ("model.router=best", "best"),
    ("model.split_layer=9", "split_layer is 9"),
    ("model.mi_projection=-1", "mi_projection"),
    ("model={router: oracle, num_domains: 1}", "num_domains is 1"),
    ("training.report_to=[nonsense]", "nonsense"),
    ("seed=-1", "seed"),
    ("base=/nowhere/at/all", "/nowhere/at/all"),
    ("data.max_tokens=20", "the limit is 20"),
    ("data.train.0.file=nowhere.jsonl", "nowhere.jsonl"),
    ("data.train.0.file=IID_train.json", "symbolic or text"),
    ("data.validation=[{file: nowhere.jsonl}]", "nowhere.jsonl"),
    *((f"data.train.0={{file: {name}, format: text}}", name) for name in BROKEN),
]


@pytest.fixture
def broken_files(workplace):
    for name, content in BROKEN.items():
        (workplace / name).write_bytes(content)
    row = {"input": [{"role": "user", "content": "zq " * 2000}], "choice_strings": ["a", "b"], "ideal": "b"}
    (workplace / "long.jsonl").write_text(json.dumps(row) + "\n")
    return workplace


@pytest.mark.parametrize(("override", "words"), BAD_TRAININGS, ids=[override for override, _ in BAD_TRAININGS])
def test_a_training_that_cannot_begin_is_one_line_and_leaves_nothing(iclm, broken_files, override, words):
    before = tree(broken_files)
    assert words in iclm("train", "recipe.yaml", override, "--out", "other").refused()
    assert tree(broken_files) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [("nowhere.yaml", None), ("empty.yaml", ""), ("list.yaml", "- 1"), ("cut.yaml", "a: [1"), (".", None)],
)
def test_a_recipe_that_cannot_be_read_is_named(iclm, workplace, name, content):
    if content is not None:
        (workplace / name).write_text(content)
    before = tree(workplace)
    assert f"error: {name}" in iclm("train", name, "--out", "other").refused()
    assert tree(workplace) == before


@pytest.mark.parametrize(
    ("out", "options"),
    [
        ("run", ()),
        ("run", ("--resume",)),
        ("mine", ()),
        ("mine", ("--overwrite",)),
        ("mine", ("--resume",)),
        ("recipe.yaml", ()),
        ("recipe.yaml", ("--overwrite",)),
        ("recipe.yaml/run", ()),
    ],
    ids=str,
)
def test_an_existing_out_is_refused_and_not_touched(iclm, workplace, out, options):
    (workplace / "mine").mkdir()
    (workplace / "mine" / "config.json").write_text("mine")
    before = tree(workplace)
    assert out.partition("/")[0] in iclm("train", "recipe.yaml", "--out", out, *options).refused()
    assert tree(workplace) == before


def test_overwrite_with_a_recipe_that_cannot_begin_keeps_the_old_run(iclm, workplace):
    before = tree(workplace)
    iclm("train", "recipe.yaml", "base=/nowhere/at/all", "--out", "run", "--overwrite").refused()
    assert tree(workplace) == before


def test_a_resume_without_a_checkpoint_says_that_it_starts_over(iclm, workplace):
    options = ("--out", "other", "--resume")
    assert "exclude each other" in iclm("train", "recipe.yaml", *options, "--overwrite").refused()
    found = iclm("train", "recipe.yaml", "method=lora", *options)
    said = [line for line in found.err.splitlines() if line.startswith("no checkpoint")]
    assert found.code == 0 and said == [
        "no checkpoint in other: starts at step 0; set training.save_steps to have some"
    ]


def test_overwrite_replaces_a_run(iclm, workplace):
    assert iclm("train", "recipe.yaml", "method=lora", "--out", "run", "--overwrite").code == 0
    assert json.loads((workplace / "run" / "run.json").read_text())["method"] == "lora"


BAD_EVALUATIONS = [
    (("--data", "nowhere.jsonl"), "nowhere.jsonl"),
    (("--data", "."), "."),
    (("--data", "long.jsonl"), "4096"),
    (("--data", "IID_val.json"), "symbolic or text"),
    (("--data", "IID_val.json", "--format", "xml"), "xml"),
    (("--data", "IID_val_text.jsonl", "--module", "domain_7"), "domain_7"),
    (("--data", "IID_val_text.jsonl", "--routing", "best"), "best"),
    (("--data", "mystery.jsonl", "--routing", "oracle"), "mystery"),
    (("--data", "mystery.jsonl", "--routing", "oracle", "--generate"), "mystery"),
    (("--data", "IID_val_text.jsonl=weather", "--routing", "oracle"), "weather"),
    (("--data", "IID_val_text.jsonl", "--loss", "--generate"), "--loss"),
    (("--data", "IID_val_text.jsonl", "--loss", "--score", "mean"), "--loss"),
    (("--data", "IID_val_text.jsonl", "--strict"), "--strict"),
    (("--data", "IID_val_text.jsonl", "--base", "/nowhere/at/all"), "/nowhere/at/all"),
    (("--data", "IID_val_text.jsonl", "--quantization", "int3"), "use none or nf4"),
    *((("--data", name, "--format", "text"), name) for name in BROKEN),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_EVALUATIONS, ids=[" ".join(a) for a, _ in BAD_EVALUATIONS])
def test_an_evaluation_that_cannot_be_made_is_one_line(iclm, broken_files, arguments, words):
    before = tree(broken_files)
    assert words in iclm("evaluate", "run", *arguments).refused()
    assert tree(broken_files) == before


BAD_DIAGNOSES = [
    ((), "--data"),
    (("--data", "nowhere.jsonl"), "nowhere.jsonl"),
    (("--data", "IID_val.json"), "symbolic or text"),
    ((*DATA, "--ood", "empty.jsonl"), "empty.jsonl"),
    ((*DATA, "--before", "nowhere"), "nowhere"),
    ((*DATA, "--out", "run"), "not a diagnosis"),
    ((*DATA, "--out", "run", "--overwrite"), "not a diagnosis"),
    ((*DATA, "--out", "recipe.yaml"), "recipe.yaml is a file"),
    ((*DATA, "--base", "/nowhere/at/all"), "/nowhere/at/all"),
    ((*DATA, "--quantization", "int3"), "use none or nf4"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_DIAGNOSES, ids=[" ".join(a) for a, _ in BAD_DIAGNOSES])
def test_a_diagnosis_that_cannot_be_made_is_one_line_and_leaves_nothing(iclm, broken_files, arguments, words):
    before = tree(broken_files)
    assert words in iclm("diagnose", "run", *arguments).refused()
    assert tree(broken_files) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--prompt", ""), "empty"),
        (("--prompt", "-"), "empty"),
        (("--prompt", "zq " * 2000), "4096"),
        (("--prompt", "x", "--module", "best"), "best"),
        (("--prompt", "x", "--domain", "weather"), "weather"),
    ],
    ids=["empty", "empty input", "too long", "module", "domain"],
)
def test_an_answer_that_cannot_be_given_is_one_line(iclm, workplace, arguments, words):
    assert words in iclm("generate", "run", *arguments).refused()


@pytest.mark.parametrize("name", ["run.json", "config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"{"], ids=["missing", "damaged"])
def test_a_run_that_cannot_be_loaded_is_one_line(iclm, workplace, name, content):
    path = workplace / "run" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert name in iclm("generate", "run", "--prompt", "x").refused()


@pytest.mark.parametrize("name", ["nowhere", "recipe.yaml", "."])
def test_a_folder_that_is_no_run_is_named(iclm, workplace, name):
    assert f"error: {name} " in iclm("generate", name, "--prompt", "x").refused()


def test_a_prompt_that_is_no_text_is_refused(iclm, workplace):
    assert "UTF-8" in iclm("generate", "run", "--prompt", b"\xff".decode(errors="surrogateescape")).refused()


def test_a_base_whose_weights_changed_since_the_training_is_refused(iclm, workplace, tiny_llama_folder):
    from safetensors.torch import load_file, save_file

    base = Path(shutil.copytree(tiny_llama_folder, workplace / "base"))
    assert iclm("generate", "run", "--prompt", "x", "--base", base).code == 0
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    assert "fingerprint" in iclm("generate", "run", "--prompt", "x", "--base", base).refused()


@pytest.mark.parametrize(
    "arguments",
    [
        ("data", "acre", "--regime", "IDD", "--out", "new.json"),
        ("data", "acre", "--regime", "IID", "--problems", "0", "--out", "new.json"),
        ("data", "acre", "--regime", "IID", "--problems", "1", "--out", "IID_val.json"),
        ("data", "render", "nowhere.json", "--format", "text", "--out", "new.jsonl"),
        ("data", "render", "IID_val.json", "--format", "text", "--open", "--out", "new.jsonl"),
        ("data", "render", "IID_val.json", "--format", "text", "--out", "IID_val.json", "--overwrite"),
        ("data", "audit", "IID_val.json", "--format", "foo"),
        ("train", "recipe.yaml", "training.weight_decay=inf", "--out", "new"),
        ("data", "render", "IID_val.json", "--format", "xml", "--out", "new.jsonl"),
        ("data", "render", "IID_val.json", "--format", "text", "--out", "IID_val_text.jsonl"),
        ("data", "solve", "nowhere.json"),
        ("data", "solve", "cut.json"),
        ("data", "solve", "empty.jsonl"),
        ("quickstart", "base=/nowhere/at/all", "--out", "new"),
        ("quickstart", "training.epoch=1", "--out", "new"),
        ("estimators", "--out", "IID_val.json"),
        ("quickstart", "--out", "run"),
        ("quickstart", "--out", "run", "base=/nowhere/at/all", "--overwrite"),
    ],
    ids=" ".join,
)
def test_other_commands_refuse_bad_input_in_one_line_and_leave_everything_as_it_was(iclm, broken_files, arguments):
    before = tree(broken_files)
    iclm(*arguments).refused(progress=True)
    assert tree(broken_files) == before


# -- a command line that cannot be -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train"], "Missing argument 'recipe'; see iclm train --help"),
        (["train", "x.yaml", "--fast"], "No such option: --fast; see iclm train --help"),
        (["trainn"], "No such command 'trainn'"),
        (["modules", "run"], "Missing command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_usage_error_is_one_line_too(iclm, words, said):
    assert said in iclm(*words).refused()


def test_a_group_without_a_command_shows_its_help(iclm):
    found = iclm("data")
    assert found.code == 2 and "Commands" in found.err and "acre" in found.err
