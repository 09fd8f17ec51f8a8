"""What a network says of a frame, at the frame's own size, and as a file that holds all of it.

A mask is a PNG whose pixels are classes, 0 the background; its palette is what they are painted
in, and a text in it says what was found. So one file is all that is known of a frame, and it is
whole or not there.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, PngImagePlugin
from torch import Tensor

from .. import durable
from ..errors import ComboError, reason_of
from ..media.images import Pixels
from ..media.pictures import Fit
from ..painting import COLOURS

FACTS = "combo"
"""The key of the text that says what is in a mask."""


@dataclass(frozen=True)
class Segment:
    """A class in a frame. area: its share of the frame's pixels.  score: 0..1, the class's share of
    all classes' scores, mean over its pixels."""

    number: int
    name: str
    area: float
    score: float

    def as_json(self) -> dict[str, Any]:
        values = {"area": round(self.area, 6), "score": round(self.score, 4)}
        return {"class": self.number, "name": self.name, **values}


def class_map(scores: Tensor, size: tuple[int, int], fit: Fit) -> Pixels:
    """The class of each pixel of a frame, [H,W] uint8.

    scores: [K,h,w] of the frame as the network saw it.  size: the frame's own (height, width).
    Scores, not classes, are brought to that size, so that outlines are smooth. What a "crop" had
    cut off is background, since nobody looked at it. Holds two planes of the frame's size, however
    many classes there are: those that win nowhere are not looked at again.
    """
    top, left, height, width = _seen(size, (scores.shape[1], scores.shape[2]), fit)
    best = torch.full((height, width), -torch.inf)
    found = torch.zeros((height, width), dtype=torch.uint8)
    for number in scores.argmax(0).unique().tolist():
        plane = F.interpolate(scores[number][None, None].float(), (height, width), mode="bilinear")[
            0, 0
        ]
        wins = plane > best
        best[wins], found[wins] = plane[wins], number
    whole = np.zeros(size, np.uint8)
    whole[top : top + height, left : left + width] = found.numpy()
    return whole


def _seen(size: tuple[int, int], fitted: tuple[int, int], fit: Fit) -> tuple[int, int, int, int]:
    """The part of a frame that the network saw, in the frame's pixels: top, left, height, width.

    `media.pictures.fit_frame` the other way round.
    """
    (height, width), (h, w) = size, fitted
    if fit == "squash" or size == fitted:
        return 0, 0, height, width
    scale = h / height if width * h > height * w else w / width
    high, wide = min(height, round(h / scale)), min(width, round(w / scale))
    return round((height - high) / 2), round((width - wide) / 2), high, wide


def segments(mask: Pixels, scores: Tensor, names: list[str]) -> list[Segment]:
    """What is in a mask, the largest first. scores: [K,h,w], names: of the K classes."""
    areas = np.bincount(mask.ravel(), minlength=len(names)) / mask.size
    winners = scores.argmax(0)
    shares = scores / scores.sum(0, keepdim=True).clamp(min=1e-12)
    return [
        Segment(c, names[c], float(areas[c]), float(shares[c][winners == c].mean()))
        for c in np.argsort(-areas, kind="stable").tolist()
        if c > 0 and areas[c] > 0
    ]


def write_mask(path: Path, mask: Pixels, facts: dict[str, Any]) -> None:
    image = Image.fromarray(mask, "P")
    image.putpalette(COLOURS.tobytes())
    text = PngImagePlugin.PngInfo()
    text.add_text(FACTS, json.dumps(facts))
    data = io.BytesIO()
    image.save(data, "PNG", pnginfo=text, optimize=False)
    durable.write_bytes(path, data.getvalue())


def read_mask(path: Path) -> Pixels:
    """The classes in a mask that was written here, [H,W] uint8. Raises ComboError."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise _damaged(path, error) from None


def read_facts(path: Path) -> dict[str, Any]:
    """What a mask's text says; reads no pixels. Raises ComboError."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return json.loads(image.info[FACTS])
    except (OSError, SyntaxError, ValueError, KeyError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ComboError:
    return ComboError(
        f"{path} is no mask of combo predict, or damaged ({reason_of(error)}); remove it and give "
        "the same command again"
    )
