"""Settings by name: the paper's numbers, each one change away from another, saved and read back."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from combo.cli import app
from combo.model.presets import PRESETS
from combo.pipeline.errors import ComboError
from combo.pipeline.reference import of_manifest, of_network, of_training, page
from combo.pipeline.train.presets import (
    TrainSettings,
    parse,
    prefer_bf16,
    resolve,
    restore,
    train_settings,
)

PUBLISHED = [f"combo-{network}-{data}" for network in ("r50", "pvt") for data in ("s4", "ms3")]
SEMANTIC = ["combo-r50-avss", "combo-pvt-avss"]


@pytest.mark.parametrize("preset", PUBLISHED + SEMANTIC)
def test_a_published_preset_trains_as_the_paper_says(preset: str) -> None:
    settings = train_settings(preset)
    assert settings.data == preset.split("-")[2]
    assert settings.iterations == (20_000 if "ms3" in preset else 90_000)
    assert settings.evaluate_every == (400 if "ms3" in preset else 5_000)
    assert (settings.batch_size, settings.learning_rate, settings.weight_decay) == (8, 1e-4, 0.05)
    assert (settings.backbone_lr_factor, settings.clip_norm, settings.power) == (0.1, 0.01, 0.9)
    assert settings.warmup == 0
    assert settings.initialisation == "imagenet"


@pytest.mark.parametrize("preset", PUBLISHED)
def test_objects_are_trained_in_full_precision_with_crops(preset: str) -> None:
    settings = train_settings(preset)
    assert (settings.precision, settings.augment) == ("fp32", "resize-crop-colour-flip")


@pytest.mark.parametrize("preset", SEMANTIC)
def test_classes_are_trained_in_half_precision_without_crops(preset: str) -> None:
    settings = train_settings(preset)
    assert (settings.precision, settings.augment) == ("fp16", "colour-flip")


def test_the_small_presets_need_no_weights_for_any_data_set() -> None:
    for data in ("s4", "ms3", "avss"):
        settings = resolve(f"combo-small-{data}")
        assert settings.train.initialisation == "random"
        assert settings.train.data == data
        assert settings.network.classes == PRESETS[f"combo-r50-{data}"].classes


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [
        ("sem=off", "sem", "off"),
        ("sem=shared", "sem", "shared"),
        ("fusion=none", "fusion", "none"),
        ("fusion=visual", "fusion", "visual"),
        ("fusion=audio", "fusion", "audio"),
        ("queries=all", "queries", "all"),
        ("lambda_ada=0", "lambda_ada", 0.0),
        ("lambda_ada=20", "lambda_ada", 20.0),
        ("backbone=pvt_v2_b5", "backbone", "pvt_v2_b5"),
    ],
)
def test_every_ablation_of_the_paper_is_one_change(change: str, name: str, value: object) -> None:
    plain, changed = resolve("combo-r50-s4"), resolve("combo-r50-s4", [change])
    assert getattr(changed.network, name) == value != getattr(plain.network, name)
    assert changed.train == plain.train


def test_changes_take_the_settings_types() -> None:
    changes = ["iterations=50", "learning_rate=3e-4", "precision=bf16", "data=mine", "width=128"]
    settings = resolve("combo-r50-s4", changes)
    assert settings.train.iterations == 50
    assert settings.train.learning_rate == 3e-4
    assert settings.train.precision == "bf16"
    assert settings.train.data == "mine"
    assert settings.network.width == 128


def test_another_batch_is_taken_at_once_unless_said_otherwise() -> None:
    assert resolve("combo-r50-s4", ["batch_size=4"]).train.micro_batch == 4
    settings = resolve("combo-r50-s4", ["batch_size=4", "micro_batch=2"]).train
    assert (settings.batch_size, settings.micro_batch) == (4, 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("iteration=5", "did you mean iterations"),
        ("qqq=5", "there are preset, data,"),
        ("preset=combo-pvt-s4", "no such setting"),
        ("iterations", "write key=value"),
        ("iterations=many", "iterations=many: .*integer"),
        ("iterations=2.5", "iterations=2.5: .*integer"),
        ("learning_rate=[1", "learning_rate=.* not a value"),
        ("precision=fp8", "precision=fp8: .*'fp32', 'bf16' or 'fp16'"),
        ("fusion=both", "fusion=both"),
        ("width=30", "width=30: .*width 30 is not a multiple of 4"),
        ("iterations=0", "iterations is 0, but must be at least 1"),
        ("log_every=0", "log_every is 0, but must be at least 1"),
        ("learning_rate=.nan", "learning_rate is nan, but must be 0 or more"),
        ("weight_decay=.inf", "weight_decay is inf, but must be 0 or more, and below"),
        ("seed=99999999999999999999", "seed is 9+, but must be 0 or more, and below"),
        ("threads=-1", "threads is -1, but must be 0 or more, and below"),
        ("heads=0", "heads is 0, but must be at least 1"),
        ("lambda_ada=.nan", "lambda_ada is nan, but must be 0 or more"),
        ("importance=5", r"importance is 5\.0, but is a share"),
        ("oversample=0", r"oversample is 0\.0, but must be at least 1"),
        ("pixel_std=[0,1,1]", r"pixel_std is .*, but is divided by: above 0 each"),
        ("micro_batch=3", "micro_batch 3 must divide batch_size 8; add --set micro_batch=8"),
        ("learning_rate=!!python/object/apply:os.getcwd []", "not a value"),
    ],
)
def test_a_senseless_change_is_one_line_that_says_what_fits(change: str, says: str) -> None:
    with pytest.raises(ComboError, match=says) as caught:
        resolve("combo-r50-s4", [change])
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(ComboError, match=r"no preset 'combo-r101-s4'.*combo-pvt-avss"):
        resolve("combo-r101-s4")


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_saved_settings_come_back_the_same(preset: str) -> None:
    settings = resolve(preset, ["seed=5", "lambda_ada=1.5"])
    assert restore(json.loads(json.dumps(settings.as_dict()))) == settings


def test_a_run_saved_with_a_setting_that_is_gone_is_read() -> None:
    settings = resolve("combo-r50-s4")
    saved = settings.as_dict()
    saved["network"]["annotated"] = "first"
    assert restore(saved) == settings


def test_a_value_is_read_as_its_setting_wants_it() -> None:
    assert parse("lambda_ada", "null", float | None) is None
    assert parse("pixel_mean", "[1, 2, 3]", tuple[float, float, float]) == (1.0, 2.0, 3.0)
    assert parse("learning_rate", "1e-4", float) == 1e-4
    assert parse("data", "1234", str) == "1234"
    assert parse("sem", "off", str) == "off"


def test_the_defaults_are_the_papers() -> None:
    assert TrainSettings("combo-r50-s4", "s4") == train_settings("combo-r50-s4")


def test_a_presets_fp16_is_bf16_where_a_gpu_has_it_and_nobody_chose() -> None:
    semantic = resolve("combo-r50-avss")
    assert prefer_bf16(semantic, (), has_bf16=True).train.precision == "bf16"
    assert prefer_bf16(semantic, (), has_bf16=False).train.precision == "fp16"
    asked = ["precision=fp16"]
    assert prefer_bf16(resolve("combo-r50-s4", asked), asked, True).train.precision == "fp16"
    assert prefer_bf16(resolve("combo-r50-s4"), (), True).train.precision == "fp32"


def test_gradients_that_are_all_cut_to_nothing_are_refused() -> None:
    with pytest.raises(ComboError, match="clip_norm is 0, with which no step changes anything"):
        resolve("combo-r50-s4", ["clip_norm=0"])


def test_what_is_compiled_is_not_recomputed_by_hand() -> None:
    with pytest.raises(ComboError, match="compile=true and checkpointing exclude each other"):
        resolve("combo-r50-s4", ["compile=true", "checkpointing=all"])


# settings as a file


def printed(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["train", *arguments, "--print-settings"])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_printed_settings_are_a_file_that_gives_them_again(tmp_path: Path) -> None:
    text = printed("--preset", "combo-r50-ms3", "--set", "learning_rate=3e-4", "--set", "sem=off")
    value = yaml.safe_load(text)
    assert (value["preset"], value["iterations"], value["sem"]) == ("combo-r50-ms3", 20_000, "off")
    assert float(value["learning_rate"]) == 3e-4
    file = tmp_path / "own.yaml"
    file.write_text(text)
    assert yaml.safe_load(printed("--config", str(file))) == value
    other = yaml.safe_load(printed("--config", str(file), "--set", "sem=shared"))
    assert other == {**value, "sem": "shared"}, "--set goes before the file"
    assert not list(tmp_path.glob("runs*"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("iteration: 3", "--set iteration=3: no such setting; did you mean iterations?"),
        ("[1, 2]", "no mapping of settings"),
        ("a: [", "cannot be read"),
        ("preset: [1]", "is no name"),
        ("preset: combo-r50-s5", "no preset 'combo-r50-s5'; did you mean"),
    ],
)
def test_a_file_that_holds_no_settings_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    preset = [] if "preset" in text else ["--preset", "combo-r50-s4"]
    done = CliRunner().invoke(app, ["train", *preset, "--config", str(file)])
    assert isinstance(done.exception, ComboError)
    assert says in str(done.exception)
    assert "\n" not in str(done.exception)


def test_a_preset_that_the_file_does_not_have_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("preset: combo-r50-s4")
    arguments = ["train", "--config", str(file), "--preset", "combo-pvt-s4"]
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_every_preset_is_in_the_table_with_its_settings() -> None:
    found = json.loads(CliRunner().invoke(app, ["presets", "--json"]).stdout)
    assert [each["train"]["preset"] for each in found] == list(PRESETS)
    assert all(restore(each) == resolve(each["train"]["preset"]) for each in found)
    table = CliRunner().invoke(app, ["presets"]).stdout
    assert all(name in table for name in PRESETS)


def test_the_reference_is_the_codes_and_explains_every_setting() -> None:
    written = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    assert written == page(), "run: combo settings > docs/settings.md"
    every = [*of_manifest(), *of_training(), *of_network("combo")]
    assert [each.key for each in every if not (each.meaning and each.kind)] == []
    changed = resolve("combo-r50-s4").as_dict()
    keys = {*changed["train"], *changed["network"]} - {"preset"}
    assert keys == {each.key for each in (*of_training(), *of_network("combo"))}
