"""`nono_ebpf.config.options` and `environment`: what options and the environment add, and in whose place they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from nono_ebpf.cli import build_parser
from nono_ebpf.config.environment import from_environment
from nono_ebpf.config.load import examine, settings
from nono_ebpf.config.merge import Sourced
from nono_ebpf.config.options import Overrides, parse_allowed
from nono_ebpf.config.schema import Endpoint
from nono_ebpf.errors import ConfigError
from nono_ebpf.policy.upstream_proxy import Bypass

if TYPE_CHECKING:
    from nono_ebpf.config.settings import Settings

PROFILE = b"""{"network": {"upstream_proxy": "profile.corp:3128", "upstream_bypass": ["a.corp"],
"upstream_auth": "env://FROM_PROFILE"}}"""


def load(environment: dict[str, str] | None = None, **options: object) -> Settings:
    found = Overrides(profile="p.json", **options)  # type: ignore[arg-type]
    return settings(found, lambda _: PROFILE, home="/h", environment=environment or {})


@pytest.mark.parametrize(
    ("text", "host", "paths"),
    [
        pytest.param("https://github.com/x/**", "github.com:443", ["/x/**"], id="P4"),
        pytest.param("https://api.example.com/", "api.example.com:443", [], id="P4-root"),
        pytest.param("https://api.example.com", "api.example.com:443", [], id="P4-no-path"),
        pytest.param("https://github.com/org/repo/tree/**", "github.com:443", ["/org/repo/tree/**"], id="P4-deep"),
        pytest.param("github.com", "github.com", [], id="P4-host"),
        ("http://a.com/v1", "a.com:80", ["/v1"]),
        ("http://github", "github:80", []),
        ("http://[2001:db8::7]", "[2001:db8::7]:80", []),
        ("https://*.a.com/x", "*.a.com:443", ["/x"]),
        ("http://a.com:8080/v1/{a,b}", "a.com:8080", ["/v1/{a,b}"]),
        ("HTTPS://[2001:db8::7]:8443/v1", "[2001:db8::7]:8443", ["/v1"]),
        ("*.a.com:22", "*.a.com:22", []),
    ],
)
def test_a_url_with_a_path_allows_these_requests_only(text: str, host: str, paths: list[str]) -> None:
    """With any method, on the port of its scheme or the one that is written; without a path, any connection there."""
    found = parse_allowed(text, "--allow-domain")
    assert found.host == host
    assert found.endpoints == tuple(Sourced(Endpoint("*", path), "--allow-domain") for path in paths)


@pytest.mark.parametrize(
    "text",
    [
        "ftp://a.com/x",
        "https://u:p@a.com/x",
        "https://a.com/x?y",
        "https://a.com/x#y",
        "https://a b/x",
        "https://a.com/[x",
        "https:///x",
        "https://2001:db8::7/x",
        "https://@github/x",
        "https://a.com:/x",
    ],
)
def test_a_url_that_says_more_is_refused(text: str) -> None:
    """Rather than read by half, and without repeating what may be a password."""
    with pytest.raises(ConfigError, match=r"^--allow-domain: ") as caught:
        parse_allowed(text, "--allow-domain")
    assert "u:p" not in str(caught.value)


def test_a_url_narrows_what_a_profile_allows() -> None:
    """P4: the host of a profile with the path of an option has that path only, where the URL is about the port."""
    text = b'{"network": {"allow_domain": ["github.com", "a.com:80"]}}'
    options = Overrides(profile="p.json", allow_domain=("https://GitHub.com/x/**", "http://A.com/y"))
    allow = settings(options, lambda _: text, home="/h", environment={}).policy.allow
    for host, port, endpoints in (
        *(("github.com", 443, ["* /x/**"]), ("github.com", 80, [])),
        *(("a.com", 80, ["* /y"]), ("a.com", 443, [])),
    ):
        rules = allow.with_endpoints(host, port)
        assert [str(each) for rule in rules for each in rule.endpoints] == endpoints
        assert {rule.source for rule in rules} <= {"--allow-domain"}


def test_the_upstream_proxy_of_an_option_replaces_the_profiles() -> None:
    """What is reached without it adds up, and the reference to its credentials is the option's."""
    found = load(upstream_proxy="https://Option.corp:8443/", upstream_bypass=("*.b.corp",), upstream_auth="file:///s")
    proxy = found.policy.upstream_proxy
    assert proxy is not None
    assert (str(proxy), proxy.tls) == ("option.corp:8443", True)
    assert proxy.bypass == Bypass(hosts=frozenset({"a.corp"}), below=frozenset({"b.corp"}))
    assert found.upstream_auth == Sourced("file:///s", "--upstream-auth")


def test_the_profiles_upstream_proxy_stays_without_one() -> None:
    """With its own reference, which says where it was written."""
    found = load()
    assert str(found.policy.upstream_proxy) == "profile.corp:3128"
    assert found.upstream_auth == Sourced("env://FROM_PROFILE", "p.json: network.upstream_auth")


def test_the_environment_may_name_the_upstream_proxy() -> None:
    """In the profile's place, with what both say is reached without it."""
    proxy = load(
        {"HTTPS_PROXY": "http://e.corp:8080", "NO_PROXY": "x.corp"}, upstream_proxy="env"
    ).policy.upstream_proxy
    assert proxy is not None
    assert str(proxy) == "e.corp:8080"
    assert proxy.bypass.hosts == {"a.corp", "x.corp"}


def test_an_environment_without_one_leaves_the_profiles() -> None:
    """And without that, somebody is told."""
    assert str(load({}, upstream_proxy="env").policy.upstream_proxy) == "profile.corp:3128"
    found = settings(Overrides(upstream_proxy="env"), lambda _: b"", home="/h", environment={"HTTPS_PROXY": " "})
    assert found.policy.upstream_proxy is None
    assert found.warnings == ("--upstream-proxy env: HTTPS_PROXY is not set, so hosts are reached directly",)


@pytest.mark.parametrize("options", [{}, {"profile": "p.json"}])
def test_an_empty_variable_hides_the_other_and_that_is_told(options: dict[str, str]) -> None:
    """As to other programs, empty means none; somebody may have meant the other spelling."""
    environment = {"HTTPS_PROXY": " ", "https_proxy": "e.corp:1"}
    found = settings(Overrides(upstream_proxy="env", **options), lambda _: PROFILE, home="/h", environment=environment)  # type: ignore[arg-type]
    road = "through profile.corp:3128" if options else "directly"
    assert found.warnings[0] == (
        f"--upstream-proxy env: HTTPS_PROXY is empty, and hides https_proxy, so hosts are reached {road}"
    )


def test_a_proxy_that_is_asked_for_nothing_is_told() -> None:
    """Somebody who names one expects it to be used."""
    line = "nothing goes through the upstream proxy e.corp:1: * is to be reached without it"
    assert line in load({"HTTPS_PROXY": "e.corp:1", "NO_PROXY": "a.com, *"}, upstream_proxy="env").warnings
    assert line in load(upstream_proxy="e.corp:1", upstream_bypass=("*",)).warnings
    assert line not in load({"HTTPS_PROXY": "e.corp:1", "NO_PROXY": "a.com"}, upstream_proxy="env").warnings


def test_the_scheme_of_a_variable_is_obeyed() -> None:
    """With https, credentials go to the proxy inside TLS, and never in clear."""
    for name in ("HTTPS_PROXY", "https_proxy"):
        for text, tls in (("HTTPS://e.corp:1", True), ("http://e.corp:1", False), ("e.corp:1", False)):
            proxy = load({name: text}, upstream_proxy="env", upstream_auth="env://X").policy.upstream_proxy
            assert proxy is not None
            assert proxy.tls is tls


def test_credentials_need_a_proxy() -> None:
    """What `run` would refuse is found by whoever checks a profile; a mistaken proxy is told alone."""
    text = b'{"network": {"upstream_auth": "env://X"}}'

    def problems(**options: Any) -> list[str]:
        given = Overrides(profile="p.json", **options)
        return [str(each) for each in examine(given, lambda _: text, home="/h", environment={}).problems]

    hint = "there is no upstream proxy to use it for; name one with upstream_proxy or --upstream-proxy"
    assert problems() == [f"p.json: network.upstream_auth: {hint}"]
    assert problems(upstream_auth="env://Y") == [f"--upstream-auth: {hint}"]
    assert problems(upstream_proxy="env") == [f"p.json: network.upstream_auth: {hint}"]
    assert problems(upstream_proxy="p.corp:1") == []
    assert problems(block_net=True) == []
    assert [line.partition(":")[0] for line in problems(upstream_proxy="p.corp")] == ["--upstream-proxy"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "", "https_proxy": "b.corp:1"}, None),
        ({"HTTPS_PROXY": "  \t"}, None),
        ({"HTTPS_PROXY": "proxy.corp:8080"}, "proxy.corp:8080"),
        ({"HTTPS_PROXY": " http://proxy.corp:8080 "}, "proxy.corp:8080"),
        ({"HTTPS_PROXY": "https://proxy.corp:8080/"}, "proxy.corp:8080"),
        ({"https_proxy": "b.corp:1"}, "b.corp:1"),
        ({"HTTPS_PROXY": "a.corp:1", "https_proxy": "b.corp:1"}, "a.corp:1"),
        ({"HTTP_PROXY": "a.corp:1", "ALL_PROXY": "a.corp:1"}, None),
    ],
)
def test_the_variables_are_read_as_other_programs_read_them(environment: dict[str, str], expected: str | None) -> None:
    """HTTPS_PROXY, then https_proxy; blanks around it are nothing."""
    found = from_environment(environment)
    assert (None if found is None else str(found)) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("http://user:pass@proxy.corp:8080", "proxy.corp", "http://proxy.corp", "proxy.corp:0", "proxy.corp:eight"),
        *(
            "http://proxy.corp:8080/some/path",
            "proxy corp:8080",
            "socks5://proxy.corp:1080",
            ":8080",
            "http://u:p://x@y",
        ),
        *("user:pass%40proxy.corp", "u:pass@p:1://x", "u:pass%2540p", "https://u:pass@p:1", "http://u:p%40x:1/"),
    ],
)
def test_a_variable_that_cannot_be_read_is_a_mistake(text: str) -> None:
    """It never means that hosts are reached directly; and a password is not repeated."""
    with pytest.raises(ConfigError, match=r"^HTTPS_PROXY: ") as caught:
        from_environment({"HTTPS_PROXY": text})
    assert "pass" not in str(caught.value)
    assert "u:p" not in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "host", "expected"),
    [
        pytest.param("walmart.com", "pypi.ci.artifacts.walmart.com", True, id="U5"),
        pytest.param("walmart.com", "walmart.com", True, id="U5-apex"),
        pytest.param("walmart.com", "evilwalmart.com", False, id="U5-boundary"),
        pytest.param("*", "anything.at.all", True, id="U5-all"),
        pytest.param("", "localhost.example", False, id="U5-none"),
        (" .example.com, internal.corp ,, ", "a.example.com", True),
        (" .example.com, internal.corp ,, ", "example.com", True),
        (" .example.com, internal.corp ,, ", "x.internal.corp", True),
        ("10.0.0.0/8,::1", "10.1.2.3", True),
        ("10.0.0.0/8,::1", "11.1.2.3", False),
        ("*.example.com", "a.example.com", True),
    ],
)
def test_no_proxy_of_the_environment(entries: str, host: str, expected: bool) -> None:
    """Suffixes at the boundary of a label, the host itself among them."""
    found = from_environment({"HTTPS_PROXY": "p.corp:1", "NO_PROXY": entries})
    assert found is not None
    assert found.bypass.covers(host) is expected
    other = from_environment({"HTTPS_PROXY": "p.corp:1", "no_proxy": entries})
    assert other == found


@pytest.mark.parametrize("entry", ["a b", "http://a.com", "a.com:8080", "10.0.0.1/8", "a..b"])
def test_an_entry_of_no_proxy_that_cannot_be_read_is_a_mistake(entry: str) -> None:
    """Nobody can say whether that host was to go through the proxy."""
    with pytest.raises(ConfigError, match=r"^NO_PROXY: "):
        from_environment({"HTTPS_PROXY": "p.corp:1", "NO_PROXY": f"ok.com,{entry}"})


ALIASES = [
    ("--allow-domain", "a.com", ["--allow-proxy", "--proxy-allow"]),
    ("--upstream-proxy", "a.com:1", ["--external-proxy"]),
    ("--upstream-bypass", "a.com", ["--external-proxy-bypass"]),
    ("--open-port", "80", ["--allow-port"]),
    ("--listen-port", "80", ["--allow-bind"]),
]


@pytest.mark.parametrize(("name", "value", "others"), ALIASES)
@pytest.mark.parametrize("command", [["run"], ["why", "--host", "a.com"]])
def test_nonos_other_names_of_options(command: list[str], name: str, value: str, others: list[str]) -> None:
    """They mean the same, also beside the first, and the help has one of them."""
    parser = build_parser()
    expected = Overrides.of(parser.parse_args([*command, name, value]))
    for other in others:
        assert Overrides.of(parser.parse_args([*command, other, value])) == expected
    assert expected != Overrides()


@pytest.mark.parametrize("command", [["run"], ["why", "--host", "a.com"]])
def test_every_option_reaches_its_field(command: list[str]) -> None:
    """What is typed is what is obeyed."""
    words = (
        "-p p.json --extends a --extends b --network-profile minimal --allow-domain a.com --deny-domain b.com "
        "--allow-net --block-net --upstream-proxy env --upstream-bypass c --upstream-auth env://X --open-port 1 "
        "--listen-port 2 --allow-connect-port 3 --nono-globs"
    )
    assert Overrides.of(build_parser().parse_args([*command, *words.split()])) == Overrides(
        profile="p.json",
        extends=("a", "b"),
        network_profile="minimal",
        allow_domain=("a.com",),
        deny_domain=("b.com",),
        allow_net=True,
        block_net=True,
        upstream_proxy="env",
        upstream_bypass=("c",),
        upstream_auth="env://X",
        open_port=(1,),
        listen_port=(2,),
        allow_connect_port=(3,),
        nono_globs=True,
    )
    assert Overrides.of(build_parser().parse_args(command)) == Overrides()


@pytest.mark.parametrize("port", ["0", "65536", "x", "-1", "+80", "\uff18\uff10"])
def test_a_port_that_is_none_is_a_mistake(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit status 2."""
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(["run", f"--open-port={port}"])
    assert caught.value.code == 2
    assert "is not a port: write a number from 1 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"network_profile": "develop"}, "--network-profile"),
        ({"upstream_proxy": "x"}, "--upstream-proxy"),
        ({"upstream_proxy": "user:password@p:1://x"}, "--upstream-proxy"),
        ({"upstream_proxy": "user:password%40p"}, "--upstream-proxy"),
        ({"upstream_bypass": ("a b",)}, "--upstream-bypass"),
        ({"upstream_auth": "user:password"}, "--upstream-auth"),
        ({"upstream_auth": "keyring_entry"}, "--upstream-auth"),
        ({"extends": ("a b",)}, "--extends"),
    ],
)
def test_an_option_that_cannot_be_meant_is_named(options: dict[str, object], where: str) -> None:
    """And what may be a secret is not repeated."""
    with pytest.raises(ConfigError) as caught:
        load(**options)
    assert caught.value.where == where
    assert "password" not in str(caught.value)
