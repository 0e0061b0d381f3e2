"""Where a running study stands, as a table and as lines."""

import io
import time

from rich.console import Console

from iclm.report.study_progress import duration, progress_lines, progress_table, standing
from iclm.studies.study.grid import Job
from iclm.studies.study.runner import State


def state_of(jobs=5, **values):
    return State(jobs=[Job("lora", "acre", seed, None, (), {"seed": seed}) for seed in range(jobs)], **values)


def name(seed):
    return f"acre/lora/seed-{seed}"


def test_durations():
    assert [duration(s) for s in (0.4, 89, 90, 5340, 5400, 86400)] == [
        *("0 s", "89 s", "2 min", "89 min", "1 h 30 min", "24 h 00 min")
    ]


def test_the_table_says_what_runs_what_failed_and_how_long_it_will_take():
    began = time.monotonic() - 300
    state = state_of(
        done={name(0): {"total_seconds": 600}}, running={name(1): began}, failed={name(2): "[Errno 2] none"}
    )
    state.busy.add(name(3))
    console = Console(file=io.StringIO(), width=120)
    console.print(progress_table(state, 1))
    text = " ".join(console.file.getvalue().split())
    assert f"{name(1)} runs since 5 min" in text and f"{name(2)} failed: [Errno 2] none" in text
    assert f"{name(3)} with another process" in text
    assert "1 of 5 jobs done, 1 failed, 1 with another process, 1 running, 1 left, about 15 min to go" in text


def test_nothing_is_foretold_before_a_job_is_done_or_when_all_are():
    assert standing(state_of(), 1) == "0 of 5 jobs done, 5 left"
    assert standing(state_of(1, done={name(0): {"total_seconds": 600}}), 1) == "1 of 1 jobs done"


def test_lines_say_what_began_and_ended_once():
    state, shown = state_of(done={name(0): {"total_seconds": 600}}), set()
    assert progress_lines(state, 1, shown) == []  # done before
    state.running[name(1)] = time.monotonic()
    lines = progress_lines(state, 1, shown)
    assert lines[0] == f"began {name(1)}" and lines[1].startswith("1 of 5 jobs done, 1 running, 3 left, about")
    assert progress_lines(state, 1, shown) == []
    del state.running[name(1)]
    state.done[name(1)] = {"total_seconds": 30.2}
    state.failed[name(2)] = "no memory"
    lines = progress_lines(state, 1, shown)
    assert lines[:-1] == [f"done {name(1)} in 30 s", f"failed {name(2)}: no memory"] and len(lines) == 3


def test_a_job_that_was_done_at_the_start_is_not_announced_but_one_that_began_is():
    state, shown = state_of(running={name(0): time.monotonic()}), set()
    assert progress_lines(state, 2, shown)[0] == f"began {name(0)}"
