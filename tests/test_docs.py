"""The tables of docs/data.md, and that of diagnoses in docs/results.md, say what the committed result files say."""

import json
import re
from functools import cache
from pathlib import Path

import pytest

from iclm.data import raven
from iclm.recipe import DataSource
from iclm.report.study_cells import difference, signed
from iclm.studies.study.rows import from_bits

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "data"
STUDY = ROOT / "results" / "study"
AUDITS = ("audit_acre_official.json", "audit_acre_strict.json", "audit_raven.json")


@pytest.fixture(scope="module")
def lines():
    return (ROOT / "docs" / "data.md").read_text(encoding="utf-8").splitlines()


@cache
def lines_of(path):
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def text_of(page):
    """A page of docs/ in one line."""
    return " ".join((ROOT / "docs" / page).read_text(encoding="utf-8").split())


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_the_table_of_shortcuts_is_what_the_audits_found(lines):
    splits = [split for name in AUDITS for split in json.loads((RESULTS / name).read_text())["splits"]]
    start = next(i for i, line in enumerate(lines) if line.startswith("| strategy |"))
    assert cells(lines[start])[1:] == [split["name"] for split in splits]
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows[cells(line)[0]] = cells(line)[1:]
    assert list(rows) == [strategy["name"] for strategy in splits[0]["strategies"]]
    for name, row in rows.items():
        for cell, split in zip(row, splits, strict=True):
            found = next(strategy for strategy in split["strategies"] if strategy["name"] == name)
            if found.get("accuracy") is None:
                assert cell == "–"
                continue
            figure = f"{found['accuracy']:.3f}"
            assert cell == (f"**{figure}**" if found["verdict"] == "shortcut" else figure), (name, split["name"])


def test_order_is_named_on_official_acre_only_and_choices_on_raven_only():
    verdicts = {}
    for name in AUDITS:
        for split in json.loads((RESULTS / name).read_text())["splits"]:
            verdicts[split["name"]] = {s["name"] for s in split["strategies"] if s["verdict"] == "shortcut"}
    assert "last item" in verdicts["ACRE official, symbolic"]
    assert "last item" not in verdicts["ACRE strict, symbolic"]
    for form in ("symbolic", "text"):
        assert "choices only, most alike" in verdicts[f"RAVEN center_single, {form}"]
        assert not verdicts[f"I-RAVEN center_single, {form}"]


@pytest.mark.parametrize(
    ("label", "pattern"),
    [
        ("ACRE", "acre/"),
        ("RAVEN", "raven/raven_"),
        ("RAVEN center_single, as published for language models", "raven/official_"),
        ("I-RAVEN", "raven/iraven_"),
        ("RAVEN-FAIR", "raven/ravenfair_"),
    ],
)
def test_the_table_of_conformance_adds_up(lines, label, pattern):
    rows = json.loads((RESULTS / "conformance.json").read_text())
    assert all(row["passed"] for row in rows)
    chosen = [row for row in rows if row["file"].startswith(pattern) and row["total"]]
    wanted = [label, *(str(sum(row[key] for row in chosen)) for key in ("agree", "ambiguous", "total"))]
    start = next(i for i, line in enumerate(lines) if line.startswith("| files |"))
    assert wanted in [cells(line) for line in lines[start + 2 :] if re.match(r"\|", line)]


def diagnosed(report):
    """The rows of the table of docs/results.md that a diagnosis gives."""
    verdicts = {verdict["figure"]: verdict["value"] for verdict in report["verdicts"]}
    sides = report["interventions"]["swap"]["routed"]
    assert [side["source"] for side in sides] == ["domain_0", "domain_1"] and all(side["n"] == 120 for side in sides)
    swapped = [side["accuracy"][abs(number - shift)]["value"] for number, side in enumerate(sides) for shift in (0, 1)]
    hsic = "dependence of invariant and domain states, normalised HSIC, "
    return [
        verdicts["routing accuracy"],
        *swapped,
        verdicts[hsic + "symbolic"],
        verdicts[hsic + "text"],
        verdicts["domain told from invariant states"],
    ]


def test_the_table_of_panels_by_their_figures_is_what_the_study_found():
    read = lines_of(STUDY / "jobs.jsonl")
    jobs = {line["id"]: line for line in read if line["state"] == "done"}
    counts = {}
    for row in lines_of(STUDY / "results.jsonl"):
        if (row["train_set"], row["module"]) != ("raven", "mixture") or "distribute_four" not in row["test_set"]:
            continue
        source = DataSource.model_validate(jobs[row["job"]]["evaluate"][row["source"]])
        problems = raven.generate(source.raven, source.answers, source.problems, source.seed, source.split)
        for problem, right in zip(problems, from_bits(row["answers"], row["n"]), strict=True):
            figures = [sum(map(len, panel)) for panel in problem.panels[8:]]
            fewest, alike = figures[problem.target] == min(figures), len(set(figures)) == 1
            name = f"{row['method']}, {row['score']}"
            column = counts.setdefault(name, {}).setdefault(2 if alike else 0 if fewest else 1, [0, 0])
            column[0] += bool(right)
            column[1] += 1
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    block = text.partition("<!-- results: results/study/results.jsonl -->\n")[2].partition("<!-- /results -->")[0]
    shown = [cells(line) for line in block.splitlines()[2:]]
    methods = ("base", "lora", "iclm", "iclm-no-mi", "lora-wide")
    assert [row[0] for row in shown] == [
        name for name in (f"{method}, {score}" for method in methods for score in ("sum", "mean")) if name in counts
    ]
    assert shown == [[name, *("{} of {}".format(*counts[name][column]) for column in range(3))] for name, *_ in shown]


def test_the_table_of_diagnoses_is_what_they_found():
    folder = ROOT / "results" / "diagnosis"
    reports = [json.loads((folder / f"acre-iclm-seed-{seed}.json").read_text()) for seed in (0, 1, 2)]
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    block = text.partition("<!-- results: results/diagnosis -->\n")[2].partition("<!-- /results -->")[0]
    shown = [cells(line)[1:] for line in block.splitlines()[2:]]
    assert shown == [[f"{value:.3f}" for value in row] for row in zip(*map(diagnosed, reports), strict=True)]


def test_the_figures_by_seed_of_the_short_sequence_are_what_it_found():
    tasks, seeds = ("acre-symbolic", "acre-text", "raven-symbolic", "raven-text"), (0, 1, 2)
    right = {}
    for line in (ROOT / "results/continual/rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        if (row["sequence"], row["boundaries"]) == ("short", "known"):
            place = (row["method"], row["module"], row["seed"], row["trained_through"], row["tested_on"])
            right[place] = (row["correct"], row["correct"] / row["n"])

    def accuracy(method, seed, after, task, module="mixture"):
        return right[method, module, seed, after, tasks[task]][1]

    def average(method, seed):
        return sum(accuracy(method, seed, 4, task) for task in range(4)) / 4

    def backward(method, seed, module="mixture"):
        each = (accuracy(method, seed, 4, t, module) - accuracy(method, seed, t + 1, t, module) for t in range(3))
        return sum(each) / 3

    def own(seed):
        return sum(accuracy("iclm", seed, 4, task, f"domain_{task}") for task in range(4)) / 4

    def gained(method, task):
        """Questions of a task that its second format gained or lost."""
        return [
            right[method, "mixture", s, task + 2, tasks[task]][0]
            - right[method, "mixture", s, task + 1, tasks[task]][0]
            for s in seeds
        ]

    def said(values, form="+.3f"):
        texts = [f"{value:{form}}".replace("0.", ".").replace("-", "−") for value in values]
        return ", ".join(texts[:-1]), texts[-1]

    text = text_of("continual.md")
    for values, joined in (
        ([backward("iclm", s) for s in seeds], "{}, {} against"),
        ([backward("lora", s) for s in seeds], "against {}, {})"),
        ([backward("iclm", s, "invariant") for s in seeds], "in two ({}, {})"),
        ([own(s) - average("iclm", s) for s in seeds], "less in one ({}, {})"),
    ):
        assert joined.format(*said(values)) in text
    for values, joined in (
        ([average("iclm-replay", s) - average("iclm", s) for s in seeds], "added {} and {} to the ICLM"),
        ([average("lora-replay", s) - average("lora", s) for s in seeds], "the ICLM, {} and {} to plain LoRA"),
        ([average("lora-ewc", s) - average("lora", s) for s in seeds], "and EWC {} and {} to the latter"),
    ):
        assert joined.format(*said(values, ".3f")) in text
    for task, joined in (
        (0, "format of ACRE {} and {} more questions of 120"),
        (1 + 1, "of RAVEN {} and {} more of 40"),
    ):
        assert joined.format(*said(gained("iclm", task), "d")) in text
    assert "of plain LoRA's {}, {})".format(*said(gained("lora", 0), "+d")) in text
    assert "in the first ({}, {}). Each".format(*said(gained("lora", 2), "+d")) in text
    for s in seeds:  # one task later it is below where it was learned, and stays so
        learned = accuracy("iclm", s, 1, 0)
        assert all(accuracy("iclm", s, after, 0) < learned for after in (3, 4))


def accuracy(rows):
    """Share of right answers, to three digits, in and out of distribution."""
    sides = [[row for row in rows if row["shifted"] == shifted] for shifted in (False, True)]
    return [f"{sum(r['correct'] for r in side) / sum(r['n'] for r in side):.3f}" for side in sides]


def of_method(path, method):
    chosen = [
        r
        for r in lines_of(path)
        if (r.get("method"), r.get("train_set"), r.get("module")) == (method, "acre", "mixture")
    ]
    return [row for row in chosen if row["seed"] in (None, 0)]


def test_what_rounding_does_to_an_accuracy_is_what_was_found():
    text = text_of("study.md")
    rounded = accuracy(of_method(ROOT / "results" / "rounding" / "acre-base-bfloat16.jsonl", "base"))
    exact = accuracy(of_method(STUDY / "results.jsonl", "base"))
    assert f"rounded it had {rounded[0]} in and {rounded[1]} out of distribution" in text
    assert f"and exactly {exact[0]} and {exact[1]}, which the tables have" in text
    one = json.loads((ROOT / "results" / "rounding" / "acre-iclm-half.jsonl").read_text(encoding="utf-8"))
    said = f"in {one['n']} questions as symbols, of which {one['ties_bfloat16']} came out equal: {one['correct_bfloat16']} were right"
    assert f"{said}, and {one['correct_float32']} exactly" in text


def by_seed(path, methods=("lora", "iclm")):
    """Accuracy on ACRE by method, seed and whether it is out of distribution, of the mixture of some methods; None means all."""
    counts = {}
    for row in lines_of(path):
        wanted = row["module"] == "mixture" and row["train_set"] == "acre" and row["split"] == "test"
        if wanted and (methods is None or row["method"] in methods):
            found = counts.setdefault((row["method"], row["seed"], row["shifted"]), [0, 0])
            found[0] += row["correct"]
            found[1] += row["n"]
    return {key: correct / n for key, (correct, n) in counts.items()}


def test_what_the_same_seed_twice_differs_by_is_what_was_found():
    methods = ("lora", "iclm", "iclm-no-mi", "lora-wide")
    before = by_seed(ROOT / "results" / "rounding" / "acre-bfloat16.jsonl", methods)
    now = by_seed(STUDY / "results.jsonl", methods)
    assert before.keys() == now.keys() and len(now) == 2 * 5 * len(methods)
    moved = {key: abs(now[key] - before[key]) for key in now}

    def mean(found, method, far):
        return sum(found[method, seed, far] for seed in range(5)) / 5

    rows = [
        [
            method,
            *(f"{mean(found, method, far):.3f}" for found in (before, now) for far in (False, True)),
            *(f"{max(moved[method, seed, far] for seed in range(5)):.3f}" for far in (False, True)),
        ]
        for method in methods
    ]
    assert block_of("results/rounding/acre-bfloat16.jsonl", "study.md") == rows
    text = text_of("study.md")
    calm = sum(max(moved[m, seed, far] for far in (False, True)) <= 0.011 for m in methods for seed in range(5))
    assert f"{calm} of the {5 * len(methods)} trainings of the table came out within .011 of what they had been" in text
    ahead = [
        f"{mean(found, 'iclm', far) - mean(found, 'lora', far):.3f}".removeprefix("0")
        for found in (before, now)
        for far in (False, True)
    ]
    assert (
        "the ICLM was {} ahead of LoRA in and {} out of distribution then, and is {} and {} ahead now".format(*ahead)
        in text
    )
    sides = (False, True)
    of_a_mean = max(abs(mean(now, m, far) - mean(before, m, far)) for m in methods for far in sides)
    of_a_difference = max(abs(float(ahead[far]) - float(ahead[2 + far])) for far in sides)
    results = text_of("results.md")
    said = "moved by up to {:.2f}, a mean of five seeds by up to {:.3f}, and the difference of two such means by {:.3f}"
    assert said.format(max(moved.values()), of_a_mean, of_a_difference).replace(" 0.", " .") in results


def block_of(name, page="results.md"):
    """The rows of the table after `<!-- results: name -->` on a page of docs/."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    block = text.partition(f"<!-- results: {name} -->\n")[2].partition("<!-- /results -->")[0]
    return [cells(line) for line in block.splitlines()[2:]]


def by_format(path, method, seed, far, form):
    """Accuracy of the mixture of a method on ACRE, of a seed, in or out of distribution, in a format or (None) in both."""
    found = [
        row
        for row in lines_of(path)
        if (row["train_set"], row["method"], row["seed"], row["module"], row["shifted"])
        == ("acre", method, seed, "mixture", far)
        and form in (None, row["format"])
    ]
    return sum(row["correct"] for row in found) / sum(row["n"] for row in found)


def test_what_the_text_says_of_ablations_is_what_was_found():
    text = text_of("results.md")
    study = STUDY / "results.jsonl"

    def behind(method, far, form=None, seeds=range(3)):
        return [by_format(study, "iclm", s, far, form) - by_format(study, method, s, far, form) for s in seeds]

    def span(values):
        return f"{hundredths(min(values))} to {hundredths(max(values))}"

    no_invariant, no_domain = (
        [behind(f"iclm-{name}", far) for far in (False, True)] for name in ("no-invariant", "no-domain")
    )
    inside, outside = map(span, no_invariant)
    assert min(map(min, no_invariant)) > 0
    assert f"are behind, by {inside} in distribution and {outside} out of it" in text
    as_text, as_symbols = (span(behind("iclm-no-invariant", False, form)) for form in ("text", "symbolic"))
    assert f"most of it on text ({as_text} in distribution; as symbols {as_symbols})" in text
    inside, outside = map(span, no_domain)
    assert f"It is behind by {inside} in and {outside} out of distribution." in text
    means = [f"{sum(values) / 3:.3f}".removeprefix("0") for values in (*no_invariant, *no_domain)]
    said = "accuracy is {} lower in and {} lower out of distribution in the mean of three seeds"
    assert said.format(*means[:2]) in text and "it is {} and {} lower".format(*means[2:]) in text
    concat = {hundredths(behind("iclm-concat", far, seeds=[0])[0]) for far in (False, True)}
    for name, said in {
        "concat": "below that mean the concatenating head is {} in and {} out of distribution",
        "half": "half of the layers {} and {},",
        "random": "random routing {} and {}.",
    }.items():
        means = [sum(by_format(study, "iclm", seed, far, None) for seed in range(5)) / 5 for far in (False, True)]
        below = [mean - by_format(study, f"iclm-{name}", 0, far, None) for far, mean in enumerate(means)]
        assert said.format(*(f"{abs(round(value, 3)):.3f}".removeprefix("0") for value in below)) in text
        assert min(below) > -0.0005
    inside = [by_format(study, "iclm", seed, False, None) for seed in range(5)]
    assert f"({max(inside):.3f}, the mean of five is {sum(inside) / 5:.3f})" in text and max(inside) == inside[0]
    assert len(concat) == 1 and f"head is behind by {concat.pop()}," in text
    others = {hundredths(behind(f"iclm-{name}", False, seeds=[0])[0]) for name in ("random", "half")}
    assert len(others) == 1 and f"in place of three quarters by {others.pop()} in distribution" in text
    intervals = [
        row
        for key, row in comparisons().items()
        if key[0] == "acre" and key[2] == "ablation" and key[3] in ("iclm-no-invariant", "iclm-no-domain")
    ]
    assert len(intervals) == 4 and all(row["low"] <= 0 <= row["high"] for row in intervals)


def test_what_ablations_trained_twice_differ_by_is_what_was_found():
    text = text_of("study.md")
    first, anew = (
        [
            by_format(path, f"iclm-{name}", 0, far, None)
            for name in ("no-invariant", "no-domain")
            for far in (False, True)
        ]
        for path in (
            ROOT / "results" / "rounding" / "acre-ablations-float32.jsonl",
            STUDY / "results.jsonl",
        )
    )
    one, other = ([f"{value:.3f}" for value in (*first[at : at + 2], *anew[at : at + 2])] for at in (0, 2))
    said = "`iclm-no-invariant` had {} in and {} out of distribution and has {} and {} now, `iclm-no-domain` {} and {}, and now {} and {}."
    assert said.format(*one, *other) in text


def test_what_is_said_of_a_strong_loss_was_found():
    text = text_of("results.md")
    right = {}
    for row in lines_of(STUDY / "tries.jsonl"):
        if row["method"] in ("iclm", "iclm-mi-strong") and row["trial"] == 0:
            found = right.setdefault((row["method"], row["module"]), [0, 0])
            found[0] += row["correct"]
            found[1] += row["n"]
    shares = [
        f"{right[method, module][0] / right[method, module][1]:.3f}"
        for method in ("iclm-mi-strong", "iclm")
        for module in ("mixture", "invariant")
    ]
    said = "{} by the mixture and {} by the invariant module alone, where the ICLM has {} and {}."
    assert said.format(*shares) in text


def test_what_is_said_of_oracle_routing_was_found():
    text = text_of("results.md")
    given = {}
    for row in lines_of(STUDY / "results.jsonl"):
        if row["train_set"] == "acre" and row["method"] in ("iclm", "iclm-oracle"):
            given[row["method"], row["seed"], row["source"], row["module"]] = row["given"]
    for seed in range(5):
        keys = [key[2:] for key in given if key[:2] == ("iclm", seed)]
        pairs = [tuple(given[(method, seed, *key)] for method in ("iclm", "iclm-oracle")) for key in keys]
        assert (sum(one != other for one, other in pairs) == 0) == (seed in (3, 4))
    assert (
        f"seeds 3 and 4 on ACRE, all {sum(len(one) for one, _ in pairs):,} answers of each seed, of all modules, are the same"
        in text
    )


def comparisons():
    """By data, score, question, method, module and whether out of distribution, what was found of all questions together."""
    found = json.loads((STUDY / "comparisons.json").read_text(encoding="utf-8"))
    return {
        (
            row["data"],
            row["score"],
            row["question"],
            row["method"],
            row["module"],
            row["group"] == "out of distribution",
        ): row
        for row in found["comparisons"]
        if (row["kind"], row["format"]) == (None, None)
        and row["group"] in ("in distribution", "out of distribution")
        and (row["question"] != "further" or row["against"] == "lora-wide")
    }


def test_the_answers_say_what_was_found():
    text = text_of("results.md")
    found = comparisons()

    def differences(question, method, *places):
        return [signed(found[(*place[:2], question, method, "mixture", place[2])]["difference"]) for place in places]

    acre, raven = [("acre", "sum", far) for far in (False, True)], [("raven", "sum", far) for far in (False, True)]
    out = (acre[1], raven[1], ("raven", "mean", True))
    for said, values in {
        "{} on ACRE, {} (panels by the sum) or {} (by the mean) on RAVEN": differences("reference", "iclm", *out),
        "it is {} in and {} out of distribution, of three seeds": differences(
            "reference", "iclm", *(("corr2cause", "sum", far) for far in (False, True))
        ),
        "it is {} in and {} out of distribution on ACRE, {} and {} on RAVEN": differences(
            "further", "iclm", *acre, *raven
        ),
        "the ICLM is {} in and {} out of distribution on ACRE, {} and {} on RAVEN": differences(
            "ablation", "iclm-no-mi", *acre, *raven
        ),
    }.items():
        assert said.format(*values) in text
    headline = [key for key in found if key[2:5] == ("reference", "iclm", "mixture")]
    assert len(headline) == 12 and all(found[key]["low"] <= 0 <= found[key]["high"] for key in headline)
    both = ("iclm", "iclm-no-mi")
    alone = [
        abs(found[(*place[:2], "module", m, "invariant", place[2])]["difference"])
        for m in both
        for place in (*acre, *raven, *(("raven", "mean", far) for far in (False, True)))
    ]
    assert f"The invariant module is within {max(alone):.3f} of the mixture" in text
    routed = [-found[(*place[:2], "module", m, "routed", place[2])]["difference"] for m in both for place in acre]
    assert f"and {min(routed):.3f} to {max(routed):.3f} behind it on ACRE" in text


def test_how_alike_the_answers_on_corr2cause_are_was_found():
    given, right = {}, {}
    for row in lines_of(STUDY / "results.jsonl"):
        if row["train_set"] == "corr2cause" and row["module"] in ("mixture", "strategy"):
            key = row["method"], row["seed"], row["test_set"].removeprefix("CORR2CAUSE ")
            given[key], right[key] = row["given"], from_bits(row["answers"], row["n"])
    rows = []
    for method in ("base", "lora", "iclm"):
        cells = []
        for wording in ("official", "renamed", "paraphrased"):
            pairs = [
                (given[method, None if method == "base" else seed, wording], given["query-only", seed, wording])
                for seed in range(3)
            ]
            shares = [sum(map(str.__eq__, *pair)) / len(pair[0]) for pair in pairs]
            cells.append(", ".join(f"{share:.3f}" for share in shares))
        rows.append([method, *cells])
    assert block_of("results/study/results.jsonl, agreement") == rows
    text = text_of("results.md")
    apart = []
    for wording in ("official", "renamed"):
        keys = [(seed, wording) for seed in range(3)]
        marks = [(given[("iclm", *key)], given[("query-only", *key)], right[("iclm", *key)]) for key in keys]
        apart.append(
            [
                good
                for ours, theirs, good in marks
                for ours, theirs, good in zip(ours, theirs, good, strict=True)
                if ours != theirs
            ]
        )
    said = f"in {len(apart[0])} and in {len(apart[1])} of 600 answers, and is right in {sum(apart[0])} and {sum(apart[1])} of these"
    assert said in text
    same = [float(share) for row in rows[1:] for cell in row[1:3] for share in cell.split(", ")]
    assert sum(share >= 0.9 for share in same) == len(same) - 1 and min(same) > 0.8


def hundredths(value):
    """Two decimals as the text has them: .19, −.02."""
    return f"{value:.2f}".replace("-", "−").replace("0.", ".")


def test_what_is_said_to_be_told_apart_was_found():
    text = text_of("results.md")
    rows = json.loads((STUDY / "comparisons.json").read_text(encoding="utf-8"))["inference"]
    told = {
        (row["method"], row["format"], row["group"]): row for row in rows if row["data"] == "acre" and not row["strict"]
    }
    methods, sides = (
        ("lora", "lora-wide", "iclm", "iclm-no-mi", "iclm-oracle"),
        ("in distribution", "out of distribution"),
    )
    spans = []
    for form in ("symbolic", "text"):
        for side in sides:
            found = [told[method, form, side] for method in methods]
            assert all(row["exact"] and row["low"] <= 0 <= row["high"] for row in found)
            values = [row["value"] for row in found]
            spans += [hundredths(min(values)), hundredths(max(values))]
    said = "answer on more often by {} to {} in distribution and by {} to {} out of it, as text by {} to {} and by {} to {}."
    assert said.format(*spans) in text
    assert [key for key in ((m, side) for m in methods for side in sides) if told[key[0], None, key[1]]["low"] > 0] == [
        ("lora", "in distribution")
    ]
    whole = told["lora", None, "in distribution"]
    assert f"LoRA's {hundredths(whole['value'])} in distribution does" in text
    assert f"([{whole['low']:+.2f} {whole['high']:+.2f}];".replace("0.", ".") in text
    counting = [told["counting", None, group]["value"] for group in sides]
    assert "has {:+.3f} in distribution and {:+.3f} out of it".format(*counting) in text


def test_what_the_text_says_of_a_changed_regime_was_found():
    text = text_of("results.md")
    found = json.loads((STUDY / "comparisons.json").read_text(encoding="utf-8"))
    inside, outside = (
        next(
            row
            for row in found["comparisons"]
            if (row["data"], row["question"], row["method"], row["group"], row["format"], row["kind"])
            == ("acre-sys", "reference", "iclm", group, None, "indirect")
        )
        for group in ("in distribution", "out of distribution")
    )
    assert f"({signed(inside['difference'])} in, {difference(outside)} out of distribution, where p is" in text
    assert f"where p is {outside['p']:.3f}".replace("is 0.", "is .") in text
    assert f"and corrected {outside['p_holm']:.3f})".replace("corrected 0.", "corrected .") in text
    shares = [
        next(
            row["mean"]
            for row in found["figures"]
            if (row["data"], row["method"], row["module"], row["group"], row["format"], row["kind"])
            == ("acre-sys", method, "mixture", group, None, "potential")
        )
        for group in ("in distribution", "out of distribution")
        for method in ("iclm", "lora")
    ]
    fewer = [hundredths(shares[at] - shares[at + 1]) for at in (0, 2)]
    assert "fewer of the potential ones ({}, {})".format(*fewer) in text
