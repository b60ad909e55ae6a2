"""The command line as ``python -m decomp``, the form that torchrun starts in each of its processes."""

from decomp.cli import main

if __name__ == "__main__":
    main(prog_name="decomp")
