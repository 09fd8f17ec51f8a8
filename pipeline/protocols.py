"""Scores in every protocol as people read them, of a network or of saved masks: one wording."""

from collections.abc import Iterator, Mapping
from typing import Any

Protocols = Mapping[str, tuple[float, float | None]]
"""Protocol -> M_J, M_F, 0..1; M_F None where the protocol has none."""

HEADER = ("protocol", "M_J", "M_F")


def rows(protocols: Protocols) -> Iterator[tuple[str, str, str]]:
    """In percent, under HEADER."""
    for name, (j, f) in protocols.items():
        yield name, f"{100 * j:.2f}", "" if f is None else f"{100 * f:.2f}"


def as_json(protocols: Protocols, false_positive_rate: float | None) -> dict[str, Any]:
    """Under the names that papers use; M_J and M_F are the benchmark's."""
    m_j, m_f = protocols["avsbench"]
    return {
        "M_J": round(m_j, 4),
        "M_F": round(m_f or 0.0, 4),
        "false_positive_rate": false_positive_rate,
        "protocols": {
            name: {"M_J": round(j, 4), "M_F": None if f is None else round(f, 4)}
            for name, (j, f) in protocols.items()
        },
    }
