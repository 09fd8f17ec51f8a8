"""Lines of a job script as sbatch reads them, and what a cluster's own settings say."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from combo.cli import app
from combo.pipeline.errors import ComboError
from combo.pipeline.jobs import slurm
from combo.pipeline.jobs.job_array import JobArray
from combo.pipeline.manifest import ClusterSettings
from combo.pipeline.train.presets import resolve
from combo.pipeline.train.run_folder import RunData, RunFolder

CONFIG = """\
Configuration data as of 2025-11-26T00:00:00
MaxArraySize            = 1001
MaxJobCount             = 10000
"""


def array_with(option: str) -> JobArray:
    cluster = ClusterSettings(arguments=(option,))
    what = (["maskige"], ["maskige"], cluster, {})
    return JobArray("combo-maskige", Path("/jobs"), 3, 3, None, *what)


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("--partition=gpu", "--partition=gpu"),
        ("--comment=two words", '--comment="two words"'),
        ("--comment=it's a # sign", '--comment="it\'s a # sign"'),
        ("--mail-user=a b=c", '--mail-user="a b=c"'),
        ('--comment="two words"', '--comment="two words"'),
        ("--gres=gpu:1 --partition=gpu", "--gres=gpu:1 --partition=gpu"),
        ("--exclusive", "--exclusive"),
        ("-p gpu", "-p gpu"),
    ],
)
def test_a_value_with_spaces_is_quoted(option: str, line: str) -> None:
    array = array_with(option)
    for script in (slurm.script(array), slurm.closing_script(array)):
        assert f"#SBATCH {line}\n" in script


def test_an_option_of_two_lines_is_refused() -> None:
    with pytest.raises(ComboError, match="holds a line break"):
        slurm.script(array_with("--comment=a\nrm -rf ."))


def test_an_array_counted_from_one_has_room_for_one_task_less_than_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}")
    assert slurm.largest_array() is None, "nobody is there to ask"

    def says(config: str) -> None:
        for name in ("scontrol", "sbatch"):
            (tmp_path / name).write_text(f"#!/bin/sh\necho '{config}'\n")
            (tmp_path / name).chmod(0o755)

    says(CONFIG)
    assert slurm.largest_array() == 1000
    slurm.check_ready(ClusterSettings())
    says(CONFIG.replace("1001", "0"))
    with pytest.raises(ComboError, match=r"runs no job arrays .*; use combo preprocess --dask"):
        slurm.check_ready(ClusterSettings())
    says("")
    with pytest.raises(ComboError, match="tells no MaxArraySize"):
        slurm.largest_array()


def test_a_script_can_be_looked_at_where_slurm_does_not_answer(
    manifest_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}")
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho 'no controller' >&2; exit 1\n")
    (tmp_path / "scontrol").chmod(0o755)
    words = ["submit", "frames", "--data", "ms3", "--split", "train", "--tasks", "2", "--print"]
    done = CliRunner().invoke(app, [*words, "--manifest", str(manifest_file())])
    assert done.exit_code == 0, done.output
    assert "#SBATCH" in done.stdout
    assert "not known here: scontrol said: no controller" in done.stderr


def started(script: str) -> list[str]:
    """What the shell of a training job starts."""
    before = 'exec() { printf "%s\\n" "$@"; }\nscontrol() { echo one; echo two; }\n'
    words = ["bash", "-euc", before + script]
    environment = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n", "PATH": os.environ["PATH"]}
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()


def test_a_training_job_begins_its_run_and_then_goes_on_with_it(
    manifest_file: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / "a run"
    words = ["submit", "train", "--preset", "combo-small-ms3", "--slurm", "--gpus", "2"]
    words += ["--nodes", "2", "--set", "batch_size=4", "--set", "initialisation=a b", "--print"]
    words += ["--out", str(run), "--manifest", str(manifest_file())]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    for line in ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--requeue"):
        assert f"#SBATCH {line}\n" in done.stdout
    assert "#SBATCH --signal=USR1@120\n" in done.stdout, "to the processes, not to the shell"
    assert not run.exists()

    command = started(done.stdout)
    assert command[0] == "srun"
    assert command[command.index("train") :][:3] == ["train", "--out", str(run)]
    assert command[command.index("initialisation=a b") - 1] == "--set"
    assert command[-1] == "--requeue"
    assert "--quiet" not in command, "the log says how it goes"
    run.mkdir()
    (run / "settings.json").touch()
    assert started(done.stdout) == command, "one that was killed in its first checkpoint"
    (run / "last.pt").touch()
    command = started(done.stdout)
    assert command[command.index("train") :] == [
        "train", "--resume", str(run), "--requeue",
    ]  # fmt: skip
    shutil.rmtree(run)
    refused = CliRunner().invoke(app, [*words, "--set", "batch_size=6"])
    assert "4 processes cannot share a batch of 6 evenly" in str(refused.exception)


def test_a_job_goes_on_with_a_run_that_is_there_by_the_runs_own_settings(
    manifest_file: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["submit", "train", "--slurm", "--print", "--out", str(run)]
    words += ["--manifest", str(manifest_file()), "--set", "ema=0.9", "--set", "iterations=40"]
    settings = resolve("combo-small-s4", ["ema=0.9", "iterations=30"])
    data: RunData = {"data_set": "s4", "store": "s", "settings": {}, "weights": {}, "splits": {}}
    RunFolder.create(run, settings, data)
    (run / "last.pt").touch()

    def answered(*more: str) -> Result:
        return CliRunner().invoke(app, [*words, *more])

    # The data say how many frames there are.
    words += ["--set", "max_frames=3"]
    done = answered("--preset", "combo-small-s4", "--store", str(tmp_path))
    assert done.exit_code == 0, done.output
    command = started(done.stdout)
    assert command[command.index("train") :] == [
        "train", "--resume", str(run), "--set", "iterations=40", "--store", str(tmp_path),
        "--requeue",
    ]  # fmt: skip
    refused = answered("--preset", "combo-small-s4", "--set", "learning_rate=9")
    assert "the run goes on with its own learning_rate" in str(refused.exception)
    refused = answered("--preset", "combo-small-ms3")
    assert "--preset combo-small-ms3: " in str(refused.exception)
    assert "is a run of combo-small-s4; give that one" in str(refused.exception)
    (run / "last.pt").unlink()
    begun = started(answered("--preset", "combo-small-s4").stdout)
    assert "--resume" not in begun
    assert "ema=0.9" in begun
    (run / "notes.txt").touch()
    refused = answered("--preset", "combo-small-s4")
    assert str(refused.exception) == f"{run} is not empty; give another folder with --out"
