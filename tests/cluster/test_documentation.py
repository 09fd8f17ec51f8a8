"""The commands of docs/clusters.md do what the page says, from top to bottom."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from string import Template

import pytest
from commands import combo

from combo.pipeline.sample import write_sample

from .slurm_tools import are_over, wait_until, why_no_slurm

PAGE = Path(__file__).parents[2] / "docs" / "clusters.md"
BLOCK = re.compile(r"^```sh (run|slurm)\n(.*?)^```", re.MULTILINE | re.DOTALL)

MANIFEST = """\
store: ${COMBO_STORE}
clips_per_unit: 1
data_sets:
  avss: {layout: avsbench-avss, root: "${AVSBENCH}/AVSBench_semantic"}
stages:
  frames: {size: 64}
  audio: {encoder: mel-stats}
  maskige: {generator: felzenszwalb, at: stored}
"""


def commands() -> list[tuple[str, list[str]]]:
    blocks = BLOCK.findall(PAGE.read_text())
    return [(kind, shlex.split(line)) for kind, text in blocks for line in text.splitlines()]


def filled(words: list[str], environment: Mapping[str, str]) -> list[str]:
    """As a shell fills variables."""
    return [Template(word).substitute(environment) for word in words]


def test_the_page_has_commands_for_all_three_ways() -> None:
    found = {" ".join(words[:2]) for _, words in commands()}
    assert {"combo submit", "combo preprocess", "combo finalise", "combo verify"} <= found
    assert any("--dask" in words for _, words in commands())


@pytest.mark.slow
@pytest.mark.usefixtures("has_the_cluster")
def test_every_command_of_the_page_works(tmp_path: Path) -> None:
    write_sample(tmp_path / "data", s4=(1, 1, 1), ms3=(1, 1, 1), avss=(4, 2, 2))
    (tmp_path / "data_manifest.yaml").write_text(MANIFEST)
    environment = {"AVSBENCH": str(tmp_path / "data"), "COMBO_STORE": str(tmp_path / "store")}
    for kind, words in commands():
        if kind != "slurm" or why_no_slurm() is None:
            _run(filled(words, environment), tmp_path, environment)
    assert len(list((tmp_path / "store").glob("avss/*/records/*/*/finished.json"))) == 9


def _run(words: list[str], folder: Path, environment: dict[str, str]) -> None:
    assert words[0] == "combo"
    done = combo(*words[1:], folder=folder, **environment)
    # The doctor finds that nothing is preprocessed yet; that is what it is for.
    fine = (0, 1) if words[1] == "doctor" else (0,)
    assert done.returncode in fine, f"{shlex.join(words)}\n{done.stderr}"
    if words[1] == "submit" and "--print" not in words:
        array = re.search(r"job array (\d+) of 4 tasks, then job (\d+)", done.stdout)
        assert array is not None
        wait_until(lambda: are_over(*array.groups()))
        log = folder / "store/jobs/all-001/finalise.log"
        assert log.read_text().count("finished") == 9
