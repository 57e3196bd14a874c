"""`make test`: the tests, and how much of the package they run, in every process that they start.

Most of the package runs in other processes (servers, executors, workers), whose environments are built anew
and so cannot carry a word about coverage. A line in the site-packages of .venv starts it in all of them.
"""

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from coverage import Coverage

ROOT = Path(__file__).parents[1]
DATA = ROOT / ".coverage"  # a folder: each process writes a file of its own
OPTIONS = {"config_file": str(ROOT / "pyproject.toml"), "data_file": str(DATA / "data")}
START = Path(sysconfig.get_path("purelib"), "measured.pth")
LEAST = {"lines": 95, "branches": 90}  # percent


def main() -> int:
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir()
    start = f"coverage.Coverage(**{OPTIONS}, data_suffix=True, auto_data=True).start()"
    START.write_text(f"import coverage; coverage.Coverage.current() or {start}\n")  # Python reads it twice
    try:
        exit_code = subprocess.call([sys.executable, "-m", "pytest", *sys.argv[1:]], cwd=ROOT)
    finally:
        START.unlink()
    return exit_code or report()


def report() -> int:
    """Print what was not run, and whether that is too much."""
    measured = Coverage(**OPTIONS)
    measured.combine()
    measured.report(show_missing=True, skip_covered=True, file=sys.stdout)
    measured.json_report(outfile=str(DATA / "report.json"))
    totals = json.loads((DATA / "report.json").read_text())["totals"]
    found = {
        "lines": 100 * totals["covered_lines"] / totals["num_statements"],
        "branches": 100 * totals["covered_branches"] / totals["num_branches"],
    }
    for what, percent in found.items():
        print(f"{what}: {percent:.1f}% run by the tests, at least {LEAST[what]}% wanted")
    return int(any(percent < LEAST[what] for what, percent in found.items()))


if __name__ == "__main__":
    sys.exit(main())
