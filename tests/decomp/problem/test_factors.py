import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from decomp.errors import DecompError
from decomp.problem.factors import ConvFactor, FactoredConv, Geometry, Selection, turned


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chain(kernel=(3, 3), geometry=Geometry(), *, pointwise=True, bias=True, seed=0):  # noqa: B008
    kh, kw = kernel
    between = normal(4, seed=seed + 2) if bias else None
    factors = [
        ConvFactor(normal(5, 3, kh, 1, seed=seed), None, geometry.vertical()),
        ConvFactor(normal(4, 5, 1, kw, seed=seed + 1), between, geometry.horizontal()),
    ]
    names = ["vertical", "horizontal"]
    if pointwise:
        factors.append(ConvFactor(normal(6, 4, 1, 1, seed=seed + 3), normal(6, seed=seed + 4), Geometry()))
        names.append("pointwise")
    return FactoredConv(tuple(factors), tuple(names))


geometries = st.builds(
    lambda stride, padding, dilation, mode: Geometry((1, 1) if padding == "same" else stride, padding, dilation, mode),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.one_of(st.sampled_from(["same", "valid"]), st.tuples(st.integers(0, 2), st.integers(0, 2))),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
)


def run_dense(x, weight, bias, geometry):
    if geometry.padding_mode != "zeros":
        (top, bottom), (left, right) = geometry.pads(weight.shape[2:])
        x = F.pad(x, (left, right, top, bottom), mode=geometry.padding_mode)
        return F.conv2d(x, weight, bias, geometry.stride, 0, geometry.dilation)
    return F.conv2d(x, weight, bias, geometry.stride, geometry.padding, geometry.dilation)


@settings(max_examples=60, deadline=None)
@given(kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)), geometry=geometries, pointwise=st.booleans())
def test_the_composed_kernel_is_the_chain_run_through_torch(kernel, geometry, pointwise):
    factored = chain(kernel, geometry, pointwise=pointwise)
    x = normal(2, 3, 11, 10, seed=9)
    weight, bias = factored.compose()
    assert weight.shape[2:] == kernel
    got, wanted = factored.forward(x), run_dense(x, weight, bias, geometry)
    assert got.shape == wanted.shape
    assert torch.allclose(got, wanted, atol=1e-11)


@settings(max_examples=40, deadline=None)
@given(kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)), geometry=geometries)
def test_costs_are_counted_on_what_runs(kernel, geometry):
    factored = chain(kernel, geometry)
    x, macs, params = normal(1, 3, 11, 10), 0, 0
    for factor in factored.factors:
        x = factor.forward(x)
        n, c, kh, kw = factor.weight.shape
        macs += n * c * kh * kw * x.shape[2] * x.shape[3]
        params += n * c * kh * kw + (0 if factor.bias is None else n)
    assert factored.macs((11, 10)) == macs
    assert factored.n_params() == params


def test_a_bias_in_the_middle_goes_through_what_follows():
    factored = chain()
    _, bias = factored.compose()
    horizontal, pointwise = factored.factors[1:]
    assert torch.allclose(bias, pointwise.weight[:, :, 0, 0] @ horizontal.bias + pointwise.bias)
    assert chain(pointwise=False, bias=False).compose()[1] is None


def test_what_no_dense_kernel_can_say_is_refused():
    twice = FactoredConv((ConvFactor(normal(4, 3, 3, 1)), ConvFactor(normal(5, 4, 3, 1))), ("vertical", "horizontal"))
    with pytest.raises(DecompError, match="one factor may extend in the vertical"):
        twice.compose()
    early = ConvFactor(normal(5, 3, 3, 1), normal(5), Geometry())
    late = ConvFactor(normal(4, 5, 1, 3), None, Geometry(padding=(0, 1)))
    with pytest.raises(DecompError, match="bias cannot be carried through a factor with padding"):
        FactoredConv((early, late), ("vertical", "horizontal")).compose()


def test_chains_that_do_not_fit_are_refused():
    with pytest.raises(DecompError, match="gives 4 channels cannot feed one, got 5 inputs"):
        FactoredConv((ConvFactor(normal(4, 3, 1, 1)), ConvFactor(normal(2, 5, 1, 1))), ("dense", "pointwise"))
    with pytest.raises(DecompError, match="each factor needs one name"):
        FactoredConv((ConvFactor(normal(4, 3, 1, 1)),), ())
    with pytest.raises(DecompError, match="names must be among"):
        FactoredConv((ConvFactor(normal(4, 3, 1, 1)),), ("diagonal",))
    with pytest.raises(DecompError, match=r"bias must have shape \(4,\)"):
        ConvFactor(normal(4, 3, 1, 1), normal(3))
    with pytest.raises(DecompError, match="four dimensions"):
        ConvFactor(normal(4, 3))
    with pytest.raises(DecompError, match="'same' needs stride 1"):
        Geometry(stride=(2, 1), padding="same")
    with pytest.raises(DecompError, match="'same' or 'valid'"):
        Geometry(padding="full")


@pytest.mark.parametrize(
    "keep, message",
    [
        ([1, 0], "ascend"),
        ([0, 0], "ascend"),
        ([], "non-empty"),
        ([0, 4], "channels must be in 0..3"),
        ([-1, 2], "in 0..3"),
    ],
)
def test_selections_are_sorted_and_within_range(keep, message):
    with pytest.raises(DecompError, match=message):
        Selection(torch.tensor(keep, dtype=torch.int64), 4)


transposed = st.builds(
    lambda stride, padding, dilation, more: Geometry(
        stride, padding, dilation, "zeros", tuple(min(m, max(s, d) - 1) for m, s, d in zip(more, stride, dilation))
    ),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
)


@settings(max_examples=60, deadline=None)
@given(kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)), geometry=transposed)
def test_a_transposed_chain_is_the_transposed_convolution_of_its_composed_kernel(kernel, geometry):
    factored = chain(kernel, geometry, bias=False)
    x = normal(2, 3, 7, 6, seed=9)
    weight, bias = factored.compose()
    dense = F.conv_transpose2d(
        x, turned(weight), bias, geometry.stride, geometry.padding, geometry.output_padding, 1, geometry.dilation
    )
    got = factored.forward(x)
    assert geometry.out_size((7, 6), kernel) == got.shape[2:] == dense.shape[2:]
    assert torch.allclose(got, dense, atol=1e-11)
    between = geometry.vertical().out_size((7, 6), (kernel[0], 1))
    places = 5 * 3 * kernel[0] * 42, 4 * 5 * kernel[1] * between[0] * between[1], 6 * 4 * got[0, 0].numel()
    assert factored.macs((7, 6)) == sum(places)


def test_a_transposed_geometry_is_plain_data_and_a_convolution_has_no_word_of_it():
    geometry = Geometry((2, 1), (1, 0), (1, 1), "zeros", (1, 0))
    assert Geometry(**geometry.to_json()) == geometry and geometry.transposed
    assert "output_padding" not in Geometry().to_json() and Geometry(**Geometry().to_json()) == Geometry()
    with pytest.raises(DecompError, match="transposed convolution must be two numbers, of zeros, got same, zeros"):
        Geometry(padding="same", output_padding=(0, 0))
