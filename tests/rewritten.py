"""Units that are written anew with other values, as if a stage had made them so."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from combo.pipeline.clip_checks import clip_checks
from combo.pipeline.jobs import records
from combo.pipeline.store import SplitStore, Variant


def rewrite_unit(
    split: SplitStore,
    variant: Variant,
    unit: int,
    arrays: Mapping[str, np.ndarray],
    **recorded: Any,
) -> None:
    """Write a unit's arrays, commit its record (with these fields) and close the variant."""
    record = records.read_record(split, variant, unit)
    assert record is not None
    records.withdraw(split, variant, unit)
    outputs = split.write_unit(variant, split.plan(), unit, arrays)
    checks = clip_checks(arrays, len(record.clips))
    records.commit(split, variant, replace(record, outputs=outputs, checks=checks, **recorded))
    assert records.finalise(split, variant, split.plan()) is not None
