"""A training in two processes on one machine: the same as one process that accumulates their batches, written once."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from iclm.recipe import dump_recipe
from iclm.training.run import train

SETTINGS = {
    "lora": {"method": "lora"},
    # no critic and codes that stay: what is left is the same sum, however it is shared out; a batch is of one problem, so that
    # the module of the other domain goes without a gradient
    "iclm": {"model": {"router": "kmeans", "mi_weight": 0.0}, "training": {"gradient_checkpointing": True}},
}


def in_two_processes(recipe, folder):
    """Run `iclm train` under torchrun."""
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "iclm"]
    return subprocess.run(
        [*launcher, "train", str(folder / "recipe.yaml"), "--out", str(folder / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("kind", SETTINGS)
def test_two_processes_train_as_one_that_accumulates_their_batches(make_recipe, tmp_path, kind):
    settings = {**SETTINGS[kind], "training": {"batch_size": 4, "save_steps": 2, **SETTINGS[kind].get("training", {})}}
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
    assert json.loads((tmp_path / "two" / "run.json").read_text())["steps"] == record["steps"] > 2
    assert not (tmp_path / "two" / "checkpoints").exists()


def test_a_rank_in_the_environment_of_a_single_process_changes_nothing(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    train(make_recipe(method="lora"), tmp_path / "run", progress_bar=False)
    assert {"model.safetensors", "run.json", "log.jsonl", "recipe.yaml"} <= {
        p.name for p in (tmp_path / "run").iterdir()
    }
