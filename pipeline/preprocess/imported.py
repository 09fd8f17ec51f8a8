"""Imports: what the public COMBO code has computed already, taken into the store.

An import is a stage like the others: planned, resumed, recorded, and a variant of its own, whose
settings say from which kind of tree it came and what its owner noted of it (which network, which
level: the pictures do not tell). Frames are imported by the frames stage itself, from other files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ComboError, MediaError
from ..jobs.unit import Job
from ..labels import read_painted
from ..layouts import Clip
from ..limits import USUAL, Limits
from ..manifest import Manifest
from ..media import Fit, fit_label, frame_files
from ..published import FRAMES, MASKIGES, Tree, find_tree
from ..store import ArraySpec, Variant
from .frames import FramesStage
from .stage import Outcome, Place, Worker, attempt, combined_digest, make_variant

VERSION = 1


@dataclass(frozen=True)
class ImportedMaskigeStage:
    """Painted Maskiges back to label maps: at the stored size, painting them gives the picture.

    Pictures of another size go the labels' way (nearest) to the stored one, as in the public code.
    Arrays a clip: label_map [T,H,W] uint8. How many masks a frame had, the pictures do not tell.
    tree: the kind of tree.  note: its owner's words.
    """

    size: tuple[int, int]
    fit: Fit
    frames_per_clip: int
    tree: str = ""
    note: str = ""
    limits: Limits = USUAL

    def variant(self) -> Variant:
        from ...model.maskige import reference_palette

        return make_variant(
            "maskige",
            "imported",
            VERSION,
            {
                "generator": "imported",
                "size": list(self.size),
                "fit": self.fit,
                "tree": self.tree,
                "note": self.note,
            },
            (ArraySpec("label_map", (self.frames_per_clip, *self.size), "uint8"),),
            attributes={"palette": reference_palette().tolist()},
        )

    @property
    def has_network(self) -> bool:
        return False

    def inputs(self, clip: Clip) -> list[Path]:
        return frame_files(clip.frames)

    def open(self, place: Place) -> Worker:
        from ...model.maskige import reference_palette

        del place  # reading one clip is not worth dividing
        palette = reference_palette().numpy()
        return lambda clips: self._run(clips, palette)

    def _run(self, clips: Sequence[Clip], palette: np.ndarray) -> list[Outcome]:
        return [attempt(clip, lambda clip: self._clip(clip, palette)) for clip in clips]

    def _clip(self, clip: Clip, palette: np.ndarray) -> Outcome:
        digests: dict[Path, str] = {}
        label_map = np.zeros((self.frames_per_clip, *self.size), np.uint8)
        first: tuple[int, ...] = ()
        for t, path in enumerate(clip.frames):
            assert isinstance(path, Path)
            read = read_painted(path, palette, digests, self.limits)
            first = first or read.shape
            if read.shape != first:
                raise MediaError(path, f"not {first[1]}x{first[0]} pixels as the clip's first")
            label_map[t] = fit_label(read, self.size, self.fit)
        return Outcome({"label_map": label_map}, inputs=combined_digest(digests.values()))


def import_job(
    manifest: Manifest, data_set: str, split: str, stage: str, folder: Path, note: str, tree: str
) -> Job:
    """The job that imports a stage ("frames" or "maskige") of one split from below `folder`.

    tree: the kind of tree, "" for the first kind that is there.
    Raises ComboError: nothing of the split is there, or the public code has no such tree of it.
    """
    from .tasks import fit_of, layout_of, planned

    rules = layout_of(manifest, data_set)
    trees = _trees(rules.name, data_set, stage, tree)
    where, plan, clips = planned(manifest, data_set, split)
    found = find_tree(trees, folder, clips)
    size, fit = manifest.stages.frames.size, fit_of(manifest, data_set, split)
    frames, kind = rules.frames_per_clip, found.tree.name
    if stage == "maskige":
        made = ImportedMaskigeStage(size, fit, frames, kind, note, manifest.limits)
    else:
        label_rule = rules.label_rule(manifest.root(data_set))
        classes, limits = len(plan.classes), manifest.limits
        made = FramesStage(size, fit, frames, label_rule, classes, (kind, note), limits)
    return Job(where, made, made.variant(), plan, found.clips)


def _trees(layout: str, data_set: str, stage: str, tree: str) -> list[Tree]:
    trees = (MASKIGES if stage == "maskige" else FRAMES).get(layout, ())
    chosen = [each for each in trees if tree in ("", each.name)]
    if chosen:
        return chosen
    if trees:
        names = ", ".join(each.name for each in trees)
        raise ComboError(f"--tree {tree}: data set {data_set!r} ({layout}) has {names}")
    raise ComboError(
        f"the public code has no {stage} of its own for data set {data_set!r} ({layout}); "
        f"run: combo preprocess {stage} --data {data_set}"
    )
