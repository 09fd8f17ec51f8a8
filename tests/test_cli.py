"""The `combo` command as a user meets it: help, exit codes, errors of one line."""

import ast
import dataclasses
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import typing
from pathlib import Path

import click
import pytest
import typer
from commands import combo, process
from typer.testing import CliRunner

from combo.cli import app
from combo.pipeline import console

ROOT = typer.main.get_command(app)


def commands(group: click.Command = ROOT, path: str = "") -> list[tuple[str, click.Command]]:
    if not hasattr(group, "commands"):
        return [(path.strip(), group)]
    return [
        leaf
        for name, command in group.commands.items()
        for leaf in commands(command, f"{path} {name}")
    ]


@pytest.mark.parametrize(("path", "command"), commands(), ids=lambda value: str(value))
def test_every_help_ends_with_an_example_that_parses(path: str, command: click.Command) -> None:
    example = (command.help or "").strip().splitlines()[-1]
    assert example.startswith(f"Example: combo {path}")
    parse(example.removeprefix("Example: combo ").split())


def parse(arguments: list[str]) -> None:
    """Raises click's usage errors; runs nothing."""
    command = ROOT
    while hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    command.make_context("combo", arguments)


HOME = Path(__file__).parent.parent
PAGES = sorted([HOME / "README.md", HOME / "CHANGELOG.md", *HOME.glob("docs/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_documentation_exist(page: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    for line in lines:
        words = shlex.split(line, comments=True)
        while words and "=" in words[0]:
            words.pop(0)  # a variable for this command
        if words and words[0] == "combo":
            parse(words[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_in_the_documentation_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from combo.cli import app; from typer.testing import CliRunner; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0; "
        "print([m for m in ('torch', 'numpy', 'zarr', 'pydantic', 'dask') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("train --preset combo-small-", "combo-small-s4 combo-small-ms3 combo-small-avss"),
        ("status --data ", "s4 ms3 avss"),
        ("status --data ms3 --split t", "train test"),
        ("preprocess all --generator sam-vit-", "sam-vit-b sam-vit-l sam-vit-h"),
        ("preprocess all --encoder vggish", "vggish vggish-pca"),
        ("weights fetch vggish resnet", "resnet50 resnet50-detectron2"),
        ("status --manifest no.yaml --data ", ""),
    ],
)
def test_the_shell_completes_names(
    typed: str, completed: str, manifest_file, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manifest_file(store="data_manifest")
    monkeypatch.chdir(tmp_path)
    asked = {"_COMBO_COMPLETE": "complete_bash", "COMP_WORDS": f"combo {typed}"}
    asked["COMP_CWORD"] = str(len(typed.split(" ")))
    done = CliRunner().invoke(app, [], prog_name="combo", env=asked)
    assert sorted(done.stdout.split()) == sorted(completed.split())


def test_completing_loads_no_network() -> None:
    code = (
        "import sys, typer; from combo.pipeline.commands import completion as c; "
        "from combo.cli import app; context = typer.Context(typer.main.get_command(app)); "
        "assert c.presets() and c.generators() and c.encoders() and c.weights(); "
        "c.data_sets(context), c.splits(context); "
        "print([m for m in ('torch', 'zarr', 'dask') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_wrong_usage_is_exit_code_2() -> None:
    runner = CliRunner()
    for arguments in (["preprocess", "video"], ["train"], ["evaluate"], ["nonsense"]):
        assert runner.invoke(app, arguments).exit_code == 2, arguments


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["preprocess", "frames", "--part", "4/3"], "write I/N with 1 <= I <= N"),
        (["preprocess", "frames", "--data", "nothing"], "no data set 'nothing'"),
        (["preprocess", "frames", "--data", "s4", "--split", "dev"], "no split dev"),
        (["preprocess", "maskige", "--data", "s4", "--generator", "sam-vit-b"], "combo weights"),
        (["preprocess", "maskige", "--data", "s4", "--generator", "x"], "no Maskige generator 'x'"),
        (["preprocess", "audio", "--data", "s4", "--encoder", "x"], "no sound encoder 'x'"),
        (["train", "--preset", "combo-r50-s4"], "run: combo preprocess all --data s4"),
        (["train", "--preset", "combo-r50-s5"], "no preset 'combo-r50-s5'"),
        (["train", "--preset", "combo-r50-s4", "--set", "iteration=3"], "did you mean iterations?"),
        (["train", "--preset", "combo-r50-s4", "--set", "iterations=many"], "valid integer"),
        (["evaluate", "no-such-run"], "no such run folder"),
        (["train", "--resume", "no-such-run"], "no such run folder"),
        (["verify"], "run: combo preprocess all"),
        (["status", "--manifest", "no.yaml"], "no manifest at no.yaml"),
        (["weights", "fetch", "nothing"], "no weights 'nothing'"),
        (["weights", "fetch", "vggish", "resnet-50"], "did you mean resnet50?"),
        (["train", "--preset", "combo-r50"], "did you mean combo-r50-s4? There are combo-r50-s4,"),
        (["train", "--preset", "combo-r50-s4", "--set", "lr=1"], "did you mean learning_rate?"),
        (["preprocess", "frames", "--data", "S4"], "did you mean s4? It names s4, ms3, avss"),
        (["preprocess", "frames", "--data", "s4", "--split", "tset"], "did you mean test?"),
        (["preprocess", "audio", "--data", "s4", "--encoder", "vgish"], "did you mean vggish?"),
        (
            ["preprocess", "maskige", "--data", "s4", "--generator", "sam"],
            "did you mean sam-vit-b?",
        ),
        (["preprocess", "all", "--data", "s4"], "run: combo weights fetch vggish semantic-sam-l;"),
        (
            ["preprocess", "all", "--data", "s4", "--dry-run"],
            "run: combo weights fetch vggish semantic-sam-l resnet50 pvt-v2-b5;",
        ),
        (["status", "--data", "avs"], "did you mean avss? There are s4, ms3, avss"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_user_does_wrong_is_one_line_with_a_way_out(
    arguments: list[str], says: str, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from combo.pipeline.errors import ComboError

    monkeypatch.setenv("AVSBENCH", str(sample))
    monkeypatch.setenv("COMBO_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COMBO_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ComboError), result.output
    assert says in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not (tmp_path / "store").exists(), "an error before the work leaves nothing behind"


OF_OLD = {"slurm"}
"""Of `combo submit`: names the only scheduler there is, and had to be given until 0.1."""


def options(path: str) -> dict[str, click.Parameter]:
    """The options of a command, by their longest name."""
    return {
        max(each.opts, key=len): each
        for each in dict(commands())[path].params
        if each.param_type_name == "option"
    }


@pytest.mark.parametrize("path", [path for path, _ in commands()])
def test_every_option_of_a_command_is_read_by_it(path: str) -> None:
    """What a command is given is passed on whole, or each of its parts is looked at."""
    command = dict(commands())[path].callback
    function = inspect.unwrap(command).__closure__  # what `command` of options.py wraps
    (own,) = [
        cell.cell_contents for cell in function or () if inspect.isfunction(cell.cell_contents)
        and cell.cell_contents.__module__.startswith("combo.pipeline.commands")
        and cell.cell_contents.__name__ != "same_command"
    ]  # fmt: skip
    tree = ast.parse(textwrap.dedent(inspect.getsource(own)))
    hints = typing.get_type_hints(own)
    for name in inspect.signature(own).parameters:
        attributes, whole = read_of(tree, name)
        record = hints[name]
        if not dataclasses.is_dataclass(record):
            assert whole or attributes, (path, name)
        elif not whole:
            reached = reached_from(record, attributes)
            unread = {field.name for field in dataclasses.fields(record)} - reached - OF_OLD
            assert not unread, (path, name, unread)


def read_of(tree: ast.AST, name: str) -> tuple[set[str], bool]:
    """The attributes read of a variable, and whether it is also used as a whole."""
    bases = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    mine = [n for n in bases if isinstance(n.value, ast.Name) and n.value.id == name]
    loads = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)
    ]
    return {node.attr for node in mine}, len(loads) > len(mine)


def reached_from(record: type, attributes: set[str]) -> set[str]:
    """The fields that these attributes of a record are made of."""
    reached, waiting = set[str](), list(attributes)
    while waiting:
        if (name := waiting.pop()) in reached:
            continue
        reached.add(name)
        for kind in record.__mro__:
            made = vars(kind).get(name)
            made = getattr(made, "fget", None) or getattr(made, "func", None) or made
            if inspect.isfunction(made):
                source = inspect.unwrap(made)
                tree = ast.parse(textwrap.dedent(inspect.getsource(source)))
                waiting += read_of(tree, "self")[0]
    return reached


@pytest.mark.parametrize(
    "command",
    [
        "preprocess all --workers 2 --workers-per-device 2",
        "preprocess all --lifetime 5m",
        "preprocess all --scheduler-arg=--time=5",
        "preprocess all --dask local --workers-per-device 2",
        "ablate table3 --scheduler-arg=--time=5",
        "ablate table3 --slurm --part 1/2",
        "ablate table3 --slurm --requeue",
        "status --watch --json",
        "show --run run --data s4",
        "evaluate one two --predictions masks",
    ],
)
def test_an_option_that_another_leaves_without_effect_is_refused(command: str) -> None:
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code == 2, (done.output, done.exception)


USED_ON_RESUME = {
    "--resume", "--store", "--set", "--device", "--requeue", "--print-settings", "--json",
    "--quiet", "--profile", "--help",
}  # fmt: skip


@pytest.mark.parametrize("option", sorted({*options("train")} - USED_ON_RESUME))
def test_what_a_resumed_run_cannot_use_is_refused(option: str) -> None:
    done = CliRunner().invoke(app, ["train", "--resume", "run", option, "x"])
    assert done.exit_code == 2
    assert f"{option} with --resume" in done.output


def test_a_name_that_nothing_has_is_wrong_usage(tmp_path: Path) -> None:
    assert combo("status", "--data", "s5", COMBO_STORE=str(tmp_path)).returncode == 2


def test_the_doctor_names_all_missing_weights_and_one_command_for_them(
    manifest_file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMBO_WEIGHTS", str(tmp_path))
    text = manifest_file().read_text().replace("mel-stats", "vggish")
    (tmp_path / "own.yaml").write_text(text)
    arguments = ["doctor", "--manifest", str(tmp_path / "own.yaml"), "--json"]
    found = {each["what"]: each for each in json.loads(CliRunner().invoke(app, arguments).stdout)}
    needed = {what: each["needed"] for what, each in found.items() if what.startswith("weights")}
    assert needed == {"weights vggish": True, "weights resnet50": False, "weights pvt-v2-b5": False}
    assert "combo-r50-s4, combo-r50-ms3" in found["weights resnet50"]["state"]
    assert "run: combo weights fetch vggish resnet50 pvt-v2-b5;" in found["all weights"]["mend"]


def test_a_dry_run_notes_the_weights_that_training_starts_from(
    manifest_file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMBO_WEIGHTS", str(tmp_path))
    arguments = ["preprocess", "all", "--data", "ms3", "--manifest", str(manifest_file())]
    done = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert done.exit_code == 0
    assert "to train combo-r50-ms3, combo-pvt-ms3: weights are missing: resnet50 (" in done.stderr
    assert "run: combo weights fetch resnet50 pvt-v2-b5;" in done.stderr
    assert done.stdout.count(" of 2 clips to do (") == 9


def test_the_road_on_the_command_line(tmp_path: Path, manifest_file) -> None:
    manifest = str(manifest_file())
    where = ("--data", "s4", "--split", "test", "--manifest", manifest)
    planned = combo("preprocess", "frames", *where, "--dry-run")
    assert (planned.returncode, planned.stdout.count("clips to do (")) == (0, 1)
    assert not (tmp_path / "store").exists()

    done = combo("preprocess", "frames", *where, "--json")
    assert done.returncode == 0
    (summary,) = json.loads(done.stdout)
    assert (summary["units_computed"], summary["finished"], summary["failed"]) == (2, True, {})

    states = json.loads(combo("status", "--manifest", manifest, "--json").stdout)
    assert [(s["split"], s["stage"], s["state"]) for s in states] == [
        (split, stage, "finished" if (split, stage) == ("test", "frames") else "not begun")
        for split in ("train", "val", "test")
        for stage in ("frames", "audio", "maskige")
    ]
    assert [(s["done"], s["to_do"]) for s in states if s["variant"]] == [(3, 0)]
    verified = combo("verify", "--manifest", manifest, "--json")
    assert json.loads(verified.stdout) == {"units_good": 2, "findings": [], "repaired": []}
    assert verified.returncode == 0
    assert combo("verify", "--manifest", manifest, "--full").returncode == 1

    missing = combo("doctor", "--manifest", manifest, "--json")
    assert missing.returncode == 1
    by_name = {f["what"]: f for f in json.loads(missing.stdout)}
    assert by_name["s4/test"]["mend"] == (
        f"combo preprocess all --data s4 --split test --manifest {manifest}"
    )


def test_a_sample_brings_a_manifest_that_reads_it(tmp_path: Path) -> None:
    where = tmp_path / "sample"
    counts = ["--s4", "0,0,0", "--ms3", "1,1,1", "--avss", "0,0,0"]
    for _ in range(2):  # the second finds it done
        assert CliRunner().invoke(app, ["sample", str(where), *counts]).exit_code == 0
    manifest = str(where / "data_manifest.yaml")
    done = combo("preprocess", "all", "--data", "ms3", "--manifest", manifest, "--json")
    assert [stage["finished"] for stage in json.loads(done.stdout)] == [True] * 9


def test_a_failed_clip_is_exit_code_1_and_named(
    sample: Path, tmp_path: Path, manifest_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    root = shutil.copytree(sample, tmp_path / "own")
    sound = next(root.glob("AVSBench_object/Single-source/s4_data/audio_wav/test/*/*.wav"))
    sound.unlink()
    where = ("--data", "s4", "--split", "test", "--manifest", str(manifest_file(root)))
    failed = combo("preprocess", "all", *where)
    assert failed.returncode == 1
    assert re.search(r"preprocessing: (\d+)/\1, took .+, 1 failed", failed.stderr)
    assert sound.name in failed.stderr
    assert "--retry-failed" in failed.stderr


def test_results_go_to_stdout_and_notes_to_stderr(manifest_file) -> None:
    done = process("preprocess", "frames", "--data", "ms3", "--manifest", str(manifest_file()))
    assert "finished" in done.stdout
    assert "took" in done.stderr
    quiet = process(
        "preprocess", "frames", "--data", "ms3", "--manifest", str(manifest_file()), "--quiet"
    )
    assert quiet.stderr == ""
    assert "\x1b" not in done.stdout + done.stderr


# what a command is started by, and told


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_command_that_torchrun_would_have_done_twice_is_refused_once(rank: str) -> None:
    several = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": rank}
    command = [sys.executable, "-m", "combo", "evaluate", "a run"]
    environment = {**os.environ, **several}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    expected = "combo: torchrun started several processes, which combo train alone makes one run of"
    assert done.stderr.startswith(expected) == (rank == "0")
    assert done.stderr.count("\n") == (rank == "0")
    alone = {**environment, "WORLD_SIZE": "1"}
    done = subprocess.run(command, env=alone, capture_output=True, text=True, check=False)
    assert "a run: no such run folder" in done.stderr
    asked = [*command[:3], "--version"]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


TOLD_IN_ITS_IMPORTS = """
import os, signal, sys
from combo import cli

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also under nohup

class Told:
    def find_spec(self, name, *_):
        if name == "torch":
            os.kill(os.getpid(), signal.{})

sys.meta_path.insert(0, Told())
cli.main()
"""


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGUSR1", "SIGHUP"])
def test_told_to_stop_before_it_listens_a_command_says_so(signal: str) -> None:
    told = [sys.executable, "-c", TOLD_IN_ITS_IMPORTS.format(signal), "evaluate", "a run"]
    done = subprocess.run(told, capture_output=True, text=True, check=False)
    again = "nothing of it is kept; begin again with: combo evaluate 'a run'"
    assert done.stderr == f"combo: told to stop; {again}\n"
    assert done.returncode == 75
