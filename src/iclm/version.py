"""Version of the package, and what else a result depends on."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path

__version__ = "0.1.0"


@cache
def source_digest(folder: Path = Path(__file__).parent) -> str:
    """The first twelve digits of a SHA-256 of a folder's Python files: it tells apart what one version number does not."""
    digest = hashlib.sha256()
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    for name, path in sorted(files.items()):
        content = path.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def software() -> dict[str, str]:
    """Versions of what a result depends on: this package, its source, PyTorch, transformers and Python."""
    return {
        "iclm": __version__,
        "source": source_digest(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "python": platform.python_version(),
    }
