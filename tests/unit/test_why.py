"""`why` gives the verdict a connection would get, with its rule and its remedy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from nono_ebpf.cli import main

if TYPE_CHECKING:
    from pathlib import Path


def why(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status = main(["why", "--json", *arguments])
    return status, json.loads(capsys.readouterr().out)


def test_an_allowed_host_comes_with_its_rule_and_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    """The host in its canonical form, the rule as written."""
    pin = ("--resolve", "a.example.com:203.0.113.9")
    status, facts = why(capsys, "--host", "A.Example.COM.", "--allow-domain", "*.example.com", *pin)
    assert status == 0
    assert facts == {
        "target": "a.example.com",
        "port": 443,
        "decision": "allow",
        "rule": "*.example.com",
        "rule_source": "--allow-domain",
        "route": "direct",
        "resolved_addresses": ["203.0.113.9"],
    }


def test_a_rule_of_a_profile_is_named_with_its_place(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The file and the JSON path: what decided can be found."""
    profile = tmp_path / "agent.json"
    profile.write_text('{"network": {"allow_domain": ["x.test"], "deny_domain": ["x.test:22"]}}')
    status, facts = why(capsys, "--host", "x.test:22", "--profile", str(profile))
    assert (status, facts["decision"]) == (1, "deny")
    assert facts["rule_source"] == f"{profile}: network.deny_domain[0]"
    assert "remedy" not in facts


def test_a_denied_host_comes_with_the_option_that_would_allow_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a lookup: the name was never allowed."""
    status, facts = why(capsys, "--host", "x.test", "--port", "8443")
    assert (status, facts["remedy"]) == (1, "--allow-domain x.test:8443")


def test_an_address_behind_a_name_is_judged_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    """A name may point anywhere."""
    pin = ("--resolve", "x.test:169.254.169.254")
    status, facts = why(capsys, "--host", "x.test", "--allow-domain", "x.test", *pin)
    assert (status, facts["decision"]) == (1, "deny")
    assert "169.254.169.254" in facts["reason"]


def test_people_get_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """The answer first."""
    assert main(["why", "--host", "x.test"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "x.test:443  denied"
    assert lines[-1] == "  allow with  --allow-domain x.test"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--host", "0177.1"],
        ["--host", "x.test:80", "--port", "443"],
        ["--host", "x.test", "--port", "0"],
        ["--host", "x.test", "--profile", "/nonexistent"],
        ["--host", "x.test", "--allow-domain", "a b"],
    ],
)
def test_a_question_without_a_meaning_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """With exit status 2: neither allowed nor denied."""
    assert main(["why", *arguments]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/a#b"), ("GET", "/a b"), ("GET", "/é"), ("GET", "a"), ("TRACE", "/"), ("CONNECT", "/"), ("G@T", "/")],
)
def test_what_would_never_be_relayed_is_no_question(capsys: pytest.CaptureFixture[str], method: str, path: str) -> None:
    """The same parser as for clients says so."""
    assert main(["why", "--host", "a.test", "--method", method, "--path", path, "--allow-domain", "a.test"]) == 2
    assert capsys.readouterr().out == ""


@pytest.fixture
def endpoints(tmp_path: Path) -> tuple[str, ...]:
    profile = tmp_path / "agent.json"
    entry = {"domain": "api.test", "endpoints": [{"method": "GET", "path": "/v1/**"}]}
    profile.write_text(json.dumps({"network": {"allow_domain": [entry], "upstream_bypass": ["api.test"]}}))
    return ("--profile", str(profile), "--host", "api.test:80", "--resolve", "api.test:203.0.113.9")


def test_a_request_is_judged_by_its_method_and_path(
    capsys: pytest.CaptureFixture[str], endpoints: tuple[str, ...]
) -> None:
    """Allowed, with the form in which it would be sent; or denied, with the option that would allow it."""
    status, facts = why(capsys, *endpoints, "--method", "GET", "--path", "/v1//x?q")
    assert (status, facts["decision"], facts["sent_as"]) == (0, "allow", "/v1/x?q")
    assert facts["rule_source"].endswith("agent.json: network.allow_domain[0]")
    status, facts = why(capsys, *endpoints, "--path", "/v2")
    assert (status, facts["denial_category"], facts["method"]) == (1, "endpoint_policy", "GET")
    assert facts["remedy"] == "--allow-domain http://api.test/v2"


def test_a_connection_to_a_host_with_endpoint_rules_lists_them(
    capsys: pytest.CaptureFixture[str], endpoints: tuple[str, ...]
) -> None:
    """It is no tunnel: its requests are judged one by one, and these are allowed."""
    status, facts = why(capsys, *endpoints)
    assert (status, facts["decision"], facts["judged"]) == (0, "allow", "request by request")
    assert facts["endpoints"] == ["GET /v1/**"]


def test_the_road_is_named(capsys: pytest.CaptureFixture[str], endpoints: tuple[str, ...]) -> None:
    """Through the upstream proxy, or past it."""
    proxy = ("--upstream-proxy", "squid.test:3128", "--resolve", "squid.test:203.0.113.1", "--allow-domain", "b.test")
    _, facts = why(capsys, *endpoints[2:][2:], "--host", "b.test", *proxy)
    assert facts["route"] == "through the upstream proxy squid.test:3128"
    _, facts = why(capsys, *endpoints, "--path", "/v1/x", *proxy)
    assert facts["route"] == "direct"


PIN = ("--resolve", "api.github.com:203.0.113.9", "--resolve", "api.openai.com:203.0.113.9")
GITHUB = ("--credential", "github", "--allow-endpoint", "github:GET:/repos/**", *PIN)


def test_a_request_is_told_whose_credential_it_gets(capsys: pytest.CaptureFixture[str]) -> None:
    """Which service, where the credential is kept, and where it is put; inside TLS, as on every port but 80."""
    status, facts = why(capsys, "--host", "api.github.com", "--path", "/repos/a/b", *GITHUB)
    assert (status, facts["decision"], facts["over"]) == (0, "allow", "TLS")
    assert (facts["service"], facts["credential"]) == ("github", "env://GITHUB_TOKEN")
    assert facts["injected"] == "Authorization: token {}"


def test_a_request_that_no_service_is_for_is_told_why(capsys: pytest.CaptureFixture[str]) -> None:
    """With the option that would make it one of its requests."""
    status, facts = why(capsys, "--host", "api.github.com", "--method", "POST", "--path", "/user", *GITHUB)
    assert (status, facts["denial_category"]) == (1, "endpoint_policy")
    assert "no endpoint rule of the service github allows POST /user" in facts["reason"]
    assert facts["remedy"] == "--allow-endpoint github:POST:/user"


def test_the_credential_of_a_service_is_not_sent_in_clear(capsys: pytest.CaptureFixture[str]) -> None:
    """Port 80 is plain HTTP; there the service is not."""
    status, facts = why(capsys, "--host", "api.github.com:80", "--path", "/repos/a", *GITHUB)
    assert (status, facts["over"], facts["decision"]) == (1, "plain HTTP", "deny")


def test_a_connection_to_a_service_lists_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    """It is judged request by request."""
    status, facts = why(capsys, "--host", "api.github.com", *GITHUB)
    assert (status, facts["judged"], facts["services"]) == (0, "request by request", ["github: GET /repos/**"])


def test_an_ambiguous_request_is_told_to_be_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """E18: two services that are both for it, unless it names one."""
    one = {"upstream": "https://api.test", "credential_key": "env://K"}
    profile = tmp_path / "p.json"
    network = {"credentials": ["a", "b"], "custom_credentials": {"a": one, "b": one}}
    profile.write_text(json.dumps({"network": network}))
    status, facts = why(capsys, "--profile", str(profile), "--host", "api.test", "--path", "/")
    assert (status, facts["denial_category"]) == (1, "endpoint_policy")
    assert "the credentials a and b are both for such requests" in facts["reason"]
    pin = ("--resolve", "api.test:203.0.113.9")
    status, facts = why(capsys, "--profile", str(profile), "--service", "b", *pin)
    assert (status, facts["service"]) == (0, "b")


def test_what_an_endpoint_policy_denies_comes_with_its_reason(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """E10: a denial comes first, and in the operator's words."""
    rule = {"method": "*", "path": "/admin/**"}
    policy = {"deny": [rule | {"reason": "ask the admins"}], "approve": [rule], "allow": [rule]}
    custom = {"a": {"upstream": "https://api.test", "credential_key": "env://K", "endpoint_policy": policy}}
    profile = tmp_path / "p.json"
    profile.write_text(json.dumps({"network": {"credentials": ["a"], "custom_credentials": custom}}))
    status, facts = why(capsys, "--profile", str(profile), "--host", "api.test", "--path", "/admin/x")
    assert status == 1
    assert facts["reason"].endswith("ask the admins")


def test_a_service_is_asked_about_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    """What its own URL at the proxy leads to: the upstream's host, with what is in front of the path there."""
    status, facts = why(capsys, "--service", "openai", "--path", "/models", "--credential", "openai", *PIN)
    assert (status, facts["target"], facts["port"], facts["path"]) == (0, "api.openai.com", 443, "/v1/models")
    assert facts["service"] == "openai"


def test_a_service_of_this_machine_is_spoken_to_in_clear(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """As its URL says."""
    custom = {"a": {"upstream": "http://localhost:8080/v1", "credential_key": "env://K"}}
    profile = tmp_path / "p.json"
    profile.write_text(json.dumps({"network": {"credentials": ["a"], "custom_credentials": custom}}))
    for question in (("--service", "a"), ("--host", "localhost:8080", "--path", "/v1/")):
        status, facts = why(capsys, "--profile", str(profile), *question)
        assert (status, facts["over"], facts["service"]) == (0, "plain HTTP", "a")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--service", "github"], "no service in use is called 'github'; add --credential"),
        (["--service", "gihtub", "--credential", "github"], "did you mean github?"),
        (["--service", "github", "--credential", "github", "--port", "443"], "the service has its own"),
        (["--service", "github", "--credential", "github", "--path", "a"], "no such request is relayed"),
    ],
)
def test_a_question_about_a_service_needs_one(
    capsys: pytest.CaptureFixture[str], arguments: list[str], part: str
) -> None:
    """One line, exit status 2."""
    assert main(["why", *arguments]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert part in said.err


def test_many_hosts_have_no_url(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """R16: a service with a wildcard is asked for by its hosts."""
    custom = {"a": {"upstream": "https://*.api.test", "credential_key": "env://K"}}
    profile = tmp_path / "p.json"
    profile.write_text(json.dumps({"network": {"credentials": ["a"], "custom_credentials": custom}}))
    assert main(["why", "--profile", str(profile), "--service", "a"]) == 2
    assert "it is many hosts" in capsys.readouterr().err
    pin = ("--resolve", "x.api.test:203.0.113.9")
    status, facts = why(capsys, "--profile", str(profile), "--host", "x.api.test", "--path", "/", *pin)
    assert (status, facts["service"]) == (0, "a")


def test_a_service_of_a_kind_that_is_not_supported_is_denied(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A connection and a request alike, also where the host is allowed."""
    custom = {"a": {"upstream": "https://api.test", "aws_auth": {}}}
    profile = tmp_path / "p.json"
    network = {"allow_domain": ["api.test"], "credentials": ["a"], "custom_credentials": custom}
    profile.write_text(json.dumps({"network": network}))
    for question in ((), ("--path", "/")):
        status, facts = why(capsys, "--profile", str(profile), "--host", "api.test", *question)
        assert (status, facts["denial_category"]) == (1, "managed_credential_unavailable")


def test_a_host_that_is_looked_into_is_judged_request_by_request(capsys: pytest.CaptureFixture[str]) -> None:
    """Each of them is allowed."""
    pin = ("--resolve", "api.test:203.0.113.9")
    status, facts = why(capsys, "--host", "api.test", "--intercept", "api.test", *pin)
    assert (status, facts["judged"], facts["rule_source"]) == (0, "request by request", "--intercept")
    status, facts = why(capsys, "--host", "api.test", "--path", "/x", "--intercept", "api.test", *pin)
    assert (status, facts["decision"]) == (0, "allow")
