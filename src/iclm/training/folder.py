"""The folder of a run: what lies where in it, and where an interrupted run goes on.

RUN/config.json, generation_config.json, model.safetensors     the ICLM (our own parameters)
RUN/tokenizer.json, ...                                        the base's tokenizer
RUN/recipe.yaml                                                the recipe, every field written out
RUN/log.jsonl                                                  a line for every logging step; `step` counts through all stages
RUN/log_before_removal.jsonl                                   the same, of a run from which a module was removed since
RUN/run.json                                                   domains, examples, stages, seconds, versions; written last
RUN/report.html                                                the page of the run (`iclm report`)
RUN/stages/invariant/                                          two_stage: the end of the first stage, a run folder itself
RUN/checkpoints/                                               the Trainer's, to resume from; of two_stage a folder a stage;
                                                               gone, with all that is in it, when the training ends
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback

from iclm.data.files import atomic_write, check_folder_place, check_own, remove_own
from iclm.errors import CheckpointError, ConfigurationError
from iclm.evaluation.runs import FINISHED, RECIPE
from iclm.model.checkpoint import PART, WEIGHTS, read_json
from iclm.recipe import Recipe, dump_recipe, parse_recipe
from iclm.training.processes import wait_for_all
from iclm.training.stages import Stage, stages_of
from iclm.training.trainer import checkpoint_step

CHECKPOINTS = "checkpoints"
STAGES = "stages"
LOG = "log.jsonl"
LOG_BEFORE_REMOVAL = "log_before_removal.jsonl"  # its figures by module have numbers that modules had then
CLOCK = "seconds.json"  # in a checkpoint, its last file: how long the training had taken, and in how many processes
TRAINER_STATE = "trainer_state.json"
PAGE = "report.html"  # of a finished run, made by `iclm report`
QUICKSTART = "quickstart.json"  # what the quickstart leaves beside its run

# the patterns of what is ours in a run folder (`check_own`), which --overwrite may remove; anything else there is not
_UNFINISHED = (
    *(".iclm-????????????????.tmp", ".iclm-????????????????.tmp/**", ".tmp??????"),  # ours, and safetensors'
    *(f".{WEIGHTS}.part", f"{PART}/*.json"),
)
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
    *("vocab.json", "vocab.txt", "vocab-src.json", "vocab-tgt.json", "merges.txt", "bpe.codes", "dict.txt"),
    *("tokenizer.model", "tiktoken.model", "spiece.model", "spm.model"),
    *(
        "sentencepiece.model",
        "sentencepiece.bpe.model",
        "emoji.json",
        "word_shape.json",
        "word_pronunciation.json",
        "normalizer.json",
    ),
)
_SAVED = ("config.json", "generation_config.json", WEIGHTS, *_TOKENIZER, FINISHED, *_UNFINISHED)
_PLOTS = ("routing.png", "features.png", "training.png", "swap.png", "accuracy.png")
_DIAGNOSIS = tuple(f"diagnosis/{name}" for name in ("diagnosis.json", *_PLOTS, *_UNFINISHED))
_ENDED = (*_SAVED, PAGE, *_DIAGNOSIS)
_STAGE_ENDS = tuple(f"{STAGES}/{folder}/{name}" for folder in ("invariant", ".invariant.part") for name in _ENDED)
# what a run leaves that has not ended
BEGUN: tuple[str, ...] = (RECIPE, LOG, *_STAGE_ENDS, f"{CHECKPOINTS}/**", *_UNFINISHED)
_RUN = (*BEGUN, LOG_BEFORE_REMOVAL, *_ENDED)
OURS: tuple[str, ...] = (*_RUN, QUICKSTART, "quickstart.jsonl", *(f"lora/{name}" for name in _RUN))


def check_folder(out: Path, *, overwrite: bool, resume: bool) -> None:
    """Raise `ConfigurationError` if a run cannot be made in a folder; changes nothing."""
    if overwrite and resume:
        raise ConfigurationError(
            f"--overwrite and --resume exclude each other: the one replaces {out}, the other goes on with it; give one of them"
        )
    check_folder_place(out)
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not _is_run(out):
        raise ConfigurationError(
            f"{out} is not a run folder, so it is neither replaced nor resumed; choose another --out"
        )
    if not overwrite and not resume:
        raise ConfigurationError(f"{out} exists; pass --overwrite to replace it, or --resume to go on")
    if overwrite:
        check_own(out, OURS, "a run folder")


def _is_run(out: Path) -> bool:
    """Whether a folder holds a run; one that was killed at once left its recipe, written out, and nothing else."""
    if not (out / RECIPE).is_file():
        return False
    if any((out / name).exists() for name in (FINISHED, LOG, CHECKPOINTS, STAGES)):
        return True
    found = _recipe(out / RECIPE)
    alone = not any(child.name != RECIPE and not child.name.startswith(".iclm-") for child in out.iterdir())
    return alone and found is not None and dump_recipe(found) == (out / RECIPE).read_text(encoding="utf-8")


def clear_folder(out: Path, own: Iterable[str] = OURS) -> None:
    """Remove what is ours from a folder, if there is one; it stays, as it may be a link, or the current one."""
    if out.is_dir():
        remove_own(out, own)


def checkpoints_of(out: Path, stage: Stage) -> Path:
    """The folder of a stage's checkpoints."""
    return out / CHECKPOINTS if stage.number is None else out / CHECKPOINTS / stage.name


@dataclass(frozen=True)
class Resumption:
    """Where a run goes on.

    Attributes:
        checkpoint: the Trainer's checkpoint in the first of the stages that are left; None means that stage's start.
        ended: folder of the stage that ended before; None where none did.
        left: the stages to do.
        records: what is known of the stages that ended.
    """

    checkpoint: Path | None = None
    ended: Path | None = None
    left: tuple[Stage, ...] = ()
    records: tuple[dict[str, Any], ...] = ()

    @property
    def weights(self) -> Path | None:
        """Where the ICLM lies that the training goes on with; None means that it begins anew."""
        return self.checkpoint or self.ended

    @property
    def before(self) -> int:
        """Steps of the stages that ended."""
        return sum(record["steps"] for record in self.records)

    @property
    def step(self) -> int:
        """Steps done, of all stages."""
        return self.before + (0 if self.checkpoint is None else checkpoint_step(self.checkpoint))

    @property
    def seconds(self) -> float:
        """Seconds of training up to the checkpoint, in its stage."""
        return 0.0 if self.checkpoint is None else float(read_json(self.checkpoint / CLOCK).get("seconds", 0))

    @property
    def processes(self) -> int:
        """In how many processes the checkpoint was made."""
        return 1 if self.checkpoint is None else int(read_json(self.checkpoint / CLOCK).get("processes", 1))

    @property
    def spent(self) -> float:
        """Seconds of training up to the checkpoint, in all stages."""
        return self.seconds + sum(record["train_seconds"] for record in self.records)


def resumption(recipe: Recipe, out: Path) -> Resumption:
    """Where an interrupted run of a recipe goes on; at the start, if there is nothing to go on from.

    Raises:
        CheckpointError: the run was begun with another recipe, or a stage's end is damaged.
        ConfigurationError: the run is finished.
    """
    saved = out / RECIPE
    begun = _recipe(saved) if saved.is_file() else recipe
    if begun is None or _noted_as(begun, recipe) != begun.model_dump():
        raise CheckpointError(
            f"{saved} differs from the recipe given, or a file of it has changed since; --resume needs the recipe and the data that the run "
            "began with"
        )
    if (out / FINISHED).is_file():
        raise ConfigurationError(f"{out} is finished; there is nothing to resume")
    left, ended = list(stages_of(recipe.training)), None
    records: list[dict[str, Any]] = []
    while len(left) > 1 and (out / STAGES / left[0].name / FINISHED).is_file():
        ended = out / STAGES / left.pop(0).name
        records = read_json(ended / FINISHED).get("stages") or []
        if len(records) != 1:
            raise CheckpointError(f"{ended / FINISHED} is damaged: stages holds {len(records)} records; remove {ended}")
    return Resumption(newest_checkpoint(checkpoints_of(out, left[0])), ended, tuple(left), tuple(records))


def _noted_as(begun: Recipe, recipe: Recipe) -> dict[str, Any]:
    """A recipe without the SHA-256 of files where that which a run was begun with has none, as it is of an earlier version; and with the
    places that files had then, where they have the same name and content now."""
    values = recipe.model_dump()
    for field in ("train", "validation"):
        for known, source in zip(getattr(begun.data, field), values["data"][field], strict=False):
            if known.sha256 is None:
                source["sha256"] = None
            elif known.sha256 == source["sha256"] and known.file is not None and known.file.name == source["file"].name:
                source["file"] = known.file
    return values


def _recipe(path: Path) -> Recipe | None:
    """A recipe as a run keeps it; a field that it lacks has its default. None if it is damaged."""
    try:
        return parse_recipe(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
    except (ConfigurationError, UnicodeDecodeError, yaml.YAMLError):
        return None


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole: one that was cut off while it was written is passed over for the one before."""
    return max(filter(_is_whole, folder.glob("checkpoint-*")), key=checkpoint_step, default=None)


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint has what is written last: the Trainer's state, that of every process, and the clock."""
    if not (checkpoint / CLOCK).is_file():
        return False
    count = read_json(checkpoint / CLOCK).get("processes", 1)
    random = ["rng_state.pth"] if count == 1 else [f"rng_state_{number}.pth" for number in range(count)]
    return all((checkpoint / name).is_file() for name in (TRAINER_STATE, *random))


def keep_log(path: Path, step: int) -> None:
    """Keep the lines of a log up to a step; what came after it, a line that was cut off too, is done again."""
    if not path.is_file():
        return
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= step:
                lines.append(line)
    with atomic_write(path, overwrite=True) as stream:
        stream.writelines(line + "\n" for line in lines)


def write_record(path: Path, values: dict[str, Any]) -> None:
    """Write a record as JSON, whole or not at all."""
    with atomic_write(path, overwrite=True) as stream:
        json.dump(finite(values), stream, indent=2, allow_nan=False)
        stream.write("\n")


def finite(value: Any) -> Any:
    """The value with every number that is not finite as None: a diverged loss has no number in JSON."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def mean_loss(history: Sequence[dict[str, Any]], otherwise: float) -> float:
    """Mean of the logged losses, each weighted by the steps that it is the mean of."""
    total, last = 0.0, 0
    for line in history:
        if "loss" in line:
            total += line["loss"] * (line["step"] - last)
            last = line["step"]
    return total / last if last else otherwise


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Make a folder that is there whole or not at all: it is filled by `write` under another name."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        write(part)
        os.replace(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


class Clock(TrainerCallback):
    """Keeps in each checkpoint how many seconds the training has taken, those before it was resumed included, and in how many
    processes. It is the last thing written there; only then the checkpoints before it go."""

    def __init__(self, before: float) -> None:
        self.before, self.started = before, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self.before + time.perf_counter() - self.started

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write them beside the checkpoint's own files, and remove the other checkpoints."""
        wait_for_all()  # each has written its random state
        if not state.is_world_process_zero:
            return
        here = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_record(here / CLOCK, {"seconds": self.seconds, "processes": args.world_size})
        for folder in here.parent.glob("checkpoint-*"):
            if folder != here:
                shutil.rmtree(folder, ignore_errors=True)


class LogFile(TrainerCallback):
    """Appends every line of the Trainer's log to a file; it and the checkpoints are those of one attempt.

    Where memory runs out and the Trainer begins again with smaller batches, what the attempt before it left is removed.

    Args:
        before: steps of earlier stages, which `step` counts too.
        extra: called with each line.
    """

    def __init__(self, path: Path, before: int, extra: Callable[[dict[str, float]], None] | None) -> None:
        self.path, self.before, self.extra = path, before, extra

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove what is of later steps than the one that the training begins after."""
        if not state.is_world_process_zero:
            return
        keep_log(self.path, self.before + state.global_step)
        for folder in Path(args.output_dir).glob("checkpoint-*"):
            if checkpoint_step(folder) > state.global_step:
                shutil.rmtree(folder)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Write one line."""
        if logs is None or not state.is_world_process_zero:
            return
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(finite({"step": self.before + state.global_step, **logs}), allow_nan=False) + "\n")
        if self.extra is not None:
            self.extra(logs)
