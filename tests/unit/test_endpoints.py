"""Which requests a host may be sent: nono's vectors, and paths that servers read in more than one way."""

from __future__ import annotations

import time

import pytest

from nono_ebpf.errors import ConfigError
from nono_ebpf.policy.endpoints import EndpointRule, parse_endpoint_rule, parse_path, permits

MERGE_REQUESTS = "/api/v4/projects/*/merge_requests"


def rule(method: str, path: str, *, crosses: bool = False) -> EndpointRule:
    return parse_endpoint_rule(method, path, "test", crosses=crosses)


def allowed(rules: list[EndpointRule], method: str, target: str) -> bool:
    path = parse_path(target)
    return path is not None and permits(rules, method, path.readings)


@pytest.mark.parametrize(
    ("method", "glob", "asked", "target", "expected"),
    [
        pytest.param("GET", "/v1/chat/completions", "GET", "/v1/chat/completions", True, id="E2-exact"),
        pytest.param("GET", "/v1/chat/completions", "GET", "/v1/chat", False, id="E2-shorter"),
        pytest.param("GET", "/v1/chat/completions", "GET", "/v1/chat/completions/extra", False, id="E2-longer"),
        pytest.param("get", "/x", "GET", "/x", True, id="E3-case-of-the-rule"),
        pytest.param("GET", "/x", "get", "/x", True, id="E3-case-of-the-request"),
        pytest.param("*", "/x", "PATCH", "/x", True, id="E3-any"),
        pytest.param("GET", "/x", "POST", "/x", False, id="E3-another"),
        pytest.param("*", MERGE_REQUESTS, "GET", "/api/v4/projects/123/merge_requests", True, id="E4"),
        pytest.param("*", MERGE_REQUESTS, "GET", "/api/v4/projects/merge_requests", False, id="E4-none"),
        pytest.param("*", MERGE_REQUESTS, "GET", "/api/v4/projects/1/2/merge_requests", False, id="E4-two"),
        pytest.param("*", "/api/v4/projects/**", "GET", "/api/v4/projects/1", True, id="E5-one"),
        pytest.param("*", "/api/v4/projects/**", "GET", "/api/v4/projects/1/a/b/c", True, id="E5-many"),
        pytest.param("*", "/api/v4/projects/**", "GET", "/api/v4/other", False, id="E5-other"),
        pytest.param("*", "/api/data", "GET", "/api/data?key=/secret", True, id="E7-query"),
        pytest.param("*", "/api/data", "GET", "/api/data/", True, id="E7-slash-at-the-end"),
        pytest.param("*", "/api/data", "GET", "/api//data", True, id="E7-two-slashes"),
        pytest.param("*", "/", "GET", "/", True, id="E8"),
        pytest.param("*", "/", "GET", "/anything", False, id="E8-more"),
    ],
)  # fmt: skip
def test_nono_vectors(method: str, glob: str, asked: str, target: str, *, expected: bool) -> None:
    """The verdicts that users of endpoint rules know."""
    assert allowed([rule(method, glob)], asked, target) is expected


@pytest.mark.parametrize(
    ("glob", "matching", "other"),
    [
        ("/a/**/z", ["/a/z", "/a/b/z", "/a/b/c/z"], ["/a", "/az", "/a/zz", "/b/a/z"]),
        ("/a/**", ["/a/b", "/a/b/c"], ["/a", "/ab", "/"]),
        ("**", ["/", "/a", "/a/b"], []),
        ("/**", ["/", "/a", "/a/b"], []),
        ("/a*c", ["/ac", "/abc"], ["/a/c", "/ab"]),
        ("/?", ["/a"], ["/", "/ab"]),
        ("/[a-c1]x", ["/ax", "/1x"], ["/dx", "/x"]),
        ("/[!a-c]x", ["/dx"], ["/ax", "//x"]),
        ("/{v1,v2}/x", ["/v1/x", "/v2/x"], ["/v3/x", "/v1,v2/x"]),
        ("/{a*,b/**}/x", ["/aa/x", "/b/c/d/x"], ["/c/x"]),
        ("/{a,*}{b,*}", ["/ab", "/xy"], ["/a/b", "/x/y"]),
        ("/a/**/**/z", ["/a/z", "/a/b/z", "/a/b/c/z"], ["/az"]),
        ("/a/**/*", ["/a/z", "/a/b/z"], ["/a"]),
        ("/a.b", ["/a.b"], ["/aXb"]),
        ("/a+b", ["/a+b"], ["/aab"]),
        ("/ä/*", ["/%C3%A4/x", "/%c3%a4/x"], ["/%C3/x"]),
        ("/%C3%A4/%7Ex", ["/%C3%A4/~x"], []),
        ("/a/b/", ["/a/b", "/a//b/"], []),
        ("/a[*]b", ["/a*b", "/a%2Ab"], ["/axb"]),
    ],
)
def test_a_glob_says_what_it_looks_like(glob: str, matching: list[str], other: list[str]) -> None:
    """`*` stays in a segment, `**` does not, the rest is taken by the letter."""
    assert [each for each in matching if not allowed([rule("*", glob)], "GET", each)] == []
    assert [each for each in other if allowed([rule("*", glob)], "GET", each)] == []


def test_globs_as_nono_reads_them() -> None:
    """On demand, one `*` crosses slashes."""
    assert allowed([rule("*", "/a/*/z", crosses=True)], "GET", "/a/b/c/z")
    assert not allowed([rule("*", "/a/*/z")], "GET", "/a/b/c/z")


@pytest.mark.parametrize(
    "glob",
    ["/api/[invalid", "/{a", "/a}", "/[z-a]", "relative", "/s#f", "", "/%zz", "/" + "a" * 2000, "/" + "{a,b}" * 9,
     "/a%2A%2A", "/a%3Fb", "/public/../**", "/v1**", "/**x", "/a//b", "/./a", "/%ff/**", "/%c0%ae"],
)  # fmt: skip
def test_a_glob_that_says_nothing_is_an_error(glob: str) -> None:
    """E9: at the start, not at the first request."""
    with pytest.raises(ConfigError):
        rule("GET", glob)


@pytest.mark.parametrize("method", ["", "GET POST", "G\r\nET", "GET,POST"])
def test_a_method_is_one_word(method: str) -> None:
    """Anything else could never match."""
    with pytest.raises(ConfigError):
        rule(method, "/")


@pytest.mark.parametrize(
    "target",
    [
        "/public/../admin", "/public/%2e%2e/admin", "/public/%2E./admin", "/public/..%2fadmin", "/public/..%2Fadmin",
        "/public/..%5cadmin", "/public/..\\admin", "/public/..;/admin", "/public/..;a=b/admin", "/public/..%3b/admin",
        "/public/%252e%252e/admin", "/public/..%252fadmin", "/public/.%252e%252fadmin",
        "/public/x/../../admin", "/public/x/..%2f..%2fadmin", "/public%2f..%2fadmin", "/public/..%23/admin",
        # Servers that drop parameters and then decode; decode, resolve and decode again; take a backslash after that.
        "/public/a/b;%2Fc%2Fd%2Fe/..%2F..%2F..%2Fadmin", "/public/a/b;%5Cc%5Cd%5Ce/..%5C..%5C..%5Cadmin",
        "/public/a/b%3B%252Fc%252Fd%252Fe/..%252F..%252F..%252Fadmin", "/public/x%252Fy%2F..%2F..%252Fadmin",
        "/public/x%5C:/..%2F..%5Cadmin",
    ],
)  # fmt: skip
def test_no_spelling_climbs_out_of_what_is_allowed(target: str) -> None:
    """Whatever a server undoes, once or twice: what it may then see as /admin is not taken for /public."""
    path = parse_path(target)
    assert not allowed([rule("*", "/public/**")], "GET", target) or (path and "admin" not in path.target)


@pytest.mark.parametrize("target", ["/repos/x%3Fy/issues", "/repos/x%23y/issues", "/repos/x%253Fy/issues"])
def test_an_escaped_end_of_the_path_may_be_one(target: str) -> None:
    """A server that is handed a decoded path takes the rest for a query."""
    assert not allowed([rule("*", "/repos/*/issues")], "GET", target)


def test_what_is_matched_is_what_is_sent() -> None:
    """The canonical target has no dots to resolve and no other spelling of the same."""
    targets = {
        "/a/../b": "/b", "/a//b/": "/a/b/", "/%61": "/a", "/a%2fb": "/a%2Fb", "/a/.": "/a/", "/../..": "/",
        "/%e4%bd?x=%2f&y=/../": "/%E4%BD?x=%2f&y=/../", "/a\\b": "/a%5Cb", "/a b": "/a%20b", "*": "*", "/%3fx": "/%3Fx",
    }  # fmt: skip
    assert {target: path.target for target in targets if (path := parse_path(target))} == targets


@pytest.mark.parametrize("target", ["/%", "/%g0", "/%0", "/a%00b", "/a%0d%0ab", "/a%2500", "/" + "a" * 9000])
def test_a_path_that_no_rule_can_be_about(target: str) -> None:
    """Cut escapes, control characters and endless paths."""
    assert parse_path(target) is None


def test_an_escaped_slash_needs_a_rule_for_both_readings() -> None:
    """npm writes @scope%2Fname: some servers take that for two segments."""
    both = [rule("GET", "/@scope/*"), rule("GET", "/@scope%2f*")]
    assert allowed(both, "GET", "/@scope%2fname")
    assert not allowed(both[:1], "GET", "/@scope%2fname")
    assert not allowed(both[1:], "GET", "/@scope%2fname")
    assert allowed([rule("GET", "/**")], "GET", "/@scope%2fname")


def test_a_hostile_path_costs_no_more_than_its_length() -> None:
    """A glob that would keep a backtracking matcher busy for years."""
    started = time.process_time()
    assert not allowed([rule("*", "/" + "*a/**/" * 6 + "b")], "GET", "/" + "a/" * 2000)
    assert time.process_time() - started < 30
