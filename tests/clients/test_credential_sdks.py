"""The SDKs of OpenAI and Anthropic as their makers ship them, whose key is the phantom and whose addresses are real.

All in one sandbox and at once, each told of us by its road: nothing but its key (it is redirected), the proxy as well,
or the address that stands for the service. While each waits for a response, the sandbox is searched for the real keys.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest
from kit.api_server import (
    MODELS,
    REPLY,
    WORDS,
    Service,
    Wanted,
    anthropic,
    anthropic_problem,
    openai,
    openai_problem,
)
from kit.credentials import new_secret
from kit.errands import Errand, Outcome, Road
from kit.services import Services, assert_not_found, assert_not_told

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kit.world import World

pytestmark = [pytest.mark.root, pytest.mark.kernel]

PROGRAMS = Path(__file__).parent / "programs"
SECRETS = {name: new_secret(name) for name in ("openai", "anthropic")}
FIELDS = {"openai": ("Authorization", f"Bearer {SECRETS['openai']}"), "anthropic": ("x-api-key", SECRETS["anthropic"])}
ROADS: tuple[Road, ...] = get_args(Road)
# Besides the models, which are asked for last, and once by each stream that has come to its first words.
ANSWERS: Mapping[str, Mapping[str, object]] = {
    "openai": {
        "chat": REPLY,
        "chat stream": list(WORDS),
        "response": REPLY,
        "response stream": list(WORDS),
        "uploaded": True,
        "no such model": "NotFoundError 404",
        "somebody else's key": "AuthenticationError 401",
    },
    "anthropic": {
        "message": REPLY,
        "message stream": list(WORDS),
        "asyncio": REPLY,
        "no such model": "NotFoundError 404",
        "somebody else's key": "AuthenticationError 401",
    },
}
# Requests that arrive at the service: of all answers (not the one with another's key), and of the chat alone.
REQUESTS = {("openai", True): 9, ("openai", False): 4, ("anthropic", True): 6, ("anthropic", False): 4}


@pytest.fixture(scope="module")
def services(_world: World) -> Iterator[Services]:
    """Both, at the names that the SDKs know."""
    hosts = {
        "api.openai.com": Service(Wanted(*FIELDS["openai"]), openai, openai_problem),
        "api.anthropic.com": Service(Wanted(*FIELDS["anthropic"]), anthropic, anthropic_problem),
    }
    with Services(_world, hosts) as made:
        made.vault.keep("openai", SECRETS["openai"])
        yield made


@pytest.fixture(scope="module")
def outcome(services: Services) -> Outcome:
    """How all ended. The one key is in a file, the other in the environment that nono-ebpf is started with."""
    credentials = {
        "openai": {
            "upstream": "https://api.openai.com/v1",
            "credential_key": services.vault.reference("openai"),
            "env_var": "OPENAI_API_KEY",
        },
        "anthropic": {
            "upstream": "https://api.anthropic.com",
            "credential_key": "env://ANTHROPIC_API_KEY",
            "inject_header": "x-api-key",
            "env_var": "ANTHROPIC_API_KEY",
        },
    }
    errands = [_errand(sdk, road) for sdk in SECRETS for road in ROADS]
    return services.run(credentials, errands, secrets=SECRETS, env={"ANTHROPIC_API_KEY": SECRETS["anthropic"]})


def _errand(sdk: str, road: Road) -> Errand:
    name = f"{sdk}-{road}"
    more = ["all"] if road == "redirect" else []
    return Errand(name, [sys.executable, str(PROGRAMS / f"with_{sdk}.py"), name, *more], road)


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("sdk", SECRETS)
def test_sdk(services: Services, outcome: Outcome, sdk: str, road: Road) -> None:
    """All of it works, streams come as they are sent, and the service sees its key; the sandbox never has it."""
    name, whole = f"{sdk}-{road}", road == "redirect"
    step = outcome.step(name)
    assert step.returncode == 0, step
    told = json.loads(step.stdout)
    assert told.pop("models") == list(MODELS)
    assert told == {key: value for key, value in ANSWERS[sdk].items() if whole or key in told}
    assert len(told) == len(ANSWERS[sdk]) or not whole
    assert services.was_sent(outcome, name, *FIELDS[sdk]) == REQUESTS[sdk, whole]
    assert_not_found(outcome, name, *SECRETS)


def test_the_roads(outcome: Outcome) -> None:
    """Each came on the road that it was told of."""
    modes = {each["mode"] for each in outcome.requests()}
    assert modes == {"redirect_intercept", "connect_intercept", "reverse"}


def test_nothing_is_told(outcome: Outcome) -> None:
    """No stream and no record has a key."""
    assert_not_told(outcome, *SECRETS.values())
