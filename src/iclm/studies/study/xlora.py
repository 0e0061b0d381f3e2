"""PEFT's X-LoRA as a method of a study: its own model, trained on the same examples in the same order as all others.

    frozen base, no adapter ─▶ last hidden state ─▶ gate: softmax over K adapters ─▶ scalings [batch, tokens, K]
    frozen base ─▶ every adapted layer: W x + sum_k B_k A_k (scaling_k x) ─▶ logits

Source: Buehler & Buehler, *X-LoRA: Mixture of Low-Rank Adapter Experts*, arXiv 2402.07148; `peft.XLoraModel`.

- Budget. The paper trains an adapter on each domain first, freezes them, and then trains the gate on all. Here gate and adapters
  are trained together from fresh adapters (PEFT's `use_trainable_adapters`), so that X-LoRA sees each training example as
  often as every other method. It is not told the domain of an example.
- Order. Batches are drawn from the same packs by the same rule as ours, so each holds the same examples. PEFT's model
  knows no packed branches, so each example is then a sequence of its own, padded on the right.
- Memory. PEFT keeps the input of each adapted layer in float32, and once more for each adapter, until the backward pass. The
  sequences of a batch therefore run in parts, whose gradients add up to those of the batch.
- Loss: mean cross-entropy at the labelled tokens of a batch, the language-modelling loss of our models. Optimizer, schedule and
  clipping are those of the recipe; gate and adapters have the adapters' learning rate.
- Numbers. The base has the recipe's dtype, all that is trained is float32 as in our models. PEFT leaves the gate in the
  base's dtype, where AdamW's second moment cannot shrink: in bfloat16 0.999 v rounds to v.
- Names. PEFT finds adapters only under the names "0", "1", ..., and `save_pretrained` takes these for numbers of layers:
  in PEFT 0.18.0 and 0.21.2 it drops some of the adapters' weights and writes some of the base's. What was trained is therefore
  saved here under its full name.

FOLDER/model.safetensors     gate and adapters
FOLDER/log.jsonl             a line for every logging step
FOLDER/run.json              domains, examples, steps, seconds; written last
"""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from iclm.data.collation import IGNORED, Pack, collate, split_pack
from iclm.data.loading import training_data
from iclm.data.sources.optional import import_optional
from iclm.errors import CheckpointError
from iclm.evaluation.runs import FINISHED, context_length
from iclm.model.backbone import anatomy, load_base
from iclm.model.checkpoint import WEIGHTS, read_json, read_weights, write_tensors
from iclm.model.modules import target_linears
from iclm.recipe import Recipe
from iclm.studies.study.recipe import XLora
from iclm.training.batches import EvenBatches
from iclm.training.folder import LOG, LogFile, mean_loss, write_record
from iclm.training.run import training_arguments

TOKENS_AT_ONCE = 1024  # padded tokens of a part of a batch, at most (a longer sequence is a part of its own)


def build(recipe: Recipe, xlora: XLora) -> Any:
    """A fresh X-LoRA: `model.num_domains` LoRA adapters drawn from the recipe's seed, and a gate.

    Returns:
        A `peft.PeftModel` on the CPU whose logits are those of the base until it is trained.

    Raises:
        ConfigurationError: PEFT is not installed, or target_modules matches nothing.
        BackboneError: the base cannot be loaded.
    """
    peft = import_optional("peft", "X-LoRA", "peft")
    base = load_base(recipe.base, recipe.dtype)
    base.config.use_cache = False  # PEFT refuses a base with a cache
    place, settings = anatomy(base), recipe.model
    lora = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=target_linears(base.get_submodule(place.layers_path)[0], settings.target_modules),
    )
    transformers.set_seed(recipe.seed)
    # PEFT's X-LoRA loads its adapters; it draws what a folder has no weights for, each adapter by itself
    with tempfile.TemporaryDirectory() as folder:
        lora.save_pretrained(folder)
        save_file({}, Path(folder) / "adapter_model.safetensors")
        config = peft.XLoraConfig(
            task_type="CAUSAL_LM",
            hidden_size=place.hidden_size,
            adapters={str(number): folder for number in range(settings.num_domains)},
            use_trainable_adapters=True,
            **xlora.model_dump(),
        )
        model = peft.get_peft_model(base, config)
    _train_gate_in_float32(model.base_model.internal_xlora_classifier)
    return model


def _train_gate_in_float32(gate: Any) -> None:
    gate.float()
    gate.dtype = torch.float32
    gate.layers[0].register_forward_pre_hook(lambda layer, states: (states[0].to(layer.weight.dtype),))


def trained(recipe: Recipe, xlora: XLora, tokenizer: Any, out: Path) -> tuple[Any, dict[str, Any]]:
    """The X-LoRA of a training that is finished, or is done now, from its beginning if it was cut short.

    Args:
        out: its folder.

    Returns:
        The model in evaluation mode, on the GPU if there is one, and what run.json says.

    Raises:
        ICLMError: a recipe, data or base that cannot be used.
    """
    arguments = _arguments(recipe, out)
    if (out / FINISHED).is_file():
        with contextlib.suppress(CheckpointError):  # what it left is damaged
            record = read_json(out / FINISHED)
            model = build(recipe, xlora).to(arguments.device)
            load(model, out)
            return model.eval(), record
    return _train(recipe, build(recipe, xlora).to(arguments.device), arguments, tokenizer, out)


def _train(
    recipe: Recipe, model: Any, arguments: TrainingArguments, tokenizer: Any, out: Path
) -> tuple[Any, dict[str, Any]]:
    limit = recipe.data.max_tokens or context_length(model)
    packs, domains, encoded = training_data(
        recipe.data.train,
        tokenizer,
        max_tokens=limit,
        pack=recipe.data.pack,
        batch_size=recipe.training.batch_size,
        batch_tokens=recipe.training.batch_tokens,
    )
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    trainer = XLoraTrainer(model, arguments, packs, tokenizer.pad_token_id, callbacks=[LogFile(out / LOG, 0, None)])
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    started = time.perf_counter()
    result = trainer.train()
    seconds = time.perf_counter() - started
    shutil.rmtree(arguments.output_dir, ignore_errors=True)  # of checkpoints, which there are none of
    write_tensors(out / WEIGHTS, {name: p.detach().cpu().contiguous() for name, p in trainable(model).items()})
    record = {
        "method": "xlora",
        "base": recipe.base,
        "domains": list(domains),
        "examples": len(encoded),
        "examples_seen": len(encoded) * recipe.training.epochs,
        "steps": result.global_step,
        "train_loss": mean_loss(trainer.state.log_history, result.training_loss),
        "train_seconds": round(seconds, 2),
        "trainable_parameters": sum(p.numel() for p in trainable(model).values()),
        "peft": import_optional("peft", "X-LoRA", "peft").__version__,
    }
    write_record(out / FINISHED, record)
    return model.eval(), record


def _arguments(recipe: Recipe, out: Path) -> TrainingArguments:
    """The arguments that our models are trained with, without checkpoints."""
    section = recipe.training.model_copy(update={"save_steps": None})
    arguments = training_arguments(recipe.model_copy(update={"training": section}), out)
    arguments.disable_tqdm = True
    return arguments


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """What is trained of an X-LoRA, by name: the gate and the matrices of all adapters."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def load(model: Any, folder: Path) -> None:
    """Copy saved weights into a freshly built X-LoRA; raises `CheckpointError` unless names and shapes agree exactly."""
    own, saved = trainable(model), read_weights(folder)
    if {name: p.shape for name, p in own.items()} != {name: p.shape for name, p in saved.items()}:
        raise CheckpointError(f"{folder / WEIGHTS} does not fit the X-LoRA of this recipe; remove {folder}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])


class XLoraTrainer(Trainer):
    """Trains an X-LoRA on packs, in the order in which `ICLMTrainer` trains on them.

    Args:
        model: what `build` gives.
        args: the Trainer's arguments; `per_device_train_batch_size` counts examples.
        packs: what is trained on.
        pad: id of the pad token.
        kwargs: passed on to the Trainer.
    """

    def __init__(self, model: Any, args: TrainingArguments, packs: list[Pack], pad: int, **kwargs: Any) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=packs,  # type: ignore[arg-type]
            data_collator=lambda chosen: collate([one for pack in chosen for one in split_pack(pack)], pad),  # type: ignore[arg-type]
            **kwargs,
        )
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the labelled tokens of an accumulated step

    def get_train_dataloader(self) -> DataLoader:
        """Batches of training packs, in an order that depends on seed and epoch alone."""
        packs, epochs = self.train_dataset, math.ceil(self.args.num_train_epochs)
        batches = EvenBatches(packs, self._train_batch_size, self.args.seed, epochs)  # type: ignore[arg-type]
        loader = DataLoader(packs, batch_sampler=batches, collate_fn=self.data_collator)  # type: ignore[arg-type]
        return self.accelerator.prepare(loader)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Add the gradients of a batch, part by part; returns its loss."""
        batch = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
        if num_items_in_batch is None:
            num_items_in_batch = _predicted(batch["labels"])
        size, tokens = batch["input_ids"].shape
        rows, losses = max(1, TOKENS_AT_ONCE // tokens), []
        for at in range(0, size, rows):
            part = {name: tensor[at : at + rows] for name, tensor in batch.items()}
            losses.append(super().training_step(model, part, num_items_in_batch))
        return torch.stack(losses).sum()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross-entropy of the labelled tokens; logits are computed at positions that predict one in any row."""
        labels = inputs["labels"][:, 1:]
        kept = (labels != IGNORED).any(dim=0).nonzero()[:, 0]
        outputs = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], logits_to_keep=kept, use_cache=False
        )
        total = F.cross_entropy(
            outputs.logits.float().flatten(0, 1), labels[:, kept].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        count = _predicted(inputs["labels"]) if num_items_in_batch is None else num_items_in_batch
        return (total / count, outputs) if return_outputs else total / count


def _predicted(labels: torch.Tensor) -> torch.Tensor:
    """How many tokens are learned from; the first of a sequence follows nothing."""
    return (labels[:, 1:] != IGNORED).sum()
