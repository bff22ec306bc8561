"""A profile and those it builds upon, found, read and merged.

Reads by a function that it is given, which has the rights of the account whose files they are. Must not know options,
or what a profile means.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

from nono_ebpf.config.document import MAX_BYTES
from nono_ebpf.config.kinds import check_profile, is_profile_name, is_profile_path
from nono_ebpf.config.merge import Merged, merge, of_document
from nono_ebpf.config.presets import likeliest, network_policy
from nono_ebpf.config.validate import Document, examine
from nono_ebpf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nono_ebpf.config.kinds import Limit

    # Raises OSError, FileNotFoundError among them. `nono_ebpf.config.files.read_profile` with somebody's rights.
    Read = Callable[[str], bytes]

_MAX_DEPTH, _MAX_BASES = 10, 64  # nono's; ours, far beyond any that somebody wrote
_PROFILES = ".config/nono/profiles"


@dataclass(slots=True)
class Library:
    """The profiles that were read: by `read`, those without a path from below `home`. Everything wrong is collected.

    All of them together are bounded, in bytes, in bases, and in values that take time.
    """

    read: Read
    home: str
    documents: dict[str, Document] = field(default_factory=dict)
    problems: list[ConfigError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _texts: dict[str, bytes | None] = field(default_factory=dict)
    _merged: dict[str, _Resolved] = field(default_factory=dict)
    _bases_left: int = _MAX_BASES
    _bytes_left: int = MAX_BYTES
    _counted: Counter[Limit] = field(default_factory=Counter)

    def resolve(self, profile: str | None, extends: Sequence[str]) -> Merged:
        """The profile that `--profile` names, on top of its bases and then of those that `--extends` names."""
        more = [(name, "--extends") for name in extends]
        if profile is None:
            return self._fold(None, more, ()).merged
        try:
            path, text = self._named_by_option(profile)
        except ConfigError as error:
            self.problems.append(error)
            return Merged()
        document = self._examined(text, path)
        bases = self._fold(path, [*_bases(document), *more], (path,))
        return merge(bases.merged, of_document(document))

    def _named_by_option(self, profile: str) -> tuple[str, bytes]:
        """The file `profile`, or else one of the account's profiles."""
        of_account = [self._of_account(profile)] if is_profile_name(profile) else []
        if found := self._first([profile, *of_account], "--profile"):
            return found
        if hosts := network_policy().built_in_profiles.get(profile):
            problem = f"{profile} is a profile inside nono, and not about the network"
            raise ConfigError("--profile", problem, hint=f"for its hosts: --network-profile {hosts}")
        raise ConfigError("--profile", f"{profile}: {os.strerror(errno.ENOENT)}")

    def _fold(self, path: str | None, names: Sequence[tuple[str, str]], chain: tuple[str, ...]) -> _Resolved:
        """The bases that the file `path` names, each on top of those before it."""
        found = [self._base(name, source, path, chain) for name, source in self._affordable(_last(names))]
        height = max((each.height + 1 for each in found), default=0)
        return _Resolved(reduce(merge, [each.merged for each in found], Merged()), height)

    def _affordable(self, names: list[tuple[str, str]]) -> list[tuple[str, str]]:
        if len(names) > self._bases_left:
            self.problems.append(_too_many(names[self._bases_left][1]))
            names = names[: self._bases_left]
        self._bases_left -= len(names)
        return names

    def _base(self, name: str, source: str, path: str | None, chain: tuple[str, ...]) -> _Resolved:
        try:
            check_profile(name, source)
            found = self._first([each for each in self._candidates(name, path) if each != path], source)
            if found is None:
                return self._missing(name, source, path)
            return self._read_base(*found, source, chain)
        except ConfigError as error:
            self.problems.append(error)
            return _Resolved()

    def _read_base(self, path: str, text: bytes, source: str, chain: tuple[str, ...]) -> _Resolved:
        if path in chain:
            circle = " -> ".join([*chain[chain.index(path) :], path])
            raise ConfigError(source, f"the profiles extend each other in a circle: {circle}")
        if path not in self._merged:
            if len(chain) > _MAX_DEPTH:
                raise _too_many(source)
            document = self._examined(text, path)
            bases = self._fold(path, _bases(document), (*chain, path))
            self._merged[path] = _Resolved(merge(bases.merged, of_document(document)), bases.height)
        known = self._merged[path]
        if len(chain) + known.height > _MAX_DEPTH:
            raise _too_many(source)
        return known

    def _examined(self, text: bytes, path: str) -> Document:
        document, problems = examine(text, path, self._counted)
        self.documents[path] = document
        self.problems += problems
        return document

    def _candidates(self, name: str, path: str | None) -> Iterator[str]:
        """Where the base may be that the file `path`, or nobody but an option, calls `name`."""
        beside = Path(path).parent if path else Path()
        if is_profile_path(name):
            yield os.path.normpath(beside / name)
            return
        if path:
            yield os.path.normpath(beside / f"{name}.json")
        yield self._of_account(name)

    def _of_account(self, name: str) -> str:
        return str(Path(self.home, _PROFILES, f"{name}.json"))

    def _first(self, candidates: Sequence[str], source: str) -> tuple[str, bytes] | None:
        for path in candidates:
            if (text := self._text(path, source)) is not None:
                return path, text
        return None

    def _text(self, path: str, source: str) -> bytes | None:
        """What the file has, read once; None when there is none."""
        if path not in self._texts:
            try:
                self._texts[path] = self._counted_text(path, source)
            except (FileNotFoundError, NotADirectoryError):
                self._texts[path] = None
            except OSError as error:
                raise ConfigError(source, f"{path}: {error.strerror}") from error
        return self._texts[path]

    def _counted_text(self, path: str, source: str) -> bytes:
        text = self.read(path)
        self._bytes_left -= len(text)
        if self._bytes_left < 0:
            whole = path if len(text) > MAX_BYTES else f"{path} and what was read before it"
            raise ConfigError(source, f"{whole}: more than {MAX_BYTES} bytes")
        return text

    def _missing(self, name: str, source: str, path: str | None) -> _Resolved:
        built_in = network_policy().built_in_profiles
        if name not in built_in:
            looked = ", ".join(self._candidates(name, path))
            hint = "" if is_profile_path(name) else likeliest(name, built_in)
            raise ConfigError(source, f"no profile {name!a}: there is no {looked}", hint=hint)
        hosts = built_in[name]
        more = f'; for its hosts write "network_profile": "{hosts}"' if hosts else ""
        self.warnings.append(f"{source}: {name} is a profile inside nono and adds nothing about the network here{more}")
        return _Resolved()


@dataclass(frozen=True, slots=True)
class _Resolved:
    """A profile with its bases, and how many of them stand on top of each other."""

    merged: Merged = field(default_factory=Merged)
    height: int = 0


def _bases(document: Document) -> list[tuple[str, str]]:
    extends = document.profile.extends
    if isinstance(extends, str):
        return [(extends, document.place("extends"))]
    return [(name, document.place("extends", index)) for index, name in enumerate(extends or ())]


def _last(names: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each name where it was written last, and so holds; its source is where it was written first."""
    return list(reversed(dict(reversed(names)).items()))


def _too_many(source: str) -> ConfigError:
    return ConfigError(source, f"more than {_MAX_DEPTH} profiles extend each other, or more than {_MAX_BASES} at all")
