"""A network that somebody has trained, in the forms in which people have it, and what is to be
known of it before it can be shown a film.

A run's record says all of that. A file that stands alone says which network it is, by names and
shapes; which stages it was trained with is what the manifest says of a data set.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...model.interface import Network
from ..errors import ComboError
from ..jobs.plan import layout_of, stage_settings
from ..layouts.layout import BINARY_CLASSES
from ..manifest import Manifest, load_manifest
from ..ruler.recognised import recognise
from ..train import checkpoint
from ..train.elsewhere import clips_of
from ..train.run_folder import SETTINGS, checkpoint_of
from ..weights import resolve
from ..weights_catalogue import CATALOGUE

LIKE = ("test", "val", "train")
"""Splits whose settings are taken, the first that there is: frames may be fitted otherwise in
training than they are when a network is tried."""


@dataclass(frozen=True)
class Trained:
    """name: of the run or file.  file: the checkpoint.  build: the network with its parameters.
    settings: stage -> settings.  weights: stage -> digests that those must have, None where nothing
    says so.  length: frames of a clip.  manifest: says where weights are, and what a file may be.
    """

    name: Path
    file: Path
    build: Callable[[], Network]
    settings: Mapping[str, Mapping[str, Any]]
    weights: Mapping[str, Mapping[str, str]] | None
    length: int
    classes: list[str]
    manifest: Manifest


def trained(given: Path, data_set: str | None = None, manifest: Path | None = None) -> Trained:
    """A run's folder, a checkpoint in one, a file that stands alone, or its name in the catalogue.

    data_set: whose stages a file that stands alone was trained with. manifest: in place of the
    run's, or of the usual one.
    Raises ComboError: nothing of these; a data set for a run, or none for a file that needs one.
    """
    if not given.exists() and str(given) in CATALOGUE:
        return _alone(given, data_set, load_manifest(manifest), str(given))
    if given.is_file() and not (given.parent / SETTINGS).exists():
        return _alone(given, data_set, load_manifest(manifest))
    if data_set is not None:
        raise ComboError(f"{given} says itself what it was trained on; leave --data out")
    run, file = checkpoint_of(given)
    settings, data = run.settings(), run.data()
    split = next((name for name in LIKE if name in data["settings"]), next(iter(data["settings"])))
    length, classes = clips_of(run, data)
    noted = Path(data["manifest"]) if "manifest" in data else None
    named = manifest or (noted if noted and noted.is_file() else None)

    def build() -> Network:
        network = settings.build()
        checkpoint.load_network(file, network)
        return network

    stages = data["settings"][split]
    opened = load_manifest(named)
    return Trained(run.root, file, build, stages, data["weights"], length, classes, opened)


def _alone(
    given: Path, data_set: str | None, manifest: Manifest, published: str | None = None
) -> Trained:
    file = given if published is None else resolve(published, manifest)[0]
    found = recognise(file, published)
    data_set = data_set or (published and published.rsplit("-", 1)[-1])
    if not data_set:
        raise ComboError(
            f"{given} does not say what it was trained on; say so, as --data s4, or give it in "
            "the folder of its run"
        )
    manifest.choose([data_set])
    stages = stage_settings(manifest, data_set, LIKE[0])
    if not found.settings.reads_maskige:
        del stages["maskige"]
    rules = layout_of(manifest, data_set)
    classes: list[str] = [*BINARY_CLASSES]
    if found.settings.classes != len(classes):
        classes = rules.classes(manifest.root(data_set))
    if len(classes) != found.settings.classes:
        raise ComboError(
            f"{given} tells {found.settings.classes} classes apart, and {data_set} has "
            f"{len(classes)}; name another data set with --data"
        )
    length = found.clip_length(rules)
    return Trained(given, file, found.build, stages, None, length, classes, manifest)
