"""What this process takes of the machine's memory; imports nothing that would take any."""

import re
from pathlib import Path


def memory() -> dict[str, int]:
    """Bytes: resident now, resident at most, anonymous now, address space at most."""
    status = Path("/proc/self/status").read_text()
    names = {"resident": "VmRSS", "peak": "VmHWM", "anonymous": "RssAnon", "address_space": "VmPeak"}
    return {name: 1024 * int(re.search(rf"^{key}:\s+(\d+)", status, re.M)[1]) for name, key in names.items()}
