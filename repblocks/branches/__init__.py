"""The branch tree that a block declares, and the shape it must fit."""

from repblocks.branches.dilated import dilated as dilated
from repblocks.branches.nodes import AveragePool as AveragePool
from repblocks.branches.nodes import BatchNormPad as BatchNormPad
from repblocks.branches.nodes import Pad as Pad
from repblocks.branches.nodes import SplitConcat as SplitConcat
from repblocks.branches.nodes import Subsample as Subsample
from repblocks.branches.nodes import Sum as Sum
from repblocks.branches.post_norm import normed_after_sum as normed_after_sum
from repblocks.branches.post_norm import without_norm as without_norm
from repblocks.branches.shape import ConvShape as ConvShape
from repblocks.branches.shape import Size as Size
