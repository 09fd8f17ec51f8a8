"""The `combo` command: its groups put together, and exit codes.

Exit codes: 0 done, 1 done with failures or failed, 2 wrong usage, 75 told to stop (SIGTERM,
SIGHUP, SIGUSR1) before the end, 130 interrupted (Ctrl-C). Everything heavy is imported by the
command that needs it, so that `combo --help` is there at once.
"""

import os
import re
import sys
import warnings
from typing import Annotated, Any, cast

import typer

from . import __version__
from .pipeline.commands import (
    ablations,
    clusters,
    demo,
    evaluations,
    imports,
    init,
    predictions,
    preprocess,
    reports,
    runs,
    samples,
    scores,
    status,
    stores,
    weights,
)

app = typer.Typer(
    name="combo",
    help="Audio-visual segmentation with COMBO: which pixels make the sound that is heard?",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_GROUPS = (
    init, preprocess, clusters, imports, status, stores, runs, evaluations, predictions, scores,
    ablations, reports, samples, demo,
)  # fmt: skip
for _group in _GROUPS:
    app.add_typer(_group.app)
app.add_typer(weights.app, name="weights")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"combo {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


def _demand_utf8() -> None:
    """Names of files are UTF-8, whatever the locale is. Where Python takes them for something else,
    this process begins once more with Python's switch for that; those that it starts inherit it."""
    if sys.getfilesystemencoding() != "utf-8" and sys.executable:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


_ALONE = (
    "combo: torchrun started several processes, which combo train alone makes one run of; give "
    "this command by itself, or after: env -u TORCHELASTIC_RUN_ID"
)


def _is_one_of_several() -> bool:
    """Whether torchrun started several processes, each of which would do this command's work."""
    several = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    return several and bool(words) and words[0] != "train"


def main() -> None:
    """Run the command line."""
    from .pipeline.commands.options import same_command
    from .pipeline.console import Output, streams
    from .pipeline.errors import ComboError
    from .pipeline.jobs.stopping import EXIT_CODE, Interrupted, Stopped, leaving

    _demand_utf8()
    if _is_one_of_several():
        if os.environ.get("RANK", "0") == "0":
            Output().warn(_ALONE)
        sys.exit(2)
    try:
        with streams(), leaving():
            code = app(prog_name="combo", standalone_mode=False)
    except ComboError as error:
        Output().warn(f"combo: {error}")
        sys.exit(error.exit_code)
    except _USAGE as error:
        _tell_usage(error)
        sys.exit(2)
    except (Stopped, Interrupted) as end:
        # Said of what was cut off, when it is put away.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        told, code = ("told to stop", EXIT_CODE) if isinstance(end, Stopped) else ("stopped", 130)
        Output().warn(f"combo: {told}; {str(end) or f'begin again with: {same_command()}'}")
    sys.exit(code if isinstance(code, int) else 0)


_USAGE = cast("type[Exception]", typer.BadParameter.__mro__[1])
"""What the library that reads command lines raises for a wrong one."""


def _tell_usage(error: Any) -> None:
    """One line, as for other errors; the help, where nothing was asked for."""
    from .pipeline.console import Output
    from .pipeline.errors import nearest

    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return
    said = " ".join(error.format_message().split()).rstrip(".")
    said = said.removeprefix("Invalid value: ").replace("Value error, ", "")
    if choice := re.search(r"'([^']*)' is not one of (.*)", said):
        near = nearest(choice[1], re.findall(r"'(.*?)'", choice[2]))
        said += f"; did you mean {near}?" if near else ""
    path = error.ctx.command_path if error.ctx else "combo"
    Output().warn(f"combo: {said}{' See' if said.endswith('?') else '; see'}: {path} --help")
