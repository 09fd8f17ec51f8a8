"""Identity: today's stores stay valid whatever is added, and what changes bytes changes a name."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import pytest

from combo.pipeline.encoders import ENCODERS, encoder
from combo.pipeline.generators import GENERATORS, generator
from combo.pipeline.identity import Later, fingerprint, recorded
from combo.pipeline.layouts import SoundRule
from combo.pipeline.manifest import AudioSettings, MaskigeSettings, Model
from combo.pipeline.preprocess import audio, frames, imported, maskige
from combo.pipeline.preprocess.stage import Description
from combo.pipeline.store import Plan

GOLDEN = Path(__file__).parent.parent / "data" / "identity" / "fingerprints.json"
DIGESTS = {"vggish": "v" * 64, "vggish-pca": "p" * 64}
RULES: tuple[SoundRule, ...] = ("avsbench", "zeros", "centred")
PLAN = Plan("folders", ("a", "b"), ("", ""), 5, ("background", "object"), 8)


def named(description: Description) -> list[str]:
    """Name and fingerprint of a description's variant with weights of known digests."""
    weights = {name: DIGESTS.get(name, "d" * 64) for name in description.weights}
    variant = description.variant(weights)
    return [variant.name, variant.fingerprint]


def all_of_today() -> dict[str, list[str] | str]:
    """What `fingerprints.json` was written for, before settings could be marked `Later`."""
    found: dict[str, list[str] | str] = {}
    for size in ((224, 224), (32, 64)):
        for fit in ("squash", "crop"):
            found[f"frames {size} {fit}"] = named(frames.describe(size, fit, 5, "binary", 2))
    full = (224, 224)
    found["frames index"] = named(frames.describe(full, "crop", 10, "index", 71))
    source = ("processed_frames", "a note")
    found["frames imported"] = named(frames.describe(full, "crop", 10, "index", 71, source))
    for name in ("vggish", "vggish-pca", "mel-stats"):
        for rule in RULES:
            described = audio.describe(AudioSettings(encoder=name), rule, 5)
            found[f"audio {name} {rule}"] = named(described)
    for name, options in {
        "stream": {"stream": 1},
        "soxr": {"resampling": "soxr"},
        "log-mel": {"source": "log-mel"},
        "centred": {"windows": "centred"},
        "memory": {"memory_limit": "32MB"},
    }.items():
        described = audio.describe(AudioSettings.model_validate(options), "avsbench", 5)
        found[f"audio vggish avsbench {name}"] = named(described)
    for name in (
        *("felzenszwalb", "sam-vit-b", "sam-vit-l", "sam-vit-h"),
        *("semantic-sam-t", "semantic-sam-l"),
    ):
        for at in ("native", "stored"):
            settings = MaskigeSettings.model_validate({"generator": name, "at": at})
            found[f"maskige {name} {at}"] = named(maskige.describe(settings, full, "squash", 5))
    for key in json.loads(GOLDEN.read_text()):
        if "{" in key:
            name, options = key.removeprefix("maskige ").split(" ", 1)
            settings = MaskigeSettings.model_validate({"generator": name, **json.loads(options)})
            found[key] = named(maskige.describe(settings, full, "crop", 10))
    tree = ("pre_SAM_mask", "semantic-sam-l")
    found["maskige imported"] = named(imported.describe(full, "squash", 5, *tree))
    found["plan"] = PLAN.fingerprint
    return found


def test_the_fingerprints_of_the_first_stores_stay_valid() -> None:
    assert all_of_today() == json.loads(GOLDEN.read_text())


@dataclass(frozen=True)
class Young:
    old: int = 1
    new: Annotated[float, Later(0.0)] = 0.0


class YoungModel(Model):
    old: int = 1
    new: Annotated[float, Later(0.0)] = 0.5


@pytest.mark.parametrize("kind", [Young, YoungModel])
def test_a_setting_that_came_later_counts_only_where_it_changes_something(kind: type) -> None:
    assert recorded(kind(old=2, new=0.0)) == {"old": 2}
    assert recorded(kind(old=2, new=0.5)) == {"old": 2, "new": 0.5}
    assert fingerprint(recorded(kind(new=0.0))) == fingerprint({"old": 1})


def test_how_labels_are_read_is_part_of_what_they_are() -> None:
    size = (64, 64)
    usual, other = (frames.describe(size, "squash", 5, rule, 2) for rule in ("binary", "index"))
    assert usual.variant().fingerprint != other.variant().fingerprint
    many = frames.describe(size, "squash", 5, "index", 71)
    assert many.variant().fingerprint == usual.variant().fingerprint  # the plan tells the classes
    assert replace(PLAN, classes=("background", "cat", "dog")).fingerprint != PLAN.fingerprint
    asked = frames.describe(size, "squash", 5).recorded
    assert all(each.variant().is_what(asked) for each in (usual, other, many))


def test_every_stage_can_be_described_without_weights() -> None:
    for name in GENERATORS:
        described = maskige.describe(MaskigeSettings(generator=name), (64, 64), "squash", 5)
        assert described.weights == tuple(filter(None, [generator(name).weights]))
    for name in ENCODERS:
        described = audio.describe(AudioSettings(encoder=name), "avsbench", 5)
        assert described.weights == encoder(name).weights
