import pytest
import torch

from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import Output
from decomp.pipelines.measure.closeness import Closeness, closeness_words, compared, far_off, percent


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_class_scores_among_others_keep_their_divergence_and_agreement():
    outputs = Outputs((Output("p", "scores", (4,), probabilities=True), Output("age", "values", (1,))))
    p, q, age = normal(20, 4).softmax(1), normal(20, 4, seed=1).softmax(1), normal(20, 1, seed=2)
    close = Closeness(outputs)
    for part in (slice(0, 9), slice(9, 20)):
        close.add({"p": p[part], "age": age[part]}, {"p": q[part], "age": age[part]})
    found = close.result()
    one = found["outputs"]["p"]
    assert one["kl"] == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-5)
    assert one["agreement"] == (p.argmax(1) == q.argmax(1)).double().mean().item()
    assert found["outputs"]["age"] == {"kind": "values", "relative": 0.0}
    assert found["relative"] == one["relative"] / 2 and found["images"] == 20
    assert "kl" not in found and "agreement" not in found  # of one output among several
    lines = closeness_words(found, "test images").split("\n")
    assert lines[0].startswith("on 20 test images: outputs differ by ") and lines[2] == "age: 0 % of their variance"
    assert lines[1].startswith("p: ") and f"KL divergence {one['kl']:.3g}, same first class on" in lines[1]


def test_an_output_that_is_the_same_for_all_images_has_no_variance_to_be_compared_with():
    entry = Output("output", "values", (3,), variance=4.0, constant=True)
    close = Closeness(Outputs((entry,)))
    close.add({"output": torch.full((5, 3), 2.0)}, {"output": torch.full((5, 3), 1.0)})
    found = close.result()
    assert found["relative"] == 0.25  # of the mean square
    words = "outputs differ by 25 % of their mean square (they are the same for all images)"
    assert closeness_words(found, "test images") == f"on 5 test images: {words}"
    assert closeness_words({**found, "images": 1}, "held-out images, x").startswith("on 1 held-out image, x: outputs")


def test_outputs_further_off_than_a_constant_are_told_with_what_to_try():
    outputs = {"boxes": {"relative": 1.2}, "scores": {"relative": 0.9}}
    (line,) = far_off({"outputs": outputs})
    assert line.startswith("warning: boxes differ by more than they vary") and "smaller speed-up" in line
    assert far_off({"outputs": {"output": {"relative": 3.0}}})[0].startswith("warning: the outputs differ by more")
    assert far_off({"outputs": {"output": {"relative": 1.0}}}) == []
    assert line.endswith("smaller speed-up, more calibration images, or fine-tuning")
    assert far_off({"outputs": outputs}, fits=False)[0].endswith("smaller speed-up or fine-tuning")


@pytest.mark.parametrize(
    ("share", "words"),
    [(0, "0 %"), (1e-9, "less than 0.01 %"), (0.01234, "1.2 %"), (0.5, "50 %"), (3.456, "346 %"), (0.00031, "0.031 %")],
)
def test_a_share_has_two_digits(share, words):
    assert percent(share) == words


def test_comparisons_on_two_parts_of_the_images_are_that_on_all():
    outputs = Outputs((Output("p", "scores", (4,), probabilities=True),))
    p, q = normal(20, 4).softmax(1), normal(20, 4, seed=1).softmax(1)
    one, other, whole = Closeness(outputs), Closeness(outputs), Closeness(outputs)
    batches = slice(0, 9), slice(9, 14), slice(14, 20)
    for closes, part in zip(((one, whole), (other, whole), (other, whole)), batches):
        for close in closes:
            close.add({"p": p[part]}, {"p": q[part]})
    other.merge(one)
    assert other.result() == whole.result() and other.result()["images"] == 20
    assert other.result()["kl"] == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-5)


def test_networks_are_compared_batch_by_batch_as_on_all_images_at_once():
    outputs = Outputs((Output("output", "scores", (4,)),))
    original, network, images = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4), normal(11, 3)
    found = compared(original, network, images.split(4), outputs).result()
    whole = Closeness(outputs)
    whole.add({"output": original(images).detach()}, {"output": network(images).detach()})
    assert found["images"] == 11 and found["relative"] > 0.01
    assert found["kl"] == pytest.approx(whole.result()["kl"], rel=1e-5)
    assert found["agreement"] == whole.result()["agreement"]
