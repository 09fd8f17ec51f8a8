"""Picture and sound of a clip stand on one clock, whatever its file is like."""

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numbered_clips import ORIENTATIONS, SIDE, Made, Recipe, make, number, tones

from combo.model.vggish import LogMel, centred, mel_statistics
from combo.pipeline.layouts import Clip
from combo.pipeline.layouts.folders import Folders
from combo.pipeline.manifest import AudioSettings
from combo.pipeline.preprocess.audio import AudioStage
from combo.pipeline.preprocess.frames import FramesStage
from combo.pipeline.preprocess.stage import Outcome, Place

EXAMPLES = int(os.environ.get("COMBO_CLOCK_EXAMPLES", "200"))
CONTAINERS = {
    "mp4": (("libx264", "mpeg4"), ("aac",)),
    "mov": (("libx264", "mpeg4"), ("pcm_s16le", "aac")),
    "mkv": (("libx264", "mpeg4", "mpeg2video"), ("pcm_s16le", "libopus", "aac")),
    "webm": (("libvpx",), ("libopus",)),
    "ts": (("libx264", "mpeg2video"), ("mp2", "aac")),
    "avi": (("mpeg4", "mjpeg"), ("pcm_s16le", "mp2")),
    "flv": (("flv",), ("aac",)),
}
"""Codecs of pictures and of sound that are tried, by the ending of the file's name."""


def listed(folder: Path, seconds_per_frame: float = 1.0) -> Clip:
    (clip,) = Folders(1000, seconds_per_frame).clips(folder.parent, "all")
    return clip


def frames_of(clip: Clip) -> Outcome:
    stage = FramesStage((SIDE, SIDE), "squash", max(1, len(clip.frames)), "binary", 2)
    return stage.open(Place())([clip])[0]


def sound_of(clip: Clip) -> Outcome:
    stage = AudioStage(AudioSettings(encoder="mel-stats"), "centred", max(1, len(clip.frames)), {})
    return stage.open(Place())([clip])[0]


def numbers_of(outcome: Outcome) -> list[int]:
    assert outcome.arrays is not None, outcome.reason
    return [number(image) for image in outcome.arrays["frames"]]


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    ending = draw(st.sampled_from(sorted(CONTAINERS)))
    codecs, sounds = CONTAINERS[ending]
    codec = draw(st.sampled_from(codecs))
    rate = draw(st.sampled_from([Fraction(25), Fraction(10), Fraction(30000, 1001), Fraction(24)]))
    if codec == "mpeg2video":
        rate = Fraction(25)
    seconds = draw(st.integers(1, 5))
    kept = list(range(int(seconds * rate)))
    if ending not in ("avi", "flv") and draw(st.booleans()):
        for _ in range(draw(st.integers(1, 3))):
            begin = draw(st.integers(1, len(kept)))
            del kept[begin : begin + draw(st.integers(1, 20))]
    group = draw(st.sampled_from([5, 12, 250]))
    cut = draw(st.integers(0, min(30, len(kept) - 1))) if draw(st.booleans()) else 0
    # AVI has no times: what is cut from it, or late, is known to nobody.
    timed = ending != "avi"
    late = st.one_of(st.just(0.0), st.floats(0, 1.5), st.floats(0, 0.2))
    base = draw(st.sampled_from([0.0, 0.0, 20.0])) if timed else 0.0
    sound = draw(st.sampled_from([None, *sounds, *sounds]))
    b_frames = draw(st.sampled_from([0, 2])) if codec != "flv" else 0
    if b_frames and ending in ("mp4", "mov"):
        cut = 0  # its writer takes the first packet's picture for the first that is shown
    return Recipe(
        ending,
        codec,
        rate,
        tuple(kept),
        group=group,
        b_frames=b_frames,
        cut=cut if timed else 0,
        picture_at=base + (draw(late) if timed else 0.0),
        sound=sound,
        sound_at=base + (draw(late) if timed else 0.0),
        sound_seconds=max(0.1, seconds + draw(st.sampled_from([0.0, 0.0, 1.5, -0.5, -2.0]))),
        orientation=draw(st.sampled_from(sorted(ORIENTATIONS)))
        if ending in ("mp4", "mov")
        else "upright",
        live=ending == "webm" and draw(st.booleans()),
    )


GAP = Recipe("mov", "libx264", Fraction(25), (0, *range(30, 50)), group=5, b_frames=2)
"""In MOV one of the last packets lasts as long as the gap, since pictures are reordered."""


@example(GAP, 0.2)
@given(recipes(), st.sampled_from([1.0, 0.5, 0.2]))
@settings(
    max_examples=EXAMPLES,
    derandomize=True,  # by hand, with more of them, at random
    suppress_health_check=list(HealthCheck),
)
def test_every_frame_has_its_number_its_orientation_and_its_sound_or_the_clip_has_a_reason(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, step: float
) -> None:
    folder = tmp_path_factory.mktemp("clock") / "clip"
    folder.mkdir()
    file = folder / f"clip.{recipe.name}"
    made = make(file, recipe)
    first, last = min(made.shown.values()), max(made.shown.values())
    length = last + float(1 / recipe.rate) - first
    clip = listed(folder, step)
    if clip.problem is not None:
        # FFmpeg opens no transport stream of a few packets.
        tiny = recipe.name == "ts" and file.stat().st_size < 2_000
        assert tiny or len(made.decodable) < len(made.shown)
    else:
        assert abs(len(clip.frames) - max(1, length / step)) <= 1.01
        middle = min(step, length) / 2
        moments = [first + n * step + middle for n in range(len(clip.frames))]
        zero = min(first, recipe.sound_at) if recipe.sound else first
        assert np.abs(np.array(clip.times) - (np.array(moments) - zero)).max() < 0.06
        check_numbers(frames_of(clip), made, moments)
        check_sound(sound_of(clip), recipe, moments, first, moments[-1] + middle)
    file.unlink()


def check_numbers(outcome: Outcome, made: Made, moments: list[float]) -> None:
    """The picture that is shown at each moment, or a reason where one cannot be decoded."""
    due = [{shown_at(made, time + rounding) for rounding in (-0.002, 0.002)} for time in moments]
    if all(numbers <= made.decodable for numbers in due):
        found = numbers_of(outcome)
        assert all(n in numbers for n, numbers in zip(found, due, strict=True)), (found, due)
    elif any(not numbers & made.decodable for numbers in due):
        assert outcome.arrays is None
        assert "cannot be decoded" in outcome.reason


def shown_at(made: Made, time: float) -> int:
    first = min(made.shown, key=made.shown.__getitem__)
    shown = [n for n, begin in made.shown.items() if begin <= time]
    return max(shown, key=made.shown.__getitem__, default=first)


def check_sound(
    outcome: Outcome, recipe: Recipe, moments: list[float], begin: float, end: float
) -> None:
    """The sound around each moment, or a reason where a window step or more is lacking."""
    if recipe.sound is None:
        assert "there is no sound in it" in outcome.reason
        return
    lacking = max(recipe.sound_at - begin, end - recipe.sound_at - recipe.sound_seconds)
    apart = [max(recipe.sound_at - t, t - recipe.sound_at - recipe.sound_seconds) for t in moments]
    if lacking > 0.96 + 0.06 and max(apart) > 0.5 + 0.06:
        assert "no sound around the frame" in outcome.reason
    elif lacking < 0.96 - 0.06:
        assert outcome.arrays is not None, outcome.reason
    if outcome.arrays is None:
        return
    silence = np.zeros(10 * 16_000)
    waveform = np.concatenate([silence, tones(recipe.sound_seconds, 16_000), silence])
    there = torch.tensor([time - recipe.sound_at + 10 for time in moments])
    expected = mel_statistics(LogMel()(centred(torch.from_numpy(waveform), there))).numpy()
    means = slice(0, 64)
    off = np.abs(outcome.arrays["embedding"][: len(moments)] - expected)[:, means].mean(axis=1)
    # A tenth of a second of another sound is worth 0.1; what codecs lose, up to 0.1.
    assert off.max() < 0.2, (off, recipe)
