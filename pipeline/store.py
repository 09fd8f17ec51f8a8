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
bytes than level 1.
"""

import hashlib
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from . import durable, remedies
from .errors import ComboError
from .identity import Later, fingerprint, recorded

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


@dataclass(frozen=True)
class Plan:
    """What the first axis of a split means; written once, before any unit."""

    layout: str
    clips: tuple[str, ...]
    subsets: tuple[str, ...]
    frames_per_clip: int
    classes: tuple[str, ...]
    clips_per_unit: int
    seconds_per_frame: Annotated[float, Later(1.0)] = 1.0
    """The distance of frames that are taken from videos."""

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


def array_digest(array: np.ndarray) -> str:
    """SHA-256 (hex) of an array's bytes in C order, before any compression."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


class SplitStore:
    """One split of one data set in a store. Opening it touches nothing on the disk."""

    def __init__(self, store: Path, data_set: str, split: str) -> None:
        self.store, self.data_set, self.split = Path(store), data_set, split
        self.root = self.store / data_set / split
        self.tensors = self.root / "tensors.zarr"
        self._opened: dict[tuple[str, bool], Any] = {}

    def __repr__(self) -> str:
        return f"{self.data_set}/{self.split}"

    # -- the plan ----------------------------------------------------------------------------

    @property
    def plan_path(self) -> Path:
        return self.root / "plan.json"

    def read_plan(self) -> Plan | None:
        """The plan of this split, or None before the first `combo preprocess`."""
        from pydantic import TypeAdapter

        try:
            return TypeAdapter(Plan).validate_json(self.plan_path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise StoreDamaged(
                f"{self.plan_path} is damaged ({str(error).splitlines()[0]}); "
                f"run: {remedies.make(remedies.ALL, self.data_set, self.split)}: it is written "
                "anew, and the units that are done stay"
            ) from None

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
        durable.write_json(self.plan_path, asdict(plan))

    def forget(self) -> None:
        """Close what was opened of the arrays, which others have replaced."""
        self._opened.clear()

    # -- variants ----------------------------------------------------------------------------

    def records(self, variant: Variant) -> Path:
        """The folder for the completion records of a variant."""
        return self.root / "records" / variant.stage / variant.name

    def arrays(self, variant: Variant) -> Path:
        """The folder of a variant's arrays."""
        return self.tensors / variant.stage / variant.name

    def variants(self, stage: str | None = None) -> list[Variant]:
        """The variants that this split holds, by stage and name."""
        heads = sorted(self.tensors.glob("*/*/zarr.json"))
        found = [self.read_variant(f"{p.parent.parent.name}/{p.parent.name}") for p in heads]
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
        home = self.tensors / variant.key
        return [s for s in variant.all_arrays if not (home / s.name / "zarr.json").exists()]

    def _create(self, variant: Variant, plan: Plan, head: Path) -> None:
        import zarr

        store = _durable_store(self.tensors)
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
        durable.write_json(
            head, {"zarr_format": 3, "node_type": "group", "attributes": {"combo": described}}
        )

    def read_variant(self, key: str) -> Variant | None:
        """The variant of a key, or None where there is none. Raises StoreDamaged."""
        head = self.tensors / key / "zarr.json"
        try:
            return self._described(json.loads(head.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._damaged(head) from None

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
        return _plain(there.metadata.to_dict()) == _plain(wanted.metadata.to_dict())

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
        from pydantic import TypeAdapter

        try:
            text = self.finished_path(variant).read_bytes()
            return TypeAdapter(Finished).validate_json(text)
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
            data = arrays[spec.name]
            wanted = (plan.clips_per_unit, *spec.shape)
            if data.shape != wanted or data.dtype != np.dtype(spec.dtype):
                raise ValueError(
                    f"{variant.key}/{spec.name}: {data.dtype}{data.shape}, not {spec.dtype}{wanted}"
                )
            self._zarr(variant, spec.name, write=True)[start : start + len(data)] = data
        return {spec.name: array_digest(arrays[spec.name]) for spec in variant.all_arrays}

    def read_unit(self, variant: Variant, plan: Plan, unit: int) -> dict[str, np.ndarray]:
        """The arrays of one unit, [clips_per_unit, ...]. Raises StoreDamaged for a broken shard."""
        start = unit * plan.clips_per_unit
        found: dict[str, np.ndarray] = {}
        for spec in variant.all_arrays:
            try:
                part = self._zarr(variant, spec.name)[start : start + plan.clips_per_unit]
            except Exception as error:  # codecs raise whatever their library raises
                raise StoreDamaged(f"{variant.key}/{spec.name} unit {unit}: {error}") from error
            found[spec.name] = np.asarray(part)
        return found

    def shards(self, variant: Variant, unit: int) -> list[Path]:
        """The files that hold a unit (a shard that is all fill value has none)."""
        return [
            self.tensors
            / variant.key
            / spec.name
            / "c"
            / "/".join([str(unit), *"0" * len(spec.shape)])
            for spec in variant.all_arrays
        ]

    def read_array(self, variant: Variant, name: str) -> np.ndarray:
        """A whole array, [clips padded to whole shards, ...]; for small ones such as `valid`."""
        return np.asarray(self._zarr(variant, name)[:])

    def reader(self, variant: Variant, name: str) -> "Rows":
        """The array through tensorstore, for many random reads a second."""
        import tensorstore

        path = self.tensors / variant.key / name
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}
        return Rows(tensorstore.open(spec, open=True, read=True).result())

    def _zarr(self, variant: Variant, name: str, write: bool = False) -> Any:
        import zarr

        key = (f"{variant.key}/{name}", write)
        if key not in self._opened:
            store = _durable_store(self.tensors, blind=write)
            try:
                self._opened[key] = zarr.open_array(store, path=key[0], mode="r+")
            except ValueError:
                raise self._damaged(self.tensors / key[0] / "zarr.json") from None
        return self._opened[key]


@dataclass(frozen=True)
class Rows:
    """Clips of one array, read in tensorstore's own threads."""

    array: Any

    def ask(self, rows: np.ndarray) -> Any:
        """Start reading: a future whose `result()` is [len(rows), ...]."""
        return self.array[rows].read()


class StoreDamaged(ComboError):
    """What a record calls done cannot be read back."""


def _create_array(store: Any, name: str, spec: ArraySpec, plan: Plan) -> Any:
    """An empty array: one inner chunk a clip, one shard a unit."""
    import zarr
    from zarr.codecs import ZstdCodec

    return zarr.create_array(
        store,
        name=name,
        shape=(plan.units * plan.clips_per_unit, *spec.shape),
        shards=(plan.clips_per_unit, *spec.shape),
        chunks=(1, *spec.shape),
        dtype=spec.dtype,
        fill_value=spec.fill,
        compressors=ZstdCodec(level=-5, checksum=True),
    )


def _plain(described: Any) -> Any:
    """What describes an array, without the level of compression, which readers need not know."""
    if isinstance(described, Mapping):
        return {key: _plain(value) for key, value in described.items() if key != "level"}
    if isinstance(described, list | tuple):
        return [_plain(value) for value in described]
    return described


def splits_in(
    store: Path, data_sets: Sequence[str] | None = None, lost: bool = False
) -> list[SplitStore]:
    """Every split that a store holds, by data set and split. lost: those without a plan, too."""
    found = {path.parent for path in store.glob("*/*/plan.json")}
    found |= {path.parent for path in store.glob("*/*/records")} if lost else set()
    splits = [SplitStore(store, home.parent.name, home.name) for home in sorted(found)]
    return [s for s in splits if data_sets is None or s.data_set in data_sets]


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


@cache
def _durable_store_class() -> Any:
    from zarr.core.buffer import Buffer
    from zarr.storage import LocalStore

    class DurableStore(LocalStore):
        """zarr's own local store, but every file is written by `durable.write_bytes`.

        blind: shards that are there are not seen. They are only ever written whole, and zarr would
        first decode the old one, which may be the damaged one that is being repaired.
        """

        blind = False

        async def get(self, key: str, *args: Any, **kwargs: Any) -> Buffer | None:
            hidden = self.blind and "/c/" in key
            return None if hidden else await super().get(key, *args, **kwargs)

        def get_sync(self, key: str, **kwargs: Any) -> Buffer | None:
            hidden = self.blind and "/c/" in key
            return None if hidden else super().get_sync(key, **kwargs)

        async def set(self, key: str, value: Buffer) -> None:
            self.set_sync(key, value)

        def set_sync(self, key: str, value: Buffer) -> None:
            self._check_writable()
            durable.write_bytes(self.root / key, value.to_bytes())

    return DurableStore


def _durable_store(path: Path, blind: bool = False) -> Any:
    store = _durable_store_class()(path)
    store.blind = blind
    return store
