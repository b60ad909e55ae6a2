import subprocess
import sys

from decomp.solvers.selectors import CHANNEL_SELECTORS, SELECTORS


def test_best_comes_first_and_each_name_once():
    assert SELECTORS == ("best", *CHANNEL_SELECTORS) and len(set(SELECTORS)) == len(SELECTORS)


def test_the_names_can_be_imported_without_torch():
    code = "import sys, decomp.solvers.selectors; print(sorted({'torch', 'numpy', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
