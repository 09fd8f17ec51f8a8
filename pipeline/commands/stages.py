"""`combo preprocess` and `combo sample`."""

import sys
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .. import durable
from ..console import Output, duration
from ..errors import ComboError
from ..jobs import scheduler
from ..jobs.estimate import Estimate, estimate, size_text
from ..jobs.local import LocalRunner
from ..jobs.plan import STAGES, jobs
from ..jobs.run import Options, Runner, Summary, parse_part, run_job, settle_plan, units_to_do
from ..jobs.stopping import Stop, Stopped, listening
from ..jobs.unit import Job
from ..manifest import FILE_NAME, Manifest, load_manifest

SAMPLE_MANIFEST = """\
# Written by `combo sample`: needs no weights, and is small enough for two CPU cores.
store: store
data_sets:
  s4: {layout: avsbench-s4, root: AVSBench_object/Single-source}
  ms3: {layout: avsbench-ms3, root: AVSBench_object/Multi-sources}
  avss: {layout: avsbench-avss, root: AVSBench_semantic}
stages:
  frames: {size: 96}
  audio: {encoder: mel-stats}
  maskige: {generator: felzenszwalb, at: stored}
"""

SHOWN = 20
"""Failed clips named in a summary before "and N more"."""


@dataclass(frozen=True)
class Computers:
    """What computes: processes of this machine, or workers of a Dask cluster.

    dask: `local`, a scheduler or an address; None for none.  lifetime, arguments: of workers that
    are a scheduler's jobs.
    """

    workers: int | None = None
    per_device: int = 1
    device: str = "auto"
    dask: str | None = None
    lifetime: str | None = None
    arguments: tuple[str, ...] = ()

    @property
    def local(self) -> LocalRunner:
        return LocalRunner(self.workers, self.device, self.per_device)

    @contextmanager
    def runner(self, output: Output, manifest: Manifest) -> Generator[Runner]:
        """What runs the units, for as long as the block lasts."""
        if self.dask is None:
            yield self.local
            return
        from ..jobs.dask_cluster import dask_runner

        with dask_runner(
            self.dask,
            workers=self.workers,
            device=self.device,
            cluster=manifest.cluster.with_arguments(self.arguments),
            lifetime=self.lifetime,
            logs=manifest.store_path / "jobs" / "dask",
        ) as (runner, dashboard):
            output.note(f"dask: up to {runner.workers} workers; dashboard: {dashboard}")
            yield runner


def parse_options(part: str, overwrite: bool, retry_failed: bool, force: bool = False) -> Options:
    return Options(parse_part(part), overwrite, retry_failed, force)


def preprocess(
    output: Output,
    manifest_file: Path | None,
    stage: str,
    data: Sequence[str],
    splits: Sequence[str],
    *,
    options: Options,
    computers: Computers,
    encoder: str | None = None,
    generator: str | None = None,
    memory_limit: str | None = None,
    dry_run: bool = False,
    requeue: bool = False,
) -> None:
    """`combo preprocess`: plan, run and finalise stages; exits with 1 when clips failed."""
    manifest = load_manifest(manifest_file).with_stages(encoder, generator, memory_limit)
    with listening() as stop:
        try:
            good = run_stages(
                output, manifest, stage, data, splits, options, computers, stop, dry_run
            )
        except Stopped:
            if requeue and (here := scheduler.here()):
                here.requeue(stop.warned, lambda said: output.warn(f"combo: {said}"))
            if options.overwrite:
                output.warn("combo: to go on, leave out --overwrite, which begins from the start")
            raise
    if not good:
        sys.exit(1)


def run_stages(
    output: Output,
    manifest: Manifest,
    stage: str,
    data: Sequence[str],
    splits: Sequence[str],
    options: Options,
    computers: Computers,
    stop: Stop | None = None,
    dry_run: bool = False,
) -> bool:
    """Run stages over splits and print what came of it; False when a clip or a unit failed."""
    found = jobs(manifest, stages_of(stage), manifest.choose(data), splits)
    return run_jobs(output, manifest, found, options, computers, stop, dry_run)


def run_jobs(
    output: Output,
    manifest: Manifest,
    found: Iterable[Job],
    options: Options,
    computers: Computers,
    stop: Stop | None = None,
    dry_run: bool = False,
) -> bool:
    """Run jobs and print what came of it; False when a clip or a unit failed."""
    if dry_run:
        for job in found:
            _foretell(output, job, options, computers)
        return True
    summaries: list[Summary] = []
    started = time.monotonic()
    with computers.runner(output, manifest) as runner:
        for job in found:
            settle_plan(job.split, job.plan, options)
            summaries.append(_run(output, job, options, runner, stop))
    _report(output, summaries, time.monotonic() - started)
    return not any(s.failed or s.lost for s in summaries)


def stages_of(name: str) -> Sequence[str]:
    """The stages that `name` stands for: itself, or `all`."""
    return STAGES if name == "all" else (name,)


def needs(estimate: Estimate) -> str:
    """An estimate in words."""
    free = f"{size_text(estimate.free)} free"
    if estimate.seconds is None:
        return f"at most {size_text(estimate.bytes)} ({free}); time not known before one is done"
    return f"about {duration(estimate.seconds)} and {size_text(estimate.bytes)} ({free})"


def _foretell(output: Output, job: Job, options: Options, computers: Computers) -> None:
    todo = len(units_to_do(job, options))
    processes = (
        computers.local.processes(job, todo) if computers.dask is None else (computers.workers or 1)
    )
    output.result(
        f"{job.split} {job.variant.stage}: {todo} units of {job.plan.clips_per_unit} clips to do "
        f"({len(job.plan.clips)} clips, {job.variant.key}); "
        f"{needs(estimate(job, todo, processes))}"
    )


def _run(output: Output, job: Job, options: Options, runner: Runner, stop: Stop | None) -> Summary:
    title = f"{job.split} {job.variant.stage}"
    todo = units_to_do(job, options)
    with output.bar(title, sum(len(job.plan.members(unit)) for unit in todo)) as bar:
        return run_job(
            job,
            options,
            runner,
            stop,
            units=todo,
            on_estimate=lambda e: output.note(f"{title}: {e.units} units to do, {needs(e)}"),
            on_unit=lambda record: bar.advance(
                len(record.clips), f"{len(record.failed)} failed" if record.failed else ""
            ),
        )


def _report(output: Output, summaries: Sequence[Summary], seconds: float) -> None:
    if output.as_json:
        output.json(
            [
                {
                    "data_set": s.split.data_set,
                    "split": s.split.split,
                    "stage": s.variant.stage,
                    "variant": s.variant.name,
                    "units": s.units,
                    "units_computed": s.computed,
                    "units_lost": s.lost,
                    "failed": s.failed,
                    "finished": s.finished is not None,
                }
                for s in summaries
            ]
        )
        return
    for s in summaries:
        failed = f", {len(s.failed)} clips failed" if s.failed else ""
        state = "finished" if s.finished else "not finished: other parts are still to do"
        if s.lost:
            state = f"NOT finished: units {s.lost} killed their process every time they were tried"
        output.result(
            f"{s.split} {s.variant.key}: {s.computed} of {s.units} units computed{failed}; {state}"
        )
        names = list(s.failed.items())
        for name, reason in names[:SHOWN]:
            output.warn(f"  failed: {name}: {reason}")
        if len(names) > SHOWN:
            output.warn(f"  and {len(names) - SHOWN} more; see combo status --json")
    if any(s.failed for s in summaries):
        output.warn("mend these files, then run the same command with --retry-failed")
    output.note(f"took {duration(seconds)}")


def sample(output: Output, folder: Path, s4: str, ms3: str, avss: str, seed: int) -> None:
    """`combo sample`."""
    from ..sample import write_sample

    counts = {
        name: _counts(name, text) for name, text in (("s4", s4), ("ms3", ms3), ("avss", avss))
    }
    with output.bar("sample data", sum(map(sum, counts.values()))) as bar:
        new = write_sample(folder, **counts, seed=seed, progress=lambda *_: bar.advance())
    manifest = folder / FILE_NAME
    if not manifest.exists():
        durable.write_bytes(manifest, SAMPLE_MANIFEST.encode())
    output.result(f"wrote {folder}" if new else f"{folder} holds this sample already")
    output.note(f"try it: combo preprocess all --manifest {manifest}")


def _counts(name: str, text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise ComboError(f"--{name} {text}: write clips in train, val and test, as in 24,6,8")
    train, val, test = map(int, parts)
    return train, val, test
