"""What is there, what is missing, and which command makes it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from . import durable, remedies
from .errors import ComboError, counted
from .imports import stages_asked
from .jobs.plan import layout_of, splits_of, weights_of
from .jobs.status import stage_statuses
from .manifest import Manifest
from .packed import is_packed
from .store import STAGES
from .weights import all_missing, locate, missing


@dataclass(frozen=True)
class Check:
    """One thing looked at. mend: what makes it good; empty when it is.  needed: whether all is not
    well without it."""

    what: str
    good: bool
    state: str
    mend: str = ""
    needed: bool = True


def examine(manifest: Manifest) -> list[Check]:
    """Look at manifest, data sets, weights and store; opens no media."""
    return [
        Check("manifest", True, str(manifest.file)),
        *_device(),
        *_store(manifest),
        *_weights(manifest),
        *(f for name in manifest.data_sets for f in _data_set(manifest, name)),
    ]


def _device() -> Iterator[Check]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    state = ", ".join(gpus) or f"no GPU; {os.cpu_count()} CPU cores"
    yield Check("device", True, f"{state}; torch {torch.__version__}")


def _store(manifest: Manifest) -> Iterator[Check]:
    try:
        store = manifest.store_path
    except ComboError as error:
        yield Check("store", False, "not set", str(error))
        return
    if is_packed(store):
        mend = "" if store.exists() else remedies.pack(store, overwrite=False)
        yield Check("store", store.exists(), f"{store}, a packed file", mend)
        return
    if os.access(durable.existing(store), os.W_OK):
        free = f"{durable.free_bytes(store) / 1e9:.1f} GB free"
        yield Check("store", True, f"{store}, {free}")
    else:
        yield Check(
            "store", False, f"{store} cannot be written", "give another: export COMBO_STORE=FOLDER"
        )


def _weights(manifest: Manifest) -> Iterator[Check]:
    from .train.starting_points import backbone_weights

    paths = manifest.weight_paths()
    of_stages = weights_of(manifest, STAGES, manifest.data_sets)
    of_presets = backbone_weights(manifest.data_sets)
    for name in dict.fromkeys([*of_stages, *of_presets]):
        needed = name in of_stages
        try:
            path = locate(name, paths)
            yield Check(f"weights {name}", True, str(path))
        except ComboError as error:
            use = "" if needed else f"; needed to train {', '.join(of_presets[name])}"
            yield Check(f"weights {name}", False, f"missing{use}", str(error), needed)
    absent = missing(dict.fromkeys([*of_stages, *of_presets]), paths)
    if len(absent) > 1:
        needed = any(each.weights.name in of_stages for each in absent)
        names = ", ".join(each.weights.name for each in absent)
        yield Check("all weights", False, f"missing: {names}", all_missing(absent), needed)


def _data_set(manifest: Manifest, name: str) -> Iterator[Check]:
    try:
        root, splits = manifest.root(name), splits_of(manifest, name)
        rules = layout_of(manifest, name)
        clips = {split: rules.clips(root, split) for split in splits}
    except ComboError as error:
        yield Check(f"data set {name}", False, "not found", str(error))
        return
    for split, count in ((split, len(found)) for split, found in clips.items()):
        expected = rules.expected.get(split)
        published = f" of the {expected:,} published" if expected else ""
        store = manifest.store_path
        states = stage_statuses(store, [name], [split]) if store.exists() else []
        finished = {s.stage: s for s in states if s.finished}
        missing = [stage for stage in STAGES if stage not in finished]
        state = f"{counted(count, 'clip')}{published}; " + (
            f"to do: {', '.join(missing)}" if missing else "preprocessed"
        )
        if "frames" in finished and (annotated := finished["frames"].annotated):
            state += "; {:,} of {:,} frames annotated".format(*annotated)
        if unread := clips[split].named_unread():
            state += f"; not read: {unread}"
        failed = {s.stage: s.failed for s in finished.values() if s.failed}
        if failed:
            state += f"; failed: {', '.join(f'{n} in {stage}' for stage, n in failed.items())}"
        stage = missing[0] if len(missing) == 1 else remedies.ALL
        mend = remedies.make(stage, name, split, stage in stages_asked(manifest.stages))
        if is_packed(store):
            mend = remedies.pack(store)
        yield Check(f"{name}/{split}", not missing, state, mend if missing else "")
