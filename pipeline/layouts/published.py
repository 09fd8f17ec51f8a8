"""What the public COMBO code leaves on the disk, clip by clip: its Maskiges, its resized frames.

Both mirror the folders that the frames of AVSBench lie in:

    S4    s4_data/pre_SAM_mask/<split>/<category>/<clip>/<frame>_mask_color.png
    MS3   ms3_data/pre_SAM_mask/<clip>/<frame>_mask_color.png
    AVSS  pre_SAM_mask/AVSBench_semantic/<subset>/<clip>/{processed_frames,frames}/
          <frame>_mask_color.png

and, of AVSS alone, `<subset>/<clip>/processed_frames/<frame>.jpg` with
`processed_labels_semantic/<frame>.png`. Only this module and `layouts` know such folders. A tree
may be given by any folder on the way to it; which one it is, is found by looking.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ComboError
from ..layouts import Clip


@dataclass(frozen=True)
class Tree:
    """Where one kind of picture lies. name: for the store.  homes: ways to it, from the longest.

    depth: how many last parts of a frame's path are mirrored.  folder: what stands in place of the
    frames' own folder, None where nothing does.  ending: what stands in place of `.png` or `.jpg`.
    labels: the folder of label images, None where the tree holds none.
    """

    name: str
    homes: tuple[tuple[str, ...], ...]
    depth: int
    folder: str | None
    ending: str
    labels: str | None = None

    def picture(self, home: Path, frame: Path) -> Path:
        """Where the picture of a frame is, by the frame's path in the data set."""
        parts = frame.parts[-self.depth :]
        if self.folder is not None:
            parts = (*parts[:-2], self.folder, parts[-1])
        return home.joinpath(*parts[:-1], frame.stem + self.ending)

    def label(self, home: Path, label: Path | None) -> Path | None:
        """Where the label image of a frame is, None for a frame without one."""
        if label is None or self.labels is None:
            return None
        parts = label.parts[-self.depth :]
        return home.joinpath(*parts[:-2], self.labels, parts[-1])


COLOUR = "_mask_color.png"
_S4 = ("AVSBench_object", "Single-source", "s4_data", "pre_SAM_mask")
_MS3 = ("AVSBench_object", "Multi-sources", "ms3_data", "pre_SAM_mask")
_AVSS = ("AVSBench_semantic", "pre_SAM_mask", "AVSBench_semantic")
_AVSS_SHORT = ("AVSBench_semantic", "pre_SAM_mask")

MASKIGES: dict[str, tuple[Tree, ...]] = {
    "avsbench-s4": (Tree("pre_SAM_mask", (_S4,), 4, None, COLOUR),),
    "avsbench-ms3": (Tree("pre_SAM_mask", (_MS3,), 2, None, COLOUR),),
    "avsbench-avss": tuple(
        Tree(folder, (_AVSS, _AVSS_SHORT), 4, folder, COLOUR)
        for folder in ("processed_frames", "frames")
    ),
}
"""Layout -> its trees of Maskiges, first the one that the public trainer reads."""

FRAMES: dict[str, tuple[Tree, ...]] = {
    "avsbench-avss": (
        Tree(
            "processed_frames",
            (("AVSBench_semantic",),),
            4,
            "processed_frames",
            ".jpg",
            "processed_labels_semantic",
        ),
    ),
}
"""Layout -> its trees of resized frames; those of S4 and MS3 are published at their size."""


@dataclass(frozen=True)
class Found:
    """A tree that was found. clips: the data set's, but with the tree's pictures as frames."""

    tree: Tree
    home: Path
    clips: tuple[Clip, ...]


def find_tree(trees: Sequence[Tree], folder: Path, clips: Sequence[Clip]) -> Found:
    """The tree below `folder` that holds a picture of any of the clips.

    Clips whose pictures are missing stay as they are wanted, and fail by name when they are read.
    Raises ComboError, with a path that was looked for, when there is none.
    """
    wanted = [frame for clip in clips for frame in _paths(clip)[:1]]
    tried: list[Path] = []
    for tree in trees:
        for home in _homes(tree, folder):
            if any(tree.picture(home, frame).is_file() for frame in wanted):
                return Found(tree, home, tuple(_moved(tree, home, clip) for clip in clips))
            tried += [tree.picture(home, frame) for frame in wanted[:1]]
    way = "/".join(trees[0].homes[0])
    looked = f"looked for {tried[0]}" if tried else "no such folder"
    raise ComboError(
        f"{folder} holds no picture of these clips ({looked}); "
        f"give the folder {way}, or one that it lies in"
    )


def _moved(tree: Tree, home: Path, clip: Clip) -> Clip:
    frames = tuple(tree.picture(home, frame) for frame in _paths(clip))
    return replace(clip, frames=frames, labels=tuple(tree.label(home, x) for x in clip.labels))


def _homes(tree: Tree, folder: Path) -> list[Path]:
    """Folders that are there and may be the tree's root: `folder`, or further down."""
    ways = [folder.joinpath(*way[skip:]) for way in tree.homes for skip in range(len(way) + 1)]
    return [home for home in dict.fromkeys(ways) if home.is_dir()]


def _paths(clip: Clip) -> list[Path]:
    return [frame for frame in clip.frames if isinstance(frame, Path)]
