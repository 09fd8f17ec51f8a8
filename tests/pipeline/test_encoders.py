"""Sound encoders: the reference by its own package, and what another encoder may be like."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from combo.model.vggish import VGGish
from combo.pipeline import encoders
from combo.pipeline.devices import Place
from combo.pipeline.encoders.encoder import Encoder
from combo.pipeline.errors import ComboError
from combo.pipeline.layouts import Clip
from combo.pipeline.manifest import AudioSettings
from combo.pipeline.preprocess.audio import AudioStage, describe

SOUNDS = Path(__file__).parent.parent / "data" / "sound"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """VGGish with seeded weights, as its file is read."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = VGGish().state_dict()
    path = tmp_path_factory.mktemp("weights") / "vggish.pth"
    torch.save(state, path)
    return {"vggish": (path, "0" * 64)}


@pytest.mark.parametrize("sound", ["test.wav", "synth_44k1_stereo.wav", "synth_16k_4s2.wav"])
def test_vggish_gives_what_the_package_gives_from_the_sound_to_the_store(
    weights: dict[str, tuple[Path, str]], sound: str
) -> None:
    clip = Clip("clip", sound=SOUNDS / sound, times=(0.5, 1.5, 2.0))
    for rule in ("zeros", "centred"):
        ours, theirs = (
            AudioStage(AudioSettings(encoder=name), rule, 10, weights).open(Place())([clip])[0]
            for name in ("vggish", "torchvggish")
        )
        assert ours.arrays is not None, ours.reason
        assert theirs.arrays is not None, theirs.reason
        a, b = ours.arrays["embedding"], theirs.arrays["embedding"]
        assert a.shape == b.shape == (10, 128)
        assert np.abs(a - b).max() <= 1e-4 * b.std()
    described = [describe(AudioSettings(encoder=n), "zeros", 10) for n in encoders.ENCODERS]
    assert len({each.variant().fingerprint for each in described}) == len(described)


@pytest.mark.parametrize("name", ["vggish", "torchvggish"])
def test_no_network_of_an_encoder_computes_in_tf32(
    weights: dict[str, tuple[Path, str]], name: str
) -> None:
    def rounding() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before, seen = rounding(), set[tuple[bool, bool]]()
    assert before != (False, False), "as PyTorch begins"
    clip = Clip("clip", sound=SOUNDS / "test.wav", times=(0.5, 1.5))
    stage = AudioStage(AudioSettings(encoder=name), "centred", 2, weights)
    watching = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: seen.add(rounding()) if isinstance(module, torch.nn.Conv2d) else None
    )
    try:
        (outcome,) = stage.open(Place())([clip])
        assert outcome.arrays is not None, outcome.reason
        assert seen == {(False, False)}
        seen.clear()
        embeddings, lacking = stage.embed(clip, "cpu")
    finally:
        watching.remove()
    assert seen == {(False, False)}
    assert rounding() == before
    assert (len(embeddings), lacking) == (2, [])


def _loudness() -> Encoder:
    """Loudness in eight equal parts of half a second at 8 kHz: 8 numbers."""

    def front_end(windows: Tensor, at_once: int) -> Tensor:
        del at_once
        return windows.float().reshape(len(windows), 8, -1)

    def open_it(*_: object) -> object:
        return lambda patches: patches.square().mean(-1).sqrt().float()

    return Encoder(
        open_it, width=8, rate=8_000, window=4_000, stride=4_000,
        front_end=lambda: front_end, patch=(8, 500),
    )  # fmt: skip


def test_an_encoder_may_have_a_width_a_rate_and_a_window_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "ENCODERS", {**encoders.ENCODERS, "loudness": _loudness()})
    seconds = np.arange(3 * 8_000) / 8_000
    tone = np.where(seconds < 1, 0.5, 0.1) * np.sin(2 * math.pi * 200 * seconds)
    soundfile.write(tmp_path / "tone.wav", tone, 8_000, subtype="FLOAT")
    clip = Clip("tone", sound=tmp_path / "tone.wav", times=(0.5, 2.5))
    settings = AudioSettings(encoder="loudness")
    (outcome,) = AudioStage(settings, "centred", 2, {}).open(Place())([clip])
    assert outcome.arrays is not None, outcome.reason
    expected = np.repeat([[0.5], [0.1]], 8, axis=1) / math.sqrt(2)
    np.testing.assert_allclose(outcome.arrays["embedding"], expected, atol=2e-3)
    (spec,) = describe(settings, "centred", 2).arrays
    assert (spec.shape, spec.dtype) == ((2, 8), "float32")
    with pytest.raises(ComboError, match="takes no log-mel patches"):
        describe(settings.model_copy(update={"source": "log-mel"}), "avsbench", 5)
