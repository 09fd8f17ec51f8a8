"""What a folder holds as data sets, and the manifest that says so: `combo init`.

Nothing is guessed that cannot be seen: which layout reads the folder, which clips, frames, labels
and sounds that finds, and what is wrong with them. The manifest asks for stages that need no
weights where the clips are the user's own, so that the next command works as it is.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import ComboError, WrongUsage, counted
from .layouts import LAYOUTS, Clip, Layout
from .layouts.folders import SPLITS, Folders
from .media.sound_files import open_sound

USUAL_LENGTH = 10
"""Frames of AVSBench's longest clips: longer ones are cut, as networks are trained on such."""
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


@dataclass(frozen=True)
class FoundSplit:
    """clips, frames, labelled, with_sound: how many.  lengths: frames of the shortest and of the
    longest clip.  problems: clip -> why it cannot be read.  unread: what is passed over."""

    split: str
    clips: int
    frames: int
    lengths: tuple[int, int]
    labelled: int
    with_sound: int
    problems: dict[str, str]
    unread: str


@dataclass(frozen=True)
class FoundData:
    """A data set. settings: what the manifest says beside layout and root.  classes: names."""

    name: str
    layout: str
    root: Path
    settings: dict[str, object]
    classes: tuple[str, ...]
    splits: tuple[FoundSplit, ...]

    @property
    def own(self) -> bool:
        return self.layout == Folders.name

    @property
    def frames(self) -> int:
        return sum(split.frames for split in self.splits)

    @property
    def labelled(self) -> int:
        return sum(split.labelled for split in self.splits)


def understand(folder: Path) -> list[FoundData]:
    """The data sets of a folder: AVSBench's, where it holds their tables, else the user's own
    clips. Raises ComboError for a folder with neither."""
    if not folder.is_dir():
        there = f"is a file; give its folder: combo init {folder.parent}"
        nothing = "no such folder; give the one that holds your clips"
        raise WrongUsage(f"{folder}: {there if folder.exists() else nothing}")
    published = [rules for rules in LAYOUTS if rules.name != Folders.name and _is(rules, folder)]
    if published:
        return [_found(rules.name.split("-")[-1], rules, folder) for rules in published]
    return [_own(folder)]


def manifest_of(found: Sequence[FoundData], folder: Path, home: Path) -> str:
    """The text of a manifest. folder: as it was named.  home: where the manifest will lie."""
    own = all(each.own for each in found)
    absolute, here = folder.resolve(), home.resolve()
    root = absolute.relative_to(here) if absolute.is_relative_to(here) else absolute
    store = Path("store")
    if (here / store).is_relative_to(absolute):  # there it would be taken for a clip
        store = absolute.parent / f"{absolute.name}-store"
    lines = [
        f"# Written by `combo init {folder}`. What may stand here: docs/data.md, `combo settings`.",
        "",
        "# Where frames, sound and Maskiges go; $COMBO_STORE goes before it. Paths begin here.",
        f"store: ${{COMBO_STORE:-{store}}}",
        "",
        "data_sets:",
    ]
    for each in found:
        lines += [f"  {each.name}:  # {_in_words(each)}", f"    layout: {each.layout}"]
        lines.append(f"    root: {json.dumps(str(root), ensure_ascii=False)}")
        lines += list(_settings(each))
    lines += ["", "stages:", "  frames: {size: 224}"]
    if own:
        lines += [
            "  # What needs no weights. The paper's: combo weights fetch vggish semantic-sam-l;",
            "  # {encoder: vggish} and {generator: semantic-sam-l, at: native}.",
            "  audio: {encoder: mel-stats}",
            "  maskige: {generator: felzenszwalb, at: stored}",
        ]
    else:
        lines += [
            "  # The paper's, with weights. Without any: mel-stats and felzenszwalb.",
            "  audio: {encoder: vggish}",
            "  maskige: {generator: semantic-sam-l}",
        ]
    return "\n".join(lines) + "\n"


def _settings(found: FoundData) -> Iterator[str]:
    if not found.own:
        return
    yield "    # Seconds between the frames that are taken from a video."
    yield "    seconds_per_frame: 1.0"
    yield "    # Clips of more frames are cut into parts of so many; left out, no clip is."
    cut = found.settings.get("cut")
    yield f"    cut: {cut}" if cut else f"    # cut: {USUAL_LENGTH}"
    if [split.split for split in found.splits] != ["all"] and "split" not in found.settings:
        return
    yield "    # How the clips are divided: one stays where it is when others come or go."
    shares = ", ".join(f"{name}: {share}" for name, share in SHARES.items())
    divided = "split" in found.settings
    yield f"    {'' if divided else '# '}split: {{{shares}}}"
    if seed := found.settings.get("split_seed"):
        yield f"    split_seed: {seed}"


def _in_words(found: FoundData) -> str:
    splits = ", ".join(f"{split.clips} {split.split}" for split in found.splits)
    frames = sum(split.frames for split in found.splits)
    return f"clips: {splits}; {found.labelled} of {counted(frames, 'frame')} labelled"


def _is(rules: Layout, folder: Path) -> bool:
    try:
        return bool(rules.clips(folder, "train"))
    except ComboError:
        return False


def _own(folder: Path) -> FoundData:
    """Clips that lie straight in the folder are divided where there are enough of them."""
    plain = Folders()
    settings: dict[str, object] = {}
    splits = plain.splits(folder)
    clips = [clip for split in splits for clip in plain.clips(folder, split)]
    if max(len(clip.frames) for clip in clips) > USUAL_LENGTH:
        settings["cut"] = USUAL_LENGTH
    cut = USUAL_LENGTH if settings else 0
    rules = Folders(cut=cut)
    if splits == ("all",) and len(clips) >= len(SHARES):
        for seed in range(1000):
            divided = Folders(cut=cut, split=SHARES, split_seed=seed)
            try:
                divided.splits(folder)
            except ComboError:
                continue
            settings |= {"split": SHARES, "split_seed": seed}
            rules = divided
            break
    name = re.sub(r"[^\w.-]+", "-", folder.resolve().name).strip("-.") or "mine"
    return _found("mine" if name == "jobs" else name, rules, folder, settings)


def _found(
    name: str, rules: Layout, folder: Path, settings: dict[str, object] | None = None
) -> FoundData:
    order = {split: place for place, split in enumerate(SPLITS)}
    splits = sorted(rules.splits(folder), key=lambda split: order.get(split, len(order)))
    return FoundData(
        name,
        rules.name,
        folder,
        settings or {},
        tuple(rules.classes(folder)),
        tuple(_split(rules, folder, split) for split in splits),
    )


def _split(rules: Layout, folder: Path, split: str) -> FoundSplit:
    clips = rules.clips(folder, split)
    there = list(clips)
    good = [len(clip.frames) for clip in there if clip.problem is None] or [0]
    heard: dict[Path | None, bool] = {None: False}
    for clip in there:
        if clip.sound not in heard:
            heard[clip.sound] = _is_heard(rules, clip)
    return FoundSplit(
        split,
        len(there),
        sum(good),
        (min(good), max(good)),
        sum(label is not None for clip in there for label in clip.labels),
        sum(heard[clip.sound] for clip in there),
        {clip.name: clip.problem for clip in there if clip.problem is not None},
        clips.named_unread(),
    )


def _is_heard(rules: Layout, clip: Clip) -> bool:
    """Whether there is a sound: of AVSBench's many files, whether there is a file."""
    assert clip.sound is not None
    if rules.name != Folders.name:
        return clip.sound.exists()
    try:
        with open_sound(clip.sound):
            return True
    except ComboError:
        return False
