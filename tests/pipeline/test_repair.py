"""Descriptions of a kilobyte are written anew, and what they describe stays."""

import json
import shutil
from pathlib import Path

import pytest
from commands import combo

from combo.pipeline.jobs.plan import PlannedSplit, make_job, planned
from combo.pipeline.jobs.repair import work_in
from combo.pipeline.jobs.run import Options, run_job, settle_plan
from combo.pipeline.jobs.unit import Job
from combo.pipeline.jobs.verify import Finding, verify_description, verify_plan, verify_variant
from combo.pipeline.manifest import Manifest, load_manifest


def made(manifest: Manifest, split: str = "test") -> Job:
    job = make_job(manifest, "ms3", split, "maskige")
    settle_plan(job, Options())
    assert run_job(job, Options()).finished is not None
    return job


def bytes_of(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and path.name != "claims")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def plain(files: dict[str, bytes]) -> dict[str, object]:
    """Descriptions by what they say, whatever the order."""
    return {n: json.loads(b) if n.endswith("zarr.json") else b for n, b in files.items()}


def check(job: Job, there: PlannedSplit | None, *, repair: bool) -> tuple[list[str], list[str]]:
    """The files found wrong and mended, and a verified variant in the end."""
    found: list[Finding] = []
    mended: list[Finding] = []
    for key in work_in(job.split):
        some, well = verify_description(job.split, key, there, repair=repair)
        found, mended = found + some, mended + well
    names = [[f.problem.split(" is ")[0] for f in each] for each in (found, mended)]
    return names[0], names[1]


def told(home: Path, *files: str) -> list[str]:
    return [str(home / file) for file in files]


DAMAGES = {
    "removed": None,
    "emptied": "",
    "no JSON": "{",
    "other JSON": '{"zarr_format": 3, "node_type": "array", "attributes": {"combo": {}}}',
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_description_is_written_anew_and_nothing_else_is_touched(
    manifest: Manifest, damage: str
) -> None:
    job = made(manifest)
    there = planned(manifest, "ms3", "test")
    before = bytes_of(job.split.root)
    described = sorted(job.split.tensors.rglob("zarr.json"))
    assert len(described) == 7
    for file in described:
        text = DAMAGES[damage]
        if text is None:
            file.unlink()
        else:
            file.write_text(text)
        wanted = [str(file)]
        assert check(job, None, repair=False)[0] == wanted
        assert check(job, there, repair=True) == (wanted, wanted)
        assert check(job, there, repair=True) == ([], [])
        assert plain(bytes_of(job.split.root)) == plain(before), file
    again = make_job(manifest, "ms3", "test", "maskige")
    assert not [f for f in verify_variant(again.split, again.variant) if isinstance(f, Finding)]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("label_map/zarr.json", '"uint8"', '"uint16"'),
        ("label_map/zarr.json", '"endian": "little"', '"endian": "big"'),
        ("valid/zarr.json", '"fill_value": 0', '"fill_value": 1'),
        ("zarr.json", '"felzenszwalb"', '"felzenszwald"'),
        ("zarr.json", '"squash"', '"crop"'),
    ],
)
def test_a_description_that_says_something_else_is_found(
    manifest: Manifest, file: str, old: str, new: str
) -> None:
    job = made(manifest)
    path = job.split.arrays(job.variant) / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert check(job, None, repair=False)[0] == [str(path)]
    assert check(job, planned(manifest, "ms3", "test"), repair=True)[1] == [str(path)]
    assert json.loads(path.read_text()) == json.loads(text)


def test_a_palette_that_is_not_the_stages_is_found_where_the_manifest_makes_it(
    manifest: Manifest,
) -> None:
    job = made(manifest)
    path = job.split.arrays(job.variant) / "zarr.json"
    whole = path.read_text()
    described = json.loads(whole)
    described["attributes"]["combo"]["palette"][3] = [1, 2, 3]
    path.write_text(json.dumps(described))
    assert check(job, planned(manifest, "ms3", "test"), repair=True)[1] == [str(path)]
    assert path.read_text() == whole


def test_an_import_is_described_by_another_split_of_the_data_set(
    manifest: Manifest, tmp_path: Path
) -> None:
    """A manifest does not know its tree and note."""
    job = made(manifest)
    other = job.split.root.with_name("val")
    shutil.copytree(job.split.root, other)
    path = job.split.arrays(job.variant) / "zarr.json"
    whole = path.read_text()
    path.unlink()
    file = tmp_path / "other.yaml"
    file.write_text((tmp_path / "store.yaml").read_text().replace("at: stored", "at: native"))
    there = planned(load_manifest(file), "ms3", "test")
    assert check(job, there, repair=True)[1] == [str(path)]
    assert path.read_text() == whole
    shutil.rmtree(other)
    path.unlink()
    (finding,) = verify_description(job.split, job.variant.key, there, repair=True)[0]
    assert finding.mend.startswith("give a manifest with the settings that it was made with")


@pytest.mark.parametrize("damage", ["removed", "no JSON"])
def test_a_plan_is_written_anew(manifest: Manifest, damage: str) -> None:
    job = made(manifest)
    before = job.split.plan_path.read_bytes()
    text = DAMAGES[damage]
    if text is None:
        job.split.plan_path.unlink()
    else:
        job.split.plan_path.write_text(text)
    (finding,), mended = verify_plan(job.split, None)
    assert mended == []
    assert "plan.json is damaged or missing" in finding.problem
    assert verify_plan(job.split, planned(manifest, "ms3", "test"))[1] == [finding]
    assert job.split.plan_path.read_bytes() == before


def test_the_command_mends_descriptions_and_computes_nothing(
    manifest: Manifest, tmp_path: Path
) -> None:
    job = made(manifest)
    before = bytes_of(job.split.root)
    (job.split.arrays(job.variant) / "zarr.json").unlink()
    (job.split.arrays(job.variant) / "masks" / "zarr.json").write_text("x")
    job.split.plan_path.write_text("")
    words = ("verify", "--json", "--data", "ms3", "--manifest", tmp_path / "store.yaml")
    found = combo(*words)
    assert found.returncode == 1
    assert len(json.loads(found.stdout)["findings"]) == 1, "without its plan nothing is known"
    found = combo(*words, "--repair")
    said = json.loads(found.stdout)
    assert (found.returncode, said["findings"], len(said["repaired"])) == (0, [], 3), found.stderr
    assert said["units_good"] == job.plan.units
    assert plain(bytes_of(job.split.root)) == plain(before)
