"""Settings of a run that goes on: which may change, and that nothing else does."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from combo.cli import app
from combo.pipeline.errors import ComboError
from combo.pipeline.manifest import Manifest
from combo.pipeline.train import checkpoint
from combo.pipeline.train.run_folder import RunFolder
from combo.pipeline.train.start import resume

from .conftest import finished_run
from .test_run_folders import TINY, said, tiny


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run; not to be changed."""
    return finished_run(prepared, tmp_path_factory, TINY)


def test_what_may_change_on_resume_does_and_is_noted(finished: Manifest, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    tiny(finished, run.root).train()
    words = ["--set", "iterations=5", "--set", "log_every=2", "--set", "width=32"]
    done = CliRunner().invoke(app, ["train", "--resume", str(run.root), *words])
    assert done.exit_code == 0, done.output
    assert checkpoint.load(run.last).iteration == 5
    settings = run.settings()
    assert (settings.train.iterations, settings.train.log_every) == (5, 2)
    told = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert {"iteration": 3, "kind": "settings", "iterations": 5, "log_every": 2} in told
    train = [line["iteration"] for line in told if line["kind"] == "train"]
    assert train == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("learning_rate=1", r"--set learning_rate=1\.0 with --resume: .* its own learning_rate="),
        ("width=64", "its own width=32; what may change is iterations, .*begin a new run"),
        ("iteration=9", "no such setting; did you mean iterations"),
        ("iterations=2", r"iterations is 2, but .* has seen 3"),
    ],
)
def test_what_may_not_change_on_resume_is_refused_and_nothing_changed(
    trained: RunFolder, change: str, reason: str
) -> None:
    before = {path: path.read_bytes() for path in trained.root.rglob("*") if path.is_file()}
    with pytest.raises(ComboError, match=reason) as caught:
        resume(trained.root, changes=[change])
    said(caught)
    assert before == {path: path.read_bytes() for path in trained.root.rglob("*") if path.is_file()}
