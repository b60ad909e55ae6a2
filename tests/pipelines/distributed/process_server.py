"""Starts the processes of a job as torchrun does, by forking, so that they need not import torch; one job per line.

An order is JSON: ``n`` processes, ``args`` of the command or ``call`` (module:function, whose result is returned),
``output`` for what they print, and perhaps ``kill``: the process to kill once a text is in the output.
"""

import json
import os
import signal
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

import sklearn.datasets  # noqa: F401
import sympy  # noqa: F401  what torch loads late, loaded once
import torch
import torch._dynamo
import torchvision  # noqa: F401
from torch.distributed import TCPStore

import decomp.pipelines.stages.decompose
import decomp.pipelines.stages.evaluate
import decomp.pipelines.stages.finetune
import decomp.pipelines.stages.freeze
import decomp.pipelines.stages.train  # noqa: F401
from decomp import cli
from decomp.pipelines.decomposition import refine_blocks
from decomp.pipelines.recipes import loss_budget
from decomp.pipelines.run import calibration

calibration.RECORDED_IMAGES = 0  # no mixtures of few images, as in the other tests
refine_blocks.STEPS, loss_budget.MOST_TRIALS = 100, 2


def environment(rank, n, port):
    number = str(rank)
    return {
        "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
        "RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip


def work(order, rank, port):
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if order["n"] > 1:
        os.environ.update(environment(rank, order["n"], port))
    if "args" in order:
        cli.main(order["args"])
        return
    from decomp.pipelines.distributed.process_group import join, leave

    join()
    module, function = order["call"].split(":")
    sys.path.insert(0, str(Path(__file__).parent))
    found = getattr(import_module(module), function)()
    Path(f"{order['output']}.{rank}").write_text(json.dumps(found))
    leave()


def start(order, rank, port):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work(order, rank, port)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(order):
    Path(order["output"]).write_text("")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pids = [start(order, rank, str(store.port)) for rank in range(order["n"])]
    if "kill" in order:
        while order["kill"]["after"] not in Path(order["output"]).read_text():
            time.sleep(0.01)
        os.kill(pids[order["kill"]["rank"]], signal.SIGKILL)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
