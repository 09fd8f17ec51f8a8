"""What a run tells while it goes: metrics.jsonl, and the same for TensorBoard.

Every entry is on its way to the disk when `write` returns. TensorBoard's own writer hands its bytes
to a thread, which on a full disk dies with a traceback; here they are appended like the lines are.
"""

import io
import json
import math
import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from PIL import Image
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from .. import durable
from ..media.images import Pixels
from .presets import RunSettings
from .run_folder import RunFolder

_EVENTS: Any = event_pb2  # their classes are made when they are imported
_SUMMARIES: Any = summary_pb2


class Journal:
    """Log entries of a run from an iteration on; what stands there of later ones is dropped, and of
    evaluations after `evaluated`, which are made again.

    Raises ComboError when they cannot be written.
    """

    def __init__(self, run: RunFolder, iteration: int, evaluated: int) -> None:
        self.run, self._begun = run, iteration
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._events = run.tensorboard / name
        with run.writing():
            kept, again = self._truncate(iteration, evaluated)
            run.tensorboard.mkdir(exist_ok=True)
            self._append(_EVENTS.Event(wall_time=time.time(), file_version="brain.Event:2"))
            start = _EVENTS.SessionLog(status=_EVENTS.SessionLog.START)
            # TensorBoard drops what it has of this step and later ones: the iteration at which a
            # run is resumed stays.
            first = iteration if again else iteration + 1
            self._append(_EVENTS.Event(wall_time=time.time(), step=first, session_log=start))
            for line in kept if again else ():
                if line["iteration"] == iteration:
                    self._plot(iteration, line.get("kind", ""), line)

    def write(self, iteration: int, kind: str, values: Mapping[str, Any]) -> None:
        """Add an entry. What is no number is null, since JSON has no word for it."""
        said = {k: None if _is_nothing(v) else v for k, v in values.items()}
        line = json.dumps({"iteration": iteration, "kind": kind, **said}, allow_nan=False)
        with self.run.writing():
            with self.run.metrics.open("a") as file:
                file.write(line + "\n")
            self._plot(iteration, kind, said)

    def note_changes(self, settings: RunSettings) -> None:
        """Settings that the run goes on with otherwise than before."""
        before, now = asdict(self.run.settings().train), asdict(settings.train)
        if changed := {name: value for name, value in now.items() if value != before[name]}:
            self.run.write_settings(settings)
            self.write(self._begun, "settings", changed)

    def show(self, iteration: int, clips: Iterable[tuple[str, Pixels]]) -> None:
        """Add pictures of validation clips, [H,W,3] uint8 each, to what TensorBoard shows."""
        shown = [
            _SUMMARIES.Summary.Value(tag=f"val/{name}", image=_image(picture))
            for name, picture in clips
        ]
        summary = _SUMMARIES.Summary(value=shown)
        with self.run.writing():
            self._append(_EVENTS.Event(wall_time=time.time(), step=iteration, summary=summary))

    def _plot(self, iteration: int, kind: str, values: Mapping[str, Any]) -> None:
        """The numbers of an entry, for TensorBoard."""
        shown = [
            _SUMMARIES.Summary.Value(tag=f"{kind}/{name}", simple_value=value)
            for name, value in values.items()
            if isinstance(value, int | float) and name != "iteration"
        ]
        summary = _SUMMARIES.Summary(value=shown)
        self._append(_EVENTS.Event(wall_time=time.time(), step=iteration, summary=summary))

    def _append(self, event: Any) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        with self._events.open("ab") as file:
            file.write(record.getvalue())

    def _truncate(self, iteration: int, evaluated: int) -> tuple[list[dict[str, Any]], bool]:
        """Drop entries after an iteration, which are written again, and what a kill cut off.

        Returns the others, and whether an evaluation at this very iteration was dropped.
        """
        try:
            found = durable.read_bytes(self.run.metrics)
        except FileNotFoundError:
            return [], False
        except ValueError as error:
            raise self.run.damaged(self.run.metrics.name, error) from None
        kept: list[tuple[bytes, dict[str, Any]]] = []
        again = False
        for line in found.splitlines():
            entry = _entry(line)
            if entry is None or entry["iteration"] > iteration:
                continue
            if entry.get("kind") == "val" and entry["iteration"] > evaluated:
                again = again or entry["iteration"] == iteration
            else:
                kept.append((line, entry))
        durable.write_bytes(self.run.metrics, b"".join(line + b"\n" for line, _ in kept))
        return [entry for _, entry in kept], again


def _image(picture: Pixels) -> Any:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90, subsampling=0)
    height, width = picture.shape[:2]
    encoded = {"colorspace": 3, "encoded_image_string": file.getvalue()}
    return _SUMMARIES.Summary.Image(height=height, width=width, **encoded)


def _is_nothing(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _entry(line: bytes) -> dict[str, Any] | None:
    """An entry; None for a line that is none."""
    try:
        entry = json.loads(line)
        return entry if isinstance(entry["iteration"], int) else None
    except (ValueError, KeyError, TypeError):
        return None
