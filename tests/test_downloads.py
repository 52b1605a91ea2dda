"""The scripts that download checkpoints and data sets, run as a user runs them, against a hub on this machine."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
CHOICES = {  # script, choice -> folder seen from the top of the clone, address of the archive
    ("models", "compvis"): ("../models/compvis", "/nebulaanish/unlearn_models/resolve/main/compvis.zip"),
    ("models", "diffuser"): ("../models/diffuser", "/nebulaanish/unlearn_models/resolve/main/diffuser.zip"),
    ("i2p_dataset", "sample"): (
        "data/i2p-dataset/sample",
        "/datasets/dipeshlav/sample_i2p_dataset/resolve/main/sample.zip",
    ),
    ("i2p_dataset", "full"): ("data/i2p-dataset/full", "/datasets/nebulaanish/i2p-dataset/resolve/main/full.zip"),
    ("quick_canvas_dataset", "sample"): (
        "data/quick-canvas-dataset/sample",
        "/datasets/dipeshlav/sample-quick-unlearn-canvas/resolve/main/sample-quick-unlearn-canvas.zip",
    ),
    ("quick_canvas_dataset", "full"): (
        "data/quick-canvas-dataset/full",
        "/datasets/nebulaanish/quick-canvas-benchmark/resolve/main/full.zip",
    ),
}
COMMIT = "0" * 40
COMPVIS = ("download_models.sh", "compvis")
PART = "models/compvis.zip.part"
CHUNK = 10 * 2**20
"""What the hub's library writes at once."""


def archive(members: dict[str, bytes], link: str | None = None) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as file:
        for name, data in members.items():
            file.writestr(name, data)
        if link is not None:
            entry = zipfile.ZipInfo("link")
            entry.create_system, entry.external_attr = 3, 0o120777 << 16
            file.writestr(entry, link)
    return content.getvalue()


MEMBERS = {"weights/model.bin": bytes(range(256)) * 400, "card.md": b"a card\n"}
GOOD = archive(MEMBERS)
PAGE = b"<!doctype html><title>Sign in</title>"


@pytest.fixture(scope="module")
def big() -> bytes:
    return archive({"model.bin": bytes(range(256)) * 10**5})


@dataclass
class Host:
    """A hub that can misbehave. Every file but those of ``files`` is ``body``."""

    body: bytes = GOOD
    status: int = 200
    head_status: int = 200
    size: int | None = None
    """What it announces, where that is not the truth."""
    stop_after: int | None = None
    """Break the connection after so many bytes of each answer, up to ``breaks`` times."""
    breaks: int = 10**6
    reset: bool = False
    """Break it hard, as a lost network does."""
    hang: threading.Event | None = None
    """With ``stop_after``: hold the connection open until this is set."""
    ranges: bool = True
    redirect: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    """The single files of every data set."""
    refused: str = "nothing"
    """Paths that hold this are answered with 403."""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Range header of each request."""
    url: str = ""

    def got(self) -> list[str | None]:
        return [span for method, path, span in self.asked if method == "GET" and "/resolve/" in path]

    def find(self, path: str) -> tuple[int, bytes]:
        if self.refused in path:
            return 403, b""
        if path.startswith("/api/agent"):  # the hub's library asks for more than the files
            return 404, b""
        if path.startswith("/api/"):
            tree = [{"type": "file", "path": name, "size": len(self.files[name]), "oid": COMMIT} for name in self.files]
            return 200, json.dumps(tree if "/tree/" in path else {"id": "a/b", "sha": COMMIT}).encode()
        name = path.rpartition(f"/resolve/{COMMIT}/")[2]
        return (200, self.files[name]) if name in self.files else (self.status, self.body)


class Handler(BaseHTTPRequestHandler):
    host: Host

    def do_HEAD(self) -> None:
        host = self.host
        host.asked.append(("HEAD", self.path, None))
        status, body = host.find(self.path)
        if host.redirect:
            return self.reply(302, 0, **self.elsewhere(), **{"X-Linked-Size": str(len(body))})
        self.reply(host.head_status if status == 200 else status, len(body) if host.size is None else host.size)

    def do_GET(self) -> None:
        host, span = self.host, self.headers.get("Range")
        host.asked.append(("GET", self.path, span))
        if host.redirect and not self.path.startswith("/store"):
            return self.reply(302, 0, **self.elsewhere())
        status, body = host.find(self.path)
        start = int(re.findall(r"\d+", span)[0]) if span and host.ranges and status == 200 else 0
        if start > len(body):
            return self.reply(416, 0)
        extra = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        self.reply(206 if start else status, len(body) - start, **extra)
        breaks = host.stop_after is not None and host.breaks > 0 and "/resolve/" in self.path
        self.wfile.write(body[start:][: host.stop_after if breaks else None])
        host.breaks -= breaks
        if breaks and host.hang:
            host.hang.wait(30)
        if breaks and host.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

    def elsewhere(self) -> dict[str, str]:
        """Another host, as far as the hub's library can tell."""
        return {"Location": f"{self.host.url.replace('127.0.0.1', 'localhost')}/store{self.path}"}

    def reply(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": length, "ETag": '"1"', "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (Handler,), {"host": host}))
    host.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield host
    server.shutdown()
    server.server_close()


@dataclass
class Clone:
    """The scripts in a fresh clone, with a PATH that holds what they need and nothing else."""

    top: Path
    bin: Path
    url: str = "http://127.0.0.1:9"  # nobody listens there
    settings: dict[str, str] = field(default_factory=dict)

    def start(self, script: str, *arguments: str, most: str = "unlimited") -> subprocess.Popen[str]:
        """``most``: kilobytes that fit in a file."""
        own = {"PATH": str(self.bin), "HOME": str(self.bin), "NO_PROXY": "127.0.0.1,localhost", "HF_ENDPOINT": self.url}
        command = ["bash", "-c", f'ulimit -f {most}; exec "$@"', "-", f"scripts/{script}", *arguments]
        return subprocess.Popen(
            command,
            cwd=self.top,
            env=own | self.settings,
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, script: str, *arguments: str, most: str = "unlimited") -> tuple[int, str, str]:
        process = self.start(script, *arguments, most=most)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def fails(self, code: int, script: str, *arguments: str, most: str = "unlimited") -> str:
        """The one line it says."""
        returned, _, err = self.run(script, *arguments, most=most)
        assert returned == code, err
        (line,) = err.splitlines()
        assert line.startswith(f"{script}: ")
        return line

    def python(self, folder: Path, options: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" {options} "$@"\n')
        (folder / "python3").chmod(0o755)

    def put(self, path: str, content: bytes) -> Path:
        file = self.top.parent / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file

    def files(self) -> dict[str, bytes]:
        """What the scripts left around: relative path -> content. Folders too, with no content."""
        around = {path.relative_to(self.top.parent).as_posix(): path for path in self.top.parent.rglob("*")}
        own = re.compile(r"bin|clone|clone/(scripts|\.venv)|(bin|clone/scripts|clone/\.venv)/.*")
        left = {name: path for name, path in around.items() if not own.fullmatch(name)}
        return {name: b"" if path.is_dir() else path.read_bytes() for name, path in left.items()}


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    clone = Clone(tmp_path / "clone", tmp_path / "bin")
    shutil.copytree(SCRIPTS, clone.top / "scripts")
    clone.python(clone.bin)
    for tool in ("bash", "dirname"):
        (clone.bin / tool).symlink_to(str(shutil.which(tool)))
    return clone


def holds(clone: Clone, folder: str, members: dict[str, bytes]) -> None:
    """``folder`` and the way to it are all that is there."""
    found = {name: data for name, data in clone.files().items() if not (clone.top.parent / name).is_dir()}
    assert found == {os.path.normpath(f"clone/{folder}/{name}"): data for name, data in members.items()}


@pytest.mark.parametrize("name", ["models", "i2p_dataset", "quick_canvas_dataset"])
def test_arguments(clone: Clone, name: str) -> None:
    script, choices = f"download_{name}.sh", [choice for each, choice in CHOICES if each == name]
    for flag in ("--help", "-h"):
        code, out, err = clone.run(script, flag)
        assert (code, err) == (0, "")
        assert f"scripts/{script} {{{'|'.join(choices)}}}" in out and all(f"/{choice}\n" in out for choice in choices)
    both = " ".join(choices)
    for arguments in ([], ["everything"], [both], choices, [""]):
        assert both in clone.fails(2, script, *arguments)
    assert clone.files() == {}
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", SCRIPTS / script], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("name", "choice"), CHOICES)
def test_download(clone: Clone, host: Host, name: str, choice: str) -> None:
    script, (folder, address) = f"download_{name}.sh", CHOICES[name, choice]
    assert "no network: 127.0.0.1:9 cannot be reached" in clone.fails(2, script, choice)
    assert clone.files() == {}
    clone.url = host.url
    code, out, err = clone.run(script, choice)
    assert (code, err) == (0, "") and f"downloading {host.url}{address} (102.6 kB)" in out
    holds(clone, folder, MEMBERS)
    assert [path for method, path, _ in host.asked if method == "GET" and "/resolve/" in path] == [address]
    before = len(host.asked)
    code, out, _ = clone.run(script, choice)
    assert code == 0 and "already there" in out and len(host.asked) == before
    holds(clone, folder, MEMBERS)


@pytest.mark.parametrize(
    ("script", "choice", "settings", "address"),
    [
        ("models", "diffuser", "MU_MODELS_REPOSITORY=a/b MU_MODELS_FOLDER=x", "/a/b/resolve/main/diffuser.zip"),
        (
            "i2p_dataset",
            "sample",
            "MU_I2P_SAMPLE_REPOSITORY=a/b MU_I2P_SAMPLE_FILE=c.zip MU_I2P_FOLDER=x",
            "/datasets/a/b/resolve/main/c.zip",
        ),
        (
            "quick_canvas_dataset",
            "full",
            "MU_QUICK_CANVAS_FULL_REPOSITORY=a/b MU_QUICK_CANVAS_FOLDER=x",
            "/datasets/a/b/resolve/main/full.zip",
        ),
    ],
)
def test_other_places(clone: Clone, host: Host, script: str, choice: str, settings: str, address: str) -> None:
    clone.url, clone.settings = host.url, dict(each.split("=") for each in settings.split())
    assert clone.run(f"download_{script}.sh", choice)[0] == 0
    assert host.asked[-1][1] == address
    holds(clone, f"x/{choice}", MEMBERS)


def test_through_a_redirect_it_goes_on(clone: Clone, host: Host) -> None:
    clone.url, host.redirect = host.url, True
    clone.put(PART, GOOD[:1000])
    assert clone.run(*COMPVIS)[0] == 0
    assert host.got() == ["bytes=1000-"] * 2 and host.asked[-1][1].startswith("/store/")
    holds(clone, "../models/compvis", MEMBERS)


def test_from_a_host_without_head(clone: Clone, host: Host) -> None:
    clone.url, host.head_status = host.url, 405
    assert clone.run(*COMPVIS)[0] == 0
    holds(clone, "../models/compvis", MEMBERS)


def test_a_folder_in_a_folder_of_the_same_name(clone: Clone, host: Host) -> None:
    clone.url, host.body = host.url, archive({"sample/a.png": b"1", "sample/b.png": b"2", "__MACOSX/sample/._a": b""})
    assert clone.run("download_i2p_dataset.sh", "sample")[0] == 0
    holds(clone, "data/i2p-dataset/sample", {"a.png": b"1", "b.png": b"2"})


@pytest.mark.parametrize("reset", [False, True])
def test_goes_on_by_itself_and_in_a_later_run(clone: Clone, host: Host, big: bytes, reset: bool) -> None:
    clone.url, host.body, host.stop_after, host.breaks, host.reset = host.url, big, 18 * 2**20, 1, reset
    clone.put(PART, big[:1000])
    assert clone.run(*COMPVIS)[0] == 0
    assert host.got() == ["bytes=1000-", f"bytes={1000 + CHUNK}-"]
    holds(clone, "../models/compvis", {"model.bin": bytes(range(256)) * 10**5})


def test_a_connection_that_breaks_leaves_what_came(clone: Clone, host: Host) -> None:
    clone.url, host.stop_after, host.reset = host.url, 0, True
    clone.put(PART, GOOD[:1000])
    assert f"broke after 1000 of {len(GOOD)} bytes" in clone.fails(2, *COMPVIS)
    assert clone.files() == {"models": b"", PART: GOOD[:1000]}


@pytest.mark.parametrize(
    ("part", "ranges"), [(GOOD[:1000], False), (b"x" * (len(GOOD) + 1), True)], ids=["no-ranges", "too-long"]
)
def test_begins_anew_where_it_cannot_go_on(clone: Clone, host: Host, part: bytes, ranges: bool) -> None:
    clone.url, host.ranges = host.url, ranges
    clone.put(PART, part)
    assert clone.run(*COMPVIS)[0] == 0
    holds(clone, "../models/compvis", MEMBERS)


def test_stopped_by_ctrl_c_it_goes_on(clone: Clone, host: Host, big: bytes) -> None:
    clone.url, host.body, host.stop_after, host.breaks, host.hang = host.url, big, CHUNK + 1000, 1, threading.Event()
    process = clone.start(*COMPVIS)
    part = clone.top.parent / PART
    for _ in range(600):
        if part.exists() and part.stat().st_size == CHUNK:
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    host.hang.set()
    assert (process.returncode, err) == (130, "")
    assert clone.files() == {"models": b"", PART: big[:CHUNK]}
    assert clone.run(*COMPVIS)[0] == 0
    assert host.got() == [None, f"bytes={CHUNK}-"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"status": 404}, "HTTP 404"),
        ({"status": 401}, "refuses"),
        ({"status": 503}, "HTTP 503"),
        ({"body": PAGE}, "not a zip file"),
        ({"head_status": 405, "body": PAGE}, "not a zip file"),
        ({"body": GOOD[: len(GOOD) // 2]}, "not a zip file"),
        ({"body": GOOD.replace(b"\x07\x08", b"\x07\x09", 1)}, "Bad CRC-32"),
        ({"body": archive({"good.txt": b"1", "../evil.txt": b"2"})}, "outside its folder: ../evil.txt"),
        ({"body": archive({"a/../../evil.txt": b"2"})}, "outside its folder: a/"),
        ({"body": archive({"/evil.txt": b"2"})}, "outside its folder: /evil.txt"),
        ({"body": archive({"good.txt": b"1"}, link="/etc")}, "outside its folder: link"),
    ],
    ids=["404", "401", "503", "page", "page-no-head", "half", "bit", "dotdot", "dotdot-inside", "absolute", "link"],
)
def test_refuses_what_is_not_the_archive(clone: Clone, host: Host, wrong: dict[str, Any], says: str) -> None:
    clone.url = host.url
    vars(host).update(wrong)
    assert says in clone.fails(1, *COMPVIS)
    assert clone.files().keys() <= {"models"}
    host.body, host.status, host.head_status = GOOD, 200, 200
    assert clone.run(*COMPVIS)[0] == 0, "a refusal must not stand in the way of a later run"


def test_says_which_package_is_missing(clone: Clone, host: Host) -> None:
    clone.url = host.url
    clone.python(clone.bin, "-S")  # without the installed packages
    assert "needs huggingface_hub" in clone.fails(2, *COMPVIS)
    assert host.asked == []
    clone.python(clone.top / ".venv" / "bin")
    assert clone.run(*COMPVIS)[0] == 0, "the clone's own environment comes first"


def test_without_room_it_does_not_begin_and_keeps_what_came(clone: Clone, host: Host) -> None:
    clone.url, host.size = host.url, 10**18
    assert "needs 2000000000.00 GB in ../models" in clone.fails(2, *COMPVIS)
    assert host.got() == []
    host.size = None
    assert "cannot write" in clone.fails(2, *COMPVIS, most="40")
    assert clone.files()[PART] == GOOD[: 40 * 1024]
    assert clone.run(*COMPVIS)[0] == 0
    assert host.got() == [None, f"bytes={40 * 1024}-"]


def test_leaves_other_peoples_files_alone(clone: Clone, host: Host) -> None:
    clone.url = host.url
    mine = clone.put("models", b"mine")
    assert "cannot write" in clone.fails(2, *COMPVIS)
    mine.unlink()
    mine = clone.put("models/compvis", b"mine")
    assert "in the way" in clone.fails(2, *COMPVIS)
    assert mine.read_bytes() == b"mine"
    (mine.parent / "diffuser").mkdir()
    assert clone.run("download_models.sh", "diffuser")[0] == 0, "an empty folder is filled"


def test_a_data_set_kept_as_single_files(clone: Clone, host: Host) -> None:
    clone.url, host.status, host.files = host.url, 404, {"a/1.png": b"one", "b.txt": b"two"}
    full = ("download_i2p_dataset.sh", "full")
    folder = clone.top / "data/i2p-dataset/full"
    for refused in ("b.txt", "/revision/", "/tree/"):
        host.refused = refused
        assert clone.fails(1 if refused == "/tree/" else 2, *full)
        assert not folder.exists() and (folder.with_name("full.part") / "a/1.png").read_bytes() == b"one"
        # Without its list the library takes what it has for all.
        shutil.rmtree(folder.with_name("full.part") / ".cache/huggingface/trees", ignore_errors=True)
    host.refused, host.asked = "nothing", []
    code, out, err = clone.run(*full)
    assert (code, err) == (0, "") and "getting the files of the dataset nebulaanish/i2p-dataset" in out
    holds(clone, "data/i2p-dataset/full", host.files)
    assert [path for method, path, _ in host.asked if method == "GET" and "1.png" in path] == [], "it had that one"
    assert clone.fails(1, "download_i2p_dataset.sh", "sample"), "control: only all of it comes as single files"
