"""What is compared: an ICLM of some split and number of modules, our plain LoRA, PEFT's LoRA and PEFT's X-LoRA.

All have LoRA of the same rank on the same linear layers of the same base in the same dtype, take the same batch, and make
their steps through transformers' Trainer: its loss, its backward pass, clipping, its AdamW. The text is drawn at random:
domain i uses a slice of the vocabulary of its own, so that the router has K domains to find.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments

from iclm.data.collation import IGNORED
from iclm.errors import ConfigurationError
from iclm.model import ICLMConfig, ICLMForCausalLM
from iclm.model.backbone import anatomy, load_base
from iclm.model.modules import target_linears
from iclm.training.trainer import ICLMTrainer
from iclm.version import __version__

RIVALS = ("lora", "peft-lora", "xlora")
LABELLED = 2  # tokens at the end of each example: a short answer and its end
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Workload:
    """What every contestant is given.

    Attributes:
        base: name of the base model.
        batch, tokens: size of a batch.
        rank, targets: of each LoRA module.
        dtype: of the base's weights.
        seed: of text and adapters.
    """

    base: str = "smollm2-135m"
    batch: int = 16
    tokens: int = 96
    rank: int = 8
    targets: str = "attention"
    dtype: str = "auto"
    seed: int = 0

    def examples(self, vocabulary: int, k: int, count: int | None = None) -> dict[str, torch.Tensor]:
        """A batch of random text of k domains in turn: `input_ids`, `attention_mask`, `labels`."""
        if self.tokens <= LABELLED:
            raise ConfigurationError(f"tokens is {self.tokens}; an example needs more than its {LABELLED} labels")
        count = count or self.batch
        generator = torch.Generator().manual_seed(self.seed)
        slice_size = max(1, (vocabulary - 100) // k)
        first = 100 % vocabulary + slice_size * (torch.arange(count) % k)
        ids = (first[:, None] + torch.randint(slice_size, (count, self.tokens), generator=generator)) % vocabulary
        labels = torch.full_like(ids, IGNORED)
        labels[:, -LABELLED:] = ids[:, -LABELLED:]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@dataclass
class Contestant:
    """One model with its trainer.

    Attributes:
        model: in training mode.
        trainer: whose step is timed.
        batch: what each step takes.
    """

    model: Any
    trainer: Trainer
    batch: dict[str, torch.Tensor]

    def step(self) -> None:
        """One optimizer step of the Trainer."""
        self.trainer.training_step(self.model, dict(self.batch), torch.tensor(LABELLED * len(self.batch["labels"])))
        optimizer = self.trainer.optimizer
        assert optimizer is not None
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.trainer.args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()


def iclm(workload: Workload, split: float, k: int, compiled: bool = False) -> Contestant:
    """An ICLM of k domain modules whose trunk is this share of the layers."""
    base = load_base(workload.base, workload.dtype)
    layers = anatomy(base).num_layers
    return ours(workload, base, compiled, split_layer=round(split * layers), num_domains=k)


def lora(workload: Workload, compiled: bool = False) -> Contestant:
    """Our plain LoRA on all layers."""
    return ours(workload, load_base(workload.base, workload.dtype), compiled, method="lora")


def ours(workload: Workload, base: PreTrainedModel, compiled: bool = False, **settings: Any) -> Contestant:
    """An ICLM, or plain LoRA, on a loaded base, with these settings besides what the workload says."""
    config = ICLMConfig(
        lora_rank=workload.rank,
        lora_alpha=2.0 * workload.rank,
        target_modules=workload.targets,
        seed=workload.seed,
        **settings,
    )
    config.base["name"] = workload.base
    model = ICLMForCausalLM.from_base(base, config).to(_device()).train()
    if compiled:
        model.compile_layers()
    k, vocabulary = settings.get("num_domains", 1), anatomy(base).vocab_size
    batch = _to_device(workload.examples(vocabulary, k))
    if model.router is not None:
        model.fit_router([_to_device(workload.examples(vocabulary, k, max(4 * k, workload.batch)))])
    with tempfile.TemporaryDirectory() as scratch:
        trainer = ICLMTrainer(model, _arguments(scratch), [])
    return _contestant(model, trainer, batch)


def peft_lora(workload: Workload) -> Contestant:
    """PEFT's LoRA on all layers."""
    from peft import get_peft_model

    base = load_base(workload.base, workload.dtype)
    model = get_peft_model(base, _lora_config(workload, base)).to(_device()).train()
    return _theirs(workload, model, 1)


def xlora(workload: Workload, k: int) -> Contestant:
    """PEFT's X-LoRA of k trainable adapters on all layers."""
    from peft import XLoraConfig, get_peft_model

    base = load_base(workload.base, workload.dtype)
    base.config.use_cache = False  # X-LoRA refuses to train with a cache
    with tempfile.TemporaryDirectory() as scratch:
        plain = load_base(workload.base, workload.dtype)
        saved = get_peft_model(plain, _lora_config(workload, plain))
        saved.save_pretrained(scratch)
        del plain, saved
        config = XLoraConfig(
            task_type="CAUSAL_LM",
            hidden_size=base.config.hidden_size,
            adapters={str(number): scratch for number in range(k)},  # PEFT 0.21 knows adapters by their number only
            use_trainable_adapters=True,
        )
        model = get_peft_model(base, config).to(_device()).train()
    return _theirs(workload, model, k)


def _lora_config(workload: Workload, base: PreTrainedModel) -> Any:
    from peft import LoraConfig

    layers = base.get_submodule(anatomy(base).layers_path)
    names = sorted({name.rpartition(".")[2] for name in target_linears(layers[0], workload.targets)})
    return LoraConfig(
        r=workload.rank, lora_alpha=2 * workload.rank, target_modules=names, lora_dropout=0.0, task_type="CAUSAL_LM"
    )


def _theirs(workload: Workload, model: Any, k: int) -> Contestant:
    vocabulary = model.get_output_embeddings().weight.shape[0]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(model=model, args=_arguments(scratch))
    return _contestant(model, trainer, _to_device(workload.examples(vocabulary, k)))


def _contestant(model: Any, trainer: Trainer, batch: dict[str, torch.Tensor]) -> Contestant:
    trainer.create_optimizer()
    return Contestant(model, trainer, batch)


def _arguments(folder: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        learning_rate=LEARNING_RATE,
        report_to="none",
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        log_level="error",
    )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _to_device(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(_device()) for name, tensor in batch.items()}


def versions() -> dict[str, str]:
    """Versions of what was compared."""
    found = {"iclm": __version__}
    for name in ("torch", "transformers", "peft"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
