"""The kernels: which there are (kernels.txt), how their files come here, and an initrd that finds the root disk.

A package is unpacked, never installed. apt works on state of its own under build/vm/apt: the machine's sources stay as
they are.
"""

from __future__ import annotations

import lzma
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from host import HERE, OUT, Failed, digest, is_current, mirror, remember, run, step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_ROOT_DISK_MODULES = ("virtio_pci", "virtio_blk", "ext4")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A line of kernels.txt."""

    label: str
    runs: str
    suite: str
    package: str  # a regular expression
    expect: str

    @property
    def directory(self) -> Path:
        """Holds vmlinuz, initrd, modules/VERSION."""
        return OUT / "kernels" / self.label

    @property
    def version(self) -> str:
        """As uname -r says it, once it is fetched."""
        return next((self.directory / "modules").iterdir()).name


def listed() -> list[Kernel]:
    """Every kernel there is."""
    lines = (HERE / "kernels.txt").read_text().splitlines()
    return [Kernel(*line.split()) for line in lines if line and not line.startswith("#")]


def chosen(names: Sequence[str]) -> list[Kernel]:
    """Those named, or those that always run. Raises Failed for a name that no line has."""
    known = {kernel.label: kernel for kernel in listed()}
    if unknown := [name for name in names if name not in known]:
        raise Failed(f"no kernel {unknown[0]} in vagrant/kernels.txt; there are {', '.join(known)}")
    return [known[name] for name in names] or [kernel for kernel in known.values() if kernel.runs == "always"]


def fetch(kernel: Kernel) -> None:
    """Make `kernel.directory`, unless it is here."""
    inputs = digest(repr(kernel), Path(__file__), HERE / "initrd-init")
    if is_current(kernel.directory, inputs):
        return
    with step(f"kernel {kernel.label}"), tempfile.TemporaryDirectory(dir=_made(OUT)) as work:
        shutil.rmtree(kernel.directory, ignore_errors=True)
        root = _unpacked(kernel, Path(work))
        (modules,) = next(path for path in (root / "usr/lib/modules", root / "lib/modules") if path.exists()).iterdir()
        version = modules.name
        images = (root / f"boot/vmlinuz-{version}", modules / "vmlinuz")
        _made(kernel.directory / "modules")
        shutil.move(next(path for path in images if path.exists()), kernel.directory / "vmlinuz")
        shutil.move(modules, kernel.directory / "modules" / version)
        _make_initrd(kernel, Path(work))
    remember(kernel.directory, inputs)


def _unpacked(kernel: Kernel, work: Path) -> Path:
    """The files of the newest package that `kernel` describes."""
    apt = _apt(kernel.suite)
    names = run(["apt-cache", *apt, "pkgnames", "linux-image-"]).split()
    packages = [name for name in names if re.fullmatch(kernel.package, name)]
    if not packages:
        raise Failed(f"{kernel.suite} has no package {kernel.package}: correct vagrant/kernels.txt")
    newest = max(packages, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    # From 7.2 on, linux-image-VERSION is empty and depends on the packages that have the files.
    depends = run(["apt-cache", *apt, "depends", newest])
    parts = re.findall(r"^ +Depends: (linux-(?:binary|modules|base)-\d.*)$", depends, re.MULTILINE)
    run(["apt-get", "-q", *apt, "download", newest, *parts], cwd=work)
    for package in work.glob("*.deb"):
        run(["dpkg-deb", "-x", package, work / "root"])
    return work / "root"


def _apt(suite: str) -> list[str]:
    """Options for apt to see `suite` alone."""
    state = OUT / "apt" / suite
    _made(state / "lists/partial")
    _made(state / "cache/archives/partial")
    (state / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {mirror()} {suite} main\n")
    settings = {
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": state / "lists",
        "Dir::Cache": state / "cache",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    run(["apt-get", "-q", *options, "update"])
    return options


def _make_initrd(kernel: Kernel, work: Path) -> None:
    tree = work / "initrd"
    for name in ("bin", "modules", "proc", "sys", "dev", "new"):
        _made(tree / name)
    shutil.copy("/bin/busybox", tree / "bin")
    shutil.copy(HERE / "initrd-init", tree / "init")
    (tree / "init").chmod(0o755)
    order = []
    for path in _modules(kernel, work):
        name = path.name.removesuffix(".xz")
        content = path.read_bytes()
        (tree / "modules" / name).write_bytes(lzma.decompress(content) if path.suffix == ".xz" else content)
        order.append(name)
    (tree / "modules.list").write_text("".join(f"{name}\n" for name in order))
    files = "".join(f"{path.relative_to(tree)}\n" for path in sorted(tree.rglob("*")))
    with (kernel.directory / "initrd").open("wb") as archive:
        run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=tree, input=files, stdin=None, stdout=archive)


def _modules(kernel: Kernel, work: Path) -> Iterator[Path]:
    """What to insert, in order, for the root disk to be there and to be mountable."""
    base = work / "modroot"
    _made(base / "lib")
    (base / "lib/modules").symlink_to(kernel.directory / "modules")
    run(["depmod", "-b", base, kernel.version])
    seen = set()
    for module in _ROOT_DISK_MODULES:
        for line in run(["modprobe", "-d", base, "-S", kernel.version, "--show-depends", module]).splitlines():
            kind, path, *_ = line.split()
            if kind == "insmod" and path not in seen:
                seen.add(path)
                yield Path(path)


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory
