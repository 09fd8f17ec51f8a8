"""The notebook is run from its first cell to its last, with a network that learns less long."""

import os
import signal
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "own_video.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    folder = Path(sys.executable).parent  # where `combo` is
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert "iterations=300" in text
    text = text.replace("iterations=300", "iterations=4").replace("60,4,6", "4,1,2")
    notebook = nbformat.reads(text, as_version=4)
    heard = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    for number, handler in heard.items():  # the client leaves Python's own
        signal.signal(number, handler)
    assert {"overlay.mp4", "prediction.json"} <= {p.name for p in (tmp_path / "result").iterdir()}
    shown = [
        output.data
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "execute_result"
    ]
    assert sum("image/png" in data for data in shown) == 3
    assert any("video/mp4" in data.get("text/html", "") for data in shown)
