"""A credential that cannot be had: requests that need one are refused, and work again as soon as it can.

One sandbox, with an agent in it that asks; the file that the credential is kept in changes meanwhile.
"""

from __future__ import annotations

import json
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from kit.api_server import Service, Wanted, absent
from kit.asking import get
from kit.credentials import new_secret, spelled
from kit.sandboxes import eventually
from kit.services import Services

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kit.machine import Record
    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel]

UNAVAILABLE = "managed_credential_unavailable"
CHANGING, ABSENT = "changing", "absent"
VALUE = new_secret(CHANGING)


def _written(path: Path, text: str, mode: int = 0o600) -> None:
    path.write_text(text)
    path.chmod(mode)


def _link(path: Path) -> None:
    other = path.with_suffix(".other")
    _written(other, VALUE)
    path.symlink_to(other)


# What becomes of the file, and our word for it.
STATES: dict[str, tuple[Callable[[Path], None], str]] = {
    "gone": (lambda path: None, "missing"),
    "nothing in it": (partial(_written, text=""), "empty"),
    "a line feed alone": (partial(_written, text="\n"), "empty"),
    "two lines": (partial(_written, text=f"{VALUE}\n{VALUE}\n"), "has_newline"),
    "a carriage return": (partial(_written, text=f"{VALUE}\r{VALUE}"), "has_newline"),
    "open to others": (partial(_written, text=VALUE, mode=0o644), "not_private"),
    "a symbolic link": (_link, "symlink"),
    "a directory": (lambda path: path.mkdir(), "not_a_file"),
    "a pipe": (lambda path: os.mkfifo(path, 0o600), "not_a_file"),
    "too large": (partial(_written, text="x" * 100_000), "too_large"),
}


@pytest.fixture(scope="module")
def unavailable(_world: World) -> Iterator[Unavailable]:
    """A sandbox with a credential whose file is not there when it starts, and one of a keyring that is not there."""
    wanted = Service(Wanted("Authorization", f"Bearer {VALUE}"), absent)
    with Services(_world, {"changing.test": wanted, "absent.test": wanted}) as services:
        made = Unavailable(services)
        yield made
        made.close()


class Unavailable:
    """The sandbox, with an agent in it that asks. `first` is the answer before the file was ever there."""

    def __init__(self, services: Services) -> None:
        self.services, self.path = services, services.vault.path(CHANGING)
        credentials = {
            CHANGING: services.credential(CHANGING, "changing.test"),
            ABSENT: services.credential(ABSENT, "absent.test", credential_key="kit_nobody_has_this"),
        }
        self._agent = services.agent(credentials)
        self.first = self.ask(CHANGING)

    def ask(self, name: str) -> dict[str, Any]:
        """The response of that service, asked from inside."""
        self._refused = len(self.refusals(name))
        answer: dict[str, Any] = self._agent.call(get, f"{name}.test", "/who")
        return answer

    def refusals(self, name: str) -> list[Record]:
        """What the audit says of requests that had to do without it."""
        wanted = {"event": "request", "decision": "deny", "denial_category": UNAVAILABLE, "route_id": name}
        return [each for each in self.services.records() if wanted.items() <= each.items()]

    def refusal(self, name: str) -> Record:
        """What it says of the last one, which was refused."""
        assert eventually(lambda: len(self.refusals(name)) > self._refused)
        return self.refusals(name)[-1]

    def take_away(self) -> None:
        """No file is there."""
        if self.path.is_dir() and not self.path.is_symlink():
            self.path.rmdir()
        else:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """End it."""
        self._agent.close()


def assert_unavailable(unavailable: Unavailable, answer: dict[str, Any], name: str, state: str) -> None:
    """503 with a body that names the credential and no value; the service heard nothing; the audit says why."""
    assert answer["status"] == 503, answer
    said = json.loads(answer["body"])
    assert (said["error"], said["credential"], said["state"]) == (UNAVAILABLE, name, state)
    assert name in said["reason"]
    assert spelled(json.dumps(answer).encode(), VALUE) == []
    assert unavailable.services.server.seen == []
    last = unavailable.refusal(name)
    assert (last["reason"], last["status"]) == (said["reason"], 503)
    assert spelled(json.dumps(last).encode(), VALUE) == []


def test_a_file_that_is_not_there_at_the_start(unavailable: Unavailable) -> None:
    """The command starts; requests are refused until the file appears, and not longer."""
    assert_unavailable(unavailable, unavailable.first, CHANGING, "missing")
    assert_it_works_again(unavailable)


@pytest.mark.parametrize("state", STATES)
def test_a_file_that_will_not_do(unavailable: Unavailable, state: str) -> None:
    """Whatever becomes of it while the sandbox runs: requests are refused, and work again when it is mended."""
    assert_it_works_again(unavailable)
    unavailable.take_away()
    become, word = STATES[state]
    become(unavailable.path)
    assert_unavailable(unavailable, unavailable.ask(CHANGING), CHANGING, word)
    assert_it_works_again(unavailable)


def test_an_account_that_nobody_has_set(unavailable: Unavailable) -> None:
    """A credential of the keyring, or of the host's store where it is root's, that is not there."""
    unavailable.services.server.seen.clear()
    assert_unavailable(unavailable, unavailable.ask(ABSENT), ABSENT, "missing")


def assert_it_works_again(unavailable: Unavailable) -> None:
    """As soon as the file is as it should be, without a restart."""
    unavailable.take_away()
    unavailable.services.vault.keep(CHANGING, VALUE)
    answer = unavailable.ask(CHANGING)
    assert answer["status"] == 200, answer
    assert [each.admitted for each in unavailable.services.server.seen] == [True]
    unavailable.services.server.seen.clear()
