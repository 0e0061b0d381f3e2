"""A finished run folder as every command after training uses it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from iclm.errors import CheckpointError
from iclm.model import ICLMForCausalLM, load_tokenizer
from iclm.model.checkpoint import read_json
from iclm.model.configuration_iclm import default_name

FINISHED = "run.json"  # written last, so a folder that holds it is whole
RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Run:
    """A trained model with what belongs to it.

    Attributes:
        folder: where it was read from.
        model: in evaluation mode, on the GPU if there is one.
        tokenizer: the base's.
        record: what run.json says.
    """

    folder: Path
    model: ICLMForCausalLM
    tokenizer: PreTrainedTokenizerBase
    record: dict[str, Any]

    @property
    def domains(self) -> dict[str, int]:
        """Number of each domain that the run knows: domain i is that of domain module i, where there is one."""
        return domains_of(self.record)

    @property
    def chat(self) -> bool:
        """Whether its prompts are written by the tokenizer's chat template."""
        return bool(self.record.get("chat", False))

    @property
    def numbered(self) -> list[str]:
        """What to call each number in figures: the domain's name, else that of the module."""
        known = {number: name for name, number in self.domains.items()}
        names = self.model.config.names
        last = max([len(names) - 1, *known])
        return [known[i] if i in known else names[i] if i < len(names) else f"domain {i}" for i in range(last + 1)]

    def numbers_with(self, names: Iterable[str]) -> dict[str, int]:
        """A number for each domain name: the run's own, and further ones for names that it does not know."""
        numbers = dict(self.domains)
        for name in sorted(set(names)):
            numbers.setdefault(name, 1 + max(numbers.values(), default=-1))
        return numbers

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Those of some domain names that the run was not trained on, each once."""
        return sorted(set(names) - set(self.domains))

    @property
    def names(self) -> dict[str, str]:
        """What a user calls each domain module, by its place: {"domain_0": "symbolic", ...}."""
        return {default_name(number): name for number, name in enumerate(self.model.config.names)}


def domains_of(record: dict[str, Any]) -> dict[str, int]:
    """The number of each domain in a run's record.

    `domains` lists them in the order of their numbers; where that is not 0, 1, 2, ... `domain_modules` has the numbers.
    """
    names = record.get("domains", ())
    return dict(record.get("domain_modules") or {name: number for number, name in enumerate(names)})


def diverged(model: torch.nn.Module) -> bool:
    """Whether a trained parameter is not a finite number."""
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    return not all(bool(torch.isfinite(parameter).all()) for parameter in trained)


def check_finite(run: Run) -> None:
    """Raise `CheckpointError` where a run's weights are no numbers, so that nothing it says means anything."""
    if diverged(run.model):
        raise CheckpointError(divergence(run.folder))


def divergence(folder: Path) -> str:
    """What is said of a run whose training has diverged."""
    return (
        f"the training has diverged: weights of {folder} are not finite; train anew, for instance with a smaller "
        "training.learning_rate"
    )


def read_record(folder: Path) -> dict[str, Any]:
    """What run.json of a finished run says.

    Raises:
        CheckpointError: not a run folder, an unfinished run, or a damaged file.
    """
    if not folder.is_dir():
        what = "it is a file" if folder.exists() else "there is no such folder"
        raise CheckpointError(f"{folder} is no run folder: {what}")
    path = folder / FINISHED
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {FINISHED}: it is not a run folder, or its training did not finish")
    record = read_json(path)
    names, numbers = record.get("domains"), record.get("domain_modules")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path} is damaged: domains must be a list of names, not {names!r}")
    if numbers is not None:
        whole = isinstance(numbers, dict) and sorted(numbers) == sorted(names)
        values = list(numbers.values()) if whole else []
        if not whole or not all(type(n) is int and n >= 0 for n in values) or len(set(values)) < len(values):
            raise CheckpointError(f"{path} is damaged: domain_modules must give each domain a number of its own")
    changes, homes = record.get("changes", []), record.get("homes", {})
    if not isinstance(changes, list) or not all(isinstance(change, dict) for change in changes):
        raise CheckpointError(f"{path} is damaged: changes must be a list of objects, not {changes!r}")
    if not isinstance(homes, dict) or not all(type(number) is int for number in homes.values()):
        raise CheckpointError(f"{path} is damaged: homes must give each task the number of a module, not {homes!r}")
    return record


def load_run(folder: str | Path, **kwargs: Any) -> Run:
    """Load a run folder.

    Args:
        kwargs: passed on to `ICLMForCausalLM.from_pretrained` (`base`, `dtype`, `quantization`).

    Raises:
        CheckpointError: not a run folder, an unfinished run, a damaged file or another base.
    """
    folder = Path(folder)
    record = read_record(folder)
    if not (folder / "tokenizer_config.json").is_file():
        raise CheckpointError(f"{folder} holds no tokenizer_config.json; the tokenizer of the run is missing")
    model = ICLMForCausalLM.from_pretrained(folder, **kwargs)
    if model.config.domain_names is None:
        model.config.domain_names = model.config.names_after(domains_of(record))
    if torch.cuda.is_available():
        model.to("cuda")
    return Run(folder, model, load_tokenizer(str(folder)), record)


def context_length(model: ICLMForCausalLM | PreTrainedModel) -> int | None:
    """The context in tokens of an ICLM's base, or of another model, where its configuration says."""
    config = model.base.config if isinstance(model, ICLMForCausalLM) else model.config
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
