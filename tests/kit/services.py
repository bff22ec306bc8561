"""What a test of credentials needs at once: hosts that want one, files that hold it, options that join both.

And what holds of every client: the service had the credential from it, and the sandbox never had.
"""

from __future__ import annotations

import inspect
import json
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit import asking, errands
from kit.api_server import ApiServer
from kit.credentials import Vault, spelled
from kit.inside import COMMAND, Agent
from kit.machine import _program, read_records
from kit.side_network import MACHINE_V4, SideNetwork

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kit.api_server import Service
    from kit.errands import Errand, Outcome
    from kit.machine import Record
    from kit.world import World


class Services:
    """The hosts of `services`, up on construction, on a link of the world's machine.

    Those of them that are `impostors` have no certificate for their name.
    """

    def __init__(self, world: World, services: Mapping[str, Service], impostors: tuple[str, ...] = ()) -> None:
        self.machine = world.machine
        with ExitStack() as stack:
            self.work = Path(tempfile.mkdtemp(prefix="services-", dir=world.work))
            stack.callback(shutil.rmtree, self.work)
            self.work.chmod(0o755)
            self.network = SideNetwork(world.namespaces.machine, self.work, tuple(services), impostors)
            stack.callback(self.network.close)
            listeners = {80: None, 443: self.network.certificate.context()}
            opened = [(self.network.listen(port), tls) for port, tls in listeners.items()]
            self.server = ApiServer(opened, services)
            stack.callback(self.server.close)
            self.vault = Vault(self.work / "vault")
            self._log = self.work / "audit.ndjson"
            self._stack = stack.pop_all()

    def credential(self, name: str, host: str, **more: Any) -> dict[str, Any]:
        """One that is kept in the file of this name, for a host that wants it in `Authorization` unless `more` says."""
        kept = {"credential_key": self.vault.reference(name), "env_var": f"KIT_{name.upper()}_KEY"}
        return {"upstream": f"https://{host}", **kept, **more}

    def options(self, credentials: Mapping[str, Mapping[str, Any]], **network: Any) -> list[str]:
        """For `nono-ebpf run` to put these credentials into requests."""
        return ["--profile", str(self.vault.profile(credentials, **network)), *self.network.options]

    def run(
        self,
        credentials: Mapping[str, Mapping[str, Any]],
        wanted: Sequence[Errand],
        *,
        secrets: Mapping[str, str],
        env: Mapping[str, str] | None = None,
        **network: Any,
    ) -> Outcome:
        """Run errands with these credentials in use; `secrets` are what must not be found."""
        options = self.options(credentials, **network)
        return errands.run(self.machine, self.server, options, wanted, secrets=secrets, env=env, log=self._log)

    def agent(self, credentials: Mapping[str, Mapping[str, Any]]) -> Agent:
        """A sandbox with these credentials in use, in which functions of `kit.asking` can be called."""
        command = [*_program(), *self.options(credentials), "--audit-log", str(self._log), "--", *COMMAND]
        modules = {"kit": "", asking.__name__: inspect.getsource(asking)}
        return Agent(self.machine.enter(command), modules, env=self.machine.environment())

    def records(self) -> tuple[Record, ...]:
        """The audit log, up to now."""
        return read_records(self._log)

    def was_sent(self, outcome: Outcome, client: str, field: str, value: str) -> int:
        """How many requests of that client arrived. Each had `value` in `field`, and nothing of the phantom or us."""
        received = self.server.of(client)
        assert {each.value(field) for each in received} == {value}, outcome.steps.get(client, outcome.output)
        assert {each.peer for each in received} == {MACHINE_V4}
        for each in received:
            assert spelled(each.text, outcome.token) == []
            assert "127.0.0.1" not in each.text.decode("latin-1")
        return len(received)

    def close(self) -> None:
        """End them and remove every trace."""
        self._stack.close()

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def assert_not_found(outcome: Outcome, client: str, *secrets: str) -> None:
    """The sandbox was searched while the client waited, and nobody there had one of the secrets of these names."""
    assert client in outcome.held, outcome.steps.get(client, outcome.output)
    for each in secrets:
        assert outcome.found[each] == []
    assert outcome.shown == []


def assert_not_told(outcome: Outcome, *values: str) -> None:
    """Neither on a stream, of the clients' or of ours, nor in the audit log; there, not even the phantom."""
    for value in values:
        assert spelled(outcome.output.encode(), value) == []
    for value in (*values, outcome.token):
        assert spelled(json.dumps(outcome.records).encode(), value) == []
