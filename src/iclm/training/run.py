"""A training from recipe to run folder.

RUN/config.json, generation_config.json, model.safetensors     the ICLM (our own parameters)
RUN/tokenizer.json, ...                                        the base's tokenizer
RUN/recipe.yaml                                                the recipe, every field written out
RUN/log.jsonl                                                  a line for every logging step
RUN/run.json                                                   domains, examples, seconds, versions; written last
RUN/checkpoints/                                               to resume from, while training
"""

from __future__ import annotations

import json
import math
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from iclm.data.collation import encode
from iclm.data.files import atomic_write
from iclm.data.loading import read_sources, training_data
from iclm.errors import CheckpointError, ConfigurationError
from iclm.evaluation.runs import FINISHED, context_length
from iclm.model import ICLMConfig, ICLMForCausalLM, load_tokenizer
from iclm.recipe import Recipe, dump_recipe
from iclm.training.trainer import ICLMTrainer, checkpoint_step, router_batches
from iclm.version import __version__

CHECKPOINTS = "checkpoints"


def build_model(recipe: Recipe) -> ICLMForCausalLM:
    """A fresh model as the recipe describes it."""
    settings = recipe.model.model_dump()
    config = ICLMConfig(method=recipe.method, seed=recipe.seed, **settings)
    config.base["name"] = recipe.base
    return ICLMForCausalLM.from_base(recipe.base, config, dtype=recipe.dtype)


def training_arguments(recipe: Recipe, out: Path) -> TrainingArguments:
    """The Trainer's arguments for a recipe."""
    section = recipe.training
    try:
        get_reporting_integration_callbacks(section.report_to)
    except (ValueError, ImportError) as error:
        raise ConfigurationError(f"training.report_to cannot be used: {error}") from error
    return TrainingArguments(
        output_dir=str(out / CHECKPOINTS),
        num_train_epochs=section.epochs,
        per_device_train_batch_size=section.batch_size,
        gradient_accumulation_steps=section.gradient_accumulation,
        learning_rate=section.learning_rate,
        lr_scheduler_type=section.schedule,
        warmup_steps=section.warmup,
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        gradient_checkpointing=section.gradient_checkpointing,
        logging_steps=section.logging_steps,
        save_strategy="no" if section.save_steps is None else "steps",
        save_steps=section.save_steps or 500,
        save_total_limit=1,
        report_to=section.report_to or "none",
        seed=recipe.seed,
        data_seed=recipe.seed,
        remove_unused_columns=False,
        prediction_loss_only=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        log_level="error",
        logging_nan_inf_filter=False,
    )


class _LogFile(TrainerCallback):
    """Appends every line of the Trainer's log to a file."""

    def __init__(self, path: Path, extra: Callable[[dict[str, float]], None] | None) -> None:
        self.path, self.extra = path, extra

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Write one line."""
        if logs is None:
            return
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(finite({"step": state.global_step, **logs}), allow_nan=False) + "\n")
        if self.extra is not None:
            self.extra(logs)


class _ProgressBar(ProgressCallback):
    """The Trainer's progress bar on stderr, with the loss beside it instead of lines on stdout."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Show the loss."""
        if self.training_bar is not None and logs is not None and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


def check_folder(out: Path, *, overwrite: bool, resume: bool) -> None:
    """Raise `ConfigurationError` if a run cannot be made in a folder; changes nothing."""
    for place in (out, *out.parents):
        if place.exists() and not place.is_dir():
            raise ConfigurationError(f"{place} is a file; --out {out} names a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    is_run = (out / "recipe.yaml").is_file()
    if not is_run and (overwrite or resume):
        raise ConfigurationError(
            f"{out} is not a run folder, so it is neither replaced nor resumed; choose another --out"
        )
    if not overwrite and not resume:
        hint = "pass --overwrite to replace it" + (", or --resume to go on" if is_run else "")
        raise ConfigurationError(f"{out} exists; {hint}")


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    on_log: Callable[[dict[str, float]], None] | None = None,
    progress_bar: bool = True,
) -> tuple[ICLMForCausalLM, dict[str, Any]]:
    """Train as the recipe says and leave a run folder.

    Args:
        overwrite: replace an existing run folder.
        resume: go on from the last checkpoint of an interrupted run with the same recipe.
        on_log: called with each line of the log.

    Returns:
        The trained model in evaluation mode, and what run.json says.

    Raises:
        ICLMError: a recipe, data or base that cannot be used; the folder is then not left behind half made.
    """
    out = Path(out)
    started = time.perf_counter()
    check_folder(out, overwrite=overwrite, resume=resume)
    last = _last_checkpoint(recipe, out) if resume else None
    # everything that can be wrong is found before the folder is touched
    transformers.set_seed(recipe.seed)
    tokenizer = load_tokenizer(recipe.base)
    model = build_model(recipe)
    packs, domains, encoded = _training_data(recipe, model, tokenizer)
    arguments = training_arguments(recipe, out)
    arguments.disable_tqdm = not progress_bar
    model.to(arguments.device)
    if last is None:
        batch_size, seed = recipe.training.batch_size, recipe.seed
        model.fit_router(
            router_batches(packs, batch_size, seed, tokenizer.pad_token_id, recipe.training.router_examples)
        )
        if out.is_dir():
            for child in out.iterdir():  # not the folder itself: it may be a link, or the current one
                shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "recipe.yaml", overwrite=True) as stream:
        stream.write(dump_recipe(recipe))
    _keep_log(out / "log.jsonl", 0 if last is None else checkpoint_step(last))
    trainer = ICLMTrainer(
        model,
        arguments,
        packs,
        pad=tokenizer.pad_token_id,
        router_examples=recipe.training.router_examples,
        aggregator_learning_rate=recipe.training.aggregator_learning_rate,
        callbacks=[_LogFile(out / "log.jsonl", on_log)],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if progress_bar:
        trainer.add_callback(_ProgressBar)
    ready = time.perf_counter()
    result = trainer.train(resume_from_checkpoint=None if last is None else str(last))
    model.eval()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    trained = time.perf_counter() - ready
    values: dict[str, Any] = {
        "method": recipe.method,
        "base": recipe.base,
        "domains": list(domains),
        "examples": len(encoded),
        "examples_seen": len(encoded) * recipe.training.epochs,
        "steps": result.global_step,
        "train_loss": _mean_loss(trainer.state.log_history, result.training_loss),
        "train_seconds": round(trained, 2),
        "total_seconds": round(time.perf_counter() - started, 2),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "base_parameters": model.base_parameters,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": device_name(model.device),
        "threads": torch.get_num_threads(),
        "versions": {
            "iclm": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }
    values = finite(values)
    with atomic_write(out / FINISHED, overwrite=True) as stream:
        json.dump(values, stream, indent=2, allow_nan=False)
        stream.write("\n")
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    return model, values


def _training_data(recipe: Recipe, model: ICLMForCausalLM, tokenizer: Any) -> tuple[Any, dict[str, int], list[Any]]:
    """Packs, domains and examples of a recipe, after a look at its validation sources too."""
    context, limit = context_length(model), recipe.data.max_tokens
    if context is not None and limit is not None and limit > context:
        raise ConfigurationError(f"data.max_tokens is {limit}; the context of {recipe.base} is {context}")
    packs, domains, encoded = training_data(
        recipe.data.train, tokenizer, max_tokens=limit or context, pack=recipe.data.pack
    )
    encode(read_sources(recipe.data.validation), tokenizer, domains=domains, max_tokens=context)
    if recipe.model.router == "oracle" and recipe.method == "iclm" and len(domains) > recipe.model.num_domains:
        raise ConfigurationError(
            f"oracle routing of {len(domains)} domains needs as many modules; model.num_domains is {recipe.model.num_domains}"
        )
    return packs, domains, encoded


def finite(value: Any) -> Any:
    """The value with every number that is not finite as None: a diverged loss has no number in JSON."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _keep_log(path: Path, step: int) -> None:
    """Keep the lines of a log up to a step; what came after it is done again."""
    if not path.is_file():
        return
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] <= step]
    with atomic_write(path, overwrite=True) as stream:
        stream.writelines(line + "\n" for line in lines)


def _mean_loss(history: list[dict[str, Any]], otherwise: float) -> float:
    """Mean of the logged losses, each weighted by the steps that it is the mean of."""
    total, last = 0.0, 0
    for line in history:
        if "loss" in line:
            total += line["loss"] * (line["step"] - last)
            last = line["step"]
    return total / last if last else otherwise


def device_name(device: torch.device) -> str:
    """Name of the device for a record."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _last_checkpoint(recipe: Recipe, out: Path) -> Path | None:
    """The newest checkpoint of an interrupted run; raises `CheckpointError` if the recipe is another one."""
    saved = out / "recipe.yaml"
    if saved.is_file() and saved.read_text(encoding="utf-8") != dump_recipe(recipe):
        raise CheckpointError(
            f"{saved} differs from the recipe given; --resume needs the recipe that the run began with"
        )
    if (out / FINISHED).is_file():
        raise ConfigurationError(f"{out} is finished; there is nothing to resume")
    whole = [folder.parent for folder in (out / CHECKPOINTS).glob("checkpoint-*/trainer_state.json")]  # written last
    found = sorted(whole, key=checkpoint_step)
    return found[-1] if found else None
