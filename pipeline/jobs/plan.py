"""From the manifest to jobs: which stage, over which data sets and splits, with which settings.

A split is listed and planned once, for all its stages: that reads its CSV, and the header of each
of its videos.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import remedies
from ..encoders import encoder
from ..errors import ComboError, WrongUsage, unknown
from ..generators import generator
from ..imports import not_computed, stages_asked
from ..layouts import Layout, Listing, layout
from ..layouts.folders import Folders
from ..layouts.published import FRAMES, MASKIGES, Tree, find_tree
from ..manifest import Manifest
from ..media.limits import Limits
from ..media.pictures import Fit
from ..packed import refuse_packed
from ..preprocess import audio, frames, imported, maskige
from ..preprocess.stage import Description, Stage
from ..store import STAGES, UNASKED, Plan, SplitStore, Variant
from ..weights import demand, resolve
from .inputs import DataSet
from .unit import Job


def layout_of(manifest: Manifest, data_set: str) -> Layout:
    """The layout of a data set, with the manifest's settings where it has any."""
    entry = manifest.data_sets[data_set]
    folders = Folders(
        entry.frames_per_clip or 0,
        entry.seconds_per_frame,
        split=entry.split,
        split_seed=entry.split_seed,
        cut=entry.cut or 0,
        limits=manifest.limits,
    )
    return layout(entry.layout, folders)


def splits_of(manifest: Manifest, data_set: str, asked: Sequence[str] = ()) -> list[str]:
    """The splits asked for, or all of a data set's. Raises ComboError for one it does not have."""
    there = manifest.data_sets[data_set].splits or layout_of(manifest, data_set).splits(
        manifest.root(data_set)
    )
    for split in asked:
        if split not in there:
            raise unknown(f"data set {data_set!r} has no split {split!r}", split, there, "it has")
    return list(asked or there)


def fit_of(manifest: Manifest, data_set: str, split: str) -> Fit:
    """How frames of a split reach their size: as the manifest says, else as the benchmark does."""
    return manifest.data_sets[data_set].fit.get(split) or layout_of(manifest, data_set).fit(split)


# -- what a store is asked for -------------------------------------------------------------------


def describe(manifest: Manifest, data_set: str, split: str) -> dict[str, Description]:
    """What each stage of a split makes by the manifest, stage -> description; needs no data, no
    weights. What only the data set's folder says is left out."""
    rules, settings = layout_of(manifest, data_set), manifest.stages
    fit, length = fit_of(manifest, data_set, split), rules.frames_per_clip
    size = settings.frames.size
    asked = stages_asked(settings)
    anything = ("", "") if "frames" in asked else None
    described = (
        frames.describe(size, fit, length, imported=anything, reading=rules.reading),
        audio.describe(settings.audio, rules.sound_rule, length, rules.reading),
        imported.describe(size, fit, length)
        if "maskige" in asked
        else maskige.describe(settings.maskige, size, fit, length, rules.reading),
    )
    return {each.stage: each for each in described}


def weights_of(manifest: Manifest, stages: Iterable[str], data_sets: Iterable[str]) -> list[str]:
    """The catalogue's names of all weights that stages of data sets need, each once."""
    described = [describe(manifest, name, "train") for name in data_sets]
    return list(dict.fromkeys(w for s in stages for each in described for w in each[s].weights))


def stage_settings(manifest: Manifest, data_set: str, split: str) -> dict[str, dict[str, Any]]:
    """The settings of each stage's variant that the manifest asks for, stage -> settings."""
    return {
        stage: {k: v for k, v in description.recorded.items() if k not in UNASKED}
        for stage, description in describe(manifest, data_set, split).items()
    }


# -- jobs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlannedSplit:
    """A split of the manifest, listed: its place in the store, its plan and its data."""

    manifest: Manifest
    where: SplitStore
    rules: Layout
    plan: Plan
    data: DataSet

    @property
    def clips(self) -> Listing:
        return self.data.clips

    def job(self, stage: str) -> Job:
        """The job that computes a stage. Opens no media. Raises ComboError for missing weights."""
        return self._job(self._stage(stage), self.clips)

    def import_job(self, stage: str, folder: Path, note: str, tree: str) -> Job:
        """The job that imports a stage ("frames" or "maskige") from below `folder`.

        tree: the kind of tree, "" for the first kind that is there.
        Raises ComboError: nothing of the split is there, or the public code has no such tree of it.
        """
        found = find_tree(self._trees(stage, tree), folder, self.clips)
        if stage == "frames":
            return self._job(self._frames((found.tree.name, note)), Listing.of(found.clips))
        fitted = (*self._fitted, self.plan.frames_per_clip)
        limits = self.manifest.limits
        made = imported.ImportedMaskigeStage(*fitted, found.tree.name, note, limits)
        return self._job(made, Listing.of(found.clips))

    def job_of(self, variant: Variant) -> Job:
        """The job that makes a variant which the store holds, with the manifest's settings.

        Raises ComboError: the manifest asks for another variant, or the clips have changed; and as
        `job`.
        """
        manifest, split = self.manifest, self.where
        job = self.job(variant.stage)
        if job.variant.fingerprint != variant.fingerprint:
            raise ComboError(
                f"{manifest.file} asks for {job.variant.key} of {split}, the store holds "
                f"{variant.key} too; give a manifest with the settings it was made with"
            )
        if job.plan != split.plan():
            raise ComboError(
                f"the list of clips of {split} has changed; "
                f"run: {remedies.make(variant.stage, split.data_set, split.split)}"
            )
        return job

    @property
    def _fitted(self) -> tuple[tuple[int, int], Fit]:
        """The size of frames in the store, and how they reach it."""
        fit = fit_of(self.manifest, self.where.data_set, self.where.split)
        return self.manifest.stages.frames.size, fit

    @property
    def _reading(self) -> tuple[Limits, int]:
        """How the split's files are read."""
        return self.manifest.limits, self.rules.reading

    def _job(self, stage: Stage, clips: Listing) -> Job:
        return Job(self.where, stage, stage.variant(), self.plan, clips, self.data)

    def _stage(self, stage: str) -> Stage:
        settings, length = self.manifest.stages, self.plan.frames_per_clip
        if stage in stages_asked(settings):
            raise not_computed(stage)
        if stage == "frames":
            return self._frames()
        if stage == "audio":
            rule = audio.rule_of(settings.audio, self.rules.sound_rule)
            names = encoder(settings.audio.encoder).weights
            weights = self._weights(*names)
            return audio.AudioStage(settings.audio, rule, length, weights, *self._reading)
        if stage == "maskige":
            name = generator(settings.maskige.generator).weights
            weights = self._weights(name) if name else {}
            fitted = (*self._fitted, length)
            return maskige.MaskigeStage(settings.maskige, *fitted, weights, *self._reading)
        raise unknown(f"no stage {stage!r}", stage, STAGES)

    def _frames(self, source: tuple[str, str] | None = None) -> Stage:
        rule = self.rules.label_rule(self.manifest.root(self.where.data_set))
        length, classes = self.plan.frames_per_clip, len(self.plan.classes)
        fitted = (*self._fitted, length)
        return frames.FramesStage(*fitted, rule, classes, source, *self._reading)

    def _weights(self, *names: str) -> dict[str, tuple[Path, str]]:
        return {name: resolve(name, self.manifest) for name in names}

    def _trees(self, stage: str, tree: str) -> list[Tree]:
        trees = (MASKIGES if stage == "maskige" else FRAMES).get(self.rules.name, ())
        chosen = [each for each in trees if tree in ("", each.name)]
        if chosen:
            return chosen
        data_set = self.where.data_set
        if trees:
            names = ", ".join(each.name for each in trees)
            raise WrongUsage(
                f"--tree {tree}: data set {data_set!r} ({self.rules.name}) has {names}"
            )
        raise ComboError(
            f"the public code has no {stage} of its own for data set {data_set!r} "
            f"({self.rules.name}); run: {remedies.make(stage, data_set)}"
        )


def planned(manifest: Manifest, data_set: str, split: str) -> PlannedSplit:
    """A split, listed. Opens no media but videos' headers.

    Raises ComboError: the manifest does not name the data set, it is not found or has no clips.
    """
    manifest.choose([data_set])
    refuse_packed(manifest.store_path, "preprocessing")
    rules, root = layout_of(manifest, data_set), manifest.root(data_set)
    if isinstance(rules, Folders):
        _demand_apart(manifest, data_set, root)
    clips = rules.clips(root, split)
    where = SplitStore(manifest.store_path, data_set, split)
    if not clips:
        raise ComboError(f"{where} has no clips; see data_sets.{data_set} in the manifest")
    plan = Plan(
        layout=rules.name,
        clips=clips.names,
        subsets=clips.subsets,
        frames_per_clip=max(rules.longest(clips), 0 if rules.frames_per_clip else _room(where)),
        classes=tuple(rules.classes(root)),
        clips_per_unit=manifest.clips_per_unit,
        seconds_per_frame=rules.seconds_per_frame,
        cut=rules.cut,
    )
    return PlannedSplit(manifest, where, rules, plan, DataSet(root, clips))


def _room(where: SplitStore) -> int:
    """Frames that a clip may have in a split of the store: that does not shrink by itself."""
    try:
        there = where.read_plan()
    except ComboError:  # whoever writes there says so
        return 0
    return there.frames_per_clip if there else 0


def _demand_apart(manifest: Manifest, data_set: str, root: Path) -> None:
    """Raise ComboError where a store and a data set that is whatever folders there are overlap."""
    store, own = manifest.store_path.resolve(), root.resolve()
    inside = store.is_relative_to(own)
    if inside or own.is_relative_to(store):
        said = "lies inside" if inside else "holds"
        raise ComboError(
            f"the store {manifest.store_path} {said} the folder of data set {data_set!r}, {root}, "
            f"whose folders are its clips; give another store in {manifest.file} or COMBO_STORE"
        )


def make_job(manifest: Manifest, data_set: str, split: str, stage: str) -> Job:
    """The job of one stage over one split. Raises ComboError as `planned` and its `job`."""
    return planned(manifest, data_set, split).job(stage)


def jobs(
    manifest: Manifest, stages: Sequence[str], data_sets: Sequence[str], splits: Sequence[str]
) -> Iterator[Job]:
    """Every job asked for: data set by data set, split by split, stage by stage.

    splits: only these; a data set that has none of them is left out, but some must have one.
    Raises ComboError before the first: nothing to do, or weights that any stage needs are missing.
    """
    if not data_sets:
        raise ComboError(f"nothing to do: no data set of {manifest.file} has its root set")
    there = [(name, split) for name in data_sets for split in splits_of(manifest, name)]
    chosen = [(name, split) for name, split in there if not splits or split in splits]
    if not chosen:
        said = f"no split {', '.join(splits)} in {', '.join(data_sets)}"
        known = dict.fromkeys(split for _, split in there)
        raise unknown(said, splits[0], known) if splits else ComboError(said)
    demand(weights_of(manifest, stages, data_sets), manifest.weight_paths())
    for data_set, split in chosen:
        each = planned(manifest, data_set, split)
        yield from (each.job(stage) for stage in stages)
