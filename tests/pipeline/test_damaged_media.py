"""One bad file costs its clip and nothing else: not the other clips, not time, not memory, and no
other file and no network is touched for it."""

import hashlib
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from numbered_clips import Recipe, make, picture, tones
from PIL import Image
from system_limits import memory_limit

from combo.pipeline.errors import MediaError
from combo.pipeline.layouts import Clip
from combo.pipeline.layouts.folders import Folders
from combo.pipeline.manifest import AudioSettings
from combo.pipeline.media import sound_files, video
from combo.pipeline.media.limits import Limits
from combo.pipeline.media.opened import OpenFile
from combo.pipeline.media.sound_files import open_sound, read_sound
from combo.pipeline.media.video import VideoFrame, read_video, video_span
from combo.pipeline.preprocess.audio import AudioStage
from combo.pipeline.preprocess.frames import FramesStage
from combo.pipeline.preprocess.stage import Outcome, Place

DAMAGED = 520
SPARE = 1_500
"""MiB that a damaged file may make a process use, which is about what an 8K video takes."""

IMAGES = {
    "png": {},
    "jpg": {"quality": 90},
    "bmp": {},
    "webp": {},
    "tif": {"compression": "tiff_lzw"},
    "ppm": {},
    "gif": {},
    "jp2": {},
    "avif": {},
}
SOUNDS = {
    "wav": ("WAV", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
VIDEOS = {
    "mp4": ("libx264", "aac"),
    "mov": ("mpeg4", "pcm_s16le"),
    "mkv": ("libx264", "libopus"),
    "webm": ("libvpx", "libopus"),
    "ts": ("mpeg2video", "mp2"),
    "avi": ("mjpeg", "mp2"),
    "flv": ("flv", "aac"),
    "wmv": ("wmv2", "wmav2"),
    "mpg": ("mpeg1video", "mp2"),
    "m4a": ("", "aac"),
}


def whole_files(folder: Path) -> dict[Path, str]:
    """A small file of every kind, and what it is: frames, sound, log-mel or video."""
    found: dict[Path, str] = {}
    for ending, options in IMAGES.items():
        Image.fromarray(picture(5)).save(folder / f"i.{ending}", **options)
        found[folder / f"i.{ending}"] = "frames"
    for ending, (form, subtype) in SOUNDS.items():
        path = folder / f"s.{ending}"
        soundfile.write(path, tones(1.5, 16_000), 16_000, format=form, subtype=subtype)
        found[path] = "sound"
    for ending, (codec, sound) in VIDEOS.items():
        path = folder / f"v.{ending}"
        kept, rate = tuple(range(37)) if codec else (), Fraction(25)
        if codec:
            make(path, Recipe(ending, codec, rate, kept, group=12, sound=sound, sound_seconds=1.5))
            found[path] = "video"
        else:
            soundfile.write(folder / "t.wav", tones(1.5, 16_000), 16_000)
            with av.open(str(folder / "t.wav")) as source, av.open(str(path), "w") as target:
                stream = target.add_stream(sound, rate=16_000)
                assert isinstance(stream, av.AudioStream)
                for frame in source.decode(audio=0):
                    target.mux(stream.encode(frame))
                target.mux(stream.encode(None))
            found[path] = "sound"
    for name, old in (("new.pkl", False), ("old.pkl", True)):
        patches = torch.zeros(1, 1, 96, 64)
        torch.save(patches, folder / name, _use_new_zipfile_serialization=not old)
        found[folder / name] = "log-mel"
    return found


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """Bits flipped, a length changed, or cut; mostly near the start, where headers are."""
    data = bytearray(content)
    reach = len(data) if random.random() < 0.3 else min(len(data), 600)
    kind = random.integers(3)
    if kind == 0:
        for place in random.integers(0, reach, random.integers(1, 9)):
            data[place] ^= 1 << int(random.integers(8))
    elif kind == 1:
        place = int(random.integers(0, max(1, reach - 4)))
        value = random.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, int(random.integers(1 << 32))])
        data[place : place + 4] = struct.pack(random.choice(["<I", ">I"]), value)
    else:
        del data[int(random.integers(0, len(data))) :]
    return bytes(data)


def outcomes(path: Path, kind: str) -> Iterator[Outcome]:
    """What the stages make of a clip with this file in it."""
    if kind == "video":
        (clip,) = Folders().clips(path.parent.parent, "all")
    else:
        frames = (path,) if kind == "frames" else ()
        labels = (path,) if kind == "frames" else ()
        clip = Clip("c", frames, path, labels, times=(0.5,), log_mel=path)
    if kind in ("video", "frames"):
        yield FramesStage((64, 64), "squash", 10, "binary", 2).open(Place())([clip])[0]
    if kind != "frames":
        source = "log-mel" if kind == "log-mel" else "sound"
        settings = AudioSettings(encoder="mel-stats", source=source)
        rule = "avsbench" if kind == "log-mel" else "centred"
        yield AudioStage(settings, rule, 10, {}).open(Place())([clip])[0]


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own memory as Linux does it")
@pytest.mark.own_process
@pytest.mark.filterwarnings("ignore")
def test_hundreds_of_damaged_files_end_as_as_many_clips_or_reasons(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "root" / "c").mkdir(parents=True)
    files = whole_files(tmp_path / "whole")
    for path, kind in files.items():
        target = tmp_path / "root" / "c" / path.name
        target.write_bytes(path.read_bytes())
        if kind != "frames":  # a picture is its own label here, of the wrong kind
            assert all(made.arrays is not None for made in outcomes(target, kind)), path
        target.unlink()
    random = np.random.default_rng(int(os.environ.get("COMBO_DAMAGE_SEED", "0")))
    made: list[Outcome] = []
    with memory_limit(SPARE):
        for number in range(DAMAGED):
            path, kind = list(files.items())[number % len(files)]
            target = tmp_path / "root" / "c" / path.name
            target.write_bytes(damaged(path.read_bytes(), random))
            made += outcomes(target, kind)
            target.unlink()
    assert len(made) >= DAMAGED
    assert all((each.arrays is None) == bool(each.reason) for each in made)
    assert all("\n" not in each.reason for each in made)
    reasons = sum(each.arrays is None for each in made)
    assert DAMAGED / 4 < reasons < len(made)


# names


@pytest.fixture
def listener() -> Iterator[tuple[int, list[object]]]:
    """A port of this machine, and the connections that were made to it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        found: list[object] = []

        def accept() -> None:
            while True:
                try:
                    found.append(server.accept())
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1], found
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def small_video(path: Path, sound: str | None = "aac") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = tuple(range(50))
    make(path, Recipe(path.suffix[1:], "mpeg4", Fraction(25), kept, sound=sound, sound_seconds=2.0))
    return path


def test_no_folders_name_is_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: tuple[int, list[object]]
) -> None:
    monkeypatch.chdir(tmp_path)
    port, connections = listener
    whole = small_video(tmp_path / "whole.mp4").read_bytes()
    for name in ("12:30", "concat:a|b", f"http:/127.0.0.1:{port}", "pipe:0", "data:", "file:x"):
        Path(name, "clip").mkdir(parents=True)
        Path(name, "clip", "v.mp4").write_bytes(whole)
        (clip,) = Folders().clips(Path(name), "all")
        assert clip.problem is None, clip.problem
        assert all(each.arrays is not None for each in stages(clip))
    assert not connections


def stages(clip: Clip) -> list[Outcome]:
    frames = FramesStage((64, 64), "squash", 10, "binary", 2)
    sound = AudioStage(AudioSettings(encoder="mel-stats"), "centred", 10, {})
    return [stage.open(Place())([clip])[0] for stage in (frames, sound)]


@pytest.mark.parametrize("ending", ["wav", "mp4", "mkv", "txt", "m3u8", "concat"])
def test_a_text_that_names_other_files_or_addresses_is_no_sound_and_no_video(
    tmp_path: Path, ending: str, listener: tuple[int, list[object]]
) -> None:
    port, connections = listener
    other = small_video(tmp_path / "other.mp4")
    path = tmp_path / f"a.{ending}"
    header = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n"
    for text in (
        f"ffconcat version 1.0\nfile '{other.name}'\n",
        f"ffconcat version 1.0\nfile '{other}'\n",
        f"ffconcat version 1.0\nfile 'http://127.0.0.1:{port}/a.mp4'\n",
        f"{header}{other.name}\n#EXT-X-ENDLIST\n",
        f"{header}http://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n",
        f"v=0\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n",
    ):
        path.write_text(text)
        with pytest.raises(MediaError, match=rf"a\.{ending}"):
            read_sound(path)
        with pytest.raises(MediaError, match=rf"a\.{ending}"):
            video_span(path)
        with pytest.raises(MediaError, match=rf"a\.{ending}"):
            read_video(path, [0.5])
    assert not connections


def test_pipes_devices_and_folders_are_not_opened_as_video_or_sound(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "device.wav").symlink_to("/dev/zero")
    (tmp_path / "folder.mkv").mkdir()
    for name in ("pipe.mp4", "device.wav", "folder.mkv"):
        for read in (read_sound, video_span, lambda path: read_video(path, [0.0])):
            with pytest.raises(MediaError, match="no regular file"):
                read(tmp_path / name)


# what is read and what is digested


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_sound_that_is_replaced_while_it_is_decoded_keeps_the_digest_of_what_was_decoded(
    tmp_path: Path,
) -> None:
    path, other = tmp_path / "a.wav", tmp_path / "b.wav"
    soundfile.write(path, tones(4, 16_000), 16_000)
    soundfile.write(other, np.zeros(64_000), 16_000)
    before, digests = digest(path), {}
    with open_sound(path, digests=digests) as sound:
        other.replace(path)
        waveform = np.concatenate(list(sound.blocks))
    assert np.abs(waveform).max() > 0.4
    assert digests == {path: before} != {path: digest(path)}


@pytest.mark.parametrize("ending", ["wav", "mp4"])
def test_a_file_that_is_written_to_while_it_is_decoded_fails_its_clip(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a.{ending}"
    if ending == "mp4":
        small_video(path)
    else:
        soundfile.write(path, tones(2, 16_000), 16_000)
    whole = OpenFile.digest

    def late(file: OpenFile) -> str:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        return whole(file)

    monkeypatch.setattr(OpenFile, "digest", late)
    with pytest.raises(MediaError, match="changed while it was read"):
        read_sound(path, digests={})
    if ending == "mp4":
        with pytest.raises(MediaError, match="changed while it was read"):
            read_video(path, [0.5], digests={})


# limits


def test_every_flipped_bit_of_a_sample_rate_is_a_reason_or_a_sound_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tones(0.2, 16_000), 16_000)
    content = path.read_bytes()
    kept = 0
    for bit in range(32):
        rate = 16_000 ^ (1 << bit)
        path.write_bytes(content[:24] + struct.pack("<I", rate) + content[28:])
        try:
            assert read_sound(path).rate_in == rate
            kept += 1
        except MediaError as error:
            assert re.search("samples a second|damaged", str(error)), error  # noqa: PT017
            assert not 1_000 <= rate <= 150_000
    assert kept > 10


def test_a_rate_without_a_common_divisor_takes_bounded_filters_or_is_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tones(0.2, 16_000), 767_999)
    with pytest.raises(MediaError, match="767999 samples a second cannot be resampled to 16000"):
        read_sound(path)
    soundfile.write(path, tones(4, 192_000), 192_000)
    assert read_sound(path).seconds == pytest.approx(4)


def test_an_mp4_that_states_thousands_of_years_is_that_clips_problem(tmp_path: Path) -> None:
    for name in ("good", "bad"):
        small_video(tmp_path / name / "v.mp4", sound=None)
    path = tmp_path / "bad" / "v.mp4"
    data = bytearray(path.read_bytes())
    place = data.index(b"stts") + 12  # samples, then their duration
    data[place + 4 : place + 8] = struct.pack(">I", 0x7FFFFFFF)
    path.write_bytes(bytes(data))
    bad, good = Folders().clips(tmp_path, "all")
    assert good.problem is None
    assert "more than limits.seconds" in (bad.problem or "")
    (bad, _) = Folders(limits=Limits(seconds=1e12)).clips(tmp_path, "all")
    assert "frames, more than 1000" in (bad.problem or "")


def test_limits_are_settings(tmp_path: Path) -> None:
    path = small_video(tmp_path / "v.mp4")
    refused: dict[str, tuple[Limits, Callable[[Limits], object]]] = {
        "video of 2 s, more than limits.seconds": (
            Limits(seconds=1),
            lambda limits: video_span(path, limits),
        ),
        "sound is longer than limits.seconds": (
            Limits(seconds=1),
            lambda limits: read_sound(path, limits=limits),
        ),
        "48000 samples a second are not between 1000 and limits.rate": (
            Limits(rate=44_100),
            lambda limits: read_sound(path, limits=limits),
        ),
        r"pixels,? (more )?than limits\.video_pixels \(4000\)": (
            Limits(video_pixels=4_000),
            lambda limits: read_video(path, [0.5], limits),
        ),
    }
    for reason, (limits, read) in refused.items():
        read(Limits())
        with pytest.raises(MediaError, match=reason):
            read(limits)


def test_a_video_whose_pictures_are_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 8192, 4608, "yuv420p"
        frame = av.VideoFrame(8192, 4608, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert path.stat().st_size < 300_000
    for read in (video_span, lambda path: read_video(path, [0.0])):
        with pytest.raises(MediaError, match=r"8192x4608 pixels, more than limits\.video_pixels"):
            read(path)


def test_whatever_a_decoder_raises_is_the_clips_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_video(tmp_path / "v.mp4")

    def fail(*_: object) -> object:
        raise MemoryError

    monkeypatch.setattr(video, "_upright", fail)
    monkeypatch.setattr(sound_files, "_samples", fail)
    clip = Clip("c", (VideoFrame(path, 0.5),), path, (None,), times=(0.5,))
    for outcome in stages(clip):
        assert outcome.arrays is None
        assert "more memory than there is" in outcome.reason
