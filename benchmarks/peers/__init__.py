"""Comparison with other compression tools on the same network, images and multiply-accumulates.

    python -m venv .peers && .peers/bin/pip install -e . -r benchmarks/peers/requirements.txt
    .peers/bin/python -m benchmarks.peers --out runs/peers
    .peers/bin/python -m benchmarks.peers --out runs/peers --epochs 1,5
    .peers/bin/python -m benchmarks.peers --out runs/peers --networks zoo:vgg-digits --data digits
    .peers/bin/python -m benchmarks.peers --out runs/peers --latency
    .peers/bin/python -m benchmarks.peers --out runs/peers --graphs

Protocol: the network is the shipped one, the images are the training images that `decomp freeze` draws with the seed:
5,000, or all where there are fewer. Every tool gets both, and the labels of these images where its method needs them.
The tool's own measure of strength is searched by bisection for the network whose multiply-accumulates, counted by
`decomp.cost.count` for all tools alike, lie between 98 and 100 % of the target; where its steps are too coarse for
that, the closest below is used. Every row is a process of its own on one thread; *seconds* are those of the tool with
its search, *peak MiB* the highest memory of that process so far, with libraries and images. Work that a tool shares
between its rows (frozen points and error curves, scores of a greedy search) is counted in each of them. The test
images are read only to evaluate finished networks; no network is chosen or changed by them. Training is with labels,
by the recipe of `decomp finetune`: all training images but its held-out ones, in the same order, with the same
augmentation and rates; the network after the last epoch is evaluated. Batch normalisations are present in all
networks during training, in ours as `decomp finetune` inserts them. Rows that exist are not run again: an interrupted
benchmark continues.
"""
