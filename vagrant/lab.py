"""The tests on other kernels: `lab.py direct` by plain qemu, `lab.py vagrant` by Vagrant; see vagrant/README.md.

Root, Debian. `make vm-test` and `make vagrant-test` call this.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor

import box
import direct
import image
import kernels
from host import OUT, ROOT, Failed, install, run, say, step, words


def main() -> int:
    """0 when every kernel's tests passed, 1 when not, 2 when one could not be run."""
    options = _parse()
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return _run(options)
        except Failed as reason:
            say(f"vagrant/lab.py: {reason}")
            return 2


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("how", choices=["direct", "vagrant", "build", "validate"])
    parser.add_argument("--kernel", nargs="*", default=[], help="labels of vagrant/kernels.txt")
    parser.add_argument("--args", default="", help="for pytest, in the guest")
    parser.add_argument("--command", help="run this in the checkout, as root, instead of the tests (direct only)")
    return parser.parse_args()


def _run(options: argparse.Namespace) -> int:
    chosen = kernels.chosen(options.kernel)
    arguments = shlex.split(options.args)
    by_vagrant = options.how in ("vagrant", "validate")
    install([*words("packages-host.txt"), *(words("packages-vagrant.txt") if by_vagrant else [])])
    if options.how == "validate":
        box.validate()
        return 0
    with step("build"):
        with ThreadPoolExecutor(1) as pool:  # one processor downloads and unpacks, another installs
            fetched = pool.map(kernels.fetch, chosen)
            tree = image.build_tree(_run_packages())
            list(fetched)
        image.build(tree, chosen)
        if by_vagrant:
            box.build()
            box.validate()
    if options.how == "build":
        return 0
    cpus = max(1, (os.cpu_count() or 1) // len(chosen))

    def run_on(kernel: kernels.Kernel) -> int:
        if by_vagrant:
            return box.run_on(kernel, arguments, cpus)
        tests = ["bash", "vagrant/test.sh", kernel.label, *arguments]
        return direct.run_on(kernel, ["bash", "-c", options.command] if options.command else tests, cpus)

    with ThreadPoolExecutor(len(chosen)) as pool:
        statuses = list(pool.map(run_on, chosen))
    return 0 if not any(statuses) else 1


def _run_packages() -> list[str]:
    """What the Makefile says the program needs."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
    }
    rule = "show-run-packages: ; @echo $(RUN_PACKAGES)"
    return run(["make", "-s", "-C", ROOT, "--eval", rule, "show-run-packages"], env=environment).split()


if __name__ == "__main__":
    sys.exit(main())
