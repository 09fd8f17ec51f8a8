"""Masks that this or another program saved, one file a frame: found, read and written.

Clip and frame are told by names alone, in any tree: `.../CLIP/.../FRAME.png`, where FRAME ends with
its number and may begin with the clip's name (what AVSBench, AVSegFormer and COMBO save, with or
without a folder for each category), `CLIP_FRAME.png` beside each other, and `CLIP.npy` of all
frames. Frames are numbered from 0 or from 1, the whole tree alike.

What values mean is told by the whole tree too. Object masks: whole numbers of which none is above 1
are 0 and 1, others probabilities in 255ths, or in 65,535ths in 16-bit files with one above 255;
numbers with a point are probabilities. A palette's greys count as they are shown, its colours as
they are stored; transparency over one colour is the mask. Class maps: the stored number is the
class.
"""

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import durable
from .errors import ComboError, MediaError, WrongUsage
from .media.images import SIXTEEN_BIT_MODES, open_image
from .media.labels import demand_nothing_hidden, stored_classes, varying_alpha
from .media.limits import USUAL, Limits
from .media.regular_files import open_regular

if TYPE_CHECKING:
    from torch import Tensor

IMAGES = frozenset({".png", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".webp", ".jpg", ".jpeg"})
ARRAYS = frozenset({".npy"})
LOWEST_TOP = 128
"""A tree with no value of 255 that high has nothing above a half: class numbers, no masks."""

EMPTY = "give a folder that is empty"

Values = NDArray[np.generic]


@dataclass(frozen=True)
class SavedMasks:
    """Where the masks of clips lie below a folder.

    frames: (clip, frame counted from 0) -> file.  clips: clip -> file of all its frames.
    """

    root: Path
    frames: dict[tuple[str, int], Path]
    clips: dict[str, Path]

    @classmethod
    def below(cls, root: Path, names: Iterable[str]) -> "SavedMasks":
        """Look for masks of these clips.

        Raises ComboError: no folder, no mask of them, two files for one frame, numbers that begin
        neither with 0 nor with 1.
        """
        if not root.is_dir():
            raise WrongUsage(f"{root}: no such folder; give the one that holds the masks")
        known, clips = frozenset(names), dict[str, Path]()
        found: dict[tuple[str, int], Path] = {}
        for path in _files(root):
            clip, number = _told(path, root, known)
            if clip is None:
                continue
            other = clips.get(clip) if number is None else found.get((clip, number))
            if other is not None:
                raise ComboError(f"{path} and {other} are both of the same frame; keep one")
            if number is None:
                clips[clip] = path
            else:
                found[clip, number] = path
        if not found and not clips:
            raise ComboError(
                f"{root}: no mask of any of the {len(known)} clips; masks are found as "
                "CLIP/FRAME.png, CLIP_FRAME.png or CLIP.npy, at any depth"
            )
        first = min((number for _, number in found), default=0)
        if first > 1:
            lowest = next(path for (_, n), path in found.items() if n == first)
            raise ComboError(f"{lowest}: the lowest frame; frames are counted from 0 or from 1")
        return cls(root, {(clip, n - first): path for (clip, n), path in found.items()}, clips)

    def demand_frames_of(self, counts: Mapping[str, int]) -> None:
        """Raise ComboError for a clip whose masks have gaps and go on beyond its end: their numbers
        count something else than its frames. counts: clip -> its frames."""
        of_clips: dict[str, list[int]] = {}
        for clip, number in self.frames:
            of_clips.setdefault(clip, []).append(number)
        for clip, numbers in of_clips.items():
            count = counts[clip]
            if sum(number < count for number in numbers) < min(count, len(numbers)):
                beyond = self.frames[clip, max(numbers)]
                raise ComboError(
                    f"{beyond}: {clip} has {count} frames, counted from 0 or from 1 in the whole "
                    f"tree alike; rename its masks by that number"
                )

    def missing(self, clip: str, frames: Sequence[int]) -> list[int]:
        """Those of a clip's frames that have no file."""
        whole = clip in self.clips
        return [] if whole else [n for n in frames if (clip, n) not in self.frames]

    def read(
        self, clip: str, frames: Sequence[int], limits: Limits = USUAL, objects: bool = True
    ) -> Values:
        """The values of frames that are there, [T,H,W], or [T,K,H,W] scores of classes.

        objects: whether they are masks of objects, which count as they are shown; classes count as
        they are stored.
        Raises MediaError naming the file: unreadable, painted in colours, fewer frames than asked
        for, another size than the clip's first mask.
        """
        if clip in self.clips:
            path = self.clips[clip]
            whole = _array(path, limits)
            if whole.ndim not in (3, 4) or len(whole) <= max(frames):
                raise MediaError(path, f"array of {list(whole.shape)}, not [frames, height, width]")
            return whole[list(frames)]
        paths = [self.frames[clip, n] for n in frames]
        masks = [_read(path, limits, objects) for path in paths]
        for path, mask in zip(paths, masks, strict=True):
            if mask.shape != masks[0].shape:
                raise MediaError(
                    path,
                    f"mask of {list(mask.shape)} pixels, the clip's first {list(masks[0].shape)}",
                )
        return np.stack(masks)

    def scale(self, wanted: Iterable[tuple[str, Sequence[int]]], limits: Limits = USUAL) -> float:
        """The value that stands for 1 in object masks: of the whole tree.

        wanted: clips and their frames that are there. Raises MediaError as `read`, ComboError for
        values that are classes.
        """
        top, between, wide = 0, False, False
        for clip, frames in wanted:
            values = self.read(clip, frames, limits)
            if values.dtype.kind == "f":
                return 1.0
            wide = wide or values.dtype.itemsize > 1
            top = max(top, int(values.max()))
            between = between or not bool(np.isin(values, (0, 1, 255, 65535)).all())
            if between and top >= (256 if wide else LOWEST_TOP):
                break
        if between and top < LOWEST_TOP:
            raise ComboError(
                f"{self.root}: no value above {top}, which is neither a mask nor a probability; "
                "class maps are scored against a data set with classes, as --data avss"
            )
        if top <= 1:
            return 1.0
        return 65535.0 if wide and top > 255 else 255.0


def demand_empty(root: Path) -> None:
    """Raises ComboError for a folder that holds something: nothing is written over."""
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ComboError(f"{root} is not empty; {EMPTY}")


def write_clip(root: Path, clip: str, scores: "Tensor", frames: Iterable[int]) -> None:
    """Save what a network says of a clip, so that it scores as it would have unsaved.

    scores: [T,K,H,W] of classes; of two, the probability of the object is saved.  frames: which.
    Raises ComboError where that cannot be written.
    """
    from ..model.metrics import foreground

    with durable.writing(root, f"{EMPTY}, this one or another", EMPTY):
        (root / clip).mkdir(parents=True, exist_ok=True)
        for n in frames:
            path = root / clip / str(n)
            if scores.shape[1] == 2:
                _write_probability(path, foreground(scores[n]).numpy())
            else:
                _write_image(path, scores[n].argmax(0).numpy().astype(np.uint8))


def _write_probability(path: Path, probability: NDArray[np.float32]) -> None:
    """8 bits hold on which side of each threshold of the metrics a pixel lies; where one is 0.5 to
    the last bit, which no 255th is, the numbers themselves are saved."""
    if bool((probability == 0.5).any()):
        data = io.BytesIO()  # the libraries' own words for a full disk say nothing of it
        np.save(data, probability)
        durable.write_bytes(path.with_name(path.name + ".npy"), data.getvalue())
        return
    step = _steps(probability)
    _write_image(path, np.where(step == 0, 0, step + 1).astype(np.uint8))


def _steps(probability: NDArray[np.float32]) -> NDArray[np.int64]:
    """The highest threshold that each probability reaches, by the very numbers of the metrics."""
    import torch

    from ..model.metrics import THRESHOLDS

    edges = torch.linspace(0, 1, THRESHOLDS).numpy()
    return np.searchsorted(edges, probability, side="right") - 1


def _write_image(path: Path, values: NDArray[np.uint8]) -> None:
    data = io.BytesIO()
    Image.fromarray(values).save(data, "PNG")
    durable.write_bytes(path.with_name(path.name + ".png"), data.getvalue())


def _files(root: Path) -> Iterator[Path]:
    """All masks below a folder, in a fixed order."""

    def unlisted(error: OSError) -> None:
        raise ComboError(f"{error.filename}: cannot be listed ({error.strerror})") from error

    for folder, inner, names in os.walk(root, onerror=unlisted):
        inner.sort()
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGES | ARRAYS:
                yield Path(folder, name)


def _told(path: Path, root: Path, known: frozenset[str]) -> tuple[str | None, int | None]:
    """The clip and number that a file's name and folders say; no number: of all its frames."""
    if path.suffix.lower() in ARRAYS and path.stem in known:
        return path.stem, None
    for folder in path.relative_to(root).parents:
        if folder.name in known:
            rest = path.stem.removeprefix(folder.name)
            number = re.search(r"(\d+)\D*$", rest)
            return (folder.name, int(number[1])) if number else (None, None)
    beside = re.fullmatch(r"(.+?)[_\-. ](\d+)", path.stem)
    if beside and beside[1] in known:
        return beside[1], int(beside[2])
    return None, None


def _read(path: Path, limits: Limits, objects: bool) -> Values:
    if path.suffix.lower() in ARRAYS:
        array = _array(path, limits)
        if array.ndim not in (2, 3):
            raise MediaError(path, f"array of {list(array.shape)}, not [height, width]")
        return array
    with open_image(path, None, limits) as image:
        if not objects and image.mode in ("1", "L", "P", *SIXTEEN_BIT_MODES):
            return stored_classes(image, path).astype(np.uint16)
        if image.mode == "F":
            return np.array(image)
        if image.mode in SIXTEEN_BIT_MODES:
            return np.array(image).astype(np.uint16)
        alpha, over_one_colour = varying_alpha(image)
        if alpha is not None and over_one_colour:
            return alpha
        stored = np.array(image, np.uint8) if image.mode in ("1", "L", "P") else None
        colours = np.array(image.convert("RGB"))
    if image.mode in ("1", "L"):
        values = stored
    elif (colours == colours[..., :1]).all():
        values = colours[..., 0]
    else:
        values = stored  # the colours of a palette are there for the eye
    if values is None:
        raise MediaError(path, "a mask in colours, save class numbers or probabilities")
    if alpha is not None:
        demand_nothing_hidden(values, alpha, path)
    return values


def _array(path: Path, limits: Limits) -> Values:
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > limits.bytes:
            raise MediaError(path, f"more bytes than limits.bytes ({int(limits.bytes)})")
        try:
            array = np.load(file, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise MediaError(path, f"no array of numbers ({error})") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise MediaError(path, "no array of numbers")
    if array.dtype.kind == "i" and array.size and array.min() >= 0:
        array = array.astype(np.uint16 if array.max() < 1 << 16 else np.uint64)
    return array.astype(np.uint8) if array.dtype.kind == "b" else array
