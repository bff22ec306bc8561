"""The proxy's side of the broker: the real credentials, asked for anew for every request that needs one.

Whether a credential has changed is a question that costs a packet each way; its value crosses only when it has. A
request is never answered with what was read before it began, but for what the broker itself would answer it with: a
variable, which never changes, and what a password manager said lately. That is not asked for again. It gives nothing
away: what was told last is held here in any case, and whoever is in this process could ask at any time.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

from nono_ebpf.credentials import messages
from nono_ebpf.credentials.secret import Secret
from nono_ebpf.errors import CredentialUnavailable

if TYPE_CHECKING:
    import socket

_GRACE_S = 5.0  # for the broker to say by itself that a source took too long
_ENDED = "the process that reads credentials has ended"

Outcome = Secret | CredentialUnavailable


class _Credential:
    """What is held of one, and who waits: for the question that is under way, or, having come later, for the next."""

    def __init__(self, name: str, index: int) -> None:
        self.name, self.index = name, index
        self.version = 0
        self.secret: Secret | None = None
        self.until_s = 0.0  # it is the answer to every question before
        self.is_asked_for = False
        self.asked: set[asyncio.Future[Outcome]] = set()
        self.next: set[asyncio.Future[Outcome]] = set()

    def take(self, answer: messages.Answer, value: memoryview) -> Outcome:
        """What it comes to. A secret that is replaced is overwritten when the last request lets go of it."""
        if answer.state == messages.VALUE:
            self.version, self.secret = answer.version, Secret(value)
        if answer.state in {messages.VALUE, messages.UNCHANGED} and self.secret is not None:
            self.until_s = answer.until_s
            return self.secret
        return self.lose(answer.state, answer.problem)

    def lose(self, state: str, problem: str) -> CredentialUnavailable:
        """Nothing is held any more."""
        self.version, self.secret, self.until_s = 0, None, 0.0
        return CredentialUnavailable(self.name, state, problem)


class BrokeredCredentials:
    """Every credential of a run, by name. Made in the running loop, with a broker that serves already.

    Takes `channel`. Raises CredentialUnavailable: the broker has ended.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        greeting = _greeting(channel)
        self._credentials = {name: _Credential(name, index) for index, name in enumerate(greeting.names)}
        self._questions: dict[int, _Credential] = {}
        self._numbers = itertools.count(1)
        # The question under way, and then one's own.
        self._patience_s = None if greeting.deadline_s is None else 2 * greeting.deadline_s + _GRACE_S
        self._buffer = bytearray(messages.ANSWER_MAX)
        self._alive = True
        self._loop = asyncio.get_running_loop()
        channel.setblocking(False)
        self._loop.add_reader(channel.fileno(), self._receive)

    async def get(self, name: str) -> Secret:
        """As it is now.

        Raises:
            CredentialUnavailable: it cannot be had.
        """
        credential = self._credentials[name]
        if credential.secret is not None and messages.now_s() < credential.until_s:
            return credential.secret
        outcome = await self._answer(credential)
        if isinstance(outcome, CredentialUnavailable):
            raise CredentialUnavailable(name, outcome.state, outcome.problem)
        return outcome

    def close(self) -> None:
        """Hold nothing, ask nothing more; whoever waits is told so."""
        if self._alive:
            self._alive = False
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()
            for credential in self._credentials.values():
                self._settle(credential, self._ended(credential))

    async def _answer(self, credential: _Credential) -> Outcome:
        answer: asyncio.Future[Outcome] = self._loop.create_future()
        if credential.is_asked_for:
            credential.next.add(answer)
        else:
            credential.asked.add(answer)
            self._send(credential)
        expiry = None
        if self._patience_s is not None:
            expiry = self._loop.call_later(self._patience_s, _give_up, credential, answer)
        try:
            return await answer
        finally:
            if expiry is not None:
                expiry.cancel()
            credential.asked.discard(answer)
            credential.next.discard(answer)

    def _send(self, credential: _Credential) -> None:
        if not self._alive:
            self._settle(credential, self._ended(credential))
            return
        number = next(self._numbers)
        question = messages.Request(number, credential.index, credential.version)
        try:
            self._channel.send(messages.encoded(question))
        except OSError:  # also where it would wait: one question for each credential always has room
            self._settle(credential, self._ended(credential))
            return
        self._questions[number] = credential
        credential.is_asked_for = True

    def _settle(self, credential: _Credential, outcome: Outcome) -> None:
        """Whoever asked has the answer; whoever came later asks now."""
        credential.is_asked_for = False
        asked, credential.asked, credential.next = credential.asked, credential.next, set()
        for each in asked:
            _give(each, outcome)
        if credential.asked:
            self._send(credential)

    def _receive(self) -> None:
        try:
            length = self._channel.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            length = 0
        if not length:
            self.close()
            return
        with memoryview(self._buffer)[:length] as data:
            if (found := messages.split(data)) is not None:
                answer, value = found
                credential = self._questions.pop(answer.id, None)
                if credential is not None:
                    self._settle(credential, credential.take(answer, value))
            data[:] = bytes(length)

    def _ended(self, credential: _Credential) -> CredentialUnavailable:
        return credential.lose("failed", _ENDED)


def _give(waiting: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not waiting.done():
        waiting.set_result(outcome)


def _give_up(credential: _Credential, waiting: asyncio.Future[Outcome]) -> None:
    _give(waiting, CredentialUnavailable(credential.name, "timed_out", "what reads credentials does not answer"))


def _greeting(channel: socket.socket) -> messages.Greeting:
    channel.settimeout(_GRACE_S)
    try:
        greeting = messages.greeting(channel.recv(messages.ANSWER_MAX))
    except OSError:
        greeting = None
    if greeting is None:
        raise CredentialUnavailable("of every service", "failed", _ENDED)
    return greeting
