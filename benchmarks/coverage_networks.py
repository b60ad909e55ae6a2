"""Networks of the coverage table: torchvision, timm, segmentation_models_pytorch, ultralytics; random weights.

A name is ``MODEL`` (torchvision's classifiers), ``timm:MODEL``, ``segmentation:MODEL`` and ``detection:MODEL``
(torchvision's), ``smp:ARCHITECTURE/ENCODER`` or ``yolo:CONFIGURATION``. Of detection networks it is the part that runs
on images of one size: backbone and heads, up to the maps that boxes are decoded from.
"""

import torch
from torch import nn

TIMM = (
    "resnet18", "resnet50d", "seresnet50", "resnext50_32x4d", "regnety_004", "efficientnet_b0", "mobilenetv3_small_100",
    "mobilenetv2_100", "densenet121", "convnext_atto", "ghostnet_100", "hrnet_w18_small", "res2net50_26w_4s",
    "dla34", "repvgg_a0", "vgg11_bn", "inception_v4", "xception41", "nfnet_l0", "vit_tiny_patch16_224",
    "tf_efficientnet_b0", "tf_efficientnetv2_b0", "tf_mixnet_s", "tf_mobilenetv3_small_075", "efficientnet_lite0",
    "mobilenetv4_conv_small", "mobileone_s0", "repvit_m0_9", "fastvit_t8", "ghostnetv2_100", "hardcorenas_a",
    "lcnet_050", "mnasnet_100", "rexnet_100", "skresnet18", "resnest14d", "resnetv2_50x1_bit", "resnetblur50",
    "ecaresnet26t", "botnet26t_256", "cspresnet50", "cspdarknet53", "darknet53", "dpn68", "ese_vovnet19b_dw",
    "hgnetv2_b0", "gernet_s", "selecsls42b", "edgenext_xx_small", "mobilevit_xxs", "efficientformerv2_s0",
    "starnet_s1", "inception_resnet_v2", "nf_resnet50", "eca_nfnet_l0", "tresnet_m", "legacy_senet154",
)  # fmt: skip
SEGMENTATION = ("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
DETECTION = (
    "fasterrcnn_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_fpn", "maskrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn", "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)  # fmt: skip
SMP = (
    "Unet/resnet18", "Unet/mobilenet_v2", "Unet/efficientnet-b0", "UnetPlusPlus/resnet18", "MAnet/resnet18",
    "Linknet/resnet18", "FPN/resnet18", "PSPNet/resnet18", "PAN/resnet18", "DeepLabV3/resnet18",
    "DeepLabV3Plus/mobilenet_v2", "UPerNet/resnet18", "Segformer/resnet18", "Unet/vgg11_bn", "Unet/densenet121",
)  # fmt: skip
YOLO = (
    "yolov5n", "yolov8n", "yolov8n-seg", "yolov8n-pose", "yolov8n-cls", "yolov9t", "yolov10n", "yolo11n", "yolo11n-seg",
    "yolo11n-cls", "yolo12n",
)  # fmt: skip


class DetectionMaps(nn.Module):
    """Backbone of a torchvision detection network, with the heads that run on all of its maps where it has such."""

    def __init__(self, model):
        super().__init__()
        rpn = getattr(model, "rpn", None)
        self.backbone, self.head = model.backbone, rpn.head if rpn is not None else model.head

    def forward(self, images):
        maps = list(self.backbone(images).values())
        return self.head(maps)


class YoloMaps(nn.Module):
    """An ultralytics network up to the maps that its last module decodes boxes from."""

    def __init__(self, model):
        super().__init__()
        self.layers = model.model[:-1]
        last = model.model[-1]
        self.sources, self.boxes, self.classes = list(last.f), last.cv2, last.cv3
        self.other = getattr(last, "cv4", None)

    def forward(self, x):
        kept = []
        for layer in self.layers:
            taken = layer.f if isinstance(layer.f, list) else [layer.f]
            values = [x if i == -1 else kept[i] for i in taken]
            x = layer(values if isinstance(layer.f, list) else values[0])
            kept.append(x)
        maps = [kept[i] for i in self.sources]
        heads = [self.boxes, self.classes] + ([self.other] if self.other is not None else [])
        return [[branch(value) for branch, value in zip(head, maps)] for head in heads]


def listed():
    """Names of all networks to go through, and a line about libraries that are not installed."""
    from torchvision import models

    names = models.list_models(module=models)
    names += [f"segmentation:{name}" for name in SEGMENTATION] + [f"detection:{name}" for name in DETECTION]
    missing = []
    for library, prefix, entries in (
        ("timm", "timm", TIMM), ("segmentation_models_pytorch", "smp", SMP), ("ultralytics", "yolo", YOLO)
    ):  # fmt: skip
        try:
            __import__(library)
        except ImportError:
            missing.append(library)
            continue
        names += [f"{prefix}:{name}" for name in entries]
    return names, f"not installed, their networks are skipped: {', '.join(missing)}" if missing else ""


def build(name):
    """A network with random weights and statistics, and its small input shape."""
    kind, _, model = name.rpartition(":")
    module, size = {
        "": torchvision_classifier, "timm": timm_network, "segmentation": torchvision_segmentation,
        "detection": torchvision_detection, "smp": smp_network, "yolo": yolo_network,
    }[kind](model)  # fmt: skip
    randomise(module)
    return module.eval(), (3, size, size)


def torchvision_classifier(name):
    from torchvision import models

    size, options = 64, {}
    if name.startswith("vit"):
        size = options["image_size"] = 28 if "14" in name else 32
    elif name.startswith("maxvit"):
        size = 224
    elif name.startswith("inception"):
        size = 96
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    return models.get_model(name, weights=None, **options), size


def torchvision_segmentation(name):
    from torchvision.models import segmentation

    return getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=5), 64


def torchvision_detection(name):
    from torchvision.models import detection

    model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=5)
    return DetectionMaps(model), 320 if name.startswith("ssd") else 96


def timm_network(name):
    import timm

    sizes = {"vit": 224, "inception": 96, "botnet": 256, "mobilevit": 128, "efficientformer": 224, "edgenext": 128}
    size = next((value for word, value in sizes.items() if word in name and not name.startswith("rep")), 64)
    return timm.create_model(name, pretrained=False), size


def smp_network(name):
    import segmentation_models_pytorch as smp

    architecture, encoder = name.split("/")
    return getattr(smp, architecture)(encoder, encoder_weights=None, classes=3), 128


def yolo_network(name):
    from ultralytics import YOLO as Yolo

    model = Yolo(f"{name}.yaml", verbose=False).model
    return (model if name.endswith("-cls") else YoloMaps(model)), 96


def randomise(module):
    """Random normalisation statistics, and linear weights: some begin at zero, which would hide every difference."""
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = torch.randn(layer.running_mean.shape, generator=generator) * 0.1
            layer.running_var = torch.rand(layer.running_var.shape, generator=generator) + 0.5
        elif isinstance(layer, nn.Linear):
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * layer.in_features**-0.5
