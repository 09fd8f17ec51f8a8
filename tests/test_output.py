"""What a command prints, whoever receives it, and whatever names it has to print."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import combo, process
from typer.testing import CliRunner

from combo.cli import app
from combo.pipeline.console import Output


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--help", "weights list"])
def test_output_that_nobody_can_receive_is_no_traceback(words: str, unbuffered: str) -> None:
    command = f"PYTHONUNBUFFERED={unbuffered} {shlex.quote(sys.executable)} -m combo {words}"
    for redirection, codes in (
        (">/dev/full", (1,)),
        (">&-", (0,)),
        (">/dev/full 2>&1", (1,)),
        (">/dev/null 2>/dev/full", (0,)),
        (">/dev/null 2>&-", (0,)),
        ("<&- >/dev/null", (0,)),
    ):
        done = subprocess.run(
            ["/bin/sh", "-c", f"{command} {redirection}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in codes
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
        if redirection == ">/dev/full":
            assert done.stderr.count("\n") == 1
            assert "results cannot be written to standard output" in done.stderr


@pytest.mark.parametrize("stdout", ["/dev/null", "/dev/full"])
def test_an_error_that_nobody_can_receive_still_has_its_code(stdout: str) -> None:
    for words, code in (("nonsense", 2), ("verify", 1)):
        command = f"{shlex.quote(sys.executable)} -m combo {words} >{stdout} 2>/dev/full"
        buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
        buffered["COMBO_STORE"] = "/nowhere"
        assert subprocess.call(["/bin/sh", "-c", command], env=buffered) == code, words


def test_a_pipe_that_is_closed_early_is_no_traceback() -> None:
    command = f"{shlex.quote(sys.executable)} -m combo weights list --json | head -c 1"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[", "")


def test_notes_into_a_pipe_that_nobody_reads_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stderr", pipe)
        Output().note("training: 1/2")
        Output().warn("and on")


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    done = CliRunner().invoke(app, ["status"])
    assert "the folder you are in is gone; go to another (cd)" in str(done.exception)


def test_paths_are_printed_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "a :dog: [red]"
    folder.mkdir()
    missing = combo("doctor", "--manifest", str(folder / "[b].yaml")).stderr
    assert f"{folder}/[b].yaml" in missing
    (folder / "m.yaml").write_text(
        'store: "s [b] :cat:"\ndata_sets: {"x[y] :dog:": {layout: folders, root: "r[z] :cat:"}}\n'
    )
    shown = " ".join(combo("doctor", "--manifest", str(folder / "m.yaml")).stdout.split())
    for text in ("x[y] :dog:", "s [b] :cat:", "r[z] :cat:"):
        assert text in shown


def test_a_name_that_is_no_utf_8_can_be_printed(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.yaml")
    said = process("status", "--manifest", str(tmp_path / name))
    assert said.returncode == 2
    assert "caf\\udce9.yaml" in said.stderr
