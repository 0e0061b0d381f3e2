"""The YAML file of a recipe: read safely, with errors that name the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from iclm.errors import ConfigurationError


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


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigurationError: it cannot be read, is no valid YAML or no mapping, or has a key twice; one line.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_OneOfAKind)  # a safe loader
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
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: a recipe is a mapping of sections; the file holds {type(values).__name__}")
    return values
