"""What a run tells of itself: its log, TensorBoard, a profile."""

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from combo.pipeline.errors import ComboError
from combo.pipeline.manifest import Manifest
from combo.pipeline.painting import paint
from combo.pipeline.train import checkpoint
from combo.pipeline.train.evaluate import measure, open_split
from combo.pipeline.train.profiling import Profile
from combo.pipeline.train.run_folder import RunFolder

from .conftest import finished_run
from .test_run_folders import CPU, TINY, log, tiny


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """An undisturbed run; not to be changed."""
    return finished_run(prepared, tmp_path_factory, TINY)


def test_what_tensorboard_reads_is_what_the_log_holds(trained: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(trained.tensorboard)).Reload()
    losses = [line["total"] for line in log(trained) if line["kind"] == "train"]
    assert [e.value for e in found.Scalars("train/total")] == pytest.approx(losses)
    assert [e.step for e in found.Scalars("val/M_J")] == [2, 3]


def test_tensorboard_shows_clips_with_truth_and_prediction_at_each_evaluation(
    trained: RunFolder,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(trained.tensorboard), {"images": 0}).Reload()
    reader, network = open_split(trained, "val"), trained.settings().build()
    checkpoint.load_network(trained.last, network)
    scores: dict[str, torch.Tensor] = {}
    measure(network, reader, CPU, on_clip=lambda clip, s: scores.update({clip.clips[0]: s}))
    assert found.Tags()["images"] == [f"val/{name}" for name in reader.plan.clips]
    for place, name in enumerate(reader.plan.clips):
        shown = found.Images(f"val/{name}")
        assert [event.step for event in shown] == [2, 3]
        picture = np.asarray(Image.open(io.BytesIO(shown[-1].encoded_image_string)))
        clip = reader.read([place])
        frames = clip.frames[0].movedim(1, -1).numpy()
        predicted = scores[name].argmax(1).byte().numpy()
        rows = [frames, paint(frames, clip.labels[0].numpy()), paint(frames, predicted)]
        expected = np.concatenate([np.concatenate([*row], axis=1) for row in rows])
        assert picture.shape == expected.shape == (3 * 64, 5 * 64, 3)
        for row in range(3):  # JPEG
            part = slice(64 * row, 64 * (row + 1))
            assert np.abs(picture[part].astype(float) - expected[part]).mean() < 4
    assert np.abs(expected[64:128].astype(float) - expected[:64]).mean() > 5


def test_a_profile_of_some_steps_lies_in_the_runs_folder(
    finished: Manifest, tmp_path: Path
) -> None:
    trainer, told = tiny(finished, tmp_path / "run", "iterations=8"), list[str]()
    with pytest.raises(ComboError, match=r"--profile 4 needs 9 iterations .*, and 8 are left"):
        trainer.train(profile=Profile(4, told.append))
    trainer.train(profile=Profile(2, told.append))
    (file,) = trainer.run.profile.iterdir()
    assert told == [f"profile of iterations 6 to 7: {file}"]
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    names = {event["name"] for event in events if "name" in event}
    assert {"aten::convolution", "Optimizer.step#AdamW.step"} < names
    assert {name for name in names if name.startswith("ProfilerStep")} == {
        "ProfilerStep#5", "ProfilerStep#6",
    }  # fmt: skip
    assert checkpoint.load(trainer.run.last).iteration == 8
