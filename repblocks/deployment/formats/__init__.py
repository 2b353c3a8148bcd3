"""The export formats; each file registers itself."""

from repblocks.deployment.formats import aoti as aoti
from repblocks.deployment.formats import coreml as coreml
from repblocks.deployment.formats import executorch as executorch
from repblocks.deployment.formats import onnx as onnx
from repblocks.deployment.formats import onnx_int8 as onnx_int8
from repblocks.deployment.formats import openvino as openvino
from repblocks.deployment.formats import openvino_int8 as openvino_int8
from repblocks.deployment.formats import pt2 as pt2
from repblocks.deployment.formats import safetensors as safetensors
from repblocks.deployment.formats import tensorrt as tensorrt
from repblocks.deployment.formats import torchscript as torchscript
from repblocks.deployment.formats._needs import packages_of as packages_of
from repblocks.deployment.formats._registry import AUTO as AUTO
from repblocks.deployment.formats._registry import Export as Export
from repblocks.deployment.formats._registry import Format as Format
from repblocks.deployment.formats._registry import Run as Run
from repblocks.deployment.formats._registry import check_formats as check_formats
from repblocks.deployment.formats._registry import check_onnx as check_onnx
from repblocks.deployment.formats._registry import get_format as get_format
from repblocks.deployment.formats._registry import list_formats as list_formats
from repblocks.deployment.formats._registry import quantizing_formats as quantizing_formats
