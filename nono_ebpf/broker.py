"""The broker process: knows where credentials are kept, and tells the proxy what is kept there, one by one.

It runs outside the sandbox, with the rights of whoever asked for it, and hears nothing from the sandbox; what the proxy
asks is a number, and what is wrong about it is refused. Files are looked at for every question. Whatever may take long
is read in a forked process, so that nobody waits for somebody else's password manager. One thread, one loop.
"""

from __future__ import annotations

import math
import os
import resource
import select
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nono_ebpf.credentials import messages, sources
from nono_ebpf.credentials.isolated import Attempt
from nono_ebpf.credentials.reading import Reading, Surroundings
from nono_ebpf.credentials.references import FromEnvironment, parse_reference, redacted
from nono_ebpf.credentials.secret import Secret
from nono_ebpf.errors import CredentialUnavailable, NonoError, SandboxError
from nono_ebpf.kernel import libc
from nono_ebpf.sandbox import broker_plan, privileges
from nono_ebpf.sandbox.broker_plan import Availability, BrokerPlan, BrokerReport, CredentialState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nono_ebpf.credentials.references import Reference

Reply = Callable[[messages.Answer, Secret | None], None]

# After a failure, for every reference by itself: a broken source is not asked at the pace of requests.
_RETRY_S: Final = 3.0
_WAITING_MAX: Final = 1024
_TURN: Final = 64  # questions taken before anything else gets its turn


def main() -> None:
    """`python -m nono_ebpf.broker FD`: the fd is the lifeline."""
    lifeline = socket.socket(fileno=int(sys.argv[1]))
    _guard()
    try:
        plan, buffer, requests = _received(lifeline)
        references = [parse_reference(each.reference, each.name) for each in plan.credentials]
        _take_rights(plan, references)
        broker = Broker(socket.socket(fileno=requests), lifeline)
        around = Surroundings(os.geteuid(), plan.uid, _texts(plan.environment), plan.shared_ok)
        for each, reference in zip(plan.credentials, references, strict=True):
            broker.add(each.name, reference, around, plan.variables)
        buffer[:] = bytes(len(buffer))
        broker.greet(around)
        broker_plan.send(lifeline, broker.report())
        broker.serve()
    except NonoError as error:
        sys.stderr.write(f"nono-ebpf: broker: {error}\n")
        sys.exit(1)
    os._exit(0)  # nothing is left to tidy


def _guard() -> None:
    """Before anything secret is here."""
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_MSGQUEUE):
        resource.setrlimit(limit, (0, 0))
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    os.chdir("/")


def _received(lifeline: socket.socket) -> tuple[BrokerPlan, bytearray, int]:
    try:
        return broker_plan.receive_plan(lifeline)
    except SandboxError:
        sys.exit(1)  # the supervisor gave up, and has said why


def _take_rights(plan: BrokerPlan, references: Sequence[Reference]) -> None:
    """Those of whoever asked: the account's for good, or root's."""
    sources.preload(references, plan.uid if plan.as_account else 0)
    if not plan.as_account:
        return
    if not any(map(sources.needs_set_id, references)):
        privileges.become(plan.uid, plan.gid, plan.groups)
        return
    privileges.take_ids(plan.uid, plan.gid, plan.groups)
    libc.clear_capabilities()


def _texts(environment: dict[bytes, bytes]) -> dict[str, str]:
    return {os.fsdecode(name): os.fsdecode(text) for name, text in environment.items()}


class _Held:
    """The secret that was read last. Its version counts those that were different."""

    def __init__(self) -> None:
        self.reading: Reading | None = None
        self._version = 0

    def put(self, reading: Reading) -> None:
        """In place of the last one, which is overwritten."""
        if reading is self.reading:
            return
        if self.reading is None or reading.value != self.reading.value:
            self._version += 1
        self.drop()
        self.reading = reading

    def drop(self) -> None:
        """Overwrite it."""
        if self.reading is not None:
            self.reading.value.wipe()
            self.reading = None

    def answer(self, request: messages.Request, until_s: float) -> tuple[messages.Answer, Secret | None]:
        """To a question asked while there is one, which will be the answer until then."""
        if self.reading is None or request.version == self._version:
            return messages.Answer(request.id, messages.UNCHANGED, until_s=until_s), None
        return messages.Answer(request.id, messages.VALUE, self._version, until_s=until_s), self.reading.value


class Kept:
    """A credential whose source answers at once: a variable, which was read at the start, or a file."""

    until_s = 0.0  # a file may change at any moment

    def __init__(self, name: str, reference: Reference, around: Surroundings) -> None:
        self.name, self.reference, self._around = name, reference, around
        self._held = _Held()

    @property
    def locked(self) -> bool:
        """Whether what is held stays out of swap."""
        return self._held.reading is None or self._held.reading.value.locked

    def look(self) -> None:
        """Read it, if it is not what is held. Raises CredentialUnavailable, and nothing is held."""
        try:
            self._held.put(sources.read(self.reference, self._around, self._held.reading))
        except CredentialUnavailable:
            self._held.drop()
            raise

    def ask(self, request: messages.Request, reply: Reply) -> None:
        """Answered before this returns."""
        try:
            self.look()
        except CredentialUnavailable as error:
            reply(_no(request, error), None)
        else:
            reply(*self._held.answer(request, self.until_s))

    def wipe(self) -> None:
        """Hold nothing."""
        self._held.drop()


class Variable(Kept):
    """One that never changes."""

    until_s = math.inf

    def __init__(self, name: str, reference: FromEnvironment, around: Surroundings, content: memoryview | None) -> None:
        super().__init__(name, reference, around)
        self._failure: CredentialUnavailable | None = None
        try:
            self._held.put(Reading(sources.from_variable(reference, None if content is None else bytearray(content))))
        except CredentialUnavailable as error:
            self._failure = error

    def look(self) -> None:
        """Raises CredentialUnavailable."""
        if self._failure is not None:
            raise self._failure


class Lazy:
    """A credential whose source is asked when a request needs it, one attempt at a time, and believed for a while."""

    def __init__(self, name: str, reference: Reference, around: Surroundings, selector: selectors.BaseSelector) -> None:
        self.name, self.reference, self._around, self._selector = name, reference, around, selector
        self._held = _Held()
        self._until_s = 0.0  # what is held, or the failure, is the answer
        self._failure: CredentialUnavailable | None = None
        self._busy = False
        self._asked: list[tuple[messages.Request, Reply]] = []
        self._waiting: list[tuple[messages.Request, Reply]] = []

    def ask(self, request: messages.Request, reply: Reply) -> None:
        """Answered when it is known. What is being read may be older than the question, which waits for the next."""
        if len(self._waiting) >= _WAITING_MAX:
            reply(messages.Answer(request.id, "failed", problem="too many requests wait for it"), None)
            return
        self._waiting.append((request, reply))
        if not self._busy:
            self._next()

    def wipe(self) -> None:
        """Hold nothing."""
        self._held.drop()

    def _next(self) -> None:
        """Those who wait are answered, or asked for."""
        self._asked, self._waiting = self._waiting, []
        if messages.now_s() < self._until_s:
            self._tell()
            return
        started_s = messages.now_s()
        deadline_s = sources.deadline_s(self.reference, self._around)
        try:
            attempt = Attempt(self.reference, deadline_s, lambda: sources.read(self.reference, self._around).value)
        except CredentialUnavailable as error:
            self._lose(error)
            self._tell()
            return
        self._busy = True
        self._selector.register(attempt, selectors.EVENT_READ, lambda: self._receive(attempt, started_s))

    def _receive(self, attempt: Attempt, started_s: float) -> None:
        if not attempt.receive():
            return
        self._selector.unregister(attempt)
        self._busy = False
        try:
            self._held.put(Reading(attempt.result()))
            self._failure = None
            self._until_s = started_s + sources.lifetime_s(self.reference)
        except CredentialUnavailable as error:
            self._lose(error)
        self._tell()
        if self._waiting:
            self._next()

    def _lose(self, error: CredentialUnavailable) -> None:
        """For a while that is the answer."""
        self._held.drop()
        self._failure = error
        self._until_s = messages.now_s() + _RETRY_S

    def _tell(self) -> None:
        asked, self._asked = self._asked, []
        for request, reply in asked:
            if self._failure is not None:
                reply(_no(request, self._failure), None)
            else:
                reply(*self._held.answer(request, self._until_s))


class Broker:
    """Serves one proxy until it ends, or the supervisor wants an end."""

    def __init__(self, requests: socket.socket, lifeline: socket.socket) -> None:
        self.credentials: list[Kept | Lazy] = []
        self._requests, self._lifeline = requests, lifeline
        self._selector = selectors.DefaultSelector()
        self._selector.register(requests, selectors.EVENT_READ, self._take_requests)
        self._selector.register(lifeline, selectors.EVENT_READ, self._stop)
        self._over = False

    def add(self, name: str, reference: Reference, around: Surroundings, variables: Mapping[bytes, memoryview]) -> None:
        """One credential more. `variables`: what the caller's environment has of them."""
        if isinstance(reference, FromEnvironment):
            content = variables.get(os.fsencode(reference.name))
            self.credentials.append(Variable(name, reference, around, content))
        elif sources.is_lazy(reference):
            self.credentials.append(Lazy(name, reference, around, self._selector))
        else:
            self.credentials.append(Kept(name, reference, around))

    def greet(self, around: Surroundings) -> None:
        """The first packet: what there is to be asked for."""
        deadlines = [sources.deadline_s(each.reference, around) for each in self.credentials if isinstance(each, Lazy)]
        longest = None if None in deadlines else max(filter(None, deadlines), default=0.0)
        self._requests.send(messages.encoded(messages.Greeting(tuple(each.name for each in self.credentials), longest)))

    def report(self) -> BrokerReport:
        """What there is at the start. Nothing is asked that may take long."""
        states = tuple(map(_state, self.credentials))
        locked = Secret(b"").locked and all(each.locked for each in self.credentials if isinstance(each, Kept))
        return BrokerReport(states, locked)

    def serve(self) -> None:
        """Until the lifeline says stop, or ends, or the proxy does. Nothing is held afterwards."""
        while not self._over:
            for key, _ in self._selector.select():
                key.data()
        for each in self.credentials:
            each.wipe()

    def _stop(self) -> None:
        self._over = True

    def _take_requests(self) -> None:
        for _ in range(_TURN):
            try:
                data, _, flags, _ = self._requests.recvmsg(messages.REQUEST_MAX, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError:
                data, flags = b"", 0
            if not data and self._proxy_ended():
                self._stop()
                return
            self._ask(None if flags & socket.MSG_TRUNC else messages.request(data))

    def _proxy_ended(self) -> bool:
        """An empty packet looks the same as the end."""
        poll = select.poll()
        poll.register(self._requests, select.POLLRDHUP)
        return bool(poll.poll(0))

    def _ask(self, request: messages.Request | None) -> None:
        if request is None or request.index >= len(self.credentials):
            number = 0 if request is None else request.id
            self._reply(messages.Answer(number, "failed", problem="the question makes no sense"), None)
        else:
            self.credentials[request.index].ask(request, self._reply)

    def _reply(self, answer: messages.Answer, secret: Secret | None) -> None:
        head = messages.head(answer)
        try:
            if secret is None:
                self._requests.send(head)
                return
            with secret.lent() as value:
                self._requests.sendmsg([head, value])
        except ConnectionError:
            return  # it is gone; the next look at its socket says so


def _state(credential: Kept | Lazy) -> CredentialState:
    name, reference = credential.name, redacted(credential.reference)
    if isinstance(credential, Lazy):
        return CredentialState(name, reference, "lazy")
    try:
        credential.look()
    except CredentialUnavailable as error:
        availability: Availability = "missing" if isinstance(credential, Variable) else "waiting"
        return CredentialState(name, reference, availability, error.state, error.problem)
    return CredentialState(name, reference, "present")


def _no(request: messages.Request, error: CredentialUnavailable) -> messages.Answer:
    return messages.Answer(request.id, error.state, problem=error.problem)


if __name__ == "__main__":
    main()
