"""Runs `combo` again and again in children of one process that has imported everything.

    python served.py ASKED ANSWERED   numbers of two pipes

A line of JSON asks: the words of a command. The child has the terminal's streams, and Ctrl-C is the
terminal's own. A line answers: its exit code.
"""

import json
import os
import signal
import sys
import traceback
from typing import NoReturn


def child(words: list[str]) -> NoReturn:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["combo", *words]
    code: object = 1
    try:
        from combo.cli import main

        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


def serve(asked: int, answered: int) -> None:
    import combo.cli
    import combo.pipeline.jobs.plan
    import combo.pipeline.train.start  # noqa: F401

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(asked) as questions, os.fdopen(answered, "w", buffering=1) as answers:
        answers.write("ready\n")
        for line in questions:
            pid = os.fork()
            if pid == 0:
                child(json.loads(line))
            _, status = os.waitpid(pid, 0)
            answers.write(f"{os.waitstatus_to_exitcode(status)}\n")


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
