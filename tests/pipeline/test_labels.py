"""What a label file becomes: what was drawn, or a reason that names it."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from combo.pipeline.errors import MediaError
from combo.pipeline.layouts import Clip
from combo.pipeline.media.labels import read_label
from combo.pipeline.media.pictures import read_frame
from combo.pipeline.preprocess.frames import FramesStage

RNG = np.random.default_rng(7)
PICTURE = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)

rows, columns = np.mgrid[:160, :160]
DISC = (rows - 80) ** 2 + (columns - 80) ** 2 < 1600
CLASSES = np.zeros((160, 160), np.uint8)
CLASSES[DISC], CLASSES[20:50, 90:150] = 57, 4


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def test_a_mask_is_read_as_the_benchmark_reads_it_whatever_its_file_kind(tmp_path: Path):
    mask = PICTURE[..., 0] > 127
    grey = np.where(mask, 255, 0).astype(np.uint8)
    black_white = Image.fromarray(mask.astype(np.uint8))
    black_white.putpalette([0, 0, 0, 255, 255, 255])
    black_white.save(tmp_path / "palette.png")
    paths = [
        save(tmp_path / "bits.png", mask),
        save(tmp_path / "grey.png", grey),
        save(tmp_path / "rgb.png", np.repeat(grey[..., None], 3, -1)),
        tmp_path / "palette.png",
    ]
    for path in paths:
        assert np.array_equal(read_label(path, "binary", 2, PICTURE.shape), mask)
    nearly = save(tmp_path / "nearly.png", np.where(mask, 255, 254).astype(np.uint8))
    assert np.array_equal(read_label(nearly, "binary", 2), mask)  # value // 255
    empty = save(tmp_path / "none.png", np.zeros_like(grey))
    assert not read_label(empty, "binary", 2).any()


def test_a_mask_of_zeros_and_ones_is_not_taken_for_background(tmp_path: Path):
    path = save(tmp_path / "01.png", (PICTURE[..., 0] > 127).astype(np.uint8))
    with pytest.raises(MediaError, match="largest value is 1"):
        read_label(path, "binary", 2)


def test_a_class_outside_the_range_names_value_range_and_file(tmp_path: Path):
    labels = np.zeros((4, 4), np.uint8)
    labels[1, 2] = 70
    path = save(tmp_path / "l.png", labels)
    assert np.array_equal(read_label(path, "index", 71), labels)
    with pytest.raises(MediaError, match=r"label value 70 is outside 0\.\.69: .*l\.png"):
        read_label(path, "index", 70)


def test_a_coloured_label_image_is_no_class_map(tmp_path: Path):
    with pytest.raises(MediaError, match="mode RGB"):
        read_label(save(tmp_path / "rgb.png", PICTURE), "index", 71)


def test_a_label_of_another_size_than_its_frame_is_an_error(tmp_path: Path):
    path = save(tmp_path / "l.png", np.zeros((30, 41), np.uint8))
    with pytest.raises(MediaError, match="label of 41x30 pixels, but its frame has 40x30"):
        read_label(path, "index", 5, PICTURE.shape)


# lossy files


@pytest.mark.parametrize(
    ("name", "options"),
    [("x.jpg", {"quality": 95}), ("x.jpg", {"quality": 75}), ("x.webp", {"quality": 80}),
     ("x.jp2", {"quality_layers": [40]}), ("x.avif", {"quality": 50}),
     ("x.tif", {"compression": "jpeg", "quality": 75})],
)  # fmt: skip
def test_a_lossy_class_map_is_refused_and_a_lossy_mask_parted_at_half(
    tmp_path: Path, name: str, options: dict
):
    path = save(tmp_path / name, CLASSES, **options)
    with pytest.raises(MediaError, match=r"class map in a lossy file|mode RGB"):
        read_label(path, "index", 71)
    grey = np.where(DISC, 255, 0).astype(np.uint8)
    read = read_label(save(path, grey, **options), "binary", 2)
    union, overlap = (read | DISC).sum(), (read & DISC).sum()
    assert overlap / union > 0.99
    coloured = save(
        path, np.repeat(np.where(DISC, 255, 0).astype(np.uint8)[..., None], 3, -1), **options
    )
    assert (read_label(coloured, "binary", 2) != read).mean() < 0.01


def test_a_lossless_webp_is_no_lossy_file(tmp_path: Path):
    grey = np.where(DISC, 255, 200).astype(np.uint8)
    path = save(tmp_path / "x.webp", grey, lossless=True)
    assert np.array_equal(read_label(path, "binary", 2), DISC)  # 200 // 255 is 0


def test_a_lossy_file_of_classes_is_no_mask(tmp_path: Path):
    path = save(tmp_path / "x.jpg", CLASSES, quality=90)
    with pytest.raises(MediaError, match="the object must be 255"):
        read_label(path, "binary", 2)


# values as they are stored


def write_png(path: Path, values: np.ndarray, bits: int, kind: int = 0) -> Path:
    """A PNG of grey (or palette) values of 1, 2, 4 or 8 bits, as drawing programs save them."""
    unpacked = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
    lines = np.packbits(unpacked.reshape(len(values), -1), axis=1)
    body = b"".join(b"\0" + line.tobytes() for line in lines)
    height, width = values.shape
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))]
    if kind == 3:
        chunks.append((b"PLTE", bytes(n % 256 for n in range(3 * 2**bits))))
    chunks += [(b"IDAT", zlib.compress(body)), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )
    )
    return path


@given(
    st.sampled_from([1, 2, 4, 8]), st.sampled_from([0, 3]), st.integers(1, 40), st.integers(0, 99)
)
def test_a_class_map_of_any_depth_is_read_by_its_raw_values(
    tmp_path_factory: pytest.TempPathFactory, bits: int, kind: int, width: int, seed: int
):
    values = np.random.default_rng(seed).integers(0, min(2**bits, 71), (9, width), np.uint8)
    path = write_png(tmp_path_factory.mktemp("depth") / "x.png", values, bits, kind)
    assert np.array_equal(read_label(path, "index", 71), values)


def test_a_class_map_in_a_pgm_or_an_inverted_tiff_is_read_by_its_raw_values(tmp_path: Path):
    plain = tmp_path / "x.pgm"
    plain.write_text("P2\n4 1\n70\n0 1 2 70\n")
    assert read_label(plain, "index", 71).tolist() == [[0, 1, 2, 70]]
    raw = tmp_path / "y.pgm"
    raw.write_bytes(b"P5\n4 1\n3\n\0\1\2\3")
    assert read_label(raw, "index", 71).tolist() == [[0, 1, 2, 3]]
    grey = Image.fromarray(255 - np.array([[0, 1, 2, 70]], np.uint8))
    grey.save(tmp_path / "z.tif", tiffinfo={262: 0})  # white is zero
    assert read_label(tmp_path / "z.tif", "index", 71).tolist() == [[0, 1, 2, 70]]


def test_255_in_a_class_map_is_ignored_as_in_the_store(tmp_path: Path):
    values = CLASSES.copy()
    values[:3] = 255
    path = save(tmp_path / "l.png", values)
    assert np.array_equal(read_label(path, "index", 71), values)
    everything = save(tmp_path / "none.png", np.full((160, 160), 255, np.uint8))
    assert (read_label(everything, "index", 71) == 255).all()
    values[5, 5] = 254
    with pytest.raises(MediaError, match="label value 254 is outside"):
        read_label(save(path, values), "index", 71)


def test_a_frame_whose_label_ignores_every_pixel_is_not_annotated(tmp_path: Path):
    frames = tuple(save(tmp_path / f"{n}.png", PICTURE) for n in range(2))
    ignored = np.full(PICTURE.shape[:2], 255, np.uint8)
    labels = (save(tmp_path / "a.png", ignored), save(tmp_path / "b.png", ignored * 0))
    stage = FramesStage((32, 32), "squash", 2, "index", 3)
    (outcome,) = stage._run([Clip("c", frames, labels=labels)])
    assert outcome.arrays is not None
    assert outcome.arrays["annotated"].tolist() == [0, 1]


# transparency


def with_alpha(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.dstack([np.broadcast_to(colour, (*alpha.shape, 3)), alpha]).astype(np.uint8)


@pytest.mark.parametrize("colour", [0, 255, (200, 30, 30)])
def test_an_alpha_that_varies_over_one_colour_is_the_mask(tmp_path: Path, colour):
    alpha = np.where(DISC, 255, 0)
    path = save(tmp_path / "x.png", with_alpha(np.array(colour), alpha))
    assert np.array_equal(read_label(path, "binary", 2), DISC)


def test_an_alpha_that_contradicts_the_colours_is_refused(tmp_path: Path):
    object_is_white = np.where(DISC, 255, 0)[..., None]
    agree = save(tmp_path / "x.png", with_alpha(object_is_white, np.where(DISC, 255, 0)))
    assert np.array_equal(read_label(agree, "binary", 2), DISC)
    opaque = save(tmp_path / "y.png", with_alpha(object_is_white, np.full(DISC.shape, 255)))
    assert np.array_equal(read_label(opaque, "binary", 2), DISC)
    # black drawn over a transparent white ground
    black = save(tmp_path / "z.png", with_alpha(255 - object_is_white, np.where(DISC, 255, 0)))
    with pytest.raises(MediaError, match="white is transparent"):
        read_label(black, "binary", 2)
    palette = Image.fromarray(DISC.astype(np.uint8))
    palette.putpalette([255, 255, 255, 255, 255, 255])
    palette.save(tmp_path / "p.png", transparency=0)
    assert np.array_equal(read_label(tmp_path / "p.png", "binary", 2), DISC)


# orientation


@pytest.mark.parametrize("size", [(160, 96), (120, 120)])
@pytest.mark.parametrize("stored", range(1, 9))
def test_a_label_drawn_upright_lies_on_its_object(tmp_path: Path, stored: int, size):
    frame, label = photo_and_label(tmp_path, stored, size)
    upright = read_frame(frame)
    read = read_label(label, "binary", 2, upright.shape, frame=frame)
    there = upright[..., 0] > 128
    assert (read & there).sum() / (read | there).sum() > 0.9


@pytest.mark.parametrize("stored", range(1, 9))
def test_a_label_drawn_on_the_stored_picture_is_found_out_by_its_size(tmp_path: Path, stored: int):
    frame, label = photo_and_label(tmp_path, stored, (160, 96))
    Image.fromarray(np.array(Image.open(frame))[..., 0] > 128).save(label)  # as it is stored
    upright = read_frame(frame)
    read = read_label(label, "binary", 2, upright.shape, frame=frame)
    there = upright[..., 0] > 128
    if stored in (1, 5, 6, 7, 8):  # of the others it has the size of one drawn upright
        assert (read & there).sum() / (read | there).sum() > 0.9


def test_a_label_of_the_other_orientation_without_a_reason_is_refused(tmp_path: Path):
    frame, label = photo_and_label(tmp_path, 1, (160, 96))
    Image.open(label).transpose(Image.Transpose.ROTATE_90).save(label)
    with pytest.raises(MediaError, match="label of 96x160 pixels, but its frame has 160x96"):
        read_label(label, "binary", 2, read_frame(frame).shape, frame=frame)


def test_a_label_with_an_orientation_of_its_own_is_turned_by_it(tmp_path: Path):
    frame, label = photo_and_label(tmp_path, 6, (160, 96))
    as_stored = np.array(Image.open(frame))[..., 0] > 128
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(as_stored).convert("L").save(label, exif=exif)
    upright = read_frame(frame)
    read = read_label(label, "binary", 2, upright.shape, frame=frame)
    assert (read & (upright[..., 0] > 128)).sum() / read.sum() > 0.9


def photo_and_label(folder: Path, stored: int, size: tuple[int, int]) -> tuple[Path, Path]:
    """A photo with a white block, stored as EXIF's number says, and its label, upright."""
    exif = Image.Exif()
    exif[0x0112] = stored
    image = Image.new("RGB", size, (20, 20, 20))
    image.paste((250, 250, 250), (0, 0, 40, 30))
    image.save(folder / "0.jpg", exif=exif, quality=95)
    shown = ImageOps.exif_transpose(Image.open(folder / "0.jpg"))
    mask = (np.array(shown)[..., 0] > 128) * np.uint8(255)
    return folder / "0.jpg", save(folder / "0.png", mask)
