"""Packages that only some readers and studies need, imported when one of them is used."""

from __future__ import annotations

import importlib
from typing import Any

from iclm.errors import ConfigurationError


def import_optional(module: str, purpose: str, extra: str = "data") -> Any:
    """Import a module of an extra of this package.

    Args:
        module: its name, for instance "pyarrow.parquet".
        purpose: what needs it; the error begins with it.
        extra: the extra that brings it.

    Returns:
        The module.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ConfigurationError(
            f"{purpose} needs the package `{package}`, which is not installed: pip install 'iclm[{extra}]'"
        ) from error
