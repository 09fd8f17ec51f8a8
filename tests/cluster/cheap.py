"""A job whose units cost next to nothing, in a process of its own that may be killed.

    python cheap.py STORE LOG UNITS SECONDS    computes what is not done of it, then ends

Each unit takes SECONDS and adds its number to LOG as it begins.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from combo.pipeline.devices import Place
from combo.pipeline.jobs.inputs import DataSet
from combo.pipeline.jobs.local import LocalRunner
from combo.pipeline.jobs.run import Options, Summary, run_job, settle_plan
from combo.pipeline.jobs.stopping import listening
from combo.pipeline.jobs.unit import Job
from combo.pipeline.layouts import Clip, Listing
from combo.pipeline.preprocess.stage import Description, Outcome, Worker
from combo.pipeline.store import ArraySpec, Plan, SplitStore, Variant


@dataclass(frozen=True)
class CheapStage:
    log: Path | None = None
    seconds: float = 0.0
    has_network: bool = False

    def variant(self) -> Variant:
        arrays = (ArraySpec("embedding", (8,), "float32"),)
        return Description("audio", "cheap", 1, {}, arrays).variant()

    def open(self, place: Place) -> Worker:
        del place
        return self._run

    def inputs(self, clip: Clip) -> list[Path]:
        del clip
        return []

    def _run(self, clips: Sequence[Clip]) -> list[Outcome]:
        if self.log is not None:
            line = f"{clips[0].name}\n".encode()
            log = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(log, line)
            os.close(log)
        time.sleep(self.seconds)
        return [
            Outcome({"embedding": np.full(8, 1 + int(clip.name), np.float32)}) for clip in clips
        ]


def cheap_job(store: Path, units: int, log: Path | None = None, seconds: float = 0.0) -> Job:
    """One clip a unit."""
    clips = Listing.of([Clip(f"{number:06d}") for number in range(units)])
    plan = Plan("folders", clips.names, clips.subsets, 1, ("background", "object"), 1)
    split, stage = SplitStore(store, "cheap", "train"), CheapStage(log, seconds)
    return Job(split, stage, stage.variant(), plan, clips, DataSet(store.parent, clips))


def run_cheap(job: Job, workers: int = 1) -> Summary:
    settle_plan(job, Options())
    with listening() as stop:
        return run_job(job, Options(), LocalRunner(workers), stop)


if __name__ == "__main__":
    store, log, units, seconds = sys.argv[1:]
    run_cheap(cheap_job(Path(store), int(units), Path(log), float(seconds)))
