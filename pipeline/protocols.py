"""Scores in every protocol as people read them, of a network or of saved masks: one wording."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Protocols = Mapping[str, tuple[float, float | None]]
"""Protocol -> M_J, M_F, 0..1; M_F None where the protocol has none."""

_OF_OBJECTS = "J of a frame: of the object; of the background where the truth is empty. "
_OF_CLASSES = "IoU and F a frame and class; a class counts where truth or prediction show it. "

OBJECTS = {
    "avsbench": _OF_OBJECTS + "M_J: the mean over a clip's frames, then over clips. M_F: a clip's "
    "best of 255 thresholds for the mean over its frames with an object (0 without any), then the "
    "mean over clips. The benchmark's, COMBO's with a batch of one clip.",
    "frame": "Every frame once. M_F: one threshold, the best for all frames with an object.",
    "frame_with_object": "The same without the frames whose truth is empty.",
    "dataset": "The object's pixels of all frames in one pot; one threshold for M_F.",
    "dataset_two_classes": "The mean of that IoU and the background's, often told as mIoU. No M_F.",
}
"""What each protocol of object labels (S4, MS3) means."""

CLASSES = {
    "avsbench": _OF_CLASSES + "The mean over all classes, the background too; a class that never "
    "counted scores 0. The benchmark's and COMBO's.",
    "avsbench_without_background": "The same without class 0.",
    "avsbench_published_without_background": "Without the last class instead: what the public "
    "code logs as noBg.",
    "seen_classes": "The mean over the classes that counted somewhere.",
    "dataset": "The pixels of all frames in one pot, over the classes seen.",
}
"""What each protocol of semantic labels (AVSS) means."""

HEADER = ("protocol", "M_J", "M_F")


def rows(protocols: Protocols) -> Iterator[tuple[str, str, str]]:
    """In percent, under HEADER."""
    for name, (j, f) in protocols.items():
        yield name, f"{100 * j:.2f}", "" if f is None else f"{100 * f:.2f}"


def csv_of(header: Sequence[object], lines: Iterable[Sequence[object]]) -> bytes:
    """A CSV file. Scores have six places, None is empty."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows([f"{x:.6f}" if isinstance(x, float) else x for x in line] for line in lines)
    return text.getvalue().encode()


def as_json(protocols: Protocols, false_positive_rate: float | None) -> dict[str, Any]:
    """Under the names that papers use; M_J and M_F are the benchmark's."""
    m_j, m_f = protocols["avsbench"]
    return {
        "M_J": round(m_j, 4),
        "M_F": round(m_f or 0.0, 4),
        "false_positive_rate": false_positive_rate,
        "protocols": {
            name: {"M_J": round(j, 4), "M_F": None if f is None else round(f, 4)}
            for name, (j, f) in protocols.items()
        },
    }
