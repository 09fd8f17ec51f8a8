"""`combo score`: masks that any program saved, by the numbers that networks get."""

import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from combo.cli import app
from combo.model.interface import Network
from combo.model.metrics import count_objects
from combo.pipeline.errors import ComboError
from combo.pipeline.jobs.plan import PlannedSplit, planned
from combo.pipeline.manifest import Manifest, load_manifest
from combo.pipeline.saved_masks import SavedMasks, write_clip
from combo.pipeline.scoring import Scored, score
from combo.pipeline.train.evaluate import measure

from .conftest import OpenSplit

METRICS = Path(__file__).parents[1] / "data" / "metrics"


class Bright(Network):
    """Nothing learned: class k is where the picture is about as bright as k of the classes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(
        self, frames: Tensor, maskige: Tensor | None, sound: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        del maskige, sound, valid
        grey = frames.float().mean(2)
        steps = torch.arange(self.classes, dtype=torch.float32) * (255 / (self.classes - 1))
        return -(grey[:, :, None] - steps[:, None, None]).abs() / 30

    def scores(self, out: Tensor) -> Tensor:
        return out


@pytest.mark.parametrize(("data_set", "split"), [("s4", "val"), ("avss", "train")])
def test_a_saved_evaluation_scores_what_it_scored(
    finished: Manifest, open_split: OpenSplit, tmp_path: Path, data_set: str, split: str
) -> None:
    reader = open_split(finished, data_set, split)

    def save(clip: Any, scores: Tensor) -> None:
        write_clip(tmp_path, clip.clips[0], scores, clip.present[0].nonzero()[:, 0].tolist())

    network = Bright(len(reader.plan.classes))
    evaluation = measure(network, reader, torch.device("cpu"), on_clip=save)
    scored = score(planned(finished, data_set, split), tmp_path)
    assert scored.protocols == evaluation.protocols
    assert scored.clips == evaluation.clips
    assert scored.false_positive_rate == evaluation.false_positive_rate
    assert 0 < scored.protocols["avsbench"][0] < 1


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_eight_bits_hold_all_that_the_metrics_ask_of_a_probability(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    root = tmp_path_factory.mktemp("masks")
    generator = torch.Generator().manual_seed(seed)
    edges = torch.linspace(0, 1, 255)
    around = torch.cat([edges, edges.nextafter(edges + 1), edges.nextafter(edges - 1)]).clamp(0, 1)
    if seed % 2:  # else the numbers themselves are saved
        around = around[around != 0.5]
    chosen = torch.randint(len(around), (1, 16, 16), generator=generator)
    probability = torch.where(
        torch.rand(chosen.shape, generator=generator) < 0.5,
        around[chosen],
        torch.rand(chosen.shape, generator=generator),
    )
    logits = torch.stack(
        [torch.zeros_like(probability), torch.logit(probability).clamp(-60, 60)], dim=1
    )
    exact = logits.softmax(1)[:, 1]
    write_clip(root, "clip", logits, [0])
    saved = SavedMasks.below(root, ["clip"])
    values = saved.read("clip", [0])
    scale = 255 if values.dtype == np.uint8 else 1
    again = torch.from_numpy(values.astype(np.float32) / np.float32(scale))
    labels = (torch.rand(chosen.shape, generator=generator) < 0.5).to(torch.uint8)
    one, two = count_objects(exact, labels), count_objects(again, labels)
    assert all(torch.equal(vars(one)[name], vars(two)[name]) for name in vars(one))


# trees and values


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> PlannedSplit:
    """A data set of two clips of three frames, the second one's last frame without a label."""
    root = tmp_path_factory.mktemp("objects")
    random = np.random.default_rng(0)
    for clip in ("dog_1", "dog_2"):
        (root / "data" / clip / "labels").mkdir(parents=True)
        for n in range(3):
            picture = Image.fromarray(random.integers(0, 255, (12, 16, 3), np.uint8))
            picture.save(root / "data" / clip / f"{n}.png")
            label = Image.fromarray(255 * random.integers(0, 2, (12, 16), np.uint8))
            if (clip, n) != ("dog_2", 2):
                label.save(root / "data" / clip / "labels" / f"{n}.png")
    (root / "m.yaml").write_text(
        "store: store\ndata_sets: {mine: {layout: folders, root: data}}\n"
        "stages: {frames: {size: 64}, audio: {encoder: mel-stats},"
        " maskige: {generator: felzenszwalb}}\n"
    )
    return planned(load_manifest(root / "m.yaml"), "mine", "all")


MASKS = {
    (clip, n): np.random.default_rng(10 * n + len(clip) + int(clip[-1])).integers(0, 2, (12, 16))
    for clip in ("dog_1", "dog_2")
    for n in range(3)
}


def grey(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def saved(root: Path, name: str, top: int = 255, dtype: type = np.uint8) -> Path:
    for (clip, n), mask in MASKS.items():
        place = root / name.format(clip=clip, n=n, m=n + 1)
        grey(place, (mask * top).astype(dtype))
    return root


def numbers(there: PlannedSplit, root: Path) -> Scored:
    found = score(there, root)
    assert len(found.clips) == 2
    return found


@pytest.fixture
def plain(objects: PlannedSplit, tmp_path: Path) -> Scored:
    return numbers(objects, saved(tmp_path / "plain", "{clip}/{n}.png"))


@pytest.mark.parametrize(
    ("name", "top"),
    [
        ("dogs/{clip}/{clip}_{n}.png", 255),  # AVSBench's, with its categories
        ("{clip}/{clip}_{m}.png", 255),  # counted from 1
        ("{clip}/frame-{n:04d}_mask.png", 1),  # 0 and 1
        ("{clip}_{n}.png", 255),
        ("a/b/{clip}/masks/{m:05d}.tif", 255),
    ],
)
def test_every_tree_that_tells_clip_and_frame_gives_the_same_numbers(
    objects: PlannedSplit, plain: Scored, tmp_path: Path, name: str, top: int
) -> None:
    assert numbers(objects, saved(tmp_path / "other", name, top)) == plain
    assert 0 < plain.protocols["avsbench"][0] < 1


def test_values_are_told_by_the_whole_tree(
    objects: PlannedSplit, plain: Scored, tmp_path: Path
) -> None:
    assert numbers(objects, saved(tmp_path / "wide", "{clip}/{n}.png", 65535, np.uint16)) == plain
    for clip in ("dog_1", "dog_2"):
        masks = np.stack([MASKS[clip, n] for n in range(3)])
        (tmp_path / "arrays").mkdir(exist_ok=True)
        np.save(tmp_path / "arrays" / f"{clip}.npy", masks.astype(np.float16))
    assert numbers(objects, tmp_path / "arrays") == plain
    palette = saved(tmp_path / "palette", "{clip}/{n}.png")
    for path in palette.rglob("*.png"):
        Image.open(path).convert("P").save(path)
    assert numbers(objects, palette) == plain
    soft = saved(tmp_path / "soft", "{clip}/{n}.png")
    grey(soft / "dog_1" / "0.png", np.where(MASKS["dog_1", 0], 100, 0).astype(np.uint8))
    found = numbers(objects, soft)
    assert found.protocols["frame"][0] < plain.protocols["frame"][0]  # none above a half
    assert found.protocols["frame"][1] == plain.protocols["frame"][1]  # M_F has its own threshold


def test_a_mask_is_what_is_seen_of_it(objects: PlannedSplit, plain: Scored, tmp_path: Path) -> None:
    """By palette, transparency, or numbers with a point in a picture."""

    def white_first(mask: np.ndarray) -> Image.Image:
        image = Image.fromarray((1 - mask).astype(np.uint8), "P")
        image.putpalette([255, 255, 255, 0, 0, 0])
        return image

    def by_alpha(mask: np.ndarray) -> Image.Image:
        black = np.zeros((*mask.shape, 4), np.uint8)
        black[..., 3] = 255 * mask
        return Image.fromarray(black)

    def coloured(mask: np.ndarray) -> Image.Image:
        image = Image.fromarray(mask.astype(np.uint8), "P")
        image.putpalette([0, 0, 0, 128, 0, 0])
        return image

    for name, ending, make in (
        ("white first", "png", white_first),
        ("alpha", "png", by_alpha),
        ("coloured", "png", coloured),
        ("point", "tif", lambda mask: Image.fromarray((0.9 * mask).astype(np.float32))),
    ):
        for (clip, n), mask in MASKS.items():
            (tmp_path / name / clip).mkdir(parents=True, exist_ok=True)
            make(mask).save(tmp_path / name / clip / f"{n}.{ending}")
        found = numbers(objects, tmp_path / name)
        if name == "point":  # a threshold less: of J, and of F's best one, nothing changes
            assert found.protocols["frame"] == plain.protocols["frame"]
        else:
            assert found == plain, name
    ghost = by_alpha(MASKS["dog_1", 0])
    pixels = np.array(ghost)
    pixels[..., 0:3] = 255 * (1 - MASKS["dog_1", 0][..., None])
    Image.fromarray(pixels).save(tmp_path / "alpha" / "dog_1" / "0.png")
    with pytest.raises(ComboError, match="mask whose white is transparent"):
        numbers(objects, tmp_path / "alpha")


def test_a_label_that_marks_nothing_is_none(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for clip, value in (("one", 1), ("two", 255)):
        (data / clip / "labels").mkdir(parents=True)
        for n in range(2):
            grey(data / clip / f"{n}.png", np.full((8, 8, 3), 90, np.uint8))
            label = np.zeros((8, 8), np.uint8)
            label[:, n * 4 :] = value
            grey(data / clip / "labels" / f"{n}.png", label if clip == "one" else label * 0 + 255)
            grey(tmp_path / "masks" / clip / f"{n}.png", 255 * (label > 0).astype(np.uint8))
    (data / "label2idx.json").write_text('{"background": 0, "dog": 1}')
    (tmp_path / "m.yaml").write_text(
        "store: store\ndata_sets: {mine: {layout: folders, root: data}}\n"
        "stages: {audio: {encoder: mel-stats}, maskige: {generator: felzenszwalb}}\n"
    )
    there = planned(load_manifest(tmp_path / "m.yaml"), "mine", "all")
    found = score(there, tmp_path / "masks")
    assert (list(found.clips), found.without_labels) == (["one"], 1)
    assert found.protocols["frame"] == (1.0, 1.0)
    shutil.rmtree(tmp_path / "masks" / "one")
    with pytest.raises(ComboError, match="no labelled frame of mine/all has a mask"):
        score(there, tmp_path / "masks", allow_missing=True)


def test_numbers_that_count_something_else_than_frames_are_refused(
    objects: PlannedSplit, tmp_path: Path
) -> None:
    root = saved(tmp_path / "steps", "{clip}/{n}.png")
    (root / "dog_1" / "2.png").rename(root / "dog_1" / "4.png")
    (root / "dog_1" / "1.png").rename(root / "dog_1" / "2.png")
    with pytest.raises(ComboError, match=r"4\.png: dog_1 has 3 frames, counted from 0 or from 1"):
        score(objects, root, allow_missing=True)
    more = saved(tmp_path / "more", "{clip}/{n}.png")
    grey(more / "dog_1" / "3.png", MASKS["dog_1", 0].astype(np.uint8))
    assert len(score(objects, more).clips) == 2, "masks of a padded clip"


def test_class_maps_count_as_they_are_stored(finished: Manifest, tmp_path: Path) -> None:
    there = planned(finished, "avss", "train")
    for clip in there.clips:
        for n, label in enumerate(clip.labels):
            if label is not None:
                values = np.array(Image.open(label)).astype(np.uint8)
                assert values.max() < 16
                file = tmp_path / "maps" / clip.name / f"{n}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                write_four_bits(file, values)
    assert score(there, tmp_path / "maps").protocols["seen_classes"] == (1.0, 1.0)
    name = there.clips.names[0]
    odd = np.zeros((10, len(there.plan.classes) - 1, 8, 8), np.float32)
    for wrong in (odd, np.full((10, len(there.plan.classes), 8, 8), np.nan, np.float32)):
        shutil.rmtree(tmp_path / "maps" / name, ignore_errors=True)
        np.save(tmp_path / "maps" / f"{name}.npy", wrong)
        with pytest.raises(ComboError, match="classes, background the first"):
            score(there, tmp_path / "maps")


def write_four_bits(path: Path, values: np.ndarray) -> None:
    """A grey PNG of four bits a pixel, which Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width = values.shape
    padded = np.pad(values, ((0, 0), (0, width % 2)))
    rows = padded[:, ::2] << 4 | padded[:, 1::2]
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 4, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def test_masks_of_another_size_are_held_against_labels_of_that_size(
    objects: PlannedSplit, plain: Scored, tmp_path: Path
) -> None:
    root = saved(tmp_path / "large", "{clip}/{n}.png")
    for path in root.rglob("*.png"):
        Image.open(path).resize((48, 36), Image.Resampling.NEAREST).save(path)
    for name, (j, f) in numbers(objects, root).protocols.items():
        assert (j, f or 0) == pytest.approx(
            (plain.protocols[name][0], plain.protocols[name][1] or 0)
        )


def test_frames_that_have_a_label_and_no_mask_are_named(
    objects: PlannedSplit, tmp_path: Path
) -> None:
    root = saved(tmp_path / "masks", "{clip}/{n}.png")
    (root / "dog_2" / "2.png").unlink()  # it has no label either
    assert score(objects, root).missing == []
    (root / "dog_2" / "1.png").unlink()
    with pytest.raises(ComboError, match=r"no mask of frame 1 of dog_2 of mine/all; .*--allow-m"):
        score(objects, root)
    assert score(objects, root, allow_missing=True).missing == ["frame 1 of dog_2"]
    for path in (root / "dog_2").iterdir():
        path.unlink()
    found = score(objects, root, allow_missing=True)
    assert (found.missing, list(found.clips)) == (["dog_2"], ["dog_1"])
    words = ["score", str(root), "--data", "mine", "--split", "all", "--allow-missing"]
    done = CliRunner().invoke(app, [*words, "--manifest", str(objects.manifest.file)])
    assert done.exit_code == 0, done.output
    assert "left out, no mask of dog_2\n" in done.stderr


def test_what_is_no_mask_of_these_labels_is_one_line(
    objects: PlannedSplit, finished: Manifest, tmp_path: Path
) -> None:
    def refused(there: PlannedSplit, root: Path, why: str) -> None:
        with pytest.raises(ComboError, match=why):
            score(there, root)

    refused(objects, tmp_path / "nowhere", "no such folder")
    (tmp_path / "empty").mkdir()
    refused(objects, tmp_path / "empty", "no mask of any of the 2 clips")
    refused(objects, saved(tmp_path / "classes", "{clip}/{n}.png", 70), "no value above 70")
    twice = saved(tmp_path / "twice", "{clip}/{n}.png")
    grey(twice / "dog_1" / "0_mask.png", MASKS["dog_1", 0].astype(np.uint8))
    refused(objects, twice, r"0_mask\.png and .*0\.png are both of the same frame")
    far = tmp_path / "far"
    grey(far / "dog_1" / "7.png", MASKS["dog_1", 0].astype(np.uint8))
    refused(objects, far, r"7\.png: the lowest frame; frames are counted from 0 or from 1")
    painted = saved(tmp_path / "painted", "{clip}/{n}.png")
    grey(painted / "dog_1" / "0.png", np.full((12, 16, 3), (200, 0, 0), np.uint8))
    refused(objects, painted, r"a mask in colours, .*dog_1/0\.png")
    for clip in ("dog_1", "dog_2"):
        (tmp_path / "logits").mkdir(exist_ok=True)
        np.save(tmp_path / "logits" / f"{clip}.npy", np.full((3, 12, 16), -4.5))
    refused(objects, tmp_path / "logits", "values from -4.5 to -4.5, no probabilities")
    classes = planned(finished, "avss", "train")
    for name in classes.clips.names:
        for n in range(10):
            grey(tmp_path / "object masks" / name / f"{n}.png", np.full((8, 8), 255, np.uint8))
    refused(classes, tmp_path / "object masks", "values up to 255, where the labels have classes")


def test_saved_masks_score_as_in_the_published_evaluator(tmp_path: Path) -> None:
    golden = np.load(METRICS / "object_clip.npz")
    labels, scores = golden["labels"], torch.from_numpy(golden["scores"]).float()
    clip = tmp_path / "data" / "clip"
    for n, label in enumerate(labels):
        grey(clip / f"{n}.png", np.zeros((*label.shape, 3), np.uint8))
        grey(clip / "labels" / f"{n}.png", (label * 255).astype(np.uint8))
    (tmp_path / "m.yaml").write_text("data_sets: {mine: {layout: folders, root: data}}\n")
    write_clip(tmp_path / "masks", "clip", scores, range(len(labels)))
    command = ["score", str(tmp_path / "masks"), "--data", "mine", "--split", "all", "--json"]
    table = tmp_path / "clips.csv"
    done = CliRunner().invoke(
        app, [*command, "--csv", str(table), "--manifest", str(tmp_path / "m.yaml")]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    np.testing.assert_allclose([found["M_J"], found["M_F"]], golden["miou_fscore"], atol=5.1e-5)
    header, (row) = table.read_text().splitlines()[0], table.read_text().splitlines()[1]
    assert header == "clip,M_J,M_F"
    np.testing.assert_allclose(
        [float(x) for x in row.split(",")[1:]], golden["miou_fscore"], atol=1.1e-6
    )
