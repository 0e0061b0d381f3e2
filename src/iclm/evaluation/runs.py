"""A finished run folder as every command after training uses it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from iclm.errors import CheckpointError
from iclm.model import ICLMForCausalLM, load_tokenizer
from iclm.model.checkpoint import read_json

FINISHED = "run.json"  # written last, so a folder that holds it is whole


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
        """Number of each domain that the run was trained on."""
        return {name: number for number, name in enumerate(self.record.get("domains", ()))}


def load_run(folder: str | Path, **kwargs: Any) -> Run:
    """Load a run folder.

    Args:
        kwargs: passed on to `ICLMForCausalLM.from_pretrained` (`base`, `dtype`, `quantization`).

    Raises:
        CheckpointError: not a run folder, an unfinished run, a damaged file or another base.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no run folder: there is no such folder")
    path = folder / FINISHED
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {FINISHED}: it is not a run folder, or its training did not finish")
    record = read_json(path)
    names = record.get("domains")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path} is damaged: domains must be a list of names, not {names!r}")
    if not (folder / "tokenizer_config.json").is_file():
        raise CheckpointError(f"{folder} holds no tokenizer_config.json; the tokenizer of the run is missing")
    model = ICLMForCausalLM.from_pretrained(folder, **kwargs)
    if torch.cuda.is_available():
        model.to("cuda")
    return Run(folder, model, load_tokenizer(str(folder)), record)


def context_length(model: ICLMForCausalLM | PreTrainedModel) -> int | None:
    """The context in tokens of an ICLM's base, or of another model, where its configuration says."""
    config = model.base.config if isinstance(model, ICLMForCausalLM) else model.config
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
