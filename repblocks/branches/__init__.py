"""The branch tree that a block declares, and the shape it must fit."""

from repblocks.branches.chains import in_series as in_series
from repblocks.branches.chains import padded_series as padded_series
from repblocks.branches.chains import small_sizes as small_sizes
from repblocks.branches.dilated import dilated as dilated
from repblocks.branches.filters import FixedFilters as FixedFilters
from repblocks.branches.filters import RepeatChannels as RepeatChannels
from repblocks.branches.filters import Scale as Scale
from repblocks.branches.filters import cosine_filters as cosine_filters
from repblocks.branches.filters import laplacian_filters as laplacian_filters
from repblocks.branches.filters import sobel_filters as sobel_filters
from repblocks.branches.nodes import AveragePool as AveragePool
from repblocks.branches.nodes import BatchNormPad as BatchNormPad
from repblocks.branches.nodes import Pad as Pad
from repblocks.branches.nodes import SplitConcat as SplitConcat
from repblocks.branches.nodes import Subsample as Subsample
from repblocks.branches.nodes import Sum as Sum
from repblocks.branches.options import check_choice as check_choice
from repblocks.branches.options import check_count as check_count
from repblocks.branches.options import check_factor as check_factor
from repblocks.branches.options import check_flag as check_flag
from repblocks.branches.post_norm import normed_after_sum as normed_after_sum
from repblocks.branches.post_norm import one_kernel as one_kernel
from repblocks.branches.post_norm import without_norm as without_norm
from repblocks.branches.shape import ConvShape as ConvShape
from repblocks.branches.shape import Size as Size
