"""A tiny network, trained on clips of three frames of one's own: videos with a number and tones."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numbered_clips import film
from PIL import Image

from combo.pipeline.jobs.plan import make_job
from combo.pipeline.jobs.run import Options, run_job, settle_plan
from combo.pipeline.manifest import load_manifest
from combo.pipeline.predict.predictor import Predictor
from combo.pipeline.store import STAGES
from combo.pipeline.train.run_folder import RunFolder
from combo.pipeline.train.start import start

TINY = (
    "data=mine", "width=32", "heads=2", "fusion_heads=2", "pixel_layers=1", "pixel_ffn=16",
    "decoder_layers=1", "decoder_ffn=16", "audio_hidden=16", "query_count=4", "mask_points=64",
    "iterations=2", "batch_size=2", "evaluate_every=1", "log_every=1", "threads=1", "device=cpu",
)  # fmt: skip
MANIFEST = """\
store: store
data_sets:
  mine: {layout: folders, root: clips, frames_per_clip: 3}
stages:
  frames: {size: 64}
  audio: {encoder: mel-stats}
  maskige: {generator: felzenszwalb, at: stored}
"""


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, its store and a run on it; not to be changed."""
    folder = tmp_path_factory.mktemp("predict")
    for split, seconds in {"train": (3.0, 2.0), "val": (3.0,), "test": (3.0, 2.0)}.items():
        for number, length in enumerate(seconds):
            clip = folder / "clips" / split / f"clip{number}"
            (clip / "labels").mkdir(parents=True)
            film(clip / "film.mp4", length, rate=Fraction(10))
            for t in range(int(length)):
                label = np.zeros((64, 64), np.uint8)
                label[16:, : 8 * (t + 1)] = 255
                Image.fromarray(label).save(clip / "labels" / f"{t}.png")
    (folder / "data_manifest.yaml").write_text(MANIFEST)
    manifest = load_manifest(folder / "data_manifest.yaml")
    for split in ("train", "val", "test"):
        for stage in STAGES:
            job = make_job(manifest, "mine", split, stage)
            settle_plan(job, Options())
            assert run_job(job, Options()).finished is not None
    start(manifest, "combo-small-ms3", TINY, folder / "run").train()
    return folder


@pytest.fixture
def run(home: Path) -> RunFolder:
    return RunFolder(home / "run")


@pytest.fixture(scope="session")
def predictor(home: Path) -> Predictor:
    return Predictor(home / "run", "cpu")
