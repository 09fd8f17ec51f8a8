"""`combo predict` on a film: what it says is what evaluation says, and is shown when it is so."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numbered_clips import film, tones
from PIL import Image
from typer.testing import CliRunner

from combo.cli import app
from combo.model import Combo
from combo.pipeline.errors import ComboError, MediaError
from combo.pipeline.media.pictures import fit_frame
from combo.pipeline.painting import Paint, paint
from combo.pipeline.predict import painted
from combo.pipeline.predict.folder import PredictionFolder
from combo.pipeline.predict.inputs import found, named, open_film
from combo.pipeline.predict.masks import class_map, read_facts, read_mask
from combo.pipeline.predict.predictor import Frame, Predictor
from combo.pipeline.predict.stages import stages_of
from combo.pipeline.predict.trained import trained
from combo.pipeline.report.predicted import predict
from combo.pipeline.train.evaluate import measure, open_run, open_split
from combo.pipeline.train.run_folder import RunFolder
from combo.pipeline.train.windows import Windows

CPU = torch.device("cpu")


def predicted(predictor: Predictor, path: Path, fps: float = 1.0) -> list[Frame]:
    opened = open_film(path, fps)
    return list(predictor.frames(opened, predictor.hear(opened)))


# -- the same numbers --------------------------------------------------------------------------


def test_a_clip_gets_the_scores_that_preprocessing_and_evaluating_it_gives(
    home: Path, run: RunFolder, predictor: Predictor
) -> None:
    scores: dict[str, np.ndarray] = {}
    measure(
        open_run(run, CPU),
        open_split(run, "test"),
        CPU,
        on_clip=lambda clip, found: scores.update({clip.clips[0]: found.numpy()}),
    )
    for name, count in (("clip0", 3), ("clip1", 2)):
        frames = predicted(predictor, home / "clips" / "test" / name)
        assert len(frames) == count
        own = np.stack([frame.scores for frame in frames])
        np.testing.assert_allclose(own, scores[name][:count], rtol=1e-5, atol=1e-6)
        for frame in frames:
            assert (frame.mask == frame.scores.argmax(0)).all()  # 64 x 64 is its own size


@given(st.integers(1, 60), st.integers(1, 12), st.data())
def test_every_frame_of_a_long_film_is_in_clips_that_overlap(
    frames: int, length: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, frames - 1))
    windows = Windows(frames, length)
    spans = list(windows.spans())
    seen = [n for begin, end, _ in spans for n in range(begin, end)]
    assert set(seen) == set(range(frames))
    assert all(end - begin == min(length, frames) for begin, end, _ in spans)
    for (begin, end, settled), (after, _, _) in pairwise(spans):
        assert begin < after == settled
        assert after < end or length == 1
    assert spans[-1][2] == frames
    # Going on from a frame sees every clip that it and those behind it are in.
    rest = list(windows.spans(first))
    assert rest == [span for span in spans if span[1] > first]


def test_a_long_film_is_the_mean_over_its_clips(predictor: Predictor, tmp_path: Path) -> None:
    film(tmp_path / "long.mp4", 5.0)
    whole = predicted(predictor, tmp_path / "long.mp4")
    opened = open_film(tmp_path / "long.mp4")
    heard = predictor.hear(opened)
    seen = [predictor._look(frame.picture, "long") for frame in whole]  # pyright: ignore
    parts = {
        begin: predictor._scores(  # pyright: ignore[reportPrivateUsage]
            opened, seen[begin : begin + 3], heard.embeddings[begin : begin + 3]
        )
        for begin in (0, 2)
    }
    assert [frame.number for frame in whole] == [0, 1, 2, 3, 4]
    expected = [parts[0][0], parts[0][1], (parts[0][2] + parts[2][0]) / 2, parts[2][1], parts[2][2]]
    for frame, scores in zip(whole, expected, strict=True):
        np.testing.assert_allclose(frame.scores, scores.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(90, 160), (160, 90), (64, 64), (47, 65)])
@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_masks_lie_on_the_films_own_pixels(size: tuple[int, int], fit: str) -> None:
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    disc = (rows - height / 2) ** 2 + (columns - width * 0.55) ** 2 < (min(size) / 4) ** 2
    picture = np.repeat(disc[..., None] * np.uint8(255), 3, axis=2)
    seen = torch.from_numpy(fit_frame(picture, (64, 64), fit)[..., 0].astype(np.float32) / 255)  # pyright: ignore
    mask = class_map(torch.stack([1 - seen, seen]), size, fit)  # pyright: ignore
    assert mask.shape == size
    assert ((mask == 1) & disc).sum() / ((mask == 1) | disc).sum() > 0.93


# -- a folder of results ------------------------------------------------------------------------


def test_all_that_was_promised_lies_in_the_folder(predictor: Predictor, tmp_path: Path) -> None:
    film(tmp_path / "film.mp4", 5.0)
    told: dict[str, int] = {}

    def tell(what: str, count: int) -> None:
        told[what] = told.get(what, 0) + count

    out = PredictionFolder(tmp_path / "out", open_film(tmp_path / "film.mp4", 2.0), predictor)
    made = out.make(tell)
    assert told == {"sound": 10, "frames": 10, "painting": 10}
    assert made == json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert [frame["time"] for frame in made["frames"]] == [0.25 + 0.5 * k for k in range(10)]
    masks = sorted((tmp_path / "out" / "masks").iterdir())
    for path, frame in zip(masks, made["frames"], strict=True):
        assert read_facts(path) == frame
        area = sum(segment["area"] for segment in frame["segments"])
        assert area == pytest.approx((read_mask(path) > 0).mean(), abs=1e-5)
        assert all(0 < segment["score"] <= 1 for segment in frame["segments"])
    for second in made["seconds"]:
        two = [f for f in made["frames"] if int(f["time"]) == second["second"]]
        assert set(second["sounds"]) == {s["name"] for f in two for s in f["segments"]}
    assert len(made["seconds"]) == 5
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.size[0] > 8 * 100


def test_a_prediction_that_was_stopped_goes_on_and_ends_with_the_same_bytes(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film(tmp_path / "film.mp4", 9.0)
    monkeypatch.setattr(painted, "PART", 4)
    opened = open_film(tmp_path / "film.mp4")
    PredictionFolder(tmp_path / "whole", opened, predictor).make()

    class Killed(BaseException):
        pass

    def kill(what: str, _count: int) -> None:
        if what == "frames" and len(list((tmp_path / "cut" / "masks").glob("*"))) == 5:
            raise Killed

    with pytest.raises(Killed):
        PredictionFolder(tmp_path / "cut", opened, predictor).make(kill)
    there = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cut" / "masks").iterdir()}
    assert len(there) == 5

    def kill_painting(what: str, _count: int) -> None:
        if what == "painting" and list((tmp_path / "cut" / "overlay.parts").glob("*.nut")):
            raise Killed

    with pytest.raises(Killed):
        PredictionFolder(tmp_path / "cut", opened, predictor).make(kill_painting)
    (part,) = (tmp_path / "cut" / "overlay.parts").iterdir()  # half-painted ones are gone
    assert not (tmp_path / "cut" / "overlay.mp4").exists()
    at = part.stat().st_mtime_ns

    def untouched(what: str, count: int) -> None:
        if what == "painting" and count and part.exists():
            assert part.stat().st_mtime_ns == at

    PredictionFolder(tmp_path / "cut", opened, predictor).make(untouched)
    assert not part.parent.exists()
    for name, at in there.items():
        assert (tmp_path / "cut" / "masks" / name).stat().st_mtime_ns == at
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            other = tmp_path / "cut" / path.relative_to(tmp_path / "whole")
            assert path.read_bytes() == other.read_bytes(), path.name


def test_a_folder_with_something_else_in_it_is_not_touched(
    predictor: Predictor, tmp_path: Path
) -> None:
    film(tmp_path / "film.mp4", 1.0)
    opened = open_film(tmp_path / "film.mp4")
    PredictionFolder(tmp_path / "out", opened, predictor)
    with pytest.raises(ComboError, match="holds predictions with another input"):
        PredictionFolder(tmp_path / "out", open_film(tmp_path / "film.mp4", 5.0), predictor)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ComboError, match="is not empty"):
        PredictionFolder(tmp_path / "mine", opened, predictor)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


# -- films that lack something ------------------------------------------------------------------


def write_wav(path: Path, seconds: float) -> None:
    import soundfile

    soundfile.write(path, tones(seconds), 48_000)


def test_labels_of_a_clip_have_no_say(home: Path) -> None:
    clip = home / "clips" / "test" / "clip0"
    assert len(open_film(clip, 0.5).clip.frames) == 1  # though there are three labels
    assert len(open_film(clip, 2.0).clip.frames) == 6


def test_a_film_without_sound_or_without_pictures_is_refused_in_one_line(
    predictor: Predictor, tmp_path: Path
) -> None:
    film(tmp_path / "mute.mp4", 2.0, sound_seconds=0.0)
    with pytest.raises(MediaError, match="there is no sound in it"):
        predictor.hear(open_film(tmp_path / "mute.mp4"))
    write_wav(tmp_path / "song.wav", 1.0)
    with pytest.raises(MediaError, match="no video in it"):
        open_film(tmp_path / "song.wav")
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(MediaError, match=r"text\.mp4"):
        open_film(tmp_path / "text.mp4")


# -- what people point at ----------------------------------------------------------------------


def test_files_folders_and_patterns_are_found_and_a_url_is_refused(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.MOV", "notes.txt", "sub/a.mp4", "clip/0.png", "clip/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    a, b, sub, clip = (tmp_path / name for name in ("a.mp4", "b.MOV", "sub", "clip"))
    assert found([str(a)]) == [a]
    assert found([str(tmp_path)]) == [a, b]
    assert found([str(tmp_path / "*.mp4"), str(a), str(clip)]) == [a, clip]
    assert found([str(sub)]) == [sub]
    with pytest.raises(ComboError, match="fetch it first"):
        found(["https://example.org/a.mp4"])
    with pytest.raises(ComboError, match="no such file, folder or pattern"):
        found([str(tmp_path / "*.avi")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ComboError, match="no video and no frames"):
        found([str(tmp_path / "empty")])


def test_results_of_films_of_one_name_lie_in_folders_of_their_own(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", 1.0)
    shutil.copy(tmp_path / "a.mp4", tmp_path / "a.mov")
    (tmp_path / "sub").mkdir()
    shutil.copy(tmp_path / "a.mp4", tmp_path / "sub" / "a.mp4")
    paths = [tmp_path / "a.mp4", tmp_path / "a.mov", tmp_path / "sub" / "a.mp4"]
    assert [each.name for each in named([open_film(path) for path in paths])] == [
        "a.mp4", "a.mov", "a.mp4-2",
    ]  # fmt: skip


def test_a_run_a_checkpoint_and_what_is_neither(run: RunFolder, tmp_path: Path) -> None:
    named_run, named_file = Predictor(run.root, "cpu"), Predictor(run.root / "last.pt", "cpu")
    assert (named_run.checkpoint.name, named_file.checkpoint.name) == ("best.pt", "last.pt")
    assert (named_run.length, named_run.classes) == (3, ["background", "object"])
    with pytest.raises(ComboError, match="no such run folder"):
        Predictor(tmp_path / "nothing", "cpu")


def test_a_file_that_stands_alone_is_recognised_and_takes_a_data_sets_stages(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(dict(Combo.from_preset("combo-small-s4").state_dict()), tmp_path / "alone.pt")
    manifest = tmp_path / "data_manifest.yaml"
    manifest.write_text(
        "data_sets: {s4: {layout: avsbench-s4, root: nowhere}}\nstages: {frames: {size: 96}, "
        "audio: {encoder: mel-stats}, maskige: {generator: felzenszwalb}}\n"
    )
    with pytest.raises(ComboError, match="say so, as --data s4"):
        Predictor(tmp_path / "alone.pt", "cpu", manifest=manifest)
    alone = Predictor(tmp_path / "alone.pt", "cpu", None, "s4", manifest)
    assert (alone.length, alone.stages.size) == (5, (96, 96))
    film(tmp_path / "film.mp4", 2.0)
    assert [frame.number for frame in predicted(alone, tmp_path / "film.mp4")] == [0, 1]
    with pytest.raises(ComboError, match="leave --data out"):
        Predictor(home / "run", "cpu", None, "s4")
    monkeypatch.setenv("COMBO_WEIGHTS", str(tmp_path))
    with pytest.raises(ComboError, match="weights combo-r50-s4 are missing"):
        Predictor(Path("combo-r50-s4"), "cpu", manifest=manifest)


def test_a_run_of_an_older_combo_asks_its_store(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.root, tmp_path / "run")
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    del data["frames_per_clip"], data["classes"]
    (tmp_path / "run" / "data.json").write_text(json.dumps(data))
    assert Predictor(tmp_path / "run", "cpu").length == 3
    (tmp_path / "run" / "data.json").write_text(json.dumps({**data, "store": str(tmp_path)}))
    with pytest.raises(ComboError, match="older combo"):
        Predictor(tmp_path / "run", "cpu")


def test_stages_that_are_not_those_of_the_run_are_refused(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMBO_WEIGHTS", str(tmp_path))

    own = trained(run.root)

    def changed(**changes: object) -> None:
        settings = json.loads(json.dumps(own.settings))
        for key, value in changes.items():
            stage, _, name = key.partition("__")
            settings[stage][name] = value
        stages_of(replace(own, settings=settings))

    changed()
    with pytest.raises(ComboError, match="run: combo weights fetch vggish"):
        changed(audio__encoder="vggish")
    with pytest.raises(ComboError, match="name the generator with --generator"):
        changed(maskige__generator="imported")
    with pytest.raises(ComboError, match="trained with audio version 1, and this combo has 2"):
        changed(audio__version=1)
    with pytest.raises(ComboError, match="leave --generator out"):
        stages_of(own, "felzenszwalb")


def test_what_is_predicted_evaluated_and_reported_is_computed_without_tf32(
    home: Path, run: RunFolder, predictor: Predictor
) -> None:
    def rounding() -> tuple[bool, ...]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    seen, network, reader = list[tuple[bool, ...]](), open_run(run, CPU), open_split(run, "test")
    before, exact = rounding(), (False, False)
    assert before != exact, "as PyTorch begins"
    for each in (network, predictor.network):
        each.register_forward_pre_hook(lambda *_: seen.append(rounding()))
    made = open_film(home / "clips" / "test" / "clip0" / "film.mp4", 1.0)
    for compute in (
        lambda: measure(network, reader, CPU),
        lambda: predict(network, reader.read([0]), CPU),
        lambda: list(predictor.frames(made, predictor.hear(made))),
    ):
        seen.clear()
        compute()
        assert seen
        assert {*seen} == {exact}
        assert rounding() == before


def test_one_bad_film_costs_the_others_nothing(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "good.mp4", 1.0)
    film(tmp_path / "mute.mp4", 1.0, sound_seconds=0.0)
    (tmp_path / "bad.mp4").write_text("no film")
    done = CliRunner().invoke(app, ["predict", str(run.root), "*.mp4", "--device", "cpu"])
    assert isinstance(done.exception, ComboError)
    assert str(done.exception) == "2 of 3 inputs failed"
    assert {path.parent.name for path in tmp_path.rglob("prediction.json")} == {"good"}
    assert "predictions/good: overlay.mp4" in done.stdout


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 70]))
def test_paint_made_ready_gives_what_painting_gives(seed: int, most: int) -> None:
    random = np.random.default_rng(seed)
    frame = random.integers(0, 256, (9, 12, 3), np.uint8)
    labels = random.integers(0, most + 1, (9, 12)).astype(np.uint8)
    labels[: random.integers(0, 9)] = 0
    ready = Paint.of(labels)
    assert (ready is None) == (not labels.any())
    assert ((frame if ready is None else ready.over(frame)) == paint(frame, labels)).all()
