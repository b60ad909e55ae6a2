"""Fault injection: the tests that break a run, counted by kind of fault.

    python -m benchmarks.faults --out docs/faults.md
    python -m benchmarks.faults --out docs/faults.md --select "random_moments" --results faults.json

Runs every test that is marked with ``fault``, the slow ones too, and writes a table: how many times each fault was
injected, how often the run survived it (refused in one line with nothing lost, or gone on to the same bytes) and how
often not. With ``--select`` only some tests are run, as pytest's ``-k`` chooses them, and the table has them beside
what ``--results`` holds from earlier calls.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from pathlib import Path

from benchmarks.common import markdown

ROOT = Path(__file__).resolve().parent.parent
FIELDS = ("fault", "how it is injected", "times", "survived", "lost")
INTRODUCTION = """# Faults

Written by `python -m benchmarks.faults` from the fault-injection tests. *survived*: the command ended in one line that
says what to do and lost nothing that was finished, or the run continued and ended with the same bytes as an undisturbed
run. *lost*: anything else.
"""


def run_tests(select):
    """{test: {fault, how, times, passed}} of the tests that are marked; what was skipped is left out."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable, "-m", "pytest", "-q", "-m", "fault", f"--junitxml={report}", "-o", "junit_family=xunit1",
        ]  # fmt: skip
        subprocess.run(command + (["-k", select] if select else []), cwd=ROOT, check=False)
        found = {}
        for case in xml.etree.ElementTree.parse(report).iter("testcase"):
            told = {item.get("name"): item.get("value") for item in case.iter("property")}
            if "fault" not in told or case.find("skipped") is not None:
                continue
            passed = case.find("failure") is None and case.find("error") is None
            found[f"{case.get('classname')}.{case.get('name')}"] = {
                "fault": told["fault"], "how": told["how"], "times": int(told.get("times", 1)), "passed": passed,
            }  # fmt: skip
    return found


def table(found):
    """Rows by kind of fault. Of a test that failed, one fault is lost."""
    rows = {}
    for test in found.values():
        key = test["fault"], test["how"]
        row = rows.setdefault(key, dict(zip(FIELDS, (*key, 0, 0, 0))))
        lost = 0 if test["passed"] else 1
        row["times"] += test["times"]
        row["survived"] += test["times"] - lost
        row["lost"] += lost
    return [rows[key] for key in sorted(rows)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--select", help="run only tests whose names match, as pytest's -k")
    parser.add_argument("--results", type=Path, help="JSON file that keeps what earlier calls found")
    options = parser.parse_args()
    found = json.loads(options.results.read_text()) if options.results and options.results.exists() else {}
    found.update(run_tests(options.select))
    if options.results:
        options.results.write_text(json.dumps(found, indent=1))
    rows = table(dict(sorted(found.items())))
    total = {name: sum(row[name] for row in rows) for name in FIELDS[2:]}
    text = f"{INTRODUCTION}\n{markdown(FIELDS, [*rows, {'fault': '**all**', **total}])}\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
