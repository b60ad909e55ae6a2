"""Images in batches."""

import torch

from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import Output
from decomp.pipelines.pruning.images import batched

SCORES = Outputs((Output("output", "scores", (3,), "as asked"),))


def test_all_images_come_once_at_every_call():
    images = torch.arange(10.0).reshape(10, 1, 1, 1)
    made = batched(lambda start, stop: images[start:stop], 7, 10, 3, torch.device("cpu"), SCORES, 0)
    for _ in range(2):
        assert torch.equal(torch.cat(list(made.batches())), images[:7])
    assert [len(batch) for batch in made.batches()] == [3, 3, 1]
    assert torch.equal(torch.cat(list(made.held_out())), images[7:])
