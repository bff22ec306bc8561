"""The supervisor's side of the broker process: start, hand over, stop. The other side is nono_ebpf/broker.py."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from nono_ebpf.credentials import sources
from nono_ebpf.credentials.references import FromEnvironment
from nono_ebpf.errors import SandboxError
from nono_ebpf.sandbox import broker_plan, signals
from nono_ebpf.sandbox.broker_plan import BrokerCredential, BrokerPlan, BrokerReport
from nono_ebpf.sandbox.helper_process import HelperProcess

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nono_ebpf.sandbox.user import User


class BrokerProcess(HelperProcess):
    """The environment it is told of is not its own.

    `proxy_end`: the socket that questions are asked over, one packet each; its fd is for the proxy.
    """

    def __init__(self) -> None:
        self.proxy_end, self._for_broker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(("-m", "nono_ebpf.broker"), signals.restore_defaults, broker_plan.STOP)

    def serve(
        self,
        credentials: Mapping[str, str],
        user: User,
        environment: Mapping[str, str],
        *,
        as_account: bool,
        shared_ok: bool = False,
    ) -> BrokerReport:
        """Give it the references, by the names of the credentials, and wait until it serves.

        `user`: the account the command runs as. `as_account`: it asked, so everything is read with its rights.
        `environment`: of whoever asked. `shared_ok`: files may be open to other accounts.

        Raises:
            SandboxError: it ended instead.
        """
        try:
            plan = _plan(credentials, user, environment, as_account, shared_ok)
            broker_plan.send(self.lifeline, plan, (self._for_broker.fileno(),))
            self._for_broker.close()
            return broker_plan.receive_report(self.lifeline)
        except OSError as error:
            raise SandboxError("the broker process ended while it started") from error

    def end(self) -> None:
        """Whatever state it is in."""
        for each in (self.proxy_end, self._for_broker):
            each.close()
        super().end()


def _plan(
    credentials: Mapping[str, str], user: User, environment: Mapping[str, str], as_account: bool, shared_ok: bool
) -> BrokerPlan:
    references = [sources.parse_reference(text, name) for name, text in credentials.items()]
    variables = {each.name for each in references if isinstance(each, FromEnvironment)}
    return BrokerPlan(
        credentials=tuple(BrokerCredential(name, text) for name, text in credentials.items()),
        uid=user.uid,
        gid=user.gid,
        groups=user.groups,
        as_account=as_account,
        shared_ok=shared_ok,
        environment={os.fsencode(n): os.fsencode(t) for n, t in sources.needed_environment(environment).items()},
        variables={os.fsencode(n): memoryview(os.fsencode(environment[n])) for n in variables & environment.keys()},
    )
