"""A guest by plain qemu: a kernel boots over the image, a command runs in the checkout, status and report come back."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from host import OUT, ROOT, Failed, run, say
from image import IMAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kernels import Kernel

COMMAND_LINE = "quiet panic=-1 lsm=landlock,lockdown,yama,integrity,bpf"
_BOOT_S = 300
_TESTS_S = 1800  # more than test.sh gives them
_REPORT_BYTES = 64 << 20
_MEMORY_MIB = 2048
_NEVER_BEGAN = f"nothing from the guest in {_BOOT_S} s"


class NoStatus(Exception):
    """The guest ended, or never began: nobody knows what its tests say."""


def accelerator() -> tuple[str, str]:
    """What runs the guest's instructions, and the CPU it shows. /dev/kvm tells nothing: it may open and not work."""
    name = os.environ.get("NONO_ACCEL", "tcg")
    if name not in ("tcg", "kvm"):
        raise Failed(f"NONO_ACCEL={name}: say tcg or kvm")
    return ("kvm", "host") if name == "kvm" else ("tcg,thread=multi", "max")


def run_on(kernel: Kernel, command: Sequence[str], cpus: int) -> int:
    """Run `command` on `kernel` and return its status. A guest that did not say one is tried once more."""
    try:
        return _timed(kernel, command, cpus)
    except NoStatus as reason:
        say(f"{kernel.label}: {reason}; trying once more")
    try:
        return _timed(kernel, command, cpus)
    except NoStatus as again:
        raise Failed(f"{kernel.label}: {again}, twice; its console is above and in {_console_log(kernel)}") from again


def _timed(kernel: Kernel, command: Sequence[str], cpus: int) -> int:
    begun = time.monotonic()
    status = -1
    try:
        status = _boot(kernel, command, cpus)
    finally:
        if status != 0 and _console_log(kernel).exists():
            say(f"{kernel.label}: the console:\n{_console_log(kernel).read_text(errors='replace').strip()}")
    say(f"{time.monotonic() - begun:6.1f} s  Linux {kernel.label} ({kernel.version}): status {status}")
    return status


def _console_log(kernel: Kernel) -> Path:
    return OUT / f"console-{kernel.label}.log"


def _boot(kernel: Kernel, command: Sequence[str], cpus: int) -> int:
    with tempfile.TemporaryDirectory(dir=OUT) as made:
        work = Path(made)
        _pack_checkout(work, command)
        with (work / "report").open("wb") as disk:
            disk.truncate(_REPORT_BYTES)
        late = _run_qemu(kernel, work, cpus)
        _unpack_report(kernel, work / "report")
        said = (work / "status").read_text() if (work / "status").exists() else ""
    if said.startswith("status="):
        return int(said.removeprefix("status="))
    if late and late != _NEVER_BEGAN:
        raise Failed(f"{kernel.label}: {late}")
    raise NoStatus(late or "the guest ended without a status")


def _pack_checkout(work: Path, command: Sequence[str]) -> None:
    """A tar of what git knows or would add, as it is now, and of what to run there."""
    listing = run(["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard"], cwd=ROOT)
    present = [name for name in listing.splitlines() if (ROOT / name).exists()]
    (work / ".guest-command").write_text(f"{shlex.join(command)}\n")
    run(["tar", "-cf", work / "checkout", "-C", work, ".guest-command"])
    run(["tar", "-rf", work / "checkout", "-C", ROOT, "-T", "-"], input="\n".join(present), stdin=None)


def _run_qemu(kernel: Kernel, work: Path, cpus: int) -> str:
    """Show what the guest says, until it powers off. Returns why it was ended instead, or ""."""
    accel, cpu = accelerator()
    disks = [f"file={IMAGE},snapshot=on", f"file={work}/checkout,readonly=on", f"file={work}/report"]
    command = [
        *("setpriv", "--pdeathsig=KILL", "--", "qemu-system-x86_64"),
        *("-accel", accel, "-cpu", cpu, "-smp", str(cpus), "-m", str(_MEMORY_MIB)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-serial", f"file:{_console_log(kernel)}", "-serial", "stdio", "-serial", f"file:{work}/status"),
        *("-kernel", str(kernel.directory / "vmlinuz"), "-initrd", str(kernel.directory / "initrd")),
        *("-append", f"console=ttyS0 init=/usr/local/sbin/guest-init {COMMAND_LINE}"),
        *(word for disk in disks for word in ("-drive", f"{disk},format=raw,if=virtio")),
    ]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    late = []
    with subprocess.Popen(command, text=True, errors="replace", **pipes) as process:  # type: ignore[call-overload]

        def end(reason: str) -> None:
            late.append(reason)
            process.kill()

        boot = threading.Timer(_BOOT_S, end, [_NEVER_BEGAN])
        tests = threading.Timer(_TESTS_S, end, [f"not done after {_TESTS_S} s"])
        boot.start()
        tests.start()
        try:
            for line in process.stdout:
                boot.cancel()
                say(f"{kernel.label} | {line.rstrip()}")
        finally:
            process.kill()
            boot.cancel()
            tests.cancel()
    return late[0] if late else ""


def _unpack_report(kernel: Kernel, disk: Path) -> None:
    """What the guest left in build/report, to build/vm/report/LABEL."""
    place = OUT / "report" / kernel.label
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with disk.open("rb") as content:
        if content.read(1) != b"\0":
            run(["tar", "-xf", disk, "-C", place, "--no-same-owner"])
