"""The library of re-parameterizable blocks; importing it registers them all."""

from repblocks.blocks._base import ConvBlock as ConvBlock
from repblocks.blocks._base import RepBlock as RepBlock
from repblocks.blocks._base import set_execution as set_execution
from repblocks.blocks._registry import CONV_BLOCKS as CONV_BLOCKS
from repblocks.blocks._registry import STAGE_BLOCKS as STAGE_BLOCKS
from repblocks.blocks._registry import Registry as Registry
from repblocks.blocks._registry import create_block as create_block
from repblocks.blocks._registry import register_block as register_block
from repblocks.blocks._registry import register_stage_block as register_stage_block
from repblocks.blocks.acb import ACBlock as ACBlock
from repblocks.blocks.conv3xc import Conv3XCBlock as Conv3XCBlock
from repblocks.blocks.dbb import DiverseBranchBlock as DiverseBranchBlock
from repblocks.blocks.dilated_reparam import DilatedReparamBlock as DilatedReparamBlock
from repblocks.blocks.do_conv import DOConvBlock as DOConvBlock
from repblocks.blocks.ecb import ECBlock as ECBlock
from repblocks.blocks.expand_conv import ExpandConvBlock as ExpandConvBlock
from repblocks.blocks.large_kernel import LargeKernelBlock as LargeKernelBlock
from repblocks.blocks.mobileone import MobileOneBlock as MobileOneBlock
from repblocks.blocks.orepa import OREPABlock as OREPABlock
from repblocks.blocks.plain import PlainBlock as PlainBlock
from repblocks.blocks.qarepvgg import QARepVGGBlock as QARepVGGBlock
from repblocks.blocks.repconv import RepConvBlock as RepConvBlock
from repblocks.blocks.repnext import RepNeXtBlock as RepNeXtBlock
from repblocks.blocks.repvgg import RepVGGBlock as RepVGGBlock
from repblocks.blocks.repvgg_dw import RepVGGDWBlock as RepVGGDWBlock
from repblocks.blocks.repvgg_plus import RepVGGPlusBlock as RepVGGPlusBlock
