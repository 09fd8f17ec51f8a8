"""Several clips go through the network together, and each scores as if it had come alone."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from combo.model import Combo
from combo.pipeline.manifest import Manifest
from combo.pipeline.train.evaluate import Evaluation, measure, measure_sounds
from combo.pipeline.train.loader import ClipReader, StoredBatch
from combo.pipeline.train.presets import resolve

from .conftest import OpenSplit
from .test_ruler import Ear
from .test_training import TINY

CPU = torch.device("cpu")
SOUNDS = ["right", "swapped", "same-class"]


def random_network(reader: ClipReader, fidelity: str) -> Combo:
    settings = [*TINY, f"fidelity={fidelity}", f"classes={len(reader.plan.classes)}"]
    torch.manual_seed(0)
    network = Combo(
        resolve("combo-small-avss", [*settings, f"audio_dim={reader.sound_width}"]).network
    )
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "audio_mlp" in name and value.dim() > 1:
                value *= 4  # what is heard matters
    return network.eval()


def evaluated(
    network: Combo, reader: ClipReader, at_once: int
) -> tuple[dict[str, Evaluation], dict[tuple[str, str], Tensor]]:
    """Scores and those of each sound and clip; one clip has no other of its category."""
    kinds = ("dog", "cat", "dog")
    categories = dict(zip(reader.plan.clips, kinds, strict=True))
    scores: dict[tuple[str, str], Tensor] = {}

    def seen(sound: str, clip: StoredBatch, of_clip: Tensor) -> None:
        assert len(clip.frames) == 1
        scores[sound, clip.clips[0]] = of_clip

    found = measure_sounds(network, reader, CPU, SOUNDS, categories, seen, at_once=at_once)
    return found, scores


@pytest.mark.parametrize("fidelity", ["reference", "paper"])
def test_clips_of_five_and_ten_frames_at_once_score_as_each_alone(
    finished: Manifest, open_split: OpenSplit, fidelity: str
) -> None:
    reader = open_split(finished, "avss", "train")
    network = random_network(reader, fidelity)
    alone, scores = evaluated(network, reader, 1)
    assert (
        len(
            {int(scores["right", name].any(3).any(2).any(1).sum()) for name in alone["right"].clips}
        )
        == 2
    )
    for at_once in (2, 5):
        together, of_clips = evaluated(network, reader, at_once)
        assert of_clips.keys() == scores.keys()
        for key, expected in scores.items():
            torch.testing.assert_close(of_clips[key], expected, rtol=1e-4, atol=1e-4)
        for sound, expected in alone.items():
            found = together[sound]
            assert (found.m_j, found.m_f) == pytest.approx((expected.m_j, expected.m_f), abs=1e-3)
            assert found.unchanged == pytest.approx(expected.unchanged, abs=1e-3)
            assert list(found.clips) == list(expected.clips)
            assert found.without_sound == expected.without_sound
    assert alone["same-class"].without_sound == 1

    # In a training batch the reference's queries do hear the other clips.
    batch = reader.read([0, 1, 2]).to(CPU)
    with torch.inference_mode():
        mixed = network.scores(network(batch.frames, batch.maskige, batch.sound, batch.present))
    differs = float((mixed[0] - scores["right", batch.clips[0]]).abs().max())
    assert (differs > 1e-2) == (fidelity == "reference")


class Narrow(Ear):
    """Takes two clips at a time; more do not fit into its memory."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[int] = []

    def clip_scores(
        self, frames: Tensor, maskige: Tensor | None, sound: Tensor, valid: Tensor | None = None
    ) -> Iterator[Tensor]:
        self.given.append(len(frames))
        if len(frames) > 2:
            raise torch.OutOfMemoryError
        return super().clip_scores(frames, maskige, sound, valid)


def test_as_many_clips_go_together_as_fit(finished: Manifest, open_split: OpenSplit) -> None:
    reader, network = open_split(finished, "s4", "test"), Narrow()
    assert measure(network, reader, CPU, at_once=5) == measure(Ear(), reader, CPU)
    assert network.given == [3, 1, 1, 1]
