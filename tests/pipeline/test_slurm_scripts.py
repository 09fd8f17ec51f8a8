"""Lines of a job script as sbatch reads them, and what a cluster's own settings say."""

from pathlib import Path

import pytest

from combo.pipeline.errors import ComboError
from combo.pipeline.jobs.slurm import JobArray, directive, largest_array
from combo.pipeline.manifest import ClusterSettings

CONFIG = """\
Configuration data as of 2025-11-26T00:00:00
MaxArraySize            = 1001
MaxJobCount             = 10000
"""


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("--partition=gpu", "--partition=gpu"),
        ("--comment=two words", '--comment="two words"'),
        ("--comment=it's a # sign", '--comment="it\'s a # sign"'),
        ("--mail-user=a b=c", '--mail-user="a b=c"'),
        ('--comment="two words"', '--comment="two words"'),
        ("--gres=gpu:1 --partition=gpu", "--gres=gpu:1 --partition=gpu"),
        ("--exclusive", "--exclusive"),
        ("-p gpu", "-p gpu"),
    ],
)
def test_a_value_with_spaces_is_quoted(option: str, line: str) -> None:
    assert directive(option) == line
    cluster = ClusterSettings(sbatch=(option,))
    array = JobArray("combo-maskige", Path("/jobs"), 3, None, ["maskige"], ["maskige"], cluster, {})
    for script in (array.script, array.closing_script):
        assert f"#SBATCH {line}\n" in script


def test_an_option_of_two_lines_is_refused() -> None:
    with pytest.raises(ComboError, match="holds a line break"):
        directive("--comment=a\nrm -rf .")


def test_an_array_counted_from_one_has_room_for_one_task_less_than_its_size() -> None:
    assert largest_array(CONFIG) == 1000
    assert largest_array("") is None
