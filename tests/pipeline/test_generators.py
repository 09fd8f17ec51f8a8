"""Maskige generators that need weights, from the manifest to the store, with seeded weights."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from public_masks import PublicGrid
from system_limits import memory_limit

from combo.model.semantic_sam import SemanticSam
from combo.pipeline.devices import Place, cores
from combo.pipeline.digests import file_digest
from combo.pipeline.errors import ComboError
from combo.pipeline.generators.felzenszwalb import FelzenszwalbSettings
from combo.pipeline.jobs.plan import make_job
from combo.pipeline.jobs.run import Options, run_job, settle_plan
from combo.pipeline.jobs.unit import Job
from combo.pipeline.manifest import Manifest, MaskigeSettings, load_manifest
from combo.pipeline.preprocess.maskige import MaskigeStage
from combo.pipeline.store import Variant

MANIFEST = """\
store: store
data_sets:
  mine: {{layout: folders, root: clips, frames_per_clip: 1}}
stages:
  frames: {{size: 64}}
  maskige:
    generator: {generator}
    semantic_sam: {{points_per_side: 2, pred_iou_thresh: -9, stability_score_thresh: 0.0}}
    sam: {{points_per_side: 2, pred_iou_thresh: -9, stability_score_thresh: 0.0}}
weights:
  {generator}: {{path: weights.pth, sha256: {sha256}}}
"""


@pytest.fixture
def frame(tmp_path: Path) -> np.ndarray:
    """The one frame of the one clip below `clips`, 64 x 64."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[8:40, 8:40] = (200, 40, 40)
    pixels[30:60, 30:60] = (30, 160, 220)
    folder = tmp_path / "clips" / "clip"
    folder.mkdir(parents=True)
    Image.fromarray(pixels).save(folder / "0.png")
    return pixels


def manifest(folder: Path, generator: str) -> Manifest:
    path = folder / "data_manifest.yaml"
    sha256 = file_digest(folder / "weights.pth")
    path.write_text(MANIFEST.format(generator=generator, sha256=f"'{sha256}'"))
    return load_manifest(path)


def run(job: Job) -> np.ndarray:
    settle_plan(job, Options())
    assert run_job(job, Options()).finished is not None
    return job.split.read_array(job.variant, "label_map")[0, 0]


def test_semantic_sam_goes_from_published_weights_to_label_maps(
    tmp_path: Path, frame: np.ndarray
) -> None:
    torch.manual_seed(0)
    net = SemanticSam.from_variant("swin-t").eval()
    state = {f"model.{key}": value for key, value in net.state_dict().items()}
    torch.save({"model": state}, tmp_path / "weights.pth")

    job = make_job(manifest(tmp_path, "semantic-sam-t"), "mine", "all", "maskige")
    seen = set[tuple[int, bool]]()
    watching = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda *_: seen.add((torch.get_num_threads(), torch.backends.cudnn.allow_tf32))
    )
    label_map = run(job)
    watching.remove()
    assert seen == {(cores(), False)}, "the threads of its place, and no TF32"

    settings = dict(job.variant.settings)
    assert (settings["level"], settings["internal_level"]) == (3, 0)
    assert (settings["points_per_batch"], settings["precision"]) == (200, "fp32")
    assert job.variant.weights == {"semantic-sam-t": file_digest(tmp_path / "weights.pth")}
    grid = PublicGrid(
        net, points_per_side=2, levels=(3,), pred_iou_thresh=-9, stability_score_thresh=0.0
    )
    expected = grid.label_map(torch.from_numpy(frame).permute(2, 0, 1))
    assert np.array_equal(label_map, expected.numpy())
    assert label_map.any(), "no mask at all would prove nothing"


@pytest.mark.parametrize("generator", ["semantic-sam-t", "sam-vit-b"])
def test_whatever_can_change_a_mask_makes_another_variant(generator: str) -> None:
    own = "sam" if generator.startswith("sam") else "semantic_sam"
    base = MaskigeSettings(generator=generator)

    def variant(changes: dict[str, Any], digest: str = "ab", size: int = 64) -> Variant:
        settings = base.model_copy(update=changes)
        weights = {generator: (Path("file"), digest)}
        return MaskigeStage(settings, (size, size), "squash", 5, weights).variant()

    grid = getattr(base, own)
    # None of these is the default.
    grids = {
        "points_per_side": 8,
        "points_per_batch": 7,
        "pred_iou_thresh": 0.5,
        "stability_score_thresh": 0.5,
        "stability_score_offset": 2.0,
        "box_nms_thresh": 0.5,
        "crop_nms_thresh": 0.9,
        "min_mask_region_area": 100,
    }
    if own == "semantic_sam":
        grids["level"] = 2
    assert grids.keys() == set(vars(grid)), "a setting that is not tried here"
    tried = [
        variant({}),
        variant({}, digest="cd"),
        variant({}, size=96),
        variant({"at": "stored"}),
        variant({"precision": "bf16"}),
        variant({"compile": True}),
        *(variant({own: replace(grid, **{name: v})}) for name, v in grids.items()),
    ]
    assert len({one.fingerprint for one in tried}) == len({one.name for one in tried}) == len(tried)
    settings = tried[0].settings
    named = {"generator", "at", "precision", "compile", *grids}
    assert named <= settings.keys()
    assert settings.get("long_side") == (1024 if own == "sam" else None)
    assert settings.get("padded_to") == (None if own == "sam" else 32)
    # What the machine has room for, and the other generators' settings, change nothing.
    other = {"memory_limit": 10**9, "felzenszwalb": FelzenszwalbSettings(scale=1.0)}
    assert variant(other).fingerprint == tried[0].fingerprint


def test_stages_without_a_network_go_without_pytorch(manifest_file) -> None:
    """It takes seconds to load, in every task of an array."""
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from combo.cli import app; from typer.testing import CliRunner\n"
        "for command in (['submit', 'all', '--tasks', '1', '--print'],\n"
        "                ['preprocess', 'frames'], ['preprocess', 'maskige'], ['verify']):\n"
        "    of = ['--data', 'ms3', '--split', 'val', '--manifest', sys.argv[1]]\n"
        "    done = CliRunner().invoke(app, [*command, *of])\n"
        "    assert isinstance(done.exception, SystemExit | None), done.exception\n"
        "    print(done.output)\n"
    )
    words = [sys.executable, "-c", program, manifest_file()]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"ms3/val (?:frames|maskige)/.*; finished", done.stdout)) == 2
    assert "2 units good" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own memory as Linux does it")
@pytest.mark.own_process
def test_a_frame_too_large_for_the_memory_fails_its_clip_and_no_other(
    tmp_path: Path, frame: np.ndarray
) -> None:
    large = tmp_path / "clips" / "wide"
    large.mkdir()
    Image.fromarray(frame).resize((1600, 1200)).save(large / "0.png")
    net = SemanticSam.from_variant("swin-t")
    torch.save({"model": net.state_dict()}, tmp_path / "weights.pth")
    job = make_job(manifest(tmp_path, "semantic-sam-t"), "mine", "all", "maskige")
    work = job.stage.open(Place())
    clips = {clip.name: clip for clip in job.clips}
    assert work([clips["clip"]])[0].arrays is not None
    with memory_limit(160):
        small, wide = work([clips["clip"], clips["wide"]])
    assert small.arrays is not None
    assert wide.arrays is None
    assert "frames of 1600 x 1200: no memory" in wide.reason


def test_weights_of_another_network_are_refused(tmp_path: Path, frame: np.ndarray) -> None:
    del frame
    torch.save({"model.something": torch.zeros(3)}, tmp_path / "weights.pth")
    job = make_job(manifest(tmp_path, "semantic-sam-t"), "mine", "all", "maskige")
    settle_plan(job, Options())
    with pytest.raises(ComboError, match=r"weights\.pth does not fit semantic-sam-t"):
        run_job(job, Options())


def test_another_file_than_the_expected_one_is_refused(tmp_path: Path, frame: np.ndarray) -> None:
    del frame
    torch.save({}, tmp_path / "weights.pth")
    settings = manifest(tmp_path, "semantic-sam-t")
    torch.save({"changed": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(ComboError, match="expected"):
        make_job(settings, "mine", "all", "maskige")


@pytest.mark.slow
def test_sam_goes_from_its_checkpoint_to_label_maps(tmp_path: Path, frame: np.ndarray) -> None:
    from segment_anything import sam_model_registry

    del frame
    torch.manual_seed(0)
    sam = sam_model_registry["vit_b"]()
    torch.save(sam.state_dict(), tmp_path / "weights.pth")
    job = make_job(manifest(tmp_path, "sam-vit-b"), "mine", "all", "maskige")
    label_map = run(job)
    masks = int(job.split.read_array(job.variant, "masks")[0, 0])
    assert 1 <= len(np.unique(label_map[label_map > 0])) <= masks
    assert job.variant.settings["points_per_batch"] == 64
    assert job.variant.settings["long_side"] == sam.image_encoder.img_size
    assert job.variant.weights == {"sam-vit-b": file_digest(tmp_path / "weights.pth")}
