"""`nono_ebpf.broker` and `nono_ebpf.relay.secrets`: what a request is told, and when. The broker is a thread here."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import socket
import threading
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
from kit.patience import patient

from nono_ebpf import broker as broker_module
from nono_ebpf.broker import Broker, Variable
from nono_ebpf.credentials import messages, sources
from nono_ebpf.credentials.reading import Reading, Surroundings, unavailable
from nono_ebpf.credentials.references import Named, parse_reference
from nono_ebpf.credentials.secret import Secret
from nono_ebpf.errors import CredentialUnavailable
from nono_ebpf.relay import secrets
from nono_ebpf.relay.secrets import BrokeredCredentials

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
    from pathlib import Path

    from nono_ebpf.sandbox.broker_plan import CredentialState

LAZY = Named("lazy")


def running(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    """The test in a loop of its own."""

    async def within_deadline(script: Coroutine[None, None, None]) -> None:
        async with asyncio.timeout(patient(300)):
            await script

    @functools.wraps(test)
    def run(*arguments: object, **named: object) -> None:
        asyncio.run(within_deadline(test(*arguments, **named)))

    return run


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gives up because this process was held up for a while."""
    monkeypatch.setattr(secrets, "_GRACE_S", patient(3600))


@dataclass
class Served:
    """A broker that serves `proxy`."""

    proxy: socket.socket
    states: dict[str, CredentialState]
    broker: Broker
    thread: threading.Thread

    def ask(self, data: bytes) -> tuple[messages.Answer, bytes]:
        """Send that, and wait for what comes."""
        self.proxy.send(data)
        return self.answer()

    def answer(self) -> tuple[messages.Answer, bytes]:
        """The next one that comes."""
        found = messages.split(memoryview(self.proxy.recv(messages.ANSWER_MAX)))
        assert found is not None
        return found[0], bytes(found[1])


@contextmanager
def serving(references: Mapping[str, str], environment: Mapping[str, str] | None = None) -> Iterator[Served]:
    """A broker for `references` by name; the greeting is still in the socket."""
    proxy, requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lifeline, theirs = socket.socketpair()
    around = Surroundings(os.geteuid(), os.geteuid(), {})
    variables = {name.encode(): memoryview(text.encode()) for name, text in (environment or {}).items()}
    broker = Broker(requests, theirs)
    for name, text in references.items():
        broker.add(name, parse_reference(text, name), around, variables)
    broker.greet(around)
    report = broker.report()
    assert report.locked
    thread = threading.Thread(target=broker.serve)
    thread.start()
    proxy.settimeout(patient(90))
    try:
        yield Served(proxy, {each.name: each for each in report.states}, broker, thread)
    finally:
        lifeline.close()
        thread.join()
        for each in (proxy, requests, theirs):
            each.close()


@asynccontextmanager
async def brokered(served: Served) -> AsyncIterator[BrokeredCredentials]:
    """The proxy's side of it."""
    credentials = BrokeredCredentials(served.proxy)
    try:
        yield credentials
    finally:
        credentials.close()


def keep(path: Path, content: str) -> Path:
    path.write_text(content)
    path.chmod(0o600)
    return path


async def state_of(credentials: BrokeredCredentials, name: str) -> str:
    with pytest.raises(CredentialUnavailable) as caught:
        await credentials.get(name)
    assert caught.value.name == name
    return caught.value.state


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What the lazy source reads, in the process that is forked for it: a file. It counts how often in `.count`."""
    path = keep(tmp_path / "lazy", "first")
    real = sources.read

    def read(reference: object, around: Surroundings, known: Reading | None = None) -> Reading:
        if reference != LAZY:
            return real(reference, around, known)  # type: ignore[arg-type]
        with path.with_suffix(".count").open("a") as count:
            count.write(".")
        if not path.exists():
            raise unavailable(LAZY, "locked", "the keyring is locked")
        with path.open("rb", buffering=0) as file:  # a pipe is read when somebody writes to it
            return Reading(Secret(file.read()))

    monkeypatch.setattr(sources, "read", read)
    return path


def times_read(source: Path) -> int:
    count = source.with_suffix(".count")
    return len(count.read_text()) if count.exists() else 0


class Clock:
    """The time of lazy sources."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(messages, "now_s", lambda: self.now_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """One that stands still."""
    return Clock(monkeypatch)


def test_at_the_start_it_is_said_what_there_is(tmp_path: Path, source: Path) -> None:
    """Of every credential; what may take long, or ask somebody, is not touched for it."""
    kept = keep(tmp_path / "token", "x")
    references = {
        "a": "env://SET", "b": "env://UNSET", "c": f"file://{kept}", "d": f"file://{tmp_path}/later", "e": "lazy",
        "f": "op://v/i/f",
    }  # fmt: skip
    with serving(references, {"SET": "x"}) as served:
        found = {name: (state.availability, state.state) for name, state in served.states.items()}
    assert found == {
        "a": ("present", ""), "b": ("missing", "missing"), "c": ("present", ""), "d": ("waiting", "missing"),
        "e": ("lazy", ""), "f": ("lazy", ""),
    }  # fmt: skip
    assert times_read(source) == 0
    assert served.states["d"].reference == f"file://{tmp_path}/[REDACTED]"


def test_the_value_crosses_only_when_it_has_changed(tmp_path: Path) -> None:
    """Otherwise the answer is "unchanged", without it."""
    path = keep(tmp_path / "token", "one")
    with serving({"a": f"file://{path}"}) as served:
        served.proxy.recv(messages.ANSWER_MAX)
        answer, value = served.ask(messages.encoded(messages.Request(1, 0, 0)))
        assert (answer.state, value) == (messages.VALUE, b"one")
        again, nothing = served.ask(messages.encoded(messages.Request(2, 0, answer.version)))
        assert (again.id, again.state, nothing) == (2, messages.UNCHANGED, b"")
        keep(path, "two")
        other, value = served.ask(messages.encoded(messages.Request(3, 0, answer.version)))
        assert (other.state, value) == (messages.VALUE, b"two")
        assert other.version != answer.version


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\0", b"\xc1", b"\x93\x01\x02", b"x" * 64, b"x" * 65, b"x" * 70000, b"\x94\x01\x00\x00\x00"),
        messages.encoded(messages.Request(7, 1, 0)),
        messages.encoded(messages.Request(7, 1 << 62, 0)),
        b"\x93\x01\xff\x00",  # index -1
        b"\x93\xa1x\x00\x00",
    ],
    ids=repr,
)
def test_a_question_that_makes_no_sense_is_refused(data: bytes) -> None:
    """And the next one, which does, is answered."""
    with serving({"a": "env://SET"}, {"SET": "x"}) as served:
        served.proxy.recv(messages.ANSWER_MAX)
        answer, value = served.ask(data)
        assert (answer.state, value) == ("failed", b"")
        answer, value = served.ask(messages.encoded(messages.Request(8, 0, 0)))
        assert (answer.id, answer.state, value) == (8, messages.VALUE, b"x")


@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR, None])
def test_with_the_proxy_ends_who_serves_it(how: int | None) -> None:
    """At once, and holding nothing: nobody is left who could ask."""
    with serving({"a": "env://SET"}, {"SET": "x"}) as served:
        if how is None:
            served.proxy.close()
        else:
            served.proxy.shutdown(how)
        served.thread.join(patient(90))
        assert not served.thread.is_alive()
        (credential,) = served.broker.credentials
        assert isinstance(credential, Variable)
        assert credential._held.reading is None


@running
async def test_a_process_that_cannot_be_made_is_one_failure(source: Path, clock: Clock) -> None:
    """The account has too many, for a moment: the broker serves on, and so does that credential after a while."""
    with serving({"a": "lazy"}) as served:
        async with brokered(served) as credentials:
            with patch("os.fork", side_effect=BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")):
                assert await state_of(credentials, "a") == "failed"
            clock.now_s += 60
            assert (await credentials.get("a")).reveal() == b"first"
            assert times_read(source) == 1


@running
async def test_each_get_is_what_is_there_now(tmp_path: Path) -> None:
    """A file that appears, changes, cannot be used, and can again."""
    path = tmp_path / "token"
    with serving({"a": f"file://{path}", "b": "env://SET"}, {"SET": "s"}) as served:
        async with brokered(served) as credentials:
            assert await state_of(credentials, "a") == "missing"
            keep(path, "one")
            assert (await credentials.get("a")).reveal() == b"one"
            assert (await credentials.get("a")) is (await credentials.get("a"))
            path.chmod(0o644)
            assert await state_of(credentials, "a") == "not_private"
            assert credentials._credentials["a"].secret is None  # what cannot be used is not kept either
            keep(path, "two")
            assert (await credentials.get("a")).reveal() == b"two"
            assert (await credentials.get("b")).reveal() == b"s"


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of which credentials, by number, the broker was asked."""
    asked: list[int] = []
    real = messages.request

    def request(data: bytes) -> messages.Request | None:
        found = real(data)
        asked.extend([] if found is None else [found.index])
        return found

    monkeypatch.setattr(messages, "request", request)
    return asked


@running
async def test_a_variable_is_asked_for_once_and_a_file_every_time(tmp_path: Path, questions: list[int]) -> None:
    """What never changes needs no look; one that is not there is no answer to keep."""
    path = keep(tmp_path / "token", "one")
    with serving({"a": "env://SET", "b": f"file://{path}", "c": "env://UNSET"}, {"SET": "s"}) as served:
        async with brokered(served) as credentials:
            first = await credentials.get("a")
            for _ in range(3):
                assert await credentials.get("a") is first
                assert (await credentials.get("b")).reveal() == b"one"
                assert await state_of(credentials, "c") == "missing"
    assert sorted(questions) == [0, 1, 1, 1, 2, 2, 2]


@running
async def test_a_lazy_one_is_asked_for_when_the_broker_would_look(
    source: Path, clock: Clock, questions: list[int]
) -> None:
    """Not a moment later: as long as it is believed, and then again."""
    with serving({"a": "lazy"}) as served:
        async with brokered(served) as credentials:
            for _ in range(2):
                for _ in range(3):
                    assert (await credentials.get("a")).reveal() == b"first"
                clock.now_s += sources.lifetime_s(LAZY)
            assert len(questions) == times_read(source) == 2


@running
async def test_nothing_is_kept_of_a_broker_that_ended(questions: list[int]) -> None:
    """Not even what would never have changed."""
    with serving({"a": "env://SET"}, {"SET": "s"}) as served:
        async with brokered(served) as credentials:
            assert (await credentials.get("a")).reveal() == b"s"
            served.broker._stop()
            served.broker._requests.shutdown(socket.SHUT_RDWR)
            while credentials._alive:
                await asyncio.sleep(0.01)
            assert await state_of(credentials, "a") == "failed"
            assert credentials._credentials["a"].secret is None


@running
async def test_a_superseded_secret_lasts_as_long_as_its_request(tmp_path: Path) -> None:
    """Who holds it can use it to the end."""
    path = keep(tmp_path / "token", "one")
    with serving({"a": f"file://{path}"}) as served:
        async with brokered(served) as credentials:
            held = await credentials.get("a")
            keep(path, "two")
            assert (await credentials.get("a")).reveal() == b"two"
            assert held.reveal() == b"one"


@running
async def test_many_at_once(tmp_path: Path) -> None:
    """All have it, and those that are cancelled take nobody along."""
    path = keep(tmp_path / "token", "one")
    with serving({"a": f"file://{path}", "b": "env://SET"}, {"SET": "s"}) as served:
        async with brokered(served) as credentials:
            wanted = [asyncio.ensure_future(credentials.get("ab"[number % 2])) for number in range(400)]
            await asyncio.sleep(0)
            for each in wanted[::7]:
                each.cancel()
            found = await asyncio.gather(*wanted, return_exceptions=True)
            values = {each.reveal() if isinstance(each, Secret) else type(each) for each in found}
            assert values == {b"one", b"s", asyncio.CancelledError}


@running
async def test_who_asks_while_it_is_read_gets_a_newer_one(source: Path, clock: Clock) -> None:
    """What is being read may be from before that request began."""
    source.unlink()
    os.mkfifo(source)
    with serving({"a": "lazy"}) as served:
        async with brokered(served) as credentials:
            first = asyncio.ensure_future(credentials.get("a"))
            while times_read(source) < 1:
                await asyncio.sleep(0.01)
            later = asyncio.ensure_future(credentials.get("a"))
            clock.now_s += 2 * sources.lifetime_s(LAZY)  # what comes now is too old when the second one looks
            await asyncio.to_thread(source.write_text, "old")
            assert (await first).reveal() == b"old"
            await asyncio.to_thread(source.write_text, "new")
            assert (await later).reveal() == b"new"
            assert times_read(source) == 2


@running
async def test_a_slow_source_delays_nobody_else(source: Path, tmp_path: Path) -> None:
    """While somebody's password manager hangs, files are answered."""
    source.unlink()
    os.mkfifo(source)
    path = keep(tmp_path / "token", "one")
    with serving({"a": "lazy", "b": f"file://{path}"}) as served:
        async with brokered(served) as credentials:
            slow = asyncio.ensure_future(credentials.get("a"))
            for number in range(50):
                keep(path, f"{number}")
                assert (await credentials.get("b")).reveal() == str(number).encode()
            assert not slow.done()
            await asyncio.to_thread(source.write_text, "at last")
            assert (await slow).reveal() == b"at last"


@running
async def test_what_was_read_lazily_is_believed_for_a_while(source: Path, clock: Clock) -> None:
    """And then read again; when that fails there is none, rather than the old one."""
    with serving({"a": "lazy"}) as served:
        async with brokered(served) as credentials:
            assert (await credentials.get("a")).reveal() == b"first"
            source.write_text("second")
            clock.now_s += sources.lifetime_s(LAZY) - 1
            assert (await credentials.get("a")).reveal() == b"first"
            clock.now_s += 2
            assert (await credentials.get("a")).reveal() == b"second"
            source.unlink()
            clock.now_s += sources.lifetime_s(LAZY) + 1
            assert await state_of(credentials, "a") == "locked"


@running
async def test_a_failing_source_is_not_asked_at_the_pace_of_requests(source: Path, clock: Clock) -> None:
    """One attempt every few seconds; the next one may succeed."""
    source.unlink()
    with serving({"a": "lazy"}) as served:
        async with brokered(served) as credentials:
            for _ in range(20):
                assert await state_of(credentials, "a") == "locked"
            assert times_read(source) == 1
            source.write_text("there")
            clock.now_s += broker_module._RETRY_S + 1
            assert (await credentials.get("a")).reveal() == b"there"


@running
async def test_a_flood_waits_in_bounds(source: Path, clock: Clock) -> None:
    """Of questions for one slow credential, so many wait; the others are refused at once."""
    source.unlink()
    os.mkfifo(source)
    with serving({"a": "lazy"}) as served:
        served.proxy.recv(messages.ANSWER_MAX)
        for number in range(broker_module._WAITING_MAX + 2):
            served.proxy.send(messages.encoded(messages.Request(number, 0, 0)))
        last = broker_module._WAITING_MAX + 1
        assert served.answer() == (messages.Answer(last, "failed", problem="too many requests wait for it"), b"")
        source.write_text("x")
        answered = [served.answer()[0] for _ in range(last)]  # all of them, or it would be busy with that at its end
        assert [each.id for each in answered] == list(range(last))
        assert {each.state for each in answered} == {messages.VALUE}


@running
async def test_a_broker_that_ends_is_said(source: Path) -> None:
    """To who waits, and to who asks afterwards: failed, never an old value."""
    source.unlink()
    os.mkfifo(source)
    proxy, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.send(messages.encoded(messages.Greeting(("a",), None)))
    credentials = BrokeredCredentials(proxy)
    waiting = [asyncio.ensure_future(state_of(credentials, "a")) for _ in range(3)]
    await asyncio.sleep(0.05)
    theirs.close()
    assert await asyncio.gather(*waiting) == ["failed"] * 3
    assert await state_of(credentials, "a") == "failed"
    credentials.close()


@running
async def test_without_a_broker_there_is_nothing_to_start_with() -> None:
    """It ended before the proxy was ready."""
    proxy, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    with proxy, pytest.raises(CredentialUnavailable):
        BrokeredCredentials(proxy)


@running
async def test_a_broker_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its longest source, twice, and a little: then the request is refused."""
    proxy, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        monkeypatch.setattr(secrets, "_GRACE_S", 0.1)
        theirs.send(messages.encoded(messages.Greeting(("a",), 0.05)))
        credentials = BrokeredCredentials(proxy)
        assert await state_of(credentials, "a") == "timed_out"
        credentials.close()


@pytest.mark.parametrize(
    "data", [b"\0", b"\xff\xff", b"\x00\x00", b"\x01\x00\xc1", messages.head(messages.Answer(99, "value"))]
)
@running
async def test_an_answer_that_makes_no_sense_is_none(data: bytes) -> None:
    """The one that does is still waited for."""
    proxy, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        theirs.send(messages.encoded(messages.Greeting(("a",), None)))
        credentials = BrokeredCredentials(proxy)
        wanted = asyncio.ensure_future(credentials.get("a"))
        await asyncio.sleep(0.01)
        theirs.send(data)
        theirs.send(messages.head(messages.Answer(1, messages.VALUE, 1)) + b"x")
        assert (await wanted).reveal() == b"x"
        credentials.close()
