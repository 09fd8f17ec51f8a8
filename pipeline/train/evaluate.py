"""M_J and M_F of a run on a split, with the right sound or with another one on purpose."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor

from ...model.interface import Network
from ...model.metrics import ObjectMetrics, SemanticMetrics, foreground
from ...model.transfers import send
from .. import protocols, remedies
from ..devices import float32_products
from ..errors import ComboError, unknown
from ..jobs.stopping import Stop, Stopped
from ..source import choose_variants, open_source
from . import checkpoint
from .loader import Batch, ClipReader, StoredBatch
from .processes import ALONE, Processes
from .run_folder import RunFolder
from .sounds import FITTING, Sounds

SoundCondition = Literal["right", "swapped", "silent", "noise"]
PRECISION = "fp32"
"""What every evaluation computes in, in training and after it: its numbers can be compared."""
AT_ONCE = {"cuda": 8}
"""Clips that go through a network together, by kind of device; on a CPU one alone is as fast."""
SOUNDS: tuple[SoundCondition, ...] = ("right", "swapped", "silent", "noise")


@dataclass(frozen=True)
class Evaluation:
    """Scores of one network on one split with one sound.

    m_j, m_f: 0..1, by the AVSBench protocol.  protocols: every protocol by name -> M_J, M_F.
    false_positive_rate: share of the clips where something is segmented although nothing audible
    is visible; None without such clips.  clips: name -> (M_J, M_F).  left_out: clips that failed in
    preprocessing.  without_labels: clips that say nothing of a network.
    classes: of semantic labels, those seen: name -> M_J, M_F, frames it counts in.
    segmented: share of the labelled frames' pixels that are not called background.  unchanged:
    share of them that are called the same as with the right sound; None where that was not heard.
    without_sound: clips left out, for which there was no such sound.
    """

    sound: str
    m_j: float
    m_f: float
    protocols: dict[str, tuple[float, float | None]]
    false_positive_rate: float | None
    clips: dict[str, tuple[float, float | None]]
    left_out: int
    without_labels: int
    classes: dict[str, tuple[float, float, int]]
    segmented: float
    unchanged: float | None
    without_sound: int


@dataclass
class _Tally:
    """What is counted with one sound. clips: in the order of the turns, None without a sound."""

    sound: str
    metrics: ObjectMetrics | SemanticMetrics
    clips: list[tuple[str, Any] | None] = field(default_factory=list)
    pixels: int = 0
    segmented: int = 0
    same: int = 0

    def add(self, name: str, scores: Tensor, labels: Tensor, right: Tensor | None) -> Tensor:
        """Count a clip. scores: [T,K,H,W] of its labelled frames.  right: each pixel's class with
        the right sound.  Returns the same with this one, [T,H,W]."""
        self.metrics.update(scores, labels, audible=self.sound in FITTING)
        self.clips.append((name, self.metrics.clips[-1]))
        called = foreground(scores) > 0.5 if scores.shape[1] == 2 else scores.argmax(1)
        self.pixels += called.numel()
        self.segmented += int(called.count_nonzero())
        self.same += 0 if right is None else int((called == right).count_nonzero())
        return called

    def join(self, shares: Sequence["_Tally"]) -> None:
        """Take what processes that took turns have counted, in the order of the turns."""
        turns = zip_longest(*(share.clips for share in shares))
        self.clips = [each for turn in turns for each in turn]
        self.metrics.clips = [each[1] for each in self.clips if each is not None]
        self.metrics.false_alarms = [a for share in shares for a in share.metrics.false_alarms]
        for name in ("pixels", "segmented", "same"):
            setattr(self, name, sum(getattr(share, name) for share in shares))

    def result(self, reader: ClipReader, right: bool) -> Evaluation:
        """right: whether the right sound was heard, too."""
        result = self.metrics.result()
        main = result.protocols["avsbench"]
        names = [each[0] for each in self.clips if each is not None]
        return Evaluation(
            sound=self.sound,
            m_j=main.M_J,
            m_f=main.M_F or 0.0,
            protocols={name: (s.M_J, s.M_F) for name, s in result.protocols.items()},
            false_positive_rate=result.false_positive_rate,
            clips={n: (s.M_J, s.M_F) for n, s in zip(names, result.clips, strict=True)},
            left_out=len(reader.left_out),
            without_labels=len(reader) - len(reader.labelled),
            classes=_per_class(self.metrics, reader.plan.classes),
            segmented=self.segmented / self.pixels,
            unchanged=self.same / self.pixels if right else None,
            without_sound=len(reader.labelled) - len(names),
        )


def measure(
    network: Network,
    reader: ClipReader,
    device: torch.device,
    sound: SoundCondition = "right",
    on_clip: Callable[[StoredBatch, Tensor], None] | None = None,
    stop: Stop | None = None,
    together: Processes = ALONE,
    at_once: int | None = None,
) -> Evaluation:
    """As `measure_sounds`, with one sound."""
    seen = on_clip and (lambda _, clip, scores: on_clip(clip, scores))
    of_sounds = measure_sounds(network, reader, device, [sound], {}, seen, stop, together, at_once)
    return of_sounds[sound]


@torch.inference_mode()
@float32_products()
def measure_sounds(
    network: Network,
    reader: ClipReader,
    device: torch.device,
    sounds: Sequence[str],
    categories: Mapping[str, str],
    on_clip: Callable[[str, StoredBatch, Tensor], None] | None = None,
    stop: Stop | None = None,
    together: Processes = ALONE,
    at_once: int | None = None,
) -> dict[str, Evaluation]:
    """Run a network over a split, each clip as if it were alone, with several sounds in one pass
    over the pictures.

    Clips without a label on any frame say nothing and are left out.
    Computes in float32, without TF32, whatever the network was trained in.
    sounds: names of `sounds.MEANINGS`.  categories: clip -> category, where that is known.
    on_clip: gets a sound, each clip (on the CPU, with that sound), and its scores [T,K,H,W] where
    the network is.
    stop: when asked, the clips in hand are the last.  together: these share the clips, and all get
    the scores of all.  at_once: clips that go through the network together; `AT_ONCE` by default,
    and fewer where they do not fit.
    Raises ComboError for a split without any label, or without such sounds, and Stopped.
    """
    if not reader.labelled:
        raise ComboError(f"no frame of {reader.split} has a label; see: {remedies.show()}")
    network.eval()
    classes = len(reader.plan.classes)
    names = [reader.plan.clips[int(row)] for row in reader.rows]
    hear = Sounds(reader, sounds, [categories.get(name, "") for name in names])
    # The right sound comes first: the others are held against it.
    tallies = [
        _Tally(sound, ObjectMetrics() if classes == 2 else SemanticMetrics(classes))
        for sound in sorted(sounds, key=lambda name: name != "right")
    ]
    stop = stop or Stop()
    alone = _Alone(network, at_once or AT_ONCE.get(device.type, 1))
    mine = [*range(together.rank, len(reader.labelled), together.count)]
    turns = [mine[first : first + alone.at_once] for first in range(0, len(mine), alone.at_once)]
    batches = reader.batches([reader.labelled[number] for number in turn] for turn in turns)
    for turn, clips in zip(turns, batches, strict=True):
        on_device, right = clips.to(device), list[Tensor]()
        counted = [send(each.nonzero()[:, 0], device) for each in clips.present & clips.annotated]
        for tally in tallies:
            heard = [hear.of(tally.sound, number) for number in turn]
            scored = alone.scores(on_device, heard)
            for place, (sound, scores) in enumerate(zip(heard, scored, strict=True)):
                if sound is None or scores is None:
                    tally.clips.append(None)
                    continue
                name, frames = clips.clips[place], counted[place]
                labels = on_device.labels[place].index_select(0, frames)
                known = right[place] if right and tally.sound != "right" else None
                called = tally.add(name, scores.index_select(0, frames), labels, known)
                if tally.sound == "right":
                    right.append(called)
                    tally.same = tally.pixels
                if on_clip is not None:
                    one = dataclasses.replace(clips.part(place, place + 1), sound=sound)
                    on_clip(tally.sound, one, scores)
        if stop.asked:
            break
    told = together.gather((stop.asked, tallies))
    if any(stopped for stopped, _ in told):
        raise Stopped
    for number, tally in enumerate(tallies):
        tally.join([shares[number] for _, shares in told])
    found = {tally.sound: tally.result(reader, "right" in sounds) for tally in tallies}
    return {sound: found[sound] for sound in sounds}


class _Alone:
    """A network that is given several clips and says of each what it says of it alone.

    at_once: how many; fewer from the moment on that so many do not fit into the memory of a GPU.
    """

    def __init__(self, network: Network, at_once: int) -> None:
        self.network, self.at_once = network, at_once

    def scores(self, clips: Batch, sounds: Sequence[Tensor | None]) -> Iterator[Tensor | None]:
        """[T,K,H,W] of each clip with its sound, [1,T,D]; None for one without.

        Raises ComboError where they are no numbers.
        """
        first = 0
        while first < len(sounds):
            heard = list[Tensor]()
            for sound in sounds[first : first + self.at_once]:
                if sound is None:
                    break
                heard.append(sound)
            if not heard:
                yield None
                first += 1
                continue
            part = clips.part(first, first + len(heard))
            of_all = send(torch.cat(heard), part.frames.device)
            try:
                for scores in self.network.clip_scores(
                    part.frames, part.maskige, of_all, part.present
                ):
                    yield _numbers(scores.float(), clips.clips[first])
                    first += 1
            except torch.OutOfMemoryError:
                if len(heard) == 1:
                    raise
                self.at_once = len(heard) // 2


def _numbers(scores: Tensor, clip: str) -> Tensor:
    if not bool(torch.isfinite(scores).all()):
        raise ComboError(
            f"the network's scores of clip {clip} are not numbers: it has diverged; train from an "
            f"earlier network with a lower learning_rate, or with precision=fp32 where it was half"
        )
    return scores


def _per_class(
    metrics: ObjectMetrics | SemanticMetrics, names: Sequence[str]
) -> dict[str, tuple[float, float, int]]:
    if isinstance(metrics, ObjectMetrics):
        return {}
    j, f, count = (each.tolist() for each in metrics.per_class())
    found = zip(names, j, f, count, strict=True)
    return {name: (j, f, int(count)) for name, j, f, count in found if count}


def open_run(run: RunFolder, device: torch.device) -> Network:
    """The best network of a run (its last where nothing was evaluated), in eval mode."""
    path = run.of_worth
    network = run.settings().build()
    checkpoint.load_network(path, network)
    return network.to(device).eval()


def open_split(
    run: RunFolder,
    split: str,
    store: Path | None = None,
    named: Mapping[str, str] | None = None,
) -> ClipReader:
    """A split of the data set a run was trained on, made with the same settings and weights.

    store: where the store lies now, if it moved, or a file packed from it.  named: stage -> variant
    to take instead.
    Raises ComboError when the run's data set has no such split, or no variant fits.
    """
    data = run.data()
    if split not in data["settings"]:
        said = f"data set {data['data_set']!r} has no split {split!r}"
        raise unknown(said, split, data["settings"], "give another with --split; it has")
    where = open_source(store or Path(data["store"]), data["data_set"], split)
    choice = choose_variants(where, data["settings"][split], named, data["weights"])
    return ClipReader(where, choice)


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation under the names that papers use."""
    return {
        "sound": evaluation.sound,
        "precision": PRECISION,
        **protocols.as_json(evaluation.protocols, evaluation.false_positive_rate),
        "clips": len(evaluation.clips),
        "clips_left_out": evaluation.left_out,
        "clips_without_labels": evaluation.without_labels,
        "clips_without_such_a_sound": evaluation.without_sound,
        "segmented_pixels": round(evaluation.segmented, 6),
        "unchanged_pixels": _rounded(evaluation.unchanged),
    }


def groups_as_json(evaluation: Evaluation, categories: Mapping[str, str]) -> dict[str, Any]:
    """The numbers of each clip, category and class."""

    def of(groups: Mapping[str, tuple[float, float, int]], what: str) -> dict[str, Any]:
        return {
            name: {"M_J": round(j, 6), "M_F": round(f, 6), what: count}
            for name, (j, f, count) in groups.items()
        }

    return {
        "per_clip": {
            name: {"M_J": round(j, 6), "M_F": _rounded(f)}
            for name, (j, f) in evaluation.clips.items()
        },
        "per_category": of(by_category(evaluation, categories), "clips"),
        "per_class": of(evaluation.classes, "frames"),
    }


def by_category(
    evaluation: Evaluation, categories: Mapping[str, str]
) -> dict[str, tuple[float, float, int]]:
    """The mean M_J and M_F over the clips of each category that is known, and how many they are.

    categories: clip -> category, "" where it has none.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for name, (j, f) in evaluation.clips.items():
        if category := categories.get(name):
            found.setdefault(category, []).append((j, f or 0.0))
    return {
        name: (fmean(j for j, _ in scores), fmean(f for _, f in scores), len(scores))
        for name, scores in sorted(found.items())
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
