"""Job arrays and Dask workers on a real Slurm; skipped where there is none."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import combo

from combo.pipeline.jobs import records, scheduler
from combo.pipeline.jobs.parts import read_parts
from combo.pipeline.jobs.plan import make_job
from combo.pipeline.jobs.run import Options, run_job, settle_plan
from combo.pipeline.jobs.unit import Job
from combo.pipeline.jobs.verify import Finding, verify_variant
from combo.pipeline.manifest import load_manifest
from combo.pipeline.sample import write_sample

from .slurm_tools import are_over, queue, slurm, start_again, wait_until, why_no_slurm
from .test_job_arrays import array_of

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.usefixtures("has_the_cluster"),
    pytest.mark.skipif(why_no_slurm() is not None, reason=why_no_slurm() or ""),
]

MANIFEST = """\
store: {store}
clips_per_unit: 1
data_sets:
  s4: {{layout: avsbench-s4, root: {root}/AVSBench_object/Single-source}}
stages:
  frames: {{size: 96}}
  audio: {{encoder: mel-stats}}
  maskige: {{generator: felzenszwalb, at: native}}
cluster: {{cores: 1, memory: 1GB, walltime: "00:10:00"}}
"""

CLIPS = 24
PHOTO_TOOL = Path(__file__).parents[3] / "shared" / "tools" / "make_photo_clips.py"

MASKIGES = ("maskige", "--data", "s4", "--split", "train")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A train split in the layout of S4."""
    root = tmp_path_factory.mktemp("clips")
    write_sample(root, s4=(CLIPS, 1, 1), ms3=(1, 1, 1), avss=(1, 1, 1))
    return root


@pytest.fixture(scope="module")
def photo_clips(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of real photographs and recordings, where the tool to compose them is at hand."""
    if not PHOTO_TOOL.exists():
        return clips
    root = tmp_path_factory.mktemp("photos")
    counts = [f"--s4={CLIPS},1,1", "--ms3=1,1,1", "--avss=1,1,1"]
    subprocess.run([sys.executable, PHOTO_TOOL, root, *counts], check=True, capture_output=True)
    return root


def manifest_at(folder: Path, clips: Path, store: str = "store") -> Path:
    path = folder / f"{store}.yaml"
    path.write_text(MANIFEST.format(store=store, root=clips))
    return path


def answer(*words: object, folder: Path) -> str:
    """What a command says, which must succeed."""
    done = combo(*words, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def workers() -> dict[str, str]:
    """The Slurm jobs of Dask workers. They are the only jobs without a number of a task that any
    test has while it looks."""
    there = queue()
    if there is None:
        return {"?": "Slurm is busy"}
    return {job: state for job, state in there.items() if "_" not in job}


def is_good(job: Job) -> bool:
    verdicts = verify_variant(job.split, job.variant)
    return not [each for each in verdicts if isinstance(each, Finding)]


def undisturbed(folder: Path, clips: Path) -> Job:
    """The same job by one process."""
    job = make_job(load_manifest(manifest_at(folder, clips, "alone")), "s4", "train", "maskige")
    settle_plan(job, Options())
    assert run_job(job, Options()).finished is not None
    return job


def bytes_of(job: Job) -> dict[str, bytes]:
    root = job.split.root
    files = (p for p in root.rglob("*") if p.is_file() and "records" not in p.parts)
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def submit(folder: Path, manifest: Path, tasks: int) -> dict[str, str]:
    words = ("submit", *MASKIGES, "--slurm", "--tasks", tasks, "--manifest", manifest, "--json")
    return json.loads(answer(*words, folder=folder))


def test_an_array_whose_tasks_are_killed_ends_as_one_process_would(
    tmp_path: Path, photo_clips: Path
) -> None:
    manifest = manifest_at(tmp_path, photo_clips)
    submitted = submit(tmp_path, manifest, 8)
    array, chance = submitted["array"], random.Random(3)
    job = make_job(load_manifest(manifest), "s4", "train", "maskige")
    killed: list[str] = []

    def kill_one_that_has_begun() -> bool:
        parts = read_parts(job.split, job.variant)
        for part in parts:
            if part.state == "running" and part.job not in killed and chance.random() < 0.5:
                # Without --batch Slurm cancels the task, which hears SIGTERM first.
                how = ["--batch"] if len(killed) % 2 == 0 else []
                slurm("scancel", *how, "--signal=KILL", part.job)
                killed.append(part.job)
        over = len(parts) == 8 and all(part.state != "running" for part in parts)
        return len(killed) >= 3 or over

    wait_until(kill_one_that_has_begun)
    assert len(killed) >= 2, "the tasks were faster than the kills"
    wait_until(lambda: (there := queue()) is not None and not set(killed) & set(there))
    parts = {part.job: part.state for part in read_parts(job.split, job.variant)}
    assert {parts[task] for task in killed[::2]} == {"died"}
    assert {parts[task] for task in killed[1::2]} <= {"died", "stopped"}
    for task in killed:
        slurm("scontrol", "requeue", task)
        start_again(task)
    wait_until(lambda: are_over(array, submitted["finalise"]))

    assert job.split.finished(job.variant) is not None
    assert is_good(job)
    assert bytes_of(job) == bytes_of(undisturbed(tmp_path, photo_clips))
    assert not list(tmp_path.rglob("*.partial"))


def test_short_of_time_a_task_finishes_its_unit_and_is_queued_again(
    tmp_path: Path, clips: Path
) -> None:
    manifest = manifest_at(tmp_path, clips)
    submitted = submit(tmp_path, manifest, 1)
    job = make_job(load_manifest(manifest), "s4", "train", "maskige")
    wait_until(lambda: len(records.listing(job.split, job.variant)) >= 2)
    # What --signal=B:USR1 does when the time limit is near.
    slurm("scancel", "--batch", "--signal=USR1", submitted["array"] + "_1")
    wait_until(lambda: [p.state for p in read_parts(job.split, job.variant)] == ["stopped"])
    wait_until(lambda: (queue() or {}).get(submitted["array"] + "_1") == "PENDING")
    assert 2 <= len(records.listing(job.split, job.variant)) < CLIPS
    start_again(submitted["array"] + "_1")
    wait_until(lambda: are_over(submitted["array"], submitted["finalise"]))
    assert job.split.finished(job.variant) is not None
    assert is_good(job)
    log = Path(submitted["folder"], "part-1.log").read_text()
    assert "queued again" in log
    assert "DUE TO JOB REQUEUE" in log
    assert "finished" in Path(submitted["folder"], "finalise.log").read_text()


def test_a_cancelled_task_is_not_queued_again_and_submitting_again_goes_on(
    tmp_path: Path, clips: Path
) -> None:
    manifest = manifest_at(tmp_path, clips)
    submitted = submit(tmp_path, manifest, 1)
    job = make_job(load_manifest(manifest), "s4", "train", "maskige")
    wait_until(lambda: len(records.listing(job.split, job.variant)) >= 2)
    slurm("scancel", submitted["array"])
    wait_until(lambda: are_over(submitted["array"]))
    assert [p.state for p in read_parts(job.split, job.variant)] == ["stopped"]
    wait_until(lambda: are_over(submitted["finalise"]))
    said = Path(submitted["folder"], "finalise.log").read_text()
    assert f"of {CLIPS} units missing; submit again" in said
    done = set(records.listing(job.split, job.variant))
    assert done < set(range(CLIPS))

    again = submit(tmp_path, manifest, 4)
    wait_until(lambda: are_over(again["array"], again["finalise"]))
    assert job.split.finished(job.variant) is not None
    assert is_good(job)


def in_front(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, lines: str) -> None:
    """Puts a shell script in front of one of Slurm's commands, which it may hand on to as $real."""
    (folder / "bin").mkdir()
    script = folder / "bin" / name
    script.write_text(f"#!/bin/sh\nreal={shutil.which(name)}\n{lines}")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


def test_an_array_longer_than_slurm_takes_becomes_several(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_at(tmp_path, clips)
    # The real Slurm in all but this number, which it would take a restart to change.
    lines = '[ "$*" = "show config" ] && echo "MaxArraySize = 3" || exec "$real" "$@"\n'
    in_front(tmp_path, monkeypatch, "scontrol", lines)
    words = ("submit", "audio", "--data", "s4", "--split", "train", "--tasks", 5, "--at-once", 2)
    submitted = json.loads(answer(*words, "--manifest", manifest, "--json", folder=tmp_path))
    assert len(submitted["arrays"]) == 3
    assert submitted["arrays"][0] == submitted["array"]
    # Two tasks may run, so two arrays with one each, and the third waits for the first.
    waits = slurm("scontrol", "show", "job", submitted["arrays"][2])
    assert f"afterany:{submitted['arrays'][0]}_" in waits
    wait_until(lambda: are_over(*submitted["arrays"], submitted["finalise"]))
    job = make_job(load_manifest(manifest), "s4", "train", "audio")
    assert job.split.finished(job.variant) is not None
    assert is_good(job)
    parts = [(part.part, part.parts, part.state) for part in read_parts(job.split, job.variant)]
    assert parts == [(number, 5, "done") for number in range(1, 6)]
    logs = {path.name for path in Path(submitted["folder"]).glob("*.log")}
    tasks = ("part-1", "part-1+1", "part-1+2", "part-3+1", "part-3+2")
    assert logs == {"finalise.log", *(f"{task}.log" for task in tasks)}


def test_slurm_takes_every_array_of_a_division_and_not_the_undivided_one(tmp_path: Path) -> None:
    batch = scheduler.named("slurm")
    largest = batch.largest_array()
    assert largest is not None
    script = tmp_path / "job.sh"
    whole = array_of(2 * largest + 1)
    for array, taken in [(whole, False), *((each, True) for each in whole.divided(largest))]:
        script.write_text(batch.script(array))
        done = subprocess.run(["sbatch", "--test-only", script], capture_output=True, check=False)
        assert (done.returncode == 0) is taken, done.stderr


def test_what_slurm_refuses_in_part_is_taken_back_whole(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_at(tmp_path, clips)
    lines = 'case "$*" in *finalise*) echo "no more jobs for you" >&2; exit 1;; esac\n'
    lines += '"$real" --hold "$@" | tee -a "$(dirname "$0")/numbers"\n'
    in_front(tmp_path, monkeypatch, "sbatch", lines)
    words = ["submit", *MASKIGES, "--tasks", "2", "--manifest", str(manifest)]
    done = combo(*words, folder=tmp_path)
    assert done.returncode == 1
    assert "sbatch said: no more jobs for you" in done.stderr
    (array,) = (tmp_path / "bin" / "numbers").read_text().split()
    wait_until(lambda: are_over(array), 60)


def test_folders_with_awkward_names_reach_the_tasks(tmp_path: Path, clips: Path) -> None:
    folder = tmp_path / 'it\'s 5% of "all"'
    folder.mkdir()
    manifest = manifest_at(folder, clips)
    words = ("submit", "audio", "--data", "s4", "--split", "val", "--slurm", "--tasks", 1)
    submitted = json.loads(answer(*words, "--manifest", manifest, "--json", folder=folder))
    wait_until(lambda: are_over(submitted["array"], submitted["finalise"]))
    for log in ("part-1.log", "finalise.log"):
        assert "finished" in Path(submitted["folder"], log).read_text()
    again = json.loads(answer(*words, "--manifest", manifest, "--json", folder=folder))
    assert again["tasks"] == 0, "nothing is to do, and that is said in JSON"


def test_dask_workers_in_slurm_jobs_may_be_killed(tmp_path: Path, clips: Path) -> None:
    manifest = manifest_at(tmp_path, clips)
    words = ("preprocess", *MASKIGES, "--dask", "slurm", "--workers", "2", "--manifest", manifest)
    command = [sys.executable, "-m", "combo", *map(str, words)]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    job = make_job(load_manifest(manifest), "s4", "train", "maskige")
    wait_until(lambda: len(records.listing(job.split, job.variant)) >= 3)
    wait_until(lambda: "RUNNING" in workers().values())
    one = next(number for number, state in workers().items() if state == "RUNNING")
    slurm("scancel", "--full", "--signal=KILL", one)
    said, notes = process.communicate(timeout=300)
    assert process.returncode == 0, notes
    assert "finished" in said
    assert "dashboard: http://" in notes
    assert is_good(job)
    assert bytes_of(job) == bytes_of(undisturbed(tmp_path, clips))
    wait_until(lambda: not workers())


def test_workers_that_slurm_refuses_are_not_waited_for(tmp_path: Path, clips: Path) -> None:
    manifest = manifest_at(tmp_path, clips)
    words = ["preprocess", *MASKIGES, "--dask", "slurm", "--sbatch-arg=--partition=nowhere"]
    command = [sys.executable, "-m", "combo", *words, "--manifest", str(manifest)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1
    assert "sbatch said" in done.stderr
    assert "partition" in done.stderr
    assert "Traceback" not in done.stderr


def test_ending_the_command_ends_its_slurm_workers(tmp_path: Path, clips: Path) -> None:
    manifest = manifest_at(tmp_path, clips)
    words = ("preprocess", *MASKIGES, "--dask", "slurm", "--manifest", manifest)
    command = [sys.executable, "-m", "combo", *map(str, words)]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    job = make_job(load_manifest(manifest), "s4", "train", "maskige")
    wait_until(lambda: len(records.listing(job.split, job.variant)) >= 1)
    os.kill(process.pid, signal.SIGTERM)
    _, notes = process.communicate(timeout=300)
    assert process.returncode == 75
    assert "Traceback" not in notes
    wait_until(lambda: not workers())


def test_a_time_limit_with_no_time_before_its_warning_is_refused_and_nothing_touched(
    tmp_path: Path, clips: Path
) -> None:
    manifest = manifest_at(tmp_path, clips)
    manifest.write_text(manifest.read_text().replace('"00:10:00"', '"00:03:00"'))
    words = ["submit", *MASKIGES, "--slurm", "--tasks", "2", "--manifest", str(manifest)]
    done = combo(*words, folder=tmp_path)
    assert done.returncode == 1
    assert "cluster.walltime 00:03:00 is too short" in done.stderr
    assert not (tmp_path / "store").exists()


def test_failed_clips_are_made_again_by_an_array_on_request(tmp_path: Path, clips: Path) -> None:
    own = shutil.copytree(clips, tmp_path / "own")
    manifest = manifest_at(tmp_path, own)
    job = make_job(load_manifest(manifest), "s4", "train", "frames")
    frame = Path(str(job.clips[3].frames[2]))
    whole = frame.read_bytes()
    frame.write_bytes(b"")
    settle_plan(job, Options())
    assert list(run_job(job, Options()).failed) == [job.clips[3].name]
    before = {unit: records.read_record(job.split, job.variant, unit) for unit in range(CLIPS)}
    frame.write_bytes(whole)
    words = ("submit", "frames", "--data", "s4", "--split", "train", "--slurm", "--tasks", "2")
    words += ("--retry-failed", "--manifest", manifest, "--json")
    submitted = json.loads(answer(*words, folder=tmp_path))
    wait_until(lambda: are_over(submitted["array"], submitted["finalise"]))
    finished = job.split.finished(job.variant)
    assert finished is not None
    assert finished.failed == {}
    now = {unit: records.read_record(job.split, job.variant, unit) for unit in range(CLIPS)}
    assert [unit for unit in now if now[unit] != before[unit]] == [3]
