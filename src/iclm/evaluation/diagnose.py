"""The diagnosis of a run: one section for each way in which an ICLM fails, measured on the same examples.

    routing         one module for everything, or modules that do not follow the domains
    independence    invariant and domain modules say the same
    overfitting     the answers hold for the training distribution only
    forgetting      what the base, or an earlier run, answered right is answered wrong
    interventions   changing one module changes another, or a module can be replaced by any other

A section that does not apply, or for which something is missing, is {"measured": false, "reason": ...}. Which figure is
good or bad is not decided here but in `iclm.report.diagnosis`.

Source of the failures: Gendron et al., arXiv 2402.02636, sections 4 and 5.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iclm.errors import CheckpointError, ConfigurationError
from iclm.evaluation.comparison import difference_interval, mcnemar, paired_difference
from iclm.evaluation.evaluate_run import domain_name
from iclm.evaluation.independence import independence_report
from iclm.evaluation.intervention import InterventionReport, module_effects, swap_matrix
from iclm.evaluation.metrics import Accuracy
from iclm.evaluation.routing import routing_report
from iclm.evaluation.runs import Run
from iclm.evaluation.sides import Progress, Side, answer_with, answered_side
from iclm.model import ICLMForCausalLM
from iclm.model.configuration_iclm import ICLMConfig, default_name
from iclm.model.router import LearnedRouter
from iclm.recipe import DataSource

COLLAPSED = 0.95  # share of the examples on one code, above which the router does not route
FEATURE_EXAMPLES = 400  # that are drawn, at most
EFFECT_EXAMPLES = 8  # that modules are changed on, at most: isolation is exact, so few will do
EFFECT_ROWS = 4096  # of all passes of the changes together, about: with many modules there are fewer examples
FEATURE_TOKENS = 4096  # of a batch of prompts, padding included

Section = dict[str, Any]


def not_measured(reason: str) -> Section:
    """A section without figures."""
    return {"measured": False, "reason": reason}


def routing_section(run: Run, sides: Sequence[Side]) -> Section:
    """Routes beside true domains, for each side."""
    config = run.model.config
    if config.num_domains == 0:
        return not_measured("not applicable: the model has no domain modules")
    found: Section = {
        "measured": True,
        "router": config.router,
        "learned": isinstance(run.model.router, LearnedRouter),
        "level": config.router_level,
        "trained": list(run.domains),
    }
    for side in sides:
        domains = side.domains
        names = sorted(set(domains.tolist()))
        counts = [
            [int(((side.scores.routes == code) & (domains == name)).sum()) for name in names]
            for code in range(config.num_domains)
        ]
        report = routing_report(side.scores.routes, domains, config.num_domains).to_dict()
        largest = max(Counter(domains.tolist()).values()) / len(domains)
        routed = max(report["usage"]) <= COLLAPSED or config.num_domains == 1 or largest > COLLAPSED
        table = {"domains": names, "counts": counts}
        found[side.name] = {**report, "table": table, "largest_domain": largest, "collapsed": not routed}
    return found


def independence_section(run: Run, side: Side) -> Section:
    """Dependence of invariant and domain states at the answer, within each domain, and what the former tell of the domain."""
    if not side.scores.states:
        missing = "domain modules" if run.model.config.num_domains == 0 else "invariant module"
        return not_measured(f"not applicable: the model has no {missing}")
    numbers = run.numbers_with(side.domains.tolist())
    report = independence_report(
        side.scores.states["invariant"],
        side.scores.states["domain"],
        [numbers[name] for name in side.domains.tolist()],
        groups=side.problems,
    )
    names = {str(number): name for name, number in numbers.items()}
    measures = {names[key]: value for key, value in report.items() if key in names}
    return {"measured": True, "by_domain": measures, "leakage": report.get("leakage")}


def accuracy_gap(iid: Section, ood: Section) -> Section:
    """Accuracy inside minus outside the training distribution, each with a 95% interval.

    Args:
        iid, ood: what `Side.accuracy` gives.

    Returns:
        `by_domain` for the domains on both sides, and `overall`: the mean of their gaps, so that it is not moved by another
        mix of domains; its interval adds the squares of their half widths (Newcombe's method for one domain). Where no
        domain is on both sides it is the gap of all examples.
    """
    shared = [name for name in iid["by_domain"] if name in ood["by_domain"]]
    pairs = [(_counts(iid["by_domain"][name]), _counts(ood["by_domain"][name])) for name in shared]
    found = [difference_interval(*pair) for pair in pairs or [(_counts(iid["overall"]), _counts(ood["overall"]))]]
    mean = sum(d for d, _, _ in found) / len(found)
    down = math.hypot(*(d - low for d, low, _ in found)) / len(found)
    up = math.hypot(*(high - d for d, _, high in found)) / len(found)
    by_domain = {name: _gap(*values) for name, values in zip(shared, found, strict=False)}
    return {"overall": _gap(mean, mean - down, mean + up), "by_domain": by_domain}


def _counts(values: Section) -> Accuracy:
    return Accuracy(values["correct"], values["n"], values.get("effect", 1.0))


def _gap(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def overfitting_section(run: Run, iid: Side, ood: Side | None) -> Section:
    """Accuracy of every module and of the base on both sides, the gaps, and how far each module is ahead of the mixture.

    `ahead` is of the same questions of the training distribution, and its intervals hold for all modules together.
    """
    rows = []
    alone = [name for name in run.model.config.module_names if name != "mixture"]
    for module in (*run.model.config.module_names, "base"):
        row: Section = {"module": module, "iid": iid.accuracy(module), "ood": None, "gap": None}
        if module in alone:
            row["ahead"] = _gap(
                *paired_difference(
                    iid.correct[module], iid.correct["mixture"], iid.problems.tolist(), comparisons=len(alone)
                )
            )
        if ood is not None:
            row["ood"] = ood.accuracy(module)
            row["gap"] = accuracy_gap(row["iid"], row["ood"])
        rows.append(row)
    majority = {side.name: side.majority() for side in (iid, ood) if side is not None}
    found: Section = {"measured": True, "modules": rows, "majority": majority}
    if ood is None:
        found["reason"] = "no gap: there is no data out of distribution; pass --ood FILE"
    return found


def _compare(side: Side, module: str, reference: str, before: np.ndarray) -> list[Section]:
    now, domains = side.correct[module], side.domains
    names: list[str | None] = [None, *sorted(set(domains.tolist()))]
    rows = []
    for name in names:
        chosen = np.ones(len(domains), dtype=bool) if name is None else domains == name
        head = {"module": module, "reference": reference, "data": side.name, "domain": name}
        rows.append({**head, **mcnemar(before[chosen], now[chosen], side.problems[chosen].tolist())})
    return rows


def forgetting_section(
    run: Run, sides: Sequence[Side], before: Run | None, progress: Progress | None = None
) -> Section:
    """Answers now against those of the untouched base, and of an earlier run, on the same examples.

    Each module is compared with the earlier one of its name; for a domain module that is the name that a user gave it,
    since its number may be another now. Where the domain modules of the earlier run are untrained (the end of a first
    stage), the mixture is compared with its invariant module, and domain modules with none.
    """
    modules = run.model.config.module_names
    base = [row for side in sides for m in modules for row in _compare(side, m, "base", side.correct["base"])]
    found: Section = {"measured": True, "base": base}
    if before is None:
        reason = "no earlier run to compare with; pass --before RUN"
        return {**found, "earlier": not_measured(reason)}
    pairs = _module_pairs(run.model, before.model)
    total = sum(len(side.examples) for side in sides)
    tick = None if progress is None else progress("scoring the earlier run", total)
    rows = []
    for side in sides:
        # an oracle router of the earlier run goes by its own numbers of the domains
        examples = [replace(item, domain=before.domains.get(item.example.domain or "", -1)) for item in side.examples]
        wanted = tuple(dict.fromkeys(reference for _, reference in pairs))
        right = answer_with(before.model, examples, wanted, before.tokenizer.pad_token_id, tick)[1]
        for module, reference in pairs:
            rows += _compare(side, module, reference, right[reference])
    return {**found, "earlier": {"measured": True, "run": str(before.folder), "rows": rows}}


def _module_pairs(now: ICLMForCausalLM, before: ICLMForCausalLM) -> list[tuple[str, str]]:
    """Which module of now is compared with which of before."""
    names, known = now.config.module_names, before.config.module_names
    domain = [p for name, p in before.named_parameters() if ".lora_B." in name and not name.endswith(".0")]
    if domain and "invariant" in known and not any(bool(p.any()) for p in domain):
        return [(name, "invariant") for name in names if name in ("mixture", "invariant")]
    if now.config.domain_names is None or before.config.domain_names is None:
        return [(name, name) for name in names if name in known]
    called = {name: default_name(number) for number, name in enumerate(before.config.names)}
    earlier = {default_name(number): called.get(name) for number, name in enumerate(now.config.names)}
    pairs = [(name, earlier.get(name, name)) for name in names]
    return [(name, reference) for name, reference in pairs if reference in known]


def interventions_section(run: Run, side: Side, progress: Progress | None = None) -> Section:
    """Modules swapped on all examples, and changed one by one on a few of them."""
    config = run.model.config
    if config.num_domains == 0:
        return not_measured("not applicable: the model has no domain modules")
    passes = 1 + 2 * config.num_modules
    few = min(EFFECT_EXAMPLES, max(4, EFFECT_ROWS // (passes * config.num_modules)))
    chosen = _spread(side.examples, few)
    pad = run.tokenizer.pad_token_id
    tick = None
    if progress is not None:
        tick = progress("interventions", len(side.examples) + passes * len(chosen))
    swap = swap_matrix(run.model, side.examples, pad=pad, progress=tick)
    effects = module_effects(run.model, chosen, pad=pad, progress=tick)
    return {"measured": True, **InterventionReport(swap, effects).to_dict(), "effect_examples": len(chosen)}


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, at even distances."""
    return [items[i] for i in sorted({int(i) for i in np.linspace(0, len(items) - 1, min(most, len(items)))})]


def training_section(folder: Path, config: ICLMConfig) -> Section:
    """The curves of the losses and of the router from a run's log; the steps of a second stage go on from the first's."""
    path = folder / "log.jsonl"
    if not path.is_file():
        return not_measured(f"{folder} holds no log.jsonl")
    curves: dict[str, dict[str, list[float]]] = {}
    last = offset = 0
    stages: list[int] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            step = int(line["step"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} line {number} is damaged: it is no line of a training log") from error
        if step + offset < last:
            offset = last
            stages.append(offset)
        last = step + offset
        for key, value in line.items():
            named = key == "loss" or key.startswith(("loss_", "router_")) or key in ("mi_weight", "mi_scale")
            if named and isinstance(value, (int, float)):
                curve = curves.setdefault(key, {"step": [], "value": []})
                curve["step"].append(last)
                curve["value"].append(float(value))
    found = {"curves": curves, "stages": stages, "mi_loss": config.mi_loss, "mi_weight": config.mi_weight}
    return {"measured": True, **found} if curves else not_measured(f"{path} holds no figures")


@torch.inference_mode()
def features_section(run: Run, sides: Sequence[Side]) -> Section:
    """What the router sees, in two dimensions: the leading ones of its reduction, with its codes."""
    router = run.model.router
    if not isinstance(router, LearnedRouter):
        return not_measured("not applicable: the model has no router that looks at features")
    if router.level != "input":
        return not_measured("not applicable: the router looks at tokens, not at examples")
    chosen = _spread([(side, index) for side in sides for index in range(len(side.examples))], FEATURE_EXAMPLES)
    order = sorted(range(len(chosen)), key=lambda i: len(chosen[i][0].examples[chosen[i][1]].prompt))
    features = torch.zeros(len(chosen), router.dim)
    batch: list[int] = []
    for place, number in enumerate(order):
        batch.append(number)
        following = order[place + 1] if place + 1 < len(order) else None
        if following is None or (len(batch) + 1) * len(_prompt(chosen[following])) > FEATURE_TOKENS:
            features[batch] = _project(run, [_prompt(chosen[i]) for i in batch]).cpu()
            batch = []
    codes = router.codes.float().cpu()
    axes = "dimension"
    if router.reduction == "none":  # its dimensions are in no order: look along the widest ones
        centre = features.mean(0)
        widest = torch.linalg.svd(features - centre, full_matrices=False)[2][:2].T
        features, codes = (features - centre) @ widest, (codes - centre) @ widest
        axes = "principal component"
    points, marks = _two_columns(features), _two_columns(codes)
    return {
        "measured": True,
        "axes": axes,
        "x": points[0],
        "y": points[1],
        "domain": [domain_name(side.examples[index]) for side, index in chosen],
        "data": [side.name for side, _ in chosen],
        "route": [int(side.scores.routes[index]) for side, index in chosen],
        "codes": {"x": marks[0], "y": marks[1]},
    }


def _prompt(chosen: tuple[Side, int]) -> tuple[int, ...]:
    return chosen[0].examples[chosen[1]].prompt


def _project(run: Run, prompts: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """Reduced router features [n, dim] of prompts."""
    width, device = max(map(len, prompts)), run.model.device
    ids = torch.full((len(prompts), width), int(run.tokenizer.pad_token_id), device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt, device=device)
        mask[row, : len(prompt)] = 1
    return run.model.router.project(run.model.router_features(ids, mask))


def _two_columns(values: torch.Tensor) -> tuple[list[float], list[float]]:
    """The first two columns of [n, dim]; zeros for a second one that is missing."""
    second = values[:, 1] if values.shape[1] > 1 else torch.zeros(len(values))
    return values[:, 0].tolist(), second.tolist()


# -- all together ------------------------------------------------------------------------------------------------------


def diagnose(
    run: Run,
    iid: Sequence[DataSource],
    ood: Sequence[DataSource] = (),
    *,
    before: Run | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure every section; see the head of this module.

    Args:
        run: what is diagnosed.
        iid, ood: sources of the training distribution, at least one, and others; their examples have choices.
        before: an earlier run to compare with, see `earlier_run`.
        limit: at most so many examples of each source.
        progress: makes a progress callback from a title and a total.

    Returns:
        A JSON object: `run`, `method`, `domains`, `unknown_domains` (that the run was not trained on), `modules`, `names`, `data`, and a
        section under each name.

    Raises:
        ICLMError: a source that cannot be used, or a model that has diverged.
    """
    if not iid:
        raise ConfigurationError("a diagnosis needs data of the training distribution; pass --data FILE")
    inside = answered_side("iid", run, iid, limit, progress)
    outside = answered_side("ood", run, ood, limit, progress) if ood else None
    sides = [side for side in (inside, outside) if side is not None]
    return {
        "run": str(run.folder),
        "method": run.model.config.method,
        "domains": list(run.domains),
        "unknown_domains": run.unknown(name for side in sides for name in side.domains.tolist()),
        "modules": list(run.model.config.module_names),
        "names": run.names,
        "data": {side.name: side.sources for side in sides},
        "routing": routing_section(run, sides),
        "independence": independence_section(run, inside),
        "overfitting": overfitting_section(run, inside, outside),
        "forgetting": forgetting_section(run, sides, before, progress),
        "interventions": interventions_section(run, inside, progress),
        "training": training_section(run.folder, run.model.config),
        "features": features_section(run, sides),
    }
