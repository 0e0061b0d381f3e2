"""The build of the package: which folder imports which, how long a file is, and that nothing is ever unpickled."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "iclm"
FILES = sorted(SOURCE.rglob("*.py"))
# A file imports from its own folder and from lower ones; the two at the bottom know nothing of each other.
LEVEL = {"model": 0, "data": 0, "evaluation": 1, "training": 2, "studies": 3, "report": 4, "cli": 5}
FREE = {"errors", "version", "recipe", "yaml_file"}  # for every folder to import
UNSAFE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def name_of(path):
    return str(path.relative_to(SOURCE))


def layer_named(name):
    """The layer of a folder below src/iclm or of a file right in it: all files of the command line are one layer."""
    return "cli" if name.startswith("cli_") or name == "__main__" else name


def layer_of(path):
    """The layer that a file lies in."""
    return layer_named(path.relative_to(SOURCE).parts[0].removesuffix(".py"))


def modules_of(tree, package):
    """Dotted names of all that a file imports, wherever in the file, relative imports resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ([f"iclm.{alias.name}" for alias in node.names] if base == "iclm" else [base])


def imports(text, package=("iclm",)):
    return list(modules_of(ast.parse(text), list(package)))


def package_of(path):
    return ("iclm", *path.relative_to(SOURCE).parent.parts)


def forbidden(layer, names):
    """The imports of ICLM's own modules that a layer may not have."""
    found = []
    for name in names:
        parts = name.split(".")
        if parts[0] != "iclm":
            continue
        target = layer_named(parts[1] if len(parts) > 1 else "iclm")
        allowed = target == layer or target in FREE or LEVEL.get(target, 99) < LEVEL.get(layer, -1)
        if layer in FREE:
            allowed = target in FREE - {"recipe"}
        if not allowed:
            found.append(name)
    return found


def unsafe_loads(text):
    """Lines that call torch.load without weights_only=True."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("torch.load", "load_checkpoint_in_model"):
            continue
        safe = any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in node.keywords)
        if not safe:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_only_from_layers_below_its_own(path):
    if path == SOURCE / "__init__.py":
        return  # the public names, from wherever they are
    layer = layer_of(path)
    assert layer in LEVEL or layer in FREE, f"{name_of(path)} lies in no layer"
    assert forbidden(layer, imports(path.read_text(encoding="utf-8"), package_of(path))) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_has_at_most_500_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_unpickles_nothing(path):
    text = path.read_text(encoding="utf-8")
    assert not {name.partition(".")[0] for name in imports(text, package_of(path))} & UNSAFE
    assert unsafe_loads(text) == []


def test_the_readme_names_every_file():
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("README.md is not written yet")
    text = readme.read_text(encoding="utf-8")
    names = [path.name for path in FILES if path.name != "__init__.py"]
    missing = sorted({name for name in names if text.count(name) < names.count(name)})
    assert missing == [], "the file map lacks these (a name in two folders is needed twice)"


@pytest.mark.parametrize(
    ("layer", "text", "found"),
    [
        ("model", "import iclm.data.example", ["iclm.data.example"]),
        ("data", "def f():\n    from iclm.model import ICLMConfig", ["iclm.model"]),
        ("evaluation", "from iclm.model import x\nfrom iclm.data.files import y\nfrom iclm.errors import z", []),
        ("evaluation", "from iclm.training import run", ["iclm.training"]),
        ("studies", "from iclm import report, errors", ["iclm.report"]),
        ("cli", "import torch\nfrom iclm.report.tables import t\nfrom iclm import cli_data", []),
        ("report", "from iclm.cli_shared import note", ["iclm.cli_shared"]),
        ("recipe", "from iclm.data import x", ["iclm.data"]),
        ("report", "import iclm", ["iclm"]),
    ],
)
def test_the_check_of_layers_finds_what_is_forbidden(layer, text, found):
    assert forbidden(layer, imports(text)) == found


def test_the_check_of_layers_resolves_relative_imports():
    assert imports("from ..data import x\nfrom . import y", ("iclm", "model")) == ["iclm.data", "iclm.model"]


def test_the_check_of_pickle_finds_an_unsafe_load():
    text = "import torch\ntorch.load(p)\ntorch.load(p, weights_only=True)\ntorch.load(p, weights_only=flag)"
    assert unsafe_loads(text) == [2, 4]
