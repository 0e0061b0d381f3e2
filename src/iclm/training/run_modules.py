"""The modules of a finished run: listed, renamed, removed, brought in from PEFT and given out to it.

A change makes a whole run folder: under a hidden name beside its place, which it then takes. In it are

    config.json, model.safetensors, run.json     written anew; run.json also says what was `changes`d
    the tokenizer, recipe.yaml, stages/, ...     as they were
    log.jsonl                                    kept by a removal as log_before_removal.jsonl: its figures by module have
                                                 the old numbers
    diagnosis/                                   left out by a removal or an import: it is of another model
    report.html                                  left out: it is a page of what the run was
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from iclm.data.files import check_replaceable
from iclm.errors import CheckpointError, ConfigurationError
from iclm.evaluation.evaluate_run import read_for
from iclm.evaluation.runs import FINISHED, Run, check_finite, domains_of, load_run, read_record
from iclm.model import ICLMConfig
from iclm.model.checkpoint import read_config, read_json, read_weights
from iclm.model.configuration_iclm import LEARNED_ROUTERS, default_name, describe
from iclm.model.peft_format import CONFIG, WEIGHTS, fit_adapter, read_adapter, write_adapter
from iclm.model.plan import INVARIANT
from iclm.model.surgery import add_module, remove_module, rename_module, share_routed_to
from iclm.recipe import DataSource
from iclm.training.folder import LOG, LOG_BEFORE_REMOVAL, OURS, PAGE, finite, write_folder, write_record

DIAGNOSIS = "diagnosis"  # where `iclm diagnose` leaves what it found, unless told otherwise
ADAPTER = (CONFIG, WEIGHTS, "README.md")  # what an adapter folder of PEFT holds
FEATURE_TOKENS = 4096  # of a batch of prompts, padding included


def module_named(config: ICLMConfig, name: str) -> int:
    """Number in the bank of the module that a user means: 0 for "invariant", 1 + i for "domain_i" or its name.

    Raises:
        ConfigurationError: there is no such module; the message lists those there are.
    """
    places = ["invariant"] if INVARIANT in config.modules else []
    names = config.names
    places += [default_name(number) for number in range(len(names))]
    if name in places:
        return INVARIANT if name == "invariant" else 1 + int(name.removeprefix("domain_"))
    if name in names:
        return 1 + names.index(name)
    known = [place for place in places if place == "invariant"] + [describe(config, i) for i in range(len(names))]
    raise ConfigurationError(f"module {name!r} is unknown; there are {', '.join(known)}")


# -- what there is -----------------------------------------------------------------------------------------------------


def list_modules(folder: str | Path) -> list[dict[str, Any]]:
    """The modules of a run, without its base model.

    Returns:
        For each module a JSON object: `module`, its `number` among the domain modules (None for the invariant one),
        `name`, `parameters`, `norm` of its update (the Frobenius norm of s B A over all layers; None where it is not
        finite), whether a `code` of the router points to it, the `domains` that are its own, and, where `iclm diagnose`
        has recorded it, the `share` of the validation routes on it (else None).

    Raises:
        CheckpointError: no run folder, or a damaged file.
    """
    folder = Path(folder)
    config, domains = _described(folder)
    state = read_weights(folder)
    norms, parameters = dict.fromkeys(config.modules, 0.0), dict.fromkeys(config.modules, 0)
    for name, a in state.items():
        stem, separator, module = name.rpartition(".lora_A.")
        if not separator:
            continue
        b = state.get(f"{stem}.lora_B.{module}")
        if b is None or not module.isdecimal() or int(module) not in norms or a.shape[0] != b.shape[1]:
            raise CheckpointError(f"{folder} is damaged: {name} belongs to no module of its configuration")
        a, b = a.double(), b.double()
        norms[int(module)] += float(((b.T @ b) * (a @ a.T)).sum())  # the squared norm of B A, never made itself
        parameters[int(module)] += a.numel() + b.numel()
    codes = config.router in LEARNED_ROUTERS and bool(state.get("router.fitted", torch.tensor(False)))
    shares = _validation_shares(folder, config)
    rows = []
    for place in config.modules:
        number = None if place == INVARIANT else place - 1
        rows.append(
            {
                "module": "invariant" if number is None else default_name(number),
                "number": number,
                "name": "invariant" if number is None else config.names[number],
                "parameters": parameters[place],
                "norm": abs(config.lora_alpha / config.lora_rank) * max(norms[place], 0.0) ** 0.5,
                "code": number is not None and codes,
                "domains": [name for name, at in domains.items() if at == number],
                "share": None if number is None or shares is None else shares[number],
            }
        )
    return finite(rows)


def _described(folder: Path) -> tuple[ICLMConfig, dict[str, int]]:
    """Configuration, with the names of its modules, and domains of a run."""
    domains = domains_of(read_record(folder))
    config = read_config(folder)
    if config.domain_names is None and config.num_domains:
        config.domain_names = config.names_after(domains)
    return config, domains


def _validation_shares(folder: Path, config: ICLMConfig) -> list[float] | None:
    """Share of the routes on each domain module that the last diagnosis of a run found in its training distribution."""
    path = folder / DIAGNOSIS / "diagnosis.json"
    if not path.is_file():
        return None
    found: Any = read_json(path)
    for key in ("routing", "iid", "usage"):
        found = found.get(key) if isinstance(found, dict) else None
    whole = isinstance(found, list) and len(found) == config.num_domains
    return found if whole and all(isinstance(share, (int, float)) for share in found) else None


# -- changes -----------------------------------------------------------------------------------------------------------


def rename(
    folder: str | Path, module: str, name: str, *, out: str | Path | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Call a domain module of a run by another name; its domains stay its own. Needs no base model.

    Args:
        module: domain_i, or its name.
        out, overwrite: see `_place`.

    Returns:
        A JSON object: what was done.

    Raises:
        ICLMError: no run, no such module, a name that cannot be given, or a folder that must not be written.
    """
    folder = Path(folder)
    target = _place(folder, out, overwrite)
    config, domains = _described(folder)
    number = _domain_module(config, module)
    if domains.get(name, number) != number:
        raise ConfigurationError(f"{name!r} is the domain of {describe(config, domains[name])}; choose another name")
    done = {"change": "rename", "module": default_name(number), "before": config.names[number], "name": name}
    rename_module(config, number, name)

    def write(part: Path) -> None:
        config.save_pretrained(part)

    return _change(folder, target, done, domains, write)


def remove(
    folder: str | Path,
    module: str,
    *,
    with_code: bool = False,
    base: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Remove a domain module of a run, and its domains from what the run knows; later ones move down by one.

    Args:
        module: domain_i, or its name.
        with_code: see `iclm.model.surgery.remove_module`.
        base: the base model, if it is not where the run says.
        out, overwrite: see `_place`.

    Returns:
        A JSON object: what was done.

    Raises:
        ICLMError: no run, no such module, one that is needed, or a folder that must not be written.
    """
    folder = Path(folder)
    target = _place(folder, out, overwrite)
    run = load_run(folder, base=base)
    number = _domain_module(run.model.config, module)
    done = {"change": "remove", "module": default_name(number), "name": run.model.config.names[number]}
    remove_module(run.model, number, with_code=with_code)
    domains = {name: at - (at > number) for name, at in run.domains.items() if at != number}
    return _change(folder, target, done, domains, run.model.save_pretrained, without=(LOG, DIAGNOSIS), removed=number)


def import_adapter(
    folder: str | Path,
    adapter: str | Path,
    name: str,
    *,
    sources: Callable[[Run], Sequence[DataSource]] | None = None,
    base: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Make a LoRA adapter of PEFT a new domain module of a run, and its name a domain that the run knows.

    Args:
        adapter: the PEFT folder.
        name: of the module, and of its domain.
        sources: given the run, where prompts of its domain are read, which place its code; None where the router has no
            codes.
        base: the base model, if it is not where the run says.
        out, overwrite: see `_place`.

    Returns:
        A JSON object: what was done; with `sources` how many `prompts` placed the code, and the share of them (in routing
        by token, of their tokens) that is `routed` to the module.

    Raises:
        ICLMError: no run, an adapter that does not fit, a name that is taken, or a folder that must not be written.
    """
    folder = Path(folder)
    target = _place(folder, out, overwrite)
    read = read_adapter(adapter)
    run = load_run(folder, base=base)
    model, count = run.model, run.model.config.num_domains
    owner = run.domains.get(name, count)
    if owner < count:
        raise ConfigurationError(f"{name!r} is the domain of {describe(model.config, owner)}; choose another --name")
    prompts = [] if sources is None else [item.prompt for source in sources(run) for item in read_for(run, source)]
    features = _features(run, prompts) if prompts else None
    weights = fit_adapter(read, model, model.config.seed + 1 + count)
    number = add_module(model, name, weights=weights, features=features)
    done: dict[str, Any] = {"change": "import", "module": default_name(number), "name": name, "adapter": str(adapter)}
    done |= {"rank": read.rank, "adapter_base": read.base}
    if features is not None:
        done |= {"prompts": len(prompts), "routed": share_routed_to(model, number, features)}
    # a domain that had no module must not get the new one for its own
    domains = {known: at + (at >= count) for known, at in run.domains.items() if known != name} | {name: number}
    return _change(folder, target, done, domains, model.save_pretrained, without=(DIAGNOSIS,))


def export_adapter(
    folder: str | Path, module: str, out: str | Path, *, base: str | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Write a module of a run as a LoRA adapter folder for PEFT, whole or not at all.

    Args:
        module: invariant, domain_i, or a domain module's name.
        base: the base model, if it is not where the run says.
        overwrite: replace an adapter folder that exists.

    Returns:
        A JSON object: what was done.

    Raises:
        ICLMError: no run, no such module, or a folder that must not be written.
    """
    out = Path(out)
    check_replaceable(out, CONFIG, ADAPTER, "an adapter folder", overwrite=overwrite)
    config, _ = _described(Path(folder))
    number = module_named(config, module)  # before the base is loaded
    run = load_run(folder, base=base)
    check_finite(run)
    _replace(out, lambda part: write_adapter(run.model, number, part))
    place = "invariant" if number == INVARIANT else default_name(number - 1)
    name = place if number == INVARIANT else config.names[number - 1]
    return {"change": "export", "module": place, "name": name, "out": str(out)}


def _domain_module(config: ICLMConfig, module: str) -> int:
    """Number i of the domain module that a user means; raises `ConfigurationError` for any other."""
    number = module_named(config, module)
    if number == INVARIANT:
        raise ConfigurationError("the invariant module has no other name, and an ICLM needs it; give a domain module")
    return number - 1


@torch.no_grad()
def _features(run: Run, prompts: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """What the router would decide on for prompts of token ids, [n, hidden] on the CPU."""
    prompts = sorted(prompts, key=len)
    device, pad = run.model.device, int(run.tokenizer.pad_token_id)
    found, start = [], 0
    while start < len(prompts):
        end = start + 1
        while end < len(prompts) and (end + 1 - start) * len(prompts[end]) <= FEATURE_TOKENS:
            end += 1
        batch, width = prompts[start:end], len(prompts[end - 1])
        ids = torch.tensor([[*prompt, *[pad] * (width - len(prompt))] for prompt in batch], device=device)
        mask = torch.tensor([[1] * len(p) + [0] * (width - len(p)) for p in batch], device=device)
        found.append(run.model.router_features(ids, mask).cpu())
        start = end
    return torch.cat(found)


# -- folders -----------------------------------------------------------------------------------------------------------


def _place(folder: Path, out: str | Path | None, overwrite: bool) -> Path:
    """Where a changed run goes: `out`, or, where there is none, the run's own folder, which needs `overwrite`.

    Raises:
        ConfigurationError: neither was given, or there is something that must not be replaced.
    """
    if out is None:
        if not overwrite:
            raise ConfigurationError(
                f"say where the changed run goes: --out NEW, or --overwrite to change {folder} itself"
            )
        return folder
    target = Path(out)
    one, two = folder.resolve(), target.resolve()
    if one != two and (one in two.parents or two in one.parents):
        raise ConfigurationError(f"--out {out} and the run {folder} lie in each other; choose another --out")
    check_replaceable(target, FINISHED, OURS, "a run folder", overwrite=overwrite)
    return target


def _change(
    folder: Path,
    target: Path,
    done: dict[str, Any],
    domains: dict[str, int],
    write: Callable[[Path], None],
    without: Sequence[str] = (),
    removed: int | None = None,
) -> dict[str, Any]:
    """Leave a changed run: all that is in its folder but `without` and its page, what `write` writes, and its record; a log is kept by another name.

    Args:
        removed: number of the domain module that is gone; later ones moved down by one.
    """
    record = read_record(folder)
    if removed is not None and "homes" in record:  # of a sequence: the module of each task
        homes = record["homes"].items()
        record["homes"] = {task: at - (at > removed) for task, at in homes if at != removed}
    ordered = sorted(domains, key=lambda name: domains[name])
    record["domains"] = ordered
    record.pop("domain_modules", None)
    if [domains[name] for name in ordered] != list(range(len(ordered))):
        record["domain_modules"] = domains
    record["changes"] = [*record.get("changes", ()), done]

    def fill(part: Path) -> None:
        def left_out(at: str, names: list[str]) -> list[str]:
            return [name for name in names if name in (*without, PAGE) and Path(at) == folder]

        shutil.copytree(folder, part, ignore=left_out, symlinks=True, dirs_exist_ok=True)
        if LOG in without and (folder / LOG).is_file():
            shutil.copy2(folder / LOG, part / LOG_BEFORE_REMOVAL)
        write(part)
        write_record(part / FINISHED, record)

    _replace(target, fill)
    return {**done, "run": str(folder), "out": str(target)}


def _replace(target: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder that takes the place of `target` whole or not at all; what was there goes last.

    Raises:
        ConfigurationError: it cannot be written, or is the current folder, which would then be none.
    """
    target = target.resolve()  # a link stays one
    if target.exists() and target in (Path.cwd(), *Path.cwd().parents):
        raise ConfigurationError(
            f"{target} is where this command was started; start it elsewhere to replace that folder"
        )
    old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
    new = target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
    try:
        write_folder(new, fill)
        try:
            if target.exists():
                os.rename(target, old)
            os.rename(new, target)
        except BaseException:
            if old.exists() and not target.exists():
                os.rename(old, target)
            raise
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    with suppress(OSError):
        shutil.rmtree(old)
