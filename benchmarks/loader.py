"""Clips a second of the training loader against the files that the public code reads.

The public COMBO keeps a clip as five frame PNGs, five Maskiges as palette PNGs, five label PNGs
and a pickle of the log-mel patches; here a clip is three chunks of the store. The same clips are
written both ways and read in shuffled order, in batches of 8, in short turns one after another, so
that whatever else the machine does falls on all of them alike.

    python benchmarks/loader.py [--clips 48] [--rounds 7] [--seconds 1.5]

Clips of 5 frames at 224 from photographs where ../shared/ holds them, else from `combo sample`.
Goals: at least 25 times the speed of one reading process, at most 1.2 MB a clip.

The loader leaves Maskiges as label maps; they are painted on the network's device. Last seen: see
docs/measurements.md.
"""

import argparse
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from combo.model.maskige import reference_palette
from combo.pipeline.devices import keep_freed_memory
from combo.pipeline.jobs.local import LocalRunner
from combo.pipeline.jobs.pack import pack
from combo.pipeline.jobs.plan import make_job
from combo.pipeline.jobs.run import Options, run_job, settle_plan
from combo.pipeline.manifest import Manifest, load_manifest
from combo.pipeline.rows import Rows
from combo.pipeline.sample import write_sample
from combo.pipeline.source import Choice, open_source
from combo.pipeline.store import Finished, SplitStore, Variant
from combo.pipeline.train.loader import Batch, ClipReader, shuffled

PHOTO_CLIPS = Path(__file__).resolve().parents[2] / "shared" / "tools" / "make_photo_clips.py"
FRAMES, SIZE, BATCH = 5, 224, 8
MANIFEST = """\
store: store
data_sets:
  ms3: {layout: avsbench-ms3, root: media/AVSBench_object/Multi-sources}
stages:
  frames: {size: 224}
  audio: {encoder: mel-stats}
  maskige: {generator: felzenszwalb}
"""


def make_media(root: Path, clips: int) -> str:
    """MS3 (all frames annotated) with natural content where there is some; says which."""
    if not PHOTO_CLIPS.exists():
        write_sample(root, s4=(0, 0, 0), ms3=(clips, 0, 0), avss=(0, 0, 0))
        return "combo sample (moving shapes)"
    counts = ["--s4", "0,0,0", "--ms3", f"{clips},0,0", "--avss", "0,0,0"]
    subprocess.run(
        [sys.executable, str(PHOTO_CLIPS), str(root), *counts], check=True, capture_output=True
    )
    return "photographs"


def make_packed(reader: ClipReader, path: Path) -> ClipReader:
    split = SplitStore(reader.split.store, reader.split.data_set, reader.split.split)
    assert pack(path, [(split, reader.choice)], "benchmark")
    return ClipReader(open_source(path, split.data_set, split.split), reader.choice)


def make_store(manifest: Manifest) -> ClipReader:
    split = SplitStore(manifest.store_path, "ms3", "train")
    for stage in ("frames", "audio", "maskige"):
        job = make_job(manifest, "ms3", "train", stage)
        settle_plan(job, Options())
        summary = run_job(job, Options(), LocalRunner(os.cpu_count() or 1))
        assert summary.finished is not None, summary
        assert not summary.failed, summary.failed
    variants = {variant.stage: variant for variant in split.variants()}
    return ClipReader(split, Choice(variants["frames"], variants["audio"], variants["maskige"]))


def write_files(reader: ClipReader, root: Path) -> None:
    """The clips of the store as files of the kinds that the public code reads."""
    frames, labels, label_map = (
        reader.split.read_array(variant, name)
        for variant, name in (
            (reader.choice.frames, "frames"),
            (reader.choice.frames, "labels"),
            (reader.choice.maskige, "label_map"),
        )
    )
    palette = reference_palette().numpy().tobytes()
    for clip in range(len(reader)):
        folder = root / f"{clip:05d}"
        folder.mkdir(parents=True)
        for t in range(FRAMES):
            Image.fromarray(frames[clip, t]).save(folder / f"frame_{t}.png")
            Image.fromarray(labels[clip, t] * 255).save(folder / f"label_{t}.png")
            maskige = Image.fromarray(label_map[clip, t])
            maskige.putpalette(palette)
            maskige.save(folder / f"maskige_{t}.png")
        # The store has no log-mel patches. A pickle does not pack: any numbers cost the same.
        with (folder / "log_mel.pkl").open("wb") as file:
            pickle.dump(torch.randn(FRAMES, 1, 96, 64), file)


class Files(Dataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """A clip from its files: frames and Maskige [5,3,H,W], labels [5,H,W], log-mel [5,1,96,64]."""

    def __init__(self, root: Path) -> None:
        self.folders = sorted(root.iterdir())

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, clip: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        folder = self.folders[clip]
        pictures = [self._pictures(folder, name) for name in ("frame", "maskige")]
        labels = [np.asarray(Image.open(folder / f"label_{t}.png")) // 255 for t in range(FRAMES)]
        with (folder / "log_mel.pkl").open("rb") as file:
            log_mel = pickle.load(file)  # noqa: S301 - written by this script a moment ago
        return pictures[0], pictures[1], torch.from_numpy(np.stack(labels)), log_mel

    def _pictures(self, folder: Path, name: str) -> Tensor:
        images = [Image.open(folder / f"{name}_{t}.png").convert("RGB") for t in range(FRAMES)]
        return torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2)


@dataclass
class Road:
    """One way of reading. batches: an endless iterator; each `next` reads one batch."""

    name: str
    batches: Iterator[object]
    in_this_process: bool = True
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def measure(self, seconds: float) -> None:
        next(self.batches)
        started, busy, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - started < seconds:
            next(self.batches)
            count += BATCH
        self.rates.append(count / (time.perf_counter() - started))
        self.cpu.append((time.process_time() - busy) / count * 1000)

    def row(self) -> str:
        cpu = f"{min(self.cpu):9.2f}" if self.in_this_process else f"{'-':>9}"
        return f"{self.name:46s} {np.median(self.rates):9.0f} {max(self.rates):9.0f} {cpu}"


class Unchecked(SplitStore):
    """A split whose clips are held against nothing."""

    def reader(self, variant: Variant, name: str, finished: Finished | None = None) -> Rows:
        del finished
        return super().reader(variant, name)


def first_reads(reader: ClipReader) -> Iterator[object]:
    """The loader's batches, each clip held against its checks as in the first epoch."""
    for batch in reader.batches(endless(len(reader))):
        for rows in reader._pictures:
            assert isinstance(rows, Rows)
            rows.held[:] = False
        yield batch


def endless(clips: int) -> Iterator[list[int]]:
    return shuffled(clips, BATCH, 0, 0, sys.maxsize)


def by_one_process(files: Files) -> Iterator[list[Tensor]]:
    for clips in endless(len(files)):
        columns = zip(*(files[clip] for clip in clips), strict=True)
        yield [torch.stack(column) for column in columns]


def by_worker_processes(files: Files, workers: int) -> Iterator[list[Tensor]]:
    loader = DataLoader(
        files,
        batch_sampler=Endless(len(files)),
        num_workers=workers,
        multiprocessing_context="spawn",
    )
    return iter(loader)


@dataclass(frozen=True)
class Endless:
    """A batch sampler whose epoch has no end."""

    clips: int

    def __iter__(self) -> Iterator[list[int]]:
        return endless(self.clips)


def painted(reader: ClipReader) -> Iterator[Batch]:
    """The loader's batches, their Maskiges painted on the CPU as in training there."""
    cpu = torch.device("cpu")
    return (batch.to(cpu) for batch in reader.batches(endless(len(reader))))


def stored_bytes(reader: ClipReader) -> int:
    choice, split = reader.choice, reader.split
    assert isinstance(split, SplitStore)
    return sum(
        shard.stat().st_size
        for variant in (choice.frames, choice.audio, choice.maskige)
        for unit in range(reader.plan.units)
        for shard in split.shards(variant, unit)
        if shard.exists()
    )


def print_results(turns: Sequence[Road], workers: Road, reader: ClipReader, root: Path) -> None:
    one, loader, on_cpu, packed_loader, _, unchecked, first = turns
    print(f"{'':46s} {'clips/s':>9} {'best':>9} {'CPU ms':>9}")
    for road in (one, workers, *turns[1:]):
        print(road.row())
    ratio = np.median(np.array(loader.rates) / np.array(one.rates))
    print(f"\nthe training loader is {ratio:.1f} times one process that reads files (goal: 25)")
    ratio = np.median(np.array(on_cpu.rates) / np.array(one.rates))
    print(f"        {ratio:.1f} times when Maskiges are painted on the CPU too")
    ratio = np.median(loader.rates) / np.median(workers.rates)
    print(f"        {ratio:.1f} times as many reading processes as there are cores")
    ratio = np.median(np.array(packed_loader.rates) / np.array(loader.rates))
    print(f"from a packed file {ratio:.2f} times the store")
    for road, when in ((loader, "later"), (first, "first")):
        ratio = np.median(np.array(unchecked.rates) / np.array(road.rates))
        print(f"checks of clips make {when} epochs {ratio:.3f} times as long (goal: 1.02)")
    clips = len(reader)
    loose = sum(path.stat().st_size for path in (root / "files").rglob("*") if path.is_file())
    store = stored_bytes(reader)
    print(f"a clip takes {store / clips / 1e6:.3f} MB in the store (goal: 1.2), ", end="")
    print(f"{(root / 'packed.h5').stat().st_size / clips / 1e6:.3f} MB packed, ", end="")
    print(f"{loose / clips / 1e6:.3f} MB in files")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each turn")
    options = parser.parse_args()
    keep_freed_memory()  # as the commands that read clips do
    torch.set_num_threads(1)  # as in each worker of a DataLoader
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        content = make_media(root / "media", options.clips)
        (root / "data_manifest.yaml").write_text(MANIFEST)
        reader = make_store(load_manifest(root / "data_manifest.yaml"))
        write_files(reader, root / "files")
        packed = make_packed(reader, root / "packed.h5")
        split = reader.split
        unchecked = ClipReader(Unchecked(split.store, split.data_set, split.split), reader.choice)
        first = ClipReader(split, reader.choice)
        files, cores = Files(root / "files"), os.cpu_count() or 1
        print(f"{len(reader)} clips of {FRAMES} frames at {SIZE}, {content}; {cores} cores\n")
        turns = [
            Road("PNG and pickle, one process", by_one_process(files)),
            Road("store, training loader", reader.batches(endless(len(reader)))),
            Road("store, Maskiges painted on the CPU", painted(reader)),
            Road("packed file, training loader", packed.batches(endless(len(packed)))),
            Road("packed file, Maskiges painted on the CPU", painted(packed)),
            Road("store, clips held against nothing", unchecked.batches(endless(len(unchecked)))),
            Road("store, every clip as if for the first time", first_reads(first)),
        ]
        for _ in range(options.rounds):
            for road in turns:
                road.measure(options.seconds)
        # On their own, since workers go on to read ahead when their turn is over.
        workers = Road(
            f"PNG and pickle, {cores} worker processes", by_worker_processes(files, cores), False
        )
        for _ in range(options.rounds):
            workers.measure(options.seconds)
        print_results(turns, workers, reader, root)


if __name__ == "__main__":
    main()
