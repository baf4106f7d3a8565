"""Every bench, one after the other: tables, JSON and plots in bench/results."""

import subprocess
import sys

BENCHES = (
    "bench.journal",
    "bench.broker",
    "bench.routing",
    "bench.tokens",
    "bench.failover",
    "bench.cancel",
    "bench.sampling",
    "bench.tools",
    "bench.stages",
    "bench.ledger",
    "bench.scale",
)

for bench in BENCHES:
    print(f"== {bench}", flush=True)
    subprocess.run([sys.executable, "-m", bench], check=True)
