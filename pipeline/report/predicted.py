"""What a network says of one clip, painted like the truth."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ...model.interface import Network
from ..devices import float32_products
from ..errors import ComboError
from ..media.images import Pixels
from ..painting import paint
from ..source import Source
from ..train.elsewhere import open_run_for
from ..train.evaluate import open_split
from ..train.loader import ClipReader, StoredBatch
from ..train.run_folder import RunFolder
from .clips import FRAMES, PREDICTION, Panel, StoredClips, classes_in, columns
from .files import files_of


@torch.inference_mode()
@float32_products()
def predict(network: Network, clip: StoredBatch, device: torch.device) -> Pixels:
    """The class of each pixel of a batch of one clip: [T,H,W] uint8."""
    there = clip.to(device)
    scores = network.clip_scores(there.frames, there.maskige, there.sound, there.present)
    return next(scores).argmax(1).to(torch.uint8).cpu().numpy()


def with_prediction(
    panel: Panel, predicted: Pixels, present: Pixels, clips: StoredClips, row: str = PREDICTION
) -> Panel:
    """A panel of a stored clip with one more row. predicted: [T,H,W]; present: [T] bool."""
    at = np.flatnonzero(present)
    _, shown = columns(len(at), clips.plan.seconds_per_frame)
    labels = predicted[at[shown]]
    named = {**panel.classes, **classes_in(labels, clips.plan.classes)}
    rows = {**panel.rows, row: paint(panel.rows[FRAMES], labels)}
    return replace(panel, rows=rows, classes=dict(sorted(named.items())))


def predicted_panel(root: Path, source: Source, clip: str, manifest: Path | None) -> Panel:
    """A clip of a store and what a run's best network says of it. Raises ComboError."""
    run, device = RunFolder(root), torch.device("cpu")
    data = run.data()
    if data["data_set"] != source.data_set:
        raise ComboError(
            f"{root} was trained on data set {data['data_set']!r}, and clip {clip} is of "
            f"{source.data_set!r}; give a run of that one"
        )
    reader = open_split(run, source.split, source.store)
    place = places_of(reader, [clip])[0]
    clips = StoredClips(reader.split, files_of(source, manifest), reader.choice.frames)
    batch = reader.read([place])
    predicted = predict(open_run_for(run, reader, device), batch, device)
    panel = clips.panel(int(reader.rows[place]))
    titled = replace(panel, title=f"{clip}   {source}, predicted by {root}")
    return with_prediction(titled, predicted, batch.present[0].numpy(), clips)


def places_of(reader: ClipReader, names: Sequence[str]) -> list[int]:
    """Where clips stand in a reader. Raises ComboError for one that it leaves out."""
    there = {reader.plan.clips[row]: place for place, row in enumerate(reader.rows)}
    for name in names:
        if name not in there:
            why = reader.left_out.get(name, "it did not come through all stages")
            raise ComboError(f"clip {name} of {reader.split} is left out: {why}")
    return [there[name] for name in names]
