"""The supervisor's side of the broker process: start, hand over, stop. The other side is nono_ebpf/broker.py."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from nono_ebpf.credentials import sources
from nono_ebpf.credentials.references import FromEnvironment
from nono_ebpf.errors import SandboxError
from nono_ebpf.sandbox import broker_plan, signals
from nono_ebpf.sandbox.broker_plan import BrokerCredential, BrokerPlan, BrokerReport
from nono_ebpf.sandbox.proxy_process import to_write_only

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nono_ebpf.sandbox.user import User

PROGRAM = ("-m", "nono_ebpf.broker")
_STOP_TIMEOUT_S = 5.0


class BrokerProcess:
    """A fresh interpreter in a session of its own, without a terminal; the environment it is told of is not its own.

    `proxy_end`: the socket that questions are asked over, one packet each; its fd is for the proxy.
    """

    def __init__(self) -> None:
        self._lifeline, theirs = socket.socketpair()
        self.proxy_end, self._for_broker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stderr = to_write_only()
        self._process = subprocess.Popen(
            [sys.executable, "-I", *PROGRAM, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            preexec_fn=signals.restore_defaults,  # no threads here
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        )
        theirs.close()
        if stderr is not None:
            os.close(stderr)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

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
            broker_plan.send(self._lifeline, plan, (self._for_broker.fileno(),))
            self._for_broker.close()
            return broker_plan.receive_report(self._lifeline)
        except OSError as error:
            raise SandboxError("the broker process ended while it started") from error

    def ended(self, wait_status: int) -> None:
        """It was reaped elsewhere."""
        self._process.returncode = os.waitstatus_to_exitcode(wait_status)

    def stop(self) -> None:
        """An orderly end: it overwrites what it holds."""
        with suppress(OSError):  # it is gone already, or does not end: `end` sees to that
            self._lifeline.send(broker_plan.STOP)
            self._lifeline.settimeout(_STOP_TIMEOUT_S)
            self._lifeline.recv(1)  # its end of the lifeline closes with it

    def end(self) -> None:
        """Whatever state it is in."""
        for each in (self._lifeline, self.proxy_end, self._for_broker):
            each.close()
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


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
