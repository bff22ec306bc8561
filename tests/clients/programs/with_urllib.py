"""urllib: argv is the URL; the body goes to stdout."""

import sys
from urllib.request import urlopen

with urlopen(sys.argv[1], timeout=90) as response:
    sys.stdout.write(response.read().decode())
