"""The command line: parses, checks, hands over. Messages go to stderr; stdout belongs to the sandboxed command.

Exit status: the command's own; 2 for a mistake in what was asked, 125 for a failure of ours, 126 and 127 as in a shell.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from nono_ebpf import __version__
from nono_ebpf.errors import ConfigError, InvalidAuthority, LoadError, NonoError, NotSupported, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE_ERROR, OUR_FAULT = 2, 125
PORT_MAX = 65535
DAYS_MAX = 365  # nono's
# Commands that wait for no other's parser: what that of `credential` needs takes longer to load than all the rest.
_ALONE = frozenset(("run", "why", "profile", "doctor", "demo", "presets"))

_DESCRIPTION = """\
A network sandbox for untrusted programs. Every TCP connection of the command, whatever client makes it and
whatever proxy settings it heeds, is taken by the kernel to a proxy that lets through what the rules name.
"""
_RUN_DESCRIPTION = """\
Run CMD in a network sandbox: a cgroup whose connections eBPF hooks redirect, in a network namespace that holds
nothing but loopback. Nothing is reachable but what a rule allows; without a rule, nothing is.
"""
_WHY_DESCRIPTION = """\
Judge HOST as a sandbox with these rules would, and say which rule decides and what would change that. It is the same
function that judges connections; a name that the rules allow is looked up, so that its addresses are judged as well.
With --method or --path it is about one request, inside TLS but on port 80, and says whose credential is put in.
Exit status: 0 allowed, 1 denied.
"""
_PROFILE_DESCRIPTION = """\
A profile is nono's: JSON with comments. Its network, and the profiles that it extends, are obeyed; what it says about
files and commands is left to nono.
"""
_RULES = """\
rules:
  A host is NAME, *.NAME (any depth below it, not itself), an address, or * for every host. Without a port it means
  ports 80 and 443; HOST:PORT means that port alone. A denial wins over what allows. Cloud metadata services and
  link-local addresses are denied whatever a rule says, this host's own addresses unless a rule lists the port.
  @NAME stands for a group of hosts: @python @npm @github @anthropic @openai ... (see `nono-ebpf presets`).
  http://HOST means port 80 alone and https://HOST port 443, unless the URL has a port. One with a path allows these
  requests only: * is any part of one segment, ** any number of them. Such a host is never tunnelled, whatever else
  allows it.

interception:
  TLS is ended by the proxy for hosts with endpoint rules, for services with a credential and for hosts of --intercept,
  and for no other: there every request is judged and logged, and sent on over TLS that is verified. The CA that
  clients see is made for the run, is good for these hosts alone, and is in the bundles that the command is shown.
  A client that pins certificates or needs HTTP/2 fails there; everything else is tunnelled unread.

credentials:
  --credential SERVICE lets the command use a service whose key it never has. It calls the host as always, or
  <SERVICE>_BASE_URL; where a client wants a key, it finds the session token in the usual variable (OPENAI_API_KEY,
  ANTHROPIC_API_KEY, GITHUB_TOKEN ...), which is worth nothing elsewhere. The proxy takes the token out and puts the
  credential in, over verified TLS to this service only. A request that shows any other credential is refused (401), one
  that no endpoint rule allows as well (403), and while the credential cannot be had, all are (503): none is ever sent
  without it. A service is allowed by being used; --deny-domain wins.
  Where a credential is kept is a reference, never the secret: env://NAME (taken out of the command's environment),
  file:///path (hidden from the command, read again when it changes), op://vault/item/field, bw://item/field,
  keyring://service/account or the account's name alone, systemd-creds://NAME, credentials-directory://NAME.
  `nono-ebpf credential set|list|test NAME` keeps some and tries them. Services of your own are a profile's
  custom_credentials.

profiles:
  Options add to what a profile says, and --network-profile, --upstream-proxy and --upstream-auth take its place.
  `nono-ebpf profile check FILE` finds every mistake in one. nono's other names of options are taken as well:
  --allow-proxy, --proxy-allow, --proxy-credential, --external-proxy, --external-proxy-bypass, --allow-port,
  --allow-bind, --net-block.

files:
  The file system is not confined: the command reads and writes what its account may. Sockets of the host's
  daemons (docker, D-Bus, ssh-agent, tmux ...) are hidden, except those named with --allow-socket.

exit status:
  CMD's own; 2 a mistake in what was asked; 125 a failure of nono-ebpf; 126, 127 CMD cannot be run or found.

examples:
  nono-ebpf run --allow-domain @python -- pip download six
  nono-ebpf run --allow-domain api.example.com --audit-log agent.ndjson -- my-agent
  nono-ebpf run --profile agent.json --allow-domain 'https://api.internal/v1/**' -- my-agent
  nono-ebpf run --credential anthropic --allow-domain @npm -- my-agent
  nono-ebpf run --credential github --allow-endpoint 'github:GET:/repos/**' -- my-agent
  nono-ebpf run --intercept api.example.com --audit-log agent.ndjson -- my-agent
  nono-ebpf run --upstream-proxy proxy.corp:3128 --upstream-auth env://PROXY_AUTH --allow-domain @npm -- npm ci
  nono-ebpf run --allow-domain db.internal:5432 --resolve db.internal:10.0.0.7 -- psql -h db.internal
"""


class _Parser(argparse.ArgumentParser):
    """One line on a mistake, not the whole usage; no abbreviated options, which a later option would break."""

    def __init__(self, **arguments: Any) -> None:  # noqa: ANN401  # whatever argparse takes
        super().__init__(allow_abbrev=False, **arguments)

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The whole command line. `command`: the one that is used, if that is known; others may then be left out."""
    parser = _Parser(prog="nono-ebpf", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"nono-ebpf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _add_run(commands)
    _add_why(commands)
    _add_profile(commands)
    if command not in _ALONE:
        from nono_ebpf import credential

        credential.add_parser(commands)
    doctor = commands.add_parser("doctor", help="try what a sandbox needs of this machine and say what is missing")
    doctor.add_argument("--profile", "-p", metavar="FILE", help="also whether the credentials of this one can be read")
    doctor.add_argument("--credential", metavar="NAME", action="append", default=[], help="also whether this one can")
    doctor.add_argument("--shared-secrets", action="store_true", help="as `run` is told: a file may be open to others")
    doctor.add_argument("--json", action="store_true", help="for machines")
    commands.add_parser("demo", help="see it work: test hosts, real clients, what was let through and what was not")
    presets = commands.add_parser("presets", help="list the groups of hosts that @NAME stands for, and services")
    presets.add_argument("--json", action="store_true", help="for machines")
    return parser


def _port(text: str) -> int:
    """A port as an option's value."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= PORT_MAX):
        raise argparse.ArgumentTypeError(f"{text!a} is not a port: write a number from 1 to {PORT_MAX}")
    return int(text)


def _days(text: str) -> int:
    """A number of days as an option's value."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= DAYS_MAX):
        raise argparse.ArgumentTypeError(f"{text!a} is not a number of days: write one from 1 to {DAYS_MAX}")
    return int(text)


def _add_list(group: argparse._ArgumentGroup, name: str, *others: str, **said: Any) -> None:  # noqa: ANN401  # as above
    """An option that may be repeated; `others` are nono's other names of it, which no help needs to repeat."""
    arguments = {"dest": name.removeprefix("--").replace("-", "_"), "action": "append", "default": []} | said
    group.add_argument(name, **arguments)
    _add_names(group, others, arguments)


def _add_value(group: argparse._ArgumentGroup, name: str, *others: str, **said: Any) -> None:  # noqa: ANN401  # as above
    """An option with one value, and nono's other names of it."""
    arguments = {"dest": name.removeprefix("--").replace("-", "_")} | said
    group.add_argument(name, **arguments)
    _add_names(group, others, arguments)


def _add_names(group: argparse._ArgumentGroup, names: Sequence[str], arguments: dict[str, Any]) -> None:
    for other in names:
        group.add_argument(other, **(arguments | {"help": argparse.SUPPRESS}))


def _add_rules(parser: argparse.ArgumentParser) -> None:
    """What `run` obeys and `why` explains."""
    rules = parser.add_argument_group("what it may reach")
    rules.add_argument(
        "--profile", "-p", metavar="FILE", help="a nono profile (JSON), or the name of one in ~/.config/nono/profiles"
    )
    _add_list(rules, "--extends", metavar="NAME", help="on top of this profile: a name or a file; may be repeated")
    _add_value(
        rules,
        "--network-profile",
        metavar="NAME",
        help="presets that belong together: minimal, developer, enterprise ...",
    )
    _add_list(
        rules,
        *("--allow-domain", "--allow-proxy", "--proxy-allow"),
        metavar="HOST[:PORT]|URL",
        help="let it reach this host, on the port of a URL, or of one with a path these requests only; may be repeated",
    )
    _add_list(rules, "--deny-domain", metavar="HOST[:PORT]", help="never this one, whatever allows it; may be repeated")
    rules.add_argument("--allow-net", action="store_true", help="every host and port but what is denied")
    rules.add_argument("--block-net", action="store_true", help="nothing, whatever else is said")
    rules.add_argument("--net-block", dest="block_net", action="store_true", help=argparse.SUPPRESS)
    _add_list(
        rules,
        "--resolve",
        metavar="NAME:ADDRESS",
        help="NAME has this address, whatever DNS says (split DNS, a service on this host); may be repeated",
    )
    rules.add_argument(
        "--nono-globs", action="store_true", help="in paths of requests, * and ? match slashes too, as nono's do"
    )
    _add_list(
        rules,
        "--intercept",
        metavar="HOST[:PORT]",
        help="let it reach this host, and look at every request, inside TLS too; may be repeated",
    )
    _add_credentials(parser.add_argument_group("with a credential"))
    _add_ports(parser.add_argument_group("ports"))
    _add_upstream(parser.add_argument_group("through a proxy"))


def _add_credentials(credentials: argparse._ArgumentGroup) -> None:
    _add_list(
        credentials,
        *("--credential", "--proxy-credential"),
        metavar="SERVICE",
        help="let it use this service, which the proxy puts the credential in for: openai, anthropic, github, gitlab, "
        "gemini, google-ai, or one of the profile's custom_credentials; may be repeated",
    )
    _add_list(
        credentials,
        "--allow-endpoint",
        metavar="SERVICE:METHOD:/PATH",
        help="of a service in use these requests only, with * for any method; may be repeated",
    )
    credentials.add_argument(
        "--shared-secrets",
        action="store_true",
        help="take a credential's file although other accounts can read it, as Kubernetes mounts it",
    )


def _add_ports(ports: argparse._ArgumentGroup) -> None:
    _add_list(
        ports,
        *("--open-port", "--allow-port"),
        metavar="PORT",
        type=_port,
        help="let it reach this port of this machine's own loopback; may be repeated",
    )
    _add_list(
        ports,
        *("--listen-port", "--allow-bind"),
        metavar="PORT",
        type=_port,
        help="let it listen there, where --landlock-ports refuses that; may be repeated",
    )
    _add_list(
        ports,
        "--allow-connect-port",
        metavar="PORT",
        type=_port,
        help="a host without a port stands for this one, too, besides 80 and 443; may be repeated",
    )


def _add_upstream(upstream: argparse._ArgumentGroup) -> None:
    _add_value(
        upstream,
        *("--upstream-proxy", "--external-proxy"),
        metavar="PROXY",
        help="reach hosts through HOST:PORT or its URL (https:// for TLS to it); env: the one that HTTPS_PROXY names",
    )
    _add_list(
        upstream,
        *("--upstream-bypass", "--external-proxy-bypass"),
        metavar="HOST",
        help="but this one directly: a host, *.DOMAIN or a network; may be repeated",
    )
    _add_value(
        upstream,
        "--upstream-auth",
        metavar="REF",
        help="where USER:PASSWORD for the proxy is kept: env://NAME or file:///path",
    )


def _add_why(commands: argparse._SubParsersAction[_Parser]) -> None:
    why = commands.add_parser(
        "why",
        help="explain what the rules say about a host",
        description=_WHY_DESCRIPTION,
        usage="nono-ebpf why --host HOST[:PORT] | --service NAME [OPTION]...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    question = why.add_argument_group("the question")
    target = question.add_mutually_exclusive_group(required=True)
    target.add_argument("--host", metavar="HOST[:PORT]", help="a name or an address, in any spelling")
    target.add_argument("--service", metavar="NAME", help="a service with a credential, by its URL at the proxy")
    question.add_argument("--port", type=int, metavar="PORT", help="where it would be connected to (default: 443)")
    question.add_argument("--method", metavar="METHOD", help="of a request, rather than of a connection (default: GET)")
    question.add_argument("--path", metavar="PATH", help="the same: what would be asked for (default: /)")
    why.add_argument("--json", action="store_true", help="for machines")
    _add_rules(why)


def _add_profile(commands: argparse._SubParsersAction[_Parser]) -> None:
    profile = commands.add_parser(
        "profile",
        help="check profiles, show what they add up to, print the schema for editors",
        description=_PROFILE_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = profile.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=_Parser)
    check = actions.add_parser("check", help="every mistake at once; exit status 2 when there is one")
    check.add_argument("files", metavar="FILE", nargs="+", help="profiles, or names of them in ~/.config/nono/profiles")
    show = actions.add_parser("show", help="every value of a profile and of what it extends, and where it was written")
    show.add_argument("file", metavar="FILE", help="a profile, or the name of one in ~/.config/nono/profiles")
    show.add_argument("--extends", metavar="NAME", action="append", default=[], help="on top of this one, too")
    for action in (check, show):
        action.add_argument("--json", action="store_true", help="for machines")
    actions.add_parser("schema", help='print a JSON Schema: save it, and name the file as "$schema" in profiles')


def _add_run(commands: argparse._SubParsersAction[_Parser]) -> None:
    run = commands.add_parser(
        "run",
        help="run a command in a sandbox",
        description=_RUN_DESCRIPTION,
        epilog=_RULES,
        usage="nono-ebpf run [OPTION]... -- CMD [ARG]...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_rules(run)
    surroundings = run.add_argument_group("its surroundings")
    surroundings.add_argument(
        "--upstream-ca",
        metavar="FILE",
        help="certificates (PEM) to trust besides the system's, for the command, for TLS to an upstream proxy and to "
        "hosts whose TLS is intercepted",
    )
    surroundings.add_argument("--user", metavar="NAME", help="account to run as (default: who called sudo); not root")
    surroundings.add_argument(
        "--allow-socket",
        metavar="PATH",
        action="append",
        default=[],
        help="leave this unix socket of the host in sight",
    )
    surroundings.add_argument(
        "--allow-device",
        metavar="PATH",
        action="append",
        default=[],
        help="leave this device of the host in sight, such as /dev/dri or /dev/kvm",
    )
    surroundings.add_argument(
        "--no-proxy-env",
        action="store_true",
        help="do not set HTTP_PROXY and its like; every rule holds either way",
    )
    surroundings.add_argument(
        "--landlock-ports",
        action="store_true",
        help="a second lock: Landlock refuses TCP ports that no rule names, and listening (Linux 6.7)",
    )
    _add_authority(run.add_argument_group("where TLS is intercepted"))
    output = run.add_argument_group("what it tells")
    output.add_argument("--audit-log", metavar="FILE", help="append one JSON object per decision, as it is made")
    output.add_argument("--verbose", "-v", action="store_true", help="a line per decision on stderr")
    output.add_argument("--dry-run", action="store_true", help="check everything and say what would be done")
    run.add_argument("--from-sudo", help=argparse.SUPPRESS)
    run.add_argument("--carried", help=argparse.SUPPRESS)
    run.add_argument("argv", metavar="CMD", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def _add_authority(authority: argparse._ArgumentGroup) -> None:
    authority.add_argument(
        "--proxy-ca-cert",
        metavar="FILE",
        help="sign this run's CA with a CA of yours, which clients trust already; with --proxy-ca-key",
    )
    authority.add_argument("--proxy-ca-key", metavar="FILE", help="its private key (PEM)")
    authority.add_argument(
        "--proxy-ca-validity",
        metavar="DAYS",
        type=_days,
        help="how long this run's CA is valid: 1 to 365 (default: 1)",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The `nono-ebpf` command; its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = build_parser(arguments[0] if arguments else None).parse_args(arguments)
    try:
        return _dispatch(options, arguments)
    except (ConfigError, InvalidAuthority, NotSupported) as error:
        return _fail(error, USAGE_ERROR)
    except LoadError as error:
        return _fail(error, OUR_FAULT, "run `nono-ebpf doctor` for the details")
    except (NonoError, OSError) as error:
        return _fail(error, OUR_FAULT)


def _fail(error: Exception, status: int, hint: str = "") -> int:
    text = " ".join(f"{error}{'; ' if hint else ''}{hint}".split())
    sys.stderr.write(f"nono-ebpf: {printable(text)}\n")
    return status


def _show_presets(*, as_json: bool) -> int:
    from nono_ebpf.config import load, shown
    from nono_ebpf.config.files import read_profile
    from nono_ebpf.config.options import Overrides
    from nono_ebpf.config.presets import network_policy, presets

    hosts = {name: preset.allow_domain for name, preset in presets().items()}
    if as_json:
        sys.stdout.write(json.dumps(hosts, indent=2) + "\n")
        return 0
    sys.stdout.writelines(f"@{name}  {' '.join(listed)}\n" for name, listed in hosts.items())
    sys.stdout.writelines(
        f"--network-profile {name}  {' '.join(f'@{group}' for group in each.groups)}\n"
        for name, each in network_policy().network_profiles.items()
    )
    services = load.settings(
        Overrides(credential=tuple(network_policy().credentials)), read_profile, home="", environment={}
    )
    sys.stdout.writelines(f"--credential {shown.line(route)}\n" for route in services.routes)
    return 0


def _dispatch(options: argparse.Namespace, arguments: list[str]) -> int:
    match options.command:
        case "run":
            from nono_ebpf import prepare

            return prepare.run(options, arguments)
        case "why":
            from nono_ebpf import why

            return why.main(options)
        case "profile":
            from nono_ebpf import profile

            return profile.main(options)
        case "credential":
            from nono_ebpf import credential

            return credential.main(options)
        case "doctor":
            from nono_ebpf import doctor

            return doctor.main(
                as_json=options.json,
                profile=options.profile,
                credentials=options.credential,
                shared_secrets=options.shared_secrets,
            )
        case "demo":
            from nono_ebpf.demo import main as demo

            return demo()
        case _:
            return _show_presets(as_json=options.json)
