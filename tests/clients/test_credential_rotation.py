"""A credential whose file is replaced, again and again, while many connections that stay open send requests.

All times are the monotonic clock's, which is one for the machine: a value is current from the moment at which the file
has its name, and a request that is sent after that has to carry it, or one that came later still.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from typing import TYPE_CHECKING

import pytest
from kit.api_server import Service, absent
from kit.asking import many
from kit.credentials import new_secret
from kit.patience import patient
from kit.services import Services

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel, pytest.mark.slow]

NAME, HOST = "rotating", "rotating.test"
REQUESTS, CONNECTIONS, EVERY_S, AT_LEAST_S = 10_000, 8, 0.25, 6.0


class Rotation:
    """Replaces the credential of `services` again and again while it is entered. `values` are those it has had."""

    def __init__(self, services: Services) -> None:
        self._services, self._stop = services, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.values: list[str] = []
        self.since_ns: list[int] = []
        self.replace()

    def replace(self) -> None:
        """A new value, and the time at which it surely was current."""
        value = new_secret(NAME)
        self.values.append(value)
        self._services.vault.keep(NAME, value)
        self.since_ns.append(time.monotonic_ns())

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            self.replace()

    def current(self, at_ns: int) -> int:
        """The number of the value that was current then."""
        return bisect_right(self.since_ns, at_ns) - 1

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def services(_world: World) -> Iterator[Services]:
    """One host, which lets everything through: what a request carries is what is asked."""
    with Services(_world, {HOST: Service(None, absent)}) as made:
        yield made


def test_no_request_carries_an_old_value(services: Services) -> None:
    """Each carries one that was current when it was sent, or later; none carries none, and none fails."""
    rotation = Rotation(services)
    agent = services.agent({NAME: services.credential(NAME, HOST)})
    try:
        with rotation:
            told = agent.call(many, HOST, CONNECTIONS, AT_LEAST_S, REQUESTS, timeout_s=patient(300))
    finally:
        agent.close()
    assert {status for _, _, status in told} == {200}
    assert len(told) >= REQUESTS
    assert len(rotation.values) >= 5
    carried = {each.target.removeprefix("/rotate/"): each.value("Authorization") for each in services.server.seen}
    number = {f"Bearer {value}": number for number, value in enumerate(rotation.values)}
    assert len(carried) == len(services.server.seen) == len(told)
    late = [
        (name, number[carried[name]], rotation.current(sent_ns))
        for name, sent_ns, _ in told
        if number[carried[name]] < rotation.current(sent_ns)
    ]
    assert late == []
