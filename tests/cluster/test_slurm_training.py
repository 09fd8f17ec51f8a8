"""A training run of two processes on a real Slurm; skipped where there is none."""

import json
from pathlib import Path

import pytest
import torch
from commands import combo

from combo.pipeline.sample import write_sample
from combo.pipeline.train.run_folder import RunFolder

from .slurm_tools import are_over, queue, slurm, start_again, wait_until, why_no_slurm

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.usefixtures("has_the_cluster"),
    pytest.mark.skipif(why_no_slurm() is not None, reason=why_no_slurm() or ""),
]

MANIFEST = """\
store: store
data_sets:
  s4: {{layout: avsbench-s4, root: {root}/AVSBench_object/Single-source}}
stages:
  frames: {{size: 64}}
  audio: {{encoder: mel-stats}}
  maskige: {{generator: felzenszwalb, at: stored}}
cluster: {{cores: 1, memory: 1GB, walltime: "00:30:00"}}
"""
SETTINGS = (
    "width=32", "heads=2", "fusion_heads=2", "pixel_layers=1", "pixel_ffn=16", "decoder_layers=1",
    "decoder_ffn=16", "audio_hidden=16", "query_count=4", "mask_points=64", "iterations=36",
    "batch_size=4", "micro_batch=1", "evaluate_every=18", "log_every=1", "checkpoint_every=5",
    "ema=0.9", "augment=resize-crop-colour-flip", "fidelity=reference",
)  # fmt: skip


def answer(*words: str, folder: Path) -> str:
    """What a command says, which must succeed."""
    done = combo(*words, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def submitted(folder: Path, name: str) -> tuple[str, RunFolder]:
    settings = [word for each in SETTINGS for word in ("--set", each)]
    words = ("--preset", "combo-small-s4", "--slurm", "--processes", "2", "--out", name)
    said = json.loads(answer("submit", "train", *words, *settings, "--json", folder=folder))
    return said["job"], RunFolder(Path(said["run"]))


def lines(run: RunFolder) -> list[str]:
    return run.metrics.read_text().splitlines() if run.metrics.exists() else []


def test_a_run_that_is_killed_three_times_ends_with_the_weights_of_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "it's 5%"
    folder.mkdir()
    write_sample(tmp_path / "clips", s4=(8, 2, 1), ms3=(1, 1, 1), avss=(1, 1, 1))
    (folder / "data_manifest.yaml").write_text(MANIFEST.format(root=tmp_path / "clips"))
    answer("preprocess", "all", "--quiet", folder=folder)

    job, run = submitted(folder, "runs/killed")
    warned = ["--signal=USR1"]  # what --signal=USR1@120 does: the job queues itself again
    for kill in (warned, ["--signal=KILL"], ["--signal=KILL", "--batch"]):
        before = len(lines(run))
        wait_until(lambda many=before + 6: len(lines(run)) >= many or are_over(job))
        assert not are_over(job), (run.root / "jobs" / "train.log").read_text()
        slurm("scancel", *kill, job)
        if kill == warned:
            wait_until(lambda: (queue() or {}).get(job) == "PENDING")
        else:
            wait_until(lambda: are_over(job))
            slurm("scontrol", "requeue", job)
        start_again(job)
    wait_until(lambda: are_over(job))
    said = (run.root / "jobs" / "train.log").read_text()
    assert said.count("now queued again") == 1
    assert said.count("told to stop; go on with") >= 1

    undisturbed, whole = submitted(folder, "runs/whole")
    wait_until(lambda: are_over(undisturbed))
    one, two = (torch.load(each.last, weights_only=True) for each in (run, whole))
    assert one["iteration"] == two["iteration"] == 36
    for part in ("network", "averaged"):
        assert all(torch.equal(one[part][name], two[part][name]) for name in one[part])
    assert [json.loads(line)["iteration"] for line in lines(run)] == [
        json.loads(line)["iteration"] for line in lines(whole)
    ]
