"""requests: argv is the URL; the body goes to stdout."""

import sys

import requests

response = requests.get(sys.argv[1], timeout=90, verify="/etc/ssl/certs/ca-certificates.crt")
response.raise_for_status()
sys.stdout.write(response.text)
