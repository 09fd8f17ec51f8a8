"""What a run may begin with: weights of a backbone by any names, and published checkpoints."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from combo.cli import app
from combo.model.backbones import Backbone
from combo.pipeline.errors import ComboError
from combo.pipeline.manifest import Manifest
from combo.pipeline.train import checkpoint
from combo.pipeline.train.run_folder import RunFolder
from combo.pipeline.train.start import start

from .conftest import small_run

TINY = ("width=32", "heads=2", "fusion_heads=2", "pixel_layers=1", "decoder_layers=1")
KEYS = Path(__file__).parents[1] / "data" / "network" / "r50_s4_keys.json"


@pytest.fixture(scope="module")
def backbone() -> dict[str, Tensor]:
    """Weights as timm publishes them, its classifier at the end."""
    torch.manual_seed(3)
    return timm.create_model("test_convnext2").state_dict()


@pytest.mark.parametrize("names", ["timm's", "others", "of several processes", "sorted"])
def test_weights_of_a_backbone_go_into_every_encoder(
    finished: Manifest, tmp_path: Path, backbone: dict[str, Tensor], names: str
) -> None:
    file = tmp_path / ("weights.safetensors" if names == "sorted" else "weights.pth")
    state = backbone
    if names == "others":
        state = {f"layer{number}": value for number, value in enumerate(backbone.values())}
    if names in ("of several processes", "sorted"):
        state = {f"module.{name}": value for name, value in backbone.items()}
    (save_file if names == "sorted" else torch.save)(state, file)
    network = small_run(finished, tmp_path / "run", *TINY, f"initialisation={file}").network
    encoders = [module for module in network.modules() if isinstance(module, Backbone)]
    assert len(encoders) == 2
    published = list(backbone.values())
    for encoder in encoders:
        for mine, theirs in zip(encoder.body.state_dict().values(), published, strict=False):
            assert torch.equal(mine, theirs)


def test_weights_that_fit_nothing_or_are_not_there_are_one_line(
    finished: Manifest, tmp_path: Path, backbone: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMBO_WEIGHTS", str(tmp_path / "none"))
    file = tmp_path / "weights.pth"
    torch.save(dict(reversed(backbone.items())), file)
    small_run(finished, tmp_path / "run", *TINY, f"initialisation={file}")  # by their names
    torch.save({f"x{i}": v for i, v in enumerate(reversed(backbone.values()))}, file)
    for given, reason in (
        (str(file), r"weights\.pth fits neither the network nor its encoder test_convnext2 \("),
        ("resnet50", "combo weights fetch resnet50"),
        ("nowhere", "nowhere: no such run folder"),
    ):
        with pytest.raises(ComboError, match=reason) as caught:
            small_run(finished, tmp_path / "other", *TINY, f"initialisation={given}")
        assert "\n" not in str(caught.value)


def test_sorted_names_that_are_not_known_say_no_order(
    finished: Manifest, tmp_path: Path, backbone: dict[str, Tensor]
) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({f"x{i}": v.contiguous() for i, v in enumerate(backbone.values())}, file)
    with pytest.raises(ComboError, match=r"in their order: its names are sorted") as caught:
        small_run(finished, tmp_path / "run", *TINY, f"initialisation={file}")
    assert "\n" not in str(caught.value)


def test_weights_without_numbers_are_one_line(finished: Manifest, tmp_path: Path) -> None:
    with torch.device("meta"):
        torch.save(timm.create_model("test_convnext2").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ComboError, match="have shapes and no numbers; save real ones"):
        small_run(finished, tmp_path / "run", *TINY, f"initialisation={tmp_path / 'weights.pth'}")


@pytest.mark.slow
def test_a_published_checkpoint_becomes_a_run_that_is_evaluated_and_begun_with(
    prepared: Path, finished: Manifest, tmp_path: Path
) -> None:
    # Names and shapes are the published ones, without SEM; the numbers are small ones.
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.rand(shape, generator=generator) * 0.01
        for name, shape, *_ in json.loads(KEYS.read_text())
        if not name.startswith(("pre_sam_backbone.", "scale_factor_module.", "audio_backbone."))
    }
    file, run = tmp_path / "published.pth", RunFolder(tmp_path / "run")
    torch.save({"model": state, "iteration": 1}, file)

    def combo(*words: object) -> str:
        done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    said = combo("weights", "convert", file, "--to", run.root, "--manifest", prepared)
    assert said == f"{run.root}: combo-r50-s4\n"
    assert run.settings().network.sem == "off"
    told = json.loads(combo("evaluate", run.root, "--split", "val", "--json"))
    assert (told["clips"], told["initialisation"], told["precision"]) == (2, str(file), "fp32")

    mine = checkpoint.network_of(run.best)
    for given in (run.root, file):
        changes = ["sem=off", f"initialisation={given}", "device=cpu"]
        begun = start(finished, "combo-r50-s4", changes, tmp_path / f"from-{given.name}").network
        assert all(torch.equal(value, mine[name]) for name, value in begun.state_dict().items())

    for words, reason in (
        (["--preset", "combo-pvt-ms3"], "has the network of combo-r50-s4 with 2 classes, not of"),
        (["--preset", "combo-r50-avss"], "has the network of combo-r50-s4 with 2 classes, not of"),
        (["--preset", "combo-r50-ms3"], "holds nothing of data set 'ms3'|no data set 'ms3'"),
    ):
        more = ["weights", "convert", str(file), "--to", str(tmp_path / "no"), *words]
        with pytest.raises(ComboError, match=reason):
            combo(*more, "--manifest", prepared)
        assert not (tmp_path / "no").exists()
