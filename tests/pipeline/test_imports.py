"""What the public code has computed is taken over: its Maskiges, its resized frames of AVSS."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from typer.testing import CliRunner

from combo.cli import app
from combo.model.maskige import reference_palette
from combo.pipeline.devices import Place
from combo.pipeline.errors import ComboError, MediaError
from combo.pipeline.jobs import records
from combo.pipeline.jobs.plan import make_job, planned, stage_settings
from combo.pipeline.jobs.run import Options, run_job, settle_plan
from combo.pipeline.jobs.verify import Finding, verify_variant
from combo.pipeline.layouts import AVSS, MS3, S4, Clip, Layout
from combo.pipeline.manifest import Manifest, load_manifest
from combo.pipeline.media.labels import read_painted
from combo.pipeline.media.pictures import fit_label
from combo.pipeline.source import choose_variants
from combo.pipeline.store import SplitStore, Variant

PALETTE = reference_palette().numpy()
TWINS = (6, 48, 27, 220, 8, 230)
"""Labels that are painted like another one."""

LAYOUTS: dict[str, Layout] = {"s4": S4, "ms3": MS3, "avss": AVSS}
Write = Callable[[Path, np.ndarray], None]


def palette_picture(path: Path, labels: np.ndarray) -> None:
    """As the public code writes one: 150 colours, and indices beyond them."""
    image = Image.fromarray(labels)
    image.putpalette(PALETTE[:150].tobytes())
    image.save(path)


def colour_picture(path: Path, labels: np.ndarray) -> None:
    """As its second script writes AVSS's again, after an old Pillow has read the first one."""
    Image.fromarray(PALETTE[labels]).save(path)


def published(
    root: Path,
    sample: Path,
    data_set: str,
    split: str,
    write: Write,
    folder: str = "",
    size=(64, 64),
) -> dict[str, list[np.ndarray]]:
    """Write a tree of Maskiges; the label map of each frame by clip."""
    homes = {
        "s4": root / f"AVSBench_object/Single-source/s4_data/pre_SAM_mask/{split}",
        "ms3": root / "AVSBench_object/Multi-sources/ms3_data/pre_SAM_mask",
        "avss": root / "AVSBench_semantic/pre_SAM_mask/AVSBench_semantic",
    }
    random, made = np.random.default_rng(0), dict[str, list[np.ndarray]]()
    for clip in LAYOUTS[data_set].clips(sample, split):
        made[clip.name] = []
        between = {"s4": clip.category, "ms3": "", "avss": clip.subset}[data_set]
        where = homes[data_set] / between / clip.name / folder
        where.mkdir(parents=True)
        for frame in clip.frames:
            assert isinstance(frame, Path)
            labels = random.integers(0, 256, (8, 8), np.uint8)
            labels[0, :6] = TWINS
            labels = np.kron(labels, np.ones((size[0] // 8, size[1] // 8), np.uint8))
            write(where / f"{frame.stem}_mask_color.png", labels)
            made[clip.name].append(labels)
    return made


def imported(
    manifest: Manifest, stage: str, where: tuple[str, str], folder: Path, note="", tree=""
) -> tuple[Variant, np.ndarray]:
    job = planned(manifest, *where).import_job(stage, folder, note, tree)
    settle_plan(job, Options())
    summary = run_job(job, Options())
    assert summary.finished is not None
    assert summary.failed == {}
    name = "label_map" if stage == "maskige" else "frames"
    return job.variant, job.split.read_array(job.variant, name)[: len(job.plan.clips)]


def padded(maps: Sequence[np.ndarray], frames: int) -> np.ndarray:
    return np.stack([*maps, *[np.zeros_like(maps[0])] * (frames - len(maps))])


@pytest.mark.parametrize(
    ("data_set", "split", "folder"),
    [("s4", "train", ""), ("ms3", "test", ""), ("avss", "train", "frames")],
)
def test_palette_pictures_become_the_label_maps_they_were_painted_from(
    manifest: Manifest, sample: Path, tmp_path: Path, data_set: str, split: str, folder: str
) -> None:
    made = published(tmp_path / "tree", sample, data_set, split, palette_picture, folder)
    variant, found = imported(manifest, "maskige", (data_set, split), tmp_path / "tree")
    wanted = np.stack([padded(maps, found.shape[1]) for maps in made.values()])
    assert np.array_equal(found, wanted)
    assert variant.settings["generator"] == "imported"
    assert variant.settings["tree"] == (folder or "pre_SAM_mask")


def test_colours_become_labels_that_are_painted_the_same(
    manifest: Manifest, sample: Path, tmp_path: Path
) -> None:
    made = published(tmp_path, sample, "avss", "test", colour_picture, "processed_frames")
    variant, found = imported(manifest, "maskige", ("avss", "test"), tmp_path)
    for labels, wanted in zip(found, made.values(), strict=True):
        assert np.array_equal(PALETTE[labels], PALETTE[padded(wanted, 10)])
    assert np.array_equal(np.array(variant.attributes["palette"]), PALETTE)
    assert set(np.unique(found)).isdisjoint({48, 220, 230})  # of twins the lower one is taken


@pytest.mark.parametrize("split", ["train", "test"])
def test_pictures_at_their_own_size_are_fitted_as_the_public_code_fits_them(
    manifest: Manifest, sample: Path, tmp_path: Path, split: str
) -> None:
    size = (120, 160)
    made = published(tmp_path, sample, "avss", split, palette_picture, "frames", size)
    _, found = imported(manifest, "maskige", ("avss", split), tmp_path)
    for labels, wanted in zip(found, made.values(), strict=True):
        image = Image.fromarray(PALETTE[wanted[0]])
        if split == "train":  # the short side to the size, and the centre of it
            image = image.resize((85, 64), Image.Resampling.NEAREST).crop((10, 0, 74, 64))
        else:
            image = image.resize((64, 64), Image.Resampling.NEAREST)
        assert np.array_equal(PALETTE[labels[0]], np.asarray(image))


@pytest.mark.parametrize("depth", range(5))
def test_a_tree_may_be_given_by_any_folder_on_the_way_to_it(
    manifest: Manifest, sample: Path, tmp_path: Path, depth: int
) -> None:
    published(tmp_path, sample, "s4", "val", palette_picture)
    folder = tmp_path.joinpath(
        *("AVSBench_object", "Single-source", "s4_data", "pre_SAM_mask")[:depth]
    )
    job = planned(manifest, "s4", "val").import_job("maskige", folder, "", "")
    assert all(path.is_file() for clip in job.clips for path in clip.frames)


def test_of_avss_the_tree_that_the_public_trainer_reads_goes_first(
    manifest: Manifest, sample: Path, tmp_path: Path
) -> None:
    for folder in ("frames", "processed_frames"):
        published(tmp_path, sample, "avss", "val", palette_picture, folder)
    for asked, found in (("", "processed_frames"), ("frames", "frames")):
        job = planned(manifest, "avss", "val").import_job("maskige", tmp_path, "", asked)
        assert job.variant.settings["tree"] == found


@pytest.fixture
def broken(manifest: Manifest, sample: Path, tmp_path: Path) -> list[Clip]:
    """Clips of an imported S4 test split of which two are broken."""
    published(tmp_path, sample, "s4", "test", palette_picture)
    job = planned(manifest, "s4", "test").import_job("maskige", tmp_path, "", "")
    first, second, _ = job.clips
    assert isinstance(first.frames[2], Path)
    assert isinstance(second.frames[1], Path)
    first.frames[2].unlink()
    picture = PALETTE[np.ones((64, 64), np.uint8)]
    picture[3, 5] = (1, 2, 3)
    Image.fromarray(picture).save(second.frames[1])
    return list(job.clips)


def test_missing_pictures_and_strange_colours_fail_their_clip_by_name(
    manifest: Manifest, tmp_path: Path, broken: list[Clip]
) -> None:
    job = planned(manifest, "s4", "test").import_job("maskige", tmp_path, "", "")
    settle_plan(job, Options())
    summary = run_job(job, Options())
    assert summary.failed == {
        broken[0].name: f"missing: {broken[0].frames[2]}",
        broken[1].name: "no label is painted (1, 2, 3), which 1 pixels are "
        f"(the first in row 3, column 5): {broken[1].frames[1]}",
    }
    assert summary.finished is not None
    assert not [e for e in verify_variant(job.split, job.variant) if isinstance(e, Finding)]
    assert run_job(job, Options()).todo == 0


def test_pictures_of_several_sizes_fail_their_clip(
    manifest: Manifest, sample: Path, tmp_path: Path
) -> None:
    published(tmp_path, sample, "s4", "val", palette_picture)
    job = planned(manifest, "s4", "val").import_job("maskige", tmp_path, "", "")
    last = job.clips[0].frames[4]
    assert isinstance(last, Path)
    palette_picture(last, np.zeros((32, 64), np.uint8))
    (outcome, _) = job.stage.open(Place())(job.clips)
    assert outcome.reason == f"not 64x64 pixels as the clip's first: {last}"


def test_where_nothing_fits_it_is_said_what_was_looked_for(
    manifest: Manifest, sample: Path, tmp_path: Path
) -> None:
    with pytest.raises(ComboError, match=r"holds no picture .*looked for .*_1_mask_color\.png"):
        planned(manifest, "s4", "val").import_job("maskige", tmp_path, "", "")
    with pytest.raises(ComboError, match=r"\(no such folder\); give the folder AVSBench_object/"):
        planned(manifest, "s4", "val").import_job("maskige", tmp_path / "none", "", "")
    with pytest.raises(ComboError, match=r"no frames of its own for data set 's4'.* preprocess"):
        planned(manifest, "s4", "val").import_job("frames", sample, "", "")
    with pytest.raises(ComboError, match=r"--tree x: data set 'avss' .* has processed_frames, fr"):
        planned(manifest, "avss", "val").import_job("maskige", sample, "", "x")


def test_notes_keep_imports_apart_and_one_import_needs_no_name(
    manifest: Manifest, sample: Path, tmp_path: Path
) -> None:
    published(tmp_path, sample, "s4", "val", palette_picture)
    one, _ = imported(manifest, "maskige", ("s4", "val"), tmp_path, "level 3")
    for stage in ("frames", "audio"):
        job = make_job(manifest, "s4", "val", stage)
        assert run_job(job, Options()).finished is not None
    split = SplitStore(manifest.store_path, "s4", "val")
    wanted = stage_settings(manifest.with_stages(generator="imported"), "s4", "val")
    assert choose_variants(split, wanted).maskige == one
    with pytest.raises(ComboError, match=r"no maskige .* run: combo preprocess maskige"):
        choose_variants(split, stage_settings(manifest, "s4", "val"))

    two, _ = imported(manifest, "maskige", ("s4", "val"), tmp_path, "level 1")
    assert one.name != two.name
    with pytest.raises(ComboError, match="several variants of maskige fit"):
        choose_variants(split, wanted)
    noted = {**wanted, "maskige": {**wanted["maskige"], "note": "level 1"}}
    assert choose_variants(split, noted).maskige == two
    assert choose_variants(split, wanted, {"maskige": one.name}).maskige == one


def test_what_was_withdrawn_is_imported_again_by_the_command_that_is_named(
    manifest: Manifest, sample: Path, tmp_path: Path
) -> None:
    published(tmp_path, sample, "s4", "val", palette_picture)
    variant, _ = imported(manifest, "maskige", ("s4", "val"), tmp_path)
    split = SplitStore(manifest.store_path, "s4", "val")
    records.withdraw(split, variant, 0)
    found = [e for e in verify_variant(split, variant) if isinstance(e, Finding)]
    assert {f.mend for f in found} == {"run: combo import-maskige DIR --data s4 --split val"}
    imported(manifest, "maskige", ("s4", "val"), tmp_path)
    assert not [e for e in verify_variant(split, variant) if isinstance(e, Finding)]


# -- frames --------------------------------------------------------------------------------------


def resized(sample: Path, root: Path, split: str) -> None:
    """AVSS's frames and labels as the public code resizes them, JPEG once more."""
    for clip in AVSS.clips(sample, split):
        home = root / "AVSBench_semantic" / clip.subset / clip.name
        for folder in ("processed_frames", "processed_labels_semantic"):
            (home / folder).mkdir(parents=True)
        for frame in clip.frames:
            assert isinstance(frame, Path)
            picture = Image.open(frame).resize((64, 64), Image.Resampling.BILINEAR)
            picture.save(home / "processed_frames" / frame.name)
        for label in filter(None, clip.labels):
            picture = Image.open(label).resize((64, 64), Image.Resampling.NEAREST)
            picture.save(home / "processed_labels_semantic" / label.name)


def test_resized_frames_are_taken_as_they_are(
    manifest: Manifest, sample: Path, tmp_path: Path
) -> None:
    resized(sample, tmp_path, "train")
    variant, found = imported(manifest, "frames", ("avss", "train"), tmp_path)
    split = SplitStore(manifest.store_path, "avss", "train")
    annotated = split.read_array(variant, "annotated")[:3].sum(1).tolist()
    labels = split.read_array(variant, "labels")
    for row, clip in enumerate(AVSS.clips(sample, "train")):
        home = tmp_path / "AVSBench_semantic" / clip.subset / clip.name
        for t in range(len(clip.frames)):
            picture = Image.open(home / f"processed_frames/{t}.jpg")
            assert np.array_equal(found[row, t], np.asarray(picture))
        first = Image.open(home / "processed_labels_semantic/0.png")
        assert np.array_equal(labels[row, 0], np.asarray(first))
    assert annotated == [1, 5, 10]
    assert variant.name.startswith("64x64-crop-imported-")


def test_imported_frames_are_only_read_when_the_manifest_asks_for_them(
    manifest: Manifest, sample: Path, tmp_path: Path
) -> None:
    resized(sample, tmp_path, "val")
    variant, _ = imported(manifest, "frames", ("avss", "val"), tmp_path)
    manifest.file.write_text(
        manifest.file.read_text().replace("{size: 64}", "{size: 64, source: imported}")
    )
    asking = load_manifest(manifest.file)
    ours = stage_settings(asking, "avss", "val")["frames"]
    assert variant.is_what(ours)
    assert not variant.is_what(stage_settings(manifest, "avss", "val")["frames"])
    assert not make_job(manifest, "avss", "val", "frames").variant.is_what(ours)
    with pytest.raises(ComboError, match="run: combo import-frames DIR"):
        make_job(asking, "avss", "val", "frames")


# -- the commands --------------------------------------------------------------------------------


def combo(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, (done.exception, done.output)
    return done.stdout


def test_imports_on_the_command_line_train_a_network(
    manifest_file, sample: Path, tmp_path: Path
) -> None:
    manifest = ("--manifest", str(manifest_file()))
    for split in ("train", "val"):
        published(tmp_path / "tree", sample, "ms3", split, palette_picture)
    tree = str(tmp_path / "tree")
    planned = combo("import-maskige", tree, "--data", "ms3", *manifest, "--dry-run")
    assert planned.count(" of 2 clips to do (") == 2
    assert not (tmp_path / "store").exists()
    done = json.loads(combo("import-maskige", tree, *manifest, "--note", "n", "--json", "--quiet"))
    assert [(d["data_set"], d["split"], d["finished"]) for d in done] == [
        ("ms3", "train", True), ("ms3", "val", True),
    ]  # fmt: skip
    for stage in ("frames", "audio"):
        combo("preprocess", stage, "--data", "ms3", *manifest)
    states = json.loads(combo("status", "--data", "ms3", *manifest, "--json"))
    assert sum(s["stage"] == "maskige" and s["finished"] for s in states) == 2

    tiny = ("width=32", "heads=2", "fusion_heads=2", "pixel_layers=1", "pixel_ffn=16",
            "decoder_layers=1", "decoder_ffn=16", "audio_hidden=16", "query_count=4",
            "mask_points=64", "iterations=1", "batch_size=2", "device=cpu",
            "threads=1")  # fmt: skip
    sets = [word for each in tiny for word in ("--set", each)]
    run = tmp_path / "run"
    named = ("--preset", "combo-small-ms3", "--generator", "imported", "--out", str(run))
    combo("train", *named, *sets, *manifest, "--quiet")
    data = json.loads((run / "data.json").read_text())
    assert data["settings"]["val"]["maskige"]["note"] == "n"
    result = json.loads(combo("evaluate", str(run), "--split", "val", "--json"))
    assert result["clips"] == 2


def test_a_command_that_finds_nothing_is_one_line(manifest_file, tmp_path: Path) -> None:
    manifest = ("--manifest", str(manifest_file()))
    for command in (
        ["import-maskige", str(tmp_path)],
        ["import-maskige", str(tmp_path), "--data", "s4", "--split", "val"],
        ["import-frames", str(tmp_path)],
        ["preprocess", "maskige", "--generator", "imported", "--data", "s4"],
    ):
        failed = CliRunner().invoke(app, [*command, *manifest])
        assert isinstance(failed.exception, ComboError), failed.output
        assert "\n" not in str(failed.exception)
    assert not (tmp_path / "store").exists()


# -- one picture ---------------------------------------------------------------------------------

label_maps = arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@given(labels=label_maps)
@settings(max_examples=50)
def test_any_label_map_comes_back_from_its_picture(
    labels: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "maskige.png"
    palette_picture(path, labels)
    assert np.array_equal(read_painted(path, PALETTE), labels)
    colour_picture(path, labels)
    assert np.array_equal(PALETTE[read_painted(path, PALETTE)], PALETTE[labels])


def test_a_palette_of_another_order_is_read_by_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8))
    image.putpalette(PALETTE[[5, 0, 148]].tobytes())
    image.save(tmp_path / "x.png")
    assert read_painted(tmp_path / "x.png", PALETTE).tolist() == [[5, 0], [148, 5]]


def test_an_index_map_that_was_never_painted_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(MediaError, match=r"no label is painted \(0, 0, 0\), which 4 pixels are"):
        read_painted(tmp_path / "x.png", PALETTE)


def test_fitting_a_label_map_and_painting_it_is_fitting_its_picture() -> None:
    labels = np.random.default_rng(0).integers(0, 256, (37, 51), np.uint8)
    whole = Image.fromarray(PALETTE[labels]).resize((24, 24), Image.Resampling.NEAREST)
    assert np.array_equal(PALETTE[fit_label(labels, (24, 24), "squash")], np.asarray(whole))
