"""The networks; importing this registers them with timm as ``repblocks_<family>_<variant>``.

``ECBSR`` and ``SPAN`` are no classifiers, and not registered.
"""

from repblocks.models.ecbsr import ECBSR as ECBSR
from repblocks.models.fastvit import FastViT as FastViT
from repblocks.models.mobilenetv1 import MobileNetV1 as MobileNetV1
from repblocks.models.mobileone import MobileOne as MobileOne
from repblocks.models.official import load_official as load_official
from repblocks.models.repghost import RepGhostNet as RepGhostNet
from repblocks.models.replknet import RepLKNet as RepLKNet
from repblocks.models.repnext import RepNeXt as RepNeXt
from repblocks.models.repnext_chunk import RepNeXtChunk as RepNeXtChunk
from repblocks.models.repvgg import RepVGG as RepVGG
from repblocks.models.repvit import RepViT as RepViT
from repblocks.models.resnet import ResNet as ResNet
from repblocks.models.resnet_cifar import ResNetCifar as ResNetCifar
from repblocks.models.span import SPAN as SPAN
from repblocks.models.timm_network import repblocks_timm as repblocks_timm
from repblocks.models.unireplknet import UniRepLKNet as UniRepLKNet
from repblocks.models.vanillanet import VanillaNet as VanillaNet
from repblocks.models.vgg import VGG as VGG
