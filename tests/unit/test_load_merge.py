"""`nono_ebpf.config.extends` and `merge`: profiles that build upon each other, and where every value came from."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from nono_ebpf.config.load import Findings, examine, settings
from nono_ebpf.config.merge import Domain, Sourced, merge, of_document
from nono_ebpf.config.options import Overrides
from nono_ebpf.config.schema import Endpoint
from nono_ebpf.config.validate import examine as examine_text
from nono_ebpf.errors import ConfigError

if TYPE_CHECKING:
    from nono_ebpf.config.settings import Settings

HOME = "/home/a"
ACCOUNT = f"{HOME}/.config/nono/profiles"


class Files(dict[str, Any]):
    """Profiles by path; what was asked for is remembered."""

    def __init__(self, **files: Any) -> None:
        super().__init__({name.replace("__", "/") + ".json": value for name, value in files.items()})
        self.asked: list[str] = []

    def read(self, path: str) -> bytes:
        self.asked.append(path)
        if path not in self:
            raise FileNotFoundError(2, "No such file or directory", path)
        return json.dumps(self[path]).encode()

    def load(self, profile: str | None = "p.json", **options: Any) -> Settings:
        return settings(Overrides(profile=profile, **options), self.read, home=HOME, environment={})

    def examine(self, profile: str | None = "p.json", **options: Any) -> Findings:
        return examine(Overrides(profile=profile, **options), self.read, home=HOME, environment={})

    def mistake(self, profile: str = "p.json", **options: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            self.load(profile, **options)
        return str(caught.value)


def net(extends: Any = None, **network: Any) -> dict[str, Any]:
    return ({} if extends is None else {"extends": extends}) | {"network": network}


def hosts(found: Settings) -> list[str]:
    return [rule.text for rule in found.policy.allow.rules]


def test_lists_add_up_base_first() -> None:
    """Each value once, with the file that had it first."""
    files = Files(p=net("base", allow_domain=["c.com", "A.com."]), base=net(allow_domain=["a.com", "b.com"]))
    rules = files.load().policy.allow.rules
    assert [(rule.text, rule.source) for rule in rules] == [
        ("a.com", "base.json: network.allow_domain[0]"),
        ("b.com", "base.json: network.allow_domain[1]"),
        ("c.com", "p.json: network.allow_domain[0]"),
    ]


def test_bases_are_merged_left_to_right() -> None:
    """The later one holds, and the profile itself before all."""
    base = {name: net(upstream_proxy=f"{name}.corp:1", network_profile="minimal", open_port=[1]) for name in "ab"}
    files = Files(p=net(["a", "b"]), **base)
    assert str(files.load().policy.upstream_proxy) == "b.corp:1"
    files["p.json"] = net(["a", "b"], upstream_proxy="p.corp:1")
    assert str(files.load().policy.upstream_proxy) == "p.corp:1"
    assert [each.source for each in files.load().open_ports] == ["a.json: network.open_port[0]"]


def test_null_takes_a_network_profile_away() -> None:
    """Left out, it is inherited."""
    files = Files(p=net("base"), base=net(network_profile="minimal"))
    assert "api.anthropic.com" in hosts(files.load())
    files["p.json"] = net("base", network_profile=None)
    assert hosts(files.load()) == []


@pytest.mark.parametrize(
    ("credentials", "expected"),
    [
        pytest.param({}, ["github"], id="P1-absent"),
        pytest.param({"credentials": []}, [], id="P1-empty"),
        pytest.param({"credentials": ["gitlab"]}, ["github", "gitlab"], id="P1-both"),
        ({"credentials": None}, ["github"]),
    ],
)
def test_credentials_are_inherited_taken_away_or_added(credentials: dict[str, Any], expected: list[str]) -> None:
    """As nono does it."""
    files = Files(p=net("base", **credentials), base=net(credentials=["github"]))
    assert [route.name for route in files.load().routes] == expected


def test_the_last_definition_of_a_credential_holds() -> None:
    """Of each name; the others stay."""
    one, two = ({"upstream": f"https://{name}.example.com", "credential_key": "k"} for name in ("one", "two"))
    files = Files(
        p=net("base", custom_credentials={"a": two}),
        base=net(credentials=["a", "b"], custom_credentials={"a": one, "b": one}),
    )
    assert [route.service.host.pattern for route in files.load().routes] == ["two.example.com", "one.example.com"]


def test_flags_are_on_when_any_profile_says_so() -> None:
    """A profile cannot switch off what its base has on."""
    files = Files(p=net("base", block=False, allow_http2=False), base=net(block=True, allow_http2=True))
    found = files.examine()
    assert found.settings.allow_http2
    assert found.merged.block == Sourced(value=True, source="base.json: network.block")


def endpoint(path: str, domain: str = "a.com") -> dict[str, Any]:
    return {"domain": domain, "endpoints": [{"method": "GET", "path": path}]}


@pytest.mark.parametrize(
    ("base", "child", "paths"),
    [
        ([endpoint("/1")], [endpoint("/2")], ["/1", "/2"]),
        (["a.com"], [endpoint("/2")], ["/2"]),
        ([endpoint("/1")], ["a.com"], ["/1"]),
        ([endpoint("/1")], [endpoint("/1", "A.COM.")], ["/1"]),
        ([], ["a.com", endpoint("/1"), endpoint("/2"), "a.com"], ["/1", "/2"]),
        (["a.com"], ["a.com"], []),
        ([endpoint("/1")], ["a.com:443"], ["/1"]),
    ],
)
def test_merging_hosts_narrows(base: list[Any], child: list[Any], paths: list[str]) -> None:
    """Endpoints of one host add up; a host that has some is not allowed as a whole, in whatever file it is."""
    found = Files(p=net("base", allow_domain=child), base=net(allow_domain=base)).examine()
    domains = [each for each in found.merged.allow_domain if each.host == "a.com"]
    assert [[each.value.path for each in domain.endpoints] for domain in domains] == [paths]


def test_a_narrowed_host_says_who_narrowed_it() -> None:
    """Its rule names the entry with the endpoints, and each endpoint its own place."""
    files = Files(p=net("base", allow_domain=["x.com", endpoint("/2")]), base=net(allow_domain=["a.com"]))
    found = files.examine()
    place = "p.json: network.allow_domain[1]"
    assert found.merged.allow_domain[0] == Domain(
        "a.com", place, (Sourced(Endpoint("GET", "/2"), f"{place}.endpoints[0]"),)
    )
    assert found.settings.policy.allow.rules[0].source == place


def test_a_name_is_looked_for_beside_the_file_and_then_in_the_account() -> None:
    """NAME.json both times; another directory's siblings are its own."""
    files = Files(dir__p=net("base"), dir__base=net("deep", allow_domain=["a.com"]))
    files[f"{ACCOUNT}/deep.json"] = net(allow_domain=["b.com"])
    found = files.load("dir/p.json")
    assert [rule.source for rule in found.policy.allow.rules] == [
        f"{ACCOUNT}/deep.json: network.allow_domain[0]",
        "dir/base.json: network.allow_domain[0]",
    ]
    assert files.asked == ["dir/p.json", "dir/base.json", "dir/deep.json", f"{ACCOUNT}/deep.json"]


def test_a_path_is_meant_from_the_file() -> None:
    """Whatever the working directory is; an absolute one is itself."""
    files = Files(dir__p=net(["../up.json", "/abs.json", "sub/x"]), up=net(), __abs=net(), dir__sub__x=net())
    files["dir/sub/x"] = files.pop("dir/sub/x.json")
    files.load("dir/p.json")
    assert files.asked == ["dir/p.json", "up.json", "/abs.json", "dir/sub/x"]


def test_a_profile_may_extend_its_namesake() -> None:
    """`codex.json` that extends `codex` means the account's, not itself; nor the account's own file itself."""
    files = Files(codex=net("codex", allow_domain=["a.com"]))
    files[f"{ACCOUNT}/codex.json"] = net("codex", allow_domain=["b.com"])
    assert hosts(files.load("codex.json")) == ["b.com", "a.com"]


@pytest.mark.parametrize(
    ("name", "hint"), [("default", ""), ("python-dev", '; for its hosts write "network_profile": "developer"')]
)
def test_a_profile_inside_nono_adds_nothing_here(name: str, hint: str) -> None:
    """And that is said, with what would."""
    found = Files(p=net(name)).load()
    line = f"p.json: extends: {name} is a profile inside nono and adds nothing about the network here{hint}"
    assert line in found.warnings
    assert hosts(found) == []


def test_a_profile_inside_nono_is_no_profile_to_run_with() -> None:
    """Rather than a sandbox in which nothing is reachable."""
    assert Files().mistake("claude-code") == (
        "--profile: claude-code is a profile inside nono, and not about the network; "
        "for its hosts: --network-profile claude-code"
    )


def test_a_profile_of_the_account_may_be_named() -> None:
    """A file of that name comes first."""
    files = Files()
    files[f"{ACCOUNT}/mine.json"] = net(allow_domain=["a.com"])
    assert hosts(files.load("mine")) == ["a.com"]
    assert files.asked == ["mine", f"{ACCOUNT}/mine.json"]
    assert Files().mistake("other") == "--profile: other: No such file or directory"


@pytest.mark.parametrize(
    ("extends", "line"),
    [
        ("bsae", f"p.json: extends: no profile 'bsae': there is no bsae.json, {ACCOUNT}/bsae.json"),
        ("defualt", "did you mean default?"),
        (["base", "./x.json"], "p.json: extends[1]: no profile './x.json': there is no x.json"),
        ("p.json", "p.json: extends: no profile 'p.json': there is no p.json"),
        ("../../etc/-rf", "p.json: extends: no profile '../../etc/-rf': there is no ../../etc/-rf"),
    ],
)
def test_a_base_that_is_not_there_is_a_mistake(extends: Any, line: str) -> None:
    """With every place that was looked at."""
    assert line in Files(p=net(extends), base=net()).mistake()


def test_a_base_that_may_not_be_read_is_a_mistake() -> None:
    """The next place is not tried: the first one is meant."""

    def read(path: str) -> bytes:
        if path == "base.json":
            raise PermissionError(13, "Permission denied", path)
        return b'{"extends": "base"}'

    with pytest.raises(ConfigError, match=r"^p\.json: extends: base\.json: Permission denied$"):
        settings(Overrides(profile="p.json"), read, home=HOME, environment={})


def test_a_circle_is_shown() -> None:
    """From the file that is met again, by way of every other."""
    files = Files(p=net("a"), a=net("b"), b=net("sub/c.json"), sub__c=net("../a.json"))
    assert files.mistake().startswith(
        "sub/c.json: extends: the profiles extend each other in a circle: a.json -> b.json -> sub/c.json -> a.json"
    )


@pytest.mark.parametrize(("bases", "sound"), [(10, True), (11, False)])
def test_a_chain_has_an_end(bases: int, sound: bool) -> None:
    """Ten profiles below one, and no more."""
    names = ["p", *(f"b{i}" for i in range(bases))]
    chain = {name: net(after, allow_domain=[f"{name}.com"]) for name, after in pairwise(names)}
    files = Files(**chain, **{names[-1]: net()})
    if sound:
        assert len(hosts(files.load())) == bases
    else:
        assert "more than 10 profiles extend each other" in files.mistake()


def test_a_chain_is_as_long_as_its_longest_way() -> None:
    """Also where a base was read before, on a shorter one."""
    names = ["p", *(f"b{i}" for i in range(11))]
    chain = {name: net(after) for name, after in pairwise(names)}
    chain["p"] = net(["b5", "b0"])
    assert "more than 10 profiles extend each other" in Files(**chain, b10=net()).mistake()


def test_many_ways_to_one_profile_read_it_once() -> None:
    """Ten levels of ten names each are ten files, not ten billion."""
    files = Files(**{f"b{i}": net([f"b{i + 1}"] * 10) for i in range(9)}, b9=net(allow_domain=["a.com"]))
    assert hosts(files.load("b0.json")) == ["a.com"]
    assert len(files.asked) == 10


def test_a_profile_extends_so_many_and_no_more() -> None:
    """Beyond that it is no profile, but a way to keep us busy."""
    files = Files(p=net([f"b{i}" for i in range(70)]), **{f"b{i}": net() for i in range(70)})
    assert "more than 64 at all" in files.mistake()


def test_a_base_that_is_named_again_counts_once() -> None:
    """Where it was named last; and all names in all files are counted, not only the files they lead to."""
    files = Files(
        p=net(["a", "b"] * 1000 + ["a"]),
        a=net(allow_domain=["a.com"], upstream_proxy="a.corp:1"),
        b=net(allow_domain=["b.com"], upstream_proxy="b.corp:1"),
    )
    found = files.load()
    assert sorted(hosts(found)) == ["a.com", "b.com"]
    assert str(found.policy.upstream_proxy) == "a.corp:1"
    many = Files(b0=net(), **{f"b{i}": net([f"b{j}" for j in range(i)]) for i in range(1, 20)})
    assert many.examine("b9.json").problems == ()
    assert [each.problem for each in many.examine("b19.json").problems].count(
        "more than 10 profiles extend each other, or more than 64 at all"
    )


def test_what_is_limited_is_limited_over_all_files() -> None:
    """Bases are no way around it."""
    bases = {f"b{i}": net(no_proxy=[f"h{i}-{j}" for j in range(150)]) for i in range(2)}
    files = Files(p=net(["b0", "b1"]), **bases)
    assert files.examine("b0.json").problems == ()
    assert files.mistake().startswith("b1.json: network.no_proxy[50]: that is too much")


def test_an_option_adds_bases() -> None:
    """Behind those of the file, and below the file itself; without a file they are all there is."""
    files = Files(
        p=net("a", upstream_proxy="p.corp:1"),
        a=net(network_profile="minimal"),
        b=net(network_profile=None, upstream_proxy="b.corp:1"),
    )
    found = files.load(extends=("b",))
    assert str(found.policy.upstream_proxy) == "p.corp:1"
    assert hosts(found) == []
    assert str(files.load(None, extends=("./b.json",)).policy.upstream_proxy) == "b.corp:1"
    files[f"{ACCOUNT}/c.json"] = net(allow_domain=["c.com"])
    assert hosts(files.load(None, extends=("c",))) == ["c.com"]


def test_mistakes_of_bases_name_their_file() -> None:
    """And count with the others."""
    files = Files(p=net("base", block=1), base=net(allow_domian=[]))
    assert [each.where for each in files.examine().problems] == [
        "p.json: network.block",
        "base.json: network.allow_domian",
    ]


def test_merging_a_profile_with_itself_changes_nothing() -> None:
    """A base that is met on two ways is met once."""
    text = json.dumps(net(allow_domain=["a.com", endpoint("/1")], credentials=["github"], open_port=[1])).encode()
    merged = of_document(examine_text(text, "p.json")[0])
    assert merge(merged, merged) == merged
