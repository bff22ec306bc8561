"""A sandbox with credentials in use, the servers they are for, and servers that only pretend to be.

Every kind of placement has a host of its own. `judged` and `plain` have no credential, but rules about paths; `plain`
is plain HTTP; `open` has neither. PRETENDERS show certificates, or a TLS, that nobody may believe.

Whatever a test does, `Sandboxed.check` looks at all of it: no credential came back or stands in the audit log, each
request has its host's credential where that belongs and no other, and no fault of ours was met.
"""

from __future__ import annotations

import base64
import shutil
import socket
import ssl
import tempfile
import warnings
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import pytest
import trustme
from attacks import requests, secure
from kit.account import RUN
from kit.credentials import Vault, new_secret, spelled
from kit.inside import COMMAND, Agent
from kit.inside import sources as sources_of
from kit.machine import ROOT, Record, read_records
from kit.namespaces import inside
from kit.scripted import Scripted
from kit.side_network import SideNetwork

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attacks.secure import Conversation
    from kit.scripted import Asked
    from kit.world import World

PLACED: dict[str, dict[str, Any]] = {
    "api": {},
    "narrow": {"inject_header": "X-Api-Key", "endpoint_rules": [{"method": "GET", "path": "/v1/**"}]},
    "bot": {"inject_mode": "url_path", "path_pattern": "/bot{}/"},
    "maps": {"inject_mode": "query_param", "query_param_name": "key"},
    "basic": {"inject_mode": "basic_auth"},
    "based": {"upstream": "https://based.example.org/base/v2", "credential_key": "env://GUARDED_BASED"},
}
PRETENDERS = ("expired", "stranger", "misnamed", "old")
OTHERS = ("judged", "plain", "open")
CLOSE = "Connection: close\r\n"
ATTACKS = sources_of(ROOT / "tests/bypass/attacks")


def host(name: str) -> str:
    """Of a credential, or of what has none."""
    return f"{name}.example.org"


def get(name: str, target: str = "/v1/x", fields: str = CLOSE, method: str = "GET") -> str:
    """A request to the host of `name`; `fields` are whole lines."""
    return f"{method} {target} HTTP/1.1\r\nHost: {host(name)}\r\n{fields}\r\n"


def status(answer: str) -> str:
    """Of the first response; what was met instead when there is none."""
    return answer.split(" ")[1] if answer.startswith("HTTP/1.1 ") else answer


class Guarded:
    """The hosts and the credentials, up on construction."""

    def __init__(self, world: World) -> None:
        self.machine = world.machine
        names = tuple(map(host, (*PLACED, *PRETENDERS, *OTHERS)))
        with ExitStack() as stack:
            self.work = Path(tempfile.mkdtemp(prefix="guarded-", dir=world.work))
            stack.callback(shutil.rmtree, self.work)
            self.work.chmod(0o755)
            self.network = SideNetwork(world.namespaces.machine, self.work, names)
            stack.callback(self.network.close)
            self._authority = trustme.CA()
            self._ca_file = self.work / "guarded-ca.pem"
            self._authority.cert_pem.write_to_path(str(self._ca_file))
            self.server = Scripted()
            stack.callback(self.server.close)
            for name in names:
                self.server.serve(name, *self._listen(name))
            self.vault = Vault(self.work / "vault")
            self.secrets = {name: new_secret(name) for name in (*PLACED, *PRETENDERS)}
            self.secrets["basic"] = f"user:{self.secrets['basic']}"
            for name, value in self.secrets.items():
                self.vault.keep(name, value)
            self._stack = stack.pop_all()

    def _listen(self, name: str) -> tuple[socket.socket, ssl.SSLContext | None]:
        address, port = self.network.addresses[name], 80 if name == host("plain") else 443
        context = None if name == host("plain") else self._context(name)
        return inside(self.network.netns, partial(socket.create_server, (address, port), backlog=512)), context

    def _context(self, name: str) -> ssl.SSLContext:
        """How the host `name` shows itself."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        yesterday = datetime.now(UTC) - timedelta(days=1)
        issue = trustme.CA().issue_cert if name == host("stranger") else self._authority.issue_cert
        shown = host("open") if name == host("misnamed") else name
        older = {"not_before": yesterday - timedelta(days=9), "not_after": yesterday} if name == host("expired") else {}
        issue(shown, **older).configure_cert(context)
        if name == host("old"):
            context.set_ciphers("ALL:@SECLEVEL=0")
            with warnings.catch_warnings(action="ignore"):
                context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        return context

    def options(self) -> list[str]:
        """For `nono-ebpf run`: every credential, and the hosts that need none."""
        placed = {**PLACED, **{name: {} for name in PRETENDERS}}
        profile = self.vault.profile(
            {name: self._definition(name) | how for name, how in placed.items()},
            allow_domain=[host("open"), {"domain": host("judged"), "endpoints": [{"method": "GET", "path": "/v1/**"}]}],
        )
        resolved = [word for name, at in self.network.addresses.items() for word in ("--resolve", f"{name}:{at}")]
        plain = f"http://{host('plain')}/v1/**"
        return ["--profile", str(profile), *resolved, "--upstream-ca", str(self._ca_file), "--allow-domain", plain]

    def _definition(self, name: str) -> dict[str, str]:
        reference = self.vault.reference(name)
        return {"upstream": f"https://{host(name)}", "credential_key": reference, "env_var": f"{name.upper()}_KEY"}

    def close(self) -> None:
        """End them and remove every trace."""
        self._stack.close()


class Sandboxed:
    """An agent in a sandbox of its own, and everything that it was told."""

    def __init__(self, guarded: Guarded) -> None:
        self.guarded, self.server = guarded, guarded.server
        self._log = Path(tempfile.mkdtemp(dir=guarded.work)) / "audit.ndjson"
        command = guarded.machine.enter([*RUN, *guarded.options(), "--audit-log", str(self._log), "--", *COMMAND])
        env = guarded.machine.environment({"GUARDED_BASED": guarded.secrets["based"]})
        self.agent = Agent(command, ATTACKS, cwd=guarded.machine.home, env=env)
        self._told: list[str] = []
        self._seen = 0

    def redirected(self, name: str, *conversations: Conversation | str) -> list[str]:
        """What comes back in each conversation with the host of `name`; a text is the only thing said."""
        return self._kept(self.agent.call(secure.redirected, host(name), 443, _whole(conversations)))

    def tunnelled(self, name: str, *conversations: Conversation | str) -> list[str]:
        """The same by CONNECT."""
        return self._kept(self.agent.call(secure.tunnelled, f"{host(name)}:443", _whole(conversations)))

    def by_socks(self, name: str, *conversations: Conversation | str) -> list[str]:
        """The same by SOCKS5."""
        return self._kept(self.agent.call(secure.by_socks, f"{host(name)}:443", _whole(conversations)))

    def to_address(self, address: str, *conversations: Conversation | str) -> list[str]:
        """What comes back from an address that no name was looked up for."""
        return self._kept(self.agent.call(secure.redirected, address, 443, _whole(conversations)))

    def to_proxy(self, *texts: list[str] | str) -> list[str]:
        """What the proxy answers to each request (or its pieces)."""
        pieces = [[text] if isinstance(text, str) else text for text in texts]
        return self._kept(self.agent.call(requests.to_proxy, pieces))

    def in_the_clear(self, name: str, port: int, *texts: str) -> list[str]:
        """What comes back to plain HTTP."""
        return self._kept(self.agent.call(secure.in_the_clear, host(name), port, [[text] for text in texts]))

    def _kept(self, answers: list[str]) -> list[str]:
        self._told += answers
        return answers

    def records(self) -> tuple[Record, ...]:
        """What the audit log has since this was last asked."""
        found = read_records(self._log)[self._seen :]
        self._seen += len(found)
        return found

    def check(self, records: tuple[Record, ...]) -> None:
        """No credential came back, or went where it does not belong; nothing was read in two ways; no fault of ours."""
        said = "\n".join([*self._told, *map(str, records), self.agent.said()]).encode("latin-1", "replace")
        for value in self.guarded.secrets.values():
            assert spelled(said, value.partition(":")[2] or value) == []
        assert [each for each in records if each.get("denial_category") == "internal"] == []
        assert [bytes(each.data) for each in self.server.raw if each.unreadable] == []
        assert [each.host for each in self.server.asked if each.host in map(host, PRETENDERS)] == []
        for asked in self.server.asked:
            self._check_asked(asked)

    def _check_asked(self, asked: Asked) -> None:
        """The one credential that it has stands in its one place."""
        name = asked.host.partition(".")[0]
        text = "\n".join([asked.target, *(value for _, value in asked.fields)])
        wanted = self._placed(name)
        if wanted is not None:
            field, value = wanted
            assert (asked.target.count(value) if field is None else asked.values(field)) in (1, [value]), asked
            text = text.replace(value, "", 1)
        for secret in self.guarded.secrets.values():
            assert secret not in text, asked
            assert quote(secret, safe="") not in text, asked

    def _placed(self, name: str) -> tuple[str | None, str] | None:
        """The field and the value that a request to the host of `name` has; no field: the value is in the target."""
        secret = self.guarded.secrets.get(name, "")
        return {
            "api": ("authorization", f"Bearer {secret}"),
            "based": ("authorization", f"Bearer {secret}"),
            "narrow": ("x-api-key", secret),
            "basic": ("authorization", f"Basic {base64.b64encode(secret.encode()).decode()}"),
            "bot": (None, f"/bot{quote(secret, safe='+=~')}/"),
            "maps": (None, f"key={quote(secret, safe='')}"),
        }.get(name)

    def close(self) -> None:
        """End the sandbox."""
        self.agent.close()


def _whole(conversations: tuple[Conversation | str, ...]) -> list[Conversation]:
    return [{"pieces": [each]} if isinstance(each, str) else each for each in conversations]


def _scope(fixture_name: str, config: pytest.Config) -> Literal["session", "module"]:
    """A module's: its link has the names of all such links. In an emulated guest, where a start takes long, there is no
    other one.
    """
    return "session" if config.pluginmanager.hasplugin("vagrant.selection") else "module"


@pytest.fixture(scope=_scope)
def guarded(_world: World) -> Iterator[Guarded]:
    made = Guarded(_world)
    yield made
    made.close()


@pytest.fixture(scope=_scope)
def _sandboxed(guarded: Guarded) -> Iterator[Sandboxed]:
    made = Sandboxed(guarded)
    yield made
    made.close()


@pytest.fixture
def sandboxed(_sandboxed: Sandboxed) -> Iterator[Sandboxed]:
    """The sandbox that a module's tests share. Every test ends with a look at all that came of it."""
    _sandboxed.server.forget()
    _sandboxed.records()
    _sandboxed._told.clear()
    yield _sandboxed
    _sandboxed.check(_sandboxed.records())
