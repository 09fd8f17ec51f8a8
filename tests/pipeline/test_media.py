"""What a frame or label file becomes, and what is said of one that cannot be used."""

import hashlib
import os
import pickle
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from combo.pipeline.digests import file_digest
from combo.pipeline.errors import ComboError, MediaError
from combo.pipeline.media.labels import read_label
from combo.pipeline.media.limits import Limits
from combo.pipeline.media.pictures import (
    fit_frame,
    fit_label,
    read_frame,
    read_frames,
)
from combo.pipeline.media.video import Span, VideoFrame, video_span

RNG = np.random.default_rng(7)
PICTURE = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def write_video(path: Path, greys: list[int], rate: int = 25, size: tuple[int, int] = (64, 48)):
    """A video of plain frames, one grey each."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, rate)
        for number, grey in enumerate(greys):
            pixels = np.full((size[1], size[0], 3), grey, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


# frames


def test_a_png_is_read_pixel_for_pixel(tmp_path: Path):
    assert np.array_equal(read_frame(save(tmp_path / "a.png", PICTURE)), PICTURE)


def test_every_kind_of_picture_becomes_eight_bit_rgb(tmp_path: Path):
    grey = PICTURE[..., 0]
    as_rgb = np.repeat(grey[..., None], 3, axis=-1)
    alpha = np.dstack([PICTURE, grey])
    palette = Image.fromarray(PICTURE).quantize(16)
    palette.save(tmp_path / "palette.png", transparency=0)
    save(tmp_path / "16.png", grey.astype(np.uint16) * 256 + 17)

    assert np.array_equal(read_frame(save(tmp_path / "grey.png", grey)), as_rgb)
    assert np.array_equal(read_frame(save(tmp_path / "rgba.png", alpha)), PICTURE)
    assert np.array_equal(read_frame(tmp_path / "16.png"), as_rgb)
    assert np.array_equal(read_frame(tmp_path / "palette.png"), palette.convert("RGB"))
    bits = read_frame(save(tmp_path / "bits.png", grey > 127))
    assert np.array_equal(bits[..., 0], np.where(grey > 127, 255, 0))


@pytest.mark.parametrize("stored", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tiff", "webp"])
def test_a_picture_is_turned_as_every_viewer_turns_it(tmp_path: Path, stored: int, ending: str):
    exif = Image.Exif()
    exif[0x0112] = stored
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[:10, :15] = 255  # the corner that EXIF's numbers speak of
    path = save(tmp_path / f"x.{ending}", pixels, exif=exif)
    corners = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}
    frame = read_frame(path)
    assert frame.shape == ((30, 40, 3) if stored < 5 else (40, 30, 3))
    row, column = corners[stored]
    at = frame[3 if row == "t" else -4, 3 if column == "l" else -4]
    assert (at > 200).all()
    assert (frame > 200).all(-1).sum() == pytest.approx(150, abs=20)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_an_exif_block_that_is_damaged_says_nothing(tmp_path: Path):
    path = save(tmp_path / "x.jpg", PICTURE, exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=95)
    assert read_frame(path).shape == PICTURE.shape


def test_heic_and_jpeg_2000_are_read_like_other_pictures(tmp_path: Path):
    from pillow_heif import from_pillow

    smooth = np.repeat(np.linspace(0, 255, 64, dtype=np.uint8)[:, None], 64, 1)
    picture = Image.fromarray(smooth).convert("RGB")
    from_pillow(picture).save(tmp_path / "x.HEIC", quality=100)
    picture.save(tmp_path / "x.jp2")
    for name in ("x.HEIC", "x.jp2"):
        assert np.abs(read_frame(tmp_path / name)[..., 0].astype(int) - smooth).max() < 9


def test_only_regular_files_of_a_bounded_size_are_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with (tmp_path / "sparse.png").open("wb") as file:
        file.write(save(tmp_path / "x.png", PICTURE).read_bytes())
        file.truncate(40 << 30)
    for name, reason in (
        ("pipe.png", "a pipe or a device"),
        ("zero.png", "a pipe or a device"),
        ("sparse.png", f"file of {40 << 30} bytes, more than limits.bytes"),
    ):
        with pytest.raises(MediaError, match=reason):
            read_frame(tmp_path / name)
        with pytest.raises(MediaError, match=reason):
            read_label(tmp_path / name, "binary", 2)
    with pytest.raises(MediaError, match="pipe"):
        file_digest(tmp_path / "pipe.png")
    with pytest.raises(MediaError, match=r"40x30 pixels, more than limits.pixels \(100\):"):
        read_frame(tmp_path / "x.png", limits=Limits(pixels=100))


def test_a_link_to_nowhere_is_missing_and_says_where_it_leads(tmp_path: Path):
    (tmp_path / "0.png").symlink_to("../.git/annex/objects/x.png")
    with pytest.raises(MediaError, match=r"missing, a link to \.\./\.git/annex/.*: .*0\.png"):
        read_frame(tmp_path / "0.png")


def test_the_name_does_not_decide_the_format(tmp_path: Path):
    jpeg = save(tmp_path / "a.jpg", PICTURE)
    wrong = jpeg.rename(tmp_path / "a.png")
    assert read_frame(wrong).shape == PICTURE.shape


def test_digests_are_those_of_the_files_bytes(tmp_path: Path):
    path = save(tmp_path / "a.png", PICTURE)
    digests: dict[Path, str] = {}
    read_frames([path], digests)
    assert (
        digests
        == {path: hashlib.sha256(path.read_bytes()).hexdigest()}
        == {path: file_digest(path)}
    )


def broken_files(folder: Path) -> dict[str, Path]:
    whole = save(folder / "whole.png", PICTURE)
    jpeg = save(folder / "whole.jpg", PICTURE, quality=95)
    files = {
        "missing": folder / "missing.png",
        "0 bytes": folder / "empty.png",
        "not an image": folder / "text.png",
        "damaged": folder / "cut.png",
        "truncated": folder / "cut.jpg",
        "a folder": folder / "folder.png",
        "floating-point": folder / "float.tiff",
        "more than limits.pixels": folder / "bomb.png",
        "too narrow": folder / "line.png",
    }
    files["0 bytes"].write_bytes(b"")
    files["not an image"].write_bytes(b"no picture at all")
    files["damaged"].write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    files["truncated"].write_bytes(jpeg.read_bytes()[: jpeg.stat().st_size // 2])
    files["a folder"].mkdir()
    save(files["floating-point"], PICTURE[..., 0].astype(np.float32))
    Image.new("1", (20_000, 10_000)).save(files["more than limits.pixels"])
    Image.new("L", (600, 1)).save(files["too narrow"])
    return files


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_whatever_is_wrong_with_a_picture_is_said_in_one_line_that_names_it(tmp_path: Path):
    for reason, path in broken_files(tmp_path).items():
        with pytest.raises(MediaError) as caught:
            read_frame(path)
        text = str(caught.value)
        assert reason in text
        assert str(path) in text
        assert "\n" not in text


def test_a_png_with_one_flipped_byte_is_an_error_or_a_picture_but_nothing_else(tmp_path: Path):
    data = save(tmp_path / "a.png", PICTURE).read_bytes()
    path = tmp_path / "flipped.png"
    errors = 0
    for position in range(0, len(data), 37):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :])
        try:
            assert read_frame(path).ndim == 3
        except MediaError:
            errors += 1
    assert errors > 0


def test_frames_of_a_clip_must_have_one_size(tmp_path: Path):
    first, second = save(tmp_path / "1.png", PICTURE), save(tmp_path / "2.png", PICTURE[:20])
    with pytest.raises(MediaError, match=r"40x20 pixels, but .* 40x30: .*2\.png"):
        read_frames([first, second])


def test_a_media_error_survives_the_way_between_processes():
    sent = pickle.dumps(MediaError(Path("a/b.png"), "missing"))
    error = pickle.loads(sent)  # noqa: S301 - our own
    assert (str(error), error.path, error.reason) == ("missing: a/b.png", "a/b.png", "missing")
    assert isinstance(error, ComboError)


# videos


def test_a_video_gives_the_frame_it_shows_at_each_time_in_the_order_asked(tmp_path: Path):
    path = write_video(tmp_path / "v.mp4", [10 * (n // 25 + 1) for n in range(100)])
    assert video_span(path) == Span(0.0, 4.0)
    times = (2.5, 0.0, 0.99, 3.99)
    frames = read_frames([VideoFrame(path, t) for t in times])
    assert [int(f.mean().round()) for f in frames] == pytest.approx([30, 10, 10, 40], abs=1)
    assert {f.shape for f in frames} == {(48, 64, 3)}


def test_a_frame_after_a_videos_end_is_missing_not_repeated(tmp_path: Path):
    path = write_video(tmp_path / "v.mp4", [50] * 25)
    assert read_frame(VideoFrame(path, 1.04)).shape == (48, 64, 3)  # clocks round
    with pytest.raises(MediaError, match=r"ends at 1\.00 s, a frame at 1\.20 s is missing"):
        read_frame(VideoFrame(path, 1.2))
    with pytest.raises(MediaError, match=r"ends at 1\.00 s, a frame at 3\.00 s is missing"):
        read_frames([VideoFrame(path, 0.5), VideoFrame(path, 3.0)])


def test_a_video_filmed_upright_is_turned_upright(tmp_path: Path):
    path = write_video(tmp_path / "v.mp4", [200] * 5)
    data = bytearray(path.read_bytes())
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    quarter = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    track = data.index(b"tkhd")
    place = data.index(identity, track)
    data[place : place + len(identity)] = quarter
    path.write_bytes(bytes(data))
    assert read_frame(VideoFrame(path, 0.0)).shape == (64, 48, 3)


def test_a_damaged_video_and_a_sound_without_pictures_are_media_errors(tmp_path: Path):
    whole = write_video(tmp_path / "v.mp4", [50] * 25).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("no video")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), "s16", "mono")
        silence.sample_rate = 16_000
        container.mux(stream.encode(silence))
    for name, reason in (
        ("cut.mp4", "cut short"),
        ("text.mp4", "damaged video"),
        ("sound.wav", "no video in it"),
        ("missing.mp4", "missing"),
    ):
        with pytest.raises(MediaError, match=reason):
            video_span(tmp_path / name)
        with pytest.raises(MediaError, match=reason):
            read_frame(VideoFrame(tmp_path / name, 0.0))


# fitting

sides = st.integers(1, 90)


@given(sides, sides, st.integers(1, 64), st.integers(1, 64), st.sampled_from(["squash", "crop"]))
def test_any_picture_reaches_the_size_and_its_label_with_it(
    height: int, width: int, new_height: int, new_width: int, fit
):
    if max(height, width) > 16 * min(height, width):
        return
    frame = np.zeros((height, width, 3), np.uint8)
    label = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    assert fit_frame(frame, (new_height, new_width), fit).shape == (new_height, new_width, 3)
    fitted = fit_label(label, (new_height, new_width), fit)
    assert fitted.shape == (new_height, new_width)
    assert np.isin(fitted, label).all()


@pytest.mark.parametrize(("height", "width"), [(360, 640), (480, 360), (225, 300), (224, 301)])
def test_cropping_scales_the_short_side_and_takes_the_centre_as_the_benchmark(height, width):
    frame = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    short = min(height, width)
    scaled = (int(width * 224 / short), int(height * 224 / short))
    whole = np.asarray(Image.fromarray(frame).resize(scaled, Image.Resampling.BILINEAR))
    left, top = round((scaled[0] - 224) / 2.0), round((scaled[1] - 224) / 2.0)
    expected = whole[top : top + 224, left : left + 224]
    assert np.array_equal(fit_frame(frame, (224, 224), "crop"), expected)


def test_what_has_the_size_already_stays_bit_for_bit():
    frame = RNG.integers(0, 256, (224, 224, 3), dtype=np.uint8)
    for fit in ("squash", "crop"):
        assert np.array_equal(fit_frame(frame, (224, 224), fit), frame)
