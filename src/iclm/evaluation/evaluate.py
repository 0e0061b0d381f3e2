"""One evaluation: accuracy of every module, routing, and how much the modules' states depend on each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from iclm.data.collation import EncodedExample, answer_blanks, problems_of
from iclm.errors import ConfigurationError
from iclm.evaluation.independence import mutual_information_report
from iclm.evaluation.independence.report import COMPONENTS, too_few
from iclm.evaluation.metrics import Accuracy, exact_match, majority_baseline, partial_match
from iclm.evaluation.routing import routing_report
from iclm.evaluation.scoring import Scores, require_domains, score
from iclm.model.modeling_iclm import ICLMForCausalLM


@dataclass(frozen=True)
class ModuleResult:
    """Accuracy of one module.

    Attributes:
        module: its name.
        overall: over all examples.
        by_kind: for each type of question.
        correct: whether each example was answered right, in their order.
        partial: with greedy decoding, how often the answer occurs in the response as a word; else None.
    """

    module: str
    overall: Accuracy
    by_kind: dict[str, Accuracy]
    correct: tuple[bool, ...]
    partial: Accuracy | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        values: dict[str, Any] = {"module": self.module, **self.overall.to_dict()}
        if self.partial is not None:
            values["partial"] = self.partial.to_dict()
        if self.by_kind:
            values["by_kind"] = {kind: accuracy.to_dict() for kind, accuracy in self.by_kind.items()}
        return values


def module_names(model: ICLMForCausalLM, wanted: str, *, oracle: bool = False) -> tuple[str, ...]:
    """The modules that `--module` and `--routing` ask for.

    Args:
        wanted: a module's place or its own name, or "all".
        oracle: the mixture is routed by the true domain.

    Raises:
        ConfigurationError: there is no such module, or one alone is to be routed.
    """
    names = tuple(model.config.module_names) if wanted == "all" else (model.config.place(wanted),)
    for name in names:
        model.module_number(name)
    if oracle:
        if model.config.num_domains == 0:
            raise ConfigurationError("oracle routing needs domain modules; this run is plain LoRA")
        if "mixture" not in names:
            raise ConfigurationError(
                f"oracle routing is of the mixture, and {wanted!r} is one module alone; leave one of the two out"
            )
        names = tuple("oracle" if name == "mixture" else name for name in names)
    return names


def accuracies(
    module: str, examples: Sequence[EncodedExample], correct: Sequence[bool], partial: Sequence[bool] | None = None
) -> ModuleResult:
    """Sum up which examples a module answered right."""
    kinds = sorted({item.example.kind for item in examples if item.example.kind is not None})
    groups = problems_of(examples)
    by_kind = {}
    for kind in kinds:
        chosen = [number for number, item in enumerate(examples) if item.example.kind == kind]
        by_kind[kind] = Accuracy.of([correct[number] for number in chosen], [groups[number] for number in chosen])
    return ModuleResult(
        module,
        Accuracy.of(correct, groups),
        by_kind,
        tuple(bool(right) for right in correct),
        None if partial is None else Accuracy.of(partial, groups),
    )


def evaluate_choices(scores: Scores, examples: Sequence[EncodedExample]) -> list[ModuleResult]:
    """Accuracy of each scored module: the likeliest choice is the answer given."""
    answers = np.array([item.example.answer_index for item in examples])
    return [accuracies(m, examples, (scores.predictions(m) == answers).tolist()) for m in scores.choices]


def routing_of(routes: np.ndarray, examples: Sequence[EncodedExample], num_codes: int) -> dict[str, Any]:
    """Routing figures as a JSON object; with the true domains where all are known."""
    domains = [item.example.domain for item in examples if item.example.domain is not None]
    known = domains if len(domains) == len(examples) else None
    return routing_report(routes, known, num_codes).to_dict()


def dependence_of(states: dict[str, np.ndarray], examples: Sequence[EncodedExample]) -> dict[str, Any]:
    """Mutual information of invariant and domain states at the answer, within each domain, as a JSON object.

    Within a domain, because both sides know the domain of their input; what is asked is whether they share more. The
    estimator (k nearest neighbours on principal components) is not the one of the training loss. A domain of too few examples
    or problems has `n` and, under `skipped`, the reason.
    """
    invariant, domain = states["invariant"], states["domain"]
    found: dict[str, Any] = {}
    numbers, problems = np.array([item.domain for item in examples]), np.array(problems_of(examples), dtype=object)
    for number in sorted(set(numbers.tolist())):
        rows = np.flatnonzero(numbers == number)
        reason = too_few(problems[rows])
        if reason is not None:
            found[str(number)] = {"n": len(rows), "skipped": reason}
            continue
        sides = (invariant[rows], domain[rows])
        found[str(number)] = mutual_information_report(*sides, pca=COMPONENTS, groups=problems[rows]).to_dict()
    return found


def evaluate(
    model: ICLMForCausalLM,
    examples: Sequence[EncodedExample],
    modules: Sequence[str],
    *,
    pad: int,
    dependence: bool = False,
    states: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[ModuleResult], dict[str, Any]]:
    """Evaluate modules by choice scoring.

    Args:
        modules: see `iclm.evaluation.scoring.score`.
        dependence: also measure the mutual information of the two sides' states.
        states: also keep these states.

    Returns:
        The modules' results, and figures: `n`, the `majority` baseline, the `routes` (int array [n]), the `dependence` of
        the states and the `states` themselves (`Scores.states`), where they apply.
    """
    was_training = model.training
    model.eval()
    try:
        scores = score(model, examples, modules=modules, pad=pad, states=dependence or states, progress=progress)
    finally:
        model.train(was_training)
    figures: dict[str, Any] = {"n": len(examples)}
    if examples:
        figures["majority"] = majority_baseline(item.example.answer for item in examples).to_dict()
    if len(scores.routes) and (scores.routes >= 0).all():
        figures["routes"] = scores.routes
    if dependence and "invariant" in scores.states:
        figures["dependence"] = dependence_of(scores.states, examples)
    if states and "invariant" in scores.states:
        figures["states"] = scores.states
    return evaluate_choices(scores, examples), figures


def greedy(
    model: ICLMForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    ids: torch.Tensor,
    mask: torch.Tensor,
    max_new_tokens: int,
    **extra: Any,
) -> list[str]:
    """Greedy continuations of prompts [batch, tokens], padded on the left; `extra` goes to the forward pass.

    The likeliest token each time, whatever the base's generation_config says of penalties, beams and sampling, up to a token that
    ends text there or to the tokenizer: that is what answers were trained to end in.
    """
    kept = model.generation_config
    own = None if kept is None else kept.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    model.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(ends) or None,
    )
    try:
        out = model.generate(ids, attention_mask=mask, **extra)
    finally:
        model.generation_config = kept
    return tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)


def _prompts(
    examples: Sequence[EncodedExample], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompts padded on the left, and their mask, both long [examples, tokens]."""
    width = max(len(item.prompt) for item in examples)
    ids = torch.full((len(examples), width), int(tokenizer.pad_token_id), device=device)
    mask = torch.zeros_like(ids)
    for row, item in enumerate(examples):
        ids[row, width - len(item.prompt) :] = torch.tensor(item.prompt, device=device)
        mask[row, width - len(item.prompt) :] = 1
    return ids, mask


@torch.inference_mode()
def prompt_routes(
    model: ICLMForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[EncodedExample],
    batch_size: int = 16,
) -> np.ndarray:
    """The router's first choice for each prompt, int [n]; empty where there is no router, or it does not choose by the prompt alone."""
    if model.router is None or model.config.router_level != "input" or model.config.router == "oracle":
        return np.zeros(0, dtype=int)
    was_training = model.training
    model.eval()
    try:
        parts = [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]
        routes = [model.route(*_prompts(part, tokenizer, model.device)) for part in parts]
    finally:
        model.train(was_training)
    return torch.cat([route.indices[:, 0] for route in routes if route is not None]).cpu().numpy()


@torch.inference_mode()
def evaluate_generation(
    model: ICLMForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[EncodedExample],
    module: str,
    *,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[ModuleResult, list[str]]:
    """Evaluate one module by greedy decoding: exact match, and partial match beside it.

    Args:
        module: "mixture", "oracle", "invariant" or "domain_i".
        max_new_tokens: at most; None means the longest choice or answer of the examples and the end-of-text token.

    Returns:
        The result (exact match), and the responses.
    """
    if not examples:
        return accuracies(module, (), (), ()), []
    by_domain = module == "oracle" or (
        module == "mixture" and model.router is not None and model.config.router == "oracle"
    )
    if by_domain:
        require_domains(examples, model.config.num_domains)
    device, was_training = model.device, model.training
    model.eval()
    longest = max(len(tokens) for item in examples for tokens in (*item.choices, item.answer))
    limit = max_new_tokens or longest + 1
    responses: list[str] = [""] * len(examples)
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].prompt))
    try:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            ids, mask = _prompts([examples[i] for i in chosen], tokenizer, device)
            extra: dict[str, Any] = {"module": module}
            if by_domain:
                extra = {"route": torch.tensor([examples[i].domain for i in chosen], device=device)}
            for i, text in zip(chosen, greedy(model, tokenizer, ids, mask, limit, **extra), strict=True):
                responses[i] = text.removeprefix(answer_blanks(examples[i].example))
            if progress is not None:
                progress(len(chosen))
    finally:
        model.train(was_training)
    exact = [exact_match(item.example.answer, text) for item, text in zip(examples, responses, strict=True)]
    partial = [partial_match(item.example.answer, text) for item, text in zip(examples, responses, strict=True)]
    return accuracies(module, examples, exact, partial), responses
