"""The commands that mend things, as errors and `combo doctor` name them: each worded once."""

from pathlib import Path

ALL = "all"


def make(stage: str, data_set: str, split: str, imported: bool = False) -> str:
    """What makes a stage of a split. stage: one, or `ALL`."""
    verb = f"import-{stage} DIR" if imported else f"preprocess {stage}"
    return f"combo {verb} --data {data_set} --split {split}"


def repair(data_set: str, split: str) -> str:
    return f"combo verify --repair --data {data_set} --split {split}"


def show(data_set: str, split: str) -> str:
    return f"combo status --data {data_set} --split {split}"


def pack(path: str | Path, overwrite: bool = True) -> str:
    """What packs a store into a file."""
    return f"combo pack STORE --to {path}{' --overwrite' if overwrite else ''}"


def resume(run: str | Path) -> str:
    return f"combo train --resume {run}"


def fetch(weights: str) -> str:
    return f"combo weights fetch {weights}"


def add(weights: str) -> str:
    return f"combo weights add {weights} FILE"
