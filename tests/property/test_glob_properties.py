"""`nono_ebpf.policy.glob` and `endpoints`: the matcher agrees with an expression, and paths have one form."""

from __future__ import annotations

import re
from urllib.parse import unquote

from hypothesis import given
from hypothesis import strategies as st

from nono_ebpf.policy.endpoints import EndpointRule, parse_endpoint_rule, parse_path, permits
from nono_ebpf.policy.glob import Globs

elements = st.sampled_from(["a", "b", "/", "*", "**", "?", "[ab]", "[!a]", "{a,b/}", "{a,*}", "/**/"])
globs = st.lists(elements, max_size=6).map("".join)
texts = st.text("ab/", max_size=8)
# What paths are made of when somebody tries to get out.
pieces = st.sampled_from(
    ["/", "/public", "admin", "..", ".", "%2e", "%2E", "%2f", "%5c", "\\", ";", ";x=1", "%3b", "%25", "%252f", "%252e",
     "%c3%a4", "%ff", "%20", "x", "?", "&", "="]
)  # fmt: skip
targets = st.lists(pieces, max_size=10).map(lambda each: "/" + "".join(each))


def expression(glob: str) -> str:
    """The same by a backtracking engine. Sets and choices are written alike."""
    found, at = "", 0
    for match in re.finditer(r"/\*\*+/|\*\*+|\*|\?|\[[^\]]*\]|[{},]", glob):
        found += re.escape(glob[at : match.start()])
        at = match.end()
        element = match[0]
        if element.startswith("/*"):
            found += "/(?:.*/)?"
            at -= 1  # its slash may begin the next
            found = found.removesuffix("/(?:.*/)?") + "/(?:.*/)?"
            at += 1
        elif element.startswith("**"):
            found += ".*"
        elif element.startswith("["):
            found += "(?!/)" + element.replace("!", "^")
        else:
            found += {"*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")", ",": "|"}[element]
    return found + re.escape(glob[at:])


@given(globs.filter(lambda glob: "*{" not in glob and "}*" not in glob and "/**/**" not in glob), texts)
def test_the_matcher_agrees_with_an_expression(glob: str, text: str) -> None:
    """Whatever the elements and their order."""
    assert Globs([(glob, False)]).matches(text) == bool(re.fullmatch(expression(glob), text, re.DOTALL))


@given(targets)
def test_the_canonical_form_is_the_only_one(target: str) -> None:
    """Parsing what would be sent changes nothing, and what is sent means no more than what was asked."""
    path = parse_path(target)
    if path is not None:
        again = parse_path(path.target)
        assert again is not None
        assert again.target == path.target
        assert set(again.readings) <= set(path.readings)
        assert path.target.isascii()
        assert not {".", ".."} & set(path.target.partition("?")[0].split("/"))


def seen_by_a_server(target: str, *, decodings: int, backslashes: bool, parameters: bool) -> str:
    """Where a server that undoes so much would look."""
    path = target.partition("?")[0]
    for _ in range(decodings):
        path = unquote(path, errors="surrogateescape")
    path = path.replace("\\", "/") if backslashes else path
    path = re.sub(r";[^/]*", "", path) if parameters else path
    found: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del found[-1:]
        elif segment not in {"", "."}:
            found.append(segment)
    return "/" + "/".join(found)


@given(targets, st.integers(0, 2), st.booleans(), st.booleans())
def test_no_server_is_led_out_of_what_is_allowed(
    target: str, decodings: int, backslashes: bool, parameters: bool
) -> None:
    """What is sent under a rule for /public stays below it, however the server reads it."""
    path = parse_path(target)
    if path is not None and permits([parse_endpoint_rule("*", "/public/**", "test")], "GET", path.readings):
        seen = seen_by_a_server(path.target, decodings=decodings, backslashes=backslashes, parameters=parameters)
        assert seen.startswith("/public/") or seen == "/public"


@given(st.lists(globs.map("/{}".format), max_size=3), targets)
def test_more_rules_never_allow_less(spelled: list[str], target: str) -> None:
    """Endpoint rules only add up."""
    path = parse_path(target)
    if path is not None:
        rules = [EndpointRule("*", each) for each in spelled]
        fewer = permits(rules[:1], "GET", path.readings)
        assert not fewer or permits(rules, "GET", path.readings)
