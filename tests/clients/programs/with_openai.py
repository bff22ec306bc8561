"""OpenAI's SDK: argv is a name, and "all" to use more than the chat. Prints what came back as JSON.

Key and address are what the SDK itself finds in the environment. The last response is one that the service holds back.
"""

import hashlib
import json
import sys

import openai

MESSAGES = [{"role": "user", "content": "Where from?"}]
FILE = b"".join(number.to_bytes(4, "big") for number in range(1_500_000))

name, *more = sys.argv[1:]
client = openai.OpenAI(default_headers={"X-Client": name}, max_retries=0, timeout=400)


def streamed(stream: object, stop: str) -> list[str]:
    """The texts of a stream which goes on when we say so: that is after its first."""
    texts = []
    for text in stream:
        if not texts:
            client.models.list(extra_headers={"X-Go-On": stop})
        texts.append(text)
    return texts


def chat_stream() -> list[str]:
    """Of the chat API."""
    stop = f"{name}-chat"
    stream = client.chat.completions.create(
        model="kit-small", messages=MESSAGES, stream=True, extra_headers={"X-Stop": stop}
    )
    return streamed((text for chunk in stream if (text := chunk.choices[0].delta.content)), stop)


def responses_stream() -> list[str]:
    """Of the responses API."""
    stop = f"{name}-responses"
    asked = {"model": "kit-large", "input": "Where from?", "stream": True}
    stream = client.responses.create(**asked, extra_headers={"X-Stop": stop})
    return streamed((event.delta for event in stream if event.type == "response.output_text.delta"), stop)


def uploaded() -> bool:
    """Whether a large file arrived as it is."""
    file = client.files.create(file=("kit.bin", FILE), purpose="assistants")
    return (file.bytes, file.id) == (len(FILE), f"file-{hashlib.sha256(FILE).hexdigest()}")


def refused(key: str | None, model: str) -> str:
    """What the SDK makes of a problem."""
    other = client if key is None else client.with_options(api_key=key)
    try:
        other.chat.completions.create(model=model, messages=MESSAGES)
    except openai.APIStatusError as error:
        return f"{type(error).__name__} {error.status_code}"
    return "nothing"


told = {
    "chat": client.chat.completions.create(model="kit-small", messages=MESSAGES).choices[0].message.content,
    "chat stream": chat_stream(),
}
if more:
    told |= {
        "response": client.responses.create(model="kit-large", input="Where from?").output_text,
        "response stream": responses_stream(),
        "uploaded": uploaded(),
        "no such model": refused(None, "kit-none"),
        "somebody else's key": refused("sk-somebody-elses-0123456789", "kit-small"),
    }
told["models"] = [model.id for model in client.models.list(extra_headers={"X-Hold": name})]
print(json.dumps(told))
