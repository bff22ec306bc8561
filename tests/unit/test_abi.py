"""bpf/nono_abi.h and its Python mirror are one: sizes, offsets and enum values, compared through the compiler's BTF.

BTF: Documentation/bpf/btf.rst. The header is compiled with one variable per shared struct and one per enum, since
compilers emit no BTF for types that nothing uses.
"""

from __future__ import annotations

import ctypes
import struct
import subprocess
from pathlib import Path

import pytest
from kit.expect import require

from nono_ebpf.kernel import abi
from nono_ebpf.kernel.loader import SOURCES

STRUCTS = ("nono_process", "nono_destination", "nono_origin", "nono_source", "nono_denial", "nono_settings")
ENUMS = {
    "nono_limit": (abi.Limit, "NONO_"),
    "nono_sockopt": (abi.SockOpt, "NONO_"),
    "nono_reason": (abi.Reason, "NONO_DENY_"),
}
STRUCT, ENUM = 4, 6


class Btf:
    """Structs and enums of a .BTF section."""

    def __init__(self, data: bytes) -> None:
        _magic, _version, _flags, header, type_off, type_len, str_off, str_len = struct.unpack_from("=HBBIIIII", data)
        self._strings = data[header + str_off : header + str_off + str_len]
        self.structs: dict[str, tuple[int, dict[str, int]]] = {}
        self.enums: dict[str, dict[str, int]] = {}
        self._read(data[header + type_off : header + type_off + type_len])

    def _name(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()

    def _read(self, types: bytes) -> None:
        at = 0
        while at < len(types):
            name, info, size = struct.unpack_from("=III", types, at)
            kind, count = (info >> 24) & 0x1F, info & 0xFFFF
            at += 12
            if kind == STRUCT:
                members = struct.iter_unpack("=III", types[at : at + 12 * count])
                self.structs[self._name(name)] = (
                    size,
                    {self._name(n): (bits & 0xFFFFFF) // 8 for n, _, bits in members},
                )
            elif kind == ENUM:
                values = struct.iter_unpack("=Ii", types[at : at + 8 * count])
                self.enums[self._name(name)] = {self._name(n): value for n, value in values}
            # Trailing bytes by kind: int, array, struct/union, enum, func_proto, var, datasec, decl_tag, enum64.
            at += {1: 4, 3: 12, 4: 12 * count, 5: 12 * count, 6: 8 * count, 13: 8 * count, 14: 4, 15: 12 * count,
                   17: 4, 19: 12 * count}.get(kind, 0)  # fmt: skip


@pytest.fixture(scope="module")
def btf(tmp_path_factory: pytest.TempPathFactory) -> Btf:
    require("gcc")
    directory = tmp_path_factory.mktemp("abi")
    variables = [f"struct {name} v_{name};" for name in STRUCTS] + [f"enum {name} v_{name};" for name in ENUMS]
    source = directory / "abi.c"
    source.write_text("\n".join(["#include <linux/types.h>", f'#include "{SOURCES}/nono_abi.h"', *variables]))
    subprocess.run(["gcc", "-gbtf", "-c", source, "-o", directory / "abi.o"], check=True)
    subprocess.run(["objcopy", "--dump-section", f".BTF={directory}/btf", directory / "abi.o"], check=True)
    return Btf((directory / "btf").read_bytes())


@pytest.mark.parametrize("name", STRUCTS)
def test_structs_are_the_same_on_both_sides(btf: Btf, name: str) -> None:
    """Same size, same members at the same offsets."""
    mirror = getattr(abi, name)
    size, offsets = btf.structs[name]
    assert size == ctypes.sizeof(mirror)
    assert offsets == {field[0]: getattr(mirror, field[0]).offset for field in mirror._fields_}


@pytest.mark.parametrize("name", ENUMS)
def test_enums_are_the_same_on_both_sides(btf: Btf, name: str) -> None:
    """Same names, same values."""
    mirror, prefix = ENUMS[name]
    assert btf.enums[name] == {prefix + name: member.value for name, member in mirror.__members__.items()}


def test_every_program_has_a_hook_and_every_hook_a_program() -> None:
    """The table that the loader follows names exactly the entry points of bpf/."""
    from nono_ebpf.kernel.hooks import HOOKS
    from nono_ebpf.kernel.loader import UNITS

    lines = "\n".join((SOURCES / unit).read_text() for unit in UNITS).splitlines()
    entry_points = {line.split("(")[0].removeprefix("int ") for line in lines if line.startswith("int ")}
    assert entry_points == {hook.function for hook in HOOKS}


def test_every_source_is_loaded() -> None:
    """No C file of bpf/ is forgotten."""
    from nono_ebpf.kernel.loader import UNITS

    assert {path.name for path in Path(SOURCES).glob("*.[ch]")} == set(UNITS)
