"""Anthropic's SDK: argv is a name, and "all" to use more than the messages. Prints what came back as JSON.

Key and address are what the SDK itself finds in the environment. The last response is one that the service holds back.
"""

import asyncio
import json
import sys

import anthropic

ASKED = {"model": "kit-small", "max_tokens": 10, "messages": [{"role": "user", "content": "Where from?"}]}

name, *more = sys.argv[1:]
SETTINGS = {"default_headers": {"X-Client": name}, "max_retries": 0, "timeout": 400}
client = anthropic.Anthropic(**SETTINGS)


def streamed() -> list[str]:
    """The texts of a stream which goes on when we say so: that is after its first."""
    stop, texts = f"{name}-messages", []
    with client.messages.stream(**ASKED, extra_headers={"X-Stop": stop}) as stream:
        for text in stream.text_stream:
            if not texts:
                client.models.list(extra_headers={"X-Go-On": stop})
            texts.append(text)
    return texts


async def asynchronous() -> str:
    """The same question, asked by the client for asyncio."""
    async with anthropic.AsyncAnthropic(**SETTINGS) as other:
        message = await other.messages.create(**ASKED)
        return message.content[0].text


def refused(key: str | None, model: str) -> str:
    """What the SDK makes of a problem."""
    other = client if key is None else client.with_options(api_key=key)
    try:
        other.messages.create(**(ASKED | {"model": model}))
    except anthropic.APIStatusError as error:
        return f"{type(error).__name__} {error.status_code}"
    return "nothing"


told = {"message": client.messages.create(**ASKED).content[0].text, "message stream": streamed()}
if more:
    told |= {
        "asyncio": asyncio.run(asynchronous()),
        "no such model": refused(None, "kit-none"),
        "somebody else's key": refused("sk-ant-somebody-elses-0123456789", "kit-small"),
    }
told["models"] = [model.id for model in client.models.list(extra_headers={"X-Hold": name})]
print(json.dumps(told))
