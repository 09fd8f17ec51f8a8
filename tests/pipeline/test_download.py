"""What a download takes from a server that means no good: no more than was asked, and no longer."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from combo.pipeline import download as module
from combo.pipeline.download import download
from combo.pipeline.errors import ComboError

Serve = Callable[[Callable[[socket.socket], None]], str]
HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Runs a server that answers every connection as told, and gives its address."""
    listeners: list[socket.socket] = []

    def start(answer: Callable[[socket.socket], None]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(connection,), daemon=True).start()

        def one(connection: socket.socket) -> None:
            with connection:
                try:
                    connection.recv(1 << 16)
                    answer(connection)
                except OSError:
                    pass  # the client has left

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/file.pth"

    yield start
    for listener in listeners:
        listener.close()


def fetch(url: str, folder: Path, **given: object) -> Path:
    target = folder / "file.pth"
    download(url, target, Path.exists, again="again", pause=0.0, **given)  # type: ignore[arg-type]
    return target


def endless(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + bytes(1 << 16) + b"\r\n")


def test_a_download_stops_at_the_size_that_is_expected(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(ComboError, match="more than the 1000000 bytes expected"):
        fetch(serve(endless), tmp_path, size=1_000_000)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1_000_000


def drip(text: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.sendall(text)
        for _ in range(40):  # four times what the client has patience for; then it is cut
            time.sleep(0.05)
            connection.sendall(b"1")

    return answer


def silence(connection: socket.socket) -> None:
    """Nothing at all, until the client leaves, or for as long as `drip`."""
    connection.settimeout(2)
    connection.recv(1)


@pytest.mark.parametrize(
    "answer",
    [
        drip(b""),  # a status line without end
        drip(HEAD + b"X: "),
        drip(HEAD + b"Transfer-Encoding: chunked\r\n\r\n"),
        drip(HEAD + b"Content-Length: 1000000\r\n\r\n"),
        silence,
    ],
)
def test_who_brings_nothing_useful_for_a_while_is_given_up(
    serve: Serve, tmp_path: Path, answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    with pytest.raises(ComboError, match=r"nothing useful came for 0\.5 s.*go on with: again"):
        fetch(serve(answer), tmp_path)


def test_bytes_that_were_there_before_are_nothing_useful(serve: Serve, tmp_path: Path) -> None:
    lengths = iter([30_000, 20_000, 29_000, 10_000, 28_000])

    def cut(connection: socket.socket) -> None:
        connection.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n" + bytes(next(lengths)))

    with pytest.raises(ComboError, match="connection cut after"):
        fetch(serve(cut), tmp_path)
    assert next(lengths) == 28_000


@pytest.mark.parametrize(
    "address", ["http://example.org/x", "ftp://example.org/x", "file:///etc/passwd"]
)
def test_no_address_but_https_is_followed(serve: Serve, tmp_path: Path, address: str) -> None:
    def elsewhere(connection: socket.socket) -> None:
        connection.sendall(
            f"HTTP/1.1 302 Found\r\nLocation: {address}\r\nContent-Length: 0\r\n\r\n".encode()
        )

    for url in (serve(elsewhere), address):
        with pytest.raises(ComboError, match=r"no https address|302"):
            fetch(url, tmp_path)
    assert not (tmp_path / "file.pth").exists()
