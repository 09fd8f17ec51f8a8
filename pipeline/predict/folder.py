"""A folder of predictions of one film, that a killed command goes on with.

plan.json         what is predicted, of what, with what: the same, or a line that says it is not
masks/000000.png  a predicted frame each, whole or not there; see `masks`
overlay.mp4       the film with its masks; overlay.parts/ is what is painted of it so far
contact_sheet.png some frames, and what was predicted
prediction.json   every frame and second in numbers; written last, so that with it all is there
"""

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import durable
from ..errors import ComboError
from ..media.images import Pixels
from ..painting import paint
from ..report.clips import Panel
from ..report.sheet import write_sheet
from .inputs import Film
from .masks import read_facts, read_mask, write_mask
from .overlay import parts_of, write_overlay
from .predictor import Frame, Heard, Predictor, Progress

PLAN, SUMMARY = "plan.json", "prediction.json"
SHOWN, A_ROW, SIDE = 24, 8, 160
"""Frames in a contact sheet, those of a row, and the pixels of their longer side."""

AGAIN = "give the same command again: it goes on where it stopped"
ELSEWHERE = "give another folder with --out"


class PredictionFolder:
    """root: made if it is not there. Raises ComboError when it holds something else."""

    def __init__(self, root: Path, film: Film, predictor: Predictor) -> None:
        self.root, self.film, self.predictor = root, film, predictor
        plan = json.loads(json.dumps({**predictor.described(), "input": _described(film)}))
        with durable.writing(root, AGAIN, ELSEWHERE):
            _claim(root, plan)
            for path in durable.leftovers(root):
                durable.remove(path)

    @property
    def whole(self) -> bool:
        """Whether everything is there already."""
        names = ("overlay.mp4", "contact_sheet.png", SUMMARY)
        return all((self.root / name).exists() for name in names)

    def make(self, told: Progress = lambda *_: None) -> dict[str, Any]:
        """Predict what is not there yet, paint it, and say it: the contents of prediction.json.

        told: hears of the sound, the frames and the painting of each predicted frame once.
        """
        count = len(self.film.clip.times)
        if self.whole:
            with contextlib.suppress(ValueError):  # else it is said again, of what is there
                said = durable.read_json(self.root / SUMMARY)
                for what in ("sound", "frames", "painting"):
                    told(what, count)
                return said
        heard = self.predictor.hear(self.film, told)
        told("sound", count - len(heard.embeddings))
        with durable.writing(self.root, AGAIN, ELSEWHERE):
            self._predict(heard, told)
            self._paint(heard, told)
            summary = self._summary(heard)
            durable.write_json(self.root / SUMMARY, summary)
        return summary

    def _mask(self, number: int) -> Path:
        return self.root / "masks" / f"{number:06d}.png"

    def _predict(self, heard: Heard, told: Progress) -> None:
        first = next(
            (n for n in range(heard.first, heard.end) if not self._mask(n).exists()), heard.end
        )
        told("frames", len(self.film.clip.times) - (heard.end - first))
        if first < heard.end:  # what was painted with other masks is nothing to go on with
            shutil.rmtree(parts_of(self.root / "overlay.mp4"), ignore_errors=True)
        done = first
        for frame in self.predictor.frames(self.film, heard, first):
            write_mask(self._mask(frame.number), frame.mask, _facts(frame))
            told("frames", frame.number + 1 - done)
            done = frame.number + 1

    def _paint(self, heard: Heard, told: Progress) -> None:
        count = len(self.film.clip.times)
        wanted = set(np.linspace(0, count - 1, min(SHOWN, count)).round().astype(int).tolist())
        cells: list[tuple[float, Pixels, Pixels]] = []

        def mask_of(number: int) -> Pixels | None:
            there = heard.first <= number < heard.end
            return read_mask(self._mask(number)) if there else None

        def shown(number: int, picture: Pixels) -> None:
            if number in wanted:
                mask = mask_of(number)
                painted = picture if mask is None else paint(picture, mask)
                cells.append((self.film.clip.times[number], _small(picture), _small(painted)))

        sound = self.predictor.stages.sound
        write_overlay(
            self.root / "overlay.mp4",
            self.film,
            mask_of,
            sound.settings.stream,
            sound.limits,
            lambda passed: told("painting", passed),
            shown,
        )
        write_sheet(self.root / "contact_sheet.png", _panels(self.film.name, cells))

    def _summary(self, heard: Heard) -> dict[str, Any]:
        film = self.film
        frames = [read_facts(self._mask(number)) for number in range(heard.first, heard.end)]
        described = self.predictor.described()
        return {
            "input": film.clip.name,
            "run": described["run"],
            "checkpoint": described["checkpoint"],
            "classes": self.predictor.classes,
            "frames_per_second": film.fps,
            "between_frames": "the mask of the nearest predicted frame",
            "without_sound": len(film.clip.times) - len(frames),
            "frames": frames,
            "seconds": _seconds(film, frames),
        }


def predicted_overlay(path: Path, film: Film, predictor: Predictor) -> None:
    """Only the overlay, of a film short enough for its masks to be held. Raises MediaError."""
    heard = predictor.hear(film)
    masks = {frame.number: frame.mask for frame in predictor.frames(film, heard)}
    sound = predictor.stages.sound
    write_overlay(path, film, masks.get, sound.settings.stream, sound.limits)


def _described(film: Film) -> dict[str, Any]:
    """An input, and what tells it from another one of its name."""
    clip = film.clip
    paths = list(dict.fromkeys([film.video] if film.video else list(clip.frames)))
    files = [path for path in (*paths, clip.sound) if isinstance(path, Path)]
    stamps = [path.stat() for path in dict.fromkeys(files)]
    return {
        "name": clip.name,
        "bytes": sum(stamp.st_size for stamp in stamps),
        "changed": max((stamp.st_mtime_ns for stamp in stamps), default=0),
        "frames": len(clip.times),
        "fps": film.fps,
        "first": clip.times[0],
    }


def _claim(root: Path, plan: Mapping[str, Any]) -> None:
    """A folder that holds nothing, or this plan. Raises ComboError."""
    there = durable.listed(root)
    if root.is_file() or (there and not (root / PLAN).exists()):
        raise ComboError(f"{root} is not empty, and no folder of predictions; {ELSEWHERE}")
    if not there:
        durable.write_json(root / PLAN, plan)
        return
    try:
        known = durable.read_json(root / PLAN)
    except ValueError:
        known = {}
    unlike = [key for key in plan.keys() | known.keys() if plan.get(key) != known.get(key)]
    if unlike:
        raise ComboError(
            f"{root} holds predictions with another {min(unlike).replace('_', ' ')}; "
            f"remove it, or {ELSEWHERE}"
        )


def _facts(frame: Frame) -> dict[str, Any]:
    found = [segment.as_json() for segment in frame.segments]
    return {"frame": frame.number, "time": round(frame.time, 6), "segments": found}


def _seconds(film: Film, frames: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What sounds in each second: every class of the frames predicted in it, or, at less than a
    frame a second, of the frame that is held there; the largest first."""
    inside: dict[int, list[Mapping[str, Any]]] = {}
    known = {frame["frame"]: frame for frame in frames}
    for frame in frames:
        inside.setdefault(int(frame["time"]), []).append(frame)
    end = film.clip.times[-1] + film.clip.span / 2
    found: list[dict[str, Any]] = []
    for second in range(max(1, int(np.ceil(end - 1e-6)))):
        held = known.get(film.at(second + 0.5))
        some = inside.get(second) or ([] if held is None else [held])
        areas: dict[str, float] = {}
        for frame in some:
            for each in frame["segments"]:
                areas[each["name"]] = max(areas.get(each["name"], 0.0), each["area"])
        names = sorted(areas, key=lambda name: -areas[name])
        found.append({"second": second, "predicted": bool(some), "sounds": names})
    return found


def _small(picture: Pixels) -> Pixels:
    height, width = picture.shape[:2]
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


def _panels(name: str, cells: Sequence[tuple[float, Pixels, Pixels]]) -> list[Panel]:
    panels: list[Panel] = []
    for start in range(0, len(cells), A_ROW):
        times, pictures, painted = zip(*cells[start : start + A_ROW], strict=True)
        title = f"{name}, {times[0]:.1f} to {times[-1]:.1f} s"
        panels.append(Panel(title, {"frames": np.stack(pictures), "prediction": np.stack(painted)}))
    return panels
