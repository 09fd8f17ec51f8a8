"""Runs the tests as other processors would: python tests/processors.py [--short] [OPTION ...]

PyTorch and oneDNN choose their kernels by the processor; variables make them choose those of older
ones, whose sums differ in the last bit, as they do with another number of threads. --short: of
these settings two, beside each other, and only tests that compare with numbers of public
implementations and take seconds. Further options are pytest's.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

HOME = Path(__file__).parent.parent
KINDS: dict[str, dict[str, str]] = {
    "this processor": {},
    "ATEN_CPU_CAPABILITY=default": {"ATEN_CPU_CAPABILITY": "default"},
    "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "ONEDNN_MAX_CPU_ISA=SSE41": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
}
SHARING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait for each other leave their core to others: half of the time on a busy one."""
SHORT = (("ATEN_CPU_CAPABILITY=default", 1), ("ONEDNN_MAX_CPU_ISA=SSE41", 2))
ROW = "{:50} {:>7} {:>7} {:>7} {:>8} {:>8}"


def run(kind: str, threads: int, processes: int, options: list[str]) -> bool:
    """Runs the tests, prints their row of the table, and what failed; whether nothing did."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", f"--junitxml={report}"]
        workers = [f"--numprocesses={processes}", "--dist=worksteal"]
        begin = time.monotonic()
        done = subprocess.run(
            [*command, *workers, *options],
            cwd=HOME,
            env={**os.environ, **SHARING, **KINDS[kind], "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - begin
        if not report.exists():
            sys.exit(done.stdout + done.stderr)
        suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    of = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = of["failures"] + of["errors"]
    passed = of["tests"] - failed - of["skipped"]
    print(ROW.format(kind, threads, passed, failed, of["skipped"], f"{seconds:.0f} s"), flush=True)
    if done.returncode:
        print(done.stdout)
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    chosen, options = parser.parse_known_args()
    settings = SHORT if chosen.short else [(kind, n) for kind in KINDS for n in (1, 2)]
    if chosen.short:
        options = ["-m", "golden", "-k", "not semantic_sam and not fully_annotated", *options]
    print(ROW.format("setting", "threads", "passed", "failed", "skipped", "time"))
    cores = os.cpu_count() or 1

    def of_setting(setting: tuple[str, int]) -> bool:
        kind, threads = setting
        return run(kind, threads, 1 if chosen.short else max(1, cores // threads), options)

    with ThreadPoolExecutor(len(settings) if chosen.short else 1) as beside:
        good = list(beside.map(of_setting, settings))
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
