"""What `combo report` costs of a large store, and what opening its page costs.

    python benchmarks/report.py                       a store of AVSS's 11,356 clips, and its report
    python benchmarks/report.py --page demo/report.html      only open a page

The store is made by stages that compute nothing: all clips have the same pictures, and one of 500
fails. Opening is timed in Chromium, where there is one, until all of the page is drawn.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from combo.pipeline.devices import Place
from combo.pipeline.jobs.inputs import DataSet
from combo.pipeline.jobs.run import Options, run_job, settle_plan
from combo.pipeline.jobs.unit import Job
from combo.pipeline.layouts import Clip, Listing
from combo.pipeline.layouts.avsbench import AVSS
from combo.pipeline.manifest import AudioSettings, MaskigeSettings
from combo.pipeline.preprocess import audio, frames, maskige
from combo.pipeline.preprocess.stage import Description, Outcome, Worker
from combo.pipeline.store import ArraySpec, Plan, SplitStore, Variant

LENGTH = 10


@dataclass(frozen=True)
class Same:
    """A stage that gives every clip the same arrays, and fails one of 500."""

    description: Description
    has_network: bool = False

    def variant(self) -> Variant:
        return self.description.variant()

    def open(self, place: Place) -> Worker:
        del place
        arrays = {spec.name: _something(spec) for spec in self.description.arrays}

        def work(clips: Sequence[Clip]) -> list[Outcome]:
            failed = Outcome(None, "truncated: audio.wav")
            return [failed if int(c.name[4:]) % 500 == 7 else Outcome(arrays) for c in clips]

        return work

    def inputs(self, clip: Clip) -> list[Path]:
        del clip
        return []


def _something(spec: ArraySpec) -> np.ndarray:
    """A picture of a gradient with squares; ones where there is no picture."""
    if len(spec.shape) < 3:
        return np.ones(spec.shape, spec.dtype)
    down, across = np.mgrid[: spec.shape[1], : spec.shape[2]]
    squares = (down // 16 + across // 16) % 5
    picture = squares if len(spec.shape) == 3 else (squares[..., None] * 40 + down[..., None] // 2)
    return np.broadcast_to(picture, spec.shape).astype(spec.dtype)


def make_store(store: Path, splits: dict[str, int], size: int) -> None:
    side = (size, size)
    stages = (
        frames.describe(side, "squash", LENGTH),
        audio.describe(AudioSettings(encoder="mel-stats"), "zeros", LENGTH),
        maskige.describe(MaskigeSettings(generator="felzenszwalb"), side, "squash", LENGTH),
    )
    names = ("background", *(f"class {number}" for number in range(1, 71)))
    for split, count in splits.items():
        clips = tuple(Clip(f"clip{number:06d}") for number in range(count))
        plan = Plan(AVSS.name, tuple(c.name for c in clips), ("v2",) * count, LENGTH, names, 8)
        listing = Listing.of(clips)
        for description in stages:
            stage, where = Same(description), SplitStore(store, "avss", split)
            data = DataSet(store, listing)
            job = Job(where, stage, stage.variant(), plan, listing, data)
            settle_plan(job, Options())
            run_job(job, Options())


def report(store: Path, page: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    started = time.perf_counter()
    command = [sys.executable, "-m", "combo", "report", store, "--out", page]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(
        f"combo report: {seconds:.1f} s (goal: 60), {page.stat().st_size / 1e6:.1f} MB (goal: 25)"
    )
    print(f"  peak memory {max(peak, before) / 1024:.0f} MiB")


def open_page(page: Path, rounds: int) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        print("not opened: there is no chromium")
        return
    from playwright.sync_api import sync_playwright

    seconds = []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(rounds):
            tab = browser.new_page()
            began = time.perf_counter()
            tab.goto(page.resolve().as_uri())
            tab.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
            seconds.append(time.perf_counter() - began)
            tab.close()
        browser.close()
    size = page.stat().st_size / 1e6
    print(f"opened {page.name} ({size:.1f} MB): {statistics.median(seconds):.2f} s (goal: 2)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=96, help="pixels of a frame's side")
    parser.add_argument("--share", type=float, default=1.0, help="of AVSS's clips")
    parser.add_argument("--folder", type=Path, help="where to work; default the temporary folder")
    parser.add_argument("--page", type=Path, help="only open this page")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}")
    if options.page:
        open_page(options.page, 5)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store, page = Path(folder) / "store", Path(folder) / "report.html"
        splits = {name: round(count * options.share) for name, count in AVSS.expected.items()}
        make_store(store, splits, options.size)
        print(f"a store of {sum(splits.values()):,} clips of {LENGTH} frames at {options.size}")
        report(store, page)
        open_page(page, 3)


if __name__ == "__main__":
    main()
