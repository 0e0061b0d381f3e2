"""One job of a study: train, evaluate, leave rows.

FOLDER/job.json      what it is given (`iclm.studies.study.grid`)
FOLDER/run/          the run folder of its training
FOLDER/xlora/        in place of it, what X-LoRA learned (`iclm.studies.study.xlora`)
FOLDER/rows.jsonl    a line a module and evaluated source
FOLDER/done.json     seconds, versions, device, kinds of the questions; written last: a folder that holds it is whole
FOLDER/failed.json   in place of it, where the job failed; gone when it is started again

    python -m iclm.studies.study.job FOLDER

A job that was cut short goes on from the last checkpoint of its training (X-LoRA has none and is trained anew), or with
the evaluation of it.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from filelock import FileLock, Timeout
from transformers import PreTrainedModel

from iclm.data.collation import EncodedExample, encode
from iclm.data.example import Example, Message
from iclm.data.files import atomic_write
from iclm.data.loading import domain_numbers, read_source, read_sources, read_training
from iclm.errors import CheckpointError, ConfigurationError, ICLMError
from iclm.evaluation.evaluate import evaluate_choices
from iclm.evaluation.runs import FINISHED, context_length, load_run
from iclm.evaluation.scoring import Scores, rescored, score, score_plain
from iclm.model import ICLMConfig, ICLMForCausalLM, load_tokenizer
from iclm.model.checkpoint import read_json
from iclm.recipe import DataSource, Recipe, parse_recipe
from iclm.studies.bench.timing import processor_name
from iclm.studies.study import xlora
from iclm.studies.study.recipe import XLora
from iclm.studies.study.rows import Outcome, about, answers_of, kinds_of
from iclm.studies.study.strategy import run_strategy
from iclm.training.folder import RECIPE
from iclm.training.run import device_name, train
from iclm.version import software

SPEC, ROWS, DONE, FAILED, LOCK = "job.json", "rows.jsonl", "done.json", "failed.json", "lock"
RUN, XLORA = "run", "xlora"
BUSY = 75  # exit code: another process does this job (EX_TEMPFAIL of sysexits.h)
STUDY, SEQUENCES = "study", "continual"  # what a folder of jobs is of; its recipe is called so


def kind_of(folder: Path) -> str | None:
    """What a folder of jobs is of, `STUDY` or `SEQUENCES`: by its recipe, else by its first job; None if it is of neither."""
    for kind in (STUDY, SEQUENCES):
        if (folder / f"{kind}.yaml").is_file():
            return kind
    first = next(iter(sorted(folder.glob(f"jobs/*/{SPEC}"))), None)
    if first is None:
        return None
    return SEQUENCES if "sequence" in read_json(first) else STUDY


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
        if spec["kind"] == "strategy":
            outcome = run_strategy(spec["strategy"], recipe, sources)
        else:
            outcome = _run_model(spec, recipe, sources, folder)
        known = {
            **{name: spec[name] for name in ("method", "seed", "trial", "split")},
            "train_set": spec["data"],
            "job": folder.name,
            "device": outcome.device,
            "seconds": outcome.seconds,
            "examples": outcome.examples,
            "trainable": outcome.trainable,
        }
        with atomic_write(folder / ROWS, overwrite=True) as stream:
            stream.writelines(json.dumps({**known, **row}) + "\n" for row in outcome.rows)
        done = {
            "name": spec["data"] + "/" + spec["method"],
            "train_seconds": outcome.seconds,
            "total_seconds": round(outcome.earlier + time.perf_counter() - started, 1),
            "device": outcome.device,
            "processor": processor_name(),
            "threads": torch.get_num_threads(),
            "dtype": outcome.dtype,
            "versions": {**software(), **outcome.versions},
            "questions": outcome.questions,
            **({"diverged": True} if outcome.diverged else {}),
        }
        with atomic_write(folder / DONE, overwrite=True) as stream:
            json.dump(done, stream, indent=2)
        return done


def _run_model(spec: dict[str, Any], recipe: Recipe, sources: Sequence[DataSource], folder: Path) -> Outcome:
    """Train a model, or take the untouched base, and ask it."""
    asked = [read_source(source) for source in sources]  # what cannot be read is found before the training
    tokenizer = load_tokenizer(recipe.base)
    model: Any
    started = time.perf_counter()
    if spec["kind"] == "base":
        model = ICLMForCausalLM.from_base(recipe.base, ICLMConfig(method="lora"), dtype=recipe.dtype)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        domains = domain_numbers(read_training(recipe.data.train))
        record: dict[str, Any] = {"train_seconds": 0.0, "examples_seen": 0, "trainable_parameters": 0}
    else:
        if spec["kind"] == "xlora":
            model, record = xlora.trained(recipe, XLora.model_validate(spec["xlora"]), tokenizer, folder / XLORA)
        else:
            model, record = _trained(recipe, folder / RUN)
        domains = {name: number for number, name in enumerate(record["domains"])}
    earlier = max(0.0, record["train_seconds"] - (time.perf_counter() - started))
    rows, questions, finite = evaluate_job(
        model.eval(), tokenizer, recipe, sources, asked, domains, shots=spec["shots"]
    )
    return Outcome(
        rows,
        questions,
        seconds=record["train_seconds"],
        examples=record["examples_seen"],
        trainable=record["trainable_parameters"],
        device=device_name(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        versions={"peft": record["peft"]} if "peft" in record else {},
        earlier=earlier,
        diverged=not finite,
    )


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
    asked: Sequence[list[Example]],
    domains: dict[str, int],
    *,
    shots: int = 0,
) -> tuple[list[dict[str, Any]], list[dict[str, str]], bool]:
    """Accuracy of every module on every source.

    Args:
        model: in evaluation mode; one that is no ICLM has the one module "mixture".
        sources: generated problems or files; their domains are those of the training where they share a name.
        asked: the examples of each.
        shots: solved training examples of the same domain before each question.

    Returns:
        One row a source and module: what `iclm.studies.study.rows.about` says of the source, `module`, `n`, `correct`,
        `by_kind` (for each type of question [correct, n]), `answers` (a bit for each question, set where it was answered
        right, first question first, as hexadecimal digits), `given` (which choice was taken of each), and where a router chose `routes`, how often each domain module
        was chosen. Then for each source which questions are of which kind (`iclm.studies.study.rows.kinds_of`), and whether
        all scores were numbers: a question with one that was not is answered wrong.
    """
    ours = model if isinstance(model, ICLMForCausalLM) else None
    modules = [] if ours is None else list(ours.config.module_names)
    if ours is not None and ours.config.num_domains >= len(domains) > 0 and "mixture" in modules:
        modules.append("oracle")
    demonstrations = read_sources(recipe.data.train) if shots else []
    rows: list[dict[str, Any]] = []
    questions = []
    scored: dict[str, tuple[Scores, list[EncodedExample]]] = {}
    finite = True
    for number, own in enumerate(asked):
        found = with_shots(own, demonstrations, shots, recipe.seed) if shots else own
        examples = encode(found, tokenizer, domains=domains, max_tokens=context_length(model))
        names = [name for name in modules if name != "oracle" or _known(examples)]
        pad = tokenizer.pad_token_id
        question = source_key(sources[number])
        if question in scored:  # they differ in how a choice is scored alone
            scores = rescored(*scored[question], examples)
        elif ours is None:
            scores = score_plain(model, examples, pad=pad)
        else:
            scores = score(ours, examples, modules=names, pad=pad)
        scored[question] = scores, examples
        finite = finite and scores.finite
        fixed = about(number, sources, own, recipe.data.train)
        questions.append(kinds_of(own))
        if len(scores.routes) and (scores.routes >= 0).all():
            fixed["routes"] = np.bincount(scores.routes, minlength=model.config.num_domains).tolist()
        for result in evaluate_choices(scores, examples):
            kinds = {kind: [part.correct, part.n] for kind, part in result.by_kind.items()}
            counts = {"n": result.overall.n, "correct": result.overall.correct, "by_kind": kinds}
            answers = answers_of(result.correct, scores.predictions(result.module).tolist())
            rows.append({"module": result.module, **fixed, **counts, **answers})
    return rows, questions, finite


def source_key(source: DataSource) -> str:
    """What sources have in common that ask the same questions, however a choice is scored."""
    return source.model_dump_json(exclude={"score"})


def _known(examples: Sequence[EncodedExample]) -> bool:
    return all(item.domain >= 0 for item in examples)


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


def worker(run: Callable[[Path], Any], folder: Path) -> int:
    """Do a job in this process; returns the exit code: 0 done, 2 bad input, 75 another process does it, 1 a fault of ours.

    Args:
        run: does the job in a folder; what goes wrong is left in failed.json there.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        run(folder)
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


def main(folder: Path) -> int:
    """Do a job of a study in this process; returns the exit code."""
    return worker(run_job, folder)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
