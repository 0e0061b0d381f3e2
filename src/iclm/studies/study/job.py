"""One job of a study: train, evaluate, leave rows.

FOLDER/job.json      what it is given (`iclm.studies.study.grid`)
FOLDER/run/          the run folder of its training
FOLDER/xlora/        in place of it, what X-LoRA learned (`iclm.studies.study.xlora`)
FOLDER/rows.jsonl    a line a module and evaluated source
FOLDER/done.json     seconds, versions and device; written last, so that a folder that holds it is whole
FOLDER/failed.json   in place of it, where the job failed; gone when it is started again

    python -m iclm.studies.study.job FOLDER

A job that was cut short goes on from the last checkpoint of its training (X-LoRA has none and is trained anew), or with
the evaluation of it.
"""

from __future__ import annotations

import json
import platform
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from filelock import FileLock, Timeout
from transformers import PreTrainedModel

from iclm.data.collation import EncodedExample, by_group, encode
from iclm.data.example import Example, Message
from iclm.data.files import atomic_write
from iclm.data.loading import domain_numbers, read_source, read_sources
from iclm.errors import CheckpointError, ConfigurationError, ICLMError
from iclm.evaluation.evaluate import evaluate_choices
from iclm.evaluation.metrics import majority_baseline
from iclm.evaluation.runs import FINISHED, context_length, load_run
from iclm.evaluation.scoring import score, score_plain
from iclm.model import ICLMConfig, ICLMForCausalLM, load_tokenizer
from iclm.model.checkpoint import read_json
from iclm.recipe import DataSource, Recipe, parse_recipe
from iclm.studies.study import xlora
from iclm.studies.study.recipe import XLora
from iclm.training.folder import RECIPE
from iclm.training.run import device_name, train
from iclm.version import __version__

SPEC, ROWS, DONE, FAILED, LOCK = "job.json", "rows.jsonl", "done.json", "failed.json", "lock"
RUN, XLORA = "run", "xlora"
BUSY = 75  # exit code: another process does this job (EX_TEMPFAIL of sysexits.h)


def run_job(folder: Path) -> dict[str, Any]:
    """Do the job whose object lies in a folder; nothing is done twice.

    Returns:
        What done.json says.

    Raises:
        ICLMError: the job's recipe or data cannot be used.
        filelock.Timeout: another process does it.
    """
    spec = read_json(folder / SPEC)
    with FileLock(folder / LOCK, timeout=0):
        if (folder / DONE).is_file():
            return read_json(folder / DONE)
        (folder / FAILED).unlink(missing_ok=True)
        started = time.perf_counter()
        recipe = parse_recipe(spec["recipe"], str(folder / SPEC))
        sources = [DataSource.model_validate(values) for values in spec["evaluate"]]
        tokenizer = load_tokenizer(recipe.base)
        model: Any
        record: dict[str, Any]
        if spec["kind"] == "base":
            model = ICLMForCausalLM.from_base(recipe.base, ICLMConfig(method="lora"), dtype=recipe.dtype)
            model.to("cuda" if torch.cuda.is_available() else "cpu")
            domains = domain_numbers(read_sources(recipe.data.train))
            record = {"train_seconds": 0.0, "examples_seen": 0, "trainable_parameters": 0}
        else:
            if spec["kind"] == "xlora":
                model, record = xlora.trained(recipe, XLora.model_validate(spec["xlora"]), tokenizer, folder / XLORA)
            else:
                model, record = _trained(recipe, folder / RUN)
            domains = {name: number for number, name in enumerate(record["domains"])}
        rows = evaluate_job(model.eval(), tokenizer, recipe, sources, domains, shots=spec["shots"])
        device = device_name(model.device)
        known = {
            **{name: spec[name] for name in ("method", "seed", "trial", "split")},
            "train_set": spec["data"],
            "job": folder.name,
            "device": device,
            "seconds": record["train_seconds"],
            "examples": record["examples_seen"],
            "trainable": record["trainable_parameters"],
        }
        with atomic_write(folder / ROWS, overwrite=True) as stream:
            stream.writelines(json.dumps({**known, **row}) + "\n" for row in rows)
        done = {
            "name": spec["data"] + "/" + spec["method"],
            "train_seconds": record["train_seconds"],
            "total_seconds": round(time.perf_counter() - started, 1),
            "device": device,
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "dtype": str(model.dtype).removeprefix("torch."),
            "versions": {
                "iclm": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "python": platform.python_version(),
                **({"peft": record["peft"]} if "peft" in record else {}),
            },
        }
        with atomic_write(folder / DONE, overwrite=True) as stream:
            json.dump(done, stream, indent=2)
        return done


def _trained(recipe: Recipe, out: Path) -> tuple[ICLMForCausalLM, dict[str, Any]]:
    """The model of a training that is finished, goes on, or begins."""
    if (out / FINISHED).is_file():
        run = load_run(out)
        return run.model, run.record
    resume = (out / RECIPE).is_file()
    try:
        return train(recipe, out, resume=resume, overwrite=False, progress_bar=False)
    except CheckpointError:
        if not resume:
            raise
        return train(recipe, out, overwrite=True, progress_bar=False)  # what it left is damaged


def evaluate_job(
    model: ICLMForCausalLM | PreTrainedModel,
    tokenizer: Any,
    recipe: Recipe,
    sources: Sequence[DataSource],
    domains: dict[str, int],
    *,
    shots: int = 0,
) -> list[dict[str, Any]]:
    """Accuracy of every module on every source.

    Args:
        model: in evaluation mode; one that is no ICLM has the one module "mixture".
        sources: generated problems or files; their domains are those of the training where they share a name.
        shots: solved training examples of the same domain before each question.

    Returns:
        One row a source and module: `module`, `test_set`, `shifted`, `format`, `strict`, `n`, `correct`, `by_kind` (for each
        type of question [correct, n]), `majority`, `problems` (how many questions each problem has, in their order; one
        number where all have as many), `answers` (a bit for each question, set where it was answered right, first
        question first, as hexadecimal digits), and where a router chose `routes`, how often each domain module was chosen.
    """
    trained = {train_name(source) for source in recipe.data.train}
    ours = model if isinstance(model, ICLMForCausalLM) else None
    modules = [] if ours is None else list(ours.config.module_names)
    if ours is not None and ours.config.num_domains >= len(domains) > 0 and "mixture" in modules:
        modules.append("oracle")
    demonstrations = read_sources(recipe.data.train) if shots else []
    rows: list[dict[str, Any]] = []
    for source in sources:
        found = read_source(source)
        if shots:
            found = with_shots(found, demonstrations, shots, recipe.seed)
        examples = encode(found, tokenizer, domains=domains, max_tokens=context_length(model))
        asked = [name for name in modules if name != "oracle" or _known(examples)]
        pad = tokenizer.pad_token_id
        scores = (
            score_plain(model, examples, pad=pad) if ours is None else score(ours, examples, modules=asked, pad=pad)
        )
        fixed: dict[str, Any] = {
            "test_set": train_name(source),
            "shifted": train_name(source) not in trained if source.shifted is None else source.shifted,
            "format": source.format,
            "strict": source.objects == "strict",
            "majority": majority_baseline(item.example.answer for item in examples).value,
            "problems": problem_sizes(examples),
        }
        if len(scores.routes) and (scores.routes >= 0).all():
            fixed["routes"] = np.bincount(scores.routes, minlength=model.config.num_domains).tolist()
        for result in evaluate_choices(scores, examples):
            kinds = {kind: [part.correct, part.n] for kind, part in result.by_kind.items()}
            counts = {"n": result.overall.n, "correct": result.overall.correct, "by_kind": kinds}
            rows.append({"module": result.module, **fixed, **counts, "answers": bits(result.correct)})
    return rows


def _known(examples: Sequence[EncodedExample]) -> bool:
    return all(item.domain >= 0 for item in examples)


def problem_sizes(examples: Sequence[EncodedExample]) -> int | list[int]:
    """Number of questions of each problem, in their order; one number where all have as many."""
    sizes = [len(group) for group in by_group(examples)]
    return sizes[0] if len(set(sizes)) == 1 else sizes


def train_name(source: DataSource) -> str:
    """Name of the data that a source holds, whatever its split: "ACRE Comp", "RAVEN center_single" or the file's name."""
    if source.acre is not None:
        return f"ACRE {source.acre}"
    if source.raven is not None:
        return f"RAVEN {source.raven}"
    return source.file.stem if source.file is not None else str(source.dataset)


def bits(correct: Sequence[bool]) -> str:
    """Hexadecimal digits of a bit for each question, the last byte filled up with zeros."""
    return np.packbits(np.array(correct, dtype=bool)).tobytes().hex()


def from_bits(answers: str, n: int) -> np.ndarray:
    """What `bits` was given, bool [n]."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(answers), dtype=np.uint8), count=n).astype(bool)


def with_shots(found: Sequence[Example], train: Sequence[Example], shots: int, seed: int) -> list[Example]:
    """Examples after so many solved ones of their domain, of as many problems, the same before all of them.

    Raises:
        ConfigurationError: a domain has fewer training problems than that.
    """
    chosen: dict[str | None, Message] = {}
    for domain in dict.fromkeys(example.domain for example in found):
        by_problem: dict[Any, list[Example]] = {}
        for number, example in enumerate(train):
            if example.domain == domain:
                by_problem.setdefault(example.group or number, []).append(example)
        if len(by_problem) < shots:
            raise ConfigurationError(
                f"shots is {shots}; the training sources hold {len(by_problem)} problems of domain {domain!r}"
            )
        source = random.Random(f"{seed}/{domain}")
        solved = [source.choice(by_problem[group]) for group in source.sample(list(by_problem), shots)]
        text = "\n".join(f"{example.prompt}{example.answer}\n" for example in solved)
        chosen[domain] = Message("user", text)
    return [replace(example, messages=(chosen[example.domain], *example.messages)) for example in found]


def main(folder: Path) -> int:
    """Do a job in this process; returns the exit code: 0 done, 2 bad input, 75 another process does it, 1 a fault of ours."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        run_job(folder)
    except Timeout:
        return BUSY
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        with atomic_write(folder / FAILED, overwrite=True) as stream:
            json.dump({"error": message, "kind": type(error).__name__}, stream)
        if not isinstance(error, ICLMError):
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
