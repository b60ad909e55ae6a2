"""Solver benchmark: time, memory and held-out error of one layer's steps, beside a dense reference.

    python benchmarks/solvers.py                       # c = n = 64, 128, 256, 512
    python benchmarks/solvers.py --sizes 512 --device cuda

One layer like VGG's conv4: c = n, 3x3, 50,000 rows of activations streamed from a file; spatial rank c/2, channel
rank c/2, 445 of 512 input channels kept. The rows are synthetic (smooth, correlated, rectified, and noisier in the
network being compressed than in the original); a tenth more are held out. Each size runs in a process of its own, so
that its peak memory is its own. The first use of a library (thread pools, lazy imports) is paid before the clock runs.

Protocol: one run a size, wall and processor time; load of the machine as the kernel reports it before the run.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CHUNK = 2000
STEPS = ("moments", "lasso", "least squares", "split", "decompose")
EXTRAS = ("refine", "refine responses", "backward", "curves")


def make_rows(path, size, n_rows):
    """Write rows (X, Y) of a synthetic layer, and its weights, to a folder."""
    import torch

    generator = torch.Generator().manual_seed(size)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    # A few hundred latent maps, smooth in space, with falling strength, mixed into c channels.
    latent = 2 * size
    mixing = normal(size, latent) * torch.logspace(0, -1.5, latent)[None] / latent**0.5 * 4
    smooth = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).view(1, 1, 3, 3).expand(latent, 1, 3, 3) / 6
    weight = normal(size, size, 3, 3) / (9 * size) ** 0.5 * torch.logspace(0, -1, size)[None, :, None, None] * 2
    bias = normal(size) * 0.2
    torch.save({"weight": weight, "bias": bias}, path / "layer.pt")
    with open(path / "X", "wb") as inputs, open(path / "Y", "wb") as responses:
        for start in range(0, n_rows, CHUNK):
            # Four positions of a 4x4 map share an image, so that neighbouring rows are alike.
            n_images = min(CHUNK, n_rows - start + 3) // 4 + 1
            maps = torch.nn.functional.conv2d(normal(n_images, latent, 6, 6), smooth, groups=latent)
            maps = torch.einsum("cl,blyx->bcyx", mixing, maps)
            now = (maps + 0.1 * normal(*maps.shape)).clamp_min(0)
            count = min(CHUNK, n_rows - start)
            original, X = (_patches(x)[:count] for x in (maps.clamp_min(0), now))
            Y = original.flatten(1) @ weight.flatten(1).T + bias
            inputs.write(X.contiguous().numpy().tobytes())
            responses.write(Y.contiguous().numpy().tobytes())


def _patches(maps):
    """(b, c, 4, 4) → (4b, c, 3, 3), the four positions of each map after one another."""
    windows = maps.unfold(2, 3, 1).unfold(3, 3, 1)
    return windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


class Rows:
    """Rows read from the files again at each call, chunk by chunk; nothing is kept."""

    def __init__(self, path, size, start, stop, device):
        self.path, self.size, self.start, self.stop, self.device = path, size, start, stop, device

    def __call__(self):
        import numpy as np
        import torch

        shapes = {"X": (self.size, 3, 3), "Y": (self.size,)}
        with open(self.path / "X", "rb", buffering=0) as inputs, open(self.path / "Y", "rb", buffering=0) as responses:
            files = {"X": inputs, "Y": responses}
            for start in range(self.start, self.stop, CHUNK):
                rows = min(CHUNK, self.stop - start)
                found = []
                for name, shape in shapes.items():
                    buffer = np.empty((rows, *shape), dtype=np.float32)
                    files[name].seek(4 * start * int(np.prod(shape)))
                    files[name].readinto(memoryview(buffer).cast("B"))
                    found.append(torch.from_numpy(buffer).to(self.device))
                yield tuple(found)


class Clock:
    """Wall and processor seconds of each step."""

    def __init__(self, device):
        self.device, self.wall, self.processor = device, {}, {}

    def __call__(self, name, run):
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
        wall, processor = time.perf_counter(), time.process_time()
        result = run()
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.wall[name], self.processor[name] = time.perf_counter() - wall, time.process_time() - processor
        return result


def sizes_of(size):
    """Kept channels, spatial rank, channel rank."""
    return round(size * 445 / 512), size // 2, size // 2


def ours(path, size, n_rows, n_held_out, device, extras):
    """Run the steps of this package; times, errors and peak memory."""
    import torch

    from decomp.problem.factors import Geometry
    from decomp.problem.layer_problem import LayerProblem
    from decomp.solvers import channel, lasso, selection, spatial

    layer = torch.load(path / "layer.pt")
    keep, spatial_rank, channel_rank = sizes_of(size)
    rows, held_out = Rows(path, size, 0, n_rows, device), Rows(path, size, n_rows, n_rows + n_held_out, device)
    clock = Clock(device)
    torch.linalg.cholesky(torch.eye(64, dtype=torch.float64, device=device))
    moments = clock("moments", lambda: stream(rows, size, device))
    problem = LayerProblem("conv4", layer["weight"], layer["bias"], Geometry(padding=(1, 1)), moments, "relu", rows)
    chosen = clock("lasso", lambda: lasso.select(problem, keep))
    fitted = clock("least squares", lambda: selection.reconstruct(problem, chosen))
    narrowed = replace(problem.narrowed(chosen), weight=fitted.weight, bias=fitted.bias)
    split = clock("split", lambda: spatial.split(narrowed, spatial_rank))
    found = clock("decompose", lambda: channel.decompose(narrowed, channel_rank, base=split))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    errors = {"whole step": response_error(found, held_out, chosen.channels)}
    if extras:
        errors |= beyond(clock, problem, narrowed, chosen, split, found, held_out)
    threads = torch.get_num_threads()
    return {"wall": clock.wall, "processor": clock.processor, "peak": peak, "errors": errors, "threads": threads}


def stream(rows, size, device):
    """Moments of all rows."""
    from decomp.problem.moments import MomentSum

    moments = MomentSum(9 * size, size, device)
    for X, Y in rows():
        moments.add(X, Y)
    return moments.total()


def beyond(clock, problem, narrowed, chosen, split, found, held_out):
    """Refinement, backward elimination and error curves."""
    from decomp.solvers import error_curves, refine, selection

    errors = {"split": response_error(split, held_out, chosen.channels)}
    better = clock("refine", lambda: refine.refine(narrowed, split))
    errors["refine (split)"] = response_error(better, held_out, chosen.channels)
    better = clock("refine responses", lambda: refine.refine_responses(narrowed, found))
    errors["refine responses (whole step)"] = response_error(better, held_out, chosen.channels)
    order = clock("backward", lambda: selection.retention_order(problem, "backward"))
    judged = stream(held_out, problem.n_channels, problem.moments.K.device)

    def all_curves():
        error_curves.spatial_curve(problem, judged)
        error_curves.channel_curve(problem, judged)
        error_curves.selection_curve(problem, judged, order=order)

    clock("curves", all_curves)
    return errors | selection_errors(problem, chosen, order, judged)


def selection_errors(problem, chosen, order, judged):
    """Held-out linear error after least squares, with the lasso's channels and with backward's."""
    import torch

    from decomp.problem.factors import Selection
    from decomp.problem.layer_problem import columns_of
    from decomp.solvers.selection import reconstruct

    backward = Selection(torch.tensor(sorted(order[: len(chosen)])), problem.n_channels)
    found = {}
    for name, selection in (("lasso", chosen), ("backward", backward)):
        weight = reconstruct(problem, selection).weight
        narrowed = judged.take_inputs(columns_of(selection.channels, problem.kernel))
        found[f"{name} selection, linear"] = narrowed.error(weight.flatten(1).T)
    return found


def response_error(factored, rows, keep):
    """Relative squared error after the ReLU on held-out rows."""
    import torch

    kernel, bias = factored.compose()
    squared, total, first, count = 0.0, 0.0, 0.0, 0
    for X, Y in rows():
        got = X[:, keep.to(X.device)].flatten(1) @ kernel.flatten(1).T.to(X.device) + bias.to(X.device)
        wanted = Y.clamp_min(0).double()
        squared += float((wanted - got.clamp_min(0)).square().sum())
        total = total + wanted.square().sum(0)
        first, count = first + wanted.sum(0), count + len(Y)
    return squared / float((total - torch.square(first) / count).sum())


def dense(path, size, n_rows, n_held_out):
    """The steps of `ours` by `dense_route`, on rows held in memory."""
    import dense_route
    import torch

    keep, spatial_rank, channel_rank = sizes_of(size)
    clock, weight = Clock("cpu"), torch.load(path / "layer.pt")["weight"].double().numpy()

    def read():
        return tuple(torch.cat(parts).double().numpy() for parts in zip(*Rows(path, size, 0, n_rows, "cpu")()))

    X, Y = clock("moments", read)
    chosen = clock("lasso", lambda: dense_route.select(X, Y, weight, keep))
    X = X[:, chosen]
    fitted, _ = clock("least squares", lambda: dense_route.least_squares(X.reshape(n_rows, -1), Y))
    V, H, responses = clock("split", lambda: dense_route.split(X, Y, fitted, spatial_rank))
    low_rank = clock("decompose", lambda: dense_route.decompose(responses, Y, channel_rank))
    found = dense_route.assemble(X, V, H, *low_rank)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    held_out = Rows(path, size, n_rows, n_rows + n_held_out, "cpu")
    error = response_error(found, held_out, torch.tensor(chosen))
    times = {"wall": clock.wall, "processor": clock.processor}
    return {**times, "peak": peak, "errors": {"whole step": error}, "kept": len(chosen)}


def child(arguments, *extra):
    """Run one part in a process of its own and read what it prints."""
    # Threads that wait asleep: on a shared machine spinning ones take the cores from those that work.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    if arguments.threads:
        environment |= dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(arguments.threads)
        )
    command = [sys.executable, __file__, "--device", arguments.device, "--rows", str(arguments.rows), *extra]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout) if done.stdout.strip() else None


def print_table(title, names, results, key="wall"):
    print(f"\n{title}")
    print(f"{'c = n':>7}" + "".join(f"{name:>18}" for name in names) + f"{'sum':>10}{'processor':>11}{'peak GiB':>10}")
    for label, result in results:
        values = [result[key].get(name, float("nan")) for name in names]
        processor = sum(result["processor"].get(name, 0.0) for name in names)
        row = "".join(f"{value:18.2f}" for value in values)
        print(f"{label:>7}{row}{sum(values):10.2f}{processor:11.2f}{result['peak']:10.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, help="BLAS threads (default: as the libraries choose)")
    parser.add_argument("--dense", type=int, default=64, help="size at which the dense route runs beside; 0 for none")
    parser.add_argument("--no-extras", action="store_true", help="only the whole step, no refinement or curves")
    parser.add_argument("--part", choices=["make", "ours", "dense"], help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    held_out = arguments.rows // 10
    if arguments.part:
        size = arguments.sizes[0]
        if arguments.part == "make":
            make_rows(arguments.path, size, arguments.rows + held_out)
        elif arguments.part == "ours":
            extras = not arguments.no_extras
            print(json.dumps(ours(arguments.path, size, arguments.rows, held_out, arguments.device, extras)))
        else:
            print(json.dumps(dense(arguments.path, size, arguments.rows, held_out)))
        return
    load = os.getloadavg()[0]
    results, beside = [], None
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            common = ("--path", folder, "--sizes", str(size))
            child(arguments, "--part", "make", *common)
            extra = ("--no-extras",) if arguments.no_extras else ()
            results.append((size, child(arguments, "--part", "ours", *common, *extra)))
            if size == arguments.dense:
                beside = results[-1][1], child(arguments, "--part", "dense", *common)
    report(arguments, results, beside, load)


def report(arguments, results, beside, load):
    threads = results[0][1]["threads"]
    cores = os.cpu_count()
    print(f"{arguments.rows} rows, {arguments.device}, {threads} BLAS threads, {cores} cores, load {load:.1f} before")
    print_table("whole 3C step, seconds", STEPS, results)
    if not arguments.no_extras:
        print_table("beyond it, seconds", EXTRAS, results)
        print("\nheld-out relative error (after the ReLU where not said otherwise)")
        for size, result in results:
            print(f"{size:>7}  " + ", ".join(f"{name} {value:.4f}" for name, value in result["errors"].items()))
    if beside:
        here, there = beside
        print_table(f"dense route, c = n = {arguments.dense}, seconds", STEPS, [(arguments.dense, there)])
        times = [sum(result["wall"][step] for step in STEPS) for result in beside]
        errors = [result["errors"]["whole step"] for result in beside]
        print(
            f"dense / ours: time {times[1] / times[0]:.1f}x, memory {there['peak'] / here['peak']:.1f}x, "
            f"held-out error {errors[1]:.4f} / {errors[0]:.4f} = {errors[1] / errors[0]:.3f}, kept {there['kept']}"
        )


if __name__ == "__main__":
    main()
