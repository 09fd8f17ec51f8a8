"""Everything a GPU decides, in one command: is it right there, how fast, with how much memory.

    python benchmarks/gpu.py                     # nine minutes at most, see --minutes
    python benchmarks/gpu.py --parts layout compiled_pvt     # two more, minutes each
    python benchmarks/gpu.py --device cpu        # a small size: shows that the script works

Each part runs in a process of its own and its rows are written to gpu.json at once, so that a call
that was cut off goes on where it was; --again measures anew. When the minutes are over, a part that
still runs is ended and left, with those after it, to the next call (exit code 75). The tests come
first, beside the compiling of what is timed later. The table at the end is that of the file. Random
weights and numbers: they cost what trained and real ones cost.

Goals on an H100: 25 clips/s of R50 AVSS, data waited for under 1 % of a step, the six encoder
layers' sampling in 3.5 ms and 40 MiB forward and backward.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from gpu_parts import BY_NAME_ONLY, PARTS, SIDE_BY_SIDE, Row, first_step, size_of

TO_END = 5
"""Seconds of a call's minutes in which it ends: importing PyTorch before, the table after."""


def show(rows: list[Row]) -> None:
    columns = ("ms", "clips/s", "patches/s", "MiB", "MFU %", "waited %", "kernels ms", "launches")
    print(f"{'':48}" + "".join(f"{name:>11}" for name in columns))
    for row in rows:
        cells = (f"{row[name]:11.2f}" if name in row else " " * 11 for name in columns)
        print(f"{row['what']:48}" + "".join(cells))
        for line in str(row.get("printed", "")).splitlines():
            print(f"    {line}")


def at_once(
    parts: list[str], device: str, deadline: float
) -> Iterator[tuple[str, list[Row], bool | None]]:
    """Runs the parts, each in a process; their rows, and whether those are all: None for a part
    that ran at the deadline, of `time.monotonic`, and was ended."""
    started = time.monotonic()
    command = [sys.executable, __file__, "--device", device, "--one"]
    running = [
        subprocess.Popen(
            [*command, part], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        for part in parts
    ]
    try:
        for part, process in zip(parts, running, strict=True):
            try:
                printed, _ = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                print(f"{part}: ended after {time.monotonic() - started:.0f} s", flush=True)
                yield part, [], None
                continue
            print(f"{part}: {time.monotonic() - started:.0f} s", flush=True)
            rows = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
            yield part, rows, process.returncode == 0
    finally:
        for process in running:
            if process.poll() is None:  # and those that it started
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    usual = [part for part in PARTS if part not in BY_NAME_ONLY]
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=usual)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--minutes", type=float, default=9.0, help="a call takes no more")
    parser.add_argument("--again", action="store_true", help="measure parts that are in the file")
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--first-step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes - TO_END
    size = size_of(options.device)
    if options.first_step:
        print(json.dumps(first_step(size, options.first_step)))
        return
    if options.one:
        for row in PARTS[options.one](size):
            print(json.dumps(row), flush=True)
        return
    if size.small:
        print("no GPU is used: small sizes, which show that this runs and nothing more")
        name = "cpu"
    else:
        name = torch.cuda.get_device_name(size.device)
    key = f"{name}, torch {torch.__version__}"
    known: dict[str, dict[str, list[Row]]] = {}
    if options.out.exists():
        known = json.loads(options.out.read_text())
    done = known.setdefault(key, {})
    failed, left = False, list[str]()
    missing = [part for part in options.parts if options.again or part not in done]
    first = [part for part in missing if part in SIDE_BY_SIDE]
    for parts in (first, *([part] for part in missing if part not in SIDE_BY_SIDE)):
        if time.monotonic() >= deadline:
            left += parts
            continue
        for part, rows, whole in at_once(parts, options.device, deadline):
            if whole is None:
                left.append(part)
                continue
            if not whole:
                print(f"{part} failed; its rows until then are shown, not kept", flush=True)
                show(rows)
                failed = True
                continue
            done[part] = rows
            writing = options.out.with_suffix(".part")
            writing.write_text(json.dumps(known, indent=1))
            writing.replace(options.out)
    print(f"\n{key}")
    show([row for part in PARTS for row in done.get(part, [])])
    if left:
        print(f"no time was left; this goes on there: --parts {' '.join(left)}")
    if failed or any(row.get("passed") is False for row in done.get("tests", [])):
        sys.exit(1)
    sys.exit(75 if left else 0)


if __name__ == "__main__":
    main()
