"""`bw://` with Bitwarden's real program, logged in to a server of the test's: what is found, and what is said if not.

Everything is an ordinary account's, who starts sandboxes through sudo.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from kit import asker
from kit.account import AS_NOBODY, PROGRAM, directory_of_nobody, finish
from kit.api_server import Service, Wanted, absent
from kit.asking import get
from kit.bitwarden import MASTER_PASSWORD, BitwardenServer, Item, Program
from kit.checkout import opened
from kit.credentials import new_secret, spelled
from kit.machine import read_records
from kit.namespaces import inside
from kit.services import Services

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kit.inside import Agent
    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel]

PASSWORD, OWN, PIN = new_secret("password"), new_secret("own"), "JBSWY3DPEHPK3PXP"
TRACKER = Item("Tracker", PASSWORD, "me", "https://t.test", PIN, "two\nlines", {"api key": OWN, "password": "not this"})
ITEMS = (
    TRACKER,
    Item("Tracker of another team", "not this"),
    Item("twin", "one"),
    Item("twin", "other"),
)
# What requests are made with, below, is not asked for here: a start of bw takes a second.
STATES = {
    f"bw://{TRACKER.id}/username": "readable",
    "bw://Tracker/totp": "readable",
    "bw://Tracker/notes": "has_newline",
    "bw://Tracker/nothing": "missing",
}


@dataclass(frozen=True, slots=True)
class Vault:
    """The account's program, logged in, the `session` in which its vault is open, and where it has its files."""

    services: Services
    program: Program
    session: str
    home: Path

    def state(self, reference: str, **environment: str) -> dict[str, Any]:
        """What `credential test` says."""
        command = self.program.command(opened([*AS_NOBODY, *PROGRAM, "credential", "test", "--json", reference]))
        done = finish(command, env=self.program.environment(**environment))
        assert PASSWORD not in done.stdout + done.stderr
        assert done.stderr == ""
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def agent(self, references: dict[str, str], log: Path, **environment: str) -> Agent:
        """A sandbox in which the service at `NAME.test` gets the credential that its reference stands for."""
        credentials = {
            name: self.services.credential(name, f"{name}.test", credential_key=reference)
            for name, reference in references.items()
        }
        variables = self.program.environment(**environment)
        return asker.agent(self.services, self.services.options(credentials), log, variables, self.program.command)


@pytest.fixture(scope="module")
def vault(_world: World) -> Iterator[Vault]:
    """All of it, which takes a while."""
    wanted = {"word.test": PASSWORD, "own.test": OWN, "gone.test": "", "twin.test": ""}
    hosts = {host: Service(Wanted("Authorization", f"Bearer {value}"), absent) for host, value in wanted.items()}
    with ExitStack() as stack:
        services = stack.enter_context(Services(_world, hosts))
        home = stack.enter_context(directory_of_nobody("/tmp"))
        listener = inside(_world.namespaces.machine, partial(socket.create_server, ("127.0.0.1", 0)))
        server = BitwardenServer(listener, services.work, ITEMS)
        stack.callback(server.close)
        program = Program(_world.machine, server, services.work, home)
        yield Vault(services, program, program.log_in(), home)


@pytest.mark.parametrize("reference", STATES, ids=lambda each: each.replace(TRACKER.id, "ID"))
def test_what_is_found(vault: Vault, reference: str) -> None:
    """An item by its name or its id; of it, what bw knows by name, or a line that says why not."""
    told = vault.state(reference, BW_SESSION=vault.session)
    assert told["state"] == STATES[reference], told
    assert "\n" not in told.get("problem", "")


def test_what_changes_what_bw_writes_does_not(vault: Vault) -> None:
    """Variables of its own that the account's shell may have."""
    changed = {"BW_RESPONSE": "true", "BW_PRETTY": "true", "BW_QUIET": "true", "BITWARDENCLI_DEBUG": "true"}
    told = vault.state("bw://Tracker", BW_SESSION=vault.session, **changed)
    assert told["state"] == "readable", told


def test_a_vault_that_another_session_opened(vault: Vault) -> None:
    """Is locked to us, also where bw is told to call no failure one: it is said how to open it."""
    told = vault.state("bw://Tracker", BW_SESSION="A" * 88, BW_CLEANEXIT="true")
    assert (told["state"], "bw unlock" in told["problem"], "bw login" in told["problem"]) == ("locked", True, False)


def test_an_account_that_is_not_logged_in(vault: Vault) -> None:
    """Said as such."""
    empty = vault.home / "empty"
    empty.mkdir(mode=0o777)
    empty.chmod(0o777)
    told = vault.state("bw://Tracker", BW_SESSION=vault.session, BITWARDENCLI_APPDATA_DIR=str(empty))
    assert (told["state"], "bw login" in told["problem"]) == ("locked", True)
    shutil.rmtree(empty)


def test_what_lies_in_the_home_is_not_executed(vault: Vault) -> None:
    """Node looks there for modules that a package can do without. The sandboxed command could leave one."""
    planted, executed = vault.home / ".node_modules/encoding/index.js", vault.home / "executed"
    executed.touch()
    executed.chmod(0o666)
    planted.parent.mkdir(parents=True)
    planted.write_text(f"require('fs').appendFileSync('{executed}', 'executed'); module.exports = {{}};")
    try:
        assert vault.state("bw://tracker", BW_SESSION=vault.session)["state"] == "readable"
        assert executed.read_text() == ""
        vault.program.call("status")
        assert executed.read_text() == "executed"
    finally:
        shutil.rmtree(planted.parents[1])


def test_requests_get_it(vault: Vault) -> None:
    """A password, a field of the item's own; where there is no such item, or two, nothing is sent. What opens the
    vault is neither in an argument nor in the log nor within the command's reach.
    """
    log = vault.home / "unlocked.ndjson"
    references = {"word": "bw://Tracker", "own": "bw://Tracker/api key", "gone": "bw://Tracke", "twin": "bw://twin"}
    agent = vault.agent(references, log, BW_SESSION=vault.session)
    try:
        answers = {name: agent.call(get, f"{name}.test", "/who") for name in references}
        session, files = agent.call(os.getenv, "BW_SESSION"), agent.call(os.listdir, str(vault.program.data))
        said = agent.said()
    finally:
        agent.close()
    assert {name: answer["status"] for name, answer in answers.items()} == {
        "word": 200, "own": 200, "gone": 503, "twin": 503
    }  # fmt: skip
    assert [json.loads(answers[name]["body"])["state"] for name in ("gone", "twin")] == ["missing", "ambiguous"]
    assert [each.host for each in vault.services.server.seen] == ["word.test", "own.test"]
    vault.services.server.seen.clear()
    assert (session, files) == (None, [])
    told = (log.read_text() + vault.program.asked + said).encode()
    assert b"list items --search Tracker\n" in told
    for secret in (PASSWORD, OWN, vault.session, MASTER_PASSWORD):
        assert spelled(told, secret) == []


def test_requests_while_it_is_locked(vault: Vault) -> None:
    """503 that says so, in the log as well, and the service hears nothing."""
    log = vault.home / "locked.ndjson"
    agent = vault.agent({"word": "bw://Tracker"}, log)
    try:
        answer = agent.call(get, "word.test", "/who")
    finally:
        agent.close()
    said = json.loads(answer["body"])
    assert (answer["status"], said["state"], "bw unlock" in said["reason"]) == (503, "locked", True)
    assert vault.services.server.seen == []
    denied = [each["reason"] for each in read_records(log) if each["event"] == "request"]
    assert denied == [said["reason"]]
