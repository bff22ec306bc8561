"""The supervisor's side of the proxy process: start, hand over, stop. The other side is nono_ebpf/proxy.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nono_ebpf.errors import SandboxError
from nono_ebpf.sandbox import handover, signals
from nono_ebpf.sandbox.helper_process import HelperProcess

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nono_ebpf.kernel.cgroup import Cgroup

PROGRAM = ("-m", "nono_ebpf.proxy")


class ProxyProcess(HelperProcess):
    """In the proxy's cgroup."""

    def __init__(self, group: Cgroup) -> None:
        def enter() -> None:
            group.join()
            signals.restore_defaults()

        super().__init__(PROGRAM, enter, handover.STOP)

    def serve(self, plan: handover.ProxyPlan, fds: Sequence[int]) -> bytes:
        """Give it everything and wait until it serves. The certificate (PEM) of its CA, if it has one."""
        try:
            handover.send(self.lifeline, plan, fds)
            answer = handover.receive_answer(self.lifeline)
        except OSError as error:
            raise SandboxError("the proxy process ended while it started") from error
        if answer is None:
            raise SandboxError("the proxy process could not start; its message is above")
        return answer
