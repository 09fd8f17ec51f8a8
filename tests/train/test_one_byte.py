"""One byte changed anywhere in a store or a packed file is found, or changes nothing."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from combo.pipeline.errors import ComboError
from combo.pipeline.jobs.pack import pack, verify_packed
from combo.pipeline.jobs.plan import make_job
from combo.pipeline.jobs.run import Options, run_job, settle_plan
from combo.pipeline.jobs.verify import Finding
from combo.pipeline.manifest import load_manifest
from combo.pipeline.packed import PackedSplit, spec_bytes
from combo.pipeline.source import open_source
from combo.pipeline.store import STAGES, SplitStore

from .test_what_is_read import findings, opened_choice, read_all

SMALL = """\
store: store
clips_per_unit: 1
data_sets:
  s4: {{layout: avsbench-s4, root: {root}/AVSBench_object/Single-source}}
stages:
  frames: {{size: 32}}
  audio: {{encoder: mel-stats}}
  maskige: {{generator: felzenszwalb, at: stored}}
"""


@pytest.fixture(scope="module")
def small(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> SplitStore:
    """A finished split of two clips, a unit each."""
    path = tmp_path_factory.mktemp("small") / "data_manifest.yaml"
    path.write_text(SMALL.format(root=sample))
    for stage in STAGES:
        job = make_job(load_manifest(path), "s4", "val", stage)
        settle_plan(job, Options())
        assert run_job(job, Options()).finished is not None
    return job.split


def flips(places: Callable[[random.Random], tuple[Path, int]], count: int) -> Iterator[str]:
    """Changes one byte at a random place of a file, for as long as the caller looks at it."""
    dice = random.Random(16)
    for _ in range(count):
        path, place = places(dice)
        bits = dice.randrange(1, 256)
        for turn in (f"{path} byte {place} ^ {bits}", ""):
            with path.open("r+b", buffering=0) as file:
                file.seek(place)
                (byte,) = file.read(1)
                file.seek(place)
                file.write(bytes([byte ^ bits]))
            if turn:
                yield turn


def answer(look: Callable[[], object]) -> object:
    """What a look at a store gives; None where it ends with one line."""
    try:
        return look()
    except ComboError as error:
        return None if "\n" not in str(error) else str(error)


def test_one_byte_changed_anywhere_in_a_store_is_found_or_changes_nothing(
    small: SplitStore,
) -> None:
    def afresh() -> SplitStore:
        return SplitStore(small.store, small.data_set, small.split)

    def everything() -> list[bytes]:
        split = afresh()
        return read_all(split) + [
            split.read_array(variant, spec.name).tobytes()
            for variant in split.variants()
            for spec in variant.all_arrays
        ]

    before, read = everything(), read_all(afresh())
    assert findings(afresh()) == []
    files = [path for path in sorted(small.root.rglob("*")) if path.is_file()]
    sizes = {path: path.stat().st_size for path in files if path.stat().st_size}

    def anywhere(dice: random.Random) -> tuple[Path, int]:
        path = dice.choice(list(sizes))
        return path, dice.randrange(sizes[path])

    for change in flips(anywhere, 200):
        assert answer(lambda: read_all(afresh())) in (None, read), change
        if answer(lambda: findings(afresh())) == []:
            assert answer(everything) == before, change


def test_one_byte_changed_anywhere_in_a_packed_file_is_found_or_changes_nothing(
    small: SplitStore, tmp_path: Path
) -> None:
    file = tmp_path / "small.h5"
    pack(file, [(small, opened_choice(small))], "test")

    def found() -> list[Finding]:
        return [each for each in verify_packed(file) if isinstance(each, Finding)]

    split = PackedSplit(file, "s4", "val")
    arrays = [split.reader(v, s.name) for v in split.variants() for s in v.all_arrays]
    within = [range(a.offset, a.offset + 2 * spec_bytes(a.spec)) for a in arrays]
    others = [
        place for place in range(file.stat().st_size) if not any(place in each for each in within)
    ]

    def anywhere(dice: random.Random) -> tuple[Path, int]:
        """Half of the places in what is no clip: there are few."""
        return file, dice.choice(others if dice.random() < 0.5 else range(file.stat().st_size))

    read = read_all(open_source(file, "s4", "val"))
    assert found() == []
    for change in flips(anywhere, 100):
        now = answer(lambda: read_all(open_source(file, "s4", "val")))
        assert now in (None, read), change
        if answer(found) == []:
            assert now == read, change
