"""requests: argv is the address of a service, a name, and fields to send, as "Name: value". Prints what came back.

The last response is one that the service holds back by that name.
"""

import json
import sys

import requests

BODY = [bytes([number % 251]) * 1000 for number in range(2000)]

base, name, *lines = sys.argv[1:]
session = requests.Session()
session.headers.update({"X-Client": name} | dict(line.split(": ", 1) for line in lines))
who = session.get(f"{base}/who", timeout=180)
upload = session.post(f"{base}/upload", data=iter(BODY), timeout=180)  # chunked: of an iterator nobody knows the length
held = session.get(f"{base}/who", headers={"X-Hold": name}, timeout=400)
print(json.dumps([response.json() if response.ok else response.text for response in (who, upload, held)]))
