"""A training from recipe to run folder; what lies in it: `iclm.training.folder`.

    recipe ─▶ base, examples ─▶ fresh or saved weights, router fitted ─▶ stage ─▶ (stage) ─▶ run folder

The router is fitted before the first stage: it reads the frozen base, so that its start is the same then, and the end of
every stage is a whole model.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PrinterCallback, ProgressCallback, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from iclm.data.collation import Pack, encode
from iclm.data.files import atomic_write
from iclm.data.loading import overlap, read_sources, source_name, training_data, with_pinned
from iclm.errors import CheckpointError, ConfigurationError
from iclm.evaluation.runs import FINISHED, context_length, diverged
from iclm.model import ICLMConfig, ICLMForCausalLM, load_tokenizer
from iclm.model.checkpoint import load_own_state, read_weights
from iclm.model.configuration_iclm import default_name
from iclm.model.quantization import check_quantization
from iclm.recipe import Recipe, dump_recipe, parse_recipe
from iclm.training.features import with_features
from iclm.training.folder import (
    BEGUN,
    CHECKPOINTS,
    LOG,
    OURS,
    RECIPE,
    STAGES,
    Clock,
    LogFile,
    Resumption,
    check_folder,
    checkpoints_of,
    clear_folder,
    finite,
    keep_log,
    mean_loss,
    resumption,
    write_folder,
    write_record,
)
from iclm.training.processes import is_first, use_own_gpu, wait_for_all
from iclm.training.stages import Ramp, Rates, Stage, stages_of
from iclm.training.start import check_base, names_in, start_from
from iclm.training.trainer import ICLMTrainer, router_batches
from iclm.version import software


def build_model(recipe: Recipe) -> ICLMForCausalLM:
    """A fresh model as the recipe describes it."""
    settings = recipe.model.model_dump()
    config = ICLMConfig(method=recipe.method, seed=recipe.seed, **settings)
    config.base["name"] = recipe.base
    return ICLMForCausalLM.from_base(recipe.base, config, dtype=recipe.dtype, quantization=recipe.quantization)


# the Trainer's argument was renamed, and warns of its old name
_NEW, _OLD = "activation_checkpointing", "gradient_checkpointing"
_CHECKPOINTING = _NEW if hasattr(TrainingArguments, _NEW) else _OLD


def training_arguments(recipe: Recipe, out: Path, stage: Stage | None = None) -> TrainingArguments:
    """The Trainer's arguments for a stage of a recipe; None means its first."""
    section = recipe.training
    stage = stage or stages_of(section)[0]
    try:
        get_reporting_integration_callbacks(section.report_to)
    except (ValueError, ImportError) as error:
        raise ConfigurationError(f"training.report_to cannot be used: {error}") from error
    arguments = TrainingArguments(
        output_dir=str(checkpoints_of(out, stage)),
        num_train_epochs=stage.epochs,
        per_device_train_batch_size=section.batch_size,
        per_device_eval_batch_size=section.batch_size,
        auto_find_batch_size=section.auto_find_batch_size,
        gradient_accumulation_steps=section.gradient_accumulation,
        learning_rate=section.learning_rate,
        lr_scheduler_type=section.schedule,
        warmup_steps=section.warmup,
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        **{_CHECKPOINTING: section.gradient_checkpointing},
        ddp_find_unused_parameters=True,  # a batch may need no module of some domain
        logging_steps=section.logging_steps,
        save_strategy="no" if section.save_steps is None else "steps",
        save_steps=section.save_steps or 500,
        save_total_limit=2,  # the one before goes when the new one is whole (`Clock`)
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
    if arguments.n_gpu > 1:  # one GPU a process: torch's DataParallel would split what is not a batch of rows
        arguments._n_gpu = 1
    return arguments


class _ProgressBar(ProgressCallback):
    """The Trainer's progress bar on stderr, with the loss beside it instead of lines on stdout."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Show the loss."""
        if self.training_bar is not None and logs is not None and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


def make_trainer(
    recipe: Recipe,
    model: ICLMForCausalLM,
    arguments: TrainingArguments,
    packs: list[Pack],
    pad: int,
    stage: Stage,
    callbacks: list[Any] | None = None,
    kind: type[ICLMTrainer] = ICLMTrainer,
    **options: Any,
) -> ICLMTrainer:
    """The trainer of a stage of a recipe, of a kind that may take further options."""
    section = recipe.training
    return kind(
        model,
        arguments,
        packs,
        pad=pad,
        router_examples=section.router_examples,
        batch_tokens=section.batch_tokens,
        rates=Rates(section.aggregator_learning_rate, section.router_learning_rate, section.critic_learning_rate),
        independence=Ramp(section.mi_start, section.mi_ramp),
        stage=stage,
        callbacks=callbacks,
        **options,
    )


def _check_validation(recipe: Recipe) -> None:
    """Raise `ConfigurationError` for a validation source whose problems are trained on."""
    for number, source in enumerate(recipe.data.validation):
        for other, trained in enumerate(recipe.data.train):
            if overlap(source, trained):
                raise ConfigurationError(
                    f"data.validation.{number} ({source_name(source)}) asks problems that data.train.{other} trains on; "
                    "give another split, seed or file"
                )


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    on_log: Callable[[dict[str, float]], None] | None = None,
    progress_bar: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[ICLMForCausalLM, dict[str, Any]]:
    """Train as the recipe says and leave a run folder.

    Args:
        overwrite: replace an existing run folder.
        resume: go on from the last checkpoint of an interrupted run with the same recipe; from the start, if there is none.
        on_log: called with each line of the log.
        say: called with a line where a run that should be resumed starts over.

    Returns:
        The trained model in evaluation mode, and what run.json says.

    Raises:
        ICLMError: a recipe, data or base that cannot be used; the folder is then not left behind half made.
    """
    out = Path(out)
    started = time.perf_counter()
    recipe = _with_pinned_files(parse_recipe(recipe.model_dump()))  # a recipe may have been changed since it was read
    check_folder(out, overwrite=overwrite, resume=resume)
    check_quantization(recipe.quantization)
    _check_validation(recipe)
    place = resumption(recipe, out) if resume else Resumption(left=stages_of(recipe.training))
    started -= place.spent
    use_own_gpu()
    # everything that can be wrong is found before the folder is touched
    transformers.set_seed(recipe.seed)
    tokenizer = load_tokenizer(recipe.base)
    model = build_model(recipe)
    packs, domains, encoded = _training_data(recipe, model, tokenizer)
    arguments = [training_arguments(recipe, out, stage) for stage in place.left]
    _check_processes(arguments[0], place)
    model.to(arguments[0].device)
    if recipe.training.compile:
        model.compile_layers()
    names = _first_weights(recipe, out, model, place, domains)
    if recipe.training.cache_features:
        packs = with_features(model, packs, tokenizer.pad_token_id, progress_bar=progress_bar and is_first())
    if place.weights is None:
        _start_router(recipe, model, packs, tokenizer.pad_token_id)
        names = _matched_names(model, domains, names)
    model.config.domain_names = names or None
    wait_for_all()  # each has looked at the folder
    if is_first():
        if resume and place.weights is None:
            hint = "" if recipe.training.save_steps else "; set training.save_steps to have some"
            say(f"no checkpoint in {out}: starts at step 0{hint}")
        if place.weights is None:
            clear_folder(out, BEGUN if resume else OURS)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"{out} cannot be written: {error.strerror}") from error
        with atomic_write(out / RECIPE, overwrite=True) as stream:
            stream.write(dump_recipe(recipe))
        keep_log(out / LOG, place.step)
    wait_for_all()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    known: dict[str, Any] = {"method": recipe.method, "base": recipe.base, "domains": list(domains)}
    known |= {"chat": True} if any(source.chat for source in recipe.data.train) else {}
    records = list(place.records)
    for stage, settings in zip(place.left, arguments, strict=True):
        settings.disable_tqdm = not progress_bar
        before = sum(record["steps"] for record in records)
        callbacks = [LogFile(out / LOG, before, on_log), Clock(place.seconds)]
        trainer = make_trainer(recipe, model, settings, packs, tokenizer.pad_token_id, stage, callbacks)
        records.append({**train_stage(trainer, place.checkpoint), "examples_seen": len(encoded) * stage.epochs})
        wait_for_all()  # each leaves its random state in a checkpoint
        if stage is not place.left[-1] and is_first():
            _end_stage(out / STAGES / stage.name, model, tokenizer, {**known, "stages": list(records)})
        place = Resumption(left=place.left)  # the next stage begins at its start
    values: dict[str, Any] = {
        **known,
        "examples": len(encoded),
        "examples_seen": sum(record["examples_seen"] for record in records),
        "steps": sum(record["steps"] for record in records),
        "train_loss": records[-1]["train_loss"],
        "diverged": diverged(model),
        "train_seconds": round(sum(record["train_seconds"] for record in records), 2),
        "total_seconds": round(time.perf_counter() - started, 2),
        "stages": records,
        "trainable_parameters": trainable,
        "base_parameters": model.base_parameters,
        "dtype": model.config.base["dtype"],
        "quantization": model.config.base["quantization"],
        "device": device_name(model.device),
        "processes": arguments[0].world_size,
        "threads": torch.get_num_threads(),
        "versions": software(),
    }
    values = finite(values)
    if is_first():
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        write_record(out / FINISHED, values)
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    wait_for_all()
    return model, values


def _with_pinned_files(recipe: Recipe) -> Recipe:
    """The recipe with the SHA-256 of every file noted, so that a run says what it saw, and does not go on with other data."""
    return recipe.model_copy(update={"data": with_pinned(recipe.data, "train", "validation")})


def _check_processes(arguments: TrainingArguments, place: Resumption) -> None:
    """Raise what several processes cannot do, or not go on with."""
    count = arguments.world_size
    if place.checkpoint is not None and place.processes != count:
        raise CheckpointError(
            f"{place.checkpoint} was made by {place.processes} process(es), this is a training in {count}; "
            f"resume with torchrun --nproc-per-node {place.processes}"
        )
    if count > 1 and arguments.auto_find_batch_size:
        raise ConfigurationError(
            "training.auto_find_batch_size is for a single process: where memory runs out in one of several, the others wait for "
            "it in vain; leave it out and give training.batch_size or training.batch_tokens"
        )


def train_stage(trainer: ICLMTrainer, checkpoint: Path | None) -> dict[str, Any]:
    """Train one stage, from a checkpoint of it if there is one, and say what was done."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(_ProgressBar)
    clock = next(found for found in trainer.callback_handler.callbacks if isinstance(found, Clock))
    result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.model.eval()
    return {
        "stage": trainer.stage.name,
        "epochs": trainer.stage.epochs,
        "steps": result.global_step,
        "train_loss": mean_loss(trainer.state.log_history, result.training_loss),
        "train_seconds": round(clock.seconds, 2),
    }


def _first_weights(
    recipe: Recipe, out: Path, model: ICLMForCausalLM, place: Resumption, domains: dict[str, int]
) -> list[str]:
    """Give a model the weights of where it goes on or starts from; those of a checkpoint are left to the Trainer.

    Returns what its domain modules are called.
    """
    if place.weights is not None:
        check_base(model, place.weights)
        if place.checkpoint is None:
            load_own_state(model, read_weights(place.weights), place.weights)
        return names_in(place.weights) or model.config.names_after(domains)
    source, names = recipe.training.start_from, model.config.names_after(domains)
    if source is not None:
        if out.resolve() in (source.resolve(), *source.resolve().parents):
            raise ConfigurationError(
                f"training.start_from {source} lies in --out {out}, which this training would replace"
            )
        names = start_from(model, source, domains)
    return names


def _start_router(recipe: Recipe, model: ICLMForCausalLM, packs: list[Pack], pad: int) -> None:
    """Fit the router to the first training examples, unless it came fitted."""
    if not bool(getattr(model.router, "fitted", False)):
        section = recipe.training
        batches = router_batches(
            packs, section.batch_size, recipe.seed, pad, section.router_examples, section.batch_tokens
        )
        model.fit_router(batches, warn_unmatched=False)  # `_matched_names` warns, by name


def _matched_names(model: ICLMForCausalLM, domains: dict[str, int], names: list[str]) -> list[str]:
    """The names without those of domains whose module got none of their examples when the router was fitted, which is warned of."""
    matched = model.matched_domains
    if matched is None:
        return names
    kept = list(names)
    for name, number in domains.items():
        if number in matched or number >= len(names) or names[number] != name:
            continue
        if is_first():
            warnings.warn(
                f"the router tells no module of its own for domain {name!r} from the others, so {default_name(number)} is not "
                "called by it; see iclm diagnose for where its examples go",
                stacklevel=3,
            )
        kept[number] = default_name(number)
    return kept


def _end_stage(folder: Path, model: ICLMForCausalLM, tokenizer: Any, record: dict[str, Any]) -> None:
    """Leave what a stage ended with as a run folder of its own, and drop its checkpoints."""

    def write(part: Path) -> None:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        write_record(part / FINISHED, record)

    write_folder(folder, write)
    shutil.rmtree(folder.parents[1] / CHECKPOINTS / folder.name, ignore_errors=True)


def _training_data(recipe: Recipe, model: ICLMForCausalLM, tokenizer: Any) -> tuple[Any, dict[str, int], list[Any]]:
    """Packs, domains and examples of a recipe, after a look at its validation sources too."""
    context, limit = context_length(model), recipe.data.max_tokens
    if context is not None and limit is not None and limit > context:
        raise ConfigurationError(f"data.max_tokens is {limit}; the context of {recipe.base} is {context}")
    packs, domains, encoded = training_data(
        recipe.data.train,
        tokenizer,
        max_tokens=limit or context,
        pack=model.packs(recipe.data.pack),
        batch_size=recipe.training.batch_size,
        batch_tokens=recipe.training.batch_tokens,
    )
    asked = read_sources(recipe.data.validation)
    free = next((example for example in asked if not example.choices), None)
    if free is not None:
        raise ConfigurationError(
            f"data.validation: {free.source or 'an example'} has no choices, among which validation takes the likeliest; leave it out, "
            "and ask for free answers with iclm evaluate --generate"
        )
    encode(asked, tokenizer, domains=domains, max_tokens=context)
    if recipe.model.router == "oracle" and recipe.method == "iclm" and len(domains) > recipe.model.num_domains:
        raise ConfigurationError(
            f"oracle routing of {len(domains)} domains needs as many modules; model.num_domains is {recipe.model.num_domains}"
        )
    return packs, domains, encoded


def device_name(device: torch.device) -> str:
    """Name of the device for a record."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
