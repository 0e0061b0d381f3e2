"""What `iclm evaluate` and `iclm generate` do with a run folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iclm.data.acre import FORMATS, OBJECTS
from iclm.data.collation import EncodedExample, encode, problems_of, prompt_text, tokenise
from iclm.data.example import Example, Message
from iclm.data.loading import holds_problems, problem_kind, read_source, source_name
from iclm.errors import ConfigurationError, DataError
from iclm.evaluation.evaluate import (
    ModuleResult,
    evaluate,
    evaluate_generation,
    greedy,
    module_names,
    prompt_routes,
    routing_of,
)
from iclm.evaluation.independence import independence_report
from iclm.evaluation.losses import answer_losses
from iclm.evaluation.runs import Run, check_finite, context_length
from iclm.model import Route
from iclm.model.configuration_iclm import describe
from iclm.recipe import DataSource, parse_columns

ASKED = ("letter", "panel")


def guess_domain(path: Path, known: Sequence[str]) -> str | None:
    """The domain of the run that a file name mentions as a word ("IID_val_text.jsonl" mentions "text"), if just one."""
    words = set(re.split(r"[^A-Za-z0-9]+", path.stem))
    mentioned = [name for name in known if name == path.stem or name in words]
    return mentioned[0] if len(mentioned) == 1 else None


def evaluation_source(
    argument: str,
    run: Run,
    *,
    format: str | None = None,
    objects: str = "official",
    limit: int | None = None,
    columns: str | None = None,
    score: str = "sum",
) -> DataSource:
    """The source that a `--data` argument names: FILE or FILE=DOMAIN.

    `columns` maps the columns of a table (YAML), `score` is that of a choice: sum or mean. A domain that is the name of a format is also how ACRE problems are rendered, unless `format` says otherwise.
    What the name of a file of problems mentions is their domain; rows may name their own (`read_for`).

    Raises:
        ConfigurationError: an option that does not fit.
    """
    path, equals, domain = argument.rpartition("=")
    if Path(argument).exists():  # a file name may hold an equals sign
        path, equals, domain = argument, "", ""
    file = Path(path if equals else argument)
    guess = domain if equals else guess_domain(file, list(run.domains))
    if format is None and guess in FORMATS and file.suffix == ".json":
        format = guess
    if format is not None and format not in FORMATS:
        raise ConfigurationError(f"format is {format!r}; use symbolic or text")
    if objects not in OBJECTS:
        raise ConfigurationError(f"objects is {objects!r}; use official or strict")
    if score not in ("sum", "mean"):
        raise ConfigurationError(f"--score is {score!r}; use sum or mean")
    mapping = parse_columns(columns)
    problems = holds_problems(file, mapping)
    return DataSource.model_validate(
        {
            "file": file,
            "domain": (guess if equals or problems else None) or None,
            "format": format if problems else None,
            "objects": objects,
            "limit": limit,
            "columns": mapping,
            "chat": run.chat,
            "score": score,
        }
    )


def evaluation_sources(arguments: Sequence[str], run: Run, *, ask: str = "letter", **options: Any) -> list[DataSource]:
    """The sources that several `--data` arguments name.

    Args:
        ask: what files of RAVEN problems ask for, letter or panel.
        options: as of `evaluation_source`, for all files.

    Raises:
        ConfigurationError: an option that does not fit, or is for files of problems where no file is such.
        DataError: a file that cannot be read.
    """
    if ask not in ASKED:
        raise ConfigurationError(f"--ask is {ask!r}; use letter or panel")
    sources = [evaluation_source(argument, run, **options) for argument in arguments]
    for name, option in (("format", "--format"), ("objects", "--strict")):
        asked_for = options.get(name) not in (None, "official")
        if sources and asked_for and not any(s.file and holds_problems(s.file, s.columns) for s in sources):
            raise ConfigurationError(
                f"{option} is for files of problems, and {', '.join(arguments)} are none; leave it out"
            )
    if ask == "panel":
        of_raven = [s.columns is None and s.file is not None and problem_kind(s.file) == "RAVEN" for s in sources]
        if not any(of_raven):
            raise ConfigurationError("--ask panel is for files of RAVEN problems, and --data names none; leave it out")
        asked = {"ask": ask}
        sources = [s.model_copy(update=asked) if raven else s for s, raven in zip(sources, of_raven, strict=True)]
    return sources


def read_for(run: Run, source: DataSource) -> list[EncodedExample]:
    """Read and tokenise a source for a run; raises `DataError` if it holds no example.

    Rows that name no domain are of the one that the name of their file mentions.
    """
    examples = read_source(source, None if source.file is None else guess_domain(source.file, list(run.domains)))
    if not examples:
        raise DataError(f"{source_name(source)}: there is no example in it")
    return encode(examples, run.tokenizer, domains=run.domains, max_tokens=context_length(run.model))


def evaluate_run(
    run: Run,
    sources: Sequence[DataSource],
    *,
    module: str = "mixture",
    routing: str = "learned",
    generate: bool = False,
    loss: bool = False,
    max_new_tokens: int | None = None,
    independence: bool = False,
    progress: Callable[[str, int], Callable[[int], None]] | None = None,
) -> dict[str, Any]:
    """Evaluate modules of a run on files.

    Args:
        module: a module's name, or "all".
        routing: "learned", or "oracle": the mixture is routed by the true domain.
        generate: answers by greedy decoding instead of choice scoring.
        loss: that of the answers in nats a token, instead of accuracy; answers need no choices (`iclm.evaluation.losses`).
        independence: also every measure of the independence of the invariant and the routed domain module's states.
        progress: makes a progress callback from a title and a total.

    Returns:
        A JSON object: for each source, and each domain in it, `file`, `domain`, `modules` and figures under `data`; what a
        user calls each domain module under `names`; domains that the run was not trained on under `unknown_domains`; and
        `routing` (by generation not of routes by token, nor of the true domains' own) and, where asked for, `independence` over all
        sources.

    Raises:
        ICLMError: a source or an option that cannot be used.
    """
    check_finite(run)
    if routing not in ("learned", "oracle"):
        raise ConfigurationError(f"routing is {routing!r}; use learned or oracle")
    names = module_names(run.model, module, oracle=routing == "oracle")
    if loss and generate:
        raise ConfigurationError(
            "--loss is of the answers that the data give, --generate of the model's own; leave one of the two out"
        )
    if independence and (generate or loss or names[0] not in ("mixture", "oracle") or run.model.aggregator is None):
        raise ConfigurationError(
            "independence is measured on a mixture of both sides, by scoring; leave out --generate, --loss and single modules, "
            "and give a run that has an invariant and domain modules"
        )
    encoded = [part for source in sources for part in _by_domain(source_name(source), read_for(run, source))]
    rows: list[dict[str, Any]] = []
    routes: list[np.ndarray] = []
    states: list[dict[str, np.ndarray]] = []
    for file, examples in encoded:
        row: dict[str, Any] = {"file": file, "domain": examples[0].example.domain}
        tick = None
        if progress is not None:
            tick = progress(row["file"], len(examples) * (len(names) if generate else 1))
        found: list[ModuleResult] = []
        if generate:
            for name in names:
                result, _ = evaluate_generation(
                    run.model, run.tokenizer, examples, name, max_new_tokens=max_new_tokens, progress=tick
                )
                found.append(result)
            row["n"] = len(examples)
            if "mixture" in names or len(names) > 1:  # as in scoring: judged also where the true domain chooses
                routes.append(prompt_routes(run.model, run.tokenizer, examples))
        elif loss:
            pad, end = run.tokenizer.pad_token_id, run.tokenizer.eos_token_id
            losses, chosen = answer_losses(run.model, examples, names, pad=pad, end=end, progress=tick)
            row |= {"n": len(examples), "modules": [result.to_dict() for result in losses]}
            routes.append(chosen)
        else:
            pad = run.tokenizer.pad_token_id
            found, figures = evaluate(
                run.model, examples, names, pad=pad, dependence=module == "all", states=independence, progress=tick
            )
            if "routes" in figures:
                routes.append(figures.pop("routes"))
            if "states" in figures:
                states.append(figures.pop("states"))
            row |= figures
        row.setdefault("modules", [result.to_dict() for result in found])
        rows.append(row)
    report: dict[str, Any] = {"run": str(run.folder), "method": run.model.config.method, "data": rows}
    report["names"] = run.names
    report["unknown_domains"] = run.unknown(domain_name(item) for _, examples in encoded for item in examples)
    report["answers"] = "greedy decoding" if generate else "loss" if loss else "likeliest choice"
    if routes and all(len(found) and (found >= 0).all() for found in routes):
        together = [item for _, examples in encoded for item in examples]
        report["routing"] = routing_of(np.concatenate(routes), together, run.model.config.num_domains)
    if states:
        together = [item for _, examples in encoded for item in examples]
        numbers = run.numbers_with(map(domain_name, together))
        report["independence_domains"] = {str(number): name for name, number in numbers.items()}
        report["independence"] = independence_report(
            np.concatenate([found["invariant"] for found in states]),
            np.concatenate([found["domain"] for found in states]),
            [numbers[domain_name(item)] for item in together],
            groups=problems_of(together),
        )
    return report


def domain_name(item: EncodedExample) -> str:
    """Name of an example's true domain, "unknown" where it has none."""
    return item.example.domain or "unknown"


def _by_domain(file: str, examples: list[EncodedExample]) -> list[tuple[str, list[EncodedExample]]]:
    """The examples of a source by their domains, in the order in which these appear, each with the source's name."""
    parts: dict[str | None, list[EncodedExample]] = {}
    for item in examples:
        parts.setdefault(item.example.domain, []).append(item)
    return [(file, part) for part in parts.values()]


@torch.inference_mode()
def answer(
    run: Run, prompt: str, *, module: str = "mixture", domain: str | None = None, max_new_tokens: int = 32
) -> dict[str, Any]:
    """Continue a prompt greedily.

    Args:
        module: "mixture", or one module alone, by its place (domain_0) or its own name.
        domain: name of the training domain whose module the mixture takes instead of the router's choice.

    Returns:
        A JSON object: `answer`, the `module` asked for, the `domain_modules` that were active with their `names`, and
        `used`, all of it in words.

    Raises:
        ConfigurationError: an unknown module or domain.
        DataError: an empty prompt, or one that does not fit the model's context.
    """
    check_finite(run)
    model, tokenizer = run.model, run.tokenizer
    module = model.config.place(module)
    model.module_number(module)
    if domain is not None and (model.router is None or module != "mixture"):
        raise ConfigurationError(
            f"domain {domain!r} chooses a module of the mixture; {module!r} of this run has no route"
        )
    if not prompt.strip():
        raise DataError("the prompt is empty; give a text, or - to read standard input")
    asked = Example((Message("user", prompt),), (), "?", source="the prompt", chat=run.chat)
    text, blanks = prompt_text(asked, tokenizer)
    ids = torch.tensor(tokenise([text], tokenizer, special=not run.chat), device=model.device)
    limit = context_length(model)
    if limit is not None and ids.shape[1] + max_new_tokens > limit:
        raise DataError(
            f"the prompt is {ids.shape[1]} tokens; with {max_new_tokens} new ones that is more than the model's {limit}"
        )
    mask = torch.ones_like(ids)
    route = None
    if model.router is not None and module == "mixture":
        route = model.route(ids, mask) if domain is None else Route.to(_domain_number(run, domain).to(model.device))
    response = greedy(model, tokenizer, ids, mask, max_new_tokens, module=module, route=route)[0].removeprefix(blanks)
    result: dict[str, Any] = {"answer": response, "module": module, "domain_modules": [], "names": [], "used": module}
    if route is not None:
        active = route.indices[0].tolist()
        places, names = [f"domain_{i}" for i in active], [model.config.names[i] for i in active]
        how = "the router's choice" if domain is None else f"the module of domain {domain}"
        chosen = places if domain is not None else [describe(model.config, i) for i in active]
        result |= {"domain_modules": places, "names": names, "used": f"invariant + {' + '.join(chosen)} ({how})"}
    return result


def _domain_number(run: Run, domain: str) -> torch.Tensor:
    number = run.domains.get(domain)
    if number is None or number >= run.model.config.num_domains:
        raise ConfigurationError(f"domain {domain!r} has no module; the run was trained on {', '.join(run.domains)}")
    return torch.tensor([number])
