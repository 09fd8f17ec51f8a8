"""What names of files say of their order: which comes first, and whether one is missing."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from ..errors import MediaError


def composed(text: str) -> str:
    """Unicode's composed form: a Mac writes accents apart from their letters."""
    return unicodedata.normalize("NFC", text)


def natural_order(path: Path) -> tuple[list[tuple[bool, int, str]], str]:
    """What to sort by, so that clip2 comes before clip10."""
    parts = re.findall(r"\d+|\D+", path.name)
    numbers = [(False, int(p), "") if p.isdecimal() else (True, 0, p.lower()) for p in parts]
    return numbers, path.name


def demand_even_numbers(images: Sequence[Path]) -> None:
    """Raise MediaError naming the image that is missing, doubled, or no part of the numbering.

    Names that differ in their numbers alone are judged together; the numbers may begin anywhere and
    go up by any step that stays the same.
    """
    alike: dict[tuple[str, ...], list[Path]] = {}
    for path in images:
        texts = re.split(r"\d+", composed(path.stem).casefold())
        alike.setdefault(tuple(texts), []).append(path)
    series = [paths for paths in alike.values() if len(paths) > 1]
    strays = [paths[0] for paths in alike.values() if len(paths) == 1]
    if len(series) == 1 and strays:
        raise MediaError(
            strays[0], f"not named as the other frames ({series[0][0].name}), rename or remove it"
        )
    for paths in series:
        _demand_even_series(paths)


def _demand_even_series(frames: Sequence[Path]) -> None:
    columns = list(zip(*(map(int, re.findall(r"\d+", path.stem)) for path in frames), strict=True))
    for number in range(1, len(frames)):
        if all(column[number - 1] == column[number] for column in columns):
            raise MediaError(
                frames[number], f"the same frame as {frames[number - 1].name}, remove one"
            )
    _demand_one_order(frames)
    varying = [place for place, column in enumerate(columns) if len(set(column)) > 1]
    for place in varying:
        steps = [after - before for before, after in pairwise(columns[place])]
        least = min(steps)
        # Of several numbers one counts frames and others may be times, which need not be even.
        if least < 1 or (len(varying) > 1 and least > 1) or least == max(steps):
            continue
        gap = next(number for number, step in enumerate(steps) if step > least)
        before, after = frames[gap], frames[gap + 1]
        parts = re.split(r"(\d+)", before.stem)
        parts[2 * place + 1] = str(columns[place][gap] + least).zfill(len(parts[2 * place + 1]))
        lacking = before.with_name("".join(parts) + before.suffix)
        raise MediaError(lacking, f"missing: after frame {before.name} comes {after.name}")


def _demand_one_order(frames: Sequence[Path]) -> None:
    """Raise MediaError for names that end with times of even steps, such as 0.25, 0.5, 0.75, which
    natural order, by the number after the point, would bring into another one."""
    told = [re.search(r"(?<![\d.])\d+\.\d+$", path.stem) for path in frames]
    times = [float(each[0]) for each in told if each]
    if len(times) < len(frames) or times == sorted(times):
        return
    steps = [after - before for before, after in pairwise(sorted(times))]
    if min(steps) > 0 and max(steps) - min(steps) < 1e-3 * max(steps):
        raise MediaError(
            frames[0], "frames named by times, write them with equally many digits, as 0.25, 0.50"
        )
