"""The inverse of folding: blocks in the places of a network's convolutions."""

from repblocks.expansion.dyrep import cut_ as cut_
from repblocks.expansion.dyrep import grow_ as grow_
from repblocks.expansion.dyrep import saliency as saliency
from repblocks.expansion.dyrep import weak_branches as weak_branches
from repblocks.expansion.expand import expand as expand
from repblocks.expansion.grown import match_branches_ as match_branches_
from repblocks.expansion.norms import insert_bn as insert_bn
from repblocks.expansion.norms import recalibrate_bn as recalibrate_bn
from repblocks.expansion.replacing import Replacement as Replacement
from repblocks.expansion.solving import set_to_kernel_ as set_to_kernel_
from repblocks.expansion.swap import swap as swap
