"""Disks that are too small, full or read-only."""

import subprocess
from pathlib import Path

import pytest
from commands import combo
from system_limits import file_limit

from combo.pipeline import durable
from combo.pipeline.jobs import records
from combo.pipeline.jobs.plan import make_job
from combo.pipeline.manifest import load_manifest

from .tools import findings


def test_a_disk_too_small_is_refused_before_it_is_full(small_disk: Path, manifest_file) -> None:
    path = manifest_file(store="disk/store", clips_per_unit=1)
    words = ("preprocess", "frames", "--data", "s4", "--split", "train", "--manifest", path)
    (small_disk / "other").write_bytes(bytes(1_500_000))
    refused = combo(*words)
    assert refused.returncode == 1
    assert "units need about" in refused.stderr
    assert "--force" in refused.stderr
    job = make_job(load_manifest(path), "s4", "train", "frames")
    assert len(records.listing(job.split, job.variant)) == 1, "one unit was measured, and kept"

    full = combo(*words, "--force")
    assert full.returncode == 1
    assert "the disk is full; free space there and run the same command again" in full.stderr
    assert not list(small_disk.rglob("*.partial"))
    assert all("not done" in f.problem or "not finished" in f.problem for f in findings(job))

    (small_disk / "other").unlink()
    assert combo(*words).returncode == 0
    assert findings(job) == []


def test_a_disk_that_cannot_be_written_is_one_line(small_disk: Path, manifest_file) -> None:
    path = manifest_file(store="disk/store")
    words = ("preprocess", "frames", "--data", "s4", "--split", "test", "--manifest", path)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused = combo(*words)
    assert refused.returncode == 1
    assert "the file system is read-only; give another store" in refused.stderr


def test_a_dry_run_tells_what_is_needed_and_writes_nothing(manifest_file, tmp_path: Path) -> None:
    path = manifest_file()
    words = ("preprocess", "frames", "--data", "s4", "--manifest", path)
    told = combo(*words, "--split", "train", "--dry-run").stdout
    assert "8 units of 2 clips to do" in told
    assert "at most" in told
    assert not (tmp_path / "store").exists()
    assert combo(*words, "--split", "test").returncode == 0
    told = combo(*words, "--split", "train", "--dry-run").stdout
    assert "about" in told, "a unit of another split was measured"


def test_a_write_that_failed_is_told_as_the_system_told_it(tmp_path: Path) -> None:
    """Whatever a library between makes of it: PyTorch and PyAV have words of their own."""

    def encode() -> None:
        with durable.replacing(tmp_path / "film") as file:
            try:
                file.write(bytes(100_000))
            except OSError as error:
                raise RuntimeError("cannot encode") from error

    with file_limit() as limit:
        limit(10)
        with pytest.raises(OSError, match="File too large") as caught:
            encode()
    assert caught.value.filename == str(tmp_path / "film")
    assert list(tmp_path.iterdir()) == []
