"""What may know what: promises about the source that no type checker holds."""

from __future__ import annotations

import ast
import builtins
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "nono_ebpf"
DECIDE = PACKAGE / "policy" / "decide.py"
ERRORS = PACKAGE / "errors.py"
FORBIDDEN = {
    "wire": ("asyncio", "socket", "ssl", "nono_ebpf.kernel"),
    "policy": ("asyncio", "socket", "ssl", "nono_ebpf.kernel"),
    "relay": ("nono_ebpf.kernel",),
    "dns": ("nono_ebpf.kernel",),
    "audit": ("nono_ebpf.kernel",),
    "credentials": ("asyncio", "socket", "ssl", "nono_ebpf.kernel", "nono_ebpf.relay"),
    "tls": ("asyncio", "socket", "nono_ebpf.kernel", "nono_ebpf.relay"),
}
BUILTIN_EXCEPTIONS = {
    name for name, thing in vars(builtins).items() if isinstance(thing, type) and issubclass(thing, BaseException)
}

FILES = sorted(PACKAGE.rglob("*.py"))


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    """Every dotted name that the module imports, also for types only; `package` is the one it is in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def trespasses(tree: ast.AST, package: tuple[str, ...], forbidden: tuple[str, ...]) -> list[str]:
    return [name for name in imports(tree, package) for each in forbidden if f"{name}.".startswith(f"{each}.")]


def last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Subscript):
        return last_name(node.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def permits_made(tree: ast.AST) -> list[int]:
    """Lines that construct a Permit, copy one with changes, or give the class another name."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    made = [node.lineno for node in calls if last_name(node.func) == "Permit"]
    aliases = [node for node in ast.walk(tree) if isinstance(node, ast.alias) and node.name == "Permit"]
    copied = [node.lineno for node in calls if last_name(node.func) == "replace" and changes_endpoints(node)]
    return made + copied + [node.lineno for node in aliases if node.asname not in (None, "Permit")]


def changes_endpoints(call: ast.Call) -> bool:
    """Whether a `dataclasses.replace` could change where a Permit leads; `**` hides what it changes."""
    return any(keyword.arg in (None, "endpoints", "via") for keyword in call.keywords)


def exceptions_defined(tree: ast.AST, known: set[str]) -> list[str]:
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return [node.name for node in classes if any(is_exception(last_name(base), known) for base in node.bases)]


def is_exception(base: str, known: set[str]) -> bool:
    return base in known or base.endswith(("Error", "Exception"))


def our_exceptions() -> set[str]:
    tree = ast.parse(ERRORS.read_bytes())
    return BUILTIN_EXCEPTIONS | {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


@pytest.mark.parametrize("path", FILES, ids=shown)
def test_imports_point_one_way(path: Path) -> None:
    """`wire` and `policy` do no I/O, and nothing on the data path knows the kernel side."""
    inside = path.relative_to(ROOT).parts[:-1]
    forbidden = FORBIDDEN.get(inside[1], ()) if len(inside) > 1 else ()
    assert trespasses(ast.parse(path.read_bytes()), inside, forbidden) == []


@pytest.mark.parametrize("path", [path for path in FILES if path != DECIDE], ids=shown)
def test_only_the_decision_makes_a_permit(path: Path) -> None:
    """What was judged is what is dialled: nobody else can write a Permit."""
    assert permits_made(ast.parse(path.read_bytes())) == []


@pytest.mark.parametrize("path", [path for path in FILES if path != ERRORS], ids=shown)
def test_the_error_tree_is_in_one_file(path: Path) -> None:
    """Every exception class of the package is in errors.py."""
    assert exceptions_defined(ast.parse(path.read_bytes()), our_exceptions()) == []


def test_the_checks_look_at_something() -> None:
    """The files that the checks are about exist and contain what they look for."""
    assert permits_made(ast.parse(DECIDE.read_bytes()))
    assert "ConfigError" in exceptions_defined(ast.parse(ERRORS.read_bytes()), our_exceptions())
    assert {path.parent.name for path in FILES} >= {"nono_ebpf", "policy"}


@pytest.mark.parametrize(
    "source",
    [
        *("import nono_ebpf.kernel", "import nono_ebpf.kernel.abi as x", "from nono_ebpf import kernel"),
        *(
            "from nono_ebpf.kernel import abi",
            "from nono_ebpf.kernel.abi import X",
            "from ..kernel import abi",
        ),
        *("from .. import kernel", "def f():\n    import nono_ebpf.kernel", "import os, nono_ebpf.kernel"),
        "if TYPE_CHECKING:\n    from nono_ebpf.kernel import abi",
    ],
)
def test_every_way_to_import_is_seen(source: str) -> None:
    """Late, relative and type-only imports are imports."""
    assert trespasses(ast.parse(source), ("nono_ebpf", "relay"), ("nono_ebpf.kernel",))
    assert not trespasses(ast.parse("import nono_ebpf.kernels"), (), ("nono_ebpf.kernel",))


@pytest.mark.parametrize(
    "source",
    [
        *("Permit()", "decide.Permit(1)", "x = [Permit(*y)]", "from a import Permit as P\nP()"),
        *("replace(x, endpoints=())", "dataclasses.replace(x, host='', **y)"),
    ],
)
def test_every_way_to_make_a_permit_is_seen(source: str) -> None:
    """Calls through a module, renamed imports and copies count; matching and types do not."""
    assert permits_made(ast.parse(source))
    assert not permits_made(ast.parse("from a import Permit\ndef f(x: Permit): return isinstance(x, Permit)"))
    assert not permits_made(ast.parse("replace(ask, addresses=())"))


@pytest.mark.parametrize("base", ["Exception", "NonoError", "dns.exception.DNSException", "KeyError", "Warning"])
def test_every_way_to_define_an_exception_is_seen(base: str) -> None:
    """Our own, the builtin and foreign exceptions count as bases; other classes do not."""
    assert exceptions_defined(ast.parse(f"class X({base}): pass"), our_exceptions()) == ["X"]
    assert not exceptions_defined(ast.parse("class X(Protocol[T]): pass"), our_exceptions())
