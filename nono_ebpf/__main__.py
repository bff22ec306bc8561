"""`python -m nono_ebpf` is the `nono-ebpf` command."""

import sys

from nono_ebpf.cli import main

sys.exit(main())
