"""`combo evaluate --data OTHER`: other classes, longer clips than the network was trained for."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from numbered_clips import film
from PIL import Image
from typer.testing import CliRunner

from combo.cli import app
from combo.model.interface import Network
from combo.pipeline.errors import ComboError
from combo.pipeline.jobs.plan import make_job
from combo.pipeline.jobs.run import Options, run_job, settle_plan
from combo.pipeline.manifest import load_manifest
from combo.pipeline.predict.inputs import open_film
from combo.pipeline.predict.predictor import Predictor
from combo.pipeline.store import STAGES
from combo.pipeline.train.elsewhere import Elsewhere, Naming, open_elsewhere
from combo.pipeline.train.evaluate import measure, open_run
from combo.pipeline.train.run_folder import RunFolder

MANIFEST = """\
store: store
data_sets:
  other: {{layout: folders, root: clips, frames_per_clip: 6}}
stages:
  frames: {{size: 64}}
  audio: {{encoder: {encoder}}}
  maskige: {{generator: felzenszwalb, at: stored, felzenszwalb: {{scale: {scale}}}}}
"""


def prepared(folder: Path, encoder: str = "mel-stats", scale: float = 200.0) -> Path:
    """The store of two clips of five seconds with labels of three classes."""
    for number in range(2):
        clip = folder / "clips" / "test" / f"clip{number}"
        (clip / "labels").mkdir(parents=True)
        film(clip / "film.mp4", 5.0, rate=Fraction(10))
        for t in range(5):
            label = np.zeros((64, 64), np.uint8)
            label[16:, : 8 * (t + 1)] = 1 + number
            Image.fromarray(label).save(clip / "labels" / f"{t}.png")
    (folder / "clips" / "label2idx.json").write_text('{"background": 0, "cat": 1, "dog": 2}')
    (folder / "data_manifest.yaml").write_text(MANIFEST.format(encoder=encoder, scale=scale))
    manifest = load_manifest(folder / "data_manifest.yaml")
    for stage in STAGES:
        job = make_job(manifest, "other", "test", stage)
        settle_plan(job, Options())
        assert run_job(job, Options()).finished is not None
    return folder / "store"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("other"))


def test_a_longer_clip_is_seen_in_the_windows_in_which_a_film_is(
    run: RunFolder, predictor: Predictor, other: Path
) -> None:
    reader, naming = open_elsewhere(run, "other", "test", other)
    scores: dict[str, torch.Tensor] = {}
    cpu = torch.device("cpu")
    network = Elsewhere(open_run(run, cpu), predictor.length, naming)
    result = measure(network, reader, cpu, on_clip=lambda c, s: scores.update({c.clips[0]: s}))
    assert set(result.clips) == {"clip0", "clip1"}
    opened = open_film(other.parent / "clips" / "test" / "clip1")
    frames = list(predictor.frames(opened, predictor.hear(opened)))
    own = np.stack([frame.scores for frame in frames])
    np.testing.assert_allclose(own, scores["clip1"][:5].numpy(), rtol=1e-5, atol=1e-6)
    assert not scores["clip1"][5:].any()
    together = dict[str, torch.Tensor]()
    seen = lambda c, s: together.update({c.clips[0]: s})  # noqa: E731
    assert measure(network, reader, cpu, on_clip=seen, at_once=2).m_j == pytest.approx(result.m_j)
    for name, alone in scores.items():
        torch.testing.assert_close(together[name], alone, rtol=1e-4, atol=1e-4)


def test_the_command_says_which_classes_are_which(run: RunFolder, other: Path) -> None:
    words = ["evaluate", str(run.last), "--data", "other", "--store", str(other), "--device", "cpu"]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert value["classes"] == "any of the data set's classes counts as an object"
    assert value["clips"] == 2
    assert "any of the data set's classes counts as an object" in done.stderr


def test_classes_are_told_by_name() -> None:
    scores = torch.rand(2, 4, 3, 3)
    naming = Naming.of(["background", "cat", "dog", "bird"], ["background", "dog", "cow", "cat"])
    assert naming is not None
    assert naming.said == (
        "3 of the data set's 4 classes are the network's, by name; never predicted: cow; "
        "left out of the network's: bird"
    )
    network = Elsewhere(_Says(scores), 10, naming)
    found = network(torch.zeros(1, 2, 3, 3, 3), None, torch.zeros(1, 2, 1))[0]
    expected = torch.stack([scores[:, 0], scores[:, 2], 0 * scores[:, 0], scores[:, 1]], 1)
    assert torch.equal(found, expected)
    assert Naming.of(["background", "cat"], ["background", "cat"]) is None
    with pytest.raises(ComboError, match="no class in common"):
        Naming.of(["background", "cat", "dog"], ["background", "cow", "hen"])
    objects = Naming.of(["background", "cat", "dog"], ["background", "object"])
    assert objects is not None
    assert (objects.taken, objects.objects) == (((0,), (1, 2)), False)


class _Says(Network):
    """Has its scores from the beginning."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self._scores = scores

    def forward(self, *_: object) -> torch.Tensor:
        return self._scores[None]

    def scores(self, out: torch.Tensor) -> torch.Tensor:
        return out


def test_data_made_with_other_stages_are_refused(run: RunFolder, tmp_path: Path) -> None:
    store = prepared(tmp_path, scale=100.0)
    with pytest.raises(ComboError, match=r"no finished maskige of other/test .* is as .* trained"):
        open_elsewhere(run, "other", "test", store)
