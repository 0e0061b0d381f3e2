"""Domain modules of a model added, removed and renamed, the others bitwise unchanged.

    before      inv   domain_0   domain_1   domain_2
    add         inv   domain_0   domain_1   domain_2   new         its weights, its code
    remove 1    inv   domain_0              domain_1               was domain_2: weights and code move, no value changes

A domain module is more than its A and B: a router that learned something has a point for each among its features, a
code, and prompts go to the module of the nearest. Both come and go together. What is shared (the invariant module, the
aggregator, the independence loss, the router's standardisation and reduction) is not touched.

Every function works in place, and checks everything before it changes anything.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch

from iclm.errors import ConfigurationError
from iclm.model.backbone import anatomy
from iclm.model.configuration_iclm import ICLMConfig, default_name, describe, name_fault
from iclm.model.modeling_iclm import ICLMForCausalLM
from iclm.model.modules import AdaptedLayer, LoRABank
from iclm.model.plan import INVARIANT
from iclm.model.router import LearnedRouter, Router, build_router
from iclm.model.router.base import check_finite
from iclm.model.router.prompt import Units

Weights = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""A [rank, in] and B [out, rank] of one module, by the name that the adapted linear layer has in the base model."""


def banks(model: ICLMForCausalLM) -> dict[str, LoRABank]:
    """The module banks of a model by the name of their linear layer in the base model (model.layers.2.self_attn.q_proj)."""
    path = anatomy(model.base).layers_path
    return {
        f"{path}.{index}.{name}": module
        for index, layer in enumerate(model.base.get_submodule(path))
        if isinstance(layer, AdaptedLayer)
        for name, module in layer.layer.named_modules()
        if isinstance(module, LoRABank)
    }


def weights_of(model: ICLMForCausalLM, module: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The weights of a module by its number in the bank (0 invariant, 1 + i domain module i), not copied."""
    return {
        name: (bank.lora_A[str(module)].detach(), bank.lora_B[str(module)].detach())
        for name, bank in banks(model).items()
    }


def fresh_weights(model: ICLMForCausalLM, seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Weights as every module starts with: A at random, B zero. On the CPU, and independent of the device."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, bank in banks(model).items():
        a, b = (next(iter(kind.values())) for kind in (bank.lora_A, bank.lora_B))
        bound = a.shape[1] ** -0.5
        start = (torch.rand(a.shape, generator=generator) * 2 - 1) * bound
        found[name] = (start, torch.zeros(b.shape))
    return found


@torch.no_grad()
def set_weights(model: ICLMForCausalLM, module: int, weights: Weights) -> None:
    """Give a module (by its number in the bank) these weights.

    Raises:
        ConfigurationError: other layers than those that are adapted, another shape, or a value that is not finite.
    """
    _check_weights(model, weights)
    for name, bank in banks(model).items():
        a, b = weights[name]
        bank.lora_A[str(module)].copy_(a)
        bank.lora_B[str(module)].copy_(b)


def _check_weights(model: ICLMForCausalLM, weights: Weights) -> None:
    known = banks(model)
    different = sorted(known.keys() ^ weights.keys())
    if different:
        lacking = different[0] in known
        raise ConfigurationError(
            f"the weights {'lack' if lacking else 'have'} {different[0]}; they must be those of the {len(known)} adapted "
            "layers"
        )
    for name, bank in known.items():
        for kind, given in zip((bank.lora_A, bank.lora_B), weights[name], strict=True):
            wanted = next(iter(kind.values())).shape
            if given.shape != wanted:
                raise ConfigurationError(f"{name}: a weight is {list(given.shape)}; this model has {list(wanted)}")
            if not bool(torch.isfinite(given).all()):
                raise ConfigurationError(
                    f"{name}: a weight is not finite; give a module whose training did not diverge"
                )


def add_module(
    model: ICLMForCausalLM,
    name: str,
    *,
    weights: Weights | None = None,
    features: torch.Tensor | None = None,
) -> int:
    """Add a domain module after the last one, in place; all other parameters and buffers stay bitwise the same.

    Args:
        name: what a user calls it.
        weights: of the module; None means a fresh start (A at random, B zero), which gives the base model's own states.
        features: what the router would decide on for examples of its domain, [n, hidden] (`router_features`); the
            module's code is their mean. Needed by a router with codes; none other takes it.

    Returns:
        The number i of the new domain module. With one active module a prompt nearer to its code than to any other goes to it from
        now on, and all other routes stay. With several it may be among the active ones of any prompt, and a gate (`soft`, `topk`,
        `gumbel`) weighs it by what it has learned, which is nothing of this code.

    Raises:
        ConfigurationError: a name that another module has, weights or features that do not fit, or a model that cannot
            have another domain module: plain LoRA, or a router that draws at random.
    """
    number = model.config.num_domains
    router = _require_router(model)
    fault = name_fault(name, number, model.config.names)
    if fault:
        raise ConfigurationError(f"the name {name!r} cannot be given to a domain module: {fault}")
    has_codes = _has_codes(router)
    if has_codes and features is None:
        raise ConfigurationError(
            f"router {model.config.router!r} needs a code for the new module; give prompts of its domain (--data FILE)"
        )
    if not has_codes and features is not None:
        raise ConfigurationError(
            f"router {model.config.router!r} has no codes, or was not fitted yet; leave out the prompts (--data)"
        )
    if features is not None:
        _check_features(features, model.config)
    if weights is None:
        weights = fresh_weights(model, model.config.seed + 1 + number)
    _check_weights(model, weights)
    config = copy.deepcopy(model.config)
    config.num_domains = number + 1
    if model.config.domain_names is not None or name != default_name(number):
        config.domain_names = [*model.config.names, name]
    _rebuild(model, config, list(range(number)))
    with torch.no_grad():
        set_weights(model, 1 + number, weights)
        if features is not None:
            assert isinstance(model.router, LearnedRouter)
            points = model.router.project(features.to(model.router.mean))
            model.router.place(points.mean(0), len(features))
    return number


def remove_module(model: ICLMForCausalLM, number: int, *, with_code: bool = False) -> None:
    """Remove a domain module, in place; those after it move down by one, their weights and codes bitwise the same.

    With one active module prompts that went to another go there still, and those of the removed one to the nearest code that is left;
    with several, the next nearest takes its place among the active ones.

    Args:
        number: i of the domain module.
        with_code: remove the code that points to it too. A router without codes has none to remove.

    Raises:
        ConfigurationError: no such module, the last one, or one that the router needs: its code points to it, it is
            fixed to it, it activates as many modules as there are, or it draws at random.
    """
    config, router = model.config, _require_router(model)
    if not 0 <= number < config.num_domains:
        raise ConfigurationError(f"there is no domain module {number}; the model has 0 to {config.num_domains - 1}")
    label = describe(config, number)
    if config.num_domains == 1:
        raise ConfigurationError(f"{label} is the last domain module; an ICLM needs one")
    if config.router == f"fixed:{number}":
        raise ConfigurationError(
            f"{label} cannot be removed: the router is {config.router}, which sends every prompt to it"
        )
    if config.router != "soft" and config.active_domains >= config.num_domains:
        raise ConfigurationError(
            f"{label} cannot be removed: the router activates {config.active_domains} domain modules for each prompt, "
            "and there are no more"
        )
    if _has_codes(router) and not with_code:
        raise ConfigurationError(
            f"{label} cannot be removed alone: a code of the {config.router} router still points to it; remove the "
            "code too (--with-code), and its prompts go to the nearest code that is left"
        )
    left = [i for i in range(config.num_domains) if i != number]
    after = copy.deepcopy(config)
    after.num_domains = len(left)
    if config.domain_names is not None:
        # a module that has no name but its number is called by its new number
        names = [(i, old, config.domain_names[old]) for i, old in enumerate(left)]
        after.domain_names = [default_name(i) if name == default_name(old) else name for i, old, name in names]
    if config.router.startswith("fixed:"):
        after.router = f"fixed:{left.index(int(config.router.removeprefix('fixed:')))}"
    _rebuild(model, after, left)


def rename_module(config: ICLMConfig, number: int, name: str) -> None:
    """Call domain module `number` by another name; raises `ConfigurationError` for a name that cannot be given."""
    if not 0 <= number < config.num_domains:
        raise ConfigurationError(f"there is no domain module {number}; the model has 0 to {config.num_domains - 1}")
    names = config.names
    fault = name_fault(name, number, names[:number] + names[number + 1 :])
    if fault:
        raise ConfigurationError(f"{describe(config, number)} cannot be renamed {name!r}: {fault}")
    names[number] = name
    config.domain_names = names


@torch.no_grad()
def share_routed_to(model: ICLMForCausalLM, number: int, features: torch.Tensor) -> float:
    """Share of router features [n, hidden] whose first choice is domain module `number`; of a router with codes."""
    router = model.router
    assert isinstance(router, LearnedRouter)
    nothing = torch.zeros(len(features), 1, dtype=torch.long, device=router.mean.device)
    was_training = router.training
    router.eval()
    route = router.decide(Units(features.to(router.mean), nothing, nothing.bool(), None))
    router.train(was_training)
    return float((route.indices[:, 0] == number).float().mean())


def _has_codes(router: Router) -> bool:
    return isinstance(router, LearnedRouter) and bool(router.fitted)


def _require_router(model: ICLMForCausalLM) -> Router:
    """The router; raises `ConfigurationError` where its domain modules cannot be changed."""
    if model.router is None:
        what = "plain LoRA" if model.config.method == "lora" else f"ablation {model.config.ablation}"
        raise ConfigurationError(f"the model has no domain modules ({what}), so none can be added or removed")
    if model.config.router == "random":
        raise ConfigurationError(
            "the random router draws among all domain modules: to add or remove one would change the route of every "
            "prompt; choose another router"
        )
    return model.router


def _check_features(features: torch.Tensor, config: ICLMConfig) -> None:
    if features.dim() != 2 or not len(features) or features.shape[1] != config.hidden_size:
        raise ConfigurationError(
            f"router features are {list(features.shape)}; they must be [examples, {config.hidden_size}], at least one"
        )
    check_finite(features)


def _rebuild(model: ICLMForCausalLM, config: ICLMConfig, kept: list[int]) -> None:
    """Bring banks and router to the number of domain modules that `config` says: these old ones first, then new ones.

    Raises:
        ConfigurationError: a configuration that cannot be; nothing is changed then.
    """
    config.check()
    router = _resized(model.router, config, kept).to(model.base.device)
    state = model.state_dict(keep_vars=True)
    of_base = {name for name in state if name not in model.own_names}
    fixed = [m for m in model.config.modules if m == INVARIANT]
    numbers = [*fixed, *(1 + i for i in kept), *[None] * (config.num_domains - len(kept))]
    for bank in banks(model).values():
        bank.renumber(numbers)
    model.router = router
    for name in ("num_domains", "active_domains", "router", "domain_names"):
        setattr(model.config, name, getattr(config, name))
    model.own_names = frozenset(name for name in model.state_dict(keep_vars=True) if name not in of_base)


@torch.no_grad()
def _resized(old: Router, config: ICLMConfig, kept: list[int]) -> Router:
    """A router of another number of domain modules, with all that the old one knows of the kept ones."""
    new = build_router(config)
    assert new is not None
    known = old.state_dict()
    if isinstance(new, LearnedRouter) and not _has_codes(old):
        known = {}  # there is nothing to keep: `fit` will set everything
    for name, fresh in new.state_dict().items():
        if name not in known:
            continue
        value = known[name]
        along = [axis for axis in range(value.dim()) if value.shape[axis] != fresh.shape[axis]]
        if not along:
            fresh.copy_(value)
            continue
        (axis,) = along  # that of the domain modules
        chosen = value.index_select(axis, torch.tensor(kept, device=value.device))
        fresh.narrow(axis, 0, len(kept)).copy_(chosen)
    needed = {name: parameter.requires_grad for name, parameter in old.named_parameters()}
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(needed.get(name, True))
    return new.train(old.training)
