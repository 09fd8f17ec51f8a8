"""What fingerprints are made of: the version of a stage and every value that changes its bytes.

A store is bound to its fingerprints, so what is hashed may never change by itself. A setting that
comes after a version was frozen is marked `Later` where it is declared. It then counts only where
it differs from the value under which the stage computes what it computed before, and no store
becomes invalid because combo can do something new.
"""

import hashlib
import json
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints


@dataclass(frozen=True)
class Later:
    """Marks a setting that is younger than its record's version: `name: Annotated[int, Later(1)]`.

    neutral: the value under which everything is computed as before there was this setting.
    """

    neutral: Any


def recorded(record: Any) -> dict[str, Any]:
    """The values of a dataclass or a pydantic model that say what comes out, as plain values."""
    if is_dataclass(record):
        values = {field.name: getattr(record, field.name) for field in fields(record)}
    else:
        values = record.model_dump(mode="json")
    hints = get_type_hints(type(record), include_extras=True)
    return {
        name: value
        for name, value in values.items()
        if not any(
            isinstance(mark, Later) and value == mark.neutral
            for mark in getattr(hints[name], "__metadata__", ())
        )
    }


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of a plain value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
