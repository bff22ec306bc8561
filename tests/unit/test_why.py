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
    """It would be a tunnel: what is allowed instead is said."""
    status, facts = why(capsys, *endpoints)
    assert (status, facts["denial_category"], facts["endpoints"]) == (1, "connect_bypasses_l7", ["GET /v1/**"])


def test_the_road_is_named(capsys: pytest.CaptureFixture[str], endpoints: tuple[str, ...]) -> None:
    """Through the upstream proxy, or past it."""
    proxy = ("--upstream-proxy", "squid.test:3128", "--resolve", "squid.test:203.0.113.1", "--allow-domain", "b.test")
    _, facts = why(capsys, *endpoints[2:][2:], "--host", "b.test", *proxy)
    assert facts["route"] == "through the upstream proxy squid.test:3128"
    _, facts = why(capsys, *endpoints, "--path", "/v1/x", *proxy)
    assert facts["route"] == "direct"
