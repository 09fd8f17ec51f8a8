"""What a table asks for: rows of settings, a column for each preset, and what was published."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..errors import ComboError, readable, unknown
from ..train.presets import resolve

_PAPER = Path(__file__).with_name("tables.yaml")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class Row(_Entry):
    """One row. set: `key=value` of the settings that make it.  published: preset -> M_J, M_F in
    percent.  parameters: published, in millions."""

    set: tuple[str, ...] = ()
    published: dict[str, tuple[float, float]] = {}
    parameters: float | None = None


class Table(_Entry):
    """first: what the column of the rows' names is called."""

    title: str = "Ablation"
    first: str = "row"
    presets: tuple[str, ...] = Field(min_length=1)
    rows: dict[str, Row] = Field(min_length=1)

    @field_validator("rows", mode="before")
    @classmethod
    def _settings_alone(cls, value: Any) -> Any:
        """A row may be the list of its settings."""
        if not isinstance(value, dict):
            return value
        for name in value:
            if not isinstance(name, str | int | float) or isinstance(name, bool):
                raise ValueError(f"YAML reads a row's name as {name}; write it in quotes")
        return {k: {"set": v or []} if isinstance(v, list) or v is None else v
                for k, v in value.items()}  # fmt: skip


def read_table(name: str) -> Table:
    """A table of the paper by its name, or of a YAML file.

    Raises ComboError for one that is not there, or asks for settings that do not exist.
    """
    tables = _read(_PAPER)
    path = Path(name)
    if name in tables:
        value = tables[name]
    elif path.suffix in (".yaml", ".yml"):
        value = _read(path)
    else:
        raise unknown(f"no table {name!r}", name, tables, "give a YAML file, or one of")
    try:
        table = Table.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        text = readable(f"{name}: {where}: {first['msg']}")
        raise ComboError(text.replace("\n", " ")) from None
    for preset in table.presets:
        for row in table.rows.values():
            resolve(preset, row.set)
    return table


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ComboError(
            f"{path}: no such table; docs/reproduce.md says how to write one"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ComboError(f"{path}: cannot be read as YAML ({reason})") from None
