"""Any sound file becomes the waveform that the reference's front-end would have heard."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from combo.model.vggish import LogMel, consecutive
from combo.pipeline.errors import MediaError
from combo.pipeline.media.resample import KaiserBest, resampler
from combo.pipeline.media.sound_files import open_sound, read_sound

SOUND = Path(__file__).parents[1] / "data" / "sound"
VIDEO = Path(__file__).parents[3] / "shared" / "real" / "videos" / "nasa_13013.mp4"
GOLDEN = np.load(SOUND / "logmel.npz")

Samples = NDArray[np.float32]


def tone(seconds: float = 1.5, rate: int = 48_000, hertz: float = 440) -> Samples:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype("f4")


def write_video(
    path: Path, codec: str, seconds: float = 1.5, picture: bool = False, gap: int = 0
) -> Path:
    """A container with a stereo tone, with a picture stream if wanted.

    gap: samples by which the second half is late.
    """
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10) if picture else None
        sound = container.add_stream(codec, rate=48_000) if codec else None
        if isinstance(sound, av.AudioStream):
            sound.layout = "stereo"  # before the first packet opens all codecs
        if isinstance(video, av.VideoStream):
            video.width = video.height = 32
            for _ in range(round(seconds * 10)):
                blank = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
                container.mux(video.encode(blank))
            container.mux(video.encode(None))
        if isinstance(sound, av.AudioStream):
            stereo = np.stack([tone(seconds), np.zeros_like(tone(seconds))])
            size = sound.codec_context.frame_size or 1024
            form = sound.codec_context.format or av.AudioFormat("fltp")
            for start in range(0, stereo.shape[1], size):
                part = stereo[:, start : start + size]
                part = part if form.is_planar else part.T.reshape(1, -1)
                kind = np.float32 if form.name.startswith("flt") else np.int16
                part = part if kind == np.float32 else part * 32767
                frame = av.AudioFrame.from_ndarray(part.astype(kind).copy(), form.name, "stereo")
                frame.sample_rate = 48_000
                frame.pts = start + (gap if start > stereo.shape[1] // 2 else 0)
                container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return path


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


# --- the reference's samples ------------------------------------------------------------------


@pytest.mark.golden
@pytest.mark.parametrize("name", ["test", "synth_16k_4s2", "synth_44k1_stereo"])
def test_a_file_gives_the_published_log_mels_whatever_its_rate(name: str) -> None:
    sound = read_sound(SOUND / f"{name}.wav")
    patches = LogMel()(consecutive(torch.from_numpy(sound.waveform)))
    expected = torch.from_numpy(GOLDEN[f"{name}.examples"])
    torch.testing.assert_close(patches[:, None], expected, atol=5e-6, rtol=0)


@pytest.mark.golden
def test_the_references_resampler_is_matched_to_float_noise() -> None:
    sound = read_sound(SOUND / "synth_44k1_stereo.wav")
    expected = GOLDEN["synth_44k1_stereo.resampled_16k"]
    assert (sound.rate_in, sound.channels, sound.codec) == (44_100, 2, "wav/pcm_16")
    assert sound.waveform.shape == expected.shape
    assert np.abs(sound.waveform - expected).max() < 1e-7


def test_soxr_by_name_differs_in_the_two_highest_bands_only() -> None:
    waveform = read_sound(SOUND / "synth_44k1_stereo.wav", resampling="soxr").waveform
    patches = LogMel()(consecutive(torch.from_numpy(waveform)))
    off = (patches - torch.from_numpy(GOLDEN["synth_44k1_stereo.examples"])[:, 0]).abs()
    assert off[..., :62].max() < 0.01
    assert off[..., 63].max() > 0.1


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000, 12_345])
def test_every_rate_is_resampled_as_resampy_does(rate: int) -> None:
    resampy = pytest.importorskip("resampy")
    noise = np.random.default_rng(rate).normal(0, 0.1, rate // 4 + 1)
    stream = KaiserBest(rate, 16_000)
    ours = np.concatenate([stream.push(noise), stream.finish()])
    theirs = resampy.resample(noise, rate, 16_000)
    assert len(ours) == len(theirs)
    assert np.abs(ours - theirs).max() < 1e-7


@given(
    cuts=st.lists(st.integers(0, 9_000), max_size=6), kind=st.sampled_from(["kaiser_best", "soxr"])
)
@settings(max_examples=30)
def test_how_a_sound_is_cut_into_blocks_changes_nothing(cuts: list[int], kind: str) -> None:
    assert kind in ("kaiser_best", "soxr")
    noise = np.random.default_rng(1).normal(0, 0.1, 9_000)
    whole, stream = resampler(kind, 44_100, 16_000), resampler(kind, 44_100, 16_000)
    blocks = [stream.push(block) for block in np.split(noise, sorted(cuts))]
    in_blocks = np.concatenate([*blocks, stream.finish()])
    at_once = np.concatenate([whole.push(noise), whole.finish()])
    np.testing.assert_allclose(in_blocks, at_once, atol=1e-7)


# --- formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 1 / 128),
        ("WAV", "PCM_16", 1 / 32768),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_32", 1e-6),
        ("WAV", "FLOAT", 1e-7),
        ("WAV", "DOUBLE", 1e-7),
        ("FLAC", "PCM_16", 1 / 32768),
        ("FLAC", "PCM_24", 1e-6),
        ("AIFF", "PCM_16", 1 / 32768),
        ("OGG", "VORBIS", 0.05),
        ("OGG", "OPUS", 0.05),
        ("MP3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_every_format_is_mixed_to_mono_at_its_own_scale(
    tmp_path: Path, form: str, subtype: str, tolerance: float
) -> None:
    rate = 48_000
    left, right = tone(rate=rate), 0.2 * tone(rate=rate, hertz=660)
    path = tmp_path / "sound.bin"  # a name that says nothing: the content decides
    soundfile.write(path, np.stack([left, right], axis=1), rate, format=form, subtype=subtype)
    sound = read_sound(path, rate=rate)
    assert (sound.rate, sound.rate_in, sound.channels) == (rate, rate, 2)
    assert sound.codec == f"{form}/{subtype}".lower()
    middle = slice(5_000, 60_000)  # lossy codecs smear the ends
    np.testing.assert_allclose(
        sound.waveform[middle], ((left + right) / 2)[middle], atol=tolerance
    )  # fmt: skip


def test_sixteen_bits_are_scaled_as_in_the_reference(tmp_path: Path) -> None:
    samples = np.array([-32768, -1, 0, 1, 32767], dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    assert read_sound(tmp_path / "a.wav").waveform.tolist() == (samples / 32768).tolist()


@pytest.mark.parametrize(("subtype", "bits"), [("PCM_16", 16), ("PCM_32", 32)])
def test_no_bit_is_lost_on_the_way_to_mono(tmp_path: Path, subtype: str, bits: int) -> None:
    # Rounded to single precision, six channels are heard in the quiet bands beside a loud tone.
    kind = np.dtype(f"int{bits}")
    limits = np.iinfo(kind)
    samples = np.random.default_rng(0).integers(limits.min, limits.max, (16_000, 6), kind)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype=subtype)
    expected = samples.astype(np.float64).mean(axis=1) / 2 ** (bits - 1)
    assert np.abs(read_sound(tmp_path / "a.wav").waveform - expected).max() < 1e-15


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.m4a", "aac"),
        ("a.mp4", "aac"),
        ("a.mkv", "pcm_s16le"),
        ("a.webm", "libopus"),
        ("a.avi", "pcm_s16le"),
        ("a.ac3", "ac3"),
    ],
)
def test_sound_tracks_are_read_through_pyav(tmp_path: Path, name: str, codec: str) -> None:
    path = write_video(tmp_path / name, codec)
    sound = read_sound(path.rename(tmp_path / "renamed.wav"), rate=48_000)
    assert sound.channels == 2
    assert sound.seconds == pytest.approx(1.5, abs=0.06)
    spectrum = np.abs(np.fft.rfft(sound.waveform[8_000:56_000]))
    assert spectrum.argmax() == 440
    assert np.abs(sound.waveform[8_000:56_000]).max() == pytest.approx(0.25, abs=0.03)


def test_a_video_with_two_sound_streams_lets_choose() -> None:
    if not VIDEO.exists():
        pytest.skip("the real video beside the repository is not there")
    first, second = read_sound(VIDEO), read_sound(VIDEO, stream=1)
    assert (first.rate_in, second.rate_in) == (8_000, 16_000)
    assert first.seconds == pytest.approx(second.seconds, abs=0.01) == pytest.approx(13.056)
    assert first.start == second.start == 0
    with pytest.raises(MediaError, match=r"2 sound streams, so there is no 2: .*nasa_13013\.mp4"):
        read_sound(VIDEO, stream=2)


def test_where_the_sound_begins_is_counted_from_the_picture(tmp_path: Path) -> None:
    sound = read_sound(write_video(tmp_path / "a.mkv", "pcm_s16le", picture=True))
    assert sound.start == pytest.approx(0, abs=0.01)
    with_delay = tmp_path / "late.mkv"
    with av.open(str(tmp_path / "a.mkv")) as source, av.open(str(with_delay), "w") as target:
        streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is None or packet.pts is None:
                continue
            if packet.stream.type == "audio":
                packet.pts, packet.dts = packet.pts + 300, packet.dts + 300
            packet.stream = streams[packet.stream.index]
            target.mux(packet)
    assert read_sound(with_delay).start == pytest.approx(0.3, abs=0.01)


# --- long sounds ------------------------------------------------------------------------------


def test_a_sound_in_pieces_is_the_sound(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, (700_000, 2)), 48_000)
    with open_sound(path) as sound:
        pieces = list(sound.blocks)
    assert len(pieces) > 4
    assert max(map(len, pieces)) <= 50_000
    assert np.array_equal(np.concatenate(pieces), read_sound(path).waveform)


def test_a_sound_longer_than_allowed_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    samples = np.zeros(16_000 * 100, dtype=np.float32)
    samples[-1] = np.nan  # which would be another error if it were reached
    soundfile.write(path, samples, 16_000, subtype="FLOAT")
    with pytest.raises(MediaError, match=r"longer than the 60 s allowed"):
        read_sound(path, longest=60)
    with pytest.raises(MediaError, match="NaN"):
        read_sound(path, longest=100)


# --- what goes wrong --------------------------------------------------------------------------


def test_silence_clipping_and_short_sounds_are_sounds(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(16_000), 16_000)
    assert not read_sound(path).waveform.any()
    soundfile.write(path, np.full(16_000, 3.0), 16_000, subtype="FLOAT")
    assert read_sound(path).waveform.max() == 3
    soundfile.write(path, np.full(160, 0.5), 16_000)
    short = read_sound(path)
    assert short.seconds == 0.01
    with pytest.raises(ValueError, match=r"0\.010 s, shorter than one window"):
        consecutive(torch.from_numpy(short.waveform))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_an_error(tmp_path: Path, value: float) -> None:
    samples = np.zeros((48_000, 2), dtype=np.float32)
    samples[24_000, 1] = value
    soundfile.write(tmp_path / "a.wav", samples, 48_000, subtype="FLOAT")
    with pytest.raises(MediaError, match=r"NaN or infinite samples at 0\.500 s: .*a\.wav"):
        read_sound(tmp_path / "a.wav")


def test_files_without_any_sound_are_errors_that_say_so(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with pytest.raises(MediaError, match="missing"):
        read_sound(path)
    with pytest.raises(MediaError, match="a folder"):
        read_sound(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(MediaError, match="0 bytes"):
        read_sound(path)
    soundfile.write(path, np.zeros(0), 16_000)
    with pytest.raises(MediaError, match="no sample"):
        read_sound(path)
    path.write_bytes(b"RIFF\x00\x00\x00\x00WAVEjunk")
    with pytest.raises(MediaError, match="damaged"):
        read_sound(path)
    path.write_text("frame,sound\n1,2\n")
    with pytest.raises(MediaError, match="no readable sound"):
        read_sound(path)
    path.write_bytes(np.random.default_rng(0).bytes(5_000))
    with pytest.raises(MediaError):
        read_sound(path)
    with pytest.raises(MediaError, match="there is no sound in it"):
        read_sound(write_video(tmp_path / "mute.mp4", "", picture=True))
    soundfile.write(path, tone(), 48_000)
    with pytest.raises(MediaError, match="there is no stream 1"):
        read_sound(path, stream=1)


@pytest.mark.parametrize(
    ("form", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "PCM_24"),
        ("RF64", "PCM_16"),
        ("W64", "PCM_16"),
        ("AIFF", "PCM_16"),
        ("AU", "PCM_16"),
        ("CAF", "PCM_16"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
    ],
)
@pytest.mark.parametrize("share", [0.002, 0.5, 0.7])
def test_a_truncated_file_is_an_error_and_never_a_shorter_sound(
    tmp_path: Path, form: str, subtype: str, share: float
) -> None:
    path = tmp_path / "a"
    soundfile.write(path, tone(4), 48_000, format=form, subtype=subtype)
    read_sound(path)
    with pytest.raises(MediaError, match=r"truncated|damaged|no sample|no readable"):
        read_sound(cut(path, share))


@pytest.mark.parametrize(
    ("form", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("RF64", "PCM_16"),
        ("W64", "PCM_16"),
        ("AIFF", "PCM_16"),
        ("AU", "PCM_16"),
        ("FLAC", "PCM_16"),
        ("MP3", "MPEG_LAYER_III"),
    ],
)
def test_a_sound_that_lacks_less_than_a_window_step_is_not_lost(
    tmp_path: Path, form: str, subtype: str
) -> None:
    path = tmp_path / "a"
    soundfile.write(path, tone(4), 48_000, format=form, subtype=subtype)
    whole = read_sound(path).waveform
    short = read_sound(cut(path, 0.9)).waveform  # 0.4 s are lacking
    assert len(whole) - 0.45 * 16_000 < len(short) < len(whole)
    alike = len(short) - 1_600  # its end is smeared into the silence behind it
    np.testing.assert_allclose(short[:alike], whole[:alike], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "aac"), ("a.webm", "libopus")]
)
@pytest.mark.parametrize("share", [0.002, 0.5, 0.7])
def test_a_truncated_sound_track_is_an_error(
    tmp_path: Path, name: str, codec: str, share: float
) -> None:
    path = write_video(tmp_path / name, codec, seconds=4)
    read_sound(path)
    with pytest.raises(MediaError, match=r"truncated|no readable"):
        read_sound(cut(path, share))


def test_a_file_written_to_a_pipe_has_no_length_and_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(1, 16_000), 16_000)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    assert read_sound(path).seconds == 1


def test_a_recorder_that_never_wrote_the_length_has_recorded_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(1, 16_000), 16_000, subtype="PCM_16")
    whole, content = read_sound(path), bytearray(path.read_bytes())
    for fields in ((40,), (4, 40)):
        for place in fields:
            content[place : place + 4] = bytes(4)
        path.write_bytes(content)
        assert np.array_equal(read_sound(path).waveform, whole.waveform)


def test_a_header_that_counts_too_many_bytes_costs_nothing_until_a_window_step_is_lacking(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(2, 16_000), 16_000, subtype="PCM_16")
    whole, content = read_sound(path), bytearray(path.read_bytes())
    for seconds, lost in ((0.9, False), (1.0, True)):
        content[40:44] = struct.pack("<I", 64_000 + round(seconds * 32_000))
        path.write_bytes(content)
        if lost:
            with pytest.raises(MediaError, match="truncated after 64000 of 96000 bytes"):
                read_sound(path)
        else:
            assert np.array_equal(read_sound(path).waveform, whole.waveform)


def test_a_gap_in_a_sound_track_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"a gap or jump in the sound at 0\.7\d s"):
        read_sound(write_video(tmp_path / "a.mkv", "pcm_s16le", gap=24_000))
