"""How good the measures and losses of independence are, on pairs whose dependence is known.

    pairs                                                           mutual information, nats
    gaussian    d dimensions, each pair of correlation ρ            −d/2 ln(1 − ρ²), set to 0, 0.25, 1 or 2
    identical   y = x                                               infinite
    square      y = x² + noise in one dimension: correlation 0      by numerical integration
    mean shift  states of two domains, s deviations apart along     accuracy of the best classifier Φ(s/2), for leakage
                one of 16 dimensions

Every estimator sees the same samples. A measure with a permutation test also gets the share of repetitions in which it
rejects independence at 5%: its power, or where there is no dependence its false positives. A loss with a critic trains it on
fresh pairs first, so its figure is that of a good critic, which a training may not have.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from scipy.integrate import trapezoid

from iclm.data.files import atomic_write
from iclm.errors import ConfigurationError
from iclm.evaluation.independence import (
    correlation_report,
    domain_leakage,
    hsic_test,
    ksg_mutual_information,
    linear_cka,
    mutual_information_report,
)
from iclm.model import ICLMConfig
from iclm.model.independence import LOSSES, build_independence

DIMS = (1, 4, 16)
NATS = (0.0, 0.25, 1.0, 2.0)
SAMPLES = (200, 1000)
SHIFTS = (0.0, 0.5, 1.0, 2.0)
SHIFT_DIMS = 16
NOISE = 0.5  # deviation of the noise in y = x² + noise
LEVEL = 0.05  # of the tests; the numbers of permutations below are those at which it can be met exactly
CRITICS = ("club", "infonce")  # losses whose critic is trained anew in each repetition
CRITIC_REPETITIONS = 3  # of these, at most
CRITIC_STEPS, CRITIC_BATCH, CRITIC_RATE = 300, 256, 3e-3
CRITIC_AVERAGE = 5  # fresh samples that a trained critic's value is the mean of

Sample = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Pairs:
    """A distribution of pairs (x, y).

    Attributes:
        name: "gaussian", "identical" or "square".
        dims: d of each side.
        truth: mutual information in nats; None where it is infinite.
        rho: correlation of each pair of dimensions.
    """

    name: str
    dims: int
    truth: float | None
    rho: float

    def draw(self, rng: np.random.Generator, n: int) -> Sample:
        """n pairs, each side [n, dims]."""
        x, noise = rng.standard_normal((2, n, self.dims))
        if self.name == "square":
            return x, x**2 + NOISE * noise
        return x, self.rho * x + math.sqrt(1 - self.rho**2) * noise


def gaussian(dims: int, nats: float) -> Pairs:
    """Gaussian pairs of a mutual information of so many nats, spread evenly over dims pairs of dimensions."""
    return Pairs("gaussian", dims, nats, math.sqrt(-math.expm1(-2 * nats / dims)))


def square_information(noise: float = NOISE) -> float:
    """Mutual information of x ~ N(0, 1) and y = x² + noise · N(0, 1), in nats: h(y) − h(y|x), h(y) by the trapezoid rule."""
    x = np.linspace(-7.0, 7.0, 2001)
    y = np.linspace(-8.0 * noise, 49.0 + 8.0 * noise, 3001)
    conditional = np.exp(-(((y[:, None] - x**2) / noise) ** 2) / 2) / (noise * math.sqrt(2 * math.pi))
    density = trapezoid(conditional * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), x, axis=1)
    entropy = -trapezoid(density * np.log(np.maximum(density, np.finfo(float).tiny)), y)
    return float(entropy - math.log(noise * math.sqrt(2 * math.pi * math.e)))


def distributions() -> list[Pairs]:
    """All pairs that the estimators are tried on."""
    gaussians = [gaussian(dims, nats) for dims in DIMS for nats in NATS]
    identical = [Pairs("identical", dims, None, 1.0) for dims in DIMS]
    return [*gaussians, *identical, Pairs("square", 1, square_information(), 0.0)]


# -- the estimators: each gives a value and, where it is a test, a p-value ---------------------------------------------

Estimate = tuple[float, float | None]


def _ksg(x: np.ndarray, y: np.ndarray, seed: int) -> Estimate:
    return ksg_mutual_information(x, y, seed=seed), None


def _ksg_pca(x: np.ndarray, y: np.ndarray, seed: int) -> Estimate:
    found = mutual_information_report(x, y, pca=4, permutations=19, seed=seed)
    return found.estimate, found.p_value


def _hsic(x: np.ndarray, y: np.ndarray, seed: int) -> Estimate:
    found = hsic_test(x, y, permutations=39, seed=seed)
    return found.statistic, found.p_value


def _cka(x: np.ndarray, y: np.ndarray, seed: int) -> Estimate:
    return linear_cka(x, y), None


def _correlation(x: np.ndarray, y: np.ndarray, seed: int) -> Estimate:
    found = correlation_report(x, y, permutations=99, seed=seed)
    return found.mean, found.p_value


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray, int], Estimate]] = {
    "ksg": _ksg,
    "ksg_pca": _ksg_pca,
    "hsic": _hsic,
    "cka": _cka,
    "correlation": _correlation,
}


def loss_value(kind: str, pairs: Pairs, n: int, rng: np.random.Generator, seed: int) -> float:
    """Value of a training loss with its shipped settings on n pairs; with a critic, the mean over some samples of n.

    The queue is left out: the n pairs stand for it and the batch together.
    """
    loss = build_independence(ICLMConfig(hidden_size=pairs.dims, mi_loss=kind, mi_queue=0, seed=seed))
    if kind in CRITICS:
        optimizer = torch.optim.Adam(loss.parameters(), lr=CRITIC_RATE)
        for _ in range(CRITIC_STEPS):
            critic = loss(*_tensors(pairs.draw(rng, CRITIC_BATCH))).critic
            assert critic is not None
            optimizer.zero_grad()
            critic.backward()
            optimizer.step()
    loss.eval()
    with torch.no_grad():
        count = CRITIC_AVERAGE if kind in CRITICS else 1
        return float(np.mean([float(loss(*_tensors(pairs.draw(rng, n))).value) for _ in range(count)]))


def _tensors(sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(sample[0]).float(), torch.from_numpy(sample[1]).float()


def shifted_domains(rng: np.random.Generator, n: int, shift: float) -> Sample:
    """States [n, 16] and domains [n], half of each, that differ by a shift of the mean along the first dimension."""
    domains = np.arange(n) % 2
    states = rng.standard_normal((n, SHIFT_DIMS))
    states[:, 0] += shift * domains
    return states, domains


# -- the study ---------------------------------------------------------------------------------------------------------


def run(
    out: str | Path | None,
    *,
    repetitions: int = 10,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[str, int], Any] | None = None,
) -> list[dict[str, Any]]:
    """Try every estimator on every distribution; some minutes on one core with 10 repetitions.

    Args:
        out: a JSON lines file for the rows; None for none.
        repetitions: samples of each distribution and size; losses with a critic take at most 3.
        seed: of all samples, shuffles and critics.
        overwrite: replace an existing file.
        progress: makes a progress callback from a title and a total.

    Returns:
        One row an estimator, distribution and sample size: `estimator`, `kind` ("measure" or "loss"), `distribution`,
        `dims`, `rho`, `n`, `truth` (nats, null where infinite; of leakage the accuracy of the best classifier), `mean` and
        `sd` of the estimates (sd null of a single one), `rejected` (share of p-values up to 0.05, null without a test),
        `repetitions`, and `seconds`, the processor time of one estimate.

    Raises:
        ConfigurationError: no repetition, a negative seed, or a file that exists or cannot be written.
    """
    if repetitions < 1:
        raise ConfigurationError(f"repetitions is {repetitions}; it must be at least 1")
    if seed < 0:
        raise ConfigurationError(f"seed is {seed}; it must not be negative")
    if out is None:
        return _rows(repetitions, seed, progress)
    with atomic_write(out, overwrite=overwrite) as stream:
        rows = _rows(repetitions, seed, progress)
        stream.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    return rows


def _rows(repetitions: int, seed: int, progress: Callable[[str, int], Any] | None) -> list[dict[str, Any]]:
    names = [("measure", name) for name in MEASURES] + [("loss", name) for name in LOSSES]
    tried = [(pairs, n) for pairs in distributions() for n in SAMPLES]
    shifted = [(shift, n) for shift in SHIFTS for n in SAMPLES]
    tick = None if progress is None else progress("estimators", len(tried) * len(names) + len(shifted))
    rows = []
    for pairs, n in tried:
        head = {"distribution": pairs.name, "dims": pairs.dims, "rho": pairs.rho, "n": n, "truth": pairs.truth}
        for kind, name in names:
            critic = kind == "loss" and name in CRITICS
            count = min(repetitions, CRITIC_REPETITIONS) if critic else repetitions
            found = _repeated(partial(_of_pairs, kind, name, pairs, n, seed), count)
            rows.append({"estimator": name, "kind": kind, **head, **found})
            if tick is not None:
                tick(1)
    for shift, n in shifted:
        head = {"distribution": f"mean shift {shift:g}", "dims": SHIFT_DIMS, "rho": None, "n": n}
        found = _repeated(partial(_of_shift, shift, n, seed), repetitions)
        rows.append({"estimator": "leakage", "kind": "measure", **head, "truth": NormalDist().cdf(shift / 2), **found})
        if tick is not None:
            tick(1)
    return rows


def _of_pairs(kind: str, name: str, pairs: Pairs, n: int, seed: int, repetition: int) -> Estimate:
    """One estimate; the samples of a repetition are the same for every estimator."""
    rng = np.random.default_rng([seed, repetition, n, pairs.dims])
    if kind == "measure":
        return MEASURES[name](*pairs.draw(rng, n), repetition)
    return loss_value(name, pairs, n, rng, repetition), None


def _of_shift(shift: float, n: int, seed: int, repetition: int) -> Estimate:
    states, domains = shifted_domains(np.random.default_rng([seed, repetition, n]), n, shift)
    found = domain_leakage(states, domains, permutations=19, seed=repetition)
    return found.accuracy, found.p_value


def _repeated(estimate: Callable[[int], Estimate], repetitions: int) -> dict[str, Any]:
    """Mean, deviation and rejections of the estimates of all repetitions."""
    started = time.process_time()
    values, p_values = zip(*(estimate(repetition) for repetition in range(repetitions)), strict=True)
    seconds = (time.process_time() - started) / repetitions
    tested = p_values[0] is not None
    return {
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if repetitions > 1 else None,
        "rejected": float(np.mean([p <= LEVEL for p in p_values])) if tested else None,
        "repetitions": repetitions,
        "seconds": round(seconds, 4),
    }
