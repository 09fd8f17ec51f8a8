"""What the job machinery costs beside the work itself.

    python benchmarks/jobs.py                       everything, a few minutes
    python benchmarks/jobs.py --units 200 --many 2000

A stage that does nothing is run by one and by two processes; many units are planned, and their
status is read; and the operations on the file system that a unit costs are counted with strace,
where that is installed. On a shared file system it is these operations that bound a large array.
"""

import argparse
import collections
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from combo.pipeline import durable
from combo.pipeline.devices import Place
from combo.pipeline.jobs import records
from combo.pipeline.jobs.inputs import DataSet
from combo.pipeline.jobs.local import LocalRunner
from combo.pipeline.jobs.plan import make_job
from combo.pipeline.jobs.records import ClipRecord, UnitRecord
from combo.pipeline.jobs.run import Options, run_job, settle_plan, units_to_do
from combo.pipeline.jobs.status import stage_statuses
from combo.pipeline.jobs.unit import Job
from combo.pipeline.layouts import Clip, Listing
from combo.pipeline.manifest import load_manifest
from combo.pipeline.preprocess.stage import Description, Outcome, Worker
from combo.pipeline.store import ArraySpec, Plan, SplitStore, Variant


@dataclass(frozen=True)
class Nothing:
    """A stage that does nothing, with one small array."""

    has_network: bool = False

    def variant(self) -> Variant:
        arrays = (ArraySpec("embedding", (8,), "float32"),)
        return Description("audio", "nothing", 1, {}, arrays).variant()

    def open(self, place: Place) -> Worker:
        del place
        return self._run

    def inputs(self, clip: Clip) -> list[Path]:
        del clip
        return []

    def _run(self, clips: Sequence[Clip]) -> list[Outcome]:
        return [Outcome({"embedding": np.ones(8, np.float32)}) for _ in clips]


def nothing(store: Path, units: int) -> Job:
    names = tuple(f"clip{number:07d}" for number in range(units))
    plan = Plan("folders", names, ("",) * units, 1, ("background", "object"), 1)
    stage = Nothing()
    clips = Listing.of(tuple(Clip(name) for name in names))
    data = DataSet(store, clips)
    job = Job(SplitStore(store, "nothing", "train"), stage, stage.variant(), plan, clips, data)
    settle_plan(job, Options())
    return job


def overhead(root: Path, units: int) -> None:
    print(f"{units} units of a stage that does nothing, in {root}")
    seconds = {}
    for workers in (1, 2):
        job = nothing(root / f"workers{workers}", units)
        # Processes that have started are what counts: the first units are not timed.
        began = list[float]()
        run_job(
            job,
            Options(),
            LocalRunner(workers),
            on_unit=lambda _, began=began: began.append(time.time()),
        )
        warm = began[units // 10 :]
        seconds[workers] = (warm[-1] - warm[0]) / (len(warm) - 1)
        rate = 1 / seconds[workers]
        print(
            f"  {workers} process(es): {1e3 * seconds[workers]:6.2f} ms a unit, {rate:7.0f} units/s"
        )
    print(f"  two processes: {seconds[1] / seconds[2]:.2f} times one")


def many(root: Path, units: int) -> None:
    """Plan and look at a data set with that many units, in the layout of S4."""
    home = root / "data"
    home.mkdir()
    with (home / "s4_meta_data.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("name", "category", "split"))
        rows.writerows((f"clip{n:07d}", "dog", "train") for n in range(units))
    manifest = root / "data_manifest.yaml"
    manifest.write_text(
        "store: store\nclips_per_unit: 1\n"
        "data_sets:\n  s4: {layout: avsbench-s4, root: data}\n"
        "stages:\n  audio: {encoder: mel-stats}\n"
    )
    started = time.perf_counter()
    job = make_job(load_manifest(manifest), "s4", "train", "audio")
    settle_plan(job, Options())
    job.split.create(job.variant, job.plan)
    todo = units_to_do(job, Options())
    print(
        f"{len(todo)} units planned in {time.perf_counter() - started:.2f} s (goal at 100,000: 10)"
    )

    for unit in todo:
        clip = ClipRecord(job.plan.clips[unit], unit % 1000 == 0, "a reason", "0" * 64)
        record = UnitRecord(
            unit, job.plan.fingerprint, job.variant.fingerprint, (clip,), {}, 1.0, 0.1, 1.7e9
        )
        path = records.record_path(job.split, job.variant, unit, bool(record.failed))
        durable.write_json(path, asdict(record), lasting=False)
    for name in ("first", "again"):
        started = time.perf_counter()
        (state,) = stage_statuses(job.split.store)
        print(
            f"  status of {state.units_done} units, {name}: {time.perf_counter() - started:.2f} s "
            "(goal at 100,000: 2)"
        )
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "combo", "status", "--manifest", manifest],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    print(f"  `combo status` as a command: {time.perf_counter() - started:.2f} s")
    started = time.perf_counter()
    assert not units_to_do(job, Options())
    print(f"  opening every record: {time.perf_counter() - started:.2f} s")


def operations(root: Path) -> None:
    """Calls to the file system for a unit: the difference between many and few units."""
    if shutil.which("strace") is None:
        print("operations a unit: not counted, strace is not installed")
        return
    few, more = 50, 150
    counts = []
    for units in (few, more):
        log = root / f"strace{units}"
        subprocess.run(
            [
                *["strace", "-f", "-e", "trace=%file,fsync,fcntl,getdents64", "-o", str(log)],
                *[sys.executable, __file__, "--only-run", str(root / f"ops{units}"), str(units)],
            ],
            check=True,
        )
        there = str(root)
        names = collections.Counter[str]()
        for line in log.read_text(errors="replace").splitlines():
            found = re.match(r"\d+\s+(\w+)\((.*)", line)
            if found and (there in found[2] or found[1] == "fsync" or "F_SETLK" in found[2]):
                failed = " ENOENT" if "ENOENT" in line else ""
                names[found[1] + failed] += 1
        counts.append(names)
    each = {n: (counts[1][n] - counts[0][n]) / (more - few) for n in counts[1]}
    print(f"operations a unit with {len(Nothing().variant().all_arrays)} arrays")
    for name, count in sorted(each.items(), key=lambda item: -item[1]):
        if count >= 0.01:
            print(f"  {name:20} {count:5.2f}")
    print(f"  {'together':20} {sum(each.values()):5.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=1000)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where to work; default the temporary folder")
    parser.add_argument("--only-run", nargs=2, metavar=("STORE", "UNITS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_run:
        store, units = options.only_run
        run_job(nothing(Path(store), int(units)), Options())
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}")
        overhead(root, options.units)
        many(root, options.many)
        operations(root)


if __name__ == "__main__":
    main()
