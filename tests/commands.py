"""Commands as they are given in a shell, run by the test's own process: PyTorch is there already.

Tests of signals, streams and start-up start a process instead (`process`).
"""

import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import BytesIO, TextIOWrapper
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

import pytest

from combo.cli import main


def combo(*words: object, folder: Path | None = None, **variables: str) -> CompletedProcess[str]:
    """What a command given in `folder` answers, with these variables beside the environment's."""
    given = ["combo", *map(str, words)]
    with (
        chdir(folder or Path.cwd()),
        patch.dict(os.environ, variables),
        patch.object(sys, "argv", given),
        redirect_stdout(TextIOWrapper(BytesIO(), "utf-8", write_through=True)) as out,
        redirect_stderr(TextIOWrapper(BytesIO(), "utf-8", write_through=True)) as err,
        pytest.raises(SystemExit) as end,
    ):
        main()
    assert isinstance(end.value.code, int)
    said = (stream.buffer.getvalue().decode() for stream in (out, err))
    return CompletedProcess(given, end.value.code, *said)


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "combo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)
