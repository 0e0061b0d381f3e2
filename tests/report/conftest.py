"""A diagnosis written by hand, as `iclm.evaluation.diagnose.diagnose` returns it, of a run in which nothing is wrong."""

import pytest

from iclm.evaluation.metrics import Accuracy


def cell(correct, n):
    return Accuracy(correct, n).to_dict()


def side(correct, n, domains):
    """Accuracy over all examples, of which each domain has an equal part."""
    by_domain = {name: cell(correct // len(domains), n // len(domains)) for name in domains}
    return {"overall": cell(correct, n), "by_domain": by_domain}


def routing(modules, domains, n):
    counts = [[n // len(domains) * (code == number) for number in range(len(domains))] for code in range(modules)]
    usage = [sum(row) / n for row in counts]
    return {
        "accuracy": 1.0,
        "chance": 0.5,
        "p_value": 0.005,
        "assignment": {str(i): name for i, name in enumerate(domains)},
        "normalized_mutual_information": 1.0,
        "domains": list(domains),
        "usage": usage,
        "perplexity": float(len(domains)),
        "dead_codes": usage.count(0.0),
        "n": n,
        "table": {"domains": list(domains), "counts": counts},
        "largest_domain": 1 / len(domains),
        "collapsed": False,
    }


def dependence(estimate=0.02, p_value=0.6):
    ksg = {"estimate": estimate, "permuted_mean": 0.0, "permuted_sd": 0.03, "p_value": p_value, "n": 80}
    return {
        "n": 80,
        "ksg": ksg,
        "identical": {**ksg, "estimate": 2.0, "p_value": 0.05},
        "cka": 0.2,
        "cka_permuted_mean": 0.2,
        "hsic": {"statistic": 0.1, "permuted_mean": 0.1, "permuted_sd": 0.01, "p_value": p_value, "n": 80},
        "correlation": {"mean": 0.1, "maximum": 0.3, "permuted_mean": 0.1, "p_value": p_value, "n": 80},
    }


def compared(module, reference, data, domains, n):
    rows = []
    for name in (None, *domains):
        head = {"module": module, "reference": reference, "data": data, "domain": name, "n": n}
        rows.append({**head, "before": 0.4, "now": 0.8, "lost": 2, "gained": 34, "p_value": 0.0001})
    return rows


@pytest.fixture(scope="session")
def make_diagnosis():
    """A diagnosis with so many domain modules and domains: `make_diagnosis(modules=2, domains=2)`."""

    def make(modules=2, domains=2):
        names = [f"kind_of_text_{number}" for number in range(domains)]
        n = 40 * domains
        every = ["mixture", "invariant", *(f"domain_{i}" for i in range(modules))]
        gap = {"value": 0.05, "low": -0.03, "high": 0.13}
        rows = [
            {
                "module": module,
                "iid": side(n * 8 // 10, n, names),
                "ood": side(n * 7 // 10, n, names),
                "gap": {"overall": dict(gap), "by_domain": {name: dict(gap) for name in names}},
            }
            for module in (*every, "base")
        ]
        for row in rows[1:-1]:
            row["ahead"] = {"value": -0.02, "low": -0.08, "high": 0.04}
        rows[-1] |= {"iid": side(n // 2, n, names), "ood": side(n // 2, n, names)}
        moved = [[0.5 * (i == j) for j in range(modules + 1)] for i in range(modules + 1)]
        swap = [
            {
                "source": f"domain_{i}",
                "n": n // modules,
                "mixture": cell(n // modules, n // modules),
                "accuracy": [cell(n // modules * (4 if i == j else 2) // 4, n // modules) for j in range(modules)],
            }
            for i in range(modules)
        ]
        better = {"value": 0.5, "low": 0.4, "high": 0.6} if modules > 1 else None
        steps = list(range(5, 80, 5))
        curve = {"step": steps, "value": [5.0 / step for step in steps]}
        compare = [row for m in every for d in ("iid", "ood") for row in compared(m, "base", d, names, n)]
        return {
            "run": "runs/made",
            "method": "iclm",
            "domains": names,
            "modules": every,
            "unknown_domains": [],
            "data": {
                d: [{"source": f"{name}.jsonl", "domains": {name: 40}, "n": 40} for name in names]
                for d in ("iid", "ood")
            },
            "routing": {
                "measured": True,
                "router": "vq",
                "learned": True,
                "level": "input",
                "trained": names,
                "iid": routing(modules, names, n),
                "ood": routing(modules, names, n),
            },
            "independence": {
                "measured": True,
                "by_domain": {name: dependence() for name in names},
                "leakage": {"accuracy": 0.5, "low": 0.4, "high": 0.6, "chance": 0.5, "p_value": 0.5, "n": n},
            },
            "overfitting": {
                "measured": True,
                "modules": rows,
                "majority": {d: side(n // 2, n, names) for d in ("iid", "ood")},
            },
            "forgetting": {
                "measured": True,
                "base": compare,
                "earlier": {
                    "measured": True,
                    "run": "runs/before",
                    "rows": compared("invariant", "invariant", "iid", names, n),
                },
            },
            "interventions": {
                "measured": True,
                "isolated": True,
                "swap": {"modules": every[2:], "routed": swap, "by_domain": [], "advantage": better},
                "effects": {"modules": every[1:], "moved": {"off": moved, "noise": moved}, "routes_changed": 0},
                "effect_examples": 8,
            },
            "training": {
                "measured": True,
                "curves": {
                    key: {name: list(values) for name, values in curve.items()}
                    for key in ("loss", "loss_lm", "loss_invariant", "loss_domain", "loss_mi", "router_perplexity")
                },
                "stages": [],
                "mi_loss": "plugin",
                "mi_weight": 0.01,
            },
            "features": {
                "measured": True,
                "axes": "dimension",
                "x": [float(i % domains) + 0.02 * (i // domains) for i in range(n)],
                "y": [float(i % domains % 3) + 0.01 * (i % 7) for i in range(n)],
                "domain": [names[i % domains] for i in range(n)],
                "data": ["iid" if i < n // 2 else "ood" for i in range(n)],
                "route": [i % domains % modules for i in range(n)],
                "codes": {"x": [float(i) for i in range(modules)], "y": [float(i % 3) for i in range(modules)]},
            },
        }

    return make
