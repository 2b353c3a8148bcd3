"""Open a ``.pt2`` archive that may come from anywhere: nothing but a plain graph is accepted.

``torch.export.load`` trusts its file. It unpickles tensors and objects that say so, loads compiled
libraries that are packed in, evaluates sizes as Python expressions, and lets a node of the graph
name any function of torch. Here the archive is read into memory once, held against what
``torch.export.save`` writes for a network of tensors, and only then handed to torch.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from repblocks.errors import CheckpointError

_RECORDS = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|models/model\.json|data/sample_inputs/model\.pt"
    r"|archive_format|archive_version|byteorder|version|\.data/\w+"
)
_GRAPH, _SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")

_NAME = re.compile(r"[\w.\-]*", re.ASCII)
_ANYTHING = re.compile(r".*", re.DOTALL)
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!from_file\.|save\.)\w+\.\w+"
    r"|torch\.ops\.torchvision\.\w+\.\w+"
    r"|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
    r"|_operator\.(eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|truediv|mod|pow|and_|or_|getitem)"
    r"|torch\.sym_\w+|math\.trunc",
    re.ASCII,
)
# Sizes as sympy writes them: numbers, symbols, and functions of the tables of sympy and torch.
_SIZE = re.compile(
    r"(?:Symbol\('[su]\d+'(?:, \w+=(?:True|False))*\)"
    r"|(?:Add|Mul|Pow|Integer|Rational|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|IntTrueDiv"
    r"|FloatTrueDiv|ModularIndexing|Identity|ToFloat|TruncToInt|CeilToInt|FloorToInt|RoundToInt"
    r"|Equality|Unequality|StrictLessThan|StrictGreaterThan|LessThan|GreaterThan|Eq|Ne|Lt|Le|Gt|Ge"
    r")\(|[\d\s\-(),])*",
    re.ASCII,
)
_STRUCTURE = re.compile(
    r'("(type|context|children_spec|null|\[\]|builtins\.(tuple|list|dict))"|null|[\d\s\[\]{}:,])*'
)
# Strings of the graph by their key; any other string is a name.
_RULES = {
    "target": _OPERATOR,
    "as_operator": _OPERATOR,
    "expr_str": _SIZE,
    "in_spec": _STRUCTURE,
    "out_spec": _STRUCTURE,
    "as_string": _ANYTHING,  # an argument of an operator that is allowed
    "torch_version": _ANYTHING,
}
_METADATA = {"nn_module_stack", "torch_fn", "source_fn_stack"}
_GUARDS = "guards_code"  # read() makes the module without them


def load_program(path: Path) -> ExportedProgram:
    """Load the program of an archive.

    Raises:
        CheckpointError: if the archive is damaged, or holds anything but a graph of tensor
            operations with its weights.
    """
    from torch.export.pt2_archive._package import PT2ArchiveReader, load_pt2

    buffer = io.BytesIO(path.read_bytes())
    try:
        _check(PT2ArchiveReader(buffer))
    except _RefusedError as refused:
        raise CheckpointError(
            f"{path} {refused}, which no artifact of repblocks holds. Nothing in it was run. "
            "Deploy the checkpoint again, or take the file from somebody you trust and open it "
            "with torch.export.load."
        ) from None
    except (RuntimeError, AssertionError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged or no archive of torch.export: {str(error).splitlines()[0][:200]}."
        ) from error
    buffer.seek(0)
    return load_pt2(buffer).exported_programs["model"]


class _RefusedError(Exception):
    """What an archive holds that it must not hold."""


def _check(archive: Any) -> None:
    records = archive.get_file_names()
    for name in records:
        if not _RECORDS.fullmatch(name):
            raise _RefusedError(f"holds the record {name!r}")
    if _SAMPLES in records and archive.read_bytes(_SAMPLES):
        raise _RefusedError("holds sample inputs, which are a pickle")
    for name in _CONFIGS:
        for key, entry in json.loads(archive.read_bytes(name))["config"].items():
            _check_payload(key, entry)
    _check_graph(json.loads(archive.read_bytes(_GRAPH)))


def _check_payload(key: str, entry: dict[str, Any]) -> None:
    if entry["use_pickle"] is not False:
        raise _RefusedError(f"holds {key!r} as a pickle")
    if not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
        raise _RefusedError(f"takes {key!r} from {entry['path_name']!r}")


def _check_graph(node: Any, key: str = "") -> None:
    """Hold every text of the graph against what may stand in its place."""
    if isinstance(node, dict):
        for name, value in node.items():
            _check_graph(name)
            if not _is_note(name, value):
                _check_graph(value, name)
    elif isinstance(node, list):
        for value in node:
            _check_graph(value, key)
    elif isinstance(node, str) and not _RULES.get(key, _NAME).fullmatch(node):
        raise _RefusedError(f"holds {key or 'the text'} {node[:200]!r}")


def _is_note(name: str, value: Any) -> bool:
    """Tell whether something is text about a node or its guards, which nothing runs."""
    if name == "metadata" and isinstance(value, dict) and set(value) <= _METADATA:
        return all(isinstance(text, str) for text in value.values())
    return name == _GUARDS and isinstance(value, list) and all(isinstance(x, str) for x in value)
