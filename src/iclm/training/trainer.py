"""ICLMTrainer: transformers' Trainer for packs of examples, an ICLM's parameter groups and its five loss terms.

The groups of the optimizer, each with a peak learning rate of its own and all on one schedule:

    adapters        training.learning_rate             weight decay
    invariant       learning_rate * invariant_rate     weight decay; only where a stage slows the invariant module
    aggregator.*    aggregator_learning_rate           weight decay
    router.*        router_learning_rate
    independence.*  critic_learning_rate
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from iclm.data.collation import LengthBucketedBatches, Pack, collate, recut
from iclm.errors import CheckpointError, ConfigurationError
from iclm.model import checkpoint
from iclm.model.health import CollapseWatch, RouterHealth
from iclm.model.modeling_iclm import ICLMForCausalLM
from iclm.training.batches import EvenBatches
from iclm.training.restart import Beginning
from iclm.training.stages import Ramp, Rates, Stage, is_invariant


def router_batches(
    packs: Sequence[Pack], batch_size: int, seed: int, pad: int, examples: int, batch_tokens: int | None = None
) -> Iterator[dict[str, torch.Tensor]]:
    """What the router is started from: the first batches of a training, until they hold so many examples.

    Of a domain that none of them holds, the first batch that does comes after them: a module is found for it too.
    """
    seen = 0
    lacking = {branch.domain for pack in packs for branch in pack.branches if branch.domain >= 0}
    for numbers in LengthBucketedBatches(packs, batch_size, seed, batch_tokens=batch_tokens):
        domains = {branch.domain for number in numbers for branch in packs[number].branches}
        if seen < examples or not lacking.isdisjoint(domains):
            yield collate([packs[number] for number in numbers], pad)
            seen += sum(len(packs[number].branches) for number in numbers)
            lacking -= domains
        if seen >= examples and not lacking:
            return


def checkpoint_step(folder: Path) -> int:
    """The step after which a checkpoint folder of the Trainer was written, told by its name."""
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


class _CompleteLog(TrainerCallback):
    """Logs at every checkpoint and at the end too, so that no step is missing from the log of a resumed training."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a line."""
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True


class ICLMTrainer(Trainer):
    """Trains an ICLM, or plain LoRA, on packs.

    Beyond transformers' Trainer: batches of packs of similar length in an order that depends on seed and epoch alone, the
    router's start from the first batches, learning rates by kind of parameter, a schedule for the independence loss, loss
    terms and router health in the log, stages, and checkpoints of our own parameters only. Everything else (Accelerate,
    integrations, resuming) is the Trainer's.

    Args:
        model: in any mode.
        args: the Trainer's arguments; `per_device_train_batch_size` and `per_device_eval_batch_size` count examples.
        train_dataset, eval_dataset: packs; those of `iclm.training.features.with_features` spare a router above the split
            its extra pass in every step.
        pad: id of the pad token.
        router_examples: how many examples the router is started from.
        batch_tokens: padded tokens of a batch, at most; None means no limit. Where `auto_find_batch_size` makes the
            batches smaller, it shrinks in proportion, and packs that are larger are cut.
        rates: learning rates of aggregator, router and critics.
        independence: weight of the independence loss over the steps; None means the same in all.
        stage: what is trained; its `epochs` are those of `args`. None means a joint training.
        kwargs: passed on to the Trainer.

    Raises:
        ConfigurationError: a data set is no sequence of packs; a collator, label smoothing or a loss of one's own is given; or FSDP
            or DeepSpeed is asked for, which shard parameters.
    """

    model: ICLMForCausalLM
    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: ICLMForCausalLM,
        args: TrainingArguments,
        train_dataset: Sequence[Pack] | None = None,
        eval_dataset: Sequence[Pack] | None = None,
        *,
        pad: int = 0,
        router_examples: int = 256,
        batch_tokens: int | None = None,
        rates: Rates | None = None,
        independence: Ramp | None = None,
        stage: Stage | None = None,
        **kwargs: Any,
    ) -> None:
        if args.label_smoothing_factor:
            raise ConfigurationError(
                f"label_smoothing_factor is {args.label_smoothing_factor}; the losses of an ICLM are its own, and know no smoothing"
            )
        for name, data in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            sized = hasattr(data, "__len__") and not isinstance(data, dict)
            if data is not None and not (sized and (len(data) == 0 or isinstance(data[0], Pack))):
                held = type(data[0]).__name__ if sized else f"no sequence but a {type(data).__name__}"
                raise ConfigurationError(
                    f"{name} holds {held}, not packs (iclm.data.collation.training_packs makes them); for rows of "
                    "input_ids and labels use transformers' own Trainer, after model.fit_router"
                )
        if kwargs.pop("data_collator", None) is not None:
            raise ConfigurationError("data_collator is given; ICLMTrainer collates packs itself: leave it out")
        if kwargs.get("compute_loss_func") is not None:
            raise ConfigurationError(
                "compute_loss_func is given; the losses of an ICLM are its own: leave it out, or override compute_loss in a subclass"
            )
        self.router_examples, self.pad, self.batch_tokens = router_examples, pad, batch_tokens
        self.rates, self.independence, self.stage = rates or Rates(), independence or Ramp(), stage or Stage()
        self._terms: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._logged_step = 0
        self._beginning: Beginning | None = None
        self._warmup = args.warmup_steps
        domains = (branch.domain for pack in train_dataset or () for branch in pack.branches)
        self._health = RouterHealth(model.config.num_domains, 1 + max(domains, default=-1))
        self._watch = self._new_watch(model)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,  # type: ignore[arg-type]
            eval_dataset=eval_dataset,  # type: ignore[arg-type]
            data_collator=functools.partial(collate, pad=pad),  # type: ignore[arg-type]
            **kwargs,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ConfigurationError(
                "FSDP and DeepSpeed shard parameters, and would mix the gradients of modules that processes use differently; start "
                "one whole copy a process with torchrun (DistributedDataParallel)"
            )
        self.add_callback(_CompleteLog)

    def batches(
        self, packs: Sequence[Pack], epochs: int = 1, first: int = 0, size: int | None = None
    ) -> LengthBucketedBatches:
        """The batches of so many epochs, whose first has the order of epoch `first`.

        Args:
            size: examples in a batch; None means as many as in training.
        """
        size, tokens = self._train_batch_size if size is None else size, self._token_limit
        here = {"processes": self.accelerator.num_processes, "process": self.accelerator.process_index}
        return EvenBatches(packs, size, self.args.seed, epochs, first, tokens, **here)

    @property
    def _shrunk(self) -> bool:
        """Whether memory ran out, so that batches are smaller than asked for."""
        return self.args.auto_find_batch_size and self._train_batch_size < self.args.train_batch_size

    @property
    def _token_limit(self) -> int | None:
        """Padded tokens of a batch, at most, in proportion to its examples."""
        if self.batch_tokens is None:
            return None
        return max(1, self.batch_tokens * self._train_batch_size // self.args.train_batch_size)

    def get_train_dataloader(self) -> DataLoader:
        """Batches of training packs; asked for again where memory ran out and the batches are to be smaller."""
        if self.args.auto_find_batch_size:
            if self._beginning is None:
                self._beginning = Beginning(self.model, self.optimizer, self._logged_step)
            else:
                self._begin_again(self._beginning)
        packs: Any = self.train_dataset
        if self._shrunk and packs is not None:
            packs = recut(packs, self._train_batch_size, self._token_limit)
        return self._loader(packs, math.ceil(self.args.num_train_epochs), self.stage.first_epoch)

    def _begin_again(self, beginning: Beginning) -> None:
        """Undo what the attempt that ran out of memory has learned and counted."""
        beginning.restore(self.model)
        self.optimizer = beginning.optimizer
        self._count_from(beginning.step)

    def _count_from(self, step: int) -> None:
        """Forget what was kept for the next line of the log: it tells of what comes after a step."""
        self._logged_step = step
        self._terms.clear()
        self._health.clear()
        self._watch = self._new_watch(self.model)

    @staticmethod
    def _new_watch(model: ICLMForCausalLM) -> CollapseWatch | None:
        return None if model.config.router.startswith("fixed:") else CollapseWatch()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Batches of evaluation packs."""
        packs = self.eval_dataset if eval_dataset is None else eval_dataset
        return self._loader(packs, size=self.args.eval_batch_size)

    def _loader(self, packs: Any, epochs: int = 1, first: int = 0, size: int | None = None) -> DataLoader:
        if packs is None:
            raise ValueError("the trainer was given no packs for this")
        loader = DataLoader(
            packs,
            batch_sampler=self.batches(packs, epochs, first, size),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        if self.accelerator.num_processes == 1:
            return self.accelerator.prepare(loader)
        # The sampler gives each process its own batches. Accelerate's shares would hide it from the Trainer, which tells it
        # the epoch: where a training is resumed it looks through one wrapper only.
        return prepare_data_loader(
            loader, self.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )

    def fit_router(self) -> int:
        """Start the router from the first batches, unless it was started; returns the number of examples."""
        if bool(getattr(self.model.router, "fitted", True)):
            return 0
        size, seed = self.args.per_device_train_batch_size, self.args.seed
        packs: Any = self.train_dataset
        return self.model.fit_router(
            router_batches(packs, size, seed, self.pad, self.router_examples, self.batch_tokens)
        )

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Fit the router, unless a checkpoint brings one, and train.

        Args:
            resume_from_checkpoint: folder of a checkpoint, or True for the last one in the arguments' output_dir.

        Raises:
            CheckpointError: there is none.
            ConfigurationError: memory runs out with batches of a single example too (`auto_find_batch_size`).
        """
        if resume_from_checkpoint is True:
            place = str(self.args.output_dir)
            resume_from_checkpoint = get_last_checkpoint(place) if Path(place).is_dir() else None
            if resume_from_checkpoint is None:
                raise CheckpointError(f"{place} holds no checkpoint to resume from; leave out resume_from_checkpoint")
        if resume_from_checkpoint:
            self._count_from(checkpoint_step(Path(resume_from_checkpoint)))
        else:
            self._count_from(0)
            self.fit_router()
        try:
            with self.stage.only(self.model):
                return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        except RuntimeError as error:
            if "No executable batch size found" not in str(error):
                raise
            raise ConfigurationError(
                "memory runs out with batches of one example too; give shorter examples, or training.gradient_checkpointing, "
                "a smaller model.lora_rank or a smaller base"
            ) from error
        finally:
            self.model.mi_scale = 1.0
            self._beginning = None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer on the groups at the head of this module; what the stage does not train is left out."""
        if self.optimizer is None:
            decay, rate = self.args.weight_decay, self.args.learning_rate
            aggregator = rate if self.rates.aggregator is None else self.rates.aggregator
            settings = {  # the first group's learning rate is the one that is logged
                "adapters": {"lr": rate, "weight_decay": decay},
                "invariant": {"lr": rate * self.stage.invariant_rate, "weight_decay": decay},
                "aggregator": {"lr": aggregator, "weight_decay": decay},
                "router": {"lr": self.rates.router, "weight_decay": 0.0},
                "independence": {"lr": self.rates.critic, "weight_decay": 0.0},
            }
            groups: dict[str, list[torch.nn.Parameter]] = {name: [] for name in settings}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad and self.stage.trains(name):
                    groups[self._group(name)].append(parameter)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(
                [{"params": parameters, **settings[name]} for name, parameters in groups.items() if parameters],
                **options,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's schedule; a training that is all warm-up (of one step) has none, as its learning rate would be 0."""
        self.args.warmup_steps = self._warmup  # asked for again where memory ran out
        if self.args.get_warmup_steps(num_training_steps) >= num_training_steps:
            self.args.warmup_steps = 0
        return super().create_scheduler(num_training_steps, optimizer)

    def _group(self, name: str) -> str:
        part = name.partition(".")[0]
        if part in ("aggregator", "router", "independence"):
            return part
        return "invariant" if self.stage.invariant_rate != 1 and is_invariant(name) else "adapters"

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of the stage; in training its terms and the routes are kept for the next line of the log.

        In evaluation it is that of the batch alone, whatever the other processes have: the Trainer averages over all.
        """
        training = self.model.training
        if not training:
            num_items_in_batch = None
        if training:
            self.model.mi_scale = self.independence.scale(self.state.global_step, self.state.max_steps)
        outputs = model(**inputs, module=self.stage.module, num_items_in_batch=num_items_in_batch)
        # where the items are those of all processes each loss is a share of their sum, and gradients are averaged
        shares = self.accelerator.num_processes if training and self.args.average_tokens_across_devices else 1
        loss = outputs.loss if shares == 1 or num_items_in_batch is None else outputs.loss * shares
        if training:
            for name, value in outputs.terms.items():  # each is a share of the accumulated step
                self._terms[name].append(value if num_items_in_batch is None else value * shares)
            if outputs.decision is not None:
                self._health.add(outputs.decision, inputs.get("domain_ids"))
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add to a line what happened since the last one: mean loss terms, router health, the independence weight."""
        if self.stage.number is not None:
            logs["stage"] = self.stage.number
        steps = self.state.global_step - self._logged_step
        if "loss" in logs and self._terms and steps:
            for name, values in self._terms.items():
                total = torch.stack(values).float().sum()
                logs[f"loss_{name}"] = float(self.accelerator.reduce(total, "mean") / steps)
            if "mi" in self._terms and not self.independence.flat:
                logs["mi_weight"] = self.model.config.mi_weight * self.model.mi_scale
            self._log_health(logs)
            self._terms.clear()
            self._logged_step = self.state.global_step
        super().log(logs, *args, **kwargs)

    def _log_health(self, logs: dict[str, float]) -> None:
        several = self.accelerator.num_processes > 1
        counts = self._health.counts(self.accelerator.reduce if several else None)
        self._health.clear()
        logs.update(counts.figures())
        if self._watch is not None and counts.examples:
            self._watch.add(counts)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        checkpoint.load_own_state(self.model, checkpoint.read_weights(folder), folder)
