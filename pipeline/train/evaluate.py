"""M_J and M_F of a run on a split, with the right sound or with another one on purpose."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...model.interface import Network
from ...model.metrics import ObjectMetrics, SemanticMetrics
from .. import protocols
from ..errors import ComboError
from ..source import choose_variants, open_source
from . import checkpoint
from .loader import ClipReader, StoredBatch
from .run_folder import RunFolder

SoundCondition = Literal["right", "swapped", "silent", "noise"]
SOUNDS: tuple[SoundCondition, ...] = ("right", "swapped", "silent", "noise")


@dataclass(frozen=True)
class Evaluation:
    """Scores of one network on one split.

    m_j, m_f: 0..1, by the AVSBench protocol.  protocols: every protocol by name -> M_J, M_F.
    false_positive_rate: share of the clips where something is segmented although nothing audible
    is visible; None without such clips.  clips: name -> (M_J, M_F).  left_out: clips that failed in
    preprocessing.  without_labels: clips that say nothing of a network.
    """

    sound: str
    m_j: float
    m_f: float
    protocols: dict[str, tuple[float, float | None]]
    false_positive_rate: float | None
    clips: dict[str, tuple[float, float | None]]
    left_out: int
    without_labels: int


@torch.inference_mode()
def measure(
    network: Network,
    reader: ClipReader,
    device: torch.device,
    dtype: torch.dtype | None = None,
    sound: SoundCondition = "right",
    on_clip: Callable[[StoredBatch, Tensor], None] = lambda *_: None,
) -> Evaluation:
    """Run a network over a split, one clip at a time (results may depend on the batch).

    Clips without a label on any frame say nothing and are left out.
    dtype: autocast to it; None computes in float32.  on_clip: gets each clip (on the CPU) and its
    scores [T,K,H,W].
    Raises ComboError for a split without any label.
    """
    if not reader.labelled:
        raise ComboError(f"no frame of {reader.split} has a label; see combo status")
    network.eval()
    classes = len(reader.plan.classes)
    metrics = ObjectMetrics() if classes == 2 else SemanticMetrics(classes)
    heard = other_clips(len(reader)) if sound == "swapped" else None
    names: list[str] = []
    noise = torch.Generator().manual_seed(0)
    batches = reader.batches([place] for place in reader.labelled)
    for position, clip in zip(reader.labelled, batches, strict=True):
        if heard is not None:
            clip = dataclasses.replace(clip, sound=reader.sound([heard[position]]))
        elif sound == "silent":
            clip = dataclasses.replace(clip, sound=torch.zeros_like(clip.sound))
        elif sound == "noise":
            clip = dataclasses.replace(clip, sound=_noise(reader, clip, noise))
        on_device = clip.to(device)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            out = network(on_device.frames, on_device.maskige, on_device.sound, on_device.present)
        frames = clip.present[0]
        scores = network.scores(out)[0].float()
        if not bool(torch.isfinite(scores).all()):
            raise ComboError(
                f"the network's scores of clip {clip.clips[0]} are not numbers; "
                f"half precision may be too narrow for it: train with --set precision=bf16 or fp32"
            )
        metrics.update(
            scores[frames],
            on_device.labels[0][frames],
            clip.annotated[0][frames],
            audible=sound == "right",
        )
        names.append(clip.clips[0])
        on_clip(clip, scores.cpu())
    result = metrics.result()
    main = result.protocols["avsbench"]
    return Evaluation(
        sound=sound,
        m_j=main.M_J,
        m_f=main.M_F or 0.0,
        protocols={name: (s.M_J, s.M_F) for name, s in result.protocols.items()},
        false_positive_rate=result.false_positive_rate,
        clips={n: (s.M_J, s.M_F) for n, s in zip(names, result.clips, strict=True)},
        left_out=len(reader.left_out),
        without_labels=len(reader) - len(reader.labelled),
    )


def other_clips(count: int) -> np.ndarray:
    """Whose sound each clip gets when sounds are swapped: nobody's own, everybody's once.

    Half the split further on, since neighbours in a list are often of one category.
    Raises ComboError for a split of one clip.
    """
    if count < 2:
        raise ComboError("sounds cannot be swapped in a split of one clip; use --sound silent")
    return (np.arange(count) + count // 2) % count


def _noise(reader: ClipReader, clip: StoredBatch, generator: torch.Generator) -> Tensor:
    """Normal numbers with the mean and deviation of the split's embeddings."""
    mean, deviation = reader.sound_statistics()
    return mean + deviation * torch.randn(clip.sound.shape, generator=generator)


def open_run(run: RunFolder, device: torch.device) -> Network:
    """The best network of a run (its last where nothing was evaluated), in eval mode."""
    path = run.best if run.best.exists() else run.last
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
        known = ", ".join(data["settings"])
        raise ComboError(f"data set {data['data_set']!r} has no split {split!r}; it has {known}")
    where = open_source(store or Path(data["store"]), data["data_set"], split)
    choice = choose_variants(where, data["settings"][split], named, data["weights"])
    return ClipReader(where, choice)


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation under the names that papers use."""
    return {
        "sound": evaluation.sound,
        **protocols.as_json(evaluation.protocols, evaluation.false_positive_rate),
        "clips": len(evaluation.clips),
        "clips_left_out": evaluation.left_out,
        "clips_without_labels": evaluation.without_labels,
    }
