"""`nono_ebpf.config.no_proxy`: what may be written, what clashes with a rule, and what the variables come to hold."""

from __future__ import annotations

import pytest

from nono_ebpf.config.no_proxy import Entry, NoProxy, compute, may_cover, overlaps, parse_entry
from nono_ebpf.errors import ConfigError
from nono_ebpf.policy.rules import parse_allow_rule

WHERE = "agent.json: network.no_proxy[0]"


def entries(*texts: str) -> list[Entry]:
    return [parse_entry(text, WHERE) for text in texts]


def patterns(*rules: str) -> list[str]:
    return [parse_allow_rule(rule, "--allow-domain").pattern for rule in rules]


def no_proxy(
    *rules: str, judged: tuple[str, ...] = (), managed: tuple[str, ...] = (), also: tuple[str, ...] = ()
) -> str:
    """The value for these rules; `judged` are among those that allow."""
    found = compute(
        allowed=patterns(*rules, *judged),
        judged=patterns(*judged),
        managed=patterns(*managed),
        entries=entries(*also),
    )
    return found.no_proxy


# --- one entry

ACCEPTED = {
    "redis": "redis",
    "*.internal.example": ".internal.example",
    ".dev.local": ".dev.local",
    ".svc.cluster.local": ".svc.cluster.local",
    "127.0.0.1": "127.0.0.1",
    "::1": "::1",
    "[::1]": "::1",
}
REJECTED = {
    "": "1 to 253",
    " https://dev.local": "blank",
    "https://dev.local": "URL",
    "user@dev.local": "credentials",
    "dev.local/path": "path",
    "dev.local?x": "query",
    "a,b": "list",
    "dev.local": "every name below it",
    "api.openai.com": "every name below it",
    "*": "every host",
    "*corp": "wildcard",
    "h:443": "port",
    "169.254.169.254": "link-local",
    "169.254.1.2": "link-local",
    "internal": "always denied",
    "fd00:ec2::254": "metadata",
    "FD00:0EC2:0:0::0254": "metadata",
    "[fd00:ec2::254]": "metadata",
    "[fe80::1]": "link-local",
    ".google.internal": "metadata.google.internal",
    "[::1]:8443": "port",
    "[dev.local]": "not an IPv6 address",
    "dev.local]": "a label",
}
ALSO_REJECTED = {
    "redis ": "blank",
    "a b": "blank",
    "a\tb": "blank",
    "dev.local#x": "fragment",
    "10.0.0.0/8": "network",
    "*.": "1 to 253",
    ".": "1 to 253",
    "..dev": "empty label",
    "*.*.dev": "wildcard",
    "foo.*.dev": "wildcard",
    "metadata": "metadata",
    "instance-data": "instance-data",
    "*.azure.internal": "metadata.azure.internal",
    ".metadata.goog": "metadata.goog",
    "com": "metadata.tencentyun.com",
    "::ffff:169.254.169.254": "link-local",
    "64:ff9b::a9fe:a9fe": "link-local",
    "0.0.0.0": "unspecified",
    "0x7f.1": "four decimal numbers",
    "2130706433": "four decimal numbers",
    "fe80::1%eth0": "not an IPv6 address",
    "[127.0.0.1]": "not an IPv6 address",
    ".0.0.1": "four decimal numbers",
    ".10.0.0.1": "no names below",
    "dev\N{IDEOGRAPHIC FULL STOP}local": "every name below it",
}  # fmt: skip


@pytest.mark.parametrize(("text", "value"), [pytest.param(*each, id=f"N1-{each[0]}") for each in ACCEPTED.items()])
def test_what_is_accepted(text: str, value: str) -> None:
    """A name of one label, names below a domain, an address; spelled as every client reads it."""
    assert parse_entry(text, WHERE).text == value


@pytest.mark.parametrize(
    ("text", "why"),
    [pytest.param(*each, id=f"N2-{each[0]}") for each in REJECTED.items()]
    + [pytest.param(*each, id=each[0]) for each in ALSO_REJECTED.items()],
)
def test_what_is_rejected(text: str, why: str) -> None:
    """Whatever clients read in several ways, and what is always denied: where it stands, why, and what to write."""
    with pytest.raises(ConfigError) as caught:
        parse_entry(text, WHERE)
    assert caught.value.where == WHERE
    assert why in caught.value.problem
    assert ".domain" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("REDIS", "redis"),
        ("redis.", "redis"),
        ("*.Dev.LOCAL.", ".dev.local"),
        ("*.münchen.de", ".xn--mnchen-3ya.de"),
        ("[2001:DB8:0::1]", "2001:db8::1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
    ],
)
def test_one_canonical_form(text: str, value: str) -> None:
    """That of rules and of everything a client says."""
    assert parse_entry(text, WHERE).text == value


# --- entry and rule

N3 = [
    (Entry("openai.com", "."), "api.openai.com", True),
    (Entry("openai.com", "*."), "api.openai.com", True),
    (Entry("openai.com", "."), "a.b.openai.com", True),
    (Entry("openai.com", "."), "openai.com", False),
    (Entry("openai.com", "*."), "openai.com", False),
    (Entry("openai.com"), "api.openai.com", False),
    (Entry("com"), "api.openai.com", False),
    (Entry("openai.com", "."), "evilopenai.com", False),
]


@pytest.mark.parametrize(("entry", "pattern", "expected"), [pytest.param(*each, id=f"N3-{each[0]}") for each in N3])
def test_names_below_a_domain(entry: Entry, pattern: str, expected: bool) -> None:
    """At any depth below it, in whole labels, not the domain itself; a bare name is itself alone."""
    assert overlaps(entry, pattern) is expected


@pytest.mark.parametrize(
    ("entry", "pattern", "expected"),
    [
        ("redis", "redis", True),
        ("redis", "*.redis", False),
        (".corp.example", "*.corp.example", True),
        (".corp.example", "*.example", True),
        (".corp.example", "*.dev.corp.example", True),
        (".corp.example", "*.other.example", False),
        (".corp.example", "*.evilcorp.example", False),
        ("10.0.0.1", "10.0.0.1", True),
        ("2001:db8::1", "2001:db8::1", True),
        ("redis", "*", False),
        ("localhost", "localhost", False),
        ("127.0.0.1", "127.0.0.1", False),
        ("::1", "::1", False),
    ],
)
def test_overlap_with_a_rule(entry: str, pattern: str, expected: bool) -> None:
    """Some host is meant by both. `*` names none, and loopback is the sandbox's own first."""
    assert overlaps(parse_entry(entry, WHERE), pattern) is expected


@pytest.mark.parametrize(
    ("entry", "pattern", "expected"),
    [
        *((".openai.com", pattern, True) for pattern in ("api.openai.com", "openai.com", "*.openai.com", "*.com", "*")),
        (".openai.com", "*.api.openai.com", True),
        (".openai.com", "evilopenai.com", False),
        (".openai.com", "*.example.net", False),
        ("redis", "redis", True),
        ("redis", "a.redis", True),
        ("redis", "myredis", True),
        ("redis", "*.redis", True),
        ("redis", "*.myredis", True),
        ("redis", "redis.example.com", False),
        ("::1", "2001:db8::1", True),
        ("127.0.0.1", "localhost", True),
        ("localhost", "127.0.0.5", True),
        ("::1", "*.dev.localhost", True),
        ("localhost", "mylocalhost", True),
        ("localhost", "*", False),
        ("127.0.0.1", "*", False),
        ("10.0.0.1", "*", True),
        ("10.0.0.1", "10.0.0.2", False),
    ],
)
def test_what_some_client_might_take_it_for(entry: str, pattern: str, expected: bool) -> None:
    """The widest of all readings: a suffix without regard to labels, and the domain itself under its dot."""
    assert may_cover(parse_entry(entry, WHERE), pattern) is expected


@pytest.mark.parametrize("entry", [".example.com", "*.example.com"])
def test_an_entry_that_overlaps_an_allowed_host_is_refused(entry: str) -> None:
    """It says where it stands, which host it is, and what to do."""
    with pytest.raises(ConfigError) as caught:
        no_proxy("api.example.com", also=(entry,))
    assert caught.value.where == WHERE
    assert "overlaps api.example.com" in caught.value.problem
    assert "remove it" in caught.value.hint


@pytest.mark.parametrize("entry", [".example.net", ".api.example.net", "net"])
@pytest.mark.parametrize("kind", ["judged", "managed"])
def test_an_entry_that_could_cover_a_judged_host_is_refused(entry: str, kind: str) -> None:
    """By any client's reading, the domain itself included."""
    with pytest.raises(ConfigError, match=r"api\.example\.net, where each request is to be judged") as caught:
        no_proxy(**{kind: ("api.example.net",)}, also=(entry,))
    assert (caught.value.where, caught.value.hint) == (WHERE, "remove it")


# --- the variables


@pytest.mark.parametrize("rules", [(), ("example.com", "*.example.org", "*")], ids=["N4", "names-of-several-labels"])
def test_without_safe_hosts(rules: tuple[str, ...]) -> None:
    """The sandbox's own loopback and nothing else."""
    assert no_proxy(*rules) == "localhost,127.0.0.1"


@pytest.mark.parametrize("written", [pytest.param(("redis", "*.internal.example", "REDIS", "[::1]"), id="N6")])
def test_with_entries(written: tuple[str, ...]) -> None:
    """One canonical form, each once, `*.x` for NONO_NO_PROXY alone, IPv6 without brackets."""
    assert compute(allowed=(), judged=(), managed=(), entries=entries(*written)) == NoProxy(
        no_proxy="localhost,127.0.0.1,redis,.internal.example,::1",
        nono_no_proxy="localhost,127.0.0.1,redis,*.internal.example,::1",
    )


def test_two_spellings_of_one_meaning_are_one_entry() -> None:
    """The first is what NONO_NO_PROXY keeps."""
    found = compute(allowed=(), judged=(), managed=(), entries=entries(".x.dev", "*.x.dev", "localhost", "127.0.0.1"))
    assert found == NoProxy("localhost,127.0.0.1,.x.dev", "localhost,127.0.0.1,.x.dev")


def test_allowed_hosts_without_their_ports() -> None:
    """Of allowed hosts those that no client can take for more, without ports, in an order of their own."""
    rules = ("redis:6379", "10.0.0.7:5432", "[2001:db8::7]:22", "redis", "db:5432", "api.example.com:8443")
    assert no_proxy(*rules) == "localhost,127.0.0.1,10.0.0.7,2001:db8::7,db,redis"


def test_allowed_hosts_without_managed_ones() -> None:
    """What a credential is kept for goes to the proxy, whatever port allows it or keeps it."""
    assert no_proxy("redis:6379", "vault:8200", managed=("vault:8201",)) == "localhost,127.0.0.1,redis"


def test_allowed_hosts_without_judged_ones() -> None:
    """What is allowed certain requests only goes to the proxy, also when other rules allow it more."""
    assert no_proxy("redis:6379", "wiki:443", judged=("wiki:80",)) == "localhost,127.0.0.1,redis"


@pytest.mark.parametrize("managed", ["api.vault", "myvault", "*.vault", "*"])
def test_an_allowed_host_that_could_cover_a_managed_one_is_left_out(managed: str) -> None:
    """Silently: the operator has not asked for it to be there."""
    assert no_proxy("vault:8200", managed=(managed,)) == "localhost,127.0.0.1"


def test_always_denied_hosts_are_left_out() -> None:
    """A rule for one has no effect, and neither a name that covers one."""
    assert no_proxy("169.254.169.254", "metadata", "internal", "redis") == "localhost,127.0.0.1,redis"


@pytest.mark.parametrize("upstream", ["localhost:11434", "127.0.0.1:11434", "[::1]:11434", "llm.localhost:80"])
@pytest.mark.parametrize("kind", ["judged", "managed"])
def test_a_managed_host_on_loopback_takes_loopback_out(upstream: str, kind: str) -> None:
    """Under all its names, the rules' included: they are one machine."""
    assert no_proxy("redis", "[::1]:8080", **{kind: (upstream,)}) == "redis"


def test_a_wildcard_alone_leaves_loopback() -> None:
    """Loopback is the sandbox's own before it is any host."""
    assert no_proxy("redis", managed=("*",)) == "localhost,127.0.0.1"


def test_entries_for_loopback_go_with_opened_ports() -> None:
    """`open_port` makes rules for loopback, which a nono profile may list in no_proxy as well."""
    opened = ("localhost:8080", "127.0.0.1:8080", "[::1]:8080")
    assert no_proxy(*opened, also=("127.0.0.1", "::1", "localhost")) == "localhost,127.0.0.1,::1"
