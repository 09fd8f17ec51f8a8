"""The page: one file that opens from a disk, with all its pictures, sounds and scripts within.

It may load nothing: its own policy forbids every request, and any script but the one written here,
so that neither a browser nor a clip's name can make it do anything else.
"""

import base64
import hashlib
import math
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from .. import durable
from ..console import duration
from ..painting import COLOURS
from . import charts, pictures
from .clips import Panel
from .of_run import RunLooks
from .of_store import SplitLooks, StoreLooks, settings_of
from .sheet import MADE_BY

_TIMES = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))

FAILURES_SHOWN = 1000
"""Failed clips that a page lists; all are counted, and `combo status --json` names them."""


def write_report(
    path: Path, runs: Sequence[RunLooks], stores: Sequence[StoreLooks], now: float | None = None
) -> None:
    """Write the page. now: seconds since 1970. Raises ComboError where it cannot be written."""
    page = render(runs, stores, time.time() if now is None else now)
    with durable.writing(path, "give the command again", "give another file with --out"):
        durable.write_bytes(path, page.encode("utf-8", "backslashreplace"))


def render(runs: Sequence[RunLooks], stores: Sequence[StoreLooks], now: float) -> str:
    """The page's HTML."""
    script, style = _text("report.js"), _text("report.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    names = [*(run.name for run in runs), *(store.name for store in stores)]
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=", ".join(names) or "combo",
            made_by=MADE_BY,
            made_on=time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(now)),
            version=metadata.version("combo-avs"),
            python=platform.python_version(),
            script=Markup(script),
            style=Markup(style),
            script_digest=f"sha256-{digest}",
            runs=runs,
            stores=stores,
            differences=differences([run.settings for run in runs]),
            failures_shown=FAILURES_SHOWN,
        )
    )


def differences(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The settings in which runs differ: name -> its value in each run, "" where it has none."""
    flat = [dict(_flat(each)) for each in settings]
    names = dict.fromkeys(name for each in flat for name in each)
    found = {name: [each.get(name, "") for each in flat] for name in names}
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, str(value)


@cache
def _environment() -> Any:
    made: Any = Environment(
        loader=PackageLoader(__package__ or "", "templates"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "percent": _percent,
        "size": _size,
        "duration": duration,
        "strip": _strip,
        "colour": _colour,
    }
    made.globals |= {
        "charts": charts,
        "sound": pictures.sound,
        "training_curves": _training_curves,
        "compared_curves": _compared_curves,
        "progress": _progress,
        "confusion": _confusion,
        "settings_of": settings_of,
        "zip": zip,
    }
    return made


def _text(name: str) -> str:
    return (resources.files(__package__ or "") / "templates" / name).read_text("utf-8")


# --- what templates ask for -------------------------------------------------------------------


def _percent(value: float | None, digits: int = 1) -> str:
    return "" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.3g} TB"


def _colour(number: int) -> str:
    return "#" + COLOURS[number].tobytes().hex()


def _strip(panel: Panel, row: str) -> str:
    return pictures.strip(panel.rows[row], exact=row.startswith("Maskige"))


def _training_curves(run: RunLooks) -> list[Markup]:
    train, val = run.curves.get("train", {}), run.curves.get("val", {})
    losses = {name: curve for name, curve in train.items() if name.startswith("loss_")}
    several = {k: v for k, v in losses.items() if k.split("_")[-1].isdigit()}
    named = {"total": train["total"]} if "total" in train else {}
    named |= {k: v for k, v in losses.items() if k not in several}
    drawn = [
        ("M_J and M_F on val", {k: v for k, v in val.items() if k in ("M_J", "M_F")}),
        ("losses, weighted", dict(list(named.items())[:8])),
        ("gradient's norm", {k: v for k, v in train.items() if k == "gradient_norm"}),
        ("learning rate", {k: v for k, v in train.items() if k == "learning_rate"}),
        ("clips a second", {k: v for k, v in train.items() if k == "clips_per_second"}),
    ]
    return [
        charts.lines(title, series, decades="loss" in title) for title, series in drawn if series
    ]


def _compared_curves(runs: Sequence[RunLooks]) -> list[Markup]:
    drawn: list[Markup] = []
    for title, kind, name in (("M_J on val", "val", "M_J"), ("total loss", "train", "total")):
        series = {
            f"{number}. {run.name}": run.curves[kind][name]
            for number, run in enumerate(runs, 1)
            if name in run.curves.get(kind, {})
        }
        if series:
            drawn.append(charts.lines(title, series, decades="loss" in title))
    return drawn


def _progress(split: SplitLooks) -> Markup:
    """Clips done of each stage over the time since the first unit of all was; "" of one unit."""
    done = {stage.variant.key: stage.done for stage in split.stages if len(stage.done) > 1}
    if not done:
        return Markup()
    first = min(times[0, 0] for times in done.values())
    last = max(times[-1, 0] for times in done.values())
    unit, name = next((u, n) for u, n in _TIMES if last - first >= 3 * u or u == 1)
    series = {
        key: ((times[:, 0] - first) / unit, np.cumsum(times[:, 1])) for key, times in done.items()
    }
    return charts.lines("clips done", series, name)


def _confusion(run: RunLooks) -> dict[str, Any]:
    """The matrix over the classes that were seen, and its largest mistakes."""
    assert run.confusion is not None
    seen = np.flatnonzero(run.confusion.sum(0) + run.confusion.sum(1))
    pixels = run.confusion[np.ix_(seen, seen)]
    shares = pixels / np.maximum(pixels.sum(1, keepdims=True), 1)
    names = [run.classes[number] for number in seen]
    wrong = pixels - np.diag(np.diag(pixels))
    places = np.argsort(-wrong, axis=None)[:12]
    mistakes = [
        (names[row], names[column], float(shares[row, column]), int(wrong[row, column]))
        for row, column in (divmod(int(place), len(names)) for place in places)
        if wrong[row, column]
    ]
    title = "share of each class's pixels that is taken for another: truth down, prediction across"
    return {"drawn": charts.matrix(title, names, shares), "mistakes": mistakes}
