"""Times one `az ml` call, inside `python -m local_workspace run`."""

import json
import subprocess
import sys
import time

CALL = ["az", "ml", "model", "list"]

for _ in sys.stdin:
    begin = time.perf_counter()
    subprocess.run(CALL, check=True, stdout=subprocess.DEVNULL)
    print(json.dumps({"seconds": time.perf_counter() - begin}), flush=True)
