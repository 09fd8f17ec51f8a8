"""`combo sample`: a data set made by this project, in the three layouts AVSBench is published in.

Moving shapes sound in voices of their own; several are visible, the ground truth marks only those
that are heard (`sample_scenes`). Folders, file names, CSV columns, value ranges and numbers of
annotated frames are those of the published sets, so that what runs on the sample runs on AVSBench.
"""

import contextlib
import csv
import json
import shutil
import wave
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image

from . import durable
from .errors import ComboError
from .sample_scenes import KINDS, RATE, Pixels, Samples, Scene, film

SPLITS = ("train", "val", "test")
SIZE = (224, 224)
AVSS_SIZES = ((240, 320), (180, 320), (320, 240))
"""Height and width: AVSS frames come as they are filmed, so that cropping and squashing matter."""

MARK = "sample.json"
"""Written last: a folder without it is no complete sample."""

_STAGING = ".sample.partial"
_VERSION = 2
_ORDER = 4
"""Sets the generators of the order of kinds apart from those of the clips."""

_BYTES_PER_CLIP = 1_500_000

Counts = tuple[int, int, int]
OnClip = Callable[[int, int], None]


def write_sample(
    root: Path,
    s4: Counts = (24, 6, 8),
    ms3: Counts = (24, 6, 8),
    avss: Counts = (24, 6, 8),
    seed: int = 0,
    progress: OnClip | None = None,
) -> bool:
    """Write the sample below `root`; the same arguments give the same bytes.

    s4, ms3, avss: clips in train, val and test; a set of zeros is left out.
    progress: called with (clips done, clips in all).
    Returns False when `root` already holds this very sample, True when it was written. A killed
    run is begun again by the next. Raises ComboError when `root` holds anything else (nothing is
    overwritten), for senseless counts, or when the disk is full.
    """
    sets = {"s4": s4, "ms3": ms3, "avss": avss}
    for name, counts in sets.items():
        if len(counts) != 3 or min(counts) < 0:
            raise ComboError(f"{name} {counts}: give clips in train, val and test, as in 24,6,8")
    total = sum(map(sum, sets.values()))
    if not total:
        raise ComboError("a sample without a clip; give at least one number above 0")
    arguments = {"version": _VERSION, "seed": seed, **{k: list(v) for k, v in sets.items()}}
    staging = root / _STAGING
    try:
        if _is_there(root, arguments):
            return False
        if _arguments(staging) != arguments:
            if staging.exists():
                shutil.rmtree(staging)
            root.mkdir(parents=True, exist_ok=True)
            _check_space(root, total * _BYTES_PER_CLIP)
            _write_all(staging, sets, seed, _counter(progress, total))
            mark = {"arguments": arguments, "contents": _contents(staging)}
            (staging / MARK).write_text(json.dumps(mark, indent=1) + "\n")
        # From here on the staged sample is complete: a killed run is finished, not begun again.
        for part in sorted(staging.iterdir(), key=lambda path: path.name == MARK):
            part.rename(root / part.name)
        staging.rmdir()
    except OSError as error:
        raise ComboError(
            f"{error.filename or root}: cannot write the sample ({error.strerror}); choose another "
            "folder: combo sample DIR"
        ) from error
    return True


def _is_there(root: Path, arguments: dict[str, Any]) -> bool:
    """True for this sample, False for a folder to write into. Raises ComboError for others."""
    found = {path.name for path in root.iterdir()} if root.exists() else set[str]()
    if _arguments(root) == arguments:
        contents = json.loads((root / MARK).read_text())["contents"]
        if _STAGING not in found and contents == _contents(root):
            return True
        if contents != _contents(root):
            raise ComboError(
                f"{root}: a sample from which files were changed or removed; delete the folder and "
                "make it again: combo sample DIR"
            )
        shutil.rmtree(root / _STAGING)
        return True
    unfinished = _arguments(root / _STAGING) == arguments and MARK not in found
    ours = {_STAGING, "AVSBench_object", "AVSBench_semantic"} if unfinished else {_STAGING}
    if found - ours:
        what = "a sample of other settings" if MARK in found else f"not empty ({min(found - ours)})"
        raise ComboError(f"{root}: is {what}; give a new folder: combo sample DIR")
    return False


def _arguments(folder: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return json.loads((folder / MARK).read_text())["arguments"]
    return None


def _contents(folder: Path) -> dict[str, int]:
    """Number and bytes of the sample's files, to see at a glance whether all are there."""
    files = [p for part in sorted(folder.glob("AVSBench_*")) for p in part.rglob("*.*")]
    sizes = [path.stat().st_size for path in files if path.is_file()]
    return {"files": len(sizes), "bytes": sum(sizes)}


def _check_space(root: Path, needed: int) -> None:
    free = durable.free_bytes(root)
    if free < needed:
        raise ComboError(
            f"{root}: the sample needs about {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are "
            "free; choose another disk or fewer clips"
        )


def _counter(progress: OnClip | None, total: int) -> Callable[[], None]:
    done = 0

    def one_more() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return one_more


def _write_all(
    root: Path, sets: dict[str, Counts], seed: int, one_more: Callable[[], None]
) -> None:
    """Every clip has a generator of its own, so that more clips leave the others as they are."""
    writers = {"s4": _write_s4, "ms3": _write_ms3, "avss": _write_avss}
    for number, (name, write) in enumerate(writers.items()):
        clips = (
            (
                split,
                index,
                _lead(seed, number, which, index),
                np.random.default_rng([seed, number, which, index]),
            )
            for which, split in enumerate(SPLITS)
            for index in range(sets[name][which])
        )
        if sum(sets[name]):
            write(root, clips, one_more)


Clips = Iterable[tuple[str, int, int, Generator]]
"""Split, number in the split, the kind that sounds first, and the clip's generator."""


def _write_s4(root: Path, clips: Clips, one_more: Callable[[], None]) -> None:
    home = root / "AVSBench_object" / "Single-source"
    rows: list[Sequence[object]] = []
    for split, index, lead, rng in clips:
        visible, sources = _cast(rng, 5, lead, steady=True)
        scene = film(rng, SIZE, visible, sources)
        category = KINDS[sources[0][0]].name
        start = 1000 * index
        name = f"{split}{index:05d}shapes_{start}"
        rows.append((name, start, category, split))
        data = home / "s4_data"
        masks = _masks(scene)
        for t, frame in enumerate(scene.frames, 1):
            place = Path(split, category, name, f"{name}_{t}.png")
            _write_image(data / "visual_frames" / place, frame)
            if t == 1 or split != "train":
                _write_image(data / "gt_masks" / place, masks[t - 1] > 0)
        _write_wav(data / "audio_wav" / split / category / f"{name}.wav", scene.sound)
        one_more()
    _write_csv(home / "s4_meta_data.csv", ("name", "start_time", "category", "split"), rows)


def _write_ms3(root: Path, clips: Clips, one_more: Callable[[], None]) -> None:
    home = root / "AVSBench_object" / "Multi-sources"
    rows: list[Sequence[object]] = []
    for split, index, lead, rng in clips:
        scene = film(rng, SIZE, *_cast(rng, 5, lead, steady=False))
        name = f"{split}{index:05d}shapes"
        rows.append((name, split))
        data = home / "ms3_data"
        masks = _masks(scene)
        for t, frame in enumerate(scene.frames, 1):
            _write_image(data / "visual_frames" / name / f"{name}.mp4_{t}.png", frame)
            _write_image(data / "gt_masks" / split / name / f"{name}_{t}.png", masks[t - 1])
        _write_wav(data / "audio_wav" / split / f"{name}.wav", scene.sound)
        one_more()
    _write_csv(home / "ms3_meta_data.csv", ("video_id", "split"), rows)


def _write_avss(root: Path, clips: Clips, one_more: Callable[[], None]) -> None:
    home = root / "AVSBench_semantic"
    rows: list[Sequence[object]] = []
    palette = _class_colours(len(KINDS) + 1)
    for split, index, lead, rng in clips:
        subset = ("v1s", "v1m", "v2")[index % 3]
        seconds = 10 if subset == "v2" else 5
        visible, sources = _cast(rng, seconds, lead, steady=subset == "v1s")
        scene = film(rng, AVSS_SIZES[int(rng.integers(len(AVSS_SIZES)))], visible, sources)
        video, start = f"{split}{index:05d}"[-11:], 10_000 * index
        name = f"{video}_{start}_{start + 1000 * seconds}"
        heard = sorted({KINDS[kind].name for now in sources for kind in now})
        minute, second = divmod(start // 1000, 60)
        rows.append((video, name, minute, second, "_".join(heard), split, subset))
        folder = home / subset / name
        for t, frame in enumerate(scene.frames):
            _write_image(folder / "frames" / f"{t}.jpg", frame)
            if t == 0 or subset != "v1s" or split != "train":
                labels = scene.labels[t]
                _write_image(folder / "labels_semantic" / f"{t}.png", labels)
                _write_image(folder / "labels_rgb" / f"{t}.png", palette[labels])
        _write_wav(folder / "audio.wav", scene.sound)
        one_more()
    names = ["background", *(kind.name for kind in KINDS)]
    numbering = {name: number for number, name in enumerate(names)}
    (home / "label2idx.json").write_text(json.dumps(numbering))
    header = ("vid", "uid", "s_min", "s_sec", "a_obj", "split", "label")
    _write_csv(home / "metadata.csv", header, rows)


def _lead(seed: int, number: int, which: int, index: int) -> int:
    """Every kind leads once in six clips, in an order drawn anew for every six.

    A fixed order would pair equals whenever sounds are swapped by a multiple of six clips.
    """
    block, place = divmod(index, len(KINDS))
    order = np.random.default_rng([seed, number, which, block, _ORDER])
    return int(order.permutation(len(KINDS))[place])


def _cast(
    rng: Generator, seconds: int, lead: int, steady: bool
) -> tuple[list[int], list[tuple[int, ...]]]:
    """Who is visible, in random depth order, and who of them sounds in each second.

    lead: a kind that is visible and sounds in the first second. steady: it alone sounds throughout;
    otherwise one or two sound and may change every second. One visible kind at least is silent.
    """
    others = [int(k) for k in rng.permutation(len(KINDS)) if k != lead]
    visible = [lead, *others[: int(rng.integers(1, 3))]]
    choir: list[tuple[int, ...]] = [(lead,)]
    if not steady and len(visible) > 2 and rng.random() < 0.5:
        choir = [(lead, visible[1])]
    while len(choir) < seconds:
        now = choir[-1]
        if not steady and rng.random() < 0.3:
            voices = int(rng.integers(1, len(visible)))
            now = tuple(int(k) for k in rng.permutation(visible)[:voices])
        choir.append(now)
    return [int(k) for k in rng.permutation(visible)], choir


def _masks(scene: Scene) -> Pixels:
    return np.where(scene.labels > 0, np.uint8(255), np.uint8(0))


def _class_colours(count: int) -> Pixels:
    """[count,3]: the customary colours of segmentation classes.

    The bits of the number, three at a time, fill red, green and blue from the top bit down.
    """
    numbers = np.arange(count)
    colours = np.zeros((count, 3), np.uint8)
    for digit in range(3):
        for channel in range(3):
            bit = (numbers >> (3 * digit + channel)) & 1
            colours[:, channel] |= (bit << (7 - digit)).astype(np.uint8)
    return colours


def _write_image(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The quality is a JPEG's, the level a PNG's; each format passes over the other's.
    Image.fromarray(pixels).save(path, quality=92, compress_level=3)


def _write_wav(path: Path, sound: Samples) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.rint(sound * 32767).astype("<i2").tobytes())


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
