"""Tables of VAEs beside published numbers: trained, evaluated, printed and written down.

    python benchmarks/vae_tables.py --table fashion --folder runs             # goes on where it was interrupted
    python benchmarks/vae_tables.py --table fashion --folder runs --rows gaussian vamp --seeds 0 --device cuda
    python benchmarks/vae_tables.py --table fashion --folder runs --write     # results to docs/results

Each table has a module of its own: `options` adds to the arguments, `run` yields a record for each run, which resumes,
and `text` makes the table of records.
"""

import argparse
import datetime
import importlib
import json
import logging
import os
import platform
from pathlib import Path

import torch

import ppl_vae as pv

TABLES = {"fashion": "vae_fashion", "vqvae": "vae_vqvae", "clustering": "vae_clustering"}
FINISHED = {"fashion": "nll", "vqvae": "code_nats", "clustering": "accuracy"}
"""What the record of a finished run has."""
SEEDS = [0, 1, 2]
RESULTS = Path(__file__).parent.parent / "docs" / "results"


def machine():
    """Where and when a result was made, and with what."""
    graphics = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "gpu": graphics,
        "versions": {"ppl_vae": pv.__version__, "torch": str(torch.__version__), "python": platform.python_version()},
    }


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def stored(name):
    """What docs/results has of a table: the table, where it was made, and the runs that are missing."""
    table, file = importlib.import_module(TABLES[name]), RESULTS / f"{name}.json"
    records = json.loads(file.read_text()) if file.exists() else []
    done = {(record["row"], record["seed"]) for record in records if FINISHED[name] in record}
    lines = [table.text(records)] if records else []
    for place in dict.fromkeys(f"{r['date']}, {r['gpu'] or r['hardware']}, {versions(r)}" for r in records):
        lines.append(f"made on {place}")
    for row, what in table.ROWS.items():
        seeds = [str(seed) for seed in getattr(table, "SEEDS", SEEDS) if (row, seed) not in done]
        goal = getattr(what, "goal", None)
        if seeds:
            lines.append(f"missing: {row}, seed {', '.join(seeds)}" + (f" (goal: at most {goal})" if goal else ""))
    return "\n".join(lines)


def versions(record):
    return ", ".join(f"{name} {number}" for name, number in record["versions"].items())


def main():
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--table", choices=TABLES, required=True)
    table = importlib.import_module(TABLES[first.parse_known_args()[0].table])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], parents=[first])
    parser.add_argument("--root", help="folder of the image files")
    parser.add_argument("--folder", required=True, help="where the runs are kept, and go on from")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", default="auto", choices=["auto", "inductor", "trace", "off"])
    parser.add_argument("--write", action="store_true", help="write the results to docs/results as JSON, as they come")
    table.options(parser)
    arguments = parser.parse_args()
    arguments.machine = machine
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("ppl_vae").setLevel(logging.INFO)
    results = []
    for record in table.run(arguments):
        results.append(record)
        print(table.text(results), flush=True)
        if arguments.write:
            write(arguments.table, results)


def write(name, results):
    """Put these records into docs/results, in the place of older ones of the same runs."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{name}.json"
    older = json.loads(file.read_text()) if file.exists() else []
    records = {(record["row"], record["seed"]): record for record in [*older, *results]}
    file.write_text(json.dumps([records[run] for run in sorted(records)], indent=1) + "\n")


if __name__ == "__main__":
    main()
