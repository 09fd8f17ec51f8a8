"""The files that a split's clips are made of, and whether they are still the same.

A record holds a digest of each clip's files, which tells for sure but has to read them. What is
cheap enough for every run are names, sizes and times: `inputs.json` beside the plan holds those of
the last run, as one short digest a clip, and the root they lay in. Where they differ, the files are
read. Nothing depends on that file; a store without it gets it at the next run.
"""

import contextlib
import hashlib
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .. import durable, remedies
from ..digests import file_digest
from ..errors import ComboError, MediaError, counted
from ..imports import is_imported
from ..layouts import Clip, Listing
from ..media.pictures import frame_files
from ..preprocess.stage import combined_digest
from ..store import Plan, SplitStore, Variant
from . import records

LOOKED_AT = 10_000
"""Clips of a split whose files' sizes and times are looked at in every run, at most about."""


@dataclass(frozen=True, eq=False)
class DataSet:
    """A split as it lies on the disk now. root: of its data set.  clips: in the listing's order."""

    root: Path
    clips: Listing


def files_of(variant: Variant, clip: Clip) -> list[Path] | None:
    """The files of a data set that a variant's clip is made of; None for an import's, which lie
    elsewhere."""
    settings = variant.settings
    if is_imported(settings):
        return None
    if variant.stage == "audio":
        file = clip.log_mel if settings.get("source") == "log-mel" else clip.sound
        return [] if file is None else [file]
    labels = [label for label in clip.labels if label is not None]
    return [*frame_files(clip.frames), *(labels if variant.stage == "frames" else ())]


def digest_of(files: Iterable[Path], known: dict[Path, str] | None = None) -> str:
    """The digest of a clip's files as records have it. Raises MediaError for one that is gone.

    known: digests of files that were read already, and will be.
    """
    known = {} if known is None else known
    return combined_digest([known.get(f) or known.setdefault(f, file_digest(f)) for f in files])


def same(variants: Mapping[str, tuple[Variant, str]], clip: Clip) -> dict[str, bool]:
    """Whether a clip's files are those that were recorded, key -> (variant, digest)."""
    known: dict[Path, str] = {}
    found: dict[str, bool] = {}
    for key, (variant, recorded) in variants.items():
        files = files_of(variant, clip)
        try:
            found[key] = not recorded or files is None or digest_of(files, known) == recorded
        except MediaError:
            found[key] = False
    return found


def known_root(split: SplitStore) -> Path | None:
    """The root that a split's files lay in at the last run; None where the store does not say."""
    before = _read(split)
    return None if before is None else Path(before[0])


# -- what is cheap -------------------------------------------------------------------------------


def remember(split: SplitStore, data: DataSet) -> None:
    """Write what the files look like now."""
    # Not worth stopping for: the store may be one that is only read.
    with contextlib.suppress(OSError):
        durable.write_json(_path(split), {"root": str(data.root), "clips": _looks(data)})


def notice(split: SplitStore, plan: Plan, variant: Variant, data: DataSet) -> str | None:
    """Hold the files of a split against how they looked at the last run.

    Returns a line for people where there is something to tell. Raises ComboError when files that
    the variant was made of have changed.
    """
    before, now = _read(split), _looks(data)
    root = f"now {data.root}" if before is None else f"was {before[0]}, now {data.root}"
    if before is not None and before == (str(data.root), now):
        return None
    changed = [
        name for name in now if before and name in before[1] and before[1][name] != now[name]
    ]
    wrong = _changed(split, plan, data, changed)
    mine = wrong.pop(variant.key, [])
    if mine:
        repair = remedies.repair(split.data_set, split.split)
        raise ComboError(
            f"{split} in {split.store}: the files of {counted(len(mine), 'clip')} have changed "
            f"since {variant.key} was made of them (first: {mine[0]}; root: {root}); give "
            f"another store, or make these clips again: {repair} --inputs"
        )
    if wrong:
        of = ", ".join(f"{counted(len(names), 'clip')} of {key}" for key, names in wrong.items())
        return f"{split}: files have changed since the store was made of them: {of}; root: {root}"
    remember(split, data)
    if before is not None and before[0] != str(data.root):
        return f"{split}: root {root}; the files are the same"
    return None


def _changed(
    split: SplitStore, plan: Plan, data: DataSet, names: Iterable[str]
) -> dict[str, list[str]]:
    """Those of the named clips whose files are not what a variant was made of, by its key."""
    asked = set(names)
    recorded: dict[str, dict[str, tuple[Variant, str]]] = {}
    for variant in split.variants() if asked else ():
        for record in records.done_units(split, variant, plan):
            for clip in record.clips:
                if clip.name in asked and not clip.failed:
                    recorded.setdefault(clip.name, {})[variant.key] = (variant, clip.inputs)
    wrong: dict[str, list[str]] = {}
    for index, name in enumerate(plan.clips):
        if name in recorded:
            for key, good in same(recorded[name], data.clips[index]).items():
                if not good:
                    wrong.setdefault(key, []).append(name)
    return wrong


@lru_cache(1)
def _looks(data: DataSet) -> dict[str, str]:
    """Clip name -> short digest of its files' names below the root, sizes and times.

    Of splits with more than `LOOKED_AT` clips some, always the same ones.
    """
    step = -(-len(data.clips) // LOOKED_AT)
    return {
        name: _look(data, data.clips[index])
        for index, name in enumerate(data.clips.names)
        if step == 1 or zlib.crc32(name.encode()) % step == 0
    }


def _look(data: DataSet, clip: Clip) -> str:
    files = [*frame_files(clip.frames), *clip.labels, clip.sound, clip.log_mel]
    seen = hashlib.blake2b((clip.problem or "").encode("utf-8", "surrogateescape"), digest_size=8)
    for file in dict.fromkeys(files):
        if file is not None:
            seen.update(str(file).removeprefix(str(data.root)).encode("utf-8", "surrogateescape"))
            with contextlib.suppress(OSError):
                found = file.stat()
                seen.update(f"\0{found.st_size} {found.st_mtime_ns}\0".encode())
    return seen.hexdigest()


def _read(split: SplitStore) -> tuple[str, dict[str, str]] | None:
    try:
        value = durable.read_json(_path(split))
        return str(value["root"]), dict(value["clips"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _path(split: SplitStore) -> Path:
    return split.root / "inputs.json"
