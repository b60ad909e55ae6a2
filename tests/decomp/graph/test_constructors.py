"""Every module of torch.nn comes back from its description, or is refused with the way out."""

import inspect
import json

import pytest
import torch
from torch import nn

from decomp.errors import DecompError
from decomp.graph.serialise import build_module, describe_module

#: Arguments of instances of each class that a network may call.
INSTANCES = {
    **{k: [{}] for k in (nn.Identity, nn.Sigmoid, nn.Tanh, nn.ReLU, nn.Hardswish, nn.Mish, nn.Softsign, nn.Tanhshrink)},
    **{k: [{"inplace": True}, {}] for k in (nn.ReLU6, nn.SiLU, nn.SELU, nn.Hardsigmoid)},
    **{k: [{}, {"dim": 2}] for k in (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.GLU, nn.CosineSimilarity)},
    **{k: [{}, {"alpha": 0.3}] for k in (nn.ELU, nn.CELU)},
    **{k: [{"p": 0.3}] for k in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)},
    **{k: [{"lambd": 0.3}] for k in (nn.Hardshrink, nn.Softshrink)},
    **{
        k: [{"in_channels": 4, "out_channels": 8, "kernel_size": 3},
            {"in_channels": 4, "out_channels": 8, "kernel_size": 2, "stride": 2, "dilation": 2, "groups": 4,
             "bias": False}]
        for k in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    },
    **{
        k: [{"num_features": 5}, {"num_features": 5, "eps": 1e-2, "momentum": None, "affine": False},
            {"num_features": 5, "track_running_stats": False}]
        for k in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d,
                  nn.InstanceNorm2d, nn.InstanceNorm3d)
    },
    **{
        k: [{"input_size": 4, "hidden_size": 5},
            {"input_size": 4, "hidden_size": 5, "num_layers": 2, "bias": False, "batch_first": True, "dropout": 0.2,
             "bidirectional": True}]
        for k in (nn.LSTM, nn.GRU, nn.RNN)
    },
    **{
        k: [{"input_size": 4, "hidden_size": 5}, {"input_size": 4, "hidden_size": 5, "bias": False}]
        for k in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
    },
    **{
        k: [{"d_model": 8, "nhead": 2},
            {"d_model": 8, "nhead": 4, "dim_feedforward": 16, "dropout": 0.3, "activation": "gelu",
             "layer_norm_eps": 1e-3, "batch_first": True, "norm_first": True, "bias": False}]
        for k in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    },
    **{
        k: [{"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 2, "ceil_mode": True}]
        for k in (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
    },
    **{k: [{"padding": 2}] for k in (nn.ZeroPad1d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad3d,
                                     nn.ReplicationPad1d, nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad3d)},
    **{k: [{"padding": 2, "value": 0.5}] for k in (nn.ConstantPad1d, nn.ConstantPad3d)},
    **{k: [{"kernel_size": 2}] for k in (nn.MaxUnpool1d, nn.MaxUnpool3d)},
    **{k: [{"norm_type": 2, "kernel_size": 3}] for k in (nn.LPPool1d, nn.LPPool3d)},
    **{k: [{"output_size": 2}] for k in (nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d)},
    **{k: [{}] for k in (nn.Softmax2d, nn.LogSigmoid, nn.FeatureAlphaDropout)},
    nn.FractionalMaxPool3d: [{"kernel_size": 2, "output_ratio": (0.5, 0.5, 0.5)}],
    nn.PairwiseDistance: [{"p": 1.0, "keepdim": True}],
    nn.CrossMapLRN2d: [{"size": 3, "alpha": 0.1}],
    nn.RMSNorm: [{"normalized_shape": (3, 4), "eps": 1e-3}, {"normalized_shape": 3, "elementwise_affine": False}],
    **{k: [{"output_size": 3}] for k in (nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d)},
    **{k: [{"output_size": (3, None)}, {"output_size": 2}] for k in (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)},
    **{k: [{"padding": 1}, {"padding": (1, 2, 0, 3)}] for k in (nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d)},
    nn.ConstantPad2d: [{"padding": (1, 2, 0, 3), "value": -1.5}],
    nn.CircularPad2d: [{"padding": 2}],
    nn.LPPool2d: [{"norm_type": 2, "kernel_size": 3, "ceil_mode": True}],
    nn.FractionalMaxPool2d: [{"kernel_size": 2, "output_size": 3}],
    nn.MaxUnpool2d: [{"kernel_size": 2, "stride": 2}],
    nn.Linear: [{"in_features": 3, "out_features": 4}, {"in_features": 3, "out_features": 4, "bias": False}],
    nn.Bilinear: [{"in1_features": 3, "in2_features": 4, "out_features": 2, "bias": False}],
    nn.LayerNorm: [{"normalized_shape": (4, 3)}, {"normalized_shape": 4, "elementwise_affine": False},
                   {"normalized_shape": 4, "bias": False}],
    nn.GroupNorm: [{"num_groups": 2, "num_channels": 4, "affine": False}, {"num_groups": 2, "num_channels": 4}],
    nn.LocalResponseNorm: [{"size": 3, "alpha": 0.1}],
    nn.PReLU: [{}, {"num_parameters": 5}],
    nn.RReLU: [{"lower": 0.1, "upper": 0.2}],
    nn.LeakyReLU: [{"negative_slope": 0.3, "inplace": True}],
    nn.Hardtanh: [{"min_val": -2.0, "max_val": 3.0}],
    nn.Threshold: [{"threshold": 0.1, "value": 20.0}],
    nn.GELU: [{"approximate": "tanh"}],
    nn.Softplus: [{"beta": 2.0, "threshold": 10.0}],
    nn.MultiheadAttention: [
        {"embed_dim": 8, "num_heads": 2}, {"embed_dim": 8, "num_heads": 2, "bias": False, "batch_first": True},
        {"embed_dim": 8, "num_heads": 2, "add_bias_kv": True, "add_zero_attn": True},
        {"embed_dim": 8, "num_heads": 2, "kdim": 6, "vdim": 4},
    ],
    nn.Embedding: [{"num_embeddings": 5, "embedding_dim": 3, "padding_idx": 1, "max_norm": 2.0}],
    nn.EmbeddingBag: [{"num_embeddings": 5, "embedding_dim": 3, "mode": "sum"}],
    nn.Flatten: [{}, {"start_dim": 2, "end_dim": 3}],
    nn.Unflatten: [{"dim": 1, "unflattened_size": (2, 3)}],
    nn.Fold: [{"output_size": (4, 5), "kernel_size": 2}],
    nn.Unfold: [{"kernel_size": 2, "dilation": 2}],
    nn.PixelShuffle: [{"upscale_factor": 2}],
    nn.PixelUnshuffle: [{"downscale_factor": 2}],
    nn.ChannelShuffle: [{"groups": 2}],
    nn.Upsample: [{"size": (4, 5)}, {"scale_factor": 2, "mode": "bilinear", "align_corners": True}],
    nn.UpsamplingNearest2d: [{"scale_factor": 2}],
    nn.UpsamplingBilinear2d: [{"size": 5}],
}  # fmt: skip
#: Those that hold modules of the caller.
REFUSED = [
    lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2),
    lambda: nn.TransformerEncoderLayer(8, 2, activation=torch.tanh),
    lambda: nn.ModuleList([nn.Linear(2, 2)]),
]
CASES = [(kind, arguments) for kind, choices in INSTANCES.items() for arguments in choices]


@pytest.mark.parametrize(("kind", "arguments"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_modules_come_back_with_their_state_and_their_words(kind, arguments):
    module = kind(**arguments)
    again = build_module(json.loads(json.dumps(describe_module(module))))
    assert type(again) is kind and repr(again) == repr(module)
    again.load_state_dict(module.state_dict())
    kept = {name for name in arguments if hasattr(module, name) and not isinstance(getattr(module, name), torch.Tensor)}
    assert all(getattr(again, name) == getattr(module, name) for name in kept if not callable(getattr(module, name)))


@pytest.mark.parametrize("make", REFUSED)
def test_what_does_not_come_back_is_refused_with_the_option_that_leaves_it(make):
    with pytest.raises(DecompError, match=r"^net\.part: .*; leave it as it is with --leaf net\.part\.$"):
        describe_module(make(), "net.part")


def test_a_module_that_was_changed_after_it_was_made_is_refused():
    module = nn.LSTM(4, 5)
    module.extra = nn.Linear(2, 2)
    with pytest.raises(DecompError, match="this LSTM does not come back from its arguments .*--leaf r"):
        describe_module(module, "r")


def test_every_layer_of_torch_has_an_instance_here():
    families = (
        "Lazy",
        "Module",
        "Parameter",
        "Sequential",
        "Transformer",
        "Container",
        "RNNBase",
        "RNNCellBase",
        "Data",
    )
    classes = [n for n, k in vars(nn).items() if inspect.isclass(k) and issubclass(k, nn.Module)]
    layers = {n for n in classes if not n.startswith(families) and "Loss" not in n}
    missing = layers - {kind.__name__ for kind in INSTANCES}
    assert len(layers) > 100 and not missing, missing
