"""Lines of a job script as sbatch reads them."""

from pathlib import Path

import pytest

from combo.pipeline.errors import ComboError
from combo.pipeline.jobs import slurm
from combo.pipeline.jobs.job_array import JobArray
from combo.pipeline.manifest import ClusterSettings


def array_with(option: str) -> JobArray:
    cluster = ClusterSettings(arguments=(option,))
    what = (["maskige"], ["maskige"], cluster, {})
    return JobArray("combo-maskige", Path("/jobs"), 3, 3, None, *what)


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
    array = array_with(option)
    for script in (slurm.script(array), slurm.closing_script(array)):
        assert f"#SBATCH {line}\n" in script


def test_an_option_of_two_lines_is_refused() -> None:
    with pytest.raises(ComboError, match="holds a line break"):
        slurm.script(array_with("--comment=a\nrm -rf ."))
