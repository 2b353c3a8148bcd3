"""Fold an ONNX file that was exported with its branches still in it, from any framework."""

from repblocks.deployment.onnx_fold.pipeline import explain_onnx as explain_onnx
from repblocks.deployment.onnx_fold.pipeline import fold_onnx as fold_onnx
