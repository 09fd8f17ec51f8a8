"""data_manifest.yaml: what may stand in it, and what is said about anything else."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from combo.pipeline.errors import ComboError
from combo.pipeline.manifest import Manifest, load_manifest

SMALL = """\
store: store
data_sets:
  mine: {layout: folders, root: clips}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and none of the variables set."""
    for name in ("AVSBENCH", "COMBO_STORE", "ROOT", "SUB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path, text: str) -> Manifest:
    path = folder / "m.yaml"
    path.write_text(text)
    return load_manifest(path)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(ComboError) as caught:
        written(folder, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_file_the_installed_manifest_names_the_benchmark(folder: Path) -> None:
    manifest = load_manifest()
    assert list(manifest.data_sets) == ["s4", "ms3", "avss"]
    assert manifest.stages.frames.size == (224, 224)
    assert manifest.stages.audio.encoder == "vggish"
    assert manifest.stages.maskige.at == "native"
    assert manifest.data_sets["avss"].fit == {"train": "crop", "val": "squash", "test": "squash"}
    # Its paths start where the user is, not where the package was installed.
    assert manifest.store_path.resolve() == (folder / "store").resolve()


def test_a_manifest_in_the_working_folder_goes_before_the_installed_one(folder: Path) -> None:
    (folder / "data_manifest.yaml").write_text(SMALL)
    assert list(load_manifest().data_sets) == ["mine"]


def test_relative_paths_start_at_the_manifests_folder(folder: Path) -> None:
    (folder / "deep").mkdir()
    manifest = written(folder / "deep", SMALL)
    assert manifest.store_path == folder / "deep" / "store"
    assert manifest.root("mine") == folder / "deep" / "clips"
    absolute = written(folder, SMALL.replace("root: clips", "root: /media/clips"))
    assert absolute.root("mine") == Path("/media/clips")


def test_variables_are_filled_when_the_path_is_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = written(folder, SMALL.replace("root: clips", "root: '${ROOT}/a/${SUB:-b}'"))
    with pytest.raises(
        ComboError, match=r"data_sets\.mine\.root in .*m\.yaml needs \$\{ROOT\}.*export ROOT=FOLDER"
    ):
        manifest.root("mine")
    monkeypatch.setenv("ROOT", "/media")
    assert manifest.root("mine") == Path("/media/a/b")
    monkeypatch.setenv("SUB", "c")
    assert manifest.root("mine") == Path("/media/a/c")


def test_data_sets_that_this_machine_does_not_have_are_left_aside(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = written(folder, SMALL + "  far: {layout: avsbench-s4, root: '${ROOT}/s4'}\n")
    assert manifest.choose([]) == ["mine"]
    assert manifest.choose(["far"]) == ["far"]
    monkeypatch.setenv("ROOT", "/media")
    assert manifest.choose([]) == ["mine", "far"]
    with pytest.raises(ComboError, match=r"no data set 'your' in .*m\.yaml; it names mine, far"):
        manifest.choose(["your"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no mapping"),
        ("- a\n- b", "holds no mapping"),
        ("store: [", "cannot be read as YAML"),
        ("store: x", "data_sets: Field required"),
        ("colour: red\n" + SMALL, "colour: Extra inputs are not permitted"),
        ("folder: /\n" + SMALL, "folder: no such setting"),
        ("clips_per_unit: 0\n" + SMALL, "clips_per_unit: Input should be greater than or equal"),
        (SMALL.replace("layout: folders,", ""), "data_sets.mine.layout: Field required"),
        (
            SMALL.replace("root: clips", "root: a, fit: {train: stretch}"),
            "data_sets.mine.fit.train",
        ),
        (SMALL + "stages: {frames: {size: big}}", "stages.frames.size"),
        (SMALL + "stages: {audio: {windows: half}}", "stages.audio.windows"),
        (SMALL + "stages: {maskige: {sam: {points: 3}}}", "stages.maskige.sam.points"),
        (SMALL + "stages: {maskige: {sam: {level: 3}}}", "stages.maskige.sam.level"),
        (SMALL + "stages: {maskige: {sam: {points_per_side: 0}}}", "maskige.sam.points_per_side"),
        (SMALL + "stages: {maskige: {semantic_sam: {level: 7}}}", "maskige.semantic_sam.level"),
        (SMALL + "stages: {maskige: {semantic-sam-l: {}}}", "stages.maskige.semantic-sam-l"),
        (SMALL + "stages: {maskige: {sam: {box_nms_thresh: .inf}}}", "maskige.sam.box_nms_thresh"),
        (SMALL + "stages: {frames: {size: 0}}", "stages.frames.size"),
        (SMALL + "stages: {frames: {size: 1000000}}", "stages.frames.size"),
        (SMALL + "stages: {frames: {size: true}}", "stages.frames.size"),
        (SMALL + "stages: {maskige: {felzenszwalb: {sigma: .inf}}}", "felzenszwalb.sigma"),
        (SMALL + "stages: {maskige: {sam: {pred_iou_thresh: .nan}}}", "pred_iou_thresh"),
        (SMALL.replace("root: clips", "root: a, seconds_per_frame: 1e-300"), "seconds_per_frame"),
        (SMALL + "stages: {}\ncluster: {}\nstages: {}", "line 6: stages is given twice"),
        (SMALL.replace("root: clips", "root: a, root: b"), "line 3: root is given twice"),
        (SMALL + f"weights: {'[' * 5000}{']' * 5000}", "in each other too deep"),
        (SMALL + "weights: &a [*a]", "line 4: an entry holds itself"),
        (SMALL + "weights: 2024-99-99", "cannot be read as YAML"),
        (SMALL + f"weights: {'9' * 5000}", "cannot be read as YAML"),
        (SMALL + "3: x", "3: no such setting"),
        (SMALL + f"weights: {'x' * 2**20}", "larger than 1048576 bytes"),
        (SMALL + "weights: !!python/object/apply:os.getcwd []", "cannot be read as YAML"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_file_and_the_entry(
    folder: Path, text: str, says: str
) -> None:
    message = refused(folder, text)
    assert says in message
    assert str(folder / "m.yaml") in message


@pytest.mark.usefixtures("folder")
def test_a_file_that_is_missing_is_said_so() -> None:
    with pytest.raises(ComboError, match=r"no manifest at other\.yaml; give one with --manifest"):
        load_manifest(Path("other.yaml"))


def test_a_document_that_grows_without_end_is_refused_before_it_does(folder: Path) -> None:
    lines = [
        "a0: &a0 [x, x]",
        *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)),
    ]
    assert "stand for more than 100000 entries" in refused(folder, "\n".join(lines))
    merged = SMALL.replace("{layout: folders, root: clips}", "&one {layout: folders, root: a}")
    manifest = written(folder, merged + "  two: {<<: *one, root: b}\n")
    assert [entry.root for entry in manifest.data_sets.values()] == ["a", "b"]


@pytest.mark.parametrize(
    "name", ["../evil", "a/b", "..", ".", ".hidden", "-x", "''", "jobs", "x" * 101, '"a\\nb"']
)
def test_a_name_that_is_no_folder_of_the_store_is_refused(folder: Path, name: str) -> None:
    assert "data_sets" in refused(folder, SMALL.replace("mine", f"? {name}\n  "))
    split = SMALL.replace("root: clips", f"root: a, split: {{? {name} : 1.0}}")
    assert "data_sets.mine.split" in refused(folder, split)
    splits = SMALL.replace("root: clips", f"root: a, splits: [{name}]")
    assert "data_sets.mine.splits" in refused(folder, splits)


def test_shares_of_a_division_must_be_whole(folder: Path) -> None:
    text = SMALL.replace("root: clips", "root: a, split: {train: 0.8, val: 0.1, test: 0.1}")
    assert sum(written(folder, text).data_sets["mine"].split.values()) == pytest.approx(1)
    assert "must add up to 1, not to 0.9" in refused(folder, text.replace("0.8", "0.7"))
    assert "split.val" in refused(folder, text.replace("val: 0.1", "val: -0.1"))


@pytest.mark.parametrize("root", ["~nobody-of-this-name/x", '"a\\0b"'])
def test_a_root_that_is_no_path_is_one_line(folder: Path, root: str) -> None:
    manifest = written(folder, SMALL.replace("root: clips", f"root: {root}"))
    with pytest.raises(ComboError, match=r"data_sets\.mine\.root in .*(is no path|home)"):
        manifest.root("mine")


def test_one_number_is_a_square_and_two_are_height_and_width(folder: Path) -> None:
    square = written(folder, SMALL + "stages: {frames: {size: 96}}")
    assert square.stages.frames.size == (96, 96)
    wide = written(folder, SMALL + "stages: {frames: {size: [96, 128]}}")
    assert wide.stages.frames.size == (96, 128)


def test_encoder_and_generator_may_be_given_otherwise_for_one_command(folder: Path) -> None:
    text = SMALL + "stages: {maskige: {at: stored}, audio: {windows: centred}}"
    manifest = written(folder, text)
    other = manifest.with_stages(encoder="mel-stats", generator="felzenszwalb")
    assert (other.stages.audio.encoder, other.stages.audio.windows) == ("mel-stats", "centred")
    assert (other.stages.maskige.generator, other.stages.maskige.at) == ("felzenszwalb", "stored")
    assert manifest.stages.audio.encoder == "vggish"
    assert manifest.with_stages(encoder=None, generator=None) == manifest


def test_weights_that_have_a_path_are_found_from_the_manifests_folder(folder: Path) -> None:
    text = SMALL + "weights: {vggish: {path: net.pth}, sam-vit-h: {sha256: a7bf}}"
    assert written(folder, text).weight_paths() == {"vggish": folder / "net.pth"}


def test_a_manifest_does_not_change(folder: Path) -> None:
    manifest = written(folder, SMALL)
    with pytest.raises(ValidationError):
        manifest.store = "elsewhere"  # type: ignore[misc]


def test_the_schedulers_arguments_are_read_by_their_old_name_too(folder: Path) -> None:
    for name in ("arguments", "sbatch"):
        cluster = written(folder, SMALL + f"cluster: {{{name}: [--partition=gpu]}}").cluster
        assert cluster.arguments == ("--partition=gpu",)
    both = "cluster: {arguments: [--partition=gpu], sbatch: [--gres=gpu:1]}"
    assert "cluster.sbatch" in refused(folder, SMALL + both)
