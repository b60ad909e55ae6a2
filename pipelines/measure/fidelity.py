"""How close a network's outputs stay to the original's, on calibration images that no fit has seen."""

import torch

from decomp.execution.outputs import as_tensor, output_divergence


def compare(original, network, frozen, first, batch_size, device):
    """Compare outputs on calibration images from ``first`` on.

    Parameters
    ----------
    original, network : torch.nn.Module
        In evaluation mode on ``device``.
    frozen : decomp.data.formats.frozen_file.FrozenFile
    first : int
        Images before this one were fitted.
    batch_size : int
    device : torch.device

    Returns
    -------
    dict
        ``images``; ``relative`` squared difference of the outputs; for outputs of shape (N, classes) also ``kl``,
        the mean Kullback–Leibler divergence in nats from the original's class probabilities, and ``agreement``,
        the share of images with the same first class; ``words`` says it in a line.
    """
    totals = {"images": 0, "difference": 0.0, "size": 0.0, "kl": 0.0, "agree": 0}
    classes = False
    with torch.no_grad():
        for start in range(first, frozen.n_images, batch_size):
            x = frozen.images(start, min(start + batch_size, frozen.n_images)).to(device)
            wanted, got = as_tensor(original(x)).double(), as_tensor(network(x)).double()
            totals["images"] += len(x)
            totals["difference"] += (got - wanted).square().sum().item()
            totals["size"] += (wanted - wanted.mean(dim=0)).square().sum().item()
            classes = wanted.dim() == 2
            if classes:
                totals["kl"] += output_divergence(wanted, got).sum().item()
                totals["agree"] += (wanted.argmax(1) == got.argmax(1)).sum().item()
    n = totals["images"]
    result = {"images": n, "relative": totals["difference"] / max(totals["size"], 1e-300)}
    words = f"on {n} held-out calibration images: outputs differ by {result['relative']:.2%} of their variance"
    if classes:
        result.update(kl=totals["kl"] / n, agreement=totals["agree"] / n)
        words += f", KL divergence {result['kl']:.4f}, same first class on {result['agreement']:.2%}"
    return {**result, "words": words}
