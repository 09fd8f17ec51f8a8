"""Windows around frames are the same whether the sound is read as a whole or in passing."""

import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from combo.model.vggish import RATE, WINDOW, LogMel, centred, mel_statistics
from combo.pipeline.devices import Place
from combo.pipeline.layouts import Clip
from combo.pipeline.manifest import AudioSettings
from combo.pipeline.media.sound_files import read_sound
from combo.pipeline.media.sound_windows import centred_windows
from combo.pipeline.preprocess.audio import AudioStage
from combo.pipeline.preprocess.stage import Outcome

HOURS = 10


def outcome(path: Path, times: tuple[float, ...], windows: str = "centred") -> Outcome:
    rule = "centred" if windows == "centred" else "avsbench"
    stage = AudioStage(AudioSettings(encoder="mel-stats"), rule, 5, {})
    (only,) = stage.open(Place())([Clip("long", sound=path, times=times)])
    return only


@given(
    cuts=st.lists(st.integers(0, 60_000), max_size=6),
    times=st.lists(st.floats(-0.48, 4.2), min_size=1, max_size=8),
)
@settings(max_examples=60)
def test_windows_cut_in_passing_are_those_of_the_whole_sound(
    cuts: list[int], times: list[float]
) -> None:
    waveform = np.random.default_rng(0).normal(0, 0.1, 60_000)
    blocks = (waveform[a:b] for a, b in pairwise([0, *sorted(cuts), len(waveform)]))
    found = dict(centred_windows(blocks, times))
    expected = centred(torch.from_numpy(waveform), times).numpy()
    assert np.array_equal(np.stack([found[t] for t in range(len(times))]), expected)


def test_nothing_is_read_behind_the_last_window() -> None:
    def endless() -> Iterator[np.ndarray]:
        while True:
            yield np.ones(RATE)

    assert [t for t, _ in centred_windows(endless(), [2.0, 0.5])] == [1, 0]


def test_frames_without_sound_are_errors() -> None:
    def second(count: int = RATE) -> Iterator[np.ndarray]:
        yield np.ones(count)

    around = "no sound around the frame at"
    with pytest.raises(ValueError, match=rf"{around} 3\.50 s: the sound ends at 1\.00 s"):
        list(centred_windows(second(), [0.5, 3.5]))
    with pytest.raises(ValueError, match=rf"{around} 0\.50 s: the sound begins at 2\.50 s"):
        list(centred_windows(second(), [0.5, 3.0], begins=2.5))
    with pytest.raises(ValueError, match="no sample"):
        list(centred_windows(iter(()), [0.5]))


@pytest.mark.parametrize("spacing", [0.04, 0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("lack", "lost"), [(0.0, False), (0.95, False), (2.1, True)])
def test_less_than_a_window_step_of_lacking_sound_is_silence_and_more_a_lost_clip(
    spacing: float, lack: float, lost: bool
) -> None:
    # Frames in the middle of their spans, from 0 to 6 s.
    times = [spacing * (n + 0.5) for n in range(round(6 / spacing))]
    early = np.ones(round((6 - lack) * RATE))
    for begins in (0.0, lack):  # it ends early, it begins late
        if lost:
            with pytest.raises(ValueError, match="no sound around the frame"):
                list(centred_windows([early], times, begins, spacing))
        else:
            found = dict(centred_windows([early], times, begins, spacing))
            for t, time in enumerate(times):
                heard = (time - begins, 6 - lack + begins - time)
                expected = min(sum(min(max(side, 0), 0.4875) for side in heard), 0.975)
                if min(heard) > 0:
                    assert found[t].sum() == pytest.approx(expected * RATE, abs=2)


def test_a_sound_shorter_than_one_window_is_heard_with_silence_around_it() -> None:
    ((_, window),) = centred_windows([np.ones(RATE // 2)], [0.25])
    assert window.sum() == RATE // 2
    assert window[WINDOW // 2 - 100 : WINDOW // 2 + 100].all()


def test_a_resampled_file_gives_what_its_whole_waveform_gives(tmp_path: Path) -> None:
    path, times = tmp_path / "a.flac", (0.1, 2.5, 4.9, 7.2, 9.8)
    noise = np.random.default_rng(0).normal(0, 0.1, (441_000, 2))
    soundfile.write(path, noise, 44_100)
    made = outcome(path, times)
    whole = torch.from_numpy(read_sound(path).waveform)
    assert made.arrays is not None, made.reason
    expected = mel_statistics(LogMel()(centred(whole, times)))
    assert np.array_equal(made.arrays["embedding"], expected.numpy())


@pytest.fixture(scope="module")
def ten_hours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Silence with one loud second that begins at 9 h 30 min."""
    path = tmp_path_factory.mktemp("long") / "ten_hours.flac"
    silence = np.zeros(600 * RATE, dtype=np.int16)
    loud = silence.copy()
    loud[:RATE] = np.random.default_rng(0).normal(0, 3000, RATE)
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        for part in range(HOURS * 6):
            file.write(loud if part == 57 else silence)
    return path


@pytest.mark.slow
def test_ten_hours_around_frames_take_the_memory_of_seconds(ten_hours: Path) -> None:
    tracemalloc.start()
    made = outcome(ten_hours, (5.0, 34_200.5, 35_999.0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.arrays is not None, made.reason
    quiet, loud, also_quiet, *_ = made.arrays["embedding"][:, :64].mean(axis=1)
    assert quiet == also_quiet == pytest.approx(np.log(0.01))
    assert loud > 0
    assert peak < 20e6


@pytest.mark.slow
def test_ten_hours_are_refused_by_the_benchmarks_rule_after_seconds(ten_hours: Path) -> None:
    made = outcome(ten_hours, (0.5,), windows="avsbench")
    assert made.arrays is None
    assert "longer than the 6 s allowed" in made.reason
