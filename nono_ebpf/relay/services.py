"""Gets a request for a service ready: the phantom token out, the credential in, and no more requests than agreed.

Knows the order of the steps; where a credential stands in a request is `credentials.injection`'s, where it is kept
`CredentialSource`'s. Must not know who is dialled.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Final, Protocol

from nono_ebpf.audit.record import without_query
from nono_ebpf.credentials.injection import (
    Injection,
    Presented,
    Read,
    inject,
    read_phantom,
    redacted_target,
    revealing,
)
from nono_ebpf.errors import CredentialUnavailable
from nono_ebpf.policy.decide import DenialCategory
from nono_ebpf.relay import refuse
from nono_ebpf.relay.categories import AUTHENTICATION_FAILED, RATE_LIMITED
from nono_ebpf.wire.scrub import Scrubber

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nono_ebpf.audit.record import Record
    from nono_ebpf.credentials.secret import Secret
    from nono_ebpf.policy.services import Service
    from nono_ebpf.relay.rate_limit import RateLimiter
    from nono_ebpf.relay.refuse import Refusal
    from nono_ebpf.session_token import Token
    from nono_ebpf.wire import http1


_REMEMBERED: Final = 3  # a credential and two that it has replaced


class CredentialSource(Protocol):
    """Where credentials come from, one at a time and as they are now."""

    async def get(self, name: str) -> Secret:
        """That of the service `name`. Raises CredentialUnavailable."""


@dataclass(frozen=True, slots=True)
class Access:
    """How requests to one service get their credential, and how many there may be."""

    injection: Injection
    limiter: RateLimiter | None = None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What is sent on instead of a request's own fields and target, and what covers the credential in the response.

    `judged`: the target without the credential, which the rules have to permit.
    """

    fields: http1.Fields = field(repr=False)
    target: str = field(repr=False)
    scrubber: Scrubber
    judged: str


class Services:
    """The services of one sandbox. `token`: the phantom, which stands where a client believes the credential to be."""

    def __init__(self, access: Mapping[str, Access], credentials: CredentialSource, token: Token) -> None:
        self._access, self._credentials, self._token = access, credentials, token
        self._sent: defaultdict[str, _Sent] = defaultdict(_Sent)

    def phantom(self, service: Service, head: http1.RequestHead, target: str) -> Read:
        """What the client shows where the credential belongs; `target` is canonical."""
        injection = self._access[service.name].injection
        return read_phantom(injection, head.fields, target, self._token)

    async def prepare(
        self, service: Service, head: http1.RequestHead, target: str, record: Record
    ) -> Outgoing | Refusal:
        """What to send on of a permitted request, or what to answer: nothing goes on without the credential."""
        access = self._access[service.name]
        record.route_id = service.name
        record.path = without_query(redacted_target(access.injection, target))
        read = self.phantom(service, head, target)
        if read.presented is Presented.FOREIGN:
            return not_the_phantom(service, record, f"the request has a credential of its own ({read.foreign})")
        if read.presented is Presented.PHANTOM:
            record.auth_mechanism, record.auth_outcome = read.mechanism, "succeeded"
        if not await _admitted(access.limiter):
            reason = f"more requests to the service {service.name} than its rate limit allows"
            _deny(record, RATE_LIMITED, reason)
            return refuse.too_many(service.name, reason)
        try:
            secret = await self._credentials.get(service.name)
            fields, sent_target = inject(access.injection, read, secret, name=service.name)
        except CredentialUnavailable as error:
            record.credential = service.name
            _deny(record, DenialCategory.MANAGED_CREDENTIAL_UNAVAILABLE.value, str(error))
            return refuse.credential_unavailable(error)
        record.credential, record.injection_mode = service.name, access.injection.outbound.mode
        sent = self._sent[service.host.pattern]
        sent.add(service.name, access.injection, secret)
        return Outgoing(_readable(fields), sent_target, sent.scrubber.another(), read.target)


class _Sent:
    """The credentials that a host has been sent: a log or a page for debugging shows those of other requests, too.

    Of each service the latest few. What one can look like is worked out once, as long as it stays the same.
    """

    def __init__(self) -> None:
        self._current: dict[str, Secret] = {}
        self._scrubbers: dict[str, deque[Scrubber]] = {}
        self.scrubber = Scrubber(())

    def add(self, name: str, injection: Injection, secret: Secret) -> None:
        """That of the service `name` is sent to it from now on."""
        if self._current.get(name) is secret:
            return
        self._current[name] = secret
        latest = self._scrubbers.setdefault(name, deque(maxlen=_REMEMBERED))
        latest.append(Scrubber(revealing(injection, secret)))
        self.scrubber.cover(chain.from_iterable(self._scrubbers.values()))


def not_the_phantom(service: Service, record: Record, what: str) -> Refusal:
    """The client shows a credential of its own, or nothing where it would have to say whose the request is."""
    reason = f"{what}; requests to the service {service.name} show the session token, which is in NONO_PROXY_TOKEN"
    record.auth_mechanism, record.auth_outcome = "phantom_header", "failed"
    record.route_id = service.name
    _deny(record, AUTHENTICATION_FAILED, reason)
    return refuse.not_the_phantom(service.name, reason)


def _deny(record: Record, category: str, reason: str) -> None:
    record.decision, record.denial_category, record.reason = "deny", category, reason


async def _admitted(limiter: RateLimiter | None) -> bool:
    """Wait for the request's turn. False: it would have to wait for too long."""
    wait_s = limiter.reserve() if limiter is not None else 0.0
    if wait_s:
        await asyncio.sleep(wait_s)
    return wait_s is not None


def _readable(fields: http1.Fields) -> http1.Fields:
    """Ask for a response that can be read: one compressed, or in UTF-16, could hold the credential unseen (RFC 9110
    §12.5.2, §12.5.3).
    """
    kept = [each for each in fields if each[0].lower() not in {b"accept-encoding", b"accept-charset"}]
    return (*kept, (b"Accept-Encoding", b"identity"))
