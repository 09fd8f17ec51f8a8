"""The store: one Zarr v3 group for a (data set, split), and the only place that knows its paths.

    STORE/<data set>/<split>/plan.json                   the clips, in the order of the first axis
    STORE/<data set>/<split>/tensors.zarr/<stage>/<variant>/<array>
    STORE/<data set>/<split>/records/<stage>/<variant>/  what is done: read and written by jobs/
    STORE/jobs/<submission>/                            scripts and logs of cluster jobs

The first axis of every array is the clip. One inner chunk is one clip and one shard is one unit of
work, so whoever computes a unit writes whole files that nobody else writes. The axis is padded to
whole shards; the array `valid` of each variant says which clips count. A variant is a stage with
one fingerprint: other settings or other weights make another variant beside it, never a mix.

Chunks are zstd with a checksum: without one, a flipped byte is read back as another picture. A fast
level, since training waits for the decoder: frames are read in half the time, for an eighth more
bytes than level 1. Chunks of fill value alone are written too, so that a file that is not there is
a file that was lost. All reading goes through tensorstore, so that what is verified is what
training reads.
"""

import hashlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from . import durable, remedies
from .clip_checks import parse_checks
from .errors import ComboError
from .identity import Later, fingerprint, recorded
from .rows import Checked, Rows
from .zarr_arrays import create_array, durable_store, ends_in_checksums, read_alike

STAGES = ("frames", "audio", "maskige")

VALID = "valid"
"""The array every variant has: one byte a clip, 1 where the clip counts."""

CREATE_ATTEMPTS = 50
"""How often the arrays of a variant are looked at while others make them too."""

UNASKED = ("tree", "note", "label_rule")
"""Settings that no manifest names: where an import came from, and what the data set's folder says
of its labels. Whoever asks for a variant need not name them."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of a variant: name, one clip's shape and type, and what unwritten places hold."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    fill: int = 0


@dataclass(frozen=True)
class Variant:
    """A stage with fixed settings and weights, and the arrays that it owns in a split."""

    stage: str
    name: str
    fingerprint: str
    settings: Mapping[str, Any]
    weights: Mapping[str, str]
    arrays: tuple[ArraySpec, ...]
    attributes: Mapping[str, Any]

    @property
    def key(self) -> str:
        """`stage/name`, as shown to people."""
        return f"{self.stage}/{self.name}"

    def is_what(self, wanted: Mapping[str, Any]) -> bool:
        """Whether these are the wanted settings; those `UNASKED` count only if wanted."""
        mine = {k: v for k, v in self.settings.items() if k in wanted or k not in UNASKED}
        return mine == dict(wanted)

    @property
    def all_arrays(self) -> tuple[ArraySpec, ...]:
        return (*self.arrays, ArraySpec(VALID, (), "uint8"))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that a reader goes by: settings, arrays, attributes such as a palette."""
        return fingerprint(asdict(self))


@dataclass(frozen=True)
class Plan:
    """What the first axis of a split means; written once, before any unit. seconds_per_frame: of
    videos.  cut: longer clips are cut into parts of so many frames; 0: they are not."""

    layout: str
    clips: tuple[str, ...]
    subsets: tuple[str, ...]
    frames_per_clip: int
    classes: tuple[str, ...]
    clips_per_unit: int
    seconds_per_frame: Annotated[float, Later(1.0)] = 1.0
    cut: Annotated[int, Later(0)] = 0

    def __post_init__(self) -> None:
        if min(self.clips_per_unit, self.frames_per_clip) < 1 or not self.seconds_per_frame > 0:
            raise ValueError("units and clips of a plan are not empty")

    @property
    def units(self) -> int:
        return -(-len(self.clips) // self.clips_per_unit)

    def members(self, unit: int) -> range:
        """Indices of the clips of a unit; the last unit may have fewer."""
        start = unit * self.clips_per_unit
        return range(start, min(start + self.clips_per_unit, len(self.clips)))

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(recorded(self))


@dataclass(frozen=True)
class Finished:
    """The manifest of a finished variant of a split; training wants it."""

    plan: str
    fingerprint: str
    clips: int
    failed: Mapping[str, str]
    """Clip name -> reason."""
    outputs: str
    """SHA-256 over the outputs of all units."""
    description: str = ""
    """The variant's `digest`. Not there, nor are checks, where an older combo wrote a unit."""
    checks: Mapping[str, str] = field(default_factory=dict[str, str])
    """Array -> the check of each clip (see `clip_checks`)."""


def array_digest(array: np.ndarray) -> str:
    """SHA-256 (hex) of an array's bytes in C order, before any compression."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


class SplitStore:
    """One split of one data set in a store. Opening it touches nothing on the disk."""

    def __init__(self, store: Path, data_set: str, split: str, named: str = "") -> None:
        """named: what its plan is of, where its folder has another name. Raises ComboError."""
        self.store, self.data_set, self.split = Path(store), data_set, split
        self._named = named or f"{data_set}/{split}"
        durable.demand_utf8(self.store)
        self.root = self.store / data_set / split
        self.tensors = self.root / "tensors.zarr"
        self._opened: dict[tuple[str, bool], Any] = {}
        self._writables: dict[str, Any] = {}

    def __repr__(self) -> str:
        return self._named

    def __reduce__(self) -> tuple[type["SplitStore"], tuple[Path, str, str, str]]:
        # Another process opens its own arrays, if it needs any.
        return SplitStore, (self.store, self.data_set, self.split, self._named)

    # -- the plan ----------------------------------------------------------------------------

    @property
    def plan_path(self) -> Path:
        return self.root / "plan.json"

    def read_plan(self) -> Plan | None:
        """The plan of this split, or None before the first `combo preprocess`.

        Raises StoreDamaged, and ComboError for another split's folder under this one's name.
        """
        try:
            value = durable.read_json(self.plan_path)
            plan, of = _adapter(Plan).validate_python(value), value.get("of", str(self))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise StoreDamaged(
                f"{self.plan_path} is damaged ({str(error).splitlines()[0]}); "
                f"run: {remedies.make(remedies.ALL, self.data_set, self.split)}: it is written "
                "anew, and the units that are done stay"
            ) from None
        if of != str(self):
            raise ComboError(
                f"{self.root} holds {of}, by its plan.json, and not {self}; give the folder its "
                f'name back, or, where {self} is its new name, write that as "of" in plan.json'
            )
        return plan

    def plan(self) -> Plan:
        """The plan, which must be there."""
        plan = self.read_plan()
        if plan is None:
            raise ComboError(
                f"nothing is preprocessed for {self} in {self.store}; run: "
                f"{remedies.make(remedies.ALL, self.data_set, self.split)}"
            )
        return plan

    def write_plan(self, plan: Plan) -> None:
        durable.write_json(self.plan_path, {**asdict(plan), "of": str(self)})

    def forget(self) -> None:
        """Close what was opened of the arrays, which others have replaced."""
        self._opened.clear()
        self._writables.clear()

    # -- variants ----------------------------------------------------------------------------

    def records(self, variant: Variant) -> Path:
        """The folder for the completion records of a variant."""
        return self.root / "records" / variant.stage / variant.name

    def arrays(self, variant: Variant) -> Path:
        """The folder of a variant's arrays."""
        return self.tensors / variant.stage / variant.name

    def variants(self, stage: str | None = None) -> list[Variant]:
        """The variants that this split holds, by stage and name. Raises PermissionError."""
        homes = [v for of_stage in durable.listed(self.tensors) for v in durable.listed(of_stage)]
        found = [self.read_variant(f"{home.parent.name}/{home.name}") for home in homes]
        return [v for v in found if v is not None and stage in (None, v.stage)]

    def create(self, variant: Variant, plan: Plan) -> None:
        """Make the groups and empty arrays of a variant; nothing happens when they are there.

        Every task of a job array may call this at once: each file is replaced as a whole, by the
        same bytes, and whoever finds that another was faster looks again.
        """
        from zarr.errors import ContainsArrayError, ContainsGroupError

        head = self.tensors / variant.stage / variant.name / "zarr.json"
        for _ in range(CREATE_ATTEMPTS):
            if self.read_variant(variant.key) == variant and not self._missing(variant):
                return
            try:
                self._create(variant, plan, head)
            except (ContainsArrayError, ContainsGroupError):
                time.sleep(0.1 * random.random())
        raise ComboError(
            f"{self.tensors} is being made by others all the time; run the same command again"
        )

    def _missing(self, variant: Variant) -> list[ArraySpec]:
        at = self.arrays(variant)
        return [s for s in variant.all_arrays if not (at / s.name / "zarr.json").exists()]

    def _create(self, variant: Variant, plan: Plan, head: Path) -> None:
        import zarr

        store = durable_store(self.tensors)
        zarr.open_group(store, mode="a")
        for spec in self._missing(variant):
            _create_array(store, f"{variant.key}/{spec.name}", spec, plan)
        described = {
            "stage": variant.stage,
            "variant": variant.name,
            "fingerprint": variant.fingerprint,
            "settings": dict(variant.settings),
            "weights": dict(variant.weights),
            "arrays": [asdict(spec) for spec in variant.arrays],
            **variant.attributes,
        }
        # Last: a variant that can be listed has all its arrays.
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"combo": described}}
        durable.write_json(head, group)

    def read_variant(self, key: str) -> Variant | None:
        """The variant of a key, or None where there is none. Raises StoreDamaged."""
        head = self.tensors / key / "zarr.json"
        try:
            found = self._described(durable.read_json(head))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, LookupError, TypeError, AttributeError):
            raise self._damaged(head) from None
        if found is not None and found.key != key:
            raise self._damaged(head)
        return found

    def _described(self, group: Mapping[str, Any]) -> Variant | None:
        attributes = group.get("attributes", {}).get("combo")
        if attributes is None:
            return None
        known = {"stage", "variant", "fingerprint", "settings", "weights", "arrays"}
        return Variant(
            stage=attributes["stage"],
            name=attributes["variant"],
            fingerprint=attributes["fingerprint"],
            settings=attributes["settings"],
            weights=attributes["weights"],
            arrays=tuple(
                ArraySpec(a["name"], tuple(a["shape"]), a["dtype"], a["fill"])
                for a in attributes["arrays"]
            ),
            attributes={k: v for k, v in attributes.items() if k not in known},
        )

    def is_described(self, variant: Variant, spec: ArraySpec, plan: Plan) -> bool:
        """Whether what describes an array is what `create` writes, at any level of compression."""
        import zarr
        from zarr.storage import MemoryStore

        wanted = _create_array(MemoryStore(), spec.name, spec, plan)
        try:
            there = zarr.open_array(self.tensors / variant.key / spec.name, mode="r")
        except Exception:  # whatever damaged bytes lead the library into
            return False
        return read_alike(there, wanted)

    def _damaged(self, file: Path) -> "StoreDamaged":
        return StoreDamaged(
            f"{file} is damaged; run: {remedies.repair(self.data_set, self.split)}: it is written "
            "anew, and the units that are done stay"
        )

    # -- the manifest of a finished variant ----------------------------------------------------

    def finished_path(self, variant: Variant) -> Path:
        return self.records(variant) / "finished.json"

    def finished(self, variant: Variant) -> Finished | None:
        """What closed a variant, or None where nothing did, or nothing that can be read."""
        try:
            return _adapter(Finished).validate_json(durable.read_bytes(self.finished_path(variant)))
        except (FileNotFoundError, ValueError):
            return None

    # -- units -------------------------------------------------------------------------------

    def write_unit(
        self, variant: Variant, plan: Plan, unit: int, arrays: Mapping[str, np.ndarray]
    ) -> dict[str, str]:
        """Write the shards of one unit, each as a whole, and return the digest of each array.

        arrays: for every array of the variant, and `valid`, [clips_per_unit, ...].
        """
        start = unit * plan.clips_per_unit
        for spec in variant.all_arrays:
            data, wanted = arrays[spec.name], (plan.clips_per_unit, *spec.shape)
            if data.shape != wanted or data.dtype != np.dtype(spec.dtype):
                raise ValueError(
                    f"{variant.key}/{spec.name}: {data.dtype}{data.shape}, not {spec.dtype}{wanted}"
                )
            self._writable(variant, spec)[start : start + len(data)] = data
        return {spec.name: array_digest(arrays[spec.name]) for spec in variant.all_arrays}

    def _writable(self, variant: Variant, spec: ArraySpec) -> Any:
        import zarr

        path = f"{variant.key}/{spec.name}"
        if path not in self._writables:
            try:
                found = zarr.open_array(
                    durable_store(self.tensors, blind=True), path=path, mode="r+"
                )
            except ValueError:
                raise self._damaged(self.tensors / path / "zarr.json") from None
            self._writables[path] = found.with_config({"write_empty_chunks": True})
        return self._writables[path]

    def read_unit(self, variant: Variant, plan: Plan, unit: int) -> dict[str, np.ndarray]:
        """The arrays of one unit, [clips_per_unit, ...], as they are there, whatever was written.

        Raises StoreDamaged for a broken shard; one that is missing is fill value.
        """
        start, found = unit * plan.clips_per_unit, dict[str, np.ndarray]()
        for spec in variant.all_arrays:
            array = self._array(variant, spec)
            if array.shape[0] != plan.units * plan.clips_per_unit:
                raise self._damaged(self.arrays(variant) / spec.name / "zarr.json")
            try:
                if self.shard(variant, spec, unit).is_fifo():
                    raise ValueError("a pipe, no regular file")  # which waits for ever
                found[spec.name] = array[start : start + plan.clips_per_unit].read().result()
            except Exception as error:  # codecs raise whatever their library raises
                raise StoreDamaged(f"{variant.key}/{spec.name} unit {unit}: {error}") from error
        return found

    def shard(self, variant: Variant, spec: ArraySpec, unit: int) -> Path:
        """The file of a unit of an array; an older combo wrote none that would be all fill."""
        rest = "/0" * len(spec.shape)
        return Path(f"{self.tensors}/{variant.key}/{spec.name}/c/{unit}{rest}")

    def shards(self, variant: Variant, unit: int) -> list[Path]:
        """The files that hold a unit."""
        return [self.shard(variant, spec, unit) for spec in variant.all_arrays]

    def read_array(self, variant: Variant, name: str) -> np.ndarray:
        """A whole array, [clips padded to whole shards, ...], as it is there."""
        spec = next(spec for spec in variant.all_arrays if spec.name == name)
        return np.asarray(self._array(variant, spec).read().result())

    def reader(self, variant: Variant, name: str, finished: Finished | None = None) -> Rows:
        """An array, for many random reads a second.

        finished: what closed the variant, against which clips are held. Without it, or where an
        older combo wrote it, a missing file is read as fill value.
        """
        spec = next(spec for spec in variant.all_arrays if spec.name == name)
        repair, filled = remedies.repair(self.data_set, self.split), self._array(variant, spec)
        if finished is None or not finished.description:
            return Rows(filled, filled, None, self._damaged_clip(variant, spec))
        try:
            checks = parse_checks(finished.checks.get(name, ""), finished.clips)
        except ValueError as error:
            file = self.finished_path(variant)
            raise StoreDamaged(f"{file} is damaged ({name}: {error}); run: {repair}") from None
        whole = self._array(variant, spec, fill=False)
        per_unit, codecs = whole.chunk_layout.write_chunk.shape[0], whole.codec.to_json()["codecs"]
        shard = partial(self.shard, variant, spec) if ends_in_checksums(codecs) else None
        checked = Checked(checks, per_unit, shard)
        return Rows(whole, filled, checked, self._damaged_clip(variant, spec))

    def _damaged_clip(
        self, variant: Variant, spec: ArraySpec
    ) -> Callable[[int, str], "StoreDamaged"]:
        """The error for a clip, given its row and what is wrong with it."""

        def damaged(row: int, reason: str) -> StoreDamaged:
            plan = self.plan()
            shard = self.shard(variant, spec, row // plan.clips_per_unit)
            return StoreDamaged(
                f"{shard}: clip {plan.clips[row]} {reason}; "
                f"run: {remedies.repair(self.data_set, self.split)}"
            )

        return damaged

    def _array(self, variant: Variant, spec: ArraySpec, fill: bool = True) -> Any:
        """An array, opened once. fill: missing chunks are fill value; else they are an error."""
        import tensorstore

        key = (str(path := self.arrays(variant) / spec.name), fill)
        if key not in self._opened:
            asked = {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": f"{path.resolve()}/"},
                "fill_missing_data_reads": fill,
            }
            try:
                found = tensorstore.open(asked, open=True, read=True).result()
            except Exception:
                raise self._damaged(path / "zarr.json") from None
            if found.dtype.numpy_dtype != np.dtype(spec.dtype) or found.shape[1:] != spec.shape:
                raise self._damaged(path / "zarr.json")
            self._opened[key] = found
        return self._opened[key]


class StoreDamaged(ComboError):
    """What a record calls done cannot be read back."""


def _create_array(store: Any, name: str, spec: ArraySpec, plan: Plan) -> Any:
    return create_array(
        store, name, spec.shape, spec.dtype, spec.fill, plan.units, plan.clips_per_unit
    )


@cache
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def splits_in(
    store: Path, data_sets: Sequence[str] | None = None, lost: bool = False
) -> list[SplitStore]:
    """Every split that a store holds, by data set and split. lost: those without a plan, too.

    Raises PermissionError for a folder that may not be looked into.
    """
    folders = [
        split
        for data_set in durable.listed(store)
        if data_sets is None or data_set.name in data_sets
        for split in durable.listed(data_set)
    ]
    splits = [SplitStore(store, folder.parent.name, folder.name) for folder in folders]
    return [s for s in splits if s.plan_path.exists() or (lost and (s.root / "records").exists())]


def new_jobs_folder(store: Path, name: str) -> Path:
    """A new folder for the scripts and logs of a submission: STORE/jobs/<name>-001, -002, ..."""
    for number in range(1, 100_000):
        folder = store / "jobs" / f"{name}-{number:03d}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise ComboError(f"{store / 'jobs'} is full; remove old folders there")
