"""A credential that an ordinary user, who starts the sandbox through sudo, cannot have: files that not even their owner
may read, and a real keyring. Requests are refused, and `doctor` says why.
"""

from __future__ import annotations

import json
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from kit import asker
from kit.account import AS_NOBODY, NOBODY, PROGRAM, finish, place
from kit.api_server import Service, Wanted, absent
from kit.asking import get
from kit.checkout import opened
from kit.credentials import new_secret, spelled
from kit.keyring import session
from kit.machine import read_records
from kit.services import Services

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from typing import Literal

    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel]

__all__ = ["place"]

UNAVAILABLE = "managed_credential_unavailable"
VALUE = new_secret("user")


def _written(path: Path, text: str, mode: int = 0o600) -> None:
    path.write_text(text)
    path.chmod(mode)


def _link(path: Path) -> None:
    other = path.with_suffix(".other")
    _written(other, VALUE)
    path.symlink_to(other)


def _closed(path: Path) -> None:
    """Its directory has become another account's, and may not be entered."""
    _written(path, VALUE)
    os.chown(path.parent, 0, 0)
    path.parent.chmod(0o700)


# What becomes of the file, and our word for it.
STATES: dict[str, tuple[Callable[[Path], None], str]] = {
    "gone": (lambda path: None, "missing"),
    "unreadable": (partial(_written, text=VALUE, mode=0), "unreadable"),
    "closed": (_closed, "unreadable"),
    "link": (_link, "symlink"),
    "empty": (partial(_written, text=""), "empty"),
    "lines": (partial(_written, text=f"{VALUE}\n{VALUE}"), "has_newline"),
}


@pytest.fixture(scope="module")
def services(_world: World) -> Iterator[Services]:
    """Services that want the credential, each under its name."""
    wanted = Service(Wanted("Authorization", f"Bearer {VALUE}"), absent)
    with Services(_world, {f"{name}.test": wanted for name in ("keyring", "good", *STATES)}) as made:
        yield made


def assert_refused(
    services: Services, log: Path, answers: Mapping[str, dict[str, Any]], states: Mapping[str, str]
) -> None:
    """Each with 503, its state and a reason that the log has as well; the services heard nothing of these requests."""
    assert {name: answers[name]["status"] for name in states} == dict.fromkeys(states, 503)
    said = {name: json.loads(answers[name]["body"]) for name in states}
    assert {name: told["state"] for name, told in said.items()} == states
    assert not {f"{name}.test" for name in states} & {each.host for each in services.server.seen}
    denied = {each["route_id"]: each for each in read_records(log) if each["decision"] == "deny"}
    assert {name: (each["denial_category"], each["reason"]) for name, each in denied.items()} == {
        name: (UNAVAILABLE, told["reason"]) for name, told in said.items()
    }
    assert spelled(json.dumps([answers, denied]).encode(), VALUE) == []


def test_files_of_a_user(services: Services, place: Path) -> None:
    """Read with the user's rights, not with root's; `doctor` says the same of each."""
    paths = {name: place / "secrets" / name / "token" for name in ("good", *STATES)}
    for path in paths.values():
        path.parent.mkdir(parents=True)
        os.chown(path.parent, NOBODY.pw_uid, NOBODY.pw_gid)
    credentials = {
        name: services.credential(name, f"{name}.test", credential_key=f"file://{path}") for name, path in paths.items()
    }
    options, log = services.options(credentials), place / "audit.ndjson"
    environment = services.machine.environment({"HOME": str(place)})
    agent = asker.agent(services, options, log, environment)
    try:
        _written(paths["good"], VALUE)
        for name, (become, _) in STATES.items():
            become(paths[name])
        for path in paths.values():
            for each in path.parent.iterdir():
                os.chown(each, NOBODY.pw_uid, NOBODY.pw_gid, follow_symlinks=False)
        answers = {name: agent.call(get, f"{name}.test", "/who") for name in paths}
        rows = asker.doctor(services, ["--profile", str(services.vault.path("profile.json"))], environment)
    finally:
        agent.close()
    states = {name: word for name, (_, word) in STATES.items()}
    assert_refused(services, log, answers, states)
    assert (answers["good"]["status"], [each.host for each in services.server.seen]) == (200, ["good.test"])
    services.server.seen.clear()
    assert {name: row["state"] for name, row in rows.items()} == dict.fromkeys(states, "no") | {"good": "yes"}
    for name in states:
        assert rows[name]["detail"].partition(": ")[2] in json.loads(answers[name]["body"])["reason"]


@pytest.mark.parametrize(("keyring", "state"), [("unlocked", "readable"), ("locked", "locked"), ("none", "no_keyring")])
def test_the_keyring_of_a_user(
    services: Services, place: Path, keyring: Literal["unlocked", "locked", "none"], state: str
) -> None:
    """A real one, in whose session the sandbox is started: unlocked, locked, or not there at all."""
    with session(place, "unlocked") as environment:
        put = services.machine.enter(opened([*AS_NOBODY, *PROGRAM, "credential", "set", "kit_keyring"]))
        kept = place / "typed"
        kept.write_text(VALUE)
        with kept.open() as typed:
            assert finish(put, env=environment, stdin=typed).returncode == 0
        kept.unlink()
    credentials = {"keyring": services.credential("keyring", "keyring.test", credential_key="kit_keyring")}
    options, log = services.options(credentials), place / "audit.ndjson"
    with session(place, keyring) as environment:
        agent = asker.agent(services, options, log, environment)
        try:
            answer = agent.call(get, "keyring.test", "/who")
            rows = asker.doctor(services, ["--profile", str(services.vault.path("profile.json"))], environment)
        finally:
            agent.close()
    if state == "readable":
        assert (answer["status"], [each.admitted for each in services.server.seen]) == (200, [True])
        services.server.seen.clear()
        assert rows["keyring"]["state"] == "yes"
    else:
        assert_refused(services, log, {"keyring": answer}, {"keyring": state})
        assert rows["keyring"]["state"] == "no"
        assert rows["keyring"]["detail"].partition(": ")[2] in json.loads(answer["body"])["reason"]
