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


STATES: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: None,
    "empty": partial(_written, text=""),
    "a line feed alone": partial(_written, text="\n"),
    "two lines": partial(_written, text=f"{VALUE}\n{VALUE}\n"),
    "a carriage return": partial(_written, text=f"{VALUE}\r{VALUE}"),
    "open to others": partial(_written, text=VALUE, mode=0o644),
    "a symbolic link": _link,
    "a directory": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path, 0o600),
    "too large": partial(_written, text="x" * 100_000),
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
        answer: dict[str, Any] = self._agent.call(get, f"{name}.test", "/who")
        return answer

    def records(self, name: str) -> list[Record]:
        """What the audit says of requests that needed it."""
        return [each for each in self.services.records() if each.get("credential") == name]

    def take_away(self) -> None:
        """No file is there."""
        if self.path.is_dir() and not self.path.is_symlink():
            self.path.rmdir()
        else:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """End it."""
        self._agent.close()


def assert_unavailable(unavailable: Unavailable, answer: dict[str, Any], name: str) -> None:
    """503 with a body that names the credential and no value; the service heard nothing; the audit says why."""
    assert answer["status"] == 503, answer
    said = json.loads(answer["body"])
    assert (said["error"], said["credential"]) == (UNAVAILABLE, name)
    assert name in said["reason"]
    assert spelled(json.dumps(answer).encode(), VALUE) == []
    assert unavailable.services.server.seen == []
    assert eventually(lambda: bool(unavailable.records(name)))
    last = unavailable.records(name)[-1]
    assert (last["decision"], last["denial_category"], last["status"]) == ("deny", UNAVAILABLE, 503)
    assert spelled(json.dumps(last).encode(), VALUE) == []


def test_a_file_that_is_not_there_at_the_start(unavailable: Unavailable) -> None:
    """The command starts; requests are refused until the file appears, and not longer."""
    assert_unavailable(unavailable, unavailable.first, CHANGING)
    assert_it_works_again(unavailable)


@pytest.mark.parametrize("state", STATES)
def test_a_file_that_will_not_do(unavailable: Unavailable, state: str) -> None:
    """Whatever becomes of it while the sandbox runs: requests are refused, and work again when it is mended."""
    assert_it_works_again(unavailable)
    unavailable.take_away()
    STATES[state](unavailable.path)
    assert_unavailable(unavailable, unavailable.ask(CHANGING), CHANGING)
    assert_it_works_again(unavailable)


def test_no_keyring(unavailable: Unavailable) -> None:
    """A credential of a keyring, where there is none."""
    unavailable.services.server.seen.clear()
    assert_unavailable(unavailable, unavailable.ask(ABSENT), ABSENT)


def assert_it_works_again(unavailable: Unavailable) -> None:
    """As soon as the file is as it should be, without a restart."""
    unavailable.take_away()
    unavailable.services.vault.keep(CHANGING, VALUE)
    answer = unavailable.ask(CHANGING)
    assert answer["status"] == 200, answer
    assert [each.admitted for each in unavailable.services.server.seen] == [True]
    unavailable.services.server.seen.clear()
