"""Sound from elsewhere than one sound file: published log-mel pickles, a video's second stream."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ByteSize

from combo.model.vggish import LogMel, consecutive
from combo.pipeline.devices import Place
from combo.pipeline.errors import ComboError
from combo.pipeline.jobs.plan import make_job
from combo.pipeline.layouts import Clip
from combo.pipeline.manifest import AudioSettings, Manifest
from combo.pipeline.media.sound_files import read_sound
from combo.pipeline.preprocess.audio import AudioStage, describe
from combo.pipeline.preprocess.frames import FramesStage

VIDEO = Path(__file__).parents[3] / "shared" / "real" / "videos" / "nasa_13013.mp4"


def embedding(stage: AudioStage, clip: Clip) -> np.ndarray:
    (outcome,) = stage.open(Place())([clip])
    assert outcome.arrays is not None, outcome.reason
    return outcome.arrays["embedding"]


def test_log_mel_pickles_give_what_their_sounds_give(manifest: Manifest, tmp_path: Path) -> None:
    clip = make_job(manifest, "ms3", "val", "audio").clips[0]
    assert clip.sound is not None
    assert clip.log_mel is not None
    assert clip.log_mel.parts[-3:] == ("audio_log_mel", "val", f"{clip.name}.pkl")
    patches = LogMel()(consecutive(torch.from_numpy(read_sound(clip.sound).waveform)))
    file = tmp_path / "patches.pkl"
    file.write_bytes(pickle.dumps(patches[:, None]))
    only_pickle = Clip(clip.name, log_mel=file, times=clip.times)
    plain = AudioSettings(encoder="mel-stats")
    pickled = AudioSettings(encoder="mel-stats", source="log-mel")
    expected = embedding(AudioStage(plain, "avsbench", 5, {}), clip)
    assert np.array_equal(embedding(AudioStage(pickled, "avsbench", 5, {}), only_pickle), expected)
    (missing,) = AudioStage(pickled, "avsbench", 5, {}).open(Place())([clip])
    assert "missing" in missing.reason


def test_a_memory_limit_changes_neither_numbers_nor_the_variants_name(manifest: Manifest) -> None:
    clip = make_job(manifest, "ms3", "val", "audio").clips[0]
    free, bounded = (
        AudioStage(AudioSettings(encoder="mel-stats", memory_limit=limit), "avsbench", 5, {})
        for limit in (None, ByteSize(4 << 20))
    )
    assert free.variant() == bounded.variant()
    np.testing.assert_allclose(embedding(free, clip), embedding(bounded, clip), atol=1e-6)


def test_threads_share_out_the_clips_and_change_nothing(manifest: Manifest) -> None:
    clips = list(make_job(manifest, "ms3", "train", "audio").clips)
    clips.insert(1, Clip("mute"))
    stage = AudioStage(AudioSettings(encoder="mel-stats"), "avsbench", 5, {})
    alone, shared = stage.open(Place(1))(clips), stage.open(Place(3))(clips)
    assert len(alone) == len(shared) == len(clips) > 2
    for clip, one, other in zip(clips, alone, shared, strict=True):
        assert one.reason == other.reason
        if clip.name == "mute":
            assert "no sound file" in one.reason
        else:
            assert one.arrays is not None
            assert other.arrays is not None
            assert np.array_equal(one.arrays["embedding"], other.arrays["embedding"])


def test_log_mel_pickles_cannot_be_cut_around_frames() -> None:
    settings = AudioSettings(encoder="mel-stats", source="log-mel", windows="centred")
    with pytest.raises(ComboError, match="windows: layout"):
        describe(settings, "avsbench", 5)


@pytest.mark.skipif(not VIDEO.exists(), reason="needs the video beside the repository")
def test_a_videos_second_sound_stream_can_be_chosen() -> None:
    clip = Clip("nasa", sound=VIDEO, times=(0.5, 1.5, 2.5))
    heard = [
        embedding(AudioStage(AudioSettings(encoder="mel-stats", stream=n), "centred", 5, {}), clip)
        for n in (None, 0, 1)
    ]
    assert np.array_equal(heard[0], heard[1])
    assert not np.array_equal(heard[0], heard[2])
    assert not heard[0][3:].any(), "frames that the clip does not have"


def test_a_clip_that_is_no_clip_has_the_same_reason_in_the_frames_and_the_sound() -> None:
    clip = Clip("c", problem="missing, a link to x where nothing is: clips/c")
    frames = FramesStage((64, 64), "squash", 5, "binary", 2)
    sound = AudioStage(AudioSettings(encoder="mel-stats"), "centred", 5, {})
    for stage in (frames, sound):
        assert stage.open(Place())([clip])[0].reason == clip.problem
