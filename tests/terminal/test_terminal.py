"""What people meet who type combo into a terminal of 80 columns: three roads, and 39 usual slips.

What is shown is held against texts in tests/data/terminal, which are to be read. COMBO_GOLDEN=write
writes them anew. Times, rates and sizes are no part of them.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from numbered_clips import film

from .screen import COLUMNS, Shown, Terminal

GOLDEN = Path(__file__).parent.parent / "data" / "terminal"
HOME = "/tmp/c-somebody"
"""What the texts call the folder, whose own name is drawn and is as long."""
MANIFEST = """\
data_sets:
  s4: {layout: avsbench-s4, root: AVSBench/AVSBench_object/Single-source}
  ms3: {layout: avsbench-ms3, root: AVSBench/AVSBench_object/Multi-sources}
stages:
  frames: {size: 32}
  audio: {encoder: mel-stats}
  maskige: {generator: felzenszwalb, at: stored}
"""
SETTINGS = """\
preset: combo-small-ms3
width: 32
heads: 2
fusion_heads: 2
pixel_layers: 1
pixel_ffn: 16
decoder_layers: 1
decoder_ffn: 16
audio_hidden: 16
query_count: 4
mask_points: 64
iterations: 4
batch_size: 2
evaluate_every: 2
log_every: 4
threads: 1
device: cpu
"""

TABLE = """\
presets: [combo-small-ms3]
rows: {both: [], one: [sem=shared]}
"""
STUDENT = """\
combo doctor
combo preprocess all --data ms3 --dry-run
combo preprocess all --data ms3
combo status --data ms3
combo train --config tiny.yaml --out run
combo evaluate run --split test --sound right,silent
"""
OWNER = """\
combo init clips --manifest own.yaml
combo preprocess all --manifest own.yaml
combo status --manifest own.yaml
combo predict run clips/talk.mp4 --out talk
"""
ADMIN = """\
combo verify --data ms3
combo pack store --to ms3.h5 --data ms3
combo preprocess frames --data s4 --split train --part 2/2
combo finalise frames --data s4 --split train
combo preprocess frames --data s4 --split train
combo status --data s4
"""
SLIPS = """\
combo preproces all
combo preprocess
combo preprocess frame
combo preprocess all --data s5
combo preprocess all --data MS3
combo preprocess all --data ms3 --split tset
combo preprocess audio --data ms3 --encoder vgish
combo preprocess audio --data ms3 --encoder vggish
combo preprocess maskige --data ms3 --generator sam
combo preprocess all --worker 4
combo preprocess all --workers four
combo preprocess all --workers 0
combo preprocess frames --part 4/3
combo preprocess all --manifest mainfest.yaml
combo preprocess all --manifest clips
combo init nowhere
combo init clips --manifest own.yaml
combo status --data ms4
combo status --watch --json
combo train
combo train --preset combo-r50
combo train --preset combo-small-ms3 --set lr=1e-4
combo train --preset combo-small-ms3 --set batch_size=many
combo train --preset combo-small-ms3 --set batch_size
combo train --preset combo-small-ms3 --data s4 --set data=ms3
combo train --preset combo-small-s4
combo train --preset combo-small-ms3 --encoder vggish
combo train --preset combo-small-ms3 --store nowhere
combo train --resume runs/none
combo train --resume run/best.pt
combo train --resume run --encoder vggish --out other
combo train --resume run --set learning_rate=1
combo evaluate
combo evaluate run --split dev
combo evaluate run --sound swaped
combo evaluate clips
combo predict run holday.mp4
combo predict clips/talk.mp4 run
combo weights fetch vgish
"""


@pytest.fixture
def terminal(sample: Path) -> Iterator[Terminal]:
    """A home whose path is always as long, for lines that end where they end."""
    home = Path(tempfile.mkdtemp(prefix="c-", dir="/tmp"))
    assert len(str(home)) == len(HOME)
    (home / "AVSBench").symlink_to(sample)
    (home / "data_manifest.yaml").write_text(MANIFEST)
    (home / "tiny.yaml").write_text(SETTINGS)
    (home / "table.yaml").write_text(TABLE)
    (home / "clips").mkdir()
    film(home / "clips" / "talk.mp4", 2, Fraction(5))
    (home / "clips" / "broken.mp4").write_bytes(b"no video")
    terminal = Terminal(home, COMBO_WEIGHTS=str(home / "weights"), CUDA_VISIBLE_DEVICES="")
    yield terminal
    terminal.close()
    shutil.rmtree(home)


WRAPPED = re.compile(r"^(\S.* units? .*)\n {2}(?=\S)", re.MULTILINE)
"""Lines that end where sizes and times let them end."""

VARYING = (
    (r"/tmp/c-\w{8}", HOME),
    (r"\d+:\d\d:\d\d", "H:MM:SS"),
    (r"\d+ min \d+ s|\d+ s\b", "N s"),
    (r"\d+\.\d+/s|\d+\.\d+ s each", "N/s"),
    (r"\d+(\.\d+)? (bytes|[kMGT]B)\b", "N MB"),
    (r"\d+\.\d+(?= clips/s)", "N"),
    (r"\b0\.\d{4}\b", "0.NNNN"),
    (r"-[0-9a-f]{8}\b", "-01234567"),
    (r"loss \d+\.\d+", "loss N"),
    (r"no GPU; \d+ CPU cores?; torch \S+", "no GPU; N CPU cores; torch N"),
    (r" +$", ""),
)


def told(steps: list[tuple[str, Shown]], home: Path) -> str:
    """What was typed and shown, as it is kept."""
    lines: list[str] = []
    for typed, shown in steps:
        text = shown.text.replace(str(home), HOME)
        if "evaluate" in typed:
            text = re.sub(r"^[┏┃┡│└].*\n?", "", text, flags=re.MULTILINE)  # numbers of this machine
        while text != (joined := WRAPPED.sub(r"\1 ", text)):
            text = joined
        for pattern, word in VARYING:
            text = re.sub(pattern, word, text, flags=re.MULTILINE)
        lines += [f"$ {typed}", *text.splitlines(), f"[{shown.code}]", ""]
    return "\n".join(lines)


def hold(name: str, found: str) -> None:
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("COMBO_GOLDEN") == "write":
        file.write_text(found)
    assert found == file.read_text()


@pytest.mark.slow
def test_three_roads_are_walked_to_their_ends_and_39_slips_end_in_the_right_advice(
    terminal: Terminal,
) -> None:
    texts = {"student": STUDENT, "owner": OWNER, "admin": ADMIN, "slips": SLIPS}
    walked = {
        name: [(line, terminal.types(line)) for line in text.splitlines()]
        for name, text in texts.items()
    }
    assert len(walked["slips"]) == 39
    assert all(shown.code in (1, 2) for _, shown in walked["slips"])
    for name, steps in walked.items():
        hold(name, told(steps, terminal.home))
        for typed, shown in steps:
            assert "Traceback" not in shown.text, typed
            assert broken_words(shown) == [], typed
    own = " ".join(f"--set {line.replace(': ', '=')}" for line in SETTINGS.splitlines()[1:])
    of_all = {
        "combo evaluate run run/last.pt --sound right,silent": "evaluating ━━━━━━━━━━ 8/8 ",
        "combo report run store --out page.html": "page.html ━━━━━━━━━━ 11/11 ",
        f"combo ablate table.yaml {own}": "table.yaml ━━━━━━━━━━ 12/12 ",
    }
    for typed, bar in of_all.items():
        shown = terminal.types(typed)
        assert [line[: len(bar)] for line in shown.lines if "━ " in line] == [bar], shown.text
    colours = walked["admin"][-1][1].colours
    assert colours["finished"] == "green"
    assert {colours["not"], colours["begun"]} == {"brown"}, "as this terminal calls its yellow"


def broken_words(shown: Shown) -> list[str]:
    """Lines that go on behind the edge of the screen, where a shorter one would have had room."""
    return [
        line
        for line, after in zip(shown.lines, shown.lines[1:], strict=False)
        if len(line) == COLUMNS
        and not line.endswith(("┓", "┃", "┩", "│", "┘", "…"))
        and not after.startswith(" ")
        and max(map(len, line.split())) <= COLUMNS // 2
    ]


@pytest.mark.slow
def test_ctrl_c_says_what_was_done_and_the_command_that_goes_on(terminal: Terminal) -> None:
    begun = "combo preprocess all --data ms3 --overwrite"
    stopped = terminal.types(begun, until="ms3/train ")
    assert stopped.code == 130
    assert re.search(r"^ms3/\w+ \w+: \d of 1 unit done$", stopped.text, re.MULTILINE)
    assert re.search(r"^not begun: .*ms3/test maskige", stopped.text, re.MULTILINE | re.DOTALL)
    assert stopped.lines[-1] == "combo: stopped; go on with: combo preprocess all --data ms3"
    assert terminal.types(stopped.lines[-1].partition("go on with: ")[2]).code == 0

    begun = (
        "combo train --config tiny.yaml --set iterations=3000 --set evaluate_every=3000 --out long"
    )
    stopped = terminal.types(begun, until="1/3000")
    assert stopped.code == 130
    assert "stopping after this iteration; Ctrl-C again leaves at once" in stopped.text
    said = " ".join(stopped.text.partition("combo: stopped;")[2].split())
    done = re.match(r"(\d+) of 3,000 iterations done; go on with: combo train --resume long$", said)
    assert done
    settings = terminal.types("combo train --resume long --print-settings").text
    assert "iterations: 3000" in settings
    more = f"combo train --resume long --set iterations={int(done[1]) + 1}"
    went_on = terminal.types(more)
    assert went_on.code == 0
    assert "training ━━━━━━━━━━ 1/1" in went_on.text, "what was done when it was stopped is kept"


@pytest.mark.slow
def test_urls_and_commands_longer_than_a_line_can_be_copied(terminal: Terminal) -> None:
    shown = terminal.types("combo preprocess audio --data ms3 --encoder vggish")
    (url,) = (line for line in shown.copied if line.startswith("https://"))
    assert url.endswith(".pth")
    assert len(url) > COLUMNS
    folder = terminal.home / "a folder of somebody who likes names to be long" / "and then another"
    folder.mkdir(parents=True)
    shutil.copy(terminal.home / "data_manifest.yaml", folder)
    shown = terminal.types(f"combo verify --manifest '{folder}/data_manifest.yaml'")
    command = shown.copied[-1]
    assert command == f"combo preprocess all --manifest '{folder}/data_manifest.yaml'"
    assert len(command) > COLUMNS
    assert terminal.types(f"{command} --data ms3 --dry-run").code == 1, "there it finds no data"
