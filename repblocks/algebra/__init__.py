"""The algebra of re-parameterization: kernels as values, and the identities between them."""

from repblocks.algebra.affine import AffineMap as AffineMap
from repblocks.algebra.kernel import ConvKernel as ConvKernel
from repblocks.algebra.kernel import concat_kernels as concat_kernels
from repblocks.algebra.normalization import is_batch_norm as is_batch_norm
from repblocks.algebra.rules import apply as apply
from repblocks.algebra.shortcut import expand_shortcut as expand_shortcut
from repblocks.algebra.special import linear_to_pointwise as linear_to_pointwise
from repblocks.algebra.special import pointwise_to_linear as pointwise_to_linear
