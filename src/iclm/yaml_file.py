"""The YAML file of a recipe: read safely, with errors that name the line; what it extends, where its paths lead, and overrides."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from iclm.errors import ConfigurationError

PACKAGED = ("smollm2-135m",)
"""Names of bases that are no paths, whatever lies beside a recipe (`iclm.model.backbone`)."""
DEEPEST = 50
"""Mappings and lists within each other, at most: no recipe needs more, and one that contains itself never ends."""
LARGEST = 100_000
"""Values in a recipe, at most, those behind an alias counted each time: a few lines of aliases to aliases are millions."""


class _OneOfAKind(yaml.SafeLoader):
    """Refuses a mapping with a key twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        texts = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        seen: set[str] = set()
        for key in texts:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} occurs twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _load(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """What a YAML text says; raises RecursionError if it is nested too deeply, contains itself, or repeats itself without end."""
    values = yaml.load(text, Loader=loader)  # a safe loader
    _count(values, DEEPEST, {})
    return values


def _count(values: Any, levels: int, known: dict[tuple[int, int], int]) -> int:
    """How many values lie in one, itself among them and those behind an alias each time; each is walked once a level at most.

    Args:
        levels: mappings and lists that may lie within each other.
        known: counts of what was walked, by id and levels left.

    Raises:
        RecursionError: more levels, or more than `LARGEST` values.
    """
    if not isinstance(values, (dict, list)):
        return 1
    if levels == 0:
        raise RecursionError
    place = (id(values), levels)
    if place not in known:
        inner = values.values() if isinstance(values, dict) else values
        known[place] = 1 + sum(_count(value, levels - 1, known) for value in inner)
        if known[place] > LARGEST:
            raise RecursionError
    return known[place]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigurationError: it cannot be read, is no valid YAML or no mapping, has a key twice, is nested too deeply, contains
            itself or repeats itself too often; one line.
    """
    try:
        values = _load(path.read_text(encoding="utf-8"), _OneOfAKind)
    except OSError as error:
        raise ConfigurationError(f"{path}: the recipe cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: the recipe is not UTF-8 text") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigurationError(
            f"{path}{where}: the recipe is not valid YAML: {getattr(error, 'problem', error)}"
        ) from error
    except RecursionError as error:
        raise ConfigurationError(
            f"{path}: the recipe is nested too deeply or contains itself, or repeats itself too often"
        ) from error
    if not isinstance(values, dict):
        held = "is empty" if values is None else f"holds {type(values).__name__}"
        raise ConfigurationError(f"{path}: a recipe is a mapping of sections; the file {held}")
    return values


def read_mapping(path: Path, chain: tuple[Path, ...] = ()) -> tuple[dict[str, Any], list[str]]:
    """The mapping in a recipe file, merged into those that it extends, and the names of all these files.

    Raises:
        ConfigurationError: a file that cannot be read, no YAML mapping, or an `extends` that leads nowhere.
    """
    values = read_yaml(path)
    _resolve_paths(values, path)
    parent = values.pop("extends", None)
    if parent is None:
        return values, [str(path)]
    if not isinstance(parent, str):
        raise ConfigurationError(f"{path}: extends is {parent!r}; name one recipe file")
    chain = (*chain, path.resolve())
    below = path.parent / parent
    if below.resolve() in chain:
        raise ConfigurationError(f"{path}: extends {parent} closes a circle; a recipe cannot extend itself")
    if not below.is_file():
        raise ConfigurationError(f"{path}: extends {parent}: there is no such file; it is looked for beside the recipe")
    inherited, names = read_mapping(below, chain)
    return merge(inherited, values), [str(path), *names]


def merge(below: Any, above: Any) -> Any:
    """Mappings merged entry by entry; of anything else the upper one."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: merge(below.get(key), value) for key, value in above.items()}
    return above


def resolve(recipe: Path, name: str | Path, *, gone: bool = False) -> Path:
    """A path as a recipe means it: beside the recipe if it is there, else in the current folder.

    Args:
        gone: what is in neither place is meant beside the recipe: it was there, and may come back.
    """
    beside, here = recipe.parent / name, Path(name)
    return (beside if beside.exists() or (gone and not here.exists()) else here).absolute()


def place_of(name: str, recipe: str | Path = "") -> str:
    """A base or data set as a recipe means it: what lies beside the recipe or in the current folder as an absolute path, so that
    it is found from everywhere; any other name, such as that of a model on the hub, as it is."""
    if name in PACKAGED:
        return name
    for place in (Path(recipe).parent / name, Path(name).expanduser()):
        if place.exists():
            return os.path.abspath(place)
    return name


def _resolve_paths(values: dict[str, Any], path: Path) -> None:
    """Make the paths in an unchecked recipe absolute, so that they hold where another recipe extends it."""
    if isinstance(values.get("base"), str):
        values["base"] = place_of(values["base"], path)
    training = values.get("training")
    if isinstance(training, dict) and isinstance(training.get("start_from"), str):
        training["start_from"] = str(resolve(path, training["start_from"]))
    for place in ("data", "tasks"):
        _resolve_files(values.get(place), path)


def _resolve_files(place: Any, path: Path) -> None:
    """Make every `file` of the sources below a place absolute, and every `dataset` that is a folder."""
    if isinstance(place, list):
        for entry in place:
            _resolve_files(entry, path)
    elif isinstance(place, dict):
        if isinstance(place.get("file"), str):
            place["file"] = str(resolve(path, place["file"], gone=True))
        if isinstance(place.get("dataset"), str):
            place["dataset"] = place_of(place["dataset"], path)
        for entry in place.values():
            _resolve_files(entry, path)


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Set `section.field=value` entries, the value read as YAML; list entries are named by number."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigurationError(f"{override!r} is no override; write section.field=value")
        try:
            value = _load(text) if text else None
        except yaml.YAMLError as error:
            raise ConfigurationError(f"{override!r}: the value is not valid YAML") from error
        except RecursionError as error:
            raise ConfigurationError(
                f"{override!r}: the value is nested too deeply or contains itself, or repeats itself too often"
            ) from error
        place: Any = values
        *parents, leaf = key.split(".")
        for parent in parents:
            place = _child(place, parent, override)
        if isinstance(place, list):
            _entry(place, leaf, override)
            place[int(leaf)] = value
        else:
            place[leaf] = value
    return values


def _entry(place: list[Any], name: str, override: str) -> Any:
    if not name.isdecimal() or int(name) >= len(place):
        raise ConfigurationError(f"{override!r}: the list has entries 0 to {len(place) - 1}, not {name!r}")
    return place[int(name)]


def _child(place: Any, name: str, override: str) -> Any:
    if isinstance(place, list):
        child = _entry(place, name, override)
    else:
        child = place.setdefault(name, {})
        if child is None:
            child = place[name] = {}
    if not isinstance(child, (dict, list)):
        raise ConfigurationError(f"{override!r}: {name!r} is a value, not a section")
    return child
