"""Training settings: the paper's by name, each of them one `--set key=value` away from another."""

import contextlib
import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ...model.interface import Network, NetworkCriterion
from ...model.networks import NETWORKS
from ...model.settings import NetworkSettings
from ..errors import ComboError, WrongUsage, unknown
from .augment import Recipe
from .cache import Cache

Precision = Literal["fp32", "bf16", "fp16"]
Checkpointing = Literal["none", "encoder", "all"]

MOST_THREADS = 4096


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained. Defaults: the paper (section 4.2) and the public S4 settings."""

    preset: str
    data: str
    """Data set of the manifest."""
    initialisation: str = "imagenet"
    """`imagenet` (backbones), `random`, a run folder whose best network to start from, or a file or
    a name of `combo weights list`: a checkpoint of a run, a published one, or weights of a
    backbone."""
    iterations: int = 90_000
    """Optimiser steps."""
    batch_size: int = 8
    """Clips an optimiser step, of all processes together."""
    micro_batch: int = 8
    """Clips that go through a process's network at once, at most; the gradients are the batch's all
    the same."""
    learning_rate: float = 1e-4
    """Of AdamW at the start, after the warm-up."""
    backbone_lr_factor: float = 0.1
    """Of the backbones: times the learning rate."""
    weight_decay: float = 0.05
    """Of AdamW."""
    clip_norm: float = 0.01
    """Largest L2 norm of all gradients together."""
    power: float = 0.9
    """Of the decay: learning_rate * (1 - i / iterations) ** power at iteration i."""
    warmup: int = 0
    """Iterations in which the learning rate rises linearly."""
    ema: float = 0.0
    """Decay of the mean of the networks so far, such as 0.999, which is evaluated and is the best
    one instead of the network itself; 0: none."""
    precision: Precision = "fp32"
    """Of training; evaluations are in fp32. On GPUs fp32 is what PyTorch does by default: products
    in float32, convolutions in TF32 where there is one."""
    compile: bool = False
    """Let torch.compile make the network's parts: minutes at the start, faster steps on GPUs."""
    checkpointing: Checkpointing = "none"
    """Which blocks are computed again in the backward direction, to save memory: those of the
    encoders, or all."""
    augment: Recipe = "resize-crop-colour-flip"
    """What is changed at random in training clips."""
    evaluate_every: int = 5_000
    """Iterations between evaluations on the val split."""
    checkpoint_every: int = 0
    """Iterations between checkpoints; 0: by time alone. The last iteration always writes one."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints; 0: by iterations alone."""
    log_every: int = 20
    """Iterations between lines of metrics.jsonl."""
    cache: Cache = "auto"
    """Where the train split lies while it is trained on: `device` or `host` memory, or `none`: each
    batch is read. `auto`: on a GPU with three times as much memory free, else none."""
    seed: int = 0
    """Of the first weights, the order of clips and all that is drawn."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, ..."""
    threads: int = 0
    """CPU threads; 0 takes one a core."""

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "evaluate_every", "log_every"):
            if getattr(self, name) < 1:
                raise ComboError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if not 0 <= self.ema < 1:
            raise ComboError(f"ema is {self.ema}, but must be 0 (none), or below 1, such as 0.999")
        for name, value in vars(self).items():
            most = MOST_THREADS if name == "threads" else 2**63
            if isinstance(value, int | float) and not 0 <= value < most:
                raise ComboError(f"{name} is {value}, but must be 0 or more, and below {most}")
        if self.clip_norm == 0:
            raise ComboError(
                "clip_norm is 0, with which no step changes anything; give the largest norm of a "
                "gradient, such as 0.01, or 1e9 to clip none"
            )
        if self.compile and self.checkpointing != "none":
            raise ComboError(
                "compile=true and checkpointing exclude each other: what is compiled chooses by "
                "itself what it computes again; leave out one of them"
            )
        if not 1 <= self.micro_batch <= self.batch_size or self.batch_size % self.micro_batch:
            raise ComboError(
                f"micro_batch {self.micro_batch} must divide batch_size {self.batch_size}; "
                f"add --set micro_batch={self.batch_size}"
            )

    @property
    def dtype(self) -> torch.dtype | None:
        """Of autocast; None for none."""
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    def demand_shared_by(self, processes: int) -> None:
        """Raises ComboError when a batch is not a multiple of so many processes' shares."""
        if self.batch_size % processes:
            raise ComboError(
                f"{processes} processes cannot share a batch of {self.batch_size} evenly; begin a "
                f"run with --set batch_size={processes}, or another multiple"
            )


@dataclass(frozen=True)
class RunSettings:
    """Everything a run depends on beside its data."""

    train: TrainSettings
    kind: str
    """The network's name in `NETWORKS`."""
    network: NetworkSettings

    def build(self, pretrained: bool = False) -> Network:
        """The network. pretrained: timm fetches ImageNet weights for its encoders, or raises."""
        return NETWORKS[self.kind].build(self.network, pretrained)

    def criterion(self) -> NetworkCriterion:
        return NETWORKS[self.kind].criterion(self.network)

    def as_dict(self) -> dict[str, Any]:
        return {
            "train": dataclasses.asdict(self.train),
            "kind": self.kind,
            "network": dataclasses.asdict(self.network),
        }


_DATA: dict[str, dict[str, Any]] = {
    "ms3": {"iterations": 20_000, "evaluate_every": 400},
    "avss": {"precision": "fp16", "augment": "colour-flip"},
}
"""What the paper trains with on a data set, where that is not as on S4."""


def kind_of(preset: str) -> str:
    """The network that a preset is of. Raises ComboError."""
    for name, kind in NETWORKS.items():
        if preset in kind.presets:
            return name
    there = [preset for kind in NETWORKS.values() for preset in kind.presets]
    raise unknown(f"no preset {preset!r}", preset, there)


def train_settings(preset: str) -> TrainSettings:
    """The training settings that belong to a network preset, such as `combo-r50-s4`."""
    own = NETWORKS[kind_of(preset)].training.get(preset, {})
    data = preset.rsplit("-", 1)[-1]
    return TrainSettings(preset=preset, data=data, **{**_DATA.get(data, {}), **own})


def resolve(preset: str, changes: Sequence[str] = ()) -> RunSettings:
    """A preset with `key=value` changes, of the training or of the network.

    Raises ComboError for a key that neither has, or a value of another type.
    """
    kind = kind_of(preset)
    settings = RunSettings(train_settings(preset), kind, NETWORKS[kind].presets[preset])
    updates = _updates(settings, changes)
    if "batch_size" in updates["train"] and "micro_batch" not in updates["train"]:
        updates["train"]["micro_batch"] = updates["train"]["batch_size"]
    return _changed(settings, updates, changes)


def prefer_bf16(settings: RunSettings, changes: Sequence[str], has_bf16: bool) -> RunSettings:
    """bf16 for a preset's fp16 where the device has it: no loss is too large or small for it.

    changes: as in `resolve`; a precision among them is kept.
    """
    asked = any(change.partition("=")[0] == "precision" for change in changes)
    if asked or not has_bf16 or settings.train.precision != "fp16":
        return settings
    return dataclasses.replace(
        settings, train=dataclasses.replace(settings.train, precision="bf16")
    )


def amend(settings: RunSettings, changes: Sequence[str]) -> RunSettings:
    """A run's settings with those that may change while it goes on: `ON_RESUME`.

    Raises ComboError for another one that would not stay as it is.
    """
    updates = _updates(settings, changes)
    for part in ("train", "network"):
        for key, value in updates[part].items():
            own = getattr(getattr(settings, part), key)
            if value != own and key not in ON_RESUME:
                raise WrongUsage(
                    f"--set {key}={value} with --resume: the run goes on with its own {key}={own}; "
                    f"what may change is {', '.join(ON_RESUME)}; for all else begin a new run"
                )
    return _changed(settings, updates, changes)


def _updates(settings: RunSettings, changes: Sequence[str]) -> dict[str, dict[str, Any]]:
    train, network = settings.train, settings.network
    updates: dict[str, dict[str, Any]] = {"train": {}, "network": {}}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise WrongUsage(f"--set {change}: write key=value, such as --set iterations=1000")
        for part, known in (("train", train), ("network", network)):
            hints = typing.get_type_hints(type(known))
            if key in hints and key != "preset":
                updates[part][key] = parse(key, text, hints[key])
                break
        else:
            known = [f.name for s in (train, network) for f in dataclasses.fields(s)]
            raise unknown(f"--set {change}: no such setting", key, known, every=False)
    return updates


def _changed(
    settings: RunSettings, updates: dict[str, dict[str, Any]], changes: Sequence[str]
) -> RunSettings:
    try:
        return RunSettings(
            dataclasses.replace(settings.train, **updates["train"]),
            settings.kind,
            dataclasses.replace(settings.network, **updates["network"]),
        )
    except ValueError as error:
        raise WrongUsage(f"--set {' '.join(changes)}: {error}") from error


def parse(key: str, text: str, wanted: Any) -> Any:
    """`text` as the type of a setting. Raises ComboError."""
    import yaml
    from pydantic import TypeAdapter, ValidationError

    adapter = TypeAdapter(wanted)
    with contextlib.suppress(ValidationError):
        # Text where text is wanted stays as it is: YAML would read `off` as False.
        return adapter.validate_python(text, strict=True)
    try:
        return adapter.validate_python(yaml.safe_load(text))
    except (ValidationError, yaml.YAMLError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "not a value"
        raise WrongUsage(f"--set {key}={text}: {reason}") from None


ON_RESUME = (
    "iterations", "evaluate_every", "checkpoint_every", "checkpoint_minutes", "log_every",
    "cache", "device", "threads",
)  # fmt: skip
"""Settings that may change while a run goes on."""

WITHOUT_EFFECT = {"annotated"}
"""Settings that older runs were saved with and that changed nothing."""


def restore(value: dict[str, Any]) -> RunSettings:
    """Settings as saved with a run (`RunSettings.as_dict` through JSON).

    Runs that do not say which network are of a time when there was COMBO alone. Raises ComboError
    for a network or a setting that this combo does not have, and AttributeError, KeyError,
    TypeError or ValueError for what was never saved so.
    """
    from pydantic import TypeAdapter

    kind = value.get("kind", "combo")
    if kind not in NETWORKS:
        raise ComboError(
            f"the run's network is {kind!r}, and this combo has {', '.join(NETWORKS)}; "
            f"use the combo that it was trained with"
        )
    for part, settings in (("train", TrainSettings), ("network", NETWORKS[kind].settings)):
        known = {field.name for field in dataclasses.fields(settings)} | WITHOUT_EFFECT
        for name in value[part].keys() - known:
            raise ComboError(
                f"the run has a setting {name!r}, which this combo does not know; "
                f"use the combo that it was trained with"
            )
    return RunSettings(
        TypeAdapter(TrainSettings).validate_python(value["train"]),
        kind,
        TypeAdapter(NETWORKS[kind].settings).validate_python(value["network"]),
    )
