"""Own an embedded Valkey until killed: DIRECTORY kernel|watch. Prints its process id."""

import sys
import time
from pathlib import Path

from gateway.adapters.redis.embedded import EmbeddedValkey

if sys.argv[2] == "watch":
    sys.platform = "darwin"  # where no kernel binds a child to its parent
with EmbeddedValkey(Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    time.sleep(60)
