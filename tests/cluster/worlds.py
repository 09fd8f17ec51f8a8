"""A small world for tests of lists that change: sounds, a list of them, a stage and a store."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from combo.pipeline.devices import Place
from combo.pipeline.digests import file_digest
from combo.pipeline.jobs import kept, moved
from combo.pipeline.jobs.inputs import DataSet
from combo.pipeline.jobs.run import Options, Summary, run_job, settle_plan
from combo.pipeline.jobs.unit import Job
from combo.pipeline.jobs.verify import Finding, verify_variant
from combo.pipeline.layouts import Clip, Listing
from combo.pipeline.preprocess.stage import Description, Outcome, Worker, attempt, combined_digest
from combo.pipeline.store import ArraySpec, Plan, SplitStore, Variant


@dataclass(frozen=True)
class Reading:
    """A stage whose array is the text of the clip's sound file, and which tells what it computes.

    A file that holds "broken" fails its clip.
    """

    computed: list[str]
    name: str = "reading"
    has_network: bool = False

    def variant(self) -> Variant:
        arrays = (ArraySpec("text", (4,), "uint8"),)
        return Description("audio", self.name, 1, {}, arrays).variant()

    def open(self, place: Place) -> Worker:
        del place
        return lambda clips: [attempt(clip, self._clip) for clip in clips]

    def inputs(self, clip: Clip) -> list[Path]:
        assert clip.sound is not None
        return [clip.sound]

    def _clip(self, clip: Clip) -> Outcome:
        self.computed.append(clip.name)
        (file,) = self.inputs(clip)
        digest = combined_digest([file_digest(file)])
        text = np.frombuffer(file.read_bytes().ljust(4)[:4], np.uint8)
        if file.read_text() == "broken":
            return Outcome(None, f"{file} is broken")
        return Outcome({"text": text}, "", digest)


@dataclass
class World:
    """A folder of sounds, a list of them, and a store."""

    home: Path

    def job(self, names: Sequence[str], per_unit: int = 3, **plan: object) -> Job:
        """A job over clips of these names; files that are missing are written."""
        sounds = self.home / "sounds"
        sounds.mkdir(parents=True, exist_ok=True)
        for name in names:
            if not (sounds / name).exists():
                (sounds / name).write_text(name)
        clips = Listing.of([Clip(name, sound=sounds / name) for name in names])
        made = Plan("folders", clips.names, clips.subsets, 1, ("background", "object"), per_unit)
        stage = Reading([])
        split = SplitStore(self.home / "store", "mine", "train")
        data = DataSet(sounds, clips)
        return Job(split, stage, stage.variant(), replace(made, **plan), clips, data)

    def run(self, names: Sequence[str], per_unit: int = 3, **options: bool) -> list[str]:
        """Settle and compute; which clips were computed. The store is verified."""
        job = self.job(names, per_unit)
        self.settle(job, **options)
        assert finished(job, **options)
        whole(job)
        assert isinstance(job.stage, Reading)
        return job.stage.computed

    def settle(self, job: Job, **options: bool) -> list[str]:
        told: list[str] = []
        settle_plan(job, Options(**options), told.append)
        return told


def finished(job: Job, **options: bool) -> Summary | None:
    summary = run_job(job, Options(**options))
    return summary if summary.finished is not None else None


def whole(job: Job) -> None:
    """The store holds the clips of a job's plan, each its own, and nothing else is left of it."""
    assert job.split.plan() == job.plan
    found = [f for f in verify_variant(job.split, job.variant) if isinstance(f, Finding)]
    assert found == []
    texts = job.split.read_array(job.variant, "text")[: len(job.clips)]
    valid = job.split.read_array(job.variant, "valid")
    shown = [
        bytes(text).decode().strip() if good else ""
        for text, good in zip(texts, valid, strict=False)
    ]
    wanted = [clip.sound.read_text()[:4] for clip in job.clips if clip.sound]
    assert shown == ["" if text == "brok" else text for text in wanted]
    assert not valid[len(job.clips) :].any()
    assert not moved.begun(job.split)
    assert kept.units(job.split, job.variant) == []
