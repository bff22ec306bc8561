"""The BPF file system, where links are pinned: /sys/fs/bpf, mounted by us where the distribution has not."""

from __future__ import annotations

from pathlib import Path

from nono_ebpf.kernel import libc, mounts

MOUNT_POINT = Path("/sys/fs/bpf")
PINS = MOUNT_POINT / "nono-ebpf"


def is_mounted() -> bool:
    """Whether the top mount on /sys/fs/bpf is a BPF file system."""
    kinds = [mount.kind for mount in mounts.read() if mount.place == MOUNT_POINT]
    return bool(kinds) and kinds[-1] == "bpf"


def ensure() -> Path:
    """Our directory in it, 0700: whoever can open a pin can detach it. Mounts the file system where it is missing."""
    if not is_mounted():
        flags = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
        libc.mount("bpf", str(MOUNT_POINT), "bpf", flags, "mode=0700")
    PINS.mkdir(mode=0o700, exist_ok=True)
    return PINS
