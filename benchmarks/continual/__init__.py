"""Comparison of ways to learn tasks one after another: five tasks of two classes each, three seeds.

    python -m benchmarks.continual --out runs/continual --data digits
    python -m benchmarks.continual --out runs/continual --data fashion-mnist --force-growth 3

    python -m venv .avalanche && .avalanche/bin/pip install -e . -r benchmarks/continual/requirements.txt
    .avalanche/bin/python -m benchmarks.continual.avalanche --out runs/continual --data digits

Protocol: the tasks are the classes 0 and 1, 2 and 3 and so on, in this order, each with a head of its own that is named
at test time. A fifth of the training images of a task is held out for all decisions; the test images are read for the
numbers in the table alone. Every method fine-tunes a task for the same epochs, with the same batches, SGD with Nesterov
momentum and the same rates; `cpg` and `packnet` prune, and retrain picks, for further epochs, which *seconds* contain.

- `cpg`: this package, the goal of a task is the accuracy of its independent network less one standard error.
- `independent`: one network for each task (the same structure, width 1): the goals of `cpg`, and as many times the
  weights as there are tasks.
- `packnet`: the same as `cpg` without picking and without growth (Mallya and Lazebnik, CVPR 2018).
- `in turn`: one network that is fine-tuned on one task after the other, with the heads of all tasks.
- `naive`, `ewc`, `lwf`, `replay`: strategies of avalanche-lib (0.6.0), in an environment of their own, with the same
  tasks, structure, epochs, batches and rates; `replay` keeps 200 images.

`--force-growth 3` asks for 100 % in the third task, without tolerance, so that `cpg` must grow.

A row of the table is the mean of the seeds with its standard error: mean accuracy of all tasks after the last one, and
forgetting, the mean of (accuracy right after learning − accuracy at the end). Rows that exist are not made again.
"""
