"""A sandbox with credentials in use, the servers they are for, and servers that only pretend to be.

Every kind of placement has a host of its own; `SECRETS` has what is kept for each by name. `judged` has no credential, but rules
about paths; `open` has neither. The last four show certificates, or a TLS, that nobody may believe.
"""

from __future__ import annotations

import shutil
import ssl
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trustme
from kit.account import RUN
from kit.credentials import Vault, new_secret
from kit.inside import COMMAND, Agent
from kit.machine import read_records
from kit.namespaces import inside
from kit.scripted import Scripted
from kit.side_network import SideNetwork

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence

    from kit.machine import Record
    from kit.world import World

PLACED: dict[str, dict[str, Any]] = {
    "api": {},
    "narrow": {"inject_header": "X-Api-Key", "endpoint_rules": [{"method": "GET", "path": "/v1/**"}]},
    "bot": {"inject_mode": "url_path", "path_pattern": "/bot{}/"},
    "maps": {"inject_mode": "query_param", "query_param_name": "key"},
    "basic": {"inject_mode": "basic_auth"},
    "based": {"upstream": "https://based.example.org/base/v2"},
}
PRETENDERS = ("expired", "stranger", "misnamed", "old")
NAMES = tuple(f"{name}.example.org" for name in (*PLACED, *PRETENDERS, "judged", "open"))


def host(name: str) -> str:
    """Of a credential, or of what has none."""
    return f"{name}.example.org"


class Guarded:
    """All of it, up on construction. `sources`: the attacks that the agent inside may be asked to make."""

    def __init__(self, world: World, sources: Mapping[str, str]) -> None:
        self.machine = world.machine
        self._world = world
        self._sources = sources
        with ExitStack() as stack:
            self.work = Path(tempfile.mkdtemp(prefix="guarded-", dir=world.work))
            stack.callback(shutil.rmtree, self.work)
            self.work.chmod(0o755)
            self.network = SideNetwork(world.namespaces.machine, self.work, NAMES)
            stack.callback(self.network.close)
            self._authority = trustme.CA()
            self.ca_file = self.work / "guarded-ca.pem"
            self._authority.cert_pem.write_to_path(str(self.ca_file))
            self.server = Scripted({name: self._listen(name) for name in NAMES})
            stack.callback(self.server.close)
            self.vault = Vault(self.work / "vault")
            self.secrets = {name: new_secret(name) for name in (*PLACED, *PRETENDERS)}
            self.secrets["basic"] = f"user:{self.secrets['basic']}"
            for name, value in self.secrets.items():
                self.vault.keep(name, value)
            self._stack = stack.pop_all()

    def _listen(self, name: str) -> tuple[socket.socket, ssl.SSLContext]:
        listener = inside(self.network.netns, partial(_create_server, self.network.addresses[name], 443))
        return listener, self._context(name)

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
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        return context

    def options(self, **network: Any) -> list[str]:
        """For `nono-ebpf run`: every credential, and the hosts that need none."""
        defined = {
            name: {
                "upstream": f"https://{host(name)}",
                "credential_key": self.vault.reference(name),
                "env_var": f"{name.upper()}_KEY",
                **how,
            }
            for name, how in {**PLACED, **{name: {} for name in PRETENDERS}}.items()
        }
        allowed = [host("open"), {"domain": host("judged"), "endpoints": [{"method": "GET", "path": "/v1/**"}]}]
        profile = self.vault.profile(defined, **{"allow_domain": allowed, **network})
        resolved = [word for name, at in self.network.addresses.items() for word in ("--resolve", f"{name}:{at}")]
        return ["--profile", str(profile), *resolved, "--upstream-ca", str(self.ca_file)]

    def start(self, log: Path, *more: str, **network: Any) -> Agent:
        """The agent in a sandbox with these options."""
        options: Sequence[str] = [*self.options(**network), "--audit-log", str(log), *more]
        command = self.machine.enter([*RUN, *options, "--", *COMMAND])
        return Agent(command, self._sources, cwd=self.machine.home, env=self.machine.environment())

    def close(self) -> None:
        """End them and remove every trace."""
        self._stack.close()


class Records:
    """The audit log of one sandbox, from where it was last looked at."""

    def __init__(self, log: Path) -> None:
        self._log, self._seen = log, 0

    def new(self) -> tuple[Record, ...]:
        """What has been written since."""
        found = read_records(self._log)[self._seen :]
        self._seen += len(found)
        return found


def _create_server(address: str, port: int) -> socket.socket:
    import socket

    return socket.create_server((address, port), backlog=512)
