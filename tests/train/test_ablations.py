"""`combo ablate`: the paper's tables, and one's own."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from combo.cli import app
from combo.pipeline.ablation.runs import distinct, runs_of
from combo.pipeline.ablation.table import read_table
from combo.pipeline.errors import ComboError
from combo.pipeline.jobs.job_array import JobArray
from combo.pipeline.manifest import ClusterSettings, Manifest
from combo.pipeline.store import SplitStore
from combo.pipeline.train.evaluate import measure, open_run, open_split
from combo.pipeline.train.run_folder import RunFolder

from .test_ruler import CPU
from .test_training import TINY

PAPER = Path(__file__).parents[3] / "shared" / "paper"
TABLES = [f"table{number}" for number in range(3, 8)]


def ablate(*words: object) -> Any:
    done = CliRunner().invoke(app, ["ablate", *map(str, words), "--json"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return json.loads(done.stdout)


def test_a_table_trains_what_is_missing_and_nothing_twice(
    finished: Manifest, tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    rows = {"COMBO": None, "one encoder": ["sem=shared"]}
    published = {
        "without Maskiges": {"set": ["sem=off"], "published": {"combo-small-s4": [50, 60]}}
    }
    own.write_text(
        yaml.safe_dump(
            {"presets": ["combo-small-s4"], "rows": {**rows, **published}}, sort_keys=False
        )
    )
    out = tmp_path / "runs"
    common = [word for each in [*TINY, "iterations=1"] for word in ("--set", each)]
    words = [own, "--out", out, "--manifest", finished.file, *common]
    assert ablate(*words, "--part", "1/2") == {"runs": 3, "done": 2}
    first = {path: path.stat().st_mtime_ns for path in out.glob("*/last.pt")}
    assert len(first) == 2

    told = ablate(*words)
    assert [row["row"] for row in told["rows"]] == ["COMBO", "one encoder", "without Maskiges"]
    assert {path: path.stat().st_mtime_ns for path in first} == first
    runs = [RunFolder(path.parent) for path in sorted(out.glob("*/last.pt"))]
    assert {run.settings().network.sem for run in runs} == {"separate", "shared", "off"}
    for row in told["rows"]:
        found = row["results"]["combo-small-s4"]
        (path,) = found["runs"]
        run = RunFolder(Path(path))
        expected = measure(open_run(run, CPU), open_split(run, "test"), CPU)
        assert found["M_J"] == {"mean": round(expected.m_j, 6), "deviation": None}
        assert row["parameters"] == sum(p.numel() for p in open_run(run, CPU).parameters())
    assert told["rows"][2]["results"]["combo-small-s4"]["published"] == [50, 60]
    again = CliRunner().invoke(app, ["ablate", *map(str, words)])
    assert again.exit_code == 0, again.output
    assert re.search(r"without Maskiges │ .*50\.0 / 60\.0", again.stdout)
    assert {path: path.stat().st_mtime_ns for path in first} == first

    for option, value, why in (
        ("--encoder", "vggish", "no audio of s4/train"),
        ("--generator", "sam-vit-b", "no maskige of s4/train"),
        ("--variant", "maskige=nonsense", "no maskige of s4/train"),
    ):
        other = CliRunner().invoke(app, ["ablate", *map(str, words), option, value])
        assert isinstance(other.exception, ComboError)
        assert why in str(other.exception)
    assert {path: path.stat().st_mtime_ns for path in first} == first

    settings = Path(told["rows"][0]["results"]["combo-small-s4"]["runs"][0]) / "settings.json"
    settings.write_text(settings.read_text().replace('"width": 32', '"width": 64'))
    changed = CliRunner().invoke(app, ["ablate", *map(str, words)])
    assert isinstance(changed.exception, ComboError)
    assert "was trained with width=64, not 32; give another folder" in str(changed.exception)


def test_a_run_of_other_data_is_not_taken_for_the_one_that_is_asked_for(
    own: Manifest, tmp_path: Path
) -> None:
    table = tmp_path / "own.yaml"
    table.write_text(yaml.safe_dump({"presets": ["combo-small-s4"], "rows": {"COMBO": None}}))
    common = [word for each in [*TINY, "iterations=1"] for word in ("--set", each)]
    words = [
        "ablate",
        table,
        "--seeds",
        1,
        "--out",
        tmp_path / "runs",
        "--manifest",
        own.file,
        *common,
    ]

    def said(*more: object) -> str:
        done = CliRunner().invoke(app, [*map(str, [*words, *more])])
        assert done.exit_code == 0 or isinstance(done.exception, ComboError), done.output
        return str(done.exception)

    split = SplitStore(own.store_path, "s4", "train")
    (audio,) = split.variants("audio")
    assert said("--variant", f"audio={audio.name}") == said() == "None"
    twin = replace(audio, name="mel-stats-twin", fingerprint="0" * 64)
    split.create(twin, split.plan())
    of_other = "was trained on other data than is asked for: "
    assert f"{of_other}audio {audio.name}, not {twin.name}" in said(
        "--variant", f"audio={twin.name}"
    )
    (run,) = (tmp_path / "runs").iterdir()
    words = ["submit", "train", "--preset", "combo-small-s4", "--slurm", "--print", "--out", run]
    words += ["--manifest", own.file]
    assert said("--variant", f"audio={audio.name}") == "None"
    assert f"audio {audio.name}, not {twin.name}" in said("--variant", f"audio={twin.name}")
    words = ["ablate", table, "--seeds", 1, "--out", tmp_path / "runs", "--manifest", own.file]
    words += common
    text = own.file.read_text()
    own.file.write_text(text.replace("size: 64", "size: 32"))
    assert "no frames of s4/train with these settings" in said()


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_tables_ask_for_runs_that_can_be_trained(name: str, tmp_path: Path) -> None:
    table = read_table(name)
    cells = runs_of(table, 3, ["precision=bf16"], tmp_path)
    assert len(distinct(cells)) == len(table.rows) * 2 * 3, "no two rows are the same run"
    for (_, preset), runs in cells.items():
        assert [run.settings.train.seed for run in runs] == [0, 1, 2]
        assert {run.settings.train.preset for run in runs} == {preset}
    # The full network of the other tables is the same run.
    if name in ("table4", "table5", "table6"):
        full = distinct(runs_of(read_table("table3"), 1, [], tmp_path))[0]
        assert full.folder in {run.folder for run in distinct(runs_of(table, 1, [], tmp_path))}


@pytest.mark.parametrize("name", TABLES)
def test_what_is_said_to_be_published_is_in_the_paper(name: str) -> None:
    if not PAPER.exists():
        pytest.skip("the paper beside the repository is not there")
    lines = [re.sub(r"<[^>]+>", "", line) for line in next(PAPER.iterdir()).open()]
    for row_name, row in read_table(name).rows.items():
        numbers = [f"{each:.1f}" for scores in row.published.values() for each in scores]
        assert len(numbers) == 4
        numbers += [] if row.parameters is None else [f"{row.parameters:.1f}"]
        printed = [line.split("\t")[1:] for line in lines if numbers[0] in line]
        assert numbers in [[cell.strip() for cell in line] for line in printed], row_name


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "presets: [combo-small-s4]\nrows: {a: [sem=none]}",
            "--set sem=none: Input should be 'separate'",
        ),
        ("presets: [combo-small-s4]\nrows: {a: [depth=3]}", "no such setting"),
        (
            "presets: [combo-small-s4]\nrows: {off: [sem=off]}",
            "YAML reads a row's name as False; write it in quotes",
        ),
        ("presets: [combo-small-s5]\nrows: {a: []}", "no preset 'combo-small-s5'"),
        ("presets: []\nrows: {a: []}", "presets: .*at least 1"),
        ("rows: [1]", "presets: Field required"),
        ("rows: {", "cannot be read as YAML"),
    ],
)
def test_a_table_that_cannot_be_is_one_line(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(text)
    with pytest.raises(ComboError, match=why) as error:
        read_table(str(path))
    assert "\n" not in str(error.value)
    with pytest.raises(ComboError, match=r"'table8'; did you mean table.\? Give a YAML file"):
        read_table("table8")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("query_count=4", "row 'few' sets query_count itself"),
        ("seed=3", "seeds of each row are 0 to"),
    ],
)
def test_what_a_row_sets_is_not_set_for_all(
    finished: Manifest, tmp_path: Path, change: str, why: str
) -> None:
    path = tmp_path / "table.yaml"
    path.write_text("presets: [combo-small-s4]\nrows: {all: [], few: [query_count=1]}")
    words = ["ablate", path, "--out", tmp_path / "runs", "--manifest", finished.file]
    done = CliRunner().invoke(app, [*map(str, words), "--set", change])
    assert isinstance(done.exception, ComboError)
    assert re.search(f"{why}.*; leave out --set {change.partition('=')[0]}", str(done.exception))
    assert not (tmp_path / "runs").exists()


def test_the_table_in_the_documentation_can_be_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text()
    path = tmp_path / "depth.yaml"
    path.write_text(page.split("```yaml\n")[1].split("```")[0])
    table = read_table(str(path))
    assert table.rows["three layers"].set == ("decoder_layers=3",)
    assert table.rows["paper's text"].published == {"combo-r50-ms3": (54.5, 66.6)}


def test_a_job_array_trains_a_run_a_task_and_ends_with_the_table(tmp_path: Path) -> None:
    arguments, cluster = ["table3", "--seeds", "3"], ClusterSettings()
    array = JobArray(
        "combo-ablate", tmp_path, 24, 24, None, arguments, arguments, cluster, {},
        commands=("ablate", "ablate"),
    )  # fmt: skip
    assert 'combo ablate table3 --seeds 3 --part "$part/24" --requeue' in array.script([], "$N")
    assert array.closing_script([]).rstrip().endswith("combo ablate table3 --seeds 3")
