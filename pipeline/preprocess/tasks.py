"""From the manifest to jobs: which stage, over which data sets and splits, with which settings."""

from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import ComboError
from ..jobs.run import make_plan
from ..jobs.unit import Job
from ..layouts import Clip, Folders, Layout, layout
from ..manifest import Manifest
from ..media import Fit
from ..packed import refuse_packed
from ..store import PROVENANCE, Plan, SplitStore, Variant
from .generators import IMPORTED
from .stage import Stage

STAGES = ("frames", "audio", "maskige")


def layout_of(manifest: Manifest, data_set: str) -> Layout:
    """The layout of a data set, with the manifest's settings where it has any."""
    entry = manifest.data_sets[data_set]
    folders = Folders(entry.frames_per_clip, entry.seconds_per_frame, limits=manifest.limits)
    return layout(entry.layout, folders)


def splits_of(manifest: Manifest, data_set: str, asked: Sequence[str] = ()) -> list[str]:
    """The splits asked for, or all of a data set's. Raises ComboError for one it does not have."""
    there = manifest.data_sets[data_set].splits or layout_of(manifest, data_set).splits(
        manifest.root(data_set)
    )
    for split in asked:
        if split not in there:
            raise ComboError(
                f"data set {data_set!r} has no split {split!r}; it has {', '.join(there)}"
            )
    return list(asked or there)


def fit_of(manifest: Manifest, data_set: str, split: str) -> Fit:
    """How frames of a split reach their size: as the manifest says, else as the benchmark does."""
    return manifest.data_sets[data_set].fit.get(split) or layout_of(manifest, data_set).fit(split)


def make_job(manifest: Manifest, data_set: str, split: str, stage: str) -> Job:
    """The job of one stage over one split. Opens no media; reads the data set's listing.

    Raises ComboError: data set not found, weights missing.
    """
    where, plan, clips = planned(manifest, data_set, split)
    made = make_stage(manifest, data_set, split, stage)
    return Job(where, made, made.variant(), plan, tuple(clips))


def planned(manifest: Manifest, data_set: str, split: str) -> tuple[SplitStore, Plan, list[Clip]]:
    """Where a split goes, the plan that its listing asks for, and its clips; opens no media."""
    refuse_packed(manifest.store_path, "preprocessing")
    rules, root = layout_of(manifest, data_set), manifest.root(data_set)
    clips = rules.clips(root, split)
    where = SplitStore(manifest.store_path, data_set, split)
    plan = make_plan(
        where,
        rules.name,
        rules.frames_per_clip,
        rules.classes(root),
        clips,
        manifest.clips_per_unit,
    )
    return where, plan, clips


def job_of(manifest: Manifest, split: SplitStore, variant: Variant) -> Job:
    """The job that makes a variant which the store holds, with the manifest's settings.

    Raises ComboError: the manifest does not name the data set, or asks for another variant; and as
    `make_job`.
    """
    manifest.choose([split.data_set])
    job = make_job(manifest, split.data_set, split.split, variant.stage)
    if job.variant.fingerprint != variant.fingerprint:
        raise ComboError(
            f"{manifest.file} asks for {job.variant.key} of {split}, the store holds {variant.key} "
            "too; give a manifest with the settings it was made with"
        )
    if job.plan != split.plan():
        raise ComboError(
            f"the clips of {split} have changed; run: combo preprocess {variant.stage} --overwrite "
            f"--data {split.data_set} --split {split.split}"
        )
    return job


def make_stage(manifest: Manifest, data_set: str, split: str, stage: str) -> Stage:
    """A stage with the manifest's settings for one split. Raises ComboError for missing weights."""
    rules = layout_of(manifest, data_set)
    settings, frames = manifest.stages, rules.frames_per_clip
    fit = fit_of(manifest, data_set, split)
    size = settings.frames.size
    if stage == "frames":
        from .frames import FramesStage

        if settings.frames.source == "imported":
            raise ComboError(
                "imported frames are not computed; run: combo import-frames DIR, "
                "or leave stages.frames.source out of the manifest"
            )
        root = manifest.root(data_set)
        classes = len(rules.classes(root))
        rule = rules.label_rule(root)
        return FramesStage(size, fit, frames, rule, classes, limits=manifest.limits)
    if stage == "audio":
        from .audio import AudioStage

        return AudioStage.make(manifest, rules.sound_rule, frames)
    if stage == "maskige":
        from .maskige import MaskigeStage

        if settings.maskige.generator == "imported":
            raise ComboError(IMPORTED)
        return MaskigeStage.make(manifest, size, fit, frames)
    raise ComboError(f"no stage {stage!r}; there are {', '.join(STAGES)}")


def stage_settings(manifest: Manifest, data_set: str, split: str) -> dict[str, dict[str, Any]]:
    """The settings of every stage's variant, stage -> settings; needs no data and no weights.

    Those of an import leave open what it was imported from (`store.PROVENANCE`).
    """
    from .audio import AudioStage
    from .frames import FramesStage
    from .imported import ImportedMaskigeStage
    from .maskige import MaskigeStage

    rules, settings = layout_of(manifest, data_set), manifest.stages
    fit, frames = fit_of(manifest, data_set, split), rules.frames_per_clip
    size = settings.frames.size
    anything = ("", "") if settings.frames.source == "imported" else None
    stages = (
        FramesStage(size, fit, frames, "binary", 2, anything),
        AudioStage.of(settings.audio, rules.sound_rule, frames, {}),
        ImportedMaskigeStage(size, fit, frames)
        if settings.maskige.generator == "imported"
        else MaskigeStage(settings.maskige, size, fit, frames),
    )
    variants = [stage.variant() for stage in stages]
    return {
        variant.stage: {k: v for k, v in variant.settings.items() if k not in PROVENANCE}
        for variant in variants
    }


def jobs(
    manifest: Manifest, stages: Sequence[str], data_sets: Sequence[str], splits: Sequence[str]
) -> Iterator[Job]:
    """Every job asked for: data set by data set, split by split, stage by stage.

    splits: only these; a data set that has none of them is left out, but some must have one.
    """
    found = False
    for data_set in data_sets:
        there = splits_of(manifest, data_set)
        for split in there:
            if not splits or split in splits:
                found = True
                yield from (make_job(manifest, data_set, split, stage) for stage in stages)
    if not found:
        raise ComboError(
            f"nothing to do: no data set of {manifest.file} has its root set"
            if not data_sets
            else f"no split {', '.join(splits)} in {', '.join(data_sets)}"
        )
