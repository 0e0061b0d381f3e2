"""The LoRA module bank: all modules of a linear layer at once, each row with its own.

For a frozen linear layer W and modules (A_m, B_m) of rank r, a row of module m gets

    y = W x + alpha / r (x A_m^T) B_m^T                                     (Hu et al. 2021)

in two batched matrix products over the rows, each with the weights of its row's module, so that the work is the same however
many modules there are. Where each token has a module of its own (routing by token) the A are stacked to [M r, in], the B to
[out, M r], and a gate keeps of x A^T the columns of the token's module. Only modules that some row uses are stacked: the
gradient of an idle module stays None, and an optimizer leaves it and its state alone.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from iclm.errors import BackboneError, ConfigurationError
from iclm.model.configuration_iclm import ICLMConfig
from iclm.model.plan import ActivationPlan

# arguments of a layer whose first dimension is never the batch: MPT's is [heads, 1, tokens]
_OF_HEADS = ("position_bias",)


class Activation:
    """What the adapted layers need to know during one forward pass: the plan, and what was expanded for it already.

    Args:
        make_plan: called once, with the hidden states [batch, tokens, hidden] that the router reads.
    """

    def __init__(self, make_plan: Callable[[torch.Tensor], ActivationPlan], rank: int, scale: float) -> None:
        self._make_plan = make_plan
        self._rank = rank
        self._expanded: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.plan: ActivationPlan | None = None
        self.gate: torch.Tensor | None = None
        self.position: torch.Tensor | None = None
        self.scale = scale

    def route(self, hidden: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        """Decide the plan from the hidden states at the router's layer; once.

        Args:
            dtype: of the activations that the plan is for; None means that of `hidden`.
        """
        if self.plan is None:
            self.plan = self._make_plan(hidden)
            self.gate = self.plan.gate(self._rank, dtype or hidden.dtype)
            self.position = self.plan.position()

    def expand(self, value: Any) -> Any:
        """Expand to rows every tensor in `value` whose first dimension is the batch; remembered for the next layers."""
        if isinstance(value, tuple):
            return tuple(self.expand(item) for item in value)
        if isinstance(value, dict):
            return {name: self.expand(item) for name, item in value.items()}
        if not isinstance(value, torch.Tensor) or value.dim() < 2 or self.plan is None:
            return value
        if self.plan.rows == self.plan.sequences or value.shape[0] != self.plan.sequences:
            return value
        known = self._expanded.get(id(value))
        if known is None or known[0] is not value:
            known = (value, self.plan.expand(value))
            self._expanded[id(value)] = known
        return known[1]


class Runtime:
    """Where the adapted layers of one model find the activation of the forward pass they are in.

    Attributes:
        lock: held while layers run under an activation: the passes of several threads follow one another. It is not held over a
            backward pass, only by the layers that are recomputed in one.
    """

    def __init__(self) -> None:
        self.activation: Activation | None = None
        self.lock = threading.RLock()

    def __reduce__(self) -> tuple[type[Runtime], tuple[()]]:
        return Runtime, ()  # a copied or pickled model has a lock of its own, and is in no forward pass

    @contextmanager
    def use(self, activation: Activation | None) -> Iterator[None]:
        """Make an activation the current one, of this thread alone, and put the previous one back whatever happens."""
        with self.lock:
            previous, self.activation = self.activation, activation
            try:
                yield
            finally:
                self.activation = previous


@contextmanager
def in_float32() -> Iterator[None]:
    """Make modules in float32 also where torch's default is another dtype, as while transformers makes a model in one."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


class _ReadPast(BackboneError, AttributeError):
    """A base reads the weights of a linear layer instead of calling it, so that no LoRA could have an effect on it."""


class LoRABank(nn.Module):
    """A frozen linear layer with M low-rank modules.

    Args:
        base: the frozen layer, [out, in].
        modules: their numbers, 0 for the invariant module, 1 + i for domain module i.
        rank, dropout: r, and the dropout probability before A.
        name: of the layer in its decoder layer, for messages.
    """

    def __init__(self, base: nn.Linear, modules: Sequence[int], rank: int, dropout: float, name: str = "") -> None:
        super().__init__()
        self.base, self.name = base, name
        self.rank, self.dropout = rank, dropout
        self.chosen: tuple[torch.Tensor, torch.Tensor] | None = None
        self.gate: torch.Tensor | None = None
        self.scale = 1.0
        self.tokens: int | None = None
        device = base.weight.device
        self.lora_A = nn.ParameterDict(
            {str(m): nn.Parameter(torch.empty(rank, base.in_features, device=device)) for m in modules}
        )
        self.lora_B = nn.ParameterDict(
            {str(m): nn.Parameter(torch.zeros(base.out_features, rank, device=device)) for m in modules}
        )

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias"):
            raise _ReadPast(
                f"the base reads the {name} of {self.name or 'a linear layer'} and does not call it, so modules of it would do "
                "nothing; name the other layers in target_modules"
            )
        return super().__getattr__(name)

    def reset(self, generator: torch.Generator) -> None:
        """Start each A uniformly in +-1/sqrt(in) (the usual Kaiming start of LoRA) and each B at zero."""
        bound = 1 / math.sqrt(self.base.in_features)
        with torch.no_grad():
            for a, b in zip(self.lora_A.values(), self.lora_B.values(), strict=True):
                a.copy_((torch.rand(a.shape, generator=generator) * 2 - 1) * bound)
                b.zero_()

    def renumber(self, modules: Sequence[int | None]) -> None:
        """Keep these modules, by their numbers now, in the order of their new ones; None is a new module, at zero.

        What is kept is not copied: it stays the same parameter. The first of `modules` gets the lowest number there is.
        """
        first = min(int(name) for name in self.lora_A)
        for kind in ("lora_A", "lora_B"):
            bank = getattr(self, kind)
            like = bank[str(first)]
            kept = {
                str(number): bank[str(old)] if old is not None else nn.Parameter(torch.zeros_like(like))
                for number, old in enumerate(modules, first)
            }
            setattr(self, kind, nn.ParameterDict(kept))

    def choose(self, activation: Activation, dtype: torch.dtype, tokens: int | None = None) -> None:
        """Take what the next forward pass needs from the parameters: the A and B of each row, or of all active modules.

        Args:
            dtype: of the states that the layer will get.
            tokens: of each row, for layers that get rows and tokens as one dimension.
        """
        assert activation.plan is not None
        modules = activation.plan.active
        a, b = ([bank[str(m)] for m in modules] for bank in (self.lora_A, self.lora_B))
        if activation.position is not None:  # indexing, whose gradient is summed in a fixed order on every device
            self.chosen = (torch.stack(a).to(dtype)[activation.position], torch.stack(b).to(dtype)[activation.position])
        elif len(modules) == 1:
            self.chosen = (a[0].to(dtype), b[0].to(dtype))
        else:
            self.chosen = (torch.cat(a, 0).to(dtype), torch.cat(b, 1).to(dtype))
        self.gate, self.scale, self.tokens = activation.gate, activation.scale, tokens

    def forget(self) -> None:
        """Let go of what `choose` took."""
        self.chosen = self.gate = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [rows, tokens, in], or [rows * tokens, in], to as many outputs with each row's own module, or as the base.

        Raises:
            ConfigurationError: the layer gets some of the tokens only, whose rows are not known.
        """
        output = self.base(x)
        if self.chosen is None:
            return output
        a, b = (
            weight.to(x.dtype) for weight in self.chosen
        )  # a layer may keep its states in another dtype than it computes in
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        if a.dim() == 3:
            rows, whole = self._by_row(x, len(a)), self._by_row(output, len(a))
            added = torch.bmm(rows, a.transpose(1, 2))
            return torch.baddbmm(whole, added, b.transpose(1, 2), alpha=self.scale).view(output.shape)
        low = F.linear(x, a)
        if self.gate is not None:
            low = self._by_row(low, len(self.gate)) * self.gate.to(low.dtype)
        flat = torch.addmm(output.flatten(0, -2), low.flatten(0, -2), b.T, alpha=self.scale)
        return flat.view_as(output)

    def _by_row(self, x: torch.Tensor, rows: int) -> torch.Tensor:
        """States [rows, ..., features] or [rows * tokens, features] as [rows, n, features]."""
        if x.dim() == 3 and len(x) == rows:
            return x
        if (x.dim() > 3 and len(x) == rows) or (x.dim() == 2 and self.tokens and len(x) == rows * self.tokens):
            return x.reshape(rows, -1, x.shape[-1])
        raise ConfigurationError(
            f"a linear layer of this base gets states {list(x.shape)} where rows and tokens are {[rows, self.tokens]}, as experts do "
            "that see some of the tokens; name other layers in target_modules"
        )


class AdaptedLayer(nn.Module):
    """A decoder layer at or above the split: expands its inputs to rows, and lets the router read at its layer.

    Gradient checkpointing is done here and not by the layer, so that the recomputation runs under the activation of
    its own forward pass, whatever forward passes came between.
    """

    def __init__(self, layer: nn.Module, runtime: Runtime, *, adapted: bool, routes: bool) -> None:
        super().__init__()
        self.layer = layer
        self.runtime = runtime
        self.adapted, self.routes = adapted, routes
        self.banks = [module for module in layer.modules() if isinstance(module, LoRABank)]
        self.checkpointing = False

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the layer on rows: hidden states [batch or rows, tokens, hidden]."""
        activation = self.runtime.activation
        if activation is None:
            return self.layer(hidden_states, *args, **kwargs)
        if self.routes:
            activation.route(hidden_states)
        if not self.adapted:
            return self.layer(hidden_states, *args, **kwargs)
        hidden_states = activation.expand(hidden_states)
        args = activation.expand(args)
        kwargs = {name: value if name in _OF_HEADS else activation.expand(value) for name, value in kwargs.items()}

        def run(hidden: torch.Tensor) -> Any:
            if activation.plan is None:
                return self.layer(hidden, *args, **kwargs)
            with self.runtime.lock:  # held already in a forward pass, not where the backward pass recomputes
                for bank in self.banks:
                    bank.choose(activation, hidden.dtype, hidden.shape[1])
                try:
                    return self.layer(hidden, *args, **kwargs)
                finally:
                    for bank in self.banks:
                        bank.forget()

        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(run, hidden_states, use_reentrant=False)
        return run(hidden_states)


def require_bare(base: nn.Module) -> None:
    """Raise `BackboneError` for a base that is adapted already, by another ICLM or by PEFT (which is not imported for it)."""
    for module in base.modules():
        if isinstance(module, (AdaptedLayer, LoRABank)):
            raise BackboneError("the base is adapted already, by another ICLM; load it anew")
        if type(module).__module__.partition(".")[0] == "peft":
            raise BackboneError(
                "the base carries a PEFT adapter; call merge_and_unload() and save it as a base, or give the adapter to from_adapters"
            )


def target_linears(layer: nn.Module, targets: str | list[str]) -> list[str]:
    """Names of the linear layers of a decoder layer that get modules; see `targets_by_layer`."""
    return targets_by_layer([layer], targets)[0]


def targets_by_layer(layers: Sequence[nn.Module], targets: str | list[str]) -> list[list[str]]:
    """Names of the linear layers that get modules, for each decoder layer; of a hybrid base some layers may have none.

    Args:
        targets: "attention", "all-linear", or a list of name endings such as ["q_proj", "v_proj"].

    Raises:
        ConfigurationError: nothing matches in any layer; the message lists what there is.
    """
    linears = [[name for name, module in layer.named_modules() if isinstance(module, nn.Linear)] for layer in layers]
    there = ", ".join(dict.fromkeys(name for names in linears for name in names))
    if targets == "all-linear":
        chosen = linears
    elif targets == "attention":
        chosen = [[n for n in names if "attn" in n.lower() or "attention" in n.lower()] for names in linears]
    elif isinstance(targets, str):
        raise ConfigurationError(f"target_modules is {targets!r}; use attention, all-linear or a list of name endings")
    else:
        chosen = [[n for n in names if any(_ends(n, target) for target in targets)] for names in linears]
        for target in targets:
            if not any(_ends(name, target) for names in chosen for name in names):
                raise ConfigurationError(f"target_modules names {target!r}; a layer of this base has {there}")
    if not any(chosen):
        raise ConfigurationError(f"target_modules {targets!r} matches nothing; a layer has {there}")
    return chosen


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith("." + ending)


def adapt(layers: nn.ModuleList, config: ICLMConfig, runtime: Runtime) -> None:
    """Put module banks into the layers of a base from the split on, and a wrapper around each; in place.

    Raises:
        ConfigurationError: the configuration's target_modules match nothing.
    """
    assert config.split_layer is not None
    generator = torch.Generator().manual_seed(config.seed)
    targets = targets_by_layer(list(layers)[config.split_layer :], config.target_modules)
    for index in range(len(layers)):
        adapted = index >= config.split_layer
        if adapted:
            layer = layers[index]
            for name in targets[index - config.split_layer]:
                linear = layer.get_submodule(name)
                assert isinstance(linear, nn.Linear)
                bank = LoRABank(linear, config.modules, config.lora_rank, config.lora_dropout, name)
                bank.reset(generator)
                parent, _, leaf = name.rpartition(".")
                setattr(layer.get_submodule(parent), leaf, bank)
        if adapted or index == config.feature_layer:
            layers[index] = AdaptedLayer(layers[index], runtime, adapted=adapted, routes=index == config.feature_layer)


def release(base: nn.Module) -> None:
    """Take module banks and wrappers out of a base again, in place: it is as it was before `adapt`."""
    for parent in list(base.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, AdaptedLayer):
                parent._modules[name] = child.layer
            elif isinstance(child, LoRABank):
                parent._modules[name] = child.base
