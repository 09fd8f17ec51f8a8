"""Weights: fetched whole or not at all, never replaced in silence, never run."""

import fcntl
import functools
import hashlib
import http.server
import io
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from combo.pipeline import weights
from combo.pipeline.errors import ComboError
from combo.pipeline.manifest import DataSet, Manifest, WeightFile
from combo.pipeline.weights_catalogue import CATALOGUE, Weights

BODY = b"PK\x03\x04" + np.random.default_rng(5).bytes(3_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """A file server whose faults can be set: what the internet does to a download."""

    daemon_threads = True
    body: bytes = BODY
    cut_after: int | None = None
    ranges: str = "kept"  # or "ignored", "refused", "unimplemented"
    etag: str | None = '"one"'
    failures: int = 0
    length: int | None = None
    chunked: bool = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may hang up
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append((self.path, wanted))
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/file.pth")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if server.failures > 0 or self.path == "/gone":
            server.failures -= 1
            self.send_error(404 if self.path == "/gone" else 503)
            return
        body, status, first = server.body, 200, 0
        unchanged = self.headers.get("If-Range") in (None, server.etag)
        if wanted and server.ranges in ("refused", "unimplemented"):
            self.send_error(416 if server.ranges == "refused" else 501)
            return
        if wanted and server.ranges == "kept" and unchanged:
            status, first = 206, int(wanted.removeprefix("bytes=").removesuffix("-"))
            if first >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(status)
        if server.etag:
            self.send_header("ETag", server.etag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        if server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(server.length or len(body) - first))
        self.end_headers()
        sent = body[first:] if server.cut_after is None else body[first:][: server.cut_after]
        if server.chunked:
            sent = b"%x\r\n%s\r\n0\r\n\r\n" % (len(sent), sent)
        self.wfile.write(sent)
        self.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "weights"
    monkeypatch.setenv("COMBO_WEIGHTS", str(place))
    return place


@pytest.fixture
def published(server: Server, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """An entry for what the server has; its digest stands in its name, as PyTorch does it."""
    name = f"net-{SHA256[:8]}.pth"
    known = Weights("net", name, f"{server.url}file.pth", server.url, "MIT", "a test's")
    monkeypatch.setitem(CATALOGUE, "net", known)
    return known


fetch = functools.partial(weights.fetch, pause=0.0)


def only_file(folder: Path) -> Path:
    (path,) = (p for p in folder.iterdir() if p.name != ".digests.json")
    return path


# the catalogue


def test_digests_in_file_names_follow_pytorchs_rule():
    starts = {name: CATALOGUE[name].digest_start for name in CATALOGUE}
    assert starts["vggish"] == "10086976"
    assert starts["vggish-pca"] == "970ea276"
    assert starts["semantic-sam-l"] is None


def test_sams_digests_are_known_in_full_and_its_names_hold_another_kind():
    for name, md5 in (("b", "01ec64"), ("l", "0b3195"), ("h", "4b8939")):
        known = CATALOGUE[f"sam-vit-{name}"]
        assert known.file == f"sam_vit_{name}_{md5}.pth"
        assert len(known.digest_start or "") == 64
        assert not (known.digest_start or "").startswith(md5)


def test_every_entry_says_where_it_is_published_and_under_which_terms():
    for known in CATALOGUE.values():
        assert known.source.startswith("https://")
        assert known.licence
        assert known.about
    assert len({known.file for known in CATALOGUE.values()}) == len(CATALOGUE)


def test_importing_it_does_not_import_torch():
    code = "import sys, combo.pipeline.weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# locating


def test_missing_weights_are_one_line_with_file_place_and_remedies():
    with pytest.raises(ComboError) as caught:
        weights.locate("sam-vit-b")
    text = str(caught.value)
    for part in (
        "sam_vit_b_01ec64.pth",
        "https://dl.fbaipublicfiles.com/segment_anything/",
        "combo weights fetch sam-vit-b",
        "combo weights add sam-vit-b FILE",
        "weights.sam-vit-b.path in data_manifest.yaml",
    ):
        assert part in text
    assert "\n" not in text


def test_a_path_in_the_manifest_is_meant_and_nothing_takes_its_place(tmp_path: Path, folder: Path):
    folder.mkdir()
    (folder / "vggish-10086976.pth").write_bytes(BODY)
    given = tmp_path / "mine.pth"
    with pytest.raises(ComboError, match=r"no file .*mine\.pth, which data_manifest\.yaml gives"):
        weights.locate("vggish", {"vggish": given})
    given.write_bytes(BODY)
    assert weights.locate("vggish", {"vggish": given}) == given
    assert weights.locate("vggish", {}) == folder / "vggish-10086976.pth"


def test_unknown_weights_are_one_line_with_the_names_there_are():
    with pytest.raises(ComboError, match=r"'sam'; did you mean sam-vit-b\? There are sam-vit-b, "):
        weights.locate("sam")


def test_resolving_gives_the_digest_and_refuses_another_file(tmp_path: Path, published: Weights):
    path = tmp_path / "mine.pth"
    path.write_bytes(BODY)

    def manifest(sha256: str | None) -> Manifest:
        sets = {"s4": DataSet(layout="avsbench-s4", root="data")}
        given = {"net": WeightFile(path=str(path), sha256=sha256)}
        return Manifest(data_sets=sets, weights=given)

    assert weights.resolve("net", manifest(None)) == (path, SHA256)
    assert weights.resolve("net", manifest(SHA256[:12].upper())) == (path, SHA256)
    with pytest.raises(ComboError, match=rf"SHA-256 begins {SHA256[:16]}, expected 1234"):
        weights.resolve("net", manifest("1234"))
    path.write_bytes(b"PK other bytes")
    with pytest.raises(ComboError, match=published.file.split("-")[1][:8]):
        weights.resolve("net", manifest(None))


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path, folder: Path):
    path = tmp_path / "a.pth"
    path.write_bytes(b"first")
    assert weights.digest(path) == hashlib.sha256(b"first").hexdigest()
    stamp = path.stat()
    path.write_bytes(b"FIRST")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert weights.digest(path) == hashlib.sha256(b"first").hexdigest()  # not read again
    path.write_bytes(b"second")
    assert weights.digest(path) == hashlib.sha256(b"second").hexdigest()
    (folder / ".digests.json").write_text("damaged")
    assert weights.digest(path) == hashlib.sha256(b"second").hexdigest()


# fetching


def test_a_fetched_file_is_whole_checked_and_alone(published: Weights, folder: Path):
    seen: list[tuple[int, int | None]] = []
    path = fetch("net", progress=lambda done, total: seen.append((done, total)))
    assert path == folder / published.file == only_file(folder)
    assert path.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert seen == sorted(seen)


def test_what_is_there_is_not_fetched_again(published: Weights, server: Server):
    fetch("net")
    count = len(server.requests)
    assert fetch("net").name == published.file
    assert len(server.requests) == count


def test_a_connection_cut_again_and_again_is_taken_up_where_it_broke(published, server, folder):
    server.cut_after = 700_000
    assert fetch("net").read_bytes() == BODY
    first = [wanted for _, wanted in server.requests]
    assert first == [None, *(f"bytes={700_000 * n}-" for n in range(1, 5))]
    assert only_file(folder).name == published.file


def test_a_connection_that_brings_nothing_more_ends_in_one_line_and_the_next_call_goes_on(
    published, server, folder
):
    server.cut_after = 1_000_000

    def die(done: int, total: int | None) -> None:
        del total
        if done >= 1_000_000:
            server.cut_after = 0

    with pytest.raises(ComboError, match=r"cut after .* 1000000 bytes are kept, go on with: combo"):
        fetch("net", progress=die)
    assert not (folder / published.file).exists()
    server.cut_after = None
    server.requests.clear()
    assert fetch("net").read_bytes() == BODY
    assert server.requests == [("/file.pth", "bytes=1000000-")]


def leave_part(folder: Path, published: Weights, data: bytes, etag: str | None = None) -> None:
    folder.mkdir()
    (folder / f".{published.file}.part").write_bytes(data)
    if etag:
        (folder / f".{published.file}.part.etag").write_text(etag)


@pytest.mark.parametrize("ranges", ["ignored", "refused", "unimplemented"])
def test_a_server_without_ranges_is_asked_for_the_whole_file(published, server, folder, ranges):
    leave_part(folder, published, b"from another server altogether")
    server.ranges = ranges
    assert fetch("net").read_bytes() == BODY


def test_a_part_of_a_file_that_has_changed_on_the_server_is_given_up(published, server, folder):
    leave_part(folder, published, b"an older edition", etag='"zero"')
    assert fetch("net").read_bytes() == BODY
    assert server.requests == [("/file.pth", "bytes=16-")]


def test_a_part_that_was_complete_is_only_checked(published, server, folder):
    leave_part(folder, published, BODY, etag='"one"')
    assert fetch("net").read_bytes() == BODY
    assert server.requests == [("/file.pth", f"bytes={len(BODY)}-")]
    assert only_file(folder).name == published.file


def test_a_part_longer_than_the_file_is_given_up(published, server, folder):
    leave_part(folder, published, BODY + b"more")
    assert fetch("net").read_bytes() == BODY
    assert server.requests == [("/file.pth", f"bytes={len(BODY) + 4}-"), ("/file.pth", None)]


def test_a_redirection_is_followed_and_still_resumed(published, server, folder):
    leave_part(folder, published, BODY[:1000])
    assert fetch("net", url=f"{server.url}moved").read_bytes() == BODY
    assert server.requests == [("/moved", "bytes=1000-"), ("/file.pth", "bytes=1000-")]


def test_a_server_busy_for_a_moment_is_asked_again(published: Weights, server: Server):
    server.failures = 2
    assert fetch("net").name == published.file


@pytest.mark.usefixtures("published")
def test_a_file_of_unknown_length_is_fetched_too(server: Server):
    server.chunked = True
    server.etag = None
    assert fetch("net").read_bytes() == BODY


@pytest.mark.usefixtures("published")
def test_another_digest_than_the_published_one_leaves_nothing(server, folder):
    server.body = b"PK\x03\x04 somebody else's bytes"
    with pytest.raises(ComboError, match=rf"SHA-256 begins .*, expected {SHA256[:8]};"):
        fetch("net")
    assert list(folder.iterdir()) == []


def test_a_web_page_in_place_of_the_file_is_refused(server, monkeypatch):
    page = Weights("free", "free.pth", f"{server.url}x", server.url, "MIT", "without a digest")
    monkeypatch.setitem(CATALOGUE, "free", page)
    server.body = b"<!DOCTYPE html><html>please log in</html>"
    with pytest.raises(ComboError, match="no weights file"):
        fetch("free")
    server.body = BODY  # begins like an archive and is none
    with pytest.raises(ComboError, match="damaged or cut off"):
        fetch("free")
    server.body = archive()
    assert fetch("free").read_bytes() == archive()


def archive() -> bytes:
    """A zip file as PyTorch writes them: entries as they are, each with its checksum, no times."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr(zipfile.ZipInfo("archive/data.pkl"), b"\x80")
        file.writestr(zipfile.ZipInfo("archive/data/0"), bytes(range(256)) * 40)
    return made.getvalue()


def test_without_a_published_digest_an_archives_own_checksums_tell_damage(tmp_path, folder):
    whole = archive()
    flipped = bytearray(whole)
    flipped[5000] ^= 1
    for damaged, text in (
        (whole[:9000], "damaged or cut off"),
        (flipped, "damaged at archive/data/0"),
    ):
        mine = tmp_path / "mine.pth"
        mine.write_bytes(damaged)
        with pytest.raises(ComboError, match=text) as caught:
            weights.add("semantic-sam-l", mine)
        assert "\n" not in str(caught.value)
        assert not folder.exists()
        (verdict,) = weights.verify(["semantic-sam-l"], {"semantic-sam-l": mine})
        assert (verdict.state, text in verdict.reason) == ("wrong", True)


def test_another_size_than_the_published_one_is_refused_before_it_is_fetched(
    published, monkeypatch
):
    entry = Weights("net", published.file, published.url, published.page, "MIT", "", size=17)
    monkeypatch.setitem(CATALOGUE, "net", entry)
    with pytest.raises(ComboError, match="3000004 bytes there, 17 expected"):
        fetch("net")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("{server}gone", "answered 404"),
        ("http://127.0.0.1:1/x", "no connection"),
        ("file:///etc/passwd", "no https address"),
    ],
)
@pytest.mark.usefixtures("published")
def test_an_address_without_the_file_is_one_line(server, url: str, text: str):
    with pytest.raises(ComboError, match=text) as caught:
        fetch("net", url=url.format(server=server.url))
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_that_says_so(published, folder):
    folder.mkdir()
    (folder / f".{published.file}.part").symlink_to("/dev/full")
    with pytest.raises(ComboError, match=r"the disk is full; .*combo weights fetch net"):
        fetch("net")


@pytest.mark.usefixtures("published")
def test_more_bytes_than_the_disk_has_free_are_not_begun(server):
    server.length = 1 << 60
    with pytest.raises(ComboError, match=r"bytes to fetch and \d+ free"):
        fetch("net")


def test_two_processes_do_not_write_into_one_part(published, folder):
    leave_part(folder, published, b"")
    with (folder / f".{published.file}.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ComboError, match="another process is fetching it"):
            fetch("net")
    assert fetch("net").read_bytes() == BODY


def test_what_is_published_on_a_page_only_says_how_to_give_it():
    with pytest.raises(ComboError, match=r"huggingface\.co/YannQi.*combo weights add combo-r50-s4"):
        fetch("combo-r50-s4")


# adding and verifying


def test_an_added_file_is_copied_after_it_was_checked(tmp_path: Path, published, folder):
    mine = tmp_path / "downloaded by hand.pth"
    mine.write_bytes(b"PK\x03\x04 not it")
    with pytest.raises(ComboError, match="SHA-256"):
        weights.add("net", mine)
    assert not folder.exists()
    mine.write_bytes(BODY)
    assert weights.add("net", mine).read_bytes() == BODY
    assert only_file(folder).name == published.file
    assert weights.add("net", folder / published.file) == folder / published.file
    with pytest.raises(ComboError, match="no such file; run: combo weights add net FILE"):
        weights.add("net", tmp_path / "nowhere")


@pytest.mark.usefixtures("published")
def test_verifying_reads_every_byte_anew():
    path = fetch("net")
    weights.digest(path)
    assert [(v.name, v.state) for v in weights.verify()] == [("net", "good")]
    stamp = path.stat()
    path.write_bytes(BODY[:-1] + b"?")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    (verdict,) = weights.verify(["net"])
    assert verdict.state == "wrong"
    assert str(path) in verdict.reason


def test_verifying_tells_missing_and_undigested_files_apart(folder: Path):
    folder.mkdir()
    (folder / CATALOGUE["semantic-sam-t"].file).write_bytes(archive())
    found = weights.verify(["semantic-sam-t", "vggish"])
    assert [v.state for v in found] == ["unpublished", "missing"]
    assert found[0].sha256 == hashlib.sha256(archive()).hexdigest()


def test_the_list_says_what_is_there_and_who_gave_it(tmp_path: Path, folder: Path):
    folder.mkdir()
    (folder / CATALOGUE["vggish"].file).write_bytes(BODY)
    listed = {h.weights.name: h for h in weights.held({"sam-vit-h": tmp_path / "h.pth"})}
    assert listed.keys() == CATALOGUE.keys()
    assert (listed["vggish"].there, listed["vggish"].given_by) == (True, "folder")
    assert (listed["sam-vit-h"].there, listed["sam-vit-h"].given_by) == (False, "manifest")


def test_a_user_without_a_home_is_told_which_folder_to_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COMBO_WEIGHTS", "~nobody-of-this-name/weights")
    with pytest.raises(ComboError, match="run: export COMBO_WEIGHTS=FOLDER"):
        weights.weights_folder()
    monkeypatch.setenv("COMBO_WEIGHTS", str(tmp_path))
    assert weights.weights_folder() == tmp_path
