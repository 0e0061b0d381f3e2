"""The plots of a diagnosis: complete, labelled, and readable with one module or sixteen."""

import math
import subprocess
import sys
from itertools import pairwise

import pytest

from iclm.report.plots import (
    plot_accuracy,
    plot_features,
    plot_routing,
    plot_swap,
    plot_training,
    short,
    write_plots,
)

PLOTS = {
    "routing": plot_routing,
    "features": plot_features,
    "training": plot_training,
    "interventions": plot_swap,
    "overfitting": plot_accuracy,
}
SIZES = [(1, 1), (2, 3), (4, 4), (16, 16)]


def drawn(report, section):
    figure = PLOTS[section](report[section])
    figure.canvas.draw()
    return figure


def shown_ticks(axis):
    """Labels of the ticks within the limits of an axis; the others are not drawn."""
    low, high = sorted(axis.get_view_interval())
    pairs = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False)  # none where the panel below has them
    return [label for place, label in pairs if low <= place <= high and label.get_text()]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_plot_is_written_as_a_png(make_diagnosis, tmp_path, size):
    files = write_plots(make_diagnosis(*size), tmp_path)
    assert [path.name for path in files] == ["routing.png", "features.png", "training.png", "swap.png", "accuracy.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files)


def test_what_was_not_measured_is_not_drawn(make_diagnosis, tmp_path):
    report = make_diagnosis()
    for section in ("routing", "features", "interventions"):
        report[section] = {"measured": False, "reason": "plain LoRA"}
    assert [path.name for path in write_plots(report, tmp_path)] == ["training.png", "accuracy.png"]


@pytest.mark.parametrize("section", PLOTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_plot_has_a_title_and_named_axes_and_no_text_on_another(make_diagnosis, section, size):
    figure = drawn(make_diagnosis(*size), section)
    renderer = figure.canvas.get_renderer()
    assert any(axes.get_title() for axes in figure.axes) or figure.get_suptitle()
    assert any(axes.get_xlabel() for axes in figure.axes) and any(axes.get_ylabel() for axes in figure.axes)
    page = figure.bbox.padded(1)
    for axes in figure.axes:
        ticks = [shown_ticks(axes.xaxis), shown_ticks(axes.yaxis)]
        labels = [axes.title, axes.xaxis.label, axes.yaxis.label]
        for label in (*ticks[0], *ticks[1], *labels):
            box = label.get_window_extent(renderer)
            if label.get_text() and label.get_visible() and box.width:
                assert page.contains(box.x0, box.y0) and page.contains(box.x1, box.y1), label.get_text()
        for row in ticks:
            upright = [label for label in row if not label.get_rotation()]
            boxes = [label.get_window_extent(renderer) for label in upright]
            assert not any(a.overlaps(b) for a, b in pairwise(boxes))
    legends = [legend for axes in figure.axes if (legend := axes.get_legend())] + figure.legends
    for legend in legends:
        box = legend.get_window_extent(renderer)
        assert page.contains(box.x0, box.y0) and page.contains(box.x1, box.y1)


def test_the_cells_of_the_routing_map_are_the_counts(make_diagnosis):
    report = make_diagnosis(modules=3, domains=2)
    counts = [[7, 1], [2, 39], [31, 0]]
    report["routing"]["iid"]["table"]["counts"] = counts
    axes = drawn(report, "routing").axes[0]
    assert [text.get_text() for text in axes.texts] == [str(n) for row in counts for n in row]
    assert axes.images[0].get_array().tolist() == [[7 / 40, 1 / 40], [2 / 40, 39 / 40], [31 / 40, 0.0]]


def test_one_side_alone_has_one_panel(make_diagnosis):
    report = make_diagnosis()
    del report["routing"]["ood"]
    for row in report["overfitting"]["modules"]:
        row["ood"] = None
    titles = [axes.get_title() for axes in drawn(report, "routing").axes]
    assert [title for title in titles if title] == ["training distribution (n = 80)"]
    labels = [text.get_text() for text in drawn(report, "overfitting").legends[0].get_texts()]
    assert labels and not any("out of" in label for label in labels)


def test_a_module_without_examples_has_blank_cells(make_diagnosis):
    report = make_diagnosis()
    row = report["interventions"]["swap"]["routed"][1]
    row |= {"n": 0, "accuracy": [{"correct": 0, "n": 0, "value": None, "low": 0.0, "high": 1.0}] * 2}
    axes = drawn(report, "interventions").axes[0]
    assert [text.get_text() for text in axes.texts] == ["1.00", "0.50", "–", "–"]
    assert axes.images[0].get_array().mask.tolist() == [[False, False], [True, True]]


def test_intervals_reach_from_low_to_high(make_diagnosis):
    report = make_diagnosis()
    cell = report["overfitting"]["modules"][0]["iid"]["overall"]
    axes = drawn(report, "overfitting").axes[0]
    (start, end) = axes.containers[0].lines[2][0].get_segments()[0][:, 0]
    assert (start, end) == pytest.approx((cell["low"], cell["high"]))


def test_every_domain_and_every_code_is_marked(make_diagnosis):
    report = make_diagnosis(modules=16, domains=16)
    axes = drawn(report, "features").axes[0]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == [*report["domains"], "hollow: out of distribution", "code"]
    styles = {(tuple(c.get_edgecolor()[0]), c.get_paths()[0].vertices.tobytes()) for c in axes.collections[:32:2]}
    assert len(styles) == 16, "colour and mark together tell sixteen domains apart"
    assert sorted(int(text.get_text()) for text in axes.texts) == list(range(16))


def test_codes_that_lie_on_one_another_share_a_label(make_diagnosis):
    report = make_diagnosis(modules=3)
    report["features"]["codes"] = {"x": [0.0, 1.0, 0.0], "y": [0.0, 1.0, 0.0]}
    axes = drawn(report, "features").axes[0]
    assert sorted(text.get_text() for text in axes.texts) == ["0, 2", "1"]


def test_the_log_of_a_plain_training_has_one_panel_with_the_whole_loss(make_diagnosis):
    report = make_diagnosis()
    report["training"]["curves"] = {"loss": {"step": [1, 2], "value": [3.0, 2.0]}}
    figure = drawn(report, "training")
    assert len(figure.axes) == 1
    assert figure.axes[0].lines[0].get_ydata().tolist() == [3.0, 2.0]


def test_the_begin_of_a_second_stage_is_marked(make_diagnosis):
    report = make_diagnosis()
    before = len(drawn(report, "training").axes[0].lines)
    report["training"]["stages"] = [40]
    assert len(drawn(report, "training").axes[0].lines) == before + 1


@pytest.mark.parametrize("name", ["text", "x" * 24, "a_very_long_name_of_a_file_of_problems_symbolic"])
def test_a_long_name_is_shortened_in_the_middle(name):
    found = short(name)
    assert len(found) <= 24 and found[:5] == name[:5] and found[-5:] == name[-5:]
    assert (found == name) == (len(name) <= 24)


def test_the_numbers_of_a_plot_are_finite(make_diagnosis):
    for axes in drawn(make_diagnosis(), "overfitting").axes:
        assert all(math.isfinite(limit) for limit in (*axes.get_xlim(), *axes.get_ylim()))


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, iclm.report.plots, iclm.cli; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
