"""httpx: argv is the address of a service, a name, and fields to send, as "Name: value". Prints what came back.

The last response is one that the service holds back by that name.
"""

import json
import sys

import httpx

BODY = [bytes([number % 251]) * 1000 for number in range(2000)]

base, name, *lines = sys.argv[1:]
fields = {"X-Client": name} | dict(line.split(": ", 1) for line in lines)
with httpx.Client(headers=fields, timeout=400) as client:
    who = client.get(f"{base}/who")
    upload = client.post(f"{base}/upload", content=iter(BODY))
    held = client.get(f"{base}/who", headers={"X-Hold": name})
print(json.dumps([response.json() if response.is_success else response.text for response in (who, upload, held)]))
