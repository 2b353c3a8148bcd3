"""The networks; importing this registers them with timm as ``repblocks_<family>_<variant>``."""

from repblocks.models.mobilenetv1 import MobileNetV1 as MobileNetV1
from repblocks.models.mobileone import MobileOne as MobileOne
from repblocks.models.repnext import RepNeXt as RepNeXt
from repblocks.models.repvgg import RepVGG as RepVGG
from repblocks.models.resnet import ResNet as ResNet
from repblocks.models.resnet_cifar import ResNetCifar as ResNetCifar
from repblocks.models.timm_network import repblocks_timm as repblocks_timm
from repblocks.models.vgg import VGG as VGG
