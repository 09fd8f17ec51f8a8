"""A store of the sample in which every stage is finished, and runs of a tiny network on it."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from made_once import made_once

from combo.pipeline.jobs.plan import make_job
from combo.pipeline.jobs.run import Options, run_job, settle_plan
from combo.pipeline.manifest import Manifest, load_manifest
from combo.pipeline.source import Choice
from combo.pipeline.store import STAGES, SplitStore
from combo.pipeline.train.loader import ClipReader
from combo.pipeline.train.run_folder import RunFolder
from combo.pipeline.train.start import start
from combo.pipeline.train.trainer import Trainer

SPLITS = (("s4", "train"), ("s4", "val"), ("s4", "test"), ("avss", "train"))
MANIFEST = """\
store: store
clips_per_unit: 3
data_sets:
  s4: {{layout: avsbench-s4, root: {root}/AVSBench_object/Single-source}}
  avss: {{layout: avsbench-avss, root: {root}/AVSBench_semantic}}
stages:
  frames: {{size: 64}}
  audio: {{encoder: mel-stats}}
  maskige: {{generator: felzenszwalb, at: stored}}
"""

OpenSplit = Callable[..., ClipReader]

OF_PACE = ("clips_per_second", "waited", "peak_memory_gb", "mfu", "seconds_left")
"""What a log says that is another number each time."""


@pytest.fixture(scope="session")
def prepared(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of a finished store; not to be changed."""

    def make(folder: Path) -> None:
        path = folder / "data_manifest.yaml"
        path.write_text(MANIFEST.format(root=sample))
        manifest = load_manifest(path)
        for data_set, split in SPLITS:
            for stage in STAGES:
                job = make_job(manifest, data_set, split, stage)
                settle_plan(job, Options())
                assert run_job(job, Options()).finished is not None

    return made_once(tmp_path_factory, "prepared", make) / "data_manifest.yaml"


def small_run(manifest: Manifest, folder: Path, *changes: str) -> Trainer:
    """A run of the small network on S4 that is about to begin; changes: its settings."""
    return start(manifest, "combo-small-s4", changes, folder)


def finished_run(
    prepared: Path, tmp_path_factory: pytest.TempPathFactory, settings: Sequence[str]
) -> RunFolder:
    """A run to its end, nothing of which is left in this process."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    small_run(load_manifest(prepared), folder, *settings).train()
    return RunFolder(folder)


@pytest.fixture
def finished(prepared: Path) -> Manifest:
    """A manifest over the finished store, which is not to be changed."""
    return load_manifest(prepared)


@pytest.fixture
def own(prepared: Path, tmp_path: Path) -> Manifest:
    """A copy of the finished store that a test may damage."""
    shutil.copytree(prepared.parent, tmp_path / "own")
    return load_manifest(tmp_path / "own" / prepared.name)


@pytest.fixture
def open_split() -> OpenSplit:
    """Opens a split of a store that holds one variant a stage."""

    def open_it(manifest: Manifest, data_set: str = "s4", split: str = "train") -> ClipReader:
        where = SplitStore(manifest.store_path, data_set, split)
        variants = {variant.stage: variant for variant in where.variants()}
        return ClipReader(where, Choice(variants["frames"], variants["audio"], variants["maskige"]))

    return open_it
