#!/usr/bin/env python3
"""instance.py GEN.PY OUT [arguments of GEN.PY]: runs the generator and writes what it made up as OUT/instance.json.

The generator prints only a summary and writes only its linear programs; the racks, machine classes and
workload groups themselves are taken from its variables here, so that every planner sees the same instance."""
import json, runpy, sys

gen, out, args = sys.argv[1], sys.argv[2], sys.argv[3:]
sys.argv = [gen, "--out", out, *args]
made = runpy.run_path(gen)
plain = lambda row: {k: sorted(v) if isinstance(v, frozenset) else v for k, v in row.items()}
with open(f"{out}/instance.json", "w") as f:
    json.dump({"classes": [plain(k) for k in made["K"]], "groups": [plain(g) for g in made["G"]],
               "weights": {str(p): w for p, w in made["W"].items()}, "greedy": made["res"]}, f)
