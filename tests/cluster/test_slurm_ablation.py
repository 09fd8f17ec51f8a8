"""A table whose runs are tasks of a real Slurm; skipped where there is none."""

import json
from pathlib import Path

import pytest

from combo.pipeline.sample import write_sample

from .slurm_tools import are_over, wait_until, why_no_slurm
from .test_slurm_training import MANIFEST, SETTINGS, answer

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.usefixtures("has_the_cluster"),
    pytest.mark.skipif(why_no_slurm() is not None, reason=why_no_slurm() or ""),
]


def test_a_tables_runs_are_tasks_and_the_last_job_prints_it(tmp_path: Path) -> None:
    folder = tmp_path / "it's 5%"
    folder.mkdir()
    write_sample(tmp_path / "clips", s4=(4, 1, 2), ms3=(1, 1, 1), avss=(1, 1, 1))
    (folder / "data_manifest.yaml").write_text(MANIFEST.format(root=tmp_path / "clips"))
    answer("preprocess", "all", "--data", "s4", "--quiet", folder=folder)
    rows = "rows: {both encoders: [], one encoder: [sem=shared]}"
    (folder / "own.yaml").write_text(f"presets: [combo-small-s4]\n{rows}\n")
    settings = [word for each in (*SETTINGS, "iterations=2") for word in ("--set", each)]
    words = ("ablate", "own.yaml", "--out", "runs", *settings)
    said = json.loads(answer(*words, "--slurm", "--json", folder=folder))
    assert said["tasks"] == 2
    wait_until(lambda: are_over(*said["arrays"], said["table"]), 600)
    logs = {path.name: path.read_text() for path in Path(said["folder"]).glob("*.log")}
    assert len(list((folder / "runs").glob("*/last.pt"))) == 2, logs
    assert any("both encoders" in text and "one encoder" in text for text in logs.values()), logs
    before = [path.stat().st_mtime_ns for path in sorted((folder / "runs").glob("*/last.pt"))]
    told = json.loads(answer(*words, "--slurm", "--json", folder=folder))
    assert [row["row"] for row in told["rows"]] == ["both encoders", "one encoder"], "all are done"
    after = [path.stat().st_mtime_ns for path in sorted((folder / "runs").glob("*/last.pt"))]
    assert after == before
