"""`nono-ebpf profile`: what people and programs get to see."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from nono_ebpf.cli import main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, and a home without profiles."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def write(directory: Path, name: str, profile: Any) -> str:
    (directory / name).write_text(json.dumps(profile))
    return name


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["profile", *arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_every_mistake_is_a_line(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the number of them, and exit status 2; a sound file beside it is told to be so."""
    bad = write(directory, "bad.json", {"network": {"allow_domian": [], "block": 1}, "netwrok": {}})
    good = write(directory, "good.json", {"network": {"allow_domain": ["a.com"]}, "meta": {}, "filesystem": {}})
    status, out, err = run(capsys, "check", bad, good)
    assert (status, err) == (2, "")
    assert out.splitlines() == [
        "bad.json: network.allow_domian: no such key; did you mean allow_domain?",
        "bad.json: network.block: expected true or false, got a number",
        "bad.json: netwrok: no such key; did you mean network?",
        "bad.json: 3 mistakes",
        "good.json: ok",
        "good.json: not about the network: ignored: meta, filesystem",
    ]


def test_warnings_do_not_make_a_profile_wrong(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are lines, and the exit status is 0."""
    file = write(directory, "p.json", {"network": {"allow_domain": ["*"]}, "command_policies": {}})
    status, out, _ = run(capsys, "check", file)
    assert status == 0
    assert out.splitlines() == [
        "p.json: ok",
        "p.json: not about the network: ignored: command_policies",
        "warning: p.json: network.allow_domain[0]: * allows every host",
        "warning: p.json: command_policies: ignored; what `network` says holds for every command alike",
    ]


def test_what_is_extended_is_checked_as_well(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also when it is the account's."""
    profiles = directory / "home/.config/nono/profiles"
    profiles.mkdir(parents=True)
    write(profiles, "base.json", {"network": {"allow_domain": ["a..b"]}})
    status, out, _ = run(capsys, "check", write(directory, "p.json", {"extends": "base"}))
    assert status == 2
    assert out.startswith(f"{profiles}/base.json: network.allow_domain[0]: 'a..b' is not a host rule")


def test_a_file_that_cannot_be_read_is_a_mistake(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of many files, the others are checked all the same."""
    (directory / "d.json").mkdir()
    good = write(directory, "good.json", {"network": {"allow_domain": ["a.com"]}})
    status, out, _ = run(capsys, "check", "nowhere.json", "d.json", good)
    assert status == 2
    assert out.splitlines() == [
        "nowhere.json: No such file or directory",
        "nowhere.json: 1 mistake",
        "d.json: Is a directory",
        "d.json: 1 mistake",
        "good.json: ok",
    ]


def test_programs_get_json(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every mistake in its parts."""
    bad = write(directory, "bad.json", {"network": {"blok": True}})
    good = write(directory, "good.json", {"network": {"allow_domain": ["*"]}, "meta": {}})
    status, out, _ = run(capsys, "check", "--json", bad, good)
    assert status == 2
    assert json.loads(out) == [
        {
            "file": "bad.json",
            "ok": False,
            "errors": [{"where": "bad.json: network.blok", "problem": "no such key", "hint": "did you mean block?"}],
            "warnings": ["nothing is reachable: no host is allowed (nono would allow every one)"],
            "services": [],
            "ignored": {},
        },
        {
            "file": "good.json",
            "ok": True,
            "errors": [],
            "warnings": ["good.json: network.allow_domain[0]: * allows every host"],
            "services": [],
            "ignored": {"good.json": ["meta"]},
        },
    ]


PROFILE = {
    "extends": "base",
    "network": {
        "proxy_allow": ["b.com", {"host": "a.com", "paths": ["/v1/**"]}],
        "credentials": ["c"],
        "custom_credentials": {
            "c": {
                "upstream": "https://c.com",
                "auth": {
                    "token_url": "https://c.com",
                    "client_id": "i",
                    "client_secret": "s3cret",
                    "extra_params": {"x": "s3cret"},
                },
            }
        },
    },
}


def test_every_value_is_shown_with_its_source(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the profile and its bases, in tabs for a pipe; what may be a secret is not shown."""
    write(directory, "base.json", {"network": {"allow_domain": ["a.com"], "open_port": [3000]}})
    status, out, _ = run(capsys, "show", write(directory, "p.json", PROFILE))
    assert status == 0
    custom = "network.custom_credentials.c"
    assert [line.split("\t") for line in out.splitlines()] == [
        ["network.allow_domain[0].domain", '"a.com"', "p.json: network.proxy_allow[1]"],
        [
            "network.allow_domain[0].endpoints[0]",
            '{"method": "*", "path": "/v1/**"}',
            "p.json: network.proxy_allow[1].paths[0]",
        ],
        ["network.allow_domain[1]", '"b.com"', "p.json: network.proxy_allow[0]"],
        ["network.credentials[0]", '"c"', "p.json: network.credentials[0]"],
        ["network.open_port[0]", "3000", "base.json: network.open_port[0]"],
        [f"{custom}.upstream", '"https://c.com"', f"p.json: {custom}.upstream"],
        [f"{custom}.auth.token_url", '"https://c.com"', f"p.json: {custom}.auth.token_url"],
        [f"{custom}.auth.client_id", '"i"', f"p.json: {custom}.auth.client_id"],
        [f"{custom}.auth.client_secret", '"(not shown)"', f"p.json: {custom}.auth.client_secret"],
        [f"{custom}.auth.extra_params.x", '"(not shown)"', f"p.json: {custom}.auth.extra_params.x"],
        ["services[0].name", '"c"', "p.json: network.credentials[0]"],
        ["services[0].upstream", '"https://c.com:443"', "p.json: network.credentials[0]"],
        ["services[0].unavailable", '"OAuth 2 is not supported yet"', "p.json: network.credentials[0]"],
    ]
    assert "s3cret" not in out


SERVICES = {
    "network": {
        "credentials": ["github", "bot"],
        "custom_credentials": {
            "bot": {
                "upstream": "https://api.example.com/base/",
                "credential_key": "op://vault/item/field",
                "env_var": "BOT",
                "inject_mode": "url_path",
                "path_pattern": "/bot{}/",
                "endpoint_policy": {
                    "deny": [{"method": "*", "path": "/x"}],
                    "allow": [{"method": "GET", "path": "/**"}],
                },
                "rate_limit": {"requests_per_minute": 60},
            }
        },
    }
}


def test_services_are_shown(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is in use comes to what: also of a shipped definition, and without the part that says what is kept where."""
    file = write(directory, "p.json", SERVICES)
    _, out, _ = run(capsys, "show", "--json", file)
    found = {row["path"]: row["value"] for row in json.loads(out)}
    assert found["network.custom_credentials.bot.credential_key"] == "op://vault/item/<redacted>"
    services = {path: value for path, value in found.items() if path.startswith("services")}
    assert services == {
        "services[0].name": "github",
        "services[0].upstream": "https://api.github.com:443",
        "services[0].credential_key": "env://GITHUB_TOKEN",
        "services[0].injected": "Authorization: token {}",
        "services[0].requests": ["every request"],
        "services[0].base_url_env_var": "GITHUB_BASE_URL",
        "services[0].env_var": "GITHUB_TOKEN",
        "services[1].name": "bot",
        "services[1].upstream": "https://api.example.com:443/base",
        "services[1].credential_key": "op://vault/item/<redacted>",
        "services[1].injected": "the path /bot{}/",
        "services[1].requests": ["deny * /x", "allow GET /**", "deny all else"],
        "services[1].base_url_env_var": "BOT_BASE_URL",
        "services[1].env_var": "BOT",
        "services[1].rate_limit": "60 a minute, 5 at once",
    }
    assert "field" not in json.dumps([services, found["network.custom_credentials.bot.credential_key"]])


def test_a_check_lists_services(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line each, and for programs what `show` has."""
    file = write(directory, "p.json", SERVICES)
    _, out, _ = run(capsys, "check", file)
    github = "github  https://api.github.com:443  env://GITHUB_TOKEN in Authorization: token {}  every request"
    bot = "bot  https://api.example.com:443/base  op://vault/item/<redacted> in the path /bot{}/"
    rules = "deny * /x, allow GET /**, deny all else"
    assert out.splitlines() == ["p.json: ok", f"p.json: service {github}", f"p.json: service {bot}  {rules}"]
    _, out, _ = run(capsys, "check", "--json", file)
    assert [each["name"] for each in json.loads(out)[0]["services"]] == ["github", "bot"]


@pytest.mark.parametrize(
    ("keys", "placed"),
    [
        ({}, "Authorization: Bearer {}"),
        ({"inject_header": "x-api-key"}, "x-api-key: {}"),
        ({"inject_mode": "basic_auth"}, "Authorization: Basic {}"),
        ({"inject_mode": "query_param", "query_param_name": "key"}, "the query key={}"),
        ({"inject_mode": "url_path", "path_pattern": "/a{}", "path_replacement": "/b{}"}, "the path /b{}"),
    ],
)
def test_where_a_credential_stands_is_shown(
    directory: Path, capsys: pytest.CaptureFixture[str], keys: dict[str, str], placed: str
) -> None:
    """As it is sent, not as it is configured."""
    custom = {"c": {"upstream": "https://a.com", "credential_key": "env://K"} | keys}
    file = write(directory, "p.json", {"network": {"credentials": ["c"], "custom_credentials": custom}})
    _, out, _ = run(capsys, "check", "--json", file)
    assert json.loads(out)[0]["services"][0]["injected"] == placed


def test_an_intercepted_host_is_shown_as_one(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the rest of its entry."""
    file = write(directory, "p.json", {"network": {"allow_domain": [{"domain": "a.com", "intercept": "always"}]}})
    _, out, _ = run(capsys, "show", file)
    assert [line.split("\t")[:2] for line in out.splitlines()] == [
        ["network.allow_domain[0].domain", '"a.com"'],
        ["network.allow_domain[0].intercept", '"always"'],
    ]


def test_people_get_columns(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal every column begins at one place."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    file = write(
        directory, "p.json", {"network": {"allow_domain": ["a.com"], "deny_domain": ["very.long.example.com"]}}
    )
    _, out, _ = run(capsys, "show", file)
    assert len({line.index("p.json") for line in out.splitlines()}) == 1
    assert "\t" not in out


def test_a_merged_profile_is_shown_as_json(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same rows, and what takes an inherited value away among them."""
    file = write(directory, "p.json", {"network": {"network_profile": None, "credentials": [], "block": True}})
    _, out, _ = run(capsys, "show", file, "--json")
    assert [(row["path"], row["value"]) for row in json.loads(out)] == [
        ("network.block", True),
        ("network.network_profile", None),
        ("network.credentials", []),
    ]


def test_a_profile_with_a_mistake_is_not_shown(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its mistakes are."""
    status, out, err = run(capsys, "show", write(directory, "p.json", {"netwrok": {}}))
    assert (status, out) == (2, "")
    assert err.startswith("p.json: netwrok: no such key")


def test_a_terminal_gets_no_control_characters(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the profile, or its name, has in it."""
    name = write(directory, "p\x1b[31m.json", {"network": {"\x1b]0;x\x07": 1, "allow_domain": ["\x1b[2J"]}})
    _, out, err = run(capsys, "check", name)
    assert "\x1b" not in out + err
    assert "\x07" not in out + err


def test_what_is_shown_turns_no_text_around(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """C1, DEL and bidirectional characters of a profile's text are escapes, in every form that `show` has."""
    nasty = "a\u009b31m\u202ecilbup\x7f\u2066b"
    auth = {"token_url": "https://c.com", "client_id": nasty, "client_secret": "env://X", "extra_params": {nasty: "x"}}
    keys = {"custom_credentials": {"c": {"upstream": "https://c.com", "auth": auth}}}
    name = write(directory, f"p{os.fsdecode(nasty.encode())}.json", {"network": keys, "command_policies": {}})
    for action in (["check"], ["check", "--json"], ["show"], ["show", "--json"]):
        status, out, err = run(capsys, *action, name)
        assert status == 0
        assert "cilbup" in out
        assert all(each.isprintable() for line in (out + err).split("\n") for each in line.replace("\t", ""))


def test_what_is_no_file_is_not_read(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a pipe that nobody writes to, nor a device without an end, nor a socket; as a profile or as its base."""
    os.mkfifo(directory / "pipe.json")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("socket.json")
    listener.close()
    for path in ("./pipe.json", "/dev/zero", "./socket.json"):
        base = write(directory, "p.json", {"extends": path})
        for file in (base, path):
            status, out, _ = run(capsys, "check", file)
            assert status == 2
            assert re.search("not a regular file|No such device or address", out), out
            assert out.splitlines()[-1] == f"{file}: 1 mistake"


def test_a_file_that_is_too_large_is_read_no_further(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Alone, and with what it extends; a hole of a terabyte is refused at its first mebibyte."""
    with (directory / "hole.json").open("wb") as file:
        file.truncate(1 << 40)
    half = json.dumps({"meta": "x" * 600_000})
    for name in ("a.json", "b.json"):
        (directory / name).write_text(half)
    for file, line in (
        ("hole.json", "hole.json: more than 1048576 bytes"),
        (write(directory, "p.json", {"extends": "./hole.json"}), "p.json: extends: hole.json: more than 1048576 bytes"),
        (
            write(directory, "q.json", {"extends": ["./a.json", "./b.json"]}),
            "q.json: extends[1]: b.json and what was read before it: more than 1048576 bytes",
        ),
    ):
        status, out, _ = run(capsys, "check", file)
        assert (status, out.splitlines()) == (2, [line, f"{file}: 1 mistake"])
    assert run(capsys, "check", "a.json")[0] == 0


HOSTILE = {
    "nested": b'{"meta":' + b"[" * 900 + b"1," * 500_000 + b"1" + b"]" * 900 + b"}",
    "nested_less": b'{"meta":' + b"[" * 120 + b"1," * 500_000 + b"1" + b"]" * 120 + b"}",
    "twice": b'{"meta":' + b"[" * 120 + b'{"a":1,"a":1},' * 70_000 + b"1" + b"]" * 120 + b"}",
    "long_place": b'{"network":{"custom_credentials":{"'
    + b"k" * 500_000
    + b'":{'
    + b"".join(b'"%d":1,' % i for i in range(50_000))
    + b'"b":1}}}}',
    "ranges": json.dumps({"network": {"open_port_range": [[1 + i, 65535] for i in range(300)]}}).encode(),
    "choices": json.dumps(
        {"network": {"allow_domain": [{"domain": "a.com", "paths": [f"/{i}" + "{a,b}" * 6 for i in range(9000)]}]}}
    ).encode(),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_profile_takes_much_memory(directory: Path, name: str) -> None:
    """A mebibyte of the worst is judged, or refused, in 512 of them."""
    (directory / "p.json").write_bytes(HOSTILE[name])
    code = "import sys; from nono_ebpf.cli import main; sys.exit(main(['profile', 'check', 'p.json']))"
    done = subprocess.run(
        [sys.executable, "-c", f"import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29)); {code}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode in {0, 2}, done.stderr[-500:]
    assert done.stdout


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON that editors read."""
    status, out, _ = run(capsys, "schema")
    assert status == 0
    assert json.loads(out)["$schema"] == "https://json-schema.org/draft/2020-12/schema"
