"""`bw://`: an item of Bitwarden, as its program `bw` has it. Its account has to be logged in, and its vault unlocked.

What bw takes for a name is a search, which finds a part of a name, of an address or of a user's name as well. So it is
asked for all that it finds, and only an item is taken that is called exactly so, or has that id: the credential of
another service would be sent otherwise, as soon as the own one is renamed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from nono_ebpf.credentials import commands
from nono_ebpf.credentials.reading import checked, unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nono_ebpf.credentials.references import FromBitwarden
    from nono_ebpf.credentials.secret import Secret

_UNLOCK: Final = "unlock it (bw unlock), and set BW_SESSION"


class _Address(msgspec.Struct):
    uri: str | None = None


class _Login(msgspec.Struct):
    username: str | None = None
    password: str | None = None
    totp: str | None = None
    uris: list[_Address] | None = None


class _Field(msgspec.Struct):
    name: str | None = None
    value: str | None = None


class _Item(msgspec.Struct):
    """What `bw list items` writes of one, as far as it matters here."""

    id: str
    name: str
    notes: str | None = None
    login: _Login | None = None
    fields: list[_Field] | None = None

    def is_called(self, text: str) -> bool:
        """Capitals mean nothing to bw."""
        return text.casefold() in {self.id.casefold(), self.name.casefold()}

    def value(self, field: str) -> str | None:
        """What it has there. Of what bw knows by name, an item's own field of that name is never meant."""
        login = self.login or _Login()
        match field:
            case "password":
                return login.password
            case "username":
                return login.username
            case "totp":  # what codes are made of
                return login.totp
            case "uri":
                return next((each.uri for each in login.uris or []), None)
            case "notes":
                return self.notes
            case _:
                return next((each.value for each in self.fields or [] if each.name == field), None)


def read(reference: FromBitwarden, environment: Mapping[str, str]) -> Secret:
    """Raises CredentialUnavailable."""
    item = _item(reference, _asked(reference, ("list", "items", "--search", reference.item), environment))
    if reference.field == "totp":
        return checked(reference, _asked(reference, ("get", "totp", item.id), environment))
    return checked(reference, bytearray((item.value(reference.field) or "").encode()))


def _asked(reference: FromBitwarden, arguments: tuple[str, ...], environment: Mapping[str, str]) -> memoryview:
    # Node takes modules that bw does not have from its home, where the sandboxed command could put one.
    without_home = commands.environment_for_programs(environment) | {"HOME": "/"}
    output = commands.run(reference, ("bw", *arguments), without_home)
    if not output.status:
        return output.written
    if b"not logged in" in output.said:
        raise unavailable(reference, "locked", f"bw is not logged in; log in (bw login), {_UNLOCK}")
    raise commands.failure(reference, "bw", output, _UNLOCK)


def _item(reference: FromBitwarden, written: memoryview) -> _Item:
    """The one that is meant."""
    try:
        items = msgspec.json.decode(written, type=list[_Item])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise unavailable(reference, "failed", "what bw wrote is no list of items") from error
    called = [each for each in items if each.is_called(reference.item)]
    if not called:
        raise unavailable(reference, "missing", "Bitwarden has no item with exactly that name or id")
    found = [each for each in called if each.value(reference.field)]
    if not found:
        raise unavailable(reference, "missing", "the item has no such field, or nothing in it")
    if len(found) > 1:
        problem = "Bitwarden has several items of that name; write the id of one instead (bw list items shows it)"
        raise unavailable(reference, "ambiguous", problem)
    return found[0]
