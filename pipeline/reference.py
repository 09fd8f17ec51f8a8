"""Every setting there is, as a page: docs/settings.md, made from the records in the code.

A setting's meaning is the docstring below it.
"""

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ByteSize
from pydantic_core import PydanticUndefined

_BAR = "\\|"


@dataclass(frozen=True)
class Setting:
    """One key. default: as YAML writes it; "" of one that must be given."""

    key: str
    kind: str
    default: str
    meaning: str


def of_manifest() -> list[Setting]:
    """The keys of data_manifest.yaml."""
    from .manifest import Manifest

    return [s for s in _settings(Manifest, "") if s.key not in ("folder", "file")]


def of_training() -> list[Setting]:
    """The keys of `--set` that every network has."""
    from .train.presets import TrainSettings

    return [s for s in _settings(TrainSettings, "") if s.key != "preset"]


def of_network(kind: str) -> list[Setting]:
    """The keys of `--set` that belong to a network."""
    from ..model.networks import NETWORKS

    return list(_settings(NETWORKS[kind].settings, ""))


def page() -> str:
    """docs/settings.md."""
    from ..model.networks import NETWORKS

    parts = [
        "# Settings",
        "Made from the code by `combo settings`. `stages.audio` is `audio:` below `stages:`.",
        "## The manifest, data_manifest.yaml",
        _table(of_manifest()),
        "## Training: combo train --set key=value",
        "Defaults are those of S4; `combo presets` shows what a preset has instead.",
        _table(of_training()),
    ]
    for name in NETWORKS:
        parts += [f"## The network {name}: --set key=value", _table(of_network(name))]
    return "\n\n".join(parts) + "\n"


def _table(settings: list[Setting]) -> str:
    rows = [("key", "type", "default", "meaning"), ("---",) * 4]
    rows += [
        (f"`{s.key}`", s.kind, f"`{s.default}`" if s.default else "", s.meaning) for s in settings
    ]
    return "\n".join(f"| {' | '.join(cell.replace('|', _BAR) for cell in row)} |" for row in rows)


def _settings(record: type[Any], prefix: str) -> Iterator[Setting]:
    meanings, hints = _meanings(record), get_type_hints(record)
    for name, default in _defaults(record):
        key, hint = f"{prefix}{name}", hints[name]
        inner = hint
        if get_origin(hint) is dict:
            key, inner = f"{key}.NAME", get_args(hint)[1]
        if _is_record(inner):
            yield from _settings(inner, f"{key}.")
        else:
            yield Setting(f"{prefix}{name}", _kind(hint), default, meanings.get(name, ""))


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and (
        dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel)
    )


def _defaults(record: type[Any]) -> Iterator[tuple[str, str]]:
    if issubclass(record, BaseModel):
        for name, field in record.model_fields.items():
            value = field.get_default(call_default_factory=True)
            yield name, "" if value is PydanticUndefined else _written(value)
        return
    for field in dataclasses.fields(record):
        missing = field.default is dataclasses.MISSING
        yield field.name, "" if missing else _written(field.default)


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, ByteSize):
        return value.human_readable()
    if isinstance(value, tuple | list):
        return f"[{', '.join(_written(each) for each in value)}]"
    return "{}" if value == {} else str(value)


def _kind(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if each is type(None) else _kind(each) for each in inner)
    if origin is tuple:
        several = [each for each in inner if each is not Ellipsis]
        many = "list" if Ellipsis in inner else f"{len(several)} numbers"
        return f"{many} of {_kind(several[0])}" if many == "list" else many
    if origin is dict:
        return f"name: {_kind(inner[1])}"
    names = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path"}
    return "bytes, as 8GB" if hint is ByteSize else names[hint]


def _meanings(record: type[Any]) -> dict[str, str]:
    """Setting -> its docstring, in one line; inherited ones too."""
    found: dict[str, str] = {}
    for kind in reversed(record.__mro__):
        if kind.__module__.partition(".")[0] != __name__.partition(".")[0]:
            continue
        try:
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        except OSError:  # made by pydantic, and has no fields of its own to explain
            continue
        name = ""
        for node in getattr(body, "body", ()):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                name = node.target.id
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name:
                found[name] = " ".join(str(node.value.value).split())
    return found
