"""What a job does when it is told to go.

Schedulers send SIGUSR1 some time before the end, SIGTERM shortly before they kill. The first means:
finish the units in hand, begin no other. The second: leave them, now; what they had written under
temporary names is removed on the way out, and they are not done. A terminal that is closed (SIGHUP)
means that, too, but for a process that was told to outlive it (`nohup`). Training, whose steps are
short, takes them all for the first, and Ctrl-C too: it finishes its step and writes a checkpoint.
"""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

Handlers = dict[signal.Signals, Callable[[int, FrameType | None], None]]

EXIT_CODE = 75
"""EX_TEMPFAIL: stopped before the end; the same command goes on where this one was."""


class Stopped(BaseException):
    """The job was told to go. No Exception, so that no code which survives a bad clip holds it.

    Its text, where there is one, says what goes on where this one was.
    """


class Interrupted(BaseException):
    """Ctrl-C. What reads the command line makes a silent exit of KeyboardInterrupt.

    Its text, where there is one, says what was done and what goes on.
    """


class Stop:
    """Whether this process was asked to begin no other unit.

    warned: by SIGUSR1, that its time is nearly over.  interrupted: by Ctrl-C.
    """

    def __init__(self) -> None:
        self.asked = False
        self.warned = False
        self.interrupted = False


def hears_its_terminal() -> bool:
    """Whether this process was not told to outlive its terminal."""
    return signal.getsignal(signal.SIGHUP) != signal.SIG_IGN


@contextmanager
def _heard(handlers: Handlers) -> Generator[None]:
    """Within the block these are called; only the main thread hears signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    except Stopped:
        # Told once is enough: an outer block, which puts back what was before it, is on its way.
        for number in before.keys() - {signal.SIGINT}:
            before[number] = signal.SIG_IGN if callable(before[number]) else before[number]
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _orders() -> list[signal.Signals]:
    """Signals that mean: leave now."""
    return [signal.SIGTERM, *([signal.SIGHUP] if hears_its_terminal() else ())]


@contextmanager
def leaving() -> Generator[None]:
    """Within the block each signal that tells to go, and is not ignored, raises `Stopped`, but for
    inner blocks that listen; the second one ends the process."""
    told = [signal.SIGUSR1, *_orders()]
    numbers = [number for number in told if signal.getsignal(number) != signal.SIG_IGN]

    def leave(_signal: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        raise Stopped

    with _heard(dict.fromkeys(numbers, leave)):
        yield


@contextmanager
def listening(
    at_once: bool = True, on_interrupt: Callable[[], None] = lambda: None
) -> Generator[Stop]:
    """Within the block SIGUSR1 sets `asked` and `warned`; SIGTERM and SIGHUP raise `Stopped` at
    once, or with `at_once` False set `asked`, and so does the first Ctrl-C, which then is told.
    """
    stop = Stop()
    orders = _orders()
    at_first = signal.getsignal(signal.SIGINT)

    def ask(_signal: int, _frame: FrameType | None) -> None:
        stop.asked = stop.warned = True

    def leave(_signal: int, _frame: FrameType | None) -> None:
        for number in orders:  # a second one must not break the tidying up
            signal.signal(number, signal.SIG_IGN)
        stop.asked = True
        if at_once:
            raise Stopped

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, at_first)  # a second one leaves at once
        stop.asked = stop.interrupted = True
        on_interrupt()

    handlers: Handlers = {signal.SIGUSR1: ask, **dict.fromkeys(orders, leave)}
    if not at_once:
        handlers[signal.SIGINT] = interrupt
    with _heard(handlers):
        yield stop
