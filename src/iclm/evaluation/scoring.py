"""Answers by the log-likelihood of each choice, for every module in one pass.

The log-likelihood of a choice is the sum over its tokens (or their mean, `Example.per_token`), each given the prompt and the tokens before it. The last token
of a choice is predicted, never read, so choices that agree up to their last token need one sequence; those of one problem
share their prefix (`iclm.model.packing`). Nothing of this changes a score: it equals that of each (prompt, choice) pair
run on its own. The head is computed in float32 whatever the base is kept in.

A mixture may be asked for under three names: "mixture" goes where the router sends each example, "oracle" to the module
of the true domain, "route_j" to domain module j. One mixture, with or without the invariant module, needs
R = B * (1 + active) rows; whatever else is asked for gets a row for each module.

`score_plain` gives the same figures for a causal language model that is no ICLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from iclm.data.collation import Branch, EncodedExample, Pack, by_group, collate, make_packs
from iclm.errors import ConfigurationError, DataError
from iclm.model.backbone import project
from iclm.model.modeling_iclm import ICLMForCausalLM
from iclm.model.outputs import Encoded
from iclm.model.packing import Packing
from iclm.model.plan import Route


@dataclass
class Scores:
    """What scoring found for n examples, in the order they were given.

    Attributes:
        choices: for each module the log-likelihood of each choice in nats, or in nats a token, a list of n arrays.
        routes: the router's first choice for each example, int [n]; -1 where no module asked for it, empty where there
            is no router.
        states: states [n, hidden] of the invariant module (where there is one) and of the routed domain module at the token
            that predicts the answer, for a measure of their dependence; empty unless asked for. Where all choices of an
            example begin alike, as with a blank of its own token, it is the token that predicts where they part.
    """

    choices: dict[str, list[np.ndarray]] = field(default_factory=dict)
    routes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=int))
    states: dict[str, np.ndarray] = field(default_factory=dict)

    def predictions(self, module: str) -> np.ndarray:
        """Number of the likeliest choice of each example, int [n]: the first of equals, -1 where a score is no number.

        So a module that has diverged answers nothing, and is never right.
        """
        return np.array([int(np.argmax(v)) if np.isfinite(v).all() else -1 for v in self.choices[module]], dtype=int)

    @property
    def faulty(self) -> list[str]:
        """Modules with a score that is no number, as after a training that has diverged."""
        return [m for m, scores in self.choices.items() if not all(np.isfinite(values).all() for values in scores)]

    @property
    def finite(self) -> bool:
        """Whether all scores are numbers."""
        return not self.faulty


@dataclass(frozen=True, slots=True)
class _Chain:
    """One sequence to run for an example: `tokens` after the prompt, and the choices it scores."""

    tokens: tuple[int, ...]
    choices: tuple[int, ...]


def chains(choices: Sequence[tuple[int, ...]]) -> list[_Chain]:
    """The fewest sequences that score all choices: every choice without its last token is the start of one of them."""
    starts = sorted({choice[:-1] for choice in choices}, key=len, reverse=True)
    longest: list[tuple[int, ...]] = []
    for start in starts:
        if not any(kept[: len(start)] == start for kept in longest):
            longest.append(start)
    owner = [next(i for i, kept in enumerate(longest) if kept[: len(c) - 1] == c[:-1]) for c in choices]
    return [_Chain(kept, tuple(c for c, o in enumerate(owner) if o == i)) for i, kept in enumerate(longest)]


def shared_start(choices: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all choices begin with alike; one less than the shortest has, at most, so that a token is left to predict."""
    count, most = 0, min(map(len, choices)) - 1
    while count < most and len({choice[count] for choice in choices}) == 1:
        count += 1
    return count


@dataclass(frozen=True, slots=True)
class _Request:
    """What is asked of every batch.

    Attributes:
        modules: names, each once.
        mixtures: those of them that mix the invariant module with a domain module.
        forced: the domain module of each "route_j" among them.
        every: a row for each module; else those of the only mixture, or of the only module.
        asked: the router decides.
    """

    modules: tuple[str, ...]
    mixtures: tuple[str, ...]
    forced: dict[str, int]
    every: bool
    asked: bool

    @classmethod
    def of(cls, model: ICLMForCausalLM, modules: Iterable[str]) -> _Request:
        """Check the names; raises `ConfigurationError` for one that the model cannot answer for."""
        modules = tuple(dict.fromkeys(modules))
        domains = model.config.num_domains
        known = {f"route_{number}": number for number in range(domains)}
        for module in modules:
            if module.startswith("route_") and module not in known:
                right = f"use route_0 to route_{domains - 1}" if known else "it has no domain modules"
                raise ConfigurationError(f"module {module!r} is none that this model can be routed to; {right}")
            if module != "oracle" and module not in known:
                model.module_number(module)
        forced = {module: known[module] for module in modules if module in known}
        mixtures = tuple(m for m in modules if domains and (m in ("mixture", "oracle") or m in forced))
        alone = len(modules) == 1 or (len(mixtures) == 1 and set(modules) == {*mixtures, "invariant"})
        every = domains > 0 and not alone
        # the router is asked where the mixture needs its answer, and judged beside the true domains where that costs no row
        asked = "mixture" in mixtures or ("oracle" in mixtures and every)
        return cls(modules, mixtures, forced, every, asked)

    def destination(self, module: str, domains: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
        """Domain module of each example [examples] under a mixture's name; None where the router decides.

        Args:
            domains: true domain of each example, long [examples].
            like: a tensor [examples] on the device.
        """
        if module == "oracle":
            assert domains is not None
            return domains
        return torch.full_like(like, self.forced[module]) if module in self.forced else None


@dataclass(frozen=True, slots=True)
class _Item:
    """One branch to run: the example's number, the chain, and the tokens of prompt and chain."""

    number: int
    chain: _Chain
    example: EncodedExample


def score(
    model: ICLMForCausalLM,
    examples: Sequence[EncodedExample],
    *,
    modules: Iterable[str] = ("mixture",),
    pad: int = 0,
    pack: bool = True,
    states: bool = False,
    tokens_per_batch: int = 4096,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Score the choices of every example.

    Args:
        model: in evaluation mode.
        modules: "mixture", "invariant", "domain_i"; "oracle": the mixture routed by the true domain; "route_j": the mixture
            with domain module j alone, of weight 1, in place of the router's choice.
        pad: id of the pad token.
        pack: False runs every sequence on its own, with nothing shared; so does a base on which nothing can be
            (`packing_obstacle`).
        states: keep the states at the token that tells the choices apart, where a mixture is among the modules; the domain
            module's are those of the router's choice, or where it is not asked of the first mixture's.
        tokens_per_batch: padded tokens of a batch, at most (a longer pack is a batch of its own).
        progress: called with the number of examples finished.

    Raises:
        DataError: an example without choices.
        ConfigurationError: an unknown module, or oracle routing of an example whose domain is not known.
    """
    request = _Request.of(model, modules)
    _require_choices(examples)
    if "oracle" in request.modules or (request.asked and model.config.router == "oracle"):
        require_domains(examples, model.config.num_domains)
    result = Scores({module: _unknown(examples) for module in request.modules})
    result.routes = np.full(len(examples) if model.router is not None else 0, -1, dtype=int)
    kept: dict[str, dict[int, np.ndarray]] = {"invariant": {}, "domain": {}}
    seen: set[int] = set()
    with torch.inference_mode():
        for packs, items in _batches(examples, pack and model.no_packing is None, tokens_per_batch):
            batch = collate(packs, pad)
            _score_batch(model, batch, items, request, result, kept if states and request.mixtures else None)
            if progress is not None:
                progress(len({item.number for item in items} - seen))
                seen |= {item.number for item in items}
    if states:
        result.states = {
            side: np.stack([found[i] for i in range(len(examples))]) for side, found in kept.items() if found
        }
    return result


def score_plain(
    model: PreTrainedModel, examples: Sequence[EncodedExample], *, pad: int = 0, tokens_per_batch: int = 4096
) -> Scores:
    """Score the choices of every example under a causal language model of transformers, or one that PEFT made of it.

    Every sequence is run on its own: such a model knows no packed branches.

    Args:
        model: in evaluation mode; its forward pass takes `logits_to_keep`, the positions whose logits are needed.
        pad, tokens_per_batch: as in `score`.

    Returns:
        Scores of the one module "mixture", without routes and states.

    Raises:
        DataError: an example without choices.
    """
    _require_choices(examples)
    found = _unknown(examples)
    with torch.inference_mode(), _float32_logits(model):
        for packs, items in _batches(examples, False, tokens_per_batch):
            batch = {name: tensor.to(model.device) for name, tensor in collate(packs, pad).items()}
            where = _Positions(items, batch, None)
            kept, column = where.positions.unique(return_inverse=True)
            logits = model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                logits_to_keep=kept.to(model.device),
                use_cache=False,
            ).logits
            logits = logits[where.examples.to(model.device), column.to(model.device)]
            _read_choices(torch.log_softmax(logits.float(), dim=-1), items, where.starts, found)
    return Scores({"mixture": found})


@contextmanager
def _float32_logits(model: PreTrainedModel) -> Iterator[None]:
    """Let a model's output projection compute in float32, as `score` does, whatever the model is kept in."""

    def again(projection: nn.Linear, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> torch.Tensor:
        return project(projection, inputs[0].float())

    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.weight.dtype == torch.float32:
        yield
        return
    hook = head.register_forward_hook(again)
    try:
        yield
    finally:
        hook.remove()


def _require_choices(examples: Sequence[EncodedExample]) -> None:
    for item in examples:
        if not item.choices:
            raise DataError(
                f"{item.example.source or 'an example'} has no choices to score; free answers have a loss (iclm evaluate --loss) and can be decoded (--generate)"
            )


def _unknown(examples: Sequence[EncodedExample]) -> list[np.ndarray]:
    """Room for the log-likelihood of each choice of each example."""
    return [np.full(len(item.choices), np.nan) for item in examples]


def _read_choices(table: torch.Tensor, items: list[_Item], starts: list[int], found: list[np.ndarray]) -> None:
    """Sum, or average, the log-likelihoods of each choice's tokens.

    Args:
        table: log-probabilities [n, vocabulary] at the predicting tokens.
        starts: the first row of each item in it.
        found: where the sums go, by the example's number.
    """
    for index, item in enumerate(items):
        rows = table[starts[index] : starts[index] + len(item.chain.tokens) + 1]
        for choice in item.chain.choices:
            tokens = torch.tensor(item.example.choices[choice], device=table.device)
            each = rows[: len(tokens)].gather(1, tokens[:, None])
            found[item.number][choice] = float(each.sum()) / _divisor(item.example, choice)


def _divisor(item: EncodedExample, choice: int) -> int:
    """What the sum over a choice's tokens is divided by."""
    return len(item.choices[choice]) if item.example.per_token else 1


def rescored(scores: Scores, asked: Sequence[EncodedExample], examples: Sequence[EncodedExample]) -> Scores:
    """Scores of the same questions where their choices are scored in another way (`Example.per_token`); asks nothing again.

    Args:
        scores: of `asked`.
        examples: the same questions in the same order.
    """
    factors = [
        np.array([_divisor(old, choice) / _divisor(new, choice) for choice in range(len(new.choices))])
        for old, new in zip(asked, examples, strict=True)
    ]
    choices = {
        module: [values * factor for values, factor in zip(found, factors, strict=True)]
        for module, found in scores.choices.items()
    }
    return replace(scores, choices=choices)


def require_domains(examples: Sequence[EncodedExample], num_domains: int) -> None:
    """Raise `ConfigurationError` naming the first example whose domain has no module, for oracle routing."""
    for item in examples:
        if not 0 <= item.domain < num_domains:
            raise ConfigurationError(
                f"{item.example.source or 'an example'}: oracle routing needs one of the {num_domains} domains that the modules learned; "
                f"its domain is {item.example.domain!r}; say FILE=DOMAIN, or name the domain in its row, where it is one of them"
            )


def _batches(examples: Sequence[EncodedExample], pack: bool, limit: int) -> Iterator[tuple[list[Pack], list[_Item]]]:
    packs: list[Pack] = []
    owners: list[list[_Item]] = []
    number = 0
    for group in by_group(examples):
        items = []
        for example in group:
            items += [_Item(number, chain, example) for chain in chains(example.choices)]
            number += 1
        branches = [  # no token of a chain may become part of the shared prefix: it is answer, not prompt
            Branch(item.example.prompt + item.chain.tokens, max(len(item.chain.tokens), 1), item.example.domain)
            for item in items
        ]
        start = 0
        for made in make_packs(branches, None if pack else 1, limit):
            packs.append(made)
            owners.append(items[start : start + len(made.branches)])
            start += len(made.branches)
    order = sorted(range(len(packs)), key=lambda index: packs[index].tokens)
    run: list[int] = []
    for index in order:  # the last of a run is its longest, so padding is counted too
        if run and (len(run) + 1) * packs[index].tokens > limit:
            yield [packs[i] for i in run], [item for i in run for item in owners[i]]
            run = []
        run.append(index)
    if run:
        yield [packs[i] for i in run], [item for i in run for item in owners[i]]


def _score_batch(
    model: ICLMForCausalLM,
    batch: dict[str, torch.Tensor],
    items: list[_Item],
    request: _Request,
    result: Scores,
    kept: dict[str, dict[int, np.ndarray]] | None,
) -> None:
    device = model.device
    ids = batch["input_ids"].to(device)
    packing = Packing.of(batch["branch_ids"].to(device)) if "branch_ids" in batch else None
    where = _Positions(items, batch, packing)
    domains = batch["domain_ids"].to(device) if "domain_ids" in batch else None
    anywhere = torch.zeros(len(items), dtype=torch.long, device=device)
    given = None
    if not request.asked and model.router is not None:
        if request.mixtures:
            given = request.destination(request.mixtures[0], domains, anywhere)
        elif request.every:
            given = anywhere
    encoded = model.encode(
        ids,
        batch["attention_mask"].to(device),
        packing=packing,
        prompt_mask=where.prompt.to(device),
        domain_ids=domains,
        route=given,
        module="mixture" if request.every or request.mixtures else request.modules[0],
        every_module=request.every,
    )
    examples, positions = where.examples.to(device), where.positions.to(device)
    states = encoded.at(examples, positions).float()  # and so the logits: rounded to bfloat16, many would be equal
    if encoded.route is not None and given is None:
        first = encoded.route.indices[:, 0].cpu().numpy()
        for index, item in enumerate(items):
            result.routes[item.number] = first[index]
    if kept is not None and encoded.route is not None:
        at = examples.new_tensor(
            [s + shared_start(i.example.choices) for s, i in zip(where.starts, items, strict=True)]
        )
        invariant, domain, _ = encoded.sides(states[at], examples[at], positions[at])
        for index, item in enumerate(items):
            if invariant is not None:
                kept["invariant"][item.number] = invariant[index].float().cpu().numpy()
            kept["domain"][item.number] = domain[index, 0].float().cpu().numpy()
    for module in request.modules:
        to = request.destination(module, domains, anywhere) if request.every else None
        route = None if to is None else Route.to(to)
        logits = _module_logits(model, encoded, states, examples, positions, module, route)
        _read_choices(torch.log_softmax(logits, dim=-1), items, where.starts, result.choices[module])


class _Positions:
    """Where in a batch the tokens are that predict the choices, for each branch one after the other.

    Attributes:
        examples, positions: the branch and the position of each predicting token, long [n].
        starts: the first entry of each branch in them.
        prompt: the tokens that the router may read, bool [batch, tokens].
    """

    def __init__(self, items: list[_Item], batch: dict[str, torch.Tensor], packing: Packing | None) -> None:
        branch_ids = batch.get("branch_ids")
        lengths = batch["attention_mask"].sum(1).tolist()
        self.prompt = batch["attention_mask"].bool().clone()
        examples: list[int] = []
        positions: list[int] = []
        self.starts: list[int] = []
        owner = list(range(len(items))) if packing is None else packing.owner.tolist()
        numbers = None if packing is None else packing.number.tolist()
        for index, item in enumerate(items):
            sequence, after = owner[index], len(item.chain.tokens)
            if branch_ids is None or numbers is None:
                end, start, before = lengths[sequence], 0, -1
            else:
                own = (branch_ids[sequence] == numbers[index]).nonzero()[:, 0]
                start, end = int(own[0]), int(own[-1]) + 1
                before = int((branch_ids[sequence] == 0).sum()) - 1
            self.prompt[sequence, end - after : end] = False
            self.starts.append(len(positions))
            for position in range(end - after - 1, end):
                examples.append(index)
                positions.append(position if position >= start else before)
        self.examples, self.positions = torch.tensor(examples), torch.tensor(positions)


def _module_logits(
    model: ICLMForCausalLM,
    encoded: Encoded,
    states: torch.Tensor,
    examples: torch.Tensor,
    positions: torch.Tensor,
    module: str,
    to: Route | None,
) -> torch.Tensor:
    """Logits [n, vocabulary] of one module at n (example, position) pairs, whose states are [n, width, hidden].

    Args:
        to: another route than the one encoded, for a mixture that does not follow it; needs a row for every module.
    """
    number = None if to is not None or module not in model.config.module_names else model.module_number(module)
    if encoded.route is None:
        return model.head(states[:, 0])
    if number is not None:
        return model.head(states[:, encoded.plan.fixed.index(number)])
    return model.mix(*encoded.sides(states, examples, positions, to))
