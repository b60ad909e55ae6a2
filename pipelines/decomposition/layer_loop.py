"""Layer loop: solve each layer in execution order, write it, read it back, apply it."""

from decomp import seeds
from decomp.solvers import solve_layer as layers
from decomp.surgery import apply_solution as surgery

from ...data.formats.digests import digest_file, digest_json
from ...data.formats.layer_file import read_layer, write_layer


def solve_layers(run, asked, plan, view, problems, made_from, reporter):
    """Solve the layers that are not committed yet, and apply all of them in order."""
    network, edited, reports = view.module, [], []
    parent, seed = digest_json(made_from), problems.frozen.meta["seed"]
    with reporter.progress(len(view.layers), "layers", "layers") as progress:
        for layer in view.layers:
            item = plan.layer(layer.name)
            if not layer.fitted:
                progress.update(1)
                continue
            path = run.layer_file(layer.index, layer.name)
            if path.is_file():
                solution, report = read_layer(path, parent, layer.name)
                problems.replay.advance(view.node(layer))
            else:
                problem, held_out = problems.problem(layer)
                solution, report = layers.solve_layer(
                    problem, item, held_out=held_out, selector=asked["selector"],
                    activation_aware=asked["activation_aware"],
                    refined=asked["refine"],
                    seed=seeds.derive_seed(seed, "decompose", layer.name),
                )  # fmt: skip
                write_layer(path, solution, report, parent)
                solution, report = read_layer(path, parent, layer.name)
                reporter.step(_layer_words(layer, item, report), layer=layer.name, errors=report["errors"])
            parent = digest_file(path)
            edited += [name for name in surgery.apply_solution(network, view, solution) if name not in edited]
            if solution.selection is not None and not layer.input_space.sampled:
                problems.replay.narrow(view.columns_kept(layer, solution.selection.channels))
            reports.append(report)
            progress.update(1)
    return edited, reports


def _layer_words(layer, item, report):
    last = list(report["errors"])[-1]
    errors = report["errors"][last]
    words = f"{layer.name}: {item.words()}; response error {errors['fitted']:.2%}"
    return words + (f", held out {errors['held_out']:.2%}" if "held_out" in errors else "")
