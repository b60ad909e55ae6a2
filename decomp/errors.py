"""The one family of errors a person sees: what, which rule, what was given, what to do."""


class DecompError(Exception):
    """A mistake or a limit, told in one line.

    Parameters
    ----------
    thing : str
        What the error is about: a layer, a file, an option.
    rule : str
        The rule that was broken, as a statement (``"rank must be in 1..384 (c·kh)"``).
    got : object, optional
        What was given instead.
    fix : str, optional
        What the person can do about it.

    Examples
    --------
    >>> str(DecompError("conv3_1", "rank must be in 1..384 (c·kh)", got=512, fix="lower it in plan.json"))
    'conv3_1: rank must be in 1..384 (c·kh), got 512; lower it in plan.json.'
    """

    exit_code = 1

    def __init__(self, thing, rule, got=None, fix=None):
        self.thing, self.rule, self.got, self.fix = str(thing), str(rule), got, fix
        line = f"{thing}: {rule}"
        if got is not None:
            line += f", got {got}"
        if fix is not None:
            line += f"; {fix}"
        super().__init__(" ".join(line.split()) + ".")


class UsageError(DecompError):
    """A command, option or argument that cannot be meant this way (exit code 2)."""

    exit_code = 2


class NumericalError(DecompError):
    """A layer problem without a defined answer: NaN or Inf, or no factorisation at any allowed ridge."""


class TraceError(DecompError):
    """A network whose forward pass cannot be followed or whose structure cannot be treated."""


class FileError(DecompError):
    """A file that is missing, broken, foreign, of a newer format, or made from something else."""


class WeightsError(DecompError):
    """Weights that do not fit the model they are given for."""


class TargetError(DecompError):
    """A speed-up, cost or plan that cannot be reached or does not fit the model."""
