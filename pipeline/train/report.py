"""Pictures of what a network saw and what it said."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...model.maskige import reference_palette
from .. import durable
from ..media.images import Pixels
from ..media.labels import LABEL_IGNORED
from .loader import StoredBatch

TITLE, GAP = 16, 4


@dataclass(frozen=True)
class Panel:
    """One clip: its frames [T,H,W,3], Maskiges where there are any, truth and prediction, all
    painted, uint8, by name.
    """

    title: str
    rows: Mapping[str, Pixels]


def panel(title: str, clip: StoredBatch, scores: Tensor) -> Panel:
    """A clip of a batch of one. scores: [T, K, H, W] class scores, zeros where no frame is."""
    there = clip.present[0]
    frames = _pictures(clip.frames[0][there])
    rows = {"frame": frames}
    if (maskige := clip.to(torch.device("cpu")).maskige) is not None:
        rows["Maskige"] = _pictures(maskige[0][there])
    rows["truth"] = _overlay(frames, clip.labels[0][there].numpy())
    rows["prediction"] = _overlay(frames, scores[there].argmax(1).numpy().astype(np.uint8))
    return Panel(title, rows)


def contact_sheet(path: Path, panels: Sequence[Panel]) -> None:
    """Write a PNG: a block a clip; a row for each of a panel's; a column a frame."""
    height, width = panels[0].rows["frame"].shape[1:3]
    columns = max(len(each.rows["frame"]) for each in panels)
    block = TITLE + len(panels[0].rows) * (height + GAP)
    label = 72
    sheet = Image.new("RGB", (label + columns * (width + GAP), block * len(panels)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, each in enumerate(panels):
        top = place * block
        draw.text((4, top + 2), each.title, fill="black")
        for row, (name, pictures) in enumerate(each.rows.items()):
            y = top + TITLE + row * (height + GAP)
            draw.text((4, y + height // 2), name, fill="black")
            for column, picture in enumerate(pictures):
                sheet.paste(Image.fromarray(picture), (label + column * (width + GAP), y))
    data = io.BytesIO()
    sheet.save(data, "PNG")
    durable.write_bytes(path, data.getvalue())


def _pictures(tensor: Tensor) -> Pixels:
    return tensor.permute(0, 2, 3, 1).numpy()


def _overlay(frames: Pixels, labels: Pixels) -> Pixels:
    """Frames in grey with each class but the background in its colour; ignored pixels white."""
    grey = frames.mean(-1, keepdims=True).repeat(3, -1) * 0.5
    colours = reference_palette().numpy().astype(np.float32)
    painted = np.where(labels[..., None] > 0, 0.25 * grey + 0.75 * colours[labels], grey)
    painted[labels == LABEL_IGNORED] = 255
    return painted.astype(np.uint8)
