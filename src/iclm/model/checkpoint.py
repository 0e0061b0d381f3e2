"""What is written to disk of an ICLM and how it is read back: JSON and safetensors, never pickle."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, PreTrainedModel

from iclm.errors import CheckpointError, ConfigurationError
from iclm.model.backbone import load_base
from iclm.model.configuration_iclm import ICLMConfig

if TYPE_CHECKING:
    from iclm.model.modeling_iclm import ICLMForCausalLM

WEIGHTS = "model.safetensors"
PART = ".config.part"  # the folder that configurations are written to before they take their place


def write(folder: Path, model: ICLMForCausalLM, state: dict[str, torch.Tensor]) -> None:
    """Write configuration and own state to a folder; each file is whole or as it was, and none changes before all can be written.

    Raises:
        ConfigurationError: the folder holds another model, as that of the base does.
    """
    _check_target(folder)
    part = folder / PART
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(part)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(part)
        write_tensors(
            folder / WEIGHTS, {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
        )
        for path in sorted(part.iterdir()):
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_target(folder: Path) -> None:
    try:
        values = read_json(folder / "config.json")
    except CheckpointError:
        return  # there is none, or a damaged one, for which saving again is the remedy
    kind = values.get("model_type")
    if kind != "iclm":
        raise ConfigurationError(
            f"{folder} holds a model of type {kind}, which saving an ICLM there would destroy; give a folder of its own"
        )


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors to a safetensors file that is whole or not there, and as readable as any file that is made beside it.

    safetensors from 0.8 on leaves a new file to its owner alone, whatever the umask
    (https://github.com/safetensors/safetensors/issues/782).

    Args:
        path: the file; replaced if it exists.
        tensors: by name; contiguous, on the CPU, none sharing memory with another.
    """
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    part.touch()
    mode = part.stat().st_mode
    save_file(tensors, part, metadata={"format": "pt"})
    part.chmod(mode)
    os.replace(part, path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that belongs to something saved; raises `CheckpointError` if the file is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; save it again") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; save it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object; save it again")
    return values


def read_config(folder: Path) -> ICLMConfig:
    """Read the configuration of a saved ICLM; raises `CheckpointError` if there is none."""
    path = folder / "config.json"
    _require_folder(folder)
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no config.json; it is not a saved ICLM")
    values = read_json(path)
    if values.get("model_type") != "iclm":
        raise CheckpointError(f"{path} does not describe an ICLM (model_type is not 'iclm')")
    try:
        return ICLMConfig.from_dict(values)
    except ConfigurationError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged: a value cannot be used: {error}; save the ICLM again") from error


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        on_hub = len(folder.parts) == 2 and not folder.is_absolute() and not folder.parent.is_dir()
        hint = f"; one on the hub must be downloaded first: give the folder that huggingface_hub.snapshot_download({str(folder)!r}) returns"
        raise CheckpointError(f"{folder} is no folder with a saved ICLM{hint if on_hub else ''}")


def read_generation_config(folder: Path) -> GenerationConfig | None:
    """Read how a saved ICLM generates; None if that is not said, `CheckpointError` if the file is damaged."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return None
    values = read_json(path)
    try:
        return GenerationConfig.from_dict(values)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged: a value cannot be used: {error}; save the ICLM again") from error


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read the weight file of a saved ICLM; raises `CheckpointError` if it is missing or damaged."""
    path = folder / WEIGHTS
    _require_folder(folder)
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {WEIGHTS}; the weights of the ICLM are missing")
    try:
        return load_file(path)
    except Exception as error:
        raise CheckpointError(f"{path} is damaged: {error}; copy or save it again") from error


def load_own_state(model: ICLMForCausalLM, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Copy a saved state into a freshly built ICLM; raises `CheckpointError` unless names and shapes agree exactly."""
    own = model.own_state_dict()
    for name, tensor in own.items():
        if name not in state:
            raise CheckpointError(f"{folder / WEIGHTS} lacks {name}; it belongs to another configuration")
        if state[name].shape != tensor.shape:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {name} is {list(state[name].shape)}; the configuration says {list(tensor.shape)}"
            )
    for name in state:
        if name not in own:
            raise CheckpointError(f"{folder / WEIGHTS} holds {name}, which this configuration does not have")
    model.load_state_dict(state, strict=False)


def load_named_base(
    config: ICLMConfig, base: str | None = None, dtype: Any = "auto", quantization: str | None = None, **options: Any
) -> PreTrainedModel:
    """Load the base that a configuration names, or the one given instead; raises `CheckpointError` if none is named.

    Args:
        quantization: None means that of the configuration.
    """
    name = base or config.base.get("name")
    if not name:
        raise CheckpointError("the base model has no name or path; pass base= (a model, a folder or a hub id)")
    quantization = config.base.get("quantization", "none") if quantization is None else quantization
    return load_base(name, dtype, quantization, **options)


def check_fingerprint(config: ICLMConfig, found: str, name: str) -> None:
    """Raise `CheckpointError` if the base, called `name`, is not the one that the ICLM was made from."""
    expected = config.base.get("fingerprint")
    if expected is not None and expected != found:
        raise CheckpointError(
            f"the base {name or '(unnamed)'} has fingerprint {found[:12]}, but this ICLM was made from "
            f"{expected[:12]}; give the original base model"
        )
