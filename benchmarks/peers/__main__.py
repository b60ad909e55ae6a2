"""Command line of the comparison."""

import argparse
from pathlib import Path

from benchmarks import peers
from benchmarks.common import numbers
from benchmarks.peers import driver, equal_page, methods, page


def main():
    """Run what is missing, then write tables and pictures of all that is there."""
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.peers", description=peers.__doc__, formatter_class=text)
    parser.add_argument("--out", default="runs/peers", type=Path)
    parser.add_argument("--networks", default="zoo:vgg-fashion,zoo:resnet20-fashion")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--speedups", default="2,3,4,5")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", default="0", help="1,5 trains for 1 and for 5 what was made without training")
    parser.add_argument("--train-images", type=int, help="with --epochs: train on that many images; all by default")
    parser.add_argument("--methods", default=None, help="names or beginnings of names, with commas between; or all")
    parser.add_argument("--list", action="store_true", help="print the names of the methods and stop")
    parser.add_argument("--retry", action="store_true", help="run again what failed before")
    parser.add_argument("--wrap", default="", help="command in front of every row's process, such as 'taskset -c 0'")
    parser.add_argument("--latency", action="store_true", help="time the saved networks instead; nothing is made")
    parser.add_argument("--graphs", action="store_true", help="try the tools on twelve small graphs instead")
    parser.add_argument(
        "--equal-time", type=float, metavar="X", help="compare networks that measure X times as fast in ONNX Runtime"
    )
    parser.add_argument("--wrap-time", default="", help="with --equal-time: command in front of what measures time")
    parser.add_argument("--rounds", default=30, type=int, help="with --latency")
    parser.add_argument("--report", type=Path, help="write this Markdown page too, pictures and CSV beside it")
    parser.add_argument(
        "--into", type=Path, help=f"with --equal-time: write it under the heading {equal_page.SECTION!r} of this page"
    )
    parser.add_argument("--title", default=page.TITLE, help="of the page")
    parser.add_argument("--note", default="", help="a sentence for the page, such as on the state of the machine")
    options = parser.parse_args()
    if options.equal_time:
        return equal_time_of(options)
    chosen = methods.chosen(options.methods or "all")
    if options.list:
        print("\n".join(chosen))
        return
    asked = driver.rows_asked(
        options.networks.split(","), options.data, numbers(options.seeds), numbers(options.speedups),
        numbers(options.epochs), list(chosen), options.train_images,
    )  # fmt: skip
    if options.latency:
        from benchmarks.peers import timing

        timing.measure(options.out, asked, options.rounds)
    elif options.graphs:
        from benchmarks.peers import graphs

        graphs.measure(options.out)
    else:
        driver.run(options.out, asked, wrap=options.wrap, retry=options.retry)
    page.write(options.out, options.report, options.note, options.title)


def equal_time_of(options):
    """The comparison at equal measured time, and its page."""
    from benchmarks.peers import equal_time

    known = methods.METHODS | methods.BY_TIME
    names = methods.chosen(options.methods, known) if options.methods else methods.EQUAL_TIME
    epochs = [count for count in numbers(options.epochs) if count]
    families = [
        {"network": network, "data": options.data, "seed": seed, "method": name}
        for network in options.networks.split(",") for seed in numbers(options.seeds) for name in names
    ]  # fmt: skip
    equal_time.run(
        options.out, families, options.equal_time, epochs, train_images=options.train_images, wrap=options.wrap,
        wrap_time=options.wrap_time, retry=options.retry,
    )  # fmt: skip
    equal_page.write(
        options.out, options.equal_time, families, epochs, options.report, options.note, into=options.into
    )  # fmt: skip


if __name__ == "__main__":
    main()
