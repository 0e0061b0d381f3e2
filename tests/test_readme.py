"""README.md and docs/: every command can be typed, every file the README names is there, every number in it was measured."""

import ast
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "results").glob("*/README.md"))]
OPERATORS = {"|", "||", "&&", ";", "&", ">", ">>", "<", "(", ")"}


def blocks(text, language):
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(block):
    """The commands of a shell block, each a list of words; prompts, comments and NAME=value before a command left out."""
    found, text = [], ""
    for line in block.replace("\\\n", " ").splitlines():
        text += line if text else line.strip().removeprefix("$ ")
        lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            tokens = list(lexer)
        except ValueError:  # a quotation that goes on in the next line
            text += "\n"
            continue
        text, words = "", []
        for word in [*tokens, ";"]:
            if word in OPERATORS:
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words:
                    found.append(words)
                words = []
            else:
                words.append(word)
    assert not text, f"a quotation is not closed: {text}"
    return found


def parse_iclm(words):
    """Parse a command line of iclm without running it; returns the path of the command and its parameters.

    Raises what the command line raises for an unknown command or option, or a missing one.
    """
    import typer

    from iclm.cli import app
    from iclm.cli_shared import RunByDefault

    command, path, rest = typer.main.get_command(app), ["iclm"], list(words[1:])
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        for argument in command.params:
            if argument.param_type_name == "argument":  # a group that takes its run before the command
                rest.pop(0)
        assert rest, f"{' '.join(words)}: a command is missing"
        if isinstance(command, RunByDefault) and rest[0] not in command.commands:
            rest.insert(0, "run")
        assert rest[0] in command.commands, f"{' '.join(words)}: there is no command {rest[0]!r}"
        command = command.commands[rest[0]]
        path.append(rest.pop(0))
    if rest in (["--help"], ["-h"]) and rest[0] in command.get_help_option_names(command.context_class(command)):
        return path, {}
    return path, command.make_context(path[-1], rest).params


def make_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([A-Za-z][\w-]*):(?!=)", makefile, flags=re.MULTILINE))


def result_blocks(text):
    """Path and content of every block of measured numbers."""
    return re.findall(r"<!-- results: (\S+) -->\n(.*?)<!-- /results -->", text, flags=re.DOTALL)


def decimals(text):
    """The numbers with a decimal point in a text."""
    return re.findall(r"(?<![\w.])-?\d*\.\d+(?![\w.]*\w)", text)


def leaves(value):
    """All numbers in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [float(value)] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def read_results(path):
    """All numbers in a JSON or JSONL file, or in all of a folder."""
    if path.is_dir():
        return [number for file in sorted(path.glob("*.json")) for number in read_results(file)]
    text = path.read_text(encoding="utf-8")
    return leaves([json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text))


def unsupported(text, numbers):
    """The decimals of a text that no number rounds to."""
    found = []
    for shown in decimals(text):
        places = len(shown.partition(".")[2])
        if not any(f"{number:.{places}f}" == f"{float(shown):.{places}f}" for number in numbers):
            found.append(shown)
    return found


@pytest.fixture(scope="module")
def readme():
    if not README.exists():
        pytest.skip("README.md is not written yet")
    return README.read_text(encoding="utf-8")


def iclm_commands(text):
    return [words for block in blocks(text, "bash") for words in commands(block) if Path(words[0]).name == "iclm"]


def test_the_readme_shows_commands(readme):
    assert len(iclm_commands(readme)) > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_iclm_command_can_be_typed(page):
    found = iclm_commands(page.read_text(encoding="utf-8"))
    from iclm.recipe import load_recipe

    for words in found:
        path, values = parse_iclm(words)
        if path == ["iclm", "train"] and str(values["recipe"]).startswith("recipes/"):
            load_recipe(ROOT / values["recipe"], values["overrides"] or ())
        if path == ["iclm", "quickstart"] and values["overrides"]:
            from iclm.studies.quickstart import quickstart_recipe

            quickstart_recipe(values["overrides"])


def test_every_make_target_exists(readme):
    for block in blocks(readme, "bash"):
        for words in commands(block):
            if words[0] == "make":
                targets = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
                assert targets <= make_targets(), " ".join(words)


def test_every_recipe_that_is_named_exists(readme):
    for name in set(re.findall(r"\brecipes/[\w./-]+\.ya?ml", readme)):
        assert (ROOT / name).is_file(), name


def test_every_python_block_compiles_and_imports_what_exists(readme):
    for block in blocks(readme, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "iclm":
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.parametrize("page", ["README.md", "results/acre_official/README.md"])
def test_every_number_in_a_block_of_results_is_in_the_file_that_the_block_names(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    found = result_blocks(text)
    assert text.count("<!-- results:") == text.count("<!-- /results -->") == len(found) > 0
    for name, block in found:
        path = (ROOT / name).resolve()
        assert path.is_relative_to(ROOT / "results") and path.exists(), f"{name} is nothing under results/"
        assert decimals(block), f"the block of {name} shows no number"
        assert unsupported(block, read_results(path)) == [], f"not in {name}"


# -- the checks themselves, on a README made for it --------------------------------------------------------------------


def test_commands_are_found_behind_prompts_pipes_variables_and_line_ends():
    block = (
        "$ make test ARGS='-k router'  # fast\necho '[3] -> ' | iclm generate runs/a \\\n  --prompt -\nA=1 iclm data\n"
    )
    assert commands(block) == [
        ["make", "test", "ARGS=-k router"],
        ["echo", "[3] -> "],
        ["iclm", "generate", "runs/a", "--prompt", "-"],
        ["iclm", "data"],
    ]


def test_a_command_may_hold_a_quotation_of_several_lines():
    assert commands("iclm generate r --prompt '[3]\n[4] '\nmake test\n") == [
        ["iclm", "generate", "r", "--prompt", "[3]\n[4] "],
        ["make", "test"],
    ]


def test_blocks_are_told_apart_by_language():
    text = "```bash\na\n```\nx\n```python\nb\n```\n"
    assert (blocks(text, "bash"), blocks(text, "python")) == (["a\n"], ["b\n"])


@pytest.mark.parametrize(
    "line", ["iclm trainn r.yaml", "iclm train r.yaml --out x --fast", "iclm data solv x", "iclm train"]
)
def test_a_command_that_cannot_be_typed_is_found(line):
    with pytest.raises(Exception):  # noqa: B017  (typer's own class of usage errors moves between its versions)
        parse_iclm(line.split())
    with pytest.raises(AssertionError):
        parse_iclm(["iclm", "modules", "runs/acre", "nonsense"])
    with pytest.raises(AssertionError):
        parse_iclm(["iclm", "nonsense"])


def test_a_command_that_can_be_typed_is_parsed():
    path, values = parse_iclm(["iclm", "train", "recipes/acre.yaml", "method=lora", "--out", "runs/lora"])
    assert (path, values["overrides"], values["out"]) == (["iclm", "train"], ["method=lora"], Path("runs/lora"))
    assert parse_iclm(["iclm", "data", "render", "--help"]) == (["iclm", "data", "render"], {})
    path, values = parse_iclm(["iclm", "modules", "runs/acre", "rename", "domain_0", "new", "--overwrite"])
    assert (path, values["module"], values["name"]) == (["iclm", "modules", "rename"], "domain_0", "new")


def test_a_study_is_run_where_no_command_is_named():
    path, values = parse_iclm(["iclm", "study", "recipes/studies/ood.yaml", "--out", "runs/ood"])
    assert (path, values["out"]) == (["iclm", "study", "run"], Path("runs/ood"))


def test_the_targets_of_the_makefile_are_found():
    assert {"test", "lint", "quickstart", "clean", "help"} <= make_targets()
    assert not {"PYTHON", "VENV"} & make_targets()


def test_a_number_that_was_not_measured_is_found():
    numbers = leaves({"a": [{"value": 0.8125, "n": 100, "ok": True}], "b": -1.25})
    assert numbers == [0.8125, 100.0, -1.25]
    assert unsupported("| 0.81 [.812 0.8125] | -1.2 | 100 | v1.2.3 |", numbers) == []
    assert unsupported("| 0.82 | 0.813 | 1.00 |", numbers) == ["0.82", "0.813", "1.00"]


def test_blocks_of_results_are_found():
    text = "<!-- results: results/a.json -->\n| 0.5 |\n<!-- /results -->\n0.7"
    assert result_blocks(text) == [("results/a.json", "| 0.5 |\n")]
