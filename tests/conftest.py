"""The checkout is what is tested, also by the processes that tests start, from whatever folder they are started."""

import os
import sys
from pathlib import Path

CHECKOUT = str(Path(__file__).resolve().parent.parent)

if CHECKOUT not in sys.path:
    sys.path.insert(0, CHECKOUT)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [CHECKOUT, os.environ.get("PYTHONPATH")]))


def pytest_collection_modifyitems(config, items):
    """Tests marked slow take minutes: they run when they are asked for by ``-m``."""
    if config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
