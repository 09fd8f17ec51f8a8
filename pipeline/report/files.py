"""Where the files of a split's clips are now. A store holds frames, and numbers of sounds: who
wants to hear a clip goes back to the data set's own files.

A store remembers the root they lay in at the last run, and its plan the layout; that is enough to
list them again. A packed file does not, so there, or where the data set has moved, a manifest says.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import ComboError, reason_of
from ..jobs.inputs import known_root
from ..jobs.plan import layout_of
from ..layouts import Clip, Listing, layout
from ..layouts.folders import Folders
from ..manifest import load_manifest
from ..media.limits import USUAL, Limits
from ..source import Source
from ..store import SplitStore


@dataclass(frozen=True)
class Files:
    """The clips of a split as the data set lists them now; None where nothing is known, and why."""

    listing: Listing | None
    why: str = ""
    limits: Limits = USUAL

    @cached_property
    def _places(self) -> dict[str, int]:
        return {} if self.listing is None else {n: i for i, n in enumerate(self.listing.names)}

    def clip(self, name: str) -> Clip | None:
        """A clip's files; None where the data set has it no more."""
        place = self._places.get(name)
        return None if place is None or self.listing is None else self.listing[place]

    def category(self, name: str) -> str:
        """What the data set sorts a clip under: its category, else its subset, or ""."""
        clip = self.clip(name)
        return "" if clip is None else clip.category or clip.subset


def files_of(source: Source, manifest: Path | None = None, also: Path | None = None) -> Files:
    """The files of a split's clips.

    manifest: says where they are, whatever the store says.  also: one to ask where that does not.
    """
    if manifest is not None:
        return _by_manifest(manifest, source)
    found = _by_store(source)
    return _by_manifest(also, source) if found.listing is None and also is not None else found


def _by_manifest(file: Path, source: Source) -> Files:
    try:
        manifest = load_manifest(file)
        manifest.choose([source.data_set])
        rules, root = layout_of(manifest, source.data_set), manifest.root(source.data_set)
        return Files(rules.clips(root, source.split), limits=manifest.limits)
    except (ComboError, OSError) as error:
        return Files(None, reason_of(error))


def _by_store(source: Source) -> Files:
    """By what the store remembers; where a manifest had divided the clips into splits, all."""
    root = known_root(source) if isinstance(source, SplitStore) else None
    if root is None:
        return Files(None, f"{source.store} does not say where they lie; --manifest does")
    plan = source.plan()
    try:
        rules = layout(
            plan.layout, Folders(plan.frames_per_clip, plan.seconds_per_frame, cut=plan.cut)
        )
        there = rules.splits(root)
        return Files(rules.clips(root, source.split if source.split in there else there[0]))
    except (ComboError, OSError) as error:
        return Files(None, reason_of(error))
