"""Networks side by side; those that differ in the seed alone are one row, mean and deviation."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..train.evaluate import Evaluation, by_category
from .candidates import Candidate

Found = Sequence[tuple[Candidate, Mapping[str, Evaluation]]]
"""Networks, and what each scores with each sound."""


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
    of: Sequence[tuple[Candidate, Evaluation]]

    @property
    def name(self) -> str:
        more = f" ({len(self.of)} seeds)" if len(self.of) > 1 else ""
        return f"{self.of[0][0].name}{more}"

    @property
    def clips(self) -> int:
        return len(self.of[0][1].clips)

    def protocol(self, name: str) -> tuple[Spread | None, Spread | None]:
        """M_J and M_F of a protocol; None where it has none."""
        scores = [evaluation.protocols[name] for _, evaluation in self.of]
        return Spread.of([j for j, _ in scores]), Spread.of([f for _, f in scores])

    @property
    def protocols(self) -> list[str]:
        return list(self.of[0][1].protocols)

    @property
    def false_positives(self) -> Spread | None:
        return Spread.of([each.false_positive_rate for _, each in self.of])

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


def rows(found: Found) -> list[Row]:
    """A row for each sound of each network, those that differ in the seed alone together."""
    alike: dict[tuple[str, str], list[tuple[Candidate, Evaluation]]] = {}
    for each, by_sound in found:
        for sound, evaluation in by_sound.items():
            alike.setdefault((each.like, sound), []).append((each, evaluation))
    return [Row(sound, of) for (_, sound), of in alike.items()]


HEADER = ("network", "sound", "clips", "M_J", "M_F", "false positives", "segmented", "unchanged")


def table(of: Sequence[Row]) -> Iterator[Sequence[object]]:
    """Under HEADER, in percent: M_J and M_F are the benchmark's; false positives are of clips with
    nothing that is heard in sight, segmented and unchanged of pixels."""
    for row in of:
        spreads = (*row.protocol("avsbench"), row.false_positives, row.segmented, row.unchanged)
        yield row.name, row.sound, row.clips, *(each and each.percent() for each in spreads)


def by_protocol(of: Sequence[Row]) -> Iterator[Sequence[str]]:
    """All protocols, networks and sounds side by side in each: under PROTOCOLS, in percent."""
    for name in dict.fromkeys(name for row in of for name in row.protocols):
        for number, row in enumerate(each for each in of if name in each.protocols):
            scores = [each.percent() if each else "" for each in row.protocol(name)]
            yield "" if number else name, row.name, row.sound, *scores


PROTOCOLS = ("protocol", "network", "sound", "M_J", "M_F")
CSV_HEADER = ("network", "seed", "sound", "of", "name", "M_J", "M_F", "count")


def csv_lines(found: Found) -> Iterator[Sequence[object]]:
    """Every clip, category and class of every network and sound, under CSV_HEADER.

    count: frames of a class, clips of a category, 1 for a clip.
    """
    for each, by_sound in found:
        for sound, evaluation in by_sound.items():
            start = (each.name, each.seed, sound)
            for name, (j, f) in evaluation.clips.items():
                yield *start, "clip", name, j, f, 1
            groups = by_category(evaluation, each.categories)
            for of, named in (("category", groups), ("class", evaluation.classes)):
                for name, scores in named.items():
                    yield *start, of, name, *scores
