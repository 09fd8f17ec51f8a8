"""`combo demo`, with fewer clips and a smaller network than it has."""

import json
from pathlib import Path

import av
import pytest
from typer.testing import CliRunner

from combo.cli import app
from combo.pipeline.commands import demo

TINY = (
    "width=32", "heads=2", "fusion_heads=2", "pixel_layers=1", "pixel_ffn=16", "decoder_layers=1",
    "decoder_ffn=16", "audio_hidden=16", "query_count=4", "mask_points=64", "iterations=4",
    "evaluate_every=2", "log_every=1",
)  # fmt: skip


@pytest.mark.slow
def test_the_demo_goes_the_whole_road_and_given_again_trains_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "CLIPS", (3, 2, 3))
    monkeypatch.setattr(demo, "CHANGES", TINY)
    out = tmp_path / "demo"
    done = CliRunner().invoke(app, ["demo", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    said = json.loads(done.stdout)
    assert said["right"]["clips"] == 3
    assert 0 <= said["subset"]["M_J_swapped_sound"] <= 1
    assert json.loads((out / "demo.json").read_text()) == said
    assert (out / "contact_sheet.png").stat().st_size > 1000
    assert "<article" in (out / "report.html").read_text()
    with av.open(str(out / "overlay.mp4")) as film:
        assert [stream.type for stream in film.streams] == ["video", "audio"]

    journal = (out / "run" / "metrics.jsonl").read_bytes()
    again = CliRunner().invoke(app, ["demo", "--out", str(out)])
    assert again.exit_code == 0, again.output
    assert "report.html" in again.output
    assert (out / "run" / "metrics.jsonl").read_bytes() == journal
