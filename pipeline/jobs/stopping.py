"""What a job does when it is told to go.

Schedulers send SIGUSR1 some time before the end, SIGTERM shortly before they kill. The first means:
finish the units in hand, begin no other. The second: leave them, now; what they had written under
temporary names is removed on the way out, and they are not done. A terminal that is closed (SIGHUP)
means that, too, but for a process that was told to outlive it (`nohup`). Training, whose steps are
short, takes both for the first: it finishes its step and writes a checkpoint.
"""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 75
"""EX_TEMPFAIL: stopped before the end; the same command goes on where this one was."""


class Stopped(BaseException):
    """The job was told to go. No Exception, so that no code which survives a bad clip holds it.

    Its text, where there is one, says what goes on where this one was.
    """


class Stop:
    """Whether this process was asked to begin no other unit.

    warned: by SIGUSR1, that its time is nearly over.
    """

    def __init__(self) -> None:
        self.asked = False
        self.warned = False


def hears_its_terminal() -> bool:
    """Whether this process was not told to outlive its terminal."""
    return signal.getsignal(signal.SIGHUP) != signal.SIG_IGN


@contextmanager
def listening(at_once: bool = True) -> Generator[Stop]:
    """Within the block SIGUSR1 sets `asked` and `warned`; SIGTERM and SIGHUP raise `Stopped` at
    once, or with `at_once` False set `asked`.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread hears signals
        return

    def ask(_signal: int, _frame: FrameType | None) -> None:
        stop.asked = stop.warned = True

    def leave(_signal: int, _frame: FrameType | None) -> None:
        for number in leaving:  # a second one must not break the tidying up
            signal.signal(number, signal.SIG_IGN)
        stop.asked = True
        if at_once:
            raise Stopped

    leaving = [signal.SIGTERM, *([signal.SIGHUP] if hears_its_terminal() else ())]
    before = {signal.SIGUSR1: signal.signal(signal.SIGUSR1, ask)}
    before |= {number: signal.signal(number, leave) for number in leaving}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
