"""Health of a router: what its decisions over a stretch of training say, before a collapse costs a whole run.

    usage u_k       = share of the routing weight on domain module k
    perplexity      = exp(- sum_k u_k ln u_k)       modules in effective use, from 1 to K
    error           = mean squared distance between feature and code
    agreement       = share of the examples on the best one-to-one match of modules and true domains

Sums stay on the device, and reading them is one transfer to the host: adding a batch never waits for the device.
A router that sends nearly everything to one module has collapsed: the others then learn nothing. Perplexity and dead codes
are the usual figures of vector quantisation (van den Oord et al. 2017).
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from iclm.model.plan import Route

COLLAPSED = 0.95  # share of the routing weight on one module
WINDOW = 256  # examples that a verdict needs


class RouterCollapseWarning(UserWarning):
    """The router sends nearly everything to one domain module."""


@dataclass(frozen=True)
class RouterCounts:
    """Sums over the examples of a stretch, on the host.

    Attributes:
        usage: routing weight on each module, [K]; its sum is the number of examples, or of tokens in token routing.
        table: examples by first-choice module and true domain, where that is known, [K, domains].
        examples: number of examples.
        error: sum of the quantisation errors over `measured` examples.
        revived: dead codes that were replaced; None where there is no codebook.
    """

    usage: np.ndarray
    table: np.ndarray
    examples: int
    error: float
    measured: int
    revived: int | None

    def figures(self) -> dict[str, float]:
        """The figures of the log; those that are not defined here (no codebook, no known domain) are left out."""
        if not self.usage.sum():
            return {}
        share = self.usage / self.usage.sum()
        used = share[share != 0]  # keeps what is not a number
        figures = {
            "router_perplexity": float(np.exp(-(used * np.log(used)).sum())),
            "router_dead": float((self.usage == 0).sum()),
        }
        if self.revived is not None:
            figures["router_revived"] = float(self.revived)
        if self.measured:
            figures["router_error"] = self.error / self.measured
        if self.table.sum():
            matched = self.table[linear_sum_assignment(self.table, maximize=True)].sum()
            figures["router_agreement"] = float(matched / self.table.sum())
        return {**figures, **{f"router_usage_{code}": float(value) for code, value in enumerate(share)}}


class RouterHealth:
    """Adds up the decisions of a router.

    Args:
        codes: K, the number of domain modules.
        domains: number of true domains; 0 if they are not known. A domain outside 0 .. domains-1 counts as unknown.
    """

    def __init__(self, codes: int, domains: int = 0) -> None:
        self.codes, self.domains = codes, domains
        self.clear()

    def clear(self) -> None:
        """Start anew."""
        self._sums: torch.Tensor | None = None  # usage, table, error, measured, revived
        self._examples = 0
        self._codebook = False

    @torch.no_grad()
    def add(self, route: Route, domains: torch.Tensor | None = None) -> None:
        """Add the decision for a batch.

        Args:
            route: indices [examples, active]; with `tokens` the usage is counted over the tokens that were read.
            domains: true domain of each example, long [examples]; None where it is not known.
        """
        indices, weights = route.indices, route.weights
        if route.tokens is not None:
            indices = route.tokens.indices
            weights = route.tokens.weights * route.tokens.read[..., None]
        codes = torch.arange(self.codes, device=indices.device)
        usage = ((indices[..., None] == codes) * weights.float()[..., None]).flatten(0, -2).sum(0)
        table = torch.zeros(self.codes, self.domains, device=indices.device)
        if domains is not None:
            first = (route.indices[:, :1] == codes).float()
            known = (domains[:, None] == torch.arange(self.domains, device=indices.device)).float()
            table = first.T @ known
        zero = torch.zeros((), device=indices.device)
        error = zero if route.error is None else route.error.float().sum()
        measured = zero if route.error is None else zero + route.error.numel()
        revived = zero if route.revived is None else route.revived.float()
        sums = torch.cat([usage, table.flatten(), torch.stack([error, measured, revived])])
        self._sums = sums if self._sums is None else self._sums + sums
        self._examples += len(route.indices)
        self._codebook |= route.revived is not None

    def counts(self, reduce: Callable[[torch.Tensor], torch.Tensor] | None = None) -> RouterCounts:
        """What was added since the start, or since `clear`, on the host.

        Args:
            reduce: adds up a tensor over all processes of a training; then the counts are those of all, but for the revived codes,
                which are the first process's, as its codes are the ones that are kept.
        """
        size = self.codes + self.codes * self.domains
        found, examples = self._sums, self._examples
        if reduce is not None and found is not None:
            own = found.double()
            found = reduce(torch.cat([own, own.new_tensor([examples])]))
            examples = int(found[-1])
            found = torch.cat([found[:-2], own[-1:]])
        sums = np.zeros(size + 3) if found is None else found.cpu().numpy()
        error, measured, revived = sums[size:]
        return RouterCounts(
            usage=sums[: self.codes],
            table=sums[self.codes : size].reshape(self.codes, self.domains),
            examples=examples,
            error=float(error),
            measured=int(measured),
            revived=int(revived) if self._codebook else None,
        )

    def figures(self) -> dict[str, float]:
        """The figures of the log by name; none before the first decision."""
        return self.counts().figures()


class CollapseWatch:
    """Warns once if a window of the latest decisions, of at least 256 examples, went almost all to one module.

    Not if those examples came almost all from one domain: then one module is right.
    """

    def __init__(self) -> None:
        self._window: deque[RouterCounts] = deque()
        self._warned = False

    def add(self, counts: RouterCounts) -> None:
        """Add the latest stretch; warns with `RouterCollapseWarning`."""
        self._window.append(counts)
        while sum(part.examples for part in self._window) - self._window[0].examples >= WINDOW:
            self._window.popleft()
        examples = sum(part.examples for part in self._window)
        usage = np.sum([part.usage for part in self._window], axis=0)
        domains = np.sum([part.table.sum(0) for part in self._window], axis=0)
        if self._warned or examples < WINDOW or len(usage) < 2 or not usage.sum():
            return
        share, code = usage.max() / usage.sum(), int(usage.argmax())
        if not share > COLLAPSED or (domains.sum() and domains.max() / domains.sum() > COLLAPSED):
            return
        self._warned = True
        warnings.warn(
            f"the router has collapsed: {share:.0%} of the last {examples} examples went to domain module {code} of "
            f"{len(usage)}; try router: kmeans, another router_layer, more router_examples or fewer num_domains",
            RouterCollapseWarning,
            stacklevel=2,
        )
