"""Where weights are, how they get there, and whether they are the published ones.

A file given in data_manifest.yaml is used where it lies; all others lie in one folder,
`$COMBO_WEIGHTS` or `~/.cache/combo/weights`. What is missing is never replaced by something else:
the error says which file is expected, where it is published and how to give it.

A digest is computed once for a file of a given size and time of change and then remembered in
`.digests.json` in the weights folder, because every stage records the digest of what it used.
"""

import contextlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from . import durable, remedies
from .digests import file_digest
from .download import OnBytes, download
from .errors import ComboError, WrongUsage, unknown
from .state_files import load_state as load_state  # re-exported: weights are read through here
from .weights_catalogue import CATALOGUE, Weights

if TYPE_CHECKING:
    from .manifest import Manifest

_MEMORY = ".digests.json"

Paths = Mapping[str, Path]
"""Files that data_manifest.yaml gives, by name."""

Digests = Mapping[str, str]
"""SHA-256 that data_manifest.yaml expects, by name: hex digits, all or the first ones."""


@dataclass(frozen=True)
class Held:
    """One entry of the catalogue on this machine. path: where it is or would be."""

    weights: Weights
    path: Path
    there: bool
    given_by: Literal["manifest", "folder"]


@dataclass(frozen=True)
class Verdict:
    """What `verify` found. state: "unpublished" is a file whose publisher gives no digest."""

    name: str
    path: Path
    state: Literal["good", "wrong", "unpublished", "missing"]
    sha256: str = ""
    reason: str = ""


def weights_folder() -> Path:
    """The folder of fetched and added weights; it need not exist.

    Raises ComboError where nobody knows the user's home folder.
    """
    try:
        return Path(os.environ.get("COMBO_WEIGHTS") or "~/.cache/combo/weights").expanduser()
    except RuntimeError as error:
        raise ComboError(f"no weights folder ({error}); run: export COMBO_WEIGHTS=FOLDER") from None


def entry(name: str) -> Weights:
    """A name's catalogue entry. Raises ComboError for an unknown name."""
    if name not in CATALOGUE:
        raise unknown(f"no weights {name!r}", name, CATALOGUE)
    return CATALOGUE[name]


def held(paths: Paths | None = None) -> list[Held]:
    """The whole catalogue, each with where it lies: what `combo weights list` shows."""
    return [_held(name, paths) for name in CATALOGUE]


def locate(name: str, paths: Paths | None = None) -> Path:
    """The file of these weights.

    paths: the manifest's; one given there is meant and no other is looked for.
    Raises ComboError naming the file, where it is published and how to give it.
    """
    found = _held(name, paths)
    if found.there:
        return found.path
    weights = found.weights
    if found.given_by == "manifest":
        raise ComboError(
            f"weights {name}: no file {found.path}, which data_manifest.yaml gives; correct "
            f"weights.{name}.path there ({weights.file} is published at {weights.source})"
        )
    fetch_it = f"run: {remedies.fetch(name)}; or " if weights.url else ""
    raise ComboError(
        f"weights {name} are missing: {weights.file}, published at {weights.source}; {fetch_it}"
        f"run: {remedies.add(name)}; or set weights.{name}.path in data_manifest.yaml"
    )


def missing(names: Iterable[str], paths: Paths | None = None) -> list[Held]:
    """Those of some weights whose file is not there."""
    return [found for found in (_held(name, paths) for name in names) if not found.there]


def demand(names: Iterable[str], paths: Paths | None = None) -> None:
    """Raises ComboError that names every missing file and what gets them all, unless all are there.

    paths: as for `locate`.
    """
    if absent := missing(names, paths):
        if len(absent) == 1:
            locate(absent[0].weights.name, paths)
        raise ComboError(all_missing(absent))


def all_missing(absent: Sequence[Held]) -> str:
    """Missing weights in one line: files, and the command that gets all that can be fetched."""
    told = [
        f"{each.weights.name} (no file {each.path}, which data_manifest.yaml gives)"
        if each.given_by == "manifest"
        else f"{each.weights.name} ({each.weights.file}, published at {each.weights.source})"
        for each in absent
    ]
    fetched = [e.weights.name for e in absent if e.weights.url and e.given_by == "folder"]
    fetch_them = f"run: {remedies.fetch(' '.join(fetched))}; or " if fetched else ""
    return (
        f"weights are missing: {', '.join(told)}; {fetch_them}for each run: "
        f"{remedies.add('NAME')}; or set weights.NAME.path in data_manifest.yaml"
    )


def resolve(name: str, manifest: "Manifest") -> tuple[Path, str]:
    """The file of these weights and its SHA-256, as a stage records them.

    Raises ComboError as `locate`, and when the digest is not the published one or not the one that
    the manifest expects.
    """
    path = locate(name, manifest.weight_paths())
    sha256 = digest(path)
    given = manifest.weights.get(name)
    _demand(path, sha256, (given.sha256 if given else None) or entry(name).digest_start)
    return path, sha256


def digest(path: Path) -> str:
    """SHA-256 of a weights file in hex, remembered while its size and time of change stay.

    Raises ComboError when the file cannot be read.
    """
    try:
        status = path.stat()
        key = str(path.resolve())
    except OSError as error:
        raise ComboError(f"{path}: cannot be read ({error.strerror})") from error
    stamp = [status.st_size, status.st_mtime_ns]
    memory = weights_folder() / _MEMORY
    known = _remembered(memory)
    if key in known and known[key][:2] == stamp:
        return str(known[key][2])
    sha256 = file_digest(path)
    with contextlib.suppress(OSError):  # forgetting costs time, nothing else
        durable.write_json(memory, {**_remembered(memory), key: [*stamp, sha256]})
    return sha256


def fetch(
    name: str, progress: OnBytes | None = None, url: str | None = None, pause: float = 2.0
) -> Path:
    """Download published weights into the weights folder, unless they are there.

    progress: called with (bytes there, bytes in all or None).  url: another place that has the
    same file.  pause: seconds between attempts that bring nothing.
    Raises ComboError in one line; a connection that was cut is taken up by the next call.
    """
    weights = entry(name)
    target = weights_folder() / weights.file
    if target.is_file():
        _demand(target, digest(target), weights.digest_start)
        return target
    source = url or weights.url
    if source is None:
        raise ComboError(
            f"{name}: only its page is known, {weights.page}; download the file there and run: "
            f"{remedies.add(name)}"
        )

    def accept(part: Path) -> None:
        _check(weights, part, f"{source}: ")

    again = remedies.fetch(name)
    download(source, target, accept, weights.size, progress, again, pause)
    return target


def add(name: str, file: Path) -> Path:
    """Copy a file that the user has into the weights folder, after checking that it is the one.

    Raises ComboError: no such file, not the published file, disk full.
    """
    weights = entry(name)
    target = weights_folder() / weights.file
    if not file.is_file():
        raise WrongUsage(f"{file}: no such file; run: {remedies.add(name)}")
    _check(weights, file, "")
    if target.exists() and target.samefile(file):
        return target
    try:
        with file.open("rb") as given, durable.replacing(target) as copy:
            shutil.copyfileobj(given, copy, 1 << 20)
    except OSError as error:
        raise ComboError(
            f"{target}: cannot be written ({error.strerror}); make room there or set COMBO_WEIGHTS "
            "to another folder"
        ) from error
    return target


def verify(
    names: Iterable[str] = (), paths: Paths | None = None, digests: Digests | None = None
) -> list[Verdict]:
    """Compare files with their published digests, reading every byte anew. Where none is published,
    a zip archive's own checksums are compared.

    names: those to check, where a missing one is reported too; none: all that are there.
    """
    asked = list(names)
    verdicts: list[Verdict] = []
    for name in asked or CATALOGUE:
        found = _held(name, paths)
        if not found.there:
            if asked:
                verdicts.append(Verdict(name, found.path, "missing", reason="no such file"))
            continue
        expected = (digests or {}).get(name) or found.weights.digest_start
        try:
            sha256 = file_digest(found.path)
            if expected:
                _demand(found.path, sha256, expected)
            else:
                _demand_whole(found.path, f"remove it and get it again from {found.weights.page}")
        except ComboError as error:
            verdicts.append(Verdict(name, found.path, "wrong", reason=str(error)))
        else:
            state = "good" if expected else "unpublished"
            verdicts.append(Verdict(name, found.path, state, sha256))
    return verdicts


def convert(source: Path, target: Path) -> tuple[int, int]:
    """A published COMBO checkpoint in our names: `combo weights convert`.

    target: written whole or not at all as torch.save's dictionary of two state dictionaries:
    `network`, which loads strictly into `Combo`, and `vggish`, empty when the checkpoint has none.
    Returns the number of tensors in each.
    Raises ComboError: target there already, source not readable, or its keys are not COMBO's.
    """
    if target.exists():
        raise ComboError(f"{target}: is there already; remove it or give another name")
    state = load_state(source)
    import torch

    from ..model.state_dicts import StateDictError, published_combo

    try:
        network, vggish = published_combo(state)
    except StateDictError as error:
        raise ComboError(f"{source}: not a published COMBO checkpoint: {error}") from error
    try:
        with durable.replacing(target) as file:
            torch.save({"network": network, "vggish": vggish}, file)
    except OSError as error:
        raise ComboError(f"{target}: cannot be written ({error.strerror})") from error
    return len(network), len(vggish)


def _held(name: str, paths: Paths | None) -> Held:
    weights = entry(name)
    if paths and name in paths:
        return Held(weights, paths[name], paths[name].is_file(), "manifest")
    path = weights_folder() / weights.file
    return Held(weights, path, path.is_file(), "folder")


def _check(weights: Weights, file: Path, source: str) -> None:
    """Raise ComboError unless `file` can be the published one."""
    if weights.size is not None and file.stat().st_size != weights.size:
        raise ComboError(
            f"{source}{file}: {file.stat().st_size} bytes, the published {weights.file} has "
            f"{weights.size}"
        )
    if weights.digest_start:
        _demand(file, file_digest(file), weights.digest_start)
        return
    _demand_whole(file, f"get {weights.file} from {weights.page}", source)


def _demand_whole(file: Path, mend: str, source: str = "") -> None:
    """Raise ComboError unless an undigested file is of a kind that weights come in, and, where it
    is a zip archive (PyTorch's format since 1.6), every entry has the checksum stored with it."""
    try:
        with file.open("rb") as opened:
            start = opened.read(16)
        if not start.startswith((b"PK", b"\x80")):
            raise ComboError(f"{source}{file}: no weights file (it begins with {start!r}); {mend}")
        if start.startswith(b"PK"):
            with zipfile.ZipFile(file) as archive:
                broken = archive.testzip()
            if broken is not None:
                raise ComboError(f"{source}{file}: damaged at {broken}; {mend}")
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ComboError(f"{source}{file}: damaged or cut off ({error}); {mend}") from error


def _demand(path: Path, sha256: str, expected: str | None) -> None:
    if expected and not sha256.startswith(expected.lower()):
        raise ComboError(
            f"{path}: SHA-256 begins {sha256[:16]}, expected {expected[:16]}; the file is damaged "
            "or another one; remove it and get it again"
        )


def _remembered(memory: Path) -> dict[str, list[int | str]]:
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(memory.read_text())
        if isinstance(value, dict):
            return {k: v for k, v in value.items() if isinstance(v, list) and len(v) == 3}
    return {}


__all__ = [
    "Digests",
    "Held",
    "Paths",
    "Verdict",
    "add",
    "all_missing",
    "convert",
    "demand",
    "digest",
    "entry",
    "fetch",
    "held",
    "load_state",
    "locate",
    "missing",
    "resolve",
    "verify",
    "weights_folder",
]
