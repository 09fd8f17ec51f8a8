"""Maskige generators that need weights, from the manifest to the store, with seeded weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from combo.model.point_grid import PointGrid
from combo.model.semantic_sam import SemanticSam
from combo.pipeline.errors import ComboError
from combo.pipeline.jobs.run import Options, run_job, settle_plan
from combo.pipeline.jobs.unit import Job
from combo.pipeline.manifest import Manifest, load_manifest
from combo.pipeline.media import digest
from combo.pipeline.preprocess.tasks import make_job

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
    sha256 = digest(folder / "weights.pth")
    path.write_text(MANIFEST.format(generator=generator, sha256=f"'{sha256}'"))
    return load_manifest(path)


def run(job: Job) -> np.ndarray:
    settle_plan(job.split, job.plan, Options())
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
    label_map = run(job)

    settings = dict(job.variant.settings)
    assert (settings["level"], settings["internal_level"]) == (3, 0)
    assert (settings["points_per_batch"], settings["precision"]) == (200, "fp32")
    assert job.variant.weights == {"semantic-sam-t": digest(tmp_path / "weights.pth")}
    grid = PointGrid(
        net, points_per_side=2, levels=(3,), pred_iou_thresh=-9, stability_score_thresh=0.0
    )
    expected = grid.label_map(torch.from_numpy(frame).permute(2, 0, 1))
    assert np.array_equal(label_map, expected.numpy())
    assert label_map.any(), "no mask at all would prove nothing"


def test_weights_of_another_network_are_refused(tmp_path: Path, frame: np.ndarray) -> None:
    del frame
    torch.save({"model.something": torch.zeros(3)}, tmp_path / "weights.pth")
    job = make_job(manifest(tmp_path, "semantic-sam-t"), "mine", "all", "maskige")
    settle_plan(job.split, job.plan, Options())
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
    torch.save(sam_model_registry["vit_b"]().state_dict(), tmp_path / "weights.pth")
    job = make_job(manifest(tmp_path, "sam-vit-b"), "mine", "all", "maskige")
    label_map = run(job)
    masks = int(job.split.read_array(job.variant, "masks")[0, 0])
    assert 1 <= len(np.unique(label_map[label_map > 0])) <= masks
    assert job.variant.settings["points_per_batch"] == 64
    assert job.variant.weights == {"sam-vit-b": digest(tmp_path / "weights.pth")}
