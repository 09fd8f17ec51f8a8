"""The `combo` command: its groups put together, and exit codes.

Exit codes: 0 done, 1 done with failures or failed, 2 wrong usage, 75 told to stop (SIGTERM,
SIGHUP, SIGUSR1) before the end, 130 interrupted. Everything heavy is imported by the command that
needs it, so that `combo --help` is there at once.
"""

import os
import sys
from typing import Annotated

import typer

from . import __version__
from .pipeline.commands import (
    ablations,
    clusters,
    demo,
    evaluations,
    imports,
    predictions,
    preprocess,
    reports,
    runs,
    samples,
    scores,
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
    preprocess, clusters, imports, stores, runs, evaluations, predictions, scores, ablations,
    reports, samples, demo,
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


def main() -> None:
    """Run the command line."""
    from .pipeline.console import Output, streams
    from .pipeline.errors import ComboError
    from .pipeline.jobs.stopping import EXIT_CODE, Stopped

    _demand_utf8()
    try:
        with streams():
            app()
    except ComboError as error:
        Output().warn(f"combo: {error}")
        sys.exit(error.exit_code)
    except (Stopped, KeyboardInterrupt) as end:
        told, code = ("told to stop", EXIT_CODE) if isinstance(end, Stopped) else ("stopped", 130)
        Output().warn(f"combo: {told}; {str(end) or 'the same command goes on where this one was'}")
        sys.exit(code)
