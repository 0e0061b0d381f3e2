"""Where jobs run: the loop with any executor, what a Ray cluster gives a job, and jobs on a real local cluster."""

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from iclm.data.files import atomic_write
from iclm.errors import ConfigurationError
from iclm.studies.study import grid, job, ray_executor, runner
from iclm.studies.study.executors import LocalExecutor
from iclm.studies.study.ray_executor import RayExecutor, do_job, share_of
from iclm.studies.study.recipe import StudyRecipe
from iclm.studies.study.results import collect


@pytest.fixture
def values(tiny_llama_folder):
    def acre(regime, split, problems):
        return {"acre": regime, "split": split, "problems": problems, "format": "symbolic"}

    return {
        "base": str(tiny_llama_folder),
        "dtype": "float32",
        "model": {"lora_rank": 2, "router_dim": 4, "mi_projection": 4, "mi_queue": 16},
        "training": {"batch_size": 8, "router_examples": 8},
        "data": {
            "acre": {
                "train": [acre("IID", "train", 4), {"corr2cause": "official", "problems": 8, "variables": [3]}],
                "validation": [acre("IID", "val", 2)],
                "test": [
                    acre("Sys", "test", 2),
                    {"corr2cause": "renamed", "split": "test", "problems": 4, "variables": [4]},
                ],
                "model": {"num_domains": 2},
            }
        },
        "methods": {
            "base": {"kind": "base"},
            "lora": {"method": "lora"},
            "iclm": {},
            "broken": {"model": {"target_modules": ["no_such_layer"]}},
        },
        "grid": [{"methods": ["base", "lora", "iclm"], "seeds": [0, 1]}],
    }


def study_of(values, **changes):
    return StudyRecipe.model_validate({**values, **changes})


SEARCH = {"tries": 2, "seed": 9, "space": {"training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}}


class Pretended:
    """An executor whose jobs are done at once, with rows that choose the last try."""

    def __init__(self, slots=2, failing=()):
        self.slots, self.failing = slots, failing
        self.begun, self.stopped = [], False

    def run(self, folder):
        spec = json.loads((folder / job.SPEC).read_text())
        self.begun.append((spec["method"], spec["trial"]))
        if spec["method"] in self.failing:
            return "lost"
        fixed = {"trial": spec["trial"], "split": spec["split"], "shifted": False, "module": "mixture", "n": 9}
        (folder / job.ROWS).write_text(json.dumps({**fixed, "correct": spec["trial"] or 0}) + "\n")
        with atomic_write(folder / job.DONE) as stream:
            json.dump({"total_seconds": 1.0}, stream)
        return None

    def stop(self):
        self.stopped = True


# -- the loop ----------------------------------------------------------------------------------------------------------


def test_an_executor_is_given_as_many_jobs_at_a_time_as_it_takes_and_reports_wait_for_their_tries(values, tmp_path):
    executor, running = Pretended(slots=2), []
    study = study_of(values, search=SEARCH)
    state = runner.Study(study, tmp_path / "s").run(executor=executor, report=lambda s: running.append(len(s.running)))
    assert not state.waiting and not state.failed and max(running) == 2
    assert len(executor.begun) == 9 and len(set(executor.begun)) == 7  # reports of two seeds look alike here
    for method in ("lora", "iclm"):
        assert max(executor.begun.index((method, trial)) for trial in (0, 1)) < executor.begun.index((method, None))
    every = [json.loads(path.read_text()) for path in (tmp_path / "s").glob("jobs/*/job.json")]
    specs = [spec for spec in every if spec["method"] == "iclm"]
    drawn = {spec["trial"]: spec["recipe"]["training"]["learning_rate"] for spec in specs}
    assert drawn[None] == drawn[1] != drawn[0]


def test_a_lost_job_stops_no_other_and_leaves_what_waits_for_it(values, tmp_path):
    state = runner.Study(study_of(values, search=SEARCH), tmp_path / "s").run(executor=Pretended(failing=("lora",)))
    assert state.failed == {"acre/lora/try-0": "lost", "acre/lora/try-1": "lost"}
    assert [found.name for found in state.waiting] == ["acre/lora/seed-0", "acre/lora/seed-1"]
    assert {"acre/base", "acre/iclm/seed-0", "acre/iclm/seed-1"} <= set(state.done)


def test_slots_that_appear_later_are_used(values, tmp_path):
    executor, running = Pretended(slots=1), []

    def report(state):
        running.append(len(state.running))
        executor.slots = 3 if state.done else 1

    runner.Study(study_of(values), tmp_path / "s").run(executor=executor, report=report)
    assert (running[0], max(running)) == (1, 3)


def test_an_interruption_stops_the_executor(values, tmp_path):
    executor = Pretended()

    def report(state):
        if state.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.Study(study_of(values), tmp_path / "s").run(executor=executor, report=report)
    assert executor.stopped


# -- what a job is given -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machines", "jobs", "cpus", "share", "slots"),
    [
        ([{"CPU": 8}], 1, None, (8, 0.0), 1),
        ([{"CPU": 8}, {"CPU": 8}], 4, None, (2, 0.0), 8),
        ([{"CPU": 8}, {"CPU": 4}, {"GPU": 1}], 2, None, (2, 0.0), 6),
        ([{"CPU": 2}], 8, None, (1, 0.0), 2),
        ([{"CPU": 8}], 1, 2, (2, 0.0), 4),
        ([{"CPU": 16, "GPU": 1}], 4, None, (4, 0.25), 4),
        ([{"CPU": 64, "GPU": 8}, {"CPU": 64}], 2, None, (4, 0.5), 16),
        ([{"CPU": 16, "GPU": 1}], 3, None, (5, 0.3333), 3),
        ([{"CPU": 16, "GPU": 1}], 4, 8, (8, 0.25), 2),
        ([{"CPU": 4, "GPU": 4}], 2, None, (1, 0.5), 4),
    ],
    ids=str,
)
def test_jobs_share_the_cores_of_a_machine_or_its_gpus(machines, jobs, cpus, share, slots):
    found = share_of(machines, jobs, cpus)
    assert (found.cpus, found.gpus) == share and found.slots(machines) == slots


@pytest.mark.parametrize(
    ("machines", "options", "message"),
    [
        ([], {}, "no machine of the Ray cluster has a core"),
        ([{"CPU": 0, "GPU": 1}], {}, "no machine"),
        ([{"CPU": 4}, {"CPU": 6}], {"cpus": 8}, "cpus is 8; the largest machine of the Ray cluster has 6"),
        ([{"CPU": 4}], {"cpus": 0}, "at least 1"),
        ([{"CPU": 4}], {"jobs": 0}, "at least 1"),
    ],
    ids=["none", "no core", "too many", "no cpus", "no jobs"],
)
def test_a_cluster_without_what_a_job_needs_is_refused(machines, options, message):
    with pytest.raises(ConfigurationError, match=message):
        share_of(machines, **{"jobs": 1, **options})


# -- what a task does --------------------------------------------------------------------------------------------------


@pytest.fixture
def base_job(values):
    return next(found for found in grid.jobs_of(study_of(values), {}) if found.method == "base")


@pytest.fixture
def threads():
    """Threads of this process, which a task sets for itself, as they were."""
    import torch

    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_a_task_returns_the_results_as_text_and_leaves_nothing(base_job, threads, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = do_job(json.dumps(base_job.spec), base_job.id, 1, ray_executor.__version__)
    assert set(found) == {job.ROWS, job.DONE} and not list(tmp_path.iterdir())
    rows = [json.loads(line) for line in found[job.ROWS].splitlines()]
    assert {row["job"] for row in rows} == {base_job.id}
    assert {(row["test_set"], row["shifted"]) for row in rows} == {("ACRE Sys", True), ("CORR2CAUSE renamed 4", True)}
    assert json.loads(found[job.DONE])["threads"] == 1


def test_a_task_returns_why_it_failed(base_job, threads, capsys):
    spec = {**base_job.spec, "shots": "many"}  # no ICLMError: a fault of ours
    found = do_job(json.dumps(spec), "id", 1, ray_executor.__version__)
    assert set(found) == {job.FAILED} and json.loads(found[job.FAILED])["error"]
    assert "Traceback" in capsys.readouterr().err
    spec = {**base_job.spec, "recipe": {**base_job.spec["recipe"], "base": "no/such/base"}}
    assert set(do_job(json.dumps(spec), "id", 1, ray_executor.__version__)) == {job.FAILED}


def test_a_machine_with_another_version_does_no_job(base_job):
    with pytest.raises(ConfigurationError, match=r"is installed on .*; the study is run by 0\.0\.9"):
        do_job(json.dumps(base_job.spec), "id", 1, "0.0.9")


# -- what the study's folder receives ----------------------------------------------------------------------------------


class FakeRay:
    """As much of Ray as the executor uses: tasks are done when their results are asked for."""

    def __init__(self, task, machines=({"CPU": 2.0},)):
        self.task, self.machines, self.options, self.cancelled = task, machines, None, []
        self.exceptions = SimpleNamespace(RayError=_RayError, RayTaskError=_RayTaskError)
        self.is_initialized = lambda: True

    def nodes(self):
        alive = [{"Alive": True, "Resources": machine} for machine in self.machines]
        return [*alive, {"Alive": False, "Resources": {"CPU": 99.0}}]

    def remote(self, **options):
        self.options = options
        return lambda function: SimpleNamespace(remote=lambda *given: given)

    def get(self, reference):
        return self.task(*reference)

    def cancel(self, reference, force):
        self.cancelled.append((reference, force))

    def wait(self, references, num_returns, timeout):
        assert num_returns == len(references) and timeout > 0
        return [], references


class _RayError(Exception):
    pass


class _RayTaskError(_RayError):
    def __init__(self, cause):
        self.cause = cause


@pytest.fixture
def on_ray(values, tmp_path, monkeypatch):
    """Run one job of a study through the executor with a task that does what is given."""

    def run(task, **options):
        ray = FakeRay(task)
        monkeypatch.setattr(ray_executor, "_import_ray", lambda: ray)
        study = runner.Study(study_of(values, grid=[{"methods": ["base"], "seeds": [0]}]), tmp_path / "s")
        with RayExecutor(**options) as executor:
            state = study.run(executor=executor)
        return SimpleNamespace(state=state, ray=ray, folder=next((tmp_path / "s" / "jobs").iterdir()), study=study)

    return run


def finished(spec, name, threads, version):
    return {job.ROWS: json.dumps({"job": name, "threads": threads}) + "\n", job.DONE: '{"total_seconds": 1.0}'}


def test_results_of_a_task_arrive_in_the_folder_of_the_study(on_ray):
    found = on_ray(finished, jobs=2)
    assert list(found.state.done) == ["acre/base"]
    (row,) = runner.read_rows(found.folder)
    assert row == {"job": found.folder.name, "threads": 1}
    assert found.ray.options == {
        "num_cpus": 1,
        "num_gpus": 0.0,
        "max_calls": 1,
        "max_retries": 0,
        "scheduling_strategy": "SPREAD",
    }
    assert not (found.folder / job.FAILED).exists()


def test_a_job_that_failed_leaves_its_reason_and_is_cleared_when_it_is_done_again(on_ray):
    found = on_ray(lambda *given: {job.FAILED: '{"error": "no such layer", "kind": "ConfigurationError"}'})
    assert found.state.failed == {"acre/base": "no such layer"} and (found.folder / job.FAILED).is_file()
    found = on_ray(finished)
    assert list(found.state.done) == ["acre/base"] and not (found.folder / job.FAILED).exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (_RayError("The worker died.\nSee the logs."), "lost with its worker: The worker died."),
        (_RayTaskError(ConfigurationError("another version")), "another version"),
        (
            _RayTaskError(RuntimeError("failed to import\nModuleNotFoundError: No module named 'iclm'\n")),
            "ModuleNotFound",
        ),
        (_RayTaskError(MemoryError()), "MemoryError"),
        (None, "left no result"),
    ],
    ids=["dead", "version", "import", "empty", "nothing"],
)
def test_a_lost_task_is_a_failed_job(on_ray, error, message):
    def task(*given):
        if error is not None:
            raise error
        return {}

    state = on_ray(task).state
    assert not state.done and message in state.failed["acre/base"] and "\n" not in state.failed["acre/base"]


def test_a_job_that_another_process_does_or_has_done_is_not_begun(on_ray):
    from filelock import FileLock

    found = on_ray(lambda *given: {})
    asked = []

    def task(*given):
        asked.append(given)
        return finished(*given)

    with FileLock(found.folder / job.LOCK):
        assert on_ray(task).state.busy == {"acre/base"}
    assert not asked
    on_ray(task)
    on_ray(task)
    executor = RayExecutor()
    assert executor.run(found.folder) is None  # done since the study looked
    assert len(asked) == 1


def test_stopping_ends_the_tasks_and_begins_no_other(on_ray, tmp_path):
    begun, ended = threading.Event(), threading.Event()

    def task(*given):
        begun.set()
        assert ended.wait(30)
        raise _RayError("cancelled")

    found = on_ray(finished)
    found.ray.task = task
    executor = RayExecutor()
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / job.SPEC).write_text("{}")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(executor.run, folder)
        assert begun.wait(30)
        executor.stop()
        reference = ("{}", "other", 2, ray_executor.__version__)
        assert found.ray.cancelled == [(reference, False), (reference, True)]  # it did not end when it was interrupted
        ended.set()
        assert "cancelled" in running.result()
    assert executor.run(folder) == "stopped before it began"


# -- connecting --------------------------------------------------------------------------------------------------------


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'iclm\[ray\]'"):
        RayExecutor("local")


@pytest.fixture
def closed_port():
    """A port that nothing listens on."""
    import socket

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]  # bound and not listening: it refuses


@pytest.mark.parametrize("address", ["nonsense", ":6379", "host:", "host:x", "host:70000"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ConfigurationError, match="it is auto, local or HOST:PORT"):
        ray_executor._connect(SimpleNamespace(), address)


def test_an_address_where_nothing_answers_is_refused_at_once(closed_port):
    with pytest.raises(ConfigurationError, match=f"no Ray cluster answers at 127.0.0.1:{closed_port}"):
        ray_executor._connect(SimpleNamespace(), f"127.0.0.1:{closed_port}")


def test_what_ray_says_of_a_cluster_that_it_cannot_use_is_one_line():
    def init(**options):
        raise ConnectionError("Could not find any running Ray instance.\nPlease")

    with pytest.raises(ConfigurationError, match=r"at 'auto' \(Could not find any running Ray instance\.\); start one"):
        ray_executor._connect(SimpleNamespace(init=init), "auto")


@pytest.fixture
def command(values, tmp_path, monkeypatch, capsys):
    """Run `iclm study` on a study of one job; returns the exit code and the output."""
    import yaml

    from iclm import cli

    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**values, "grid": [{"methods": ["base"], "seeds": [0]}]}))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["iclm", "study", str(path), "--out", str(tmp_path / "s"), *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
            sys.exit(0)
        return ended.value.code or 0, capsys.readouterr()

    return run


def test_the_command_line_runs_a_study_on_ray(command, monkeypatch):
    monkeypatch.setattr(ray_executor, "_import_ray", lambda: FakeRay(finished))
    code, shown = command("--ray", "auto", "--jobs", "2", "--cpus", "1")
    assert (code, shown.out) == (0, "1 of 1 jobs are done\n")


def test_the_command_line_refuses_what_cannot_be(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    for arguments, message in ((["--ray", "auto"], "iclm[ray]"), (["--cpus", "2"], "cpus is for jobs of a Ray")):
        code, shown = command(*arguments)
        assert code == 2 and message in shown.err and shown.err.count("\n") == 1


# -- a real cluster of this machine ------------------------------------------------------------------------------------


def without_time(rows):
    return [{**row, "seconds": None} for row in rows]


@pytest.mark.slow
def test_a_local_cluster_does_what_processes_do_bit_for_bit_and_survives_failures(values, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    blocks = [{"methods": ["broken", "lora", "iclm"], "seeds": [0]}]
    study = study_of(values, grid=blocks)
    names = {"acre/lora/seed-0", "acre/iclm/seed-0"}
    local = runner.Study(study, tmp_path / "local").run(executor=LocalExecutor(2))
    assert set(local.done) == names
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        with RayExecutor("local", jobs=2) as executor:
            assert executor.slots == 2 and executor.share.cpus == 1

            def die(*given):
                os.kill(os.getpid(), 9)

            usual = executor._task
            executor._task = ray.remote(num_cpus=1, max_calls=1, max_retries=0)(die)
            state = runner.Study(study, tmp_path / "ray", only=["lora"]).run(executor=executor)
            assert "lost with its worker" in state.failed["acre/lora/seed-0"]
            executor._task = usual

            state = runner.Study(study, tmp_path / "ray").run(executor=executor)
            assert set(state.done) == names
            assert state.failed == local.failed and "no_such_layer" in state.failed["acre/broken/seed-0"]

            before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}
            runner.Study(study, tmp_path / "ray").run(executor=executor)
            assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}
        assert ray.is_initialized()  # it was not the executor that started it
    finally:
        ray.shutdown()
    assert len(before) == 4 and not list((tmp_path / "ray").rglob("*.safetensors"))
    rows = {
        name: {done.line["method"]: done.rows for done in collect([tmp_path / name]).jobs} for name in ("local", "ray")
    }
    for method in ("lora", "iclm"):
        assert without_time(rows["ray"][method]) == without_time(rows["local"][method])
