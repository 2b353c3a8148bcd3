"""The export formats; each file registers itself."""

from repblocks.deployment.formats import onnx as onnx
from repblocks.deployment.formats import pt2 as pt2
from repblocks.deployment.formats import safetensors as safetensors
from repblocks.deployment.formats._registry import AUTO as AUTO
from repblocks.deployment.formats._registry import Export as Export
from repblocks.deployment.formats._registry import Format as Format
from repblocks.deployment.formats._registry import Run as Run
from repblocks.deployment.formats._registry import check_formats as check_formats
from repblocks.deployment.formats._registry import get_format as get_format
from repblocks.deployment.formats._registry import list_formats as list_formats
