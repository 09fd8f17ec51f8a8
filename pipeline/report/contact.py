"""A contact sheet of a data set: some clips of each split, a frame beside it with its label."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..errors import MediaError
from ..painting import COLOURS
from .raw import RawClips
from .sheet import INK, LINE, PALE, PAPER, TITLE, font, write_png

CLIPS, ACROSS, SIDE, GAP = 24, 4, 144, 8
"""Clips shown of a split, tiles side by side, pixels of a picture's side, and between tiles."""

WIDE, TALL = 2 * SIDE + GAP, SIDE + 2 * LINE + GAP
WRONG = (190, 30, 30)


def some_of(count: int) -> list[int]:
    """Places of the clips shown: evenly spread, the first and the last among them."""
    return np.linspace(0, count - 1, min(count, CLIPS)).round().astype(int).tolist()


def write_contact_sheet(
    path: Path, splits: Sequence[RawClips], on_clip: Callable[[], None] = lambda: None
) -> list[str]:
    """Write the sheet; returns a line for each clip shown that cannot be read."""
    wrong: list[str] = []
    blocks = [_block(split, wrong, on_clip) for split in splits]
    sheet = Image.new("RGB", (blocks[0].width, sum(b.height for b in blocks)), PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    write_png(path, sheet)
    return wrong


def _block(split: RawClips, wrong: list[str], on_clip: Callable[[], None]) -> Image.Image:
    clips, classes = split.there.clips, split.there.plan.classes
    places = some_of(len(clips))
    rows = -(-len(places) // ACROSS)
    named = list(enumerate(classes))[1:] if len(classes) > 2 else []
    legend = -(-len(named) // 8) * LINE + (GAP if named else 0)
    size = (ACROSS * (WIDE + GAP) + GAP, TITLE + legend + rows * TALL + GAP)
    block = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(block)
    draw.text((GAP, 3), f"{split.there.where}: {len(places)} of {len(clips)} clips", INK, font(14))
    for place, (number, name) in enumerate(named):
        x, y = GAP + place % 8 * (size[0] // 8), TITLE + place // 8 * LINE
        draw.rectangle((x, y + 2, x + 9, y + 11), tuple(COLOURS[number].tolist()))
        draw.text((x + 13, y), _fitting(name, size[0] // 8 - 16), INK, font())
    for place, number in enumerate(places):
        x = GAP + place % ACROSS * (WIDE + GAP)
        y = TITLE + legend + place // ACROSS * TALL
        problem = _tile(block, (x, y), split, number)
        if problem:
            wrong.append(f"{split.there.where} {clips.names[number]}: {problem}")
        on_clip()
    return block


def _tile(block: Image.Image, corner: tuple[int, int], split: RawClips, number: int) -> str:
    """Draw one clip; returns what is wrong with it, or ""."""
    (x, y), clip = corner, split.there.clips[number]
    draw = ImageDraw.Draw(block)
    category = f" ({clip.category or clip.subset})" if clip.category or clip.subset else ""
    problem = ""
    try:
        panel, says = split.tile(clip)
        for column, pictures in enumerate(panel.rows.values()):
            picture = Image.fromarray(pictures[0])
            picture.thumbnail((SIDE, SIDE))
            block.paste(picture, (x + column * (SIDE + GAP), y))
        if clip.sound is None or not clip.sound.exists():
            problem = "no sound file"
    except MediaError as error:
        says, problem = "cannot be read", str(error)
        draw.rectangle((x, y, x + WIDE, y + SIDE), outline=WRONG)
        for row, start in enumerate(range(0, len(problem), 44)):
            draw.text((x + 6, y + 6 + row * LINE), problem[start : start + 44], WRONG, font())
    draw.text((x, y + SIDE + 2), _fitting(clip.name + category, WIDE), INK, font())
    colour = WRONG if problem else PALE
    said = f"{says}; {problem}" if problem == "no sound file" else says
    draw.text((x, y + SIDE + 2 + LINE), _fitting(said, WIDE), colour, font())
    return problem


def _fitting(text: str, width: int) -> str:
    """As much of a text as has room."""
    if font().getlength(text) <= width:
        return text
    while text and font().getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
