"""`benchmarks/gpu.py` where no GPU is: small sizes, which show that it runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def measured(folder: Path, *words: str) -> tuple[int, str, dict[str, list[dict[str, object]]]]:
    """Exit code, what was printed, and part -> rows of the file."""
    file = folder / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--out", str(file), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    found = json.loads(file.read_text()) if file.exists() else {}
    return done.returncode, done.stdout, found.get(f"cpu, torch {torch.__version__}", {})


@pytest.mark.slow
def test_training_is_measured_with_each_cache(tmp_path: Path) -> None:
    code, said, found = measured(tmp_path, "--parts", "cache")
    assert code == 0, said
    assert [float(str(row["clips/s"])) > 0 for row in found["cache"]] == [True] * 3
    assert [str(row["what"]).rpartition("=")[2] for row in found["cache"]] == [
        "device", "host", "none",
    ]  # fmt: skip


def test_a_part_is_measured_once_and_one_that_ran_out_of_time_is_left(tmp_path: Path) -> None:
    code, said, found = measured(tmp_path, "--parts", "kernel")
    assert code == 0, said
    assert [float(str(row["ms"])) > 0 for row in found["kernel"]] == [True] * len(found["kernel"])
    assert "no GPU is used" in said

    code, said, again = measured(tmp_path, "--parts", "kernel", "sound", "--minutes", "0.1")
    assert code == 75, said
    assert "this goes on there: --parts sound" in said
    assert "sound: ended after" in said
    assert again == found
    assert str(found["kernel"][0]["what"]) in said, "the table is that of the file"
