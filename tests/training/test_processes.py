"""A training in two processes on one machine: the same as one process that accumulates their batches, written once, resumed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from iclm.errors import CheckpointError
from iclm.recipe import dump_recipe
from iclm.training.run import build_model, train

SETTINGS = {
    "lora": {"method": "lora"},
    # no queue and no codes that move: what is left is the same sum, however it is shared out; a batch is of one problem, so that
    # the module of the other domain goes without a gradient, and that of a third, of which there is nothing, in every step
    "iclm": {
        "model": {"router": "oracle", "num_domains": 3, "mi_weight": 0.0},
        "training": {"gradient_checkpointing": True},
    },
    # seven problems: in the last step there is one batch for two processes
    "odd": {
        "method": "lora",
        "data": {"train": [{"acre": "IID", "problems": 7, "format": "text"}]},
        "training": {"batch_size": 8},
    },
}


def in_two_processes(recipe, folder, *command):
    """Run `iclm train`, or another command with a recipe, under torchrun."""
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = command or ("-m", "iclm", "train", str(folder / "recipe.yaml"), "--out", str(folder / "two"))
    return subprocess.run(
        [*launcher, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("kind", SETTINGS)
def test_two_processes_train_as_one_that_accumulates_their_batches(make_recipe, tmp_path, kind):
    settings = {**SETTINGS[kind], "training": {"batch_size": 4, "save_steps": 2, **SETTINGS[kind].get("training", {})}}
    start = build_model(make_recipe(**settings)).state_dict()
    ended = in_two_processes(make_recipe(**settings), tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("trainable parameters; run folder") == 1
    settings["training"]["gradient_accumulation"] = 2
    _, record = train(make_recipe(**settings), tmp_path / "one", progress_bar=False)
    ours, other = (
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("two", "one")
    )
    assert [line["step"] for line in ours] == [line["step"] for line in other]
    for line, expected in zip(ours[:-1], other[:-1], strict=True):  # the last is the summary with its seconds
        assert line == pytest.approx(expected, rel=1e-4)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "one"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-4, atol=1e-6, msg=name)
    told = json.loads((tmp_path / "two" / "run.json").read_text())
    assert told["steps"] == record["steps"] > 1 and (told["processes"], record["processes"]) == (2, 1)
    assert not (tmp_path / "two" / "checkpoints").exists()
    idle = [name for name in first if name.endswith((".lora_A.3", ".lora_B.3"))]
    assert len(idle) == (
        0 if "method" in settings else len([n for n in first if n.endswith((".lora_A.0", ".lora_B.0"))])
    )
    assert all(torch.equal(first[name], start[name]) for name in idle), "a module without an example stays as it was"


def test_a_training_in_two_processes_goes_on_in_its_second_epoch_as_if_it_had_not_stopped(make_recipe, tmp_path):
    """With the settings by default: a router whose codes move, and a queue for the independence of the modules."""
    worker, path = str(Path(__file__).with_name("in_processes.py")), str(tmp_path / "recipe.yaml")
    recipe = make_recipe(training={"batch_size": 4, "epochs": 2, "save_steps": 1})
    assert in_two_processes(recipe, tmp_path, worker, path, str(tmp_path / "whole")).returncode == 0
    stopped = in_two_processes(recipe, tmp_path, worker, path, str(tmp_path / "cut"), "5")
    assert stopped.returncode != 0 and (tmp_path / "cut" / "checkpoints" / "checkpoint-5").is_dir(), stopped.stderr
    with pytest.raises(
        CheckpointError, match=r"made by 2 process\(es\), this is a training in 1; resume with torchrun"
    ):
        train(recipe, tmp_path / "cut", resume=True, progress_bar=False)
    ended = in_two_processes(recipe, tmp_path, worker, path, str(tmp_path / "cut"))
    assert ended.returncode == 0, ended.stderr
    ours, other = (load_file(tmp_path / name / "model.safetensors") for name in ("cut", "whole"))
    assert [name for name in other if not torch.equal(ours[name], other[name])] == []
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("cut", "whole")]
    assert logs[0][:-1] == logs[1][:-1] and len(logs[0]) == 7


def test_batches_that_shrink_are_not_for_several_processes(make_recipe, tmp_path):
    recipe = make_recipe(method="lora", training={"auto_find_batch_size": True})
    ended = in_two_processes(recipe, tmp_path)
    assert ended.returncode != 0 and "auto_find_batch_size is for a single process" in ended.stderr
    assert not (tmp_path / "two").exists()


def test_a_rank_in_the_environment_of_a_single_process_changes_nothing(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    train(make_recipe(method="lora"), tmp_path / "run", progress_bar=False)
    assert {"model.safetensors", "run.json", "log.jsonl", "recipe.yaml"} <= {
        p.name for p in (tmp_path / "run").iterdir()
    }
