"""Networks side by side; those that differ in the seed alone are one row, mean and deviation."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .candidates import Candidate
from .measure import Measured


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; no deviation of a single one."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Spread | None":
        """Of all values; None where any of them is missing."""
        there = [value for value in values if value is not None]
        if not there or len(there) < len(values):
            return None
        spread = statistics.stdev(there) if len(there) > 1 else None
        return cls(statistics.fmean(there), spread)

    def percent(self, digits: int = 2) -> str:
        """`54.30 ± 0.21`"""
        mean = f"{100 * self.mean:.{digits}f}"
        return mean if self.deviation is None else f"{mean} ± {100 * self.deviation:.{digits}f}"

    def as_json(self) -> dict[str, float | None]:
        deviation = None if self.deviation is None else round(self.deviation, 6)
        return {"mean": round(self.mean, 6), "deviation": deviation}


@dataclass(frozen=True)
class Row:
    """What some networks that differ in the seed alone score with one sound.

    of: the networks and their scores.
    """

    sound: str
    of: Sequence[tuple[Candidate, Measured]]

    @property
    def name(self) -> str:
        more = f" and {len(self.of) - 1} more seeds" if len(self.of) > 1 else ""
        return f"{self.of[0][0].name}{more}"

    @property
    def clips(self) -> int:
        return len(self.of[0][1].evaluation.clips)

    def protocol(self, name: str) -> tuple[Spread | None, Spread | None]:
        """M_J and M_F of a protocol; None where it has none."""
        scores = [measured.evaluation.protocols[name] for _, measured in self.of]
        return Spread.of([j for j, _ in scores]), Spread.of([f for _, f in scores])

    @property
    def protocols(self) -> list[str]:
        return list(self.of[0][1].evaluation.protocols)

    @property
    def false_positives(self) -> Spread | None:
        return Spread.of([each.evaluation.false_positive_rate for _, each in self.of])

    @property
    def segmented(self) -> Spread | None:
        return Spread.of([each.segmented for _, each in self.of])

    @property
    def unchanged(self) -> Spread | None:
        return Spread.of([each.unchanged for _, each in self.of])

    def as_json(self) -> dict[str, Any]:
        def told(spread: Spread | None) -> dict[str, float | None] | None:
            return spread and spread.as_json()

        j, f = self.protocol("avsbench")
        return {
            "runs": [each.name for each, _ in self.of],
            "seeds": [each.seed for each, _ in self.of],
            "sound": self.sound,
            "clips": self.clips,
            "M_J": told(j),
            "M_F": told(f),
            "false_positive_rate": told(self.false_positives),
            "segmented_pixels": told(self.segmented),
            "unchanged_pixels": told(self.unchanged),
            "protocols": {
                name: dict(zip(("M_J", "M_F"), map(told, self.protocol(name)), strict=True))
                for name in self.protocols
            },
        }


def rows(found: Sequence[tuple[Candidate, dict[str, Measured]]]) -> list[Row]:
    """A row for each sound of each network, those that differ in the seed alone together."""
    alike: dict[tuple[str, str], list[tuple[Candidate, Measured]]] = {}
    for each, by_sound in found:
        for sound, measured in by_sound.items():
            alike.setdefault((each.like, sound), []).append((each, measured))
    return [Row(sound, of) for (_, sound), of in alike.items()]


HEADER = ("network", "sound", "clips", "M_J", "M_F", "false positives", "segmented", "unchanged")


def table(of: Sequence[Row]) -> Iterator[Sequence[object]]:
    """Under HEADER, in percent: M_J and M_F are the benchmark's; false positives are of clips with
    nothing that is heard in sight, segmented and unchanged of pixels."""
    for row in of:
        spreads = (*row.protocol("avsbench"), row.false_positives, row.segmented, row.unchanged)
        yield row.name, row.sound, row.clips, *(each and each.percent() for each in spreads)


def by_protocol(of: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """All protocols side by side, `M_J / M_F`: the titles of the columns, and the lines."""
    titles = ["protocol", *(f"{row.name}, {row.sound}" for row in of)]
    names = dict.fromkeys(name for row in of for name in row.protocols)
    lines: list[list[str]] = []
    for name in names:
        cells = [row.protocol(name) if name in row.protocols else (None, None) for row in of]
        both = [" / ".join(each.percent() for each in cell if each) for cell in cells]
        lines.append([name, *both])
    return titles, lines


CSV_HEADER = ("network", "seed", "sound", "of", "name", "M_J", "M_F", "count")


def csv_lines(
    found: Sequence[tuple[Candidate, dict[str, Measured]]],
) -> Iterator[Sequence[object]]:
    """Every clip, category and class of every network and sound, under CSV_HEADER.

    count: frames of a class, clips of a category, 1 for a clip.
    """
    for each, by_sound in found:
        for sound, measured in by_sound.items():
            start = (each.name, each.seed, sound)
            for name, (j, f) in measured.evaluation.clips.items():
                yield *start, "clip", name, j, f, 1
            for of, groups in (("category", measured.categories), ("class", measured.classes)):
                for name, group in groups.items():
                    yield *start, of, name, group.m_j, group.m_f, group.count
