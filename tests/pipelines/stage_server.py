"""Runs stages in processes that may be ended anywhere: loads the libraries once, then forks for every stage.

Started as ``python stage_server.py``; takes one JSON object a line and answers with one. The forks do no work in the
server's own process, so each is like a fresh `decomp` that has just finished its imports.

Asked: ``args`` (of the command line), ``output`` (a file), and how it ends: ``kill_at`` (the number of the disk step
before which the process ends itself with SIGKILL), ``signal_at`` (the same with SIGINT), ``kill_after`` (seconds) or
none of them. Answered: ``code`` (negative: the signal), ``steps`` (disk steps taken, as counted by the fork).
"""

import json
import os
import signal
import sys
import time
import traceback

STEPS = ("replace", "fsync", "unlink", "mkdir", "rmdir", "truncate", "link")


def count_steps(order, report):
    """Number every call that changes what a folder holds or flushes it, and end the process before the wanted one."""
    taken = [0]

    def counted(real):
        def call(*args, **options):
            taken[0] += 1
            os.pwrite(report, b"%8d" % taken[0], 0)
            if taken[0] == order.get("kill_at"):
                os.kill(os.getpid(), signal.SIGKILL)
            if taken[0] == order.get("signal_at"):
                os.kill(os.getpid(), signal.SIGINT)
            return real(*args, **options)

        return call

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


def work(order, report):
    from decomp.cli import main

    output = os.open(order["output"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    count_steps(order, report)
    sys.argv = ["decomp", *order["args"]]
    code = 1
    try:
        main(order["args"])
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve():
    import sympy  # noqa: F401  what torch loads late, loaded once
    import torch
    import torch._dynamo

    import decomp.pipelines.stages.decompose
    import decomp.pipelines.stages.evaluate
    import decomp.pipelines.stages.finetune
    import decomp.pipelines.stages.freeze  # noqa: F401
    from decomp.pipelines.decomposition import refine_blocks
    from decomp.pipelines.run import calibration

    calibration.RECORDED_IMAGES = 0  # no mixtures of few images, as in the other tests
    refine_blocks.STEPS = 3
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        report = os.memfd_create("steps")
        pid = os.fork()
        if pid == 0:
            work(order, report)
        if order.get("kill_after") is not None:
            time.sleep(order["kill_after"])
            os.kill(pid, signal.SIGKILL)  # a zombie at worst: it has not been waited for
        _, status = os.waitpid(pid, 0)
        steps = int(os.pread(report, 8, 0) or 0)
        os.close(report)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "steps": steps}), flush=True)


if __name__ == "__main__":
    serve()
