"""The guests' disk: Debian 12, the project's Python dependencies, every fetched kernel's modules.

Three stages, each made again only when what it is made from has changed: packages, Python, disk image.
"""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from host import HERE, OUT, ROOT, digest, is_current, mirror, remember, run, step, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kernels import Kernel

_SUITE = "bookworm"
_TREE = OUT / "rootfs"
IMAGE = OUT / "root.ext4"
KEY = OUT / "id_vagrant"  # ssh's; opens guests of this checkout
_SIZE = "4G"
_CHECKOUT = "/vagrant"  # in the guest
_SITE = f"{_CHECKOUT}/.venv/lib/python3.11/site-packages"
_LEFT_OUT = ("doc", "man", "locale", "info")


def build(tree: str, kernels: Sequence[Kernel]) -> None:
    """Make IMAGE of what `build_tree` made, with the modules of `kernels` and of those that were fetched before."""
    _build_image(_build_python(tree), kernels)


def build_tree(needed: Sequence[str]) -> str:
    """The root file system with Debian's packages, `needed` by the program and by the guest; its fingerprint."""
    packages = [*needed, *words("packages-guest.txt")]
    inputs = digest(_SUITE, " ".join(sorted(packages)), HERE / "guest-setup")
    if not is_current(_TREE, inputs):
        with step(f"root file system: {len(packages)} packages and what they need"):
            shutil.rmtree(_TREE, ignore_errors=True)
            options = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _LEFT_OUT]
            options += ["--dpkgopt=force-unsafe-io", f"--include={','.join(packages)}", "--format=directory"]
            run(["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", *options, _SUITE, _TREE, mirror()])
            if not KEY.exists():
                run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "guest", "-f", KEY])
            (_TREE / "root/key.pub").write_bytes(KEY.with_suffix(".pub").read_bytes())
            shutil.copy(HERE / "guest-setup", _TREE / "root")
            run(["chroot", _TREE, "bash", "/root/guest-setup"])
        remember(_TREE, inputs)
    return inputs


def _build_python(tree: str) -> str:
    """The checkout's .venv as `make setup` would have it, made here: a guest has no network."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    inputs = digest(tree, *wanted, Path(__file__))
    venv = _TREE / _CHECKOUT[1:] / ".venv"
    if not is_current(venv, inputs):
        with step(f"Python: {len(wanted)} packages of pyproject.toml and what they need"):
            run(["chroot", _TREE, "python3", "-m", "venv", "--clear", "--without-pip", f"{_CHECKOUT}/.venv"])
            site = _TREE / _SITE[1:]
            binary = ["--python-version=3.11", "--only-binary=:all:", "--no-compile"]
            run([ROOT / ".venv/bin/pip", "-q", "install", *binary, "--target", site, *wanted])
            for module in ("bcc", "seccomp.*.so"):
                (found,) = (_TREE / "usr/lib/python3/dist-packages").glob(module)
                (site / found.name).symlink_to(Path("/") / found.relative_to(_TREE))
            (site / "checkout.pth").write_text(f"{_CHECKOUT}\n")
            run(["chroot", _TREE, "python3", "-m", "compileall", "-q", _SITE])
        remember(venv, inputs)
    return inputs


def _build_image(python: str, kernels: Sequence[Kernel]) -> None:
    modules = _TREE / "lib/modules"
    for kernel in kernels:
        if not (modules / kernel.version).exists():
            shutil.copytree(kernel.directory / "modules" / kernel.version, modules / kernel.version, symlinks=True)
    inputs = digest(python, *sorted(path.name for path in modules.iterdir()), HERE / "guest-init")
    if not is_current(IMAGE, inputs):
        with step("disk image"):
            init = Path(shutil.copy(HERE / "guest-init", _TREE / "usr/local/sbin/guest-init"))
            init.chmod(0o755)
            for version in modules.iterdir():
                run(["depmod", "-b", _TREE, version.name])
            IMAGE.unlink(missing_ok=True)
            run(["truncate", "-s", _SIZE, IMAGE])
            run(["mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", _TREE, IMAGE])
        remember(IMAGE, inputs)
