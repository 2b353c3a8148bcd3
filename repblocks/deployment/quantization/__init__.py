"""Post-training quantization to 8 bits: what is ours around the quantizers of the libraries."""

from repblocks.deployment.quantization.options import QuantizationConfig as QuantizationConfig
