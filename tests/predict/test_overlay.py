"""The film that `combo predict` paints: pictures, sound and masks when they are in the film."""

from fractions import Fraction
from pathlib import Path

import av
import numbered_clips
import numpy as np
import pytest
from av.stream import Disposition
from numbered_clips import SIDE, Recipe, film, make, number, tones
from PIL import Image

from combo.pipeline.media.limits import USUAL
from combo.pipeline.predict.folder import PredictionFolder
from combo.pipeline.predict.inputs import Film, open_film
from combo.pipeline.predict.masks import read_mask
from combo.pipeline.predict.overlay import write_overlay
from combo.pipeline.predict.predictor import Predictor

from .test_predict import predicted, write_wav


def _mask_of(opened: Film) -> dict[int, np.ndarray]:
    """Of predicted frame k a block at the lower edge, in the k-th eighth."""
    masks: dict[int, np.ndarray] = {}
    for k in range(len(opened.clip.times)):
        masks[k] = np.zeros((SIDE, SIDE), np.uint8)
        masks[k][58:, 8 * k : 8 * k + 8] = 1
    return masks


def _pictures(path: Path) -> list[tuple[float, np.ndarray]]:
    with av.open(str(path)) as file:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]


def _sound(path: Path) -> tuple[np.ndarray, int, float]:
    with av.open(str(path)) as file:
        frames = list(file.decode(audio=0))
    samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    return samples, frames[0].sample_rate, frames[0].time


def _second_heard(path: Path, time: float) -> int:
    """Which second of `tones` is heard in the 30 ms from a time on."""
    samples, rate, start = _sound(path)
    begin = round((time - start) * rate)
    some = samples[begin : begin + round(0.03 * rate)]
    spectrum = np.abs(np.fft.rfft(some * np.hanning(len(some)), 8 * len(some)))
    return round((spectrum.argmax() * rate / (8 * len(some)) - 300) / 250)


FILMS = {
    "steady": {},
    "odd rate": {"rate": Fraction(30000, 1001)},
    "variable rate": {"kept": tuple(n for n in range(100) if n % 7 not in (2, 3) and n not in range(30, 52))},  # noqa: E501
    "turned": {"orientation": "right"},
    "mirrored": {"orientation": "mirrored"},
    "sound first": {"picture_at": 0.4},
    "pictures first": {"sound_at": 0.24},
}  # fmt: skip


@pytest.mark.parametrize("kind", FILMS)
def test_pictures_sound_and_masks_are_in_step_to_one_frame(kind: str, tmp_path: Path) -> None:
    """Pictures carry their number, the sound is a tone a second, masks say which frame is theirs.

    Variable rate, turned, mirrored: as a player shows them.
    """
    given = FILMS[kind]
    rate = float(given.get("rate", 25))
    source, made = tmp_path / "film.mp4", tmp_path / "overlay.mp4"
    shown = film(source, 4.0, **given)
    opened = open_film(source)
    masks = _mask_of(opened)
    write_overlay(made, opened, masks.get, None, USUAL)

    found = _pictures(made)
    zero = min(0.0 if "sound_at" not in given else 0.24, given.get("picture_at", 0.0))
    times = {n: time - zero for n, time in shown.shown.items()}
    assert [number(picture) for _, picture in found] == sorted(times)
    for time, picture in found:
        at = times[number(picture)]
        assert abs(time - at) < 0.5 / rate
        below = picture[60:63].astype(int)
        reds = [(below[:, x : x + 8, 0] - below[:, x : x + 8, 2]).mean() for x in range(0, 64, 8)]
        far = [round(abs(each - at), 6) for each in opened.clip.times]
        nearest = len(far) - 1 - far[::-1].index(min(far))  # at a tie the one to come
        assert int(np.argmax(reds)) == nearest
    for second in (1, 2, 3):  # each tone begins when it did
        begins = second + given.get("sound_at", 0.0)
        assert _second_heard(made, begins - 0.04) == second - 1
        assert _second_heard(made, begins + 0.01) == second
    with av.open(str(made)) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert audio.codec_context.name == "aac"


@pytest.mark.parametrize("fps", [0.5, 0.2])
def test_pictures_that_are_far_apart_are_all_painted(tmp_path: Path, fps: float) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for n in range(8):
        Image.fromarray(numbered_clips.picture(n)).save(frames / f"{n}.png")
    write_wav(frames / "sound.wav", 8 / fps)
    write_overlay(tmp_path / "overlay.mp4", open_film(frames, fps), lambda _: None, None, USUAL)
    found = _pictures(tmp_path / "overlay.mp4")
    assert [time for time, _ in found] == pytest.approx([n / fps for n in range(8)])
    assert [number(image) for _, image in found] == list(range(8))


@pytest.mark.parametrize("kind", ["mkv", "mp4"])
@pytest.mark.parametrize("rate", [7, 15, 24, 60])
def test_a_film_whose_container_counts_milliseconds_has_its_last_frame(
    tmp_path: Path, kind: str, rate: int
) -> None:
    recipe = Recipe(kind, "libx264", Fraction(rate), tuple(range(3 * rate)), sound="aac",
                    sound_seconds=3.0)  # fmt: skip
    make(tmp_path / f"film.{kind}", recipe)
    assert open_film(tmp_path / f"film.{kind}", 1.0).clip.times == (0.5, 1.5, 2.5)


def test_sides_that_are_odd_get_their_last_pixels_twice(
    predictor: Predictor, tmp_path: Path
) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for t in range(2):
        Image.new("RGB", (65, 47), (200, 30 * t, 30)).save(frames / f"{t}.png")
    write_wav(frames / "sound.wav", 2.0)
    opened = open_film(frames)
    out = tmp_path / "out"
    PredictionFolder(out, opened, predictor).make()
    assert read_mask(out / "masks" / "000000.png").shape == (47, 65)
    pictures = _pictures(out / "overlay.mp4")
    assert [time for time, _ in pictures] == [0.0, 1.0]
    assert all(picture.shape == (48, 66, 3) for _, picture in pictures)


def test_frames_without_sound_around_them_are_not_predicted(
    predictor: Predictor, tmp_path: Path
) -> None:
    film(tmp_path / "film.mp4", 6.0, sound_at=1.5, sound_seconds=2.0)
    opened = open_film(tmp_path / "film.mp4")
    made = PredictionFolder(tmp_path / "out", opened, predictor).make()
    assert [frame["frame"] for frame in made["frames"]] == [1, 2, 3]
    assert made["without_sound"] == 3
    assert [s["second"] for s in made["seconds"] if not s["predicted"]] == [0, 4, 5]
    assert len(_pictures(tmp_path / "out" / "overlay.mp4")) == 150


def test_the_first_of_two_sounds_is_heard_and_kept(predictor: Predictor, tmp_path: Path) -> None:
    film(tmp_path / "one.mp4", 2.0)
    two = tmp_path / "two.mkv"
    with av.open(str(tmp_path / "one.mp4")) as source, av.open(str(two), "w") as out:
        video = out.add_stream_from_template(source.streams.video[0])
        tracks = [out.add_stream("pcm_s16le", rate=48_000, layout="mono") for _ in range(2)]
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                out.mux(packet)
        for track, samples in zip(tracks, (tones(2.0), 0 * tones(2.0)), strict=True):
            whole = np.round(samples[None] * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(whole, "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
            out.mux(track.encode(frame))
    opened, alone = open_film(two), open_film(tmp_path / "one.mp4")
    own, other = predictor.hear(opened).embeddings, predictor.hear(alone).embeddings
    np.testing.assert_allclose(own, other, atol=0.6)  # AAC is not what it was made of
    assert own.max() > 2  # and not silence
    write_overlay(tmp_path / "overlay.mp4", opened, lambda _: None, None, USUAL)
    assert _second_heard(tmp_path / "overlay.mp4", 1.2) == 1


def test_of_two_pictures_the_one_that_players_show_is_seen_and_painted(
    predictor: Predictor, tmp_path: Path
) -> None:
    film(tmp_path / "one.mp4", 2.0)
    two = tmp_path / "two.mp4"
    with av.open(str(tmp_path / "one.mp4")) as source, av.open(str(two), "w") as out:
        small = out.add_stream("libx264", rate=25, width=32, height=32)
        film_of, sound_of = source.streams.video[0], source.streams.audio[0]
        tracks = {each: out.add_stream_from_template(each) for each in (film_of, sound_of)}
        small.disposition, tracks[film_of].disposition = Disposition(0), Disposition.default
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = tracks[packet.stream]
                out.mux(packet)
        for shown in range(50):
            grey = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 99, np.uint8), "rgb24")
            grey.pts, grey.time_base = shown, Fraction(1, 25)
            out.mux(small.encode(grey))
        out.mux(small.encode(None))
    own, alone = predicted(predictor, two), predicted(predictor, tmp_path / "one.mp4")
    for one, other in zip(own, alone, strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)
    write_overlay(tmp_path / "overlay.mp4", open_film(two), lambda _: None, None, USUAL)
    numbers = [number(image) for _, image in _pictures(tmp_path / "overlay.mp4")]
    assert numbers == list(range(50))
