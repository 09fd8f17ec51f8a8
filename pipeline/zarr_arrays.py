"""How an array of a split is made and written: what the Zarr library is told.

One inner chunk is one clip and one shard is one unit. Chunks are zstd with a checksum, and every
file is written whole or not at all.
"""

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from . import durable


def create_array(
    store: Any, name: str, clip: tuple[int, ...], dtype: str, fill: int, units: int, per_unit: int
) -> Any:
    """An empty array. clip: the shape of one.  units: how many, of `per_unit` clips each."""
    import zarr
    from zarr.codecs import ZstdCodec

    return zarr.create_array(
        store,
        name=name,
        shape=(units * per_unit, *clip),
        shards=(per_unit, *clip),
        chunks=(1, *clip),
        dtype=dtype,
        fill_value=fill,
        compressors=ZstdCodec(level=-5, checksum=True),
    )


def read_alike(one: Any, other: Any) -> bool:
    """Whether two arrays are described alike, but for the level of compression, which readers need
    not know."""
    return _plain(one.metadata.to_dict()) == _plain(other.metadata.to_dict())


def _plain(described: Any) -> Any:
    if isinstance(described, Mapping):
        return {key: _plain(value) for key, value in described.items() if key != "level"}
    if isinstance(described, list | tuple):
        return [_plain(value) for value in described]
    return described


def ends_in_checksums(codecs: Any) -> bool:
    """Whether chunks are a clip's bytes as they are in memory, compressed by zstd with checksum."""
    match codecs:
        case [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "codecs": [
                        {"name": "bytes", **order},
                        {"name": "zstd", "configuration": {"checksum": True}},
                    ],
                    "index_location": "end",
                },
            }
        ]:
            return order in ({}, {"configuration": {"endian": sys.byteorder}})
        case _:
            return False


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


def durable_store(path: Path, blind: bool = False) -> Any:
    """zarr's store of a folder, see `DurableStore`."""
    store = _durable_store_class()(path)
    store.blind = blind
    return store
