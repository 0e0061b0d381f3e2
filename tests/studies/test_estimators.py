"""The estimators are tried on what is said, and what is known of them holds on small samples."""

import json
import math
from statistics import NormalDist

import numpy as np
import pytest

from iclm.errors import ConfigurationError
from iclm.evaluation.independence import ksg_mutual_information
from iclm.model.independence import LOSSES
from iclm.studies import estimators
from iclm.studies.estimators import Pairs, distributions, gaussian, loss_value, run, shifted_domains, square_information

KEYS = {
    *("estimator", "kind", "distribution", "dims", "rho", "n", "truth"),
    *("mean", "sd", "rejected", "repetitions", "seconds"),
}


@pytest.fixture
def small(monkeypatch):
    """Settings with which a run takes seconds."""
    monkeypatch.setattr(estimators, "DIMS", (1, 2))
    monkeypatch.setattr(estimators, "NATS", (0.0, 1.0))
    monkeypatch.setattr(estimators, "SAMPLES", (40,))
    monkeypatch.setattr(estimators, "SHIFTS", (0.0, 4.0))
    monkeypatch.setattr(estimators, "CRITIC_STEPS", 2)
    monkeypatch.setattr(estimators, "CRITIC_BATCH", 64)


def without_time(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.parametrize("dims", [1, 4, 16])
@pytest.mark.parametrize("nats", [0.0, 0.25, 2.0])
def test_gaussian_pairs_have_the_information_that_they_are_made_for(dims, nats):
    pairs = gaussian(dims, nats)
    assert -dims / 2 * math.log(1 - pairs.rho**2) == pytest.approx(nats, abs=1e-12)
    x, y = pairs.draw(np.random.default_rng(0), 20_000)
    correlations = np.corrcoef(x.T, y.T)
    assert np.diag(correlations, dims) == pytest.approx(pairs.rho, abs=0.03)
    np.fill_diagonal(correlations[:, dims:], 0.0)
    assert np.abs(correlations[:dims, dims:]).max(initial=0.0) < 0.03
    assert y.std() == pytest.approx(1.0, abs=0.02)


def test_identical_pairs_are_identical_and_squares_are_uncorrelated():
    x, y = Pairs("identical", 4, None, 1.0).draw(np.random.default_rng(0), 50)
    assert np.array_equal(x, y)
    (square,) = (pairs for pairs in distributions() if pairs.name == "square")
    x, y = square.draw(np.random.default_rng(0), 20_000)
    assert abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1]) < 0.03


def test_the_information_of_the_square_is_found_by_nearest_neighbours_too():
    for noise in (0.5, 2.0):
        rng = np.random.default_rng(1)
        x = rng.standard_normal(6000)
        found = ksg_mutual_information(x, x**2 + noise * rng.standard_normal(6000))
        assert square_information(noise) == pytest.approx(found, abs=0.05)


def test_shifted_domains_are_that_far_apart_along_one_dimension():
    states, domains = shifted_domains(np.random.default_rng(0), 10_000, 2.0)
    gap = states[domains == 1].mean(0) - states[domains == 0].mean(0)
    assert gap == pytest.approx([2.0] + [0.0] * 15, abs=0.1)
    assert domains.mean() == 0.5


def test_a_row_for_every_estimator_distribution_and_size(small):
    done = []
    rows = run(None, repetitions=2, progress=lambda title, total: done.append([title, 0, total]) or tick(done[-1]))
    names = {("measure", name) for name in estimators.MEASURES} | {("loss", name) for name in LOSSES}
    found = [(row["kind"], row["estimator"], row["distribution"], row["dims"], row["truth"]) for row in rows]
    tried = distributions()
    assert set(found) == {(*name, p.name, p.dims, p.truth) for name in names for p in tried} | {
        ("measure", "leakage", "mean shift 0", 16, 0.5),
        ("measure", "leakage", "mean shift 4", 16, NormalDist().cdf(2)),
    }
    assert len(found) == len(names) * len(tried) + 2
    assert done == [["estimators", len(rows), len(rows)]]
    for row in rows:
        assert row.keys() == KEYS
        tested = row["kind"] == "measure" and row["estimator"] in ("ksg_pca", "hsic", "correlation", "leakage")
        assert (row["rejected"] is not None) == tested


def tick(entry):
    def count(number):
        entry[1] += number

    return count


def test_every_estimator_tells_identical_from_independent_but_where_it_is_said_to_fail(small, monkeypatch):
    monkeypatch.setattr(estimators, "SAMPLES", (100,))
    monkeypatch.setattr(estimators, "NATS", (0.0,))
    monkeypatch.setattr(estimators, "CRITIC_STEPS", 40)
    rows = {(r["kind"], r["estimator"], r["distribution"], r["dims"], r["truth"]): r for r in run(None, repetitions=2)}
    for kind, names in (("measure", estimators.MEASURES), ("loss", LOSSES)):
        for name in names:
            independent, identical = rows[kind, name, "gaussian", 2, 0.0], rows[kind, name, "identical", 2, None]
            assert identical["mean"] > independent["mean"] + 5 * independent["sd"], name
    assert rows["loss", "plugin", "identical", 1, None]["mean"] == pytest.approx(0, abs=1e-6)
    assert rows["measure", "leakage", "mean shift 4", 16, NormalDist().cdf(2)]["rejected"] == 1


def test_a_critic_is_trained_and_its_value_is_that_of_fresh_samples():
    pairs = gaussian(1, 1.0)
    values = {
        kind: loss_value(kind, pairs, 500, np.random.default_rng(0), seed=0) for kind in ("club", "infonce", "hsic")
    }
    assert values["infonce"] == pytest.approx(1.0, abs=0.15)
    assert values["club"] == pytest.approx(pairs.rho**2 / (1 - pairs.rho**2), rel=0.15)
    assert values == {kind: loss_value(kind, pairs, 500, np.random.default_rng(0), seed=0) for kind in values}


def test_the_file_holds_the_rows_and_a_seed_gives_them_again(small, tmp_path, monkeypatch):
    monkeypatch.setattr(estimators, "DIMS", (1,))
    rows = run(tmp_path / "a.jsonl", repetitions=1, seed=3)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert lines == rows and all(row["sd"] is None and row["repetitions"] == 1 for row in rows)
    assert without_time(run(None, repetitions=1, seed=3)) == without_time(rows)
    assert without_time(run(None, repetitions=1, seed=4)) != without_time(rows)


def test_an_existing_file_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(estimators, "_rows", lambda *args: pytest.fail("computed"))
    path = tmp_path / "a.jsonl"
    path.write_text("kept")
    with pytest.raises(ConfigurationError, match="--overwrite"):
        run(path)
    assert path.read_text() == "kept"


def test_a_failure_leaves_no_file(tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(estimators, "_rows", fail)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"), [({"repetitions": 0}, "repetitions is 0"), ({"seed": -1}, "seed is -1")]
)
def test_unusable_settings_are_refused_with_what_was_given(options, message):
    with pytest.raises(ConfigurationError, match=message):
        run(None, **options)
