"""`combo weights list | fetch | add | verify | convert`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import weights
from ..console import Output
from ..manifest import load_manifest


def show(output: Output, manifest_file: Path | None) -> None:
    """`combo weights list`."""
    held = weights.held(load_manifest(manifest_file).weight_paths())
    if output.as_json:
        output.json(
            [
                {
                    **dataclasses.asdict(h.weights),
                    "sha256": h.weights.digest_start,
                    "path": str(h.path),
                    "there": h.there,
                }
                for h in held
            ]
        )
        return
    output.table(
        ("name", "there", "what", "published at", "MB", "SHA-256", "licence"),
        (
            (h.weights.name, "yes" if h.there else "", h.weights.about, h.weights.source,
             h.weights.size // 10**6 if h.weights.size else "",
             (h.weights.digest_start or "")[:8], h.weights.licence)
            for h in held
        ),
    )  # fmt: skip
    output.note(f"weights folder: {weights.weights_folder()}")


def fetch(output: Output, names: Sequence[str]) -> None:
    """`combo weights fetch`."""
    for name in names:
        size = weights.entry(name).size or 0
        with output.bar(f"fetching {name}", size >> 20) as bar:
            at = 0

            def tell(there: int, whole: int | None) -> None:
                nonlocal at
                mebibytes = there >> 20
                bar.advance(mebibytes - at, f"of {whole >> 20} MiB" if whole else "MiB")
                at = mebibytes

            path = weights.fetch(name, tell)
        output.result(f"{name}: {path}")


def add(output: Output, name: str, file: Path) -> None:
    """`combo weights add`."""
    output.result(f"{name}: {weights.add(name, file)}")


def verify(output: Output, manifest_file: Path | None, names: Sequence[str]) -> None:
    """`combo weights verify`; exits with 1 when a file is wrong or missing."""
    manifest = load_manifest(manifest_file)
    expected = {name: w.sha256 for name, w in manifest.weights.items() if w.sha256}
    verdicts = weights.verify(names, manifest.weight_paths(), expected)
    if output.as_json:
        output.json([{**dataclasses.asdict(v), "path": str(v.path)} for v in verdicts])
    else:
        output.table(
            ("name", "state", "file", "SHA-256 or reason"),
            ((v.name, v.state, v.path, v.reason or v.sha256) for v in verdicts),
        )
    if any(v.state in ("wrong", "missing") for v in verdicts):
        sys.exit(1)


def convert(output: Output, source: Path, target: Path) -> None:
    """`combo weights convert`."""
    network, vggish = weights.convert(source, target)
    output.result(f"{target}: {network} tensors of the network, {vggish} of VGGish")
