"""`combo preprocess` and `combo sample`."""

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from .. import durable
from ..console import Output, duration
from ..errors import ComboError
from ..jobs.run import Options, Summary, parse_part, run_job, settle_plan, units_to_do
from ..jobs.unit import Job
from ..manifest import FILE_NAME, Manifest, load_manifest
from ..preprocess.tasks import STAGES, jobs

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


def preprocess(
    output: Output,
    manifest_file: Path | None,
    stage: str,
    data: Sequence[str],
    splits: Sequence[str],
    *,
    encoder: str | None = None,
    generator: str | None = None,
    memory_limit: str | None = None,
    part: str = "1/1",
    workers: int = 1,
    dry_run: bool = False,
    overwrite: bool = False,
    retry_failed: bool = False,
) -> None:
    """`combo preprocess`: plan, run and finalise stages; exits with 1 when clips failed."""
    manifest = load_manifest(manifest_file).with_stages(encoder, generator, memory_limit)
    options = Options(parse_part(part), workers, overwrite, retry_failed)
    if not run_stages(output, manifest, stage, data, splits, options, dry_run):
        sys.exit(1)


def run_stages(
    output: Output,
    manifest: Manifest,
    stage: str,
    data: Sequence[str],
    splits: Sequence[str],
    options: Options,
    dry_run: bool = False,
) -> bool:
    """Run stages over splits and print what came of it; False when a clip or a unit failed."""
    stages = STAGES if stage == "all" else (stage,)
    found = jobs(manifest, stages, manifest.choose(data), splits)
    return run_jobs(output, found, options, dry_run)


def run_jobs(output: Output, found: Iterable[Job], options: Options, dry_run: bool = False) -> bool:
    """Run jobs and print what came of it; False when a clip or a unit failed."""
    summaries: list[Summary] = []
    started = time.monotonic()
    for job in found:
        title = f"{job.split} {job.variant.stage}"
        if dry_run:
            todo = len(units_to_do(job, options))
            output.result(
                f"{title}: {todo} units of {job.plan.clips_per_unit} clips to do "
                f"({len(job.plan.clips)} clips, {job.variant.key})"
            )
            continue
        settle_plan(job.split, job.plan, options)
        todo = units_to_do(job, options)
        with output.bar(title, sum(len(job.plan.members(unit)) for unit in todo)) as bar:
            summaries.append(
                run_job(
                    job,
                    options,
                    on_unit=lambda record, bar=bar: bar.advance(
                        len(record.clips), f"{len(record.failed)} failed" if record.failed else ""
                    ),
                )
            )
    if not dry_run:
        _report(output, summaries, time.monotonic() - started)
    return not any(s.failed or s.lost for s in summaries)


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
                    "units_computed": s.todo - len(s.lost),
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
            state = f"NOT finished: units {s.lost} killed their process {len(s.lost)} times over"
        output.result(
            f"{s.split} {s.variant.key}: {s.todo} of {s.units} units computed{failed}; {state}"
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
