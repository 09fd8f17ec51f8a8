"""What is installed, built into a container and cited is what lies in the repository."""

import tomllib
from pathlib import Path

import pytest
import yaml

HOME = Path(__file__).parent.parent
PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())


def test_every_package_is_installed() -> None:
    folders = {path.parent for top in ("model", "pipeline") for path in (HOME / top).rglob("*.py")}
    names = {".".join(("combo", *folder.relative_to(HOME).parts)) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == {"combo", *names}


def test_what_is_cited_is_this_version() -> None:
    cited = yaml.safe_load((HOME / "CITATION.cff").read_text())
    project = PROJECT["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert cited["preferred-citation"]["url"] in (HOME / "README.md").read_text()


@pytest.mark.parametrize("name", ["Dockerfile", "combo.def"])
def test_a_container_is_of_a_python_that_is_supported_and_takes_what_there_is(name: str) -> None:
    text = (HOME / name).read_text()
    assert "python:3.12-slim" in text
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert "--constraint /opt/combo/constraints.txt '/opt/combo[cluster]'" in text
    assert (HOME / "constraints.txt").exists()
    assert "cluster" in PROJECT["project"]["optional-dependencies"]
