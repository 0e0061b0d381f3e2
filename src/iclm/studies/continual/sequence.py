"""One sequence: tasks learned one after another by one method, and all tasks asked after each.

FOLDER/job.json           what it is given
FOLDER/units/000/ ...     after each unit (a task, or what was taken for one): the model and state.json; only the last is kept
FOLDER/work/000/          checkpoints of the training of the unit that runs
FOLDER/run/               the model at the end, as a run folder

A sequence that was cut short goes on from the last checkpoint, and ends in the same matrix.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file

from iclm.data.collation import EncodedExample, Pack, training_packs
from iclm.errors import CheckpointError
from iclm.evaluation.runs import FINISHED
from iclm.model import ICLMForCausalLM, load_tokenizer
from iclm.model.checkpoint import read_json, write_tensors
from iclm.model.configuration_iclm import default_name, name_fault
from iclm.model.plan import INVARIANT
from iclm.model.router import LearnedRouter
from iclm.model.surgery import add_module, rename_module
from iclm.recipe import dump_recipe
from iclm.studies.continual.asking import Counts, ask
from iclm.studies.continual.novelty import Calibration
from iclm.studies.continual.pieces import Piece
from iclm.studies.continual.recipe import ContinualMethod, ContinualRecipe, Ewc, told_boundaries, training_recipe
from iclm.studies.continual.stream import Stream
from iclm.studies.continual.units import Reader
from iclm.studies.study.job import SPEC
from iclm.training.folder import (
    CLOCK,
    LOG,
    RECIPE,
    Clock,
    LogFile,
    checkpoints_of,
    newest_checkpoint,
    write_folder,
    write_record,
)
from iclm.training.guards import ElasticWeights, Reservoir, TaskStage, TaskTrainer, adapter_names, guarded_names
from iclm.training.run import build_model, make_trainer, train_stage, training_arguments

UNITS, WORK, RUN = "units", "work", "run"
STATE, GUARD, BUFFER, STREAM = "state.json", "guard.safetensors", "buffer.json", "stream.safetensors"


@dataclass
class State:
    """Where a sequence stands; what is in state.json.

    Attributes:
        units: what each unit was.
        homes: number of the domain module that most examples of a task went to, by task.
        sent: for each task the number of its trained examples by the module they went to.
        errors, placed: of the calibration, where boundaries are known.
        stream: where the stream stands, where they are not.
        rows: all rows so far.
        seconds: that all of it took.
    """

    units: list[dict[str, Any]] = field(default_factory=list)
    homes: dict[str, int] = field(default_factory=dict)
    sent: dict[str, dict[str, int]] = field(default_factory=dict)
    errors: list[list[float]] = field(default_factory=list)
    placed: list[int] = field(default_factory=list)
    stream: dict[str, Any] | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


class TaskSequence:
    """A sequence in a folder.

    Args:
        folder: holds job.json.

    Attributes:
        model: as it is now; of a joint training there is none before it is done.
    """

    model: ICLMForCausalLM

    def __init__(self, folder: Path) -> None:
        self.folder, self.spec = folder, read_json(folder / SPEC)
        self.recipe = ContinualRecipe.model_validate(self.spec["recipe"])
        self.order: list[str] = self.recipe.orders[self.spec["order"]]
        self.method: ContinualMethod = self.recipe.methods[self.spec["method"]]
        self.training = training_recipe(self.recipe, self.spec["method"], self.spec["order"], self.spec["seed"] or 0)
        self.boundaries = told_boundaries(self.recipe, self.spec["method"])
        self.started = time.perf_counter()
        self.tokenizer = load_tokenizer(self.training.base)
        self.pad = int(self.tokenizer.pad_token_id)
        self.state = State()
        self.elastic: ElasticWeights | None = None
        self.buffer: Reservoir | None = None
        self.stream: Stream | None = None
        saved = self._saved()
        if self.method.kind != "joint":
            self.model = self._fresh() if saved is None else self._taken_up(saved)
        self.earlier = self.state.seconds

    def _fresh(self) -> ICLMForCausalLM:
        """The model before the first task."""
        method = "lora" if self.method.kind == "base" else self.training.method
        transformers.set_seed(self.training.seed)
        return _placed(build_model(self.training.model_copy(update={"method": method})))

    def _saved(self) -> Path | None:
        """Folder of the last unit that was done."""
        done = [path.parent for path in (self.folder / UNITS).glob(f"[0-9]*/{STATE}")]
        return max(done, default=None)

    def _taken_up(self, saved: Path) -> ICLMForCausalLM:
        """The model and the state after the last unit that was done."""
        try:
            self.state = State(**read_json(saved / STATE))
        except TypeError as error:
            raise CheckpointError(f"{saved / STATE} is damaged: {error}; remove {self.folder}") from error
        if len(self.state.units) != int(saved.name) + 1:
            raise CheckpointError(
                f"{saved / STATE} is damaged: it has {len(self.state.units)} units, not {int(saved.name) + 1}; "
                f"remove {self.folder}"
            )
        return _placed(ICLMForCausalLM.from_pretrained(saved))

    def reader(self) -> Reader:
        """Reads the tasks."""
        data, seed = self.training.data, self.training.seed
        return Reader(self.recipe, self.order, seed, self.tokenizer, self.model, data.max_tokens, data.pack)

    # -- learning ------------------------------------------------------------------------------------------------------

    def run(self) -> list[dict[str, Any]]:
        """Do what is left; returns all rows."""
        reader, calibration = self.reader(), self._calibration()
        tests = reader.tests()
        if self.boundaries == "unknown":
            self.stream = self._stream(reader)
            pieces = self.stream.pieces()
        else:
            pieces = reader.pieces(len(self.state.units), calibration)
        for piece in pieces:
            self.learn(piece)
            self.ask(tests)
            self.state.errors, self.state.placed = calibration.errors, calibration.placed
            self.state.stream = None if self.stream is None else self.stream.values
            self.keep()
        self.ask(tests, over=True)
        self.finish()
        return self.state.rows

    def _stream(self, reader: Reader) -> Stream:
        """The stream as it stood after the last unit that was done."""
        saved = self._saved()
        if saved is None or not self.state.units:
            return Stream(reader)
        if self.state.stream is None:
            raise CheckpointError(f"{saved / STATE} is damaged: it has no stream; remove {self.folder}")
        return Stream(reader, self.state.stream, self.tensors(saved / STREAM))

    def tensors(self, path: Path) -> dict[str, torch.Tensor]:
        """Tensors of the state; raises `CheckpointError` that says what to do where they cannot be read."""
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} is damaged: {error}; remove {self.folder}") from error

    @property
    def seconds(self) -> float:
        """That all of it took so far, in all processes."""
        return self.earlier + time.perf_counter() - self.started

    def _calibration(self) -> Calibration:
        """What is known of the modules that are open."""
        if not self.state.units or not isinstance(self.model.router, LearnedRouter):
            return Calibration()
        return Calibration(list(self.model.router.codes.detach().cpu()), self.state.errors, self.state.placed)

    def open(self, piece: Piece) -> None:
        """Open the module of a unit."""
        model, number = self.model, piece.unit.main
        known = model.config.names[:number]
        name = default_name(number) if name_fault(piece.name, number, known) else piece.name
        if number == 0:  # every model has one to begin with
            rename_module(model.config, 0, name)
        else:
            learned = isinstance(model.router, LearnedRouter)
            # any feature will do: the code is set below, from points in the router's own space
            features = model.router.mean[None].clone() if learned else None
            add_module(model, name, features=features)
        if piece.points is not None:
            assert isinstance(model.router, LearnedRouter)
            model.router.place(piece.points.mean(0).to(model.device), len(piece.points))

    def learning(self, piece: Piece) -> frozenset[int]:
        """Numbers in the bank of the modules that learn from a unit."""
        found = {1 + piece.unit.main} if piece.unit.opened else set()
        frozen = self.method.guard == "frozen_after_first" and self.state.units
        if INVARIANT in self.model.config.modules and not frozen:
            found.add(INVARIANT)
        return frozenset(found)

    @property
    def ewc(self) -> Ewc:
        """Settings of elastic weight consolidation."""
        return self.method.ewc or self.recipe.ewc

    def guard(self, number: int) -> tuple[ElasticWeights | None, Reservoir | None]:
        """What is kept of the tasks before unit `number`."""
        before = self.folder / UNITS / f"{number - 1:03d}"
        elastic = buffer = None
        if self.method.guard == "ewc":
            elastic = ElasticWeights(self.ewc.weight, self.tensors(before / GUARD) if number else None)
        if self.method.guard == "replay":
            values = read_json(before / BUFFER) if number else None
            buffer = Reservoir((self.method.replay or self.recipe.replay).problems, self.training.seed, values)
        return elastic, buffer

    def learn(self, piece: Piece) -> None:
        """Train on a unit, and add it to the record."""
        model, number = self.model, len(self.state.units)
        if piece.unit.opened:
            self.open(piece)
        packs = training_packs(
            piece.examples,
            self.tokenizer.eos_token_id,
            pack=model.packs(self.training.data.pack),
            batch_size=self.training.training.batch_size,
            batch_tokens=self.training.training.batch_tokens,
        )
        self.elastic, self.buffer = self.guard(number)
        kept = [] if self.buffer is None else list(self.buffer.packs)
        modules, record = self.learning(piece), {"steps": 0, "train_seconds": 0.0, "train_loss": None}
        trained = 0
        if modules:
            record, trained = self.train(number, modules, [*packs, *kept])
        started = time.perf_counter()
        if self.elastic is not None:
            chosen = packs[:: max(1, -(-len(packs) // self.ewc.problems))]
            self.elastic.consolidate(model, chosen, guarded_names(model), self.pad)
        if self.buffer is not None:
            self.buffer.offer(packs)
        tasks = Counter(piece.tasks)
        for (task, module), count in Counter(zip(piece.tasks, piece.unit.modules, strict=True)).items():
            sent = self.state.sent.setdefault(task, {})
            sent[str(module)] = sent.get(str(module), 0) + count
        for task in tasks:
            home = int(max(self.state.sent[task].items(), key=lambda item: item[1])[0])
            if home >= 0:
                self.state.homes[task] = home
        added = set(adapter_names(model, 1 + piece.unit.main)) if piece.unit.opened else set()
        self.state.units.append(
            {
                "module": piece.unit.main,
                "opened": piece.unit.opened,
                "tasks": dict(tasks),
                "ends": list(piece.ends),
                "share_new": piece.share,
                "trainable": trained,
                "added": sum(p.numel() for name, p in model.named_parameters() if name in added),
                "replayed": sum(len(pack.branches) for pack in kept),
                "steps": record["steps"],
                "train_loss": record["train_loss"],
                "train_seconds": record["train_seconds"],
                "guard_seconds": round(time.perf_counter() - started, 2),
            }
        )

    def train(self, number: int, modules: frozenset[int], packs: list[Pack]) -> tuple[dict[str, Any], int]:
        """Train some modules; returns the record, and how many parameters were trained."""
        work = self.folder / WORK / f"{number:03d}"
        frozen = self.method.guard == "frozen_after_first" and number > 0
        stage = TaskStage(epochs=self.training.training.epochs, modules=modules, aggregator=not frozen)
        place = newest_checkpoint(checkpoints_of(work, stage))
        transformers.set_seed(self.training.seed)
        clock = read_json(place / CLOCK).get("seconds", 0.0) if place is not None else 0.0
        arguments = training_arguments(self.training, work, stage)
        arguments.disable_tqdm = True
        work.mkdir(parents=True, exist_ok=True)
        callbacks = [LogFile(work / LOG, 0, None), Clock(clock)]
        trainer = make_trainer(
            self.training, self.model, arguments, packs, self.pad, stage, callbacks, TaskTrainer, elastic=self.elastic
        )
        record = train_stage(trainer, place)
        trained = sum(p.numel() for name, p in self.model.named_parameters() if p.requires_grad and stage.trains(name))
        return record, trained

    # -- asking and keeping --------------------------------------------------------------------------------------------

    def through(self) -> int:
        """How many tasks, from the first on, were learned; 0 where one that comes after them was begun too.

        Where boundaries are not told, a unit can hold the end of one task and the beginning of the next: of what was known
        between the two there is no measurement.
        """
        ended = {task for unit in self.state.units for task in unit["ends"]}
        through = next((at for at, task in enumerate(self.order) if task not in ended), len(self.order))
        return 0 if any(task in self.state.sent for task in self.order[through:]) else through

    def ask(self, tests: dict[str, list[EncodedExample]], *, over: bool = False) -> None:
        """Ask all tasks after a unit that ends one, and add the rows.

        Args:
            over: nothing more is learned; if a unit came after the last rows, which says that the last task had counted as learned
                before all of it was, rows of the model as it is now take their place.
        """
        through, rows = self.through(), self.state.rows
        if over and rows and rows[-1]["unit"] < len(self.state.units):
            rows = self.state.rows = [row for row in rows if row["trained_through"] < through]
        if through <= max((row["trained_through"] for row in rows), default=0):
            return
        asked = {row["module"] for row in self.state.rows}
        opened = [n for n in range(self.model.config.num_domains) if default_name(n) not in asked]
        found = ask(self.model, tests, self.state.homes, self.pad, opened)
        self.add_rows(through, self.order[through - 1], found, tests)

    def add_rows(self, position: int, task: str | None, found: Counts, tests: dict[str, list[EncodedExample]]) -> None:
        """Rows of what was asked, and of the modules that were asked earlier and are the same since."""
        head = {name: self.spec[name] for name in ("method", "sequence", "order", "seed")}
        units = self.state.units
        head |= {"boundaries": self.boundaries, "trained_through": position, "task": task}
        figures = {
            "modules": self.model.config.num_domains,
            "unit": len(units),
            "seconds": round(sum(unit["train_seconds"] + unit["guard_seconds"] for unit in units), 2),
        }
        rows = [
            {
                **head,
                "module": module,
                "tested_on": tested,
                "n": len(tests[tested]),
                "correct": right,
                "asked_after": position,
                **figures,
            }
            for (module, tested), right in found.items()
        ]
        new = {(row["module"], row["tested_on"]) for row in rows}
        last = {
            (row["module"], row["tested_on"]): row for row in self.state.rows if row["module"].startswith("domain_")
        }
        rows += [{**row, **head, **figures} for key, row in last.items() if key not in new]
        self.state.rows += rows

    def keep(self) -> None:
        """Leave the state after a unit on the disk; the weights of the one before are not needed any more."""
        number = len(self.state.units) - 1
        self.state.seconds = round(self.seconds, 2)

        def fill(part: Path) -> None:
            self.model.save_pretrained(part)
            if self.elastic is not None:
                write_tensors(part / GUARD, {n: t.cpu().contiguous() for n, t in self.elastic.state.items()})
            if self.buffer is not None:
                write_record(part / BUFFER, self.buffer.values)
            if self.stream is not None:
                write_tensors(part / STREAM, self.stream.tensors)
            write_record(part / STATE, vars(self.state))

        write_folder(self.folder / UNITS / f"{number:03d}", fill)
        if number:
            shutil.rmtree(self.folder / UNITS / f"{number - 1:03d}", ignore_errors=True)
        shutil.rmtree(self.folder / WORK / f"{number:03d}", ignore_errors=True)

    def finish(self) -> None:
        """Leave the model at the end as a run folder."""
        model, tokenizer = self.model, self.tokenizer
        # of tasks that share a module the first gives its domain the name
        domains = {task: self.state.homes[task] for task in reversed(self.order) if task in self.state.homes}
        first = {number: task for task, number in domains.items()}
        names = [first[number] for number in sorted(first)]
        record: dict[str, Any] = {"method": self.training.method, "base": self.training.base, "domains": names}
        if sorted(first) != list(range(len(first))):
            record["domain_modules"] = {first[number]: number for number in sorted(first)}
        record |= {"chat": True} if any(source.chat for source in self.training.data.train) else {}
        record |= {"tasks": self.order, "homes": self.state.homes, "units": self.state.units}

        def fill(part: Path) -> None:
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
            (part / RECIPE).write_text(dump_recipe(self.training), encoding="utf-8")
            write_record(part / FINISHED, record)

        if not (self.folder / RUN / FINISHED).is_file():
            write_folder(self.folder / RUN, fill)


def _placed(model: ICLMForCausalLM) -> ICLMForCausalLM:
    """A model on the GPU, if there is one."""
    return model.to("cuda" if torch.cuda.is_available() else "cpu")
