"""The commands that mend things, as errors and `combo doctor` name them: each worded once.

A command that was given another manifest, encoder or generator advises commands that take it too;
without it they would do something else, and the same advice would follow.
"""

import shlex
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType

ALL = "all"

_NOTHING: Mapping[str, object] = MappingProxyType({})
_given: ContextVar[Mapping[str, object]] = ContextVar("given", default=_NOTHING)
"""Options of the command at hand."""


@contextmanager
def given(options: Mapping[str, object]) -> Generator[None]:
    """Within: what is advised takes these options too, where it knows them. Name -> value."""
    before = _given.set(options)
    try:
        yield
    finally:
        _given.reset(before)


def _command(verb: str, data_set: str, split: str, *options: str) -> str:
    words = [each for each in (("--data", data_set), ("--split", split)) if each[1]]
    words += [(f"--{name}", str(_given.get()[name])) for name in options if _given.get().get(name)]
    return shlex.join(["combo", *verb.split(), *(word for pair in words for word in pair)])


def make(stage: str, data_set: str = "", split: str = "", imported: bool = False) -> str:
    """What makes a stage of a split, or of all of a data set. stage: one, or `ALL`."""
    if imported:
        return _command(f"import-{stage} DIR", data_set, split, "manifest")
    makers = {"audio": ["encoder"], "maskige": ["generator"], ALL: ["encoder", "generator"]}
    own = makers.get(stage, [])
    return _command(f"preprocess {stage}", data_set, split, *own, "manifest")


def make_again(stage: str, data_set: str) -> str:
    return _command(f"preprocess {stage} --overwrite", data_set, "", "manifest")


def repair(data_set: str, split: str) -> str:
    return _command("verify --repair", data_set, split, "manifest")


def show(data_set: str = "", split: str = "") -> str:
    return _command("status", data_set, split, "manifest")


def pack(path: str | Path, overwrite: bool = True) -> str:
    """What packs a store into a file."""
    return f"combo pack STORE --to {path}{' --overwrite' if overwrite else ''}"


def resume(run: str | Path) -> str:
    return shlex.join(["combo", "train", "--resume", str(run)])


def fetch(weights: str) -> str:
    return f"combo weights fetch {weights}"


def add(weights: str) -> str:
    return f"combo weights add {weights} FILE"
