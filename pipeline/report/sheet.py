"""Panels as one PNG: a block a clip, a row for each of its rows, the spectrogram below them."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from .. import durable
from ..errors import ComboError
from ..media.images import Pixels
from ..painting import COLOURS
from .clips import Panel
from .sound import Heard, spectrogram

MADE_BY = "made by combo"
"""What files of ours say of themselves in their first bytes."""

TITLE, LINE, GAP, SOUND, WINDOWS = 22, 15, 4, 76, 12
INK, PALE, PAPER = (20, 20, 24), (96, 96, 104), (255, 255, 255)


def write_sheet(path: Path, panels: Sequence[Panel], height: int | None = None) -> None:
    """Write panels below each other. height: of a row; that of its first pictures by default."""
    blocks = [_block(panel, height) for panel in panels]
    sheet = Image.new("RGB", (max(b.width for b in blocks), sum(b.height for b in blocks)), PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    write_png(path, sheet)


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a picture of ours. Raises ComboError where it cannot be written."""
    said = PngImagePlugin.PngInfo()
    said.add_text("Software", MADE_BY)
    data = io.BytesIO()
    picture.save(data, "PNG", pnginfo=said)
    with durable.writing(path, "give the command again", "give another file with --out"):
        durable.write_bytes(path, data.getvalue())


def demand_ours(path: Path) -> None:
    """Raises ComboError where a file that combo did not make would be replaced."""
    try:
        with path.open("rb") as file:
            ours = MADE_BY.encode() in file.read(4096)
    except FileNotFoundError:
        return
    except OSError:
        ours = False
    if not ours:
        raise ComboError(f"{path} is there and not of combo's making; give another file with --out")


def font(size: int = 12) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own, which is there on every machine."""
    return ImageFont.load_default(size)


def _block(panel: Panel, height: int | None) -> Image.Image:
    first = next(iter(panel.rows.values()))
    high = height or int(first.shape[1])
    width = max(1, round(first.shape[2] * high / first.shape[1]))
    count, lines = len(first), _lines(panel)
    named = [*panel.rows, *(["sound"] if panel.heard else [])]
    left = 12 + max(round(font().getlength(name)) for name in named)
    strip = count * (width + GAP) - GAP
    needed = max(font(14).getlength(panel.title), *(font().getlength(line) for line, _ in lines), 0)
    below = SOUND + GAP if panel.heard else 0
    tall = TITLE + len(panel.rows) * (high + GAP) + below + LINE * len(lines) + 2 * GAP
    block = Image.new("RGB", (max(left + strip, round(needed) + 8) + GAP, tall), PAPER)
    draw = ImageDraw.Draw(block)
    draw.text((4, 3), panel.title, INK, font(14))
    top = TITLE
    for name, pictures in panel.rows.items():
        draw.text((4, top + high // 2 - 7), name, INK, font())
        for column, picture in enumerate(pictures):
            block.paste(_sized(picture, (width, high)), (left + column * (width + GAP), top))
        top += high + GAP
    if panel.heard is not None:
        draw.text((4, top + SOUND // 2 - 7), "sound", INK, font())
        block.paste(sound_picture(panel.heard, strip), (left, top))
        top += below
    for line, colour in lines:
        draw.text((4, top), line, PALE if colour is None else INK, font())
        if colour is not None:
            draw.rectangle((4, top + 2, 13, top + 11), colour)
        top += LINE
    return block


def _lines(panel: Panel) -> list[tuple[str, tuple[int, ...] | None]]:
    """What stands below a panel's rows, and the colour of what it names."""
    classes = [(f"    {name}", tuple(COLOURS[c].tolist())) for c, name in panel.classes.items()]
    notes = [(note, None) for note in (*panel.notes, panel.unheard) if note]
    return [*(classes if len(classes) > 1 or panel.classes.keys() - {1} else []), *notes]


def sound_picture(heard: Heard, width: int) -> Image.Image:
    """The spectrogram, and above it a line from each window's start to its end."""
    picture = Image.new("RGB", (width, SOUND), PAPER)
    picture.paste(
        Image.fromarray(spectrogram(heard)).resize((width, SOUND - WINDOWS)), (0, WINDOWS)
    )
    draw, scale = ImageDraw.Draw(picture), width / heard.seconds
    for window in heard.windows:
        y = 1 + 5 * (window.frame % 2)
        draw.rectangle((window.start * scale + 1, y, window.end * scale - 1, y + 2), PALE)
    return picture


def _sized(picture: Pixels, size: tuple[int, int]) -> Image.Image:
    image = Image.fromarray(picture)
    return image if image.size == size else image.resize(size, Image.Resampling.NEAREST)
