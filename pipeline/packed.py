"""A packed file: finished splits of a store as one HDF5 file, for disks that are a node's own.

    index                                    JSON: plans, variants, their finished manifests
    <data set>/<split>/<stage>/<variant>/<array>         [clips, ...], not padded
    <data set>/<split>/<stage>/<variant>/<array>.crc32c  [clips], of each clip's bytes in the file
    <data set>/<split>/<stage>/<variant>/crc32c_sha256   of all these of a variant, in hex

This is the only place that knows these names. Arrays lie in the file as they are, which is what is
read fastest, and whatever reads HDF5 reads it.

The HDF5 library never writes to the disk: it lays the file out in memory, all but the arrays, whose
places are then written from here. On a disk that is full it may take the process down with it.

Reading for training goes around the HDF5 library, which has one lock for all threads: where each
clip's bytes lie is looked up once, and from then on threads of our own read them with `pread`,
which no fork and no other thread can disturb. Every clip's bytes are held against their CRC-32C,
which processors compute: zlib's CRC-32 would be half of all the work. The digest of these checks
tells a file that is half of another one, as an interrupted copy over an older file leaves it.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import TypeAdapter

from . import durable, remedies
from .errors import ComboError
from .memory_file import MemoryFile
from .store import ArraySpec, Finished, Plan, StoreDamaged, Variant

SUFFIXES = (".h5", ".hdf5")
"""By which a path is told to mean a packed file before there is one."""

FORMAT = 1
INDEX, INDEX_DIGEST = "index", "index_sha256"
CHECKS, CHECKS_DIGEST = ".crc32c", "crc32c_sha256"
CHECK_TYPE = "u4"


def is_packed(path: Path) -> bool:
    """Whether a store's path means a packed file."""
    return path.is_file() or (path.suffix in SUFFIXES and not path.is_dir())


def refuse_packed(path: Path, command: str) -> None:
    """Raises ComboError where a command that writes is given a packed file."""
    if is_packed(path):
        raise ComboError(
            f"{path} is a packed file, which is only read; {command} needs the store that it was "
            f"packed from: name its folder in the manifest or COMBO_STORE"
        )


@dataclass(frozen=True)
class Packed:
    """One variant of a packed split, and what closed it in the store."""

    variant: Variant
    finished: Finished


@dataclass(frozen=True)
class Entry:
    """One split in a packed file."""

    data_set: str
    split: str
    plan: Plan
    packed: tuple[Packed, ...]

    def group(self, variant: Variant) -> str:
        return f"{self.data_set}/{self.split}/{variant.key}"


@dataclass(frozen=True)
class Index:
    """What a packed file holds. version: of combo, when it was written."""

    format: int
    version: str
    splits: tuple[Entry, ...]


class PackedSplit:
    """One split in a packed file; reads what a `SplitStore` reads, and writes nothing.

    Raises ComboError for a file that is not there or holds no such split, StoreDamaged for one
    that was cut short or changed.
    """

    def __init__(self, store: Path, data_set: str, split: str) -> None:
        self.store, self.data_set, self.split = Path(store), data_set, split
        # One open file for all reads: another that takes its name does not come between.
        self._file = _open(self.store)
        entries = _read_index(self._file, self.store).splits
        found = [e for e in entries if (e.data_set, e.split) == (data_set, split)]
        if not found:
            there = ", ".join(f"{e.data_set}/{e.split}" for e in entries)
            raise ComboError(
                f"{self.store} holds no {data_set}/{split}, only {there}; "
                f"pack it too: {remedies.pack('FILE')}"
            )
        self._entry = found[0]
        self._places: dict[str, dict[str, tuple[int, np.ndarray]]] = {}

    def __repr__(self) -> str:
        return f"{self.data_set}/{self.split}"

    def plan(self) -> Plan:
        return self._entry.plan

    def variants(self, stage: str | None = None) -> list[Variant]:
        """The variants that were packed, one a stage."""
        found = [each.variant for each in self._entry.packed]
        return [variant for variant in found if stage in (None, variant.stage)]

    def finished(self, variant: Variant) -> Finished:
        """What closed a variant before it was packed."""
        return next(e.finished for e in self._entry.packed if e.variant == variant)

    def read_array(self, variant: Variant, name: str) -> np.ndarray:
        """A whole array, [clips, ...]; for small ones such as `valid`."""
        return self.reader(variant, name).read(np.arange(len(self._entry.plan.clips)))

    def reader(self, variant: Variant, name: str, finished: Finished | None = None) -> "PackedRows":
        """An array, for many random reads a second. Clips are always held against their checks."""
        del finished
        spec = next(spec for spec in variant.all_arrays if spec.name == name)
        if variant.key not in self._places:
            self._places[variant.key] = self._look_up(variant)
        what = f"{self}/{variant.key}/{name}"
        return PackedRows(self.store, what, self._file, spec, *self._places[variant.key][name])

    def _look_up(self, variant: Variant) -> "dict[str, tuple[int, np.ndarray]]":
        """Where the clips of each array of a variant begin in the file, and their checks."""
        import h5py

        found: dict[str, tuple[int, np.ndarray]] = {}
        digest = hashlib.sha256()
        try:
            with h5py.File(self._file, "r") as file:
                group: Any = file[self._entry.group(variant)]
                for spec in variant.all_arrays:
                    offset = group[spec.name].id.get_offset()
                    self._check(group[spec.name], spec, offset)
                    checks: np.ndarray = group[spec.name + CHECKS][:]
                    digest.update(checks.astype(CHECK_TYPE).tobytes())
                    found[spec.name] = (offset, checks)
                # An older combo wrote none.
                whole = group[CHECKS_DIGEST][:] if CHECKS_DIGEST in group else None
            if whole is not None and whole.tobytes() != digest.hexdigest().encode():
                raise ValueError("other checks than were packed")
        except Exception as error:  # HDF5 raises whatever damaged bytes lead it into
            raise damaged(self.store, f"{self}/{variant.key}", error) from error
        return found

    def _check(self, dataset: Any, spec: ArraySpec, offset: int | None) -> None:
        """Raises ValueError where what HDF5 says of an array cannot be."""
        clips = len(self._entry.plan.clips)
        if dataset.shape != (clips, *spec.shape) or dataset.dtype != np.dtype(spec.dtype):
            raise ValueError(f"{dataset.dtype}{dataset.shape} is not what was packed")
        size = os.fstat(self._file.fileno()).st_size
        if offset is None or offset + clips * spec_bytes(spec) > size:
            raise ValueError("clips that lie outside the file")


@dataclass(frozen=True)
class PackedRows:
    """Clips of one array. offset: of the first, in the file.  checks: [clips], CRC-32C of each."""

    path: Path
    name: str
    file: BinaryIO
    spec: ArraySpec
    offset: int
    checks: np.ndarray

    def ask(self, rows: np.ndarray) -> "Future[np.ndarray]":
        """Start reading: a future whose `result()` is [len(rows), ...]."""
        return _threads(os.getpid()).submit(self.read, rows)

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Clips, [len(rows), ...]. Raises StoreDamaged."""
        found = np.empty((len(rows), *self.spec.shape), self.spec.dtype)
        flat = found.reshape(len(rows), -1).view(np.uint8)
        for place, row in zip(flat, rows, strict=True):
            there = _read_into(self.file.fileno(), place.data, self.offset + place.size * int(row))
            if there != place.size or _crc32c(place) != self.checks[row]:
                raise damaged(self.path, f"{self.name} clip {row}", "other bytes than were packed")
        return found


UnitArrays = Mapping[str, Iterable[Mapping[str, np.ndarray]]]
"""Stage -> the arrays of each unit in order, padding cut off."""


def write(file: BinaryIO, version: str, splits: Sequence[tuple[Entry, UnitArrays]]) -> None:
    """Write a packed file into one that is open and empty.

    All of it is reserved before the first unit is asked for, where the file system can do that.
    Raises OSError: a disk that is full, a quota that is used up.
    """
    layout = MemoryFile()
    places = _lay_out(layout, Index(FORMAT, version, tuple(entry for entry, _ in splits)))
    _reserve(file.fileno(), layout.size)
    for offset, data in layout.pieces():
        _write_at(file.fileno(), data, offset)
    for entry, units in splits:
        for variant in (each.variant for each in entry.packed):
            _write_variant(file.fileno(), entry, variant, units[variant.stage], places)


def _lay_out(layout: MemoryFile, index: Index) -> dict[str, int]:
    """The whole HDF5 file but for what the arrays hold; path of each array -> offset."""
    import h5py

    kind = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    kind.set_layout(h5py.h5d.CONTIGUOUS)
    kind.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    kind.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    places: dict[str, int] = {}
    with h5py.File(layout, "w") as file:
        text = json.dumps(asdict(index)).encode()
        file.create_dataset(INDEX, data=np.frombuffer(text, np.uint8))
        file.attrs[INDEX_DIGEST] = hashlib.sha256(text).hexdigest()
        for entry in index.splits:
            clips = len(entry.plan.clips)
            for variant in (each.variant for each in entry.packed):
                group = entry.group(variant)
                datasets: list[tuple[str, tuple[int, ...], str]] = [
                    (f"{group}/{CHECKS_DIGEST}", (64,), "u1")
                ]
                for spec in variant.all_arrays:
                    path = f"{group}/{spec.name}"
                    datasets.append((path, (clips, *spec.shape), spec.dtype))
                    datasets.append((path + CHECKS, (clips,), CHECK_TYPE))
                for name, shape, dtype in datasets:
                    made: Any = file.create_dataset(name, shape, dtype, dcpl=kind)
                    places[name] = made.id.get_offset()
    return places


def _write_variant(
    file: int,
    entry: Entry,
    variant: Variant,
    units: Iterable[Mapping[str, np.ndarray]],
    places: Mapping[str, int],
) -> None:
    """The arrays of a variant at their places, and their checks."""
    checks: dict[str, list[int]] = {spec.name: [] for spec in variant.all_arrays}
    group = entry.group(variant)
    for arrays in units:
        for spec in variant.all_arrays:
            rows, done = np.ascontiguousarray(arrays[spec.name]), checks[spec.name]
            flat = rows.reshape(len(rows), -1).view(np.uint8)
            _write_at(
                file, flat.data, places[f"{group}/{spec.name}"] + len(done) * spec_bytes(spec)
            )
            done += [_crc32c(row) for row in flat]
    digest = hashlib.sha256()
    for name, done in checks.items():
        written = np.array(done, CHECK_TYPE)
        digest.update(written.tobytes())
        _write_at(file, written.data, places[f"{group}/{name}{CHECKS}"])
    whole = memoryview(digest.hexdigest().encode())
    _write_at(file, whole, places[f"{group}/{CHECKS_DIGEST}"])


def _reserve(file: int, size: int) -> None:
    """Make a file `size` bytes long, and take the room on the disk if the system can."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        os.ftruncate(file, size)
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        os.ftruncate(file, size)


def _write_at(file: int, data: memoryview, offset: int) -> None:
    rest = data.cast("B")
    while rest:
        count = os.pwrite(file, rest, offset)
        rest, offset = rest[count:], offset + count


def read_index(path: Path) -> Index:
    """What a packed file holds. Raises ComboError, StoreDamaged."""
    with _open(path) as file:
        return _read_index(file, path)


def splits_in_packed(path: Path, data_sets: Sequence[str] | None = None) -> list[PackedSplit]:
    """Every split that a packed file holds, in the order it was packed."""
    return [
        PackedSplit(path, entry.data_set, entry.split)
        for entry in read_index(path).splits
        if data_sets is None or entry.data_set in data_sets
    ]


def spec_bytes(spec: ArraySpec) -> int:
    """Bytes of one clip of an array."""
    return int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize


def damaged(path: Path, what: str, reason: object) -> StoreDamaged:
    line = " ".join(str(reason).split())[:200]
    return StoreDamaged(
        f"{path} is damaged ({what}: {line}); copy it here once more, "
        f"or pack it anew: {remedies.pack(path)}"
    )


def _open(path: Path) -> BinaryIO:
    try:
        return durable.open_regular(path)
    except (OSError, ValueError) as error:
        raise ComboError(
            f"{path}: {getattr(error, 'strerror', error)}; pack a store into a file: "
            f"{remedies.pack(path, overwrite=False)}"
        ) from None


def _read_index(file: BinaryIO, path: Path) -> Index:
    try:
        return _index_of(file, path)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged(path, INDEX, error) from error


def _index_of(file: BinaryIO, path: Path) -> Index:
    import h5py

    try:
        with h5py.File(file, "r") as opened:
            stored: Any = opened[INDEX]
            text = stored[:].tobytes()
            digest = opened.attrs[INDEX_DIGEST]
    except KeyError:
        raise ComboError(f"{path} is an HDF5 file, but none that combo pack has written") from None
    except Exception as error:
        raise damaged(path, "no HDF5 file, or cut short", error) from error
    if hashlib.sha256(text).hexdigest() != digest:
        raise damaged(path, INDEX, "other bytes than were packed")
    found = json.loads(text)
    if found["format"] != FORMAT:
        raise ComboError(
            f"{path} was packed by combo {found['version']} in a form that this one does not know; "
            f"pack it anew: {remedies.pack(path)}"
        )
    return _adapter().validate_python(found)


@cache
def _adapter() -> TypeAdapter[Index]:
    return TypeAdapter(Index)


def _crc32c(data: Any) -> int:
    import google_crc32c

    return google_crc32c.value(data)


def _read_into(descriptor: int, target: memoryview, offset: int) -> int:
    """Fill `target` from a place in a file; bytes read, fewer at its end."""
    done = 0
    while done < len(target):
        count = os.preadv(descriptor, [target[done:]], offset + done)
        if count <= 0:
            break
        done += count
    return done


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Threads of a process: those of its parent are not there after a fork."""
    del process
    return ThreadPoolExecutor(min(4, os.cpu_count() or 1), "packed")
