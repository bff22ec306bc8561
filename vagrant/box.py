"""A guest by Vagrant: the box, made of the same image, and the cycle up, test, destroy, beside a libvirtd of our own.

Called as a program it is the inner part, which `with-libvirt.sh` runs: box.py LABEL [PYTEST ARGUMENT…].
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import kernels
from host import HERE, OUT, Failed, digest, is_current, remember, run, say, step, stream
from image import IMAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kernels import Kernel

_NAME = "nono-ebpf/kernels"  # as the Vagrantfile has it
_BOX = OUT / "kernels.box"
_HOME = OUT / "vagrant-home"


def build() -> None:
    """The box of the image, added to Vagrant's boxes; no network."""
    inputs = digest(IMAGE.with_name(f"{IMAGE.name}.inputs"), Path(__file__))
    environment = os.environ | {"VAGRANT_HOME": str(_HOME), "VAGRANT_CHECKPOINT_DISABLE": "1"}
    if is_current(_BOX, inputs):
        return
    with step("box"):
        work = OUT / "box"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", IMAGE, work / "box.img"])
        (work / "metadata.json").write_text(json.dumps({"provider": "libvirt", "format": "qcow2", "virtual_size": 4}))
        (work / "Vagrantfile").write_text('Vagrant.configure("2") { |config| }\n')
        run(["tar", "-cf", _BOX, "-C", work, "metadata.json", "Vagrantfile", "box.img"])
        shutil.rmtree(work)
        run(["vagrant", "--no-tty", "box", "add", "--force", "--name", _NAME, _BOX], env=environment)
    remember(_BOX, inputs)


def validate() -> None:
    """The Vagrantfile is right; this needs no libvirtd."""
    with step("vagrant validate"):
        run(["vagrant", "--no-tty", "validate"], cwd=HERE, env=os.environ | {"VAGRANT_HOME": str(_HOME)})


def run_on(kernel: Kernel, arguments: Sequence[str], cpus: int) -> int:
    """Run the tests on `kernel` in a guest of Vagrant's and return their status."""
    environment = os.environ | {"NONO_VM_CPUS": str(cpus), "NONO_VM_DIR": str(OUT)}
    place = OUT / f"libvirt-{kernel.label}"
    command = [HERE / "with-libvirt.sh", place, sys.executable, __file__, kernel.label, *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, env=environment, check=False).returncode


def _cycle(kernel: Kernel, arguments: Sequence[str]) -> int:
    name = f"k{kernel.label.replace('.', '-')}"
    os.environ["NONO_TEST_ARGS"] = shlex.join(arguments or ["--short"])

    def vagrant(*words: str) -> int:
        return stream(kernel.label, ["vagrant", "--no-tty", *words], cwd=HERE)

    try:
        with step(f"vagrant up {name}"):
            if vagrant("up", name, "--provider=libvirt") != 0:
                say(f"{kernel.label}: the guest did not come up; trying once more")
                vagrant("destroy", "-f", name)
                if vagrant("up", name, "--provider=libvirt") != 0:
                    raise Failed(f"{kernel.label}: the guest did not come up, twice")
        with step(f"vagrant provision {name} --provision-with test"):
            status = vagrant("provision", name, "--provision-with", "test")
        _fetch_report(kernel, name)
    finally:
        with step(f"vagrant destroy {name}"):
            vagrant("destroy", "-f", name)
    return status


def _fetch_report(kernel: Kernel, name: str) -> None:
    """What the guest left in build/report, to build/vm/report/LABEL."""
    place = OUT / "report" / kernel.label
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    script = "cd /vagrant && sudo mkdir -p build/report && sudo tar -c -C build/report . | base64"
    packed = run(["vagrant", "--no-tty", "ssh", name, "-c", script], cwd=HERE)
    run(["bash", "-c", 'base64 -d | tar -x -C "$0" --no-same-owner', place], input=packed, stdin=None)


if __name__ == "__main__":
    try:
        sys.exit(_cycle(kernels.chosen(sys.argv[1:2])[0], sys.argv[2:]))
    except Failed as reason:
        say(f"vagrant/box.py: {reason}")
        sys.exit(2)
