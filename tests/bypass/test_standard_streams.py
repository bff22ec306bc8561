"""What a command inherits: three streams, none of which leads out."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from kit.account import INSIDE, STARTED, assert_refused, finish

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.kernel]


@contextmanager
def _tcp_connected() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        yield client.fileno()


@contextmanager
def _bare_socket(family: int, kind: int) -> Iterator[int]:
    with socket.socket(family, kind) as bare:
        yield bare.fileno()


@contextmanager
def _datagram_pair() -> Iterator[int]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        yield theirs.fileno()


@contextmanager
def _directory() -> Iterator[int]:
    opened = os.open("/run", os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield opened
    finally:
        os.close(opened)


BAD_STREAMS = {
    "TCP, connected": (_tcp_connected, "network socket"),
    "TCP, not connected": (lambda: _bare_socket(socket.AF_INET, socket.SOCK_STREAM), "network socket"),
    "TCP over IPv6, not connected": (lambda: _bare_socket(socket.AF_INET6, socket.SOCK_STREAM), "network socket"),
    "UDP": (lambda: _bare_socket(socket.AF_INET, socket.SOCK_DGRAM), "network socket"),
    "unix datagrams": (_datagram_pair, "network socket"),
    "unix stream, not connected": (lambda: _bare_socket(socket.AF_UNIX, socket.SOCK_STREAM), "network socket"),
}


@pytest.mark.bypass("inherited-descriptors")
@pytest.mark.parametrize("name", ["stdin", "stdout"])
@pytest.mark.parametrize("kind", BAD_STREAMS)
def test_a_stream_that_leads_out_is_refused(kind: str, name: str, place: Path) -> None:
    """A socket made outside can be turned to any address past every hook."""
    make, text = BAD_STREAMS[kind]
    with make() as fd:
        done = finish([*INSIDE, "touch", str(place / STARTED)], **{name: fd})
    assert not (place / STARTED).exists()
    assert_refused(done, text)


@pytest.mark.bypass("inherited-descriptors")
@pytest.mark.parametrize("kind", BAD_STREAMS)
def test_a_stderr_that_leads_out_is_refused(kind: str, place: Path) -> None:
    """As the other two are; nobody can be told why."""
    with BAD_STREAMS[kind][0]() as fd:
        done = finish([*INSIDE, "touch", str(place / STARTED)], stderr=fd)
    assert not (place / STARTED).exists()
    assert done.returncode in {2, 120}  # 120: Python's, for a stream that takes no writing
    assert done.stdout == ""


@pytest.mark.bypass("inherited-descriptors")
@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_directory_is_no_stream(name: str, place: Path) -> None:
    """It would lead to what is hidden (`/proc/self/fd/0/docker.sock`). Python itself ends at one, before we do."""
    with _directory() as fd:
        done = finish([*INSIDE, "touch", str(place / STARTED)], **{name: fd})
    assert not (place / STARTED).exists()
    assert done.returncode not in {0, 126, 127}
    assert name == "stderr" or "directory" in done.stderr


@pytest.mark.bypass("inherited-descriptors")
@pytest.mark.parametrize(("name", "closing"), [("stdin", "<&-"), ("stdout", ">&-")])
def test_a_closed_stream_is_refused(name: str, closing: str, place: Path) -> None:
    """Whatever is opened next would take its place."""
    done = finish(["sh", "-c", f'exec "$@" {closing}', "sh", *INSIDE, "touch", str(place / STARTED)])
    assert not (place / STARTED).exists()
    assert_refused(done, f"{name}: is closed")


@pytest.mark.bypass("inherited-descriptors")
def test_a_connected_unix_stream_is_a_fine_stdin() -> None:
    """It cannot be turned elsewhere, and editors start programs with one."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"hello")
        ours.shutdown(socket.SHUT_WR)
        done = finish([*INSIDE, "cat"], stdin=theirs)
    assert (done.stdout, done.stderr, done.returncode) == ("hello", "", 0)
