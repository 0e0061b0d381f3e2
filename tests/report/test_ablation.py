"""Arms of an ablation side by side: on hand-made reports, and on the committed trainings against the documentation."""

import json
from pathlib import Path

from iclm.report.ablation import ablation_markdown, routers_markdown

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "independence"
ARMS = {"without": "without-seed?.json", "weight 1": "with-seed?.json"}


def report(ksg, accuracy):
    """A report of `iclm evaluate --independence` on one file and two domains, one of them too small."""
    within = {
        "n": 40,
        "ksg": {"estimate": ksg, "permuted_mean": 0.01},
        "identical": {"estimate": 2.5},
        "cka": 0.5,
        "cka_permuted_mean": 0.1,
        "hsic": {"statistic": 0.25, "permuted_mean": 0.02},
        "correlation": {"mean": 0.3, "permuted_mean": 0.05},
    }
    return {
        "data": [
            {
                "file": "some/where/text.jsonl",
                "majority": {"value": 0.4},
                "modules": [{"module": "mixture", "value": accuracy}],
            }
        ],
        "routing": {"accuracy": 1.0, "chance": 0.5},
        "independence": {
            "0": within,
            "1": {"n": 3, "skipped": "few"},
            "leakage": {"accuracy": 0.9, "chance": 0.5},
        },
    }


def test_a_cell_is_the_mean_of_the_runs_with_the_smallest_and_the_largest():
    text = ablation_markdown({"off": [report(1.0, 0.5), report(2.0, 0.7)], "on": [report(0.5, 0.4)]})
    lines = text.splitlines()
    assert lines[0] == "| figure | off | on | shuffled, by chance, or majority | total dependence |"
    assert "| KSG mutual information, nats | 1.50 [1.00 2.00] | 0.50 [0.50 0.50] | 0.01 | 2.50 |" in lines
    assert "| accuracy, text | 0.60 [0.50 0.70] | 0.40 [0.40 0.40] | 0.40 | – |" in lines
    assert "| routing accuracy | 1.00 [1.00 1.00] | 1.00 [1.00 1.00] | 0.50 | – |" in lines
    assert len({line.count("|") - line.count("\\|") for line in lines}) == 1, "every row has as many cells"


def test_the_documentation_says_what_the_committed_trainings_gave():
    arms = {
        name: [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob(pattern))]
        for name, pattern in ARMS.items()
    }
    assert all(len(reports) == 3 for reports in arms.values()), "three seeds an arm"
    text = (ROOT / "docs" / "independence.md").read_text(encoding="utf-8")
    marked = text.partition("<!-- results: results/independence/with-seed0.json -->\n")[2].partition(
        "<!-- /results -->"
    )
    assert marked[1], "the table of the trainings is not there"
    assert marked[0] == ablation_markdown(arms)


def routers():
    files = {"vq": "without-seed0", "kmeans": "router-kmeans", "random": "router-random"}
    return {name: json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8")) for name, file in files.items()}


def test_the_documentation_says_what_the_routers_found():
    text = (ROOT / "docs" / "independence.md").read_text(encoding="utf-8")
    marked = text.partition("<!-- results: results/independence/router-kmeans.json -->\n")[2]
    assert marked.partition("<!-- /results -->")[0] == routers_markdown(routers())


def test_the_learned_routers_found_the_domains_and_chance_did_not():
    routing = {name: report["routing"] for name, report in routers().items()}
    assert routing["vq"]["p_value"] < 0.05 and routing["kmeans"]["p_value"] < 0.05
    assert abs(routing["random"]["accuracy"] - routing["random"]["chance"]) < 0.1
