"""Worker of test_network: joins its peers and tells on which addresses its own sockets listen."""

import os
from pathlib import Path

from harness.distributed.process_group import gather, join, leave
from harness.supervision.exit_codes import end_orderly


def listening() -> set[str]:
    """The hexadecimal addresses of /proc/net/tcp and tcp6 on which this process waits for others."""
    inodes = set()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            inodes.add(str(fd.readlink()))
        except OSError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            parts = line.split()
            if parts[3] == "0A" and f"socket:[{parts[9]}]" in inodes:
                found.add(parts[1].partition(":")[0])
    return found


def main() -> None:
    """Print it on rank 0, of all ranks."""
    join(cpu=True)
    every = gather(sorted(listening()))
    if os.environ["RANK"] == "0":
        print("listening", *sorted({address for addresses in every for address in addresses}), flush=True)
    leave()


if __name__ == "__main__":
    main()
    end_orderly(0)
