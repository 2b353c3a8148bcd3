"""Check every key of a configuration before anything is built, and name all wrong ones at once."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from hydra.utils import get_object

from repblocks.errors import ConfigurationError

Parameters = Mapping[str, inspect.Parameter]
_SPECIAL = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")
_CONTAINERS: dict[Any, type] = {dict: Mapping, Mapping: Mapping, list: list}
_PLAIN = (bool, int, float, str, NoneType)
_WORDS: dict[Any, str] = {
    NoneType: "null",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a group of keys",
    Mapping: "a group of keys",
}
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def parameters_of(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Give the parameters of a function or class by name, with annotations where they resolve."""
    try:
        signature = inspect.signature(target, eval_str=True)
    except (NameError, TypeError):
        signature = inspect.signature(target)
    return dict(signature.parameters)


def check(
    settings: Mapping[str, Any],
    known: Parameters,
    nodes: Mapping[str, Parameters],
    instead: Mapping[str, str] | None = None,
) -> None:
    """Check keys, plain types and missing values at every depth.

    Args:
        settings: A configuration, with its interpolations as they are written.
        known: Its top-level keys.
        nodes: The keys of nodes, by path, whose ``_target_`` does not say them.
        instead: By path, what to say about a wrong key where more is known about it.

    Raises:
        ConfigurationError: naming each wrong key with its path and the nearest valid name.
    """
    found = _problems(settings, known, nodes, "")
    wrong = [(instead or {}).get(text.partition(" ")[0], text) for text in found]
    if wrong:
        count = "1 mistake" if len(wrong) == 1 else f"{len(wrong)} mistakes"
        lines = "\n".join(f"  - {line}" for line in wrong)
        raise ConfigurationError(f"The configuration has {count}:\n{lines}")


def _problems(
    node: Mapping[str, Any], known: Parameters, nodes: Mapping[str, Parameters], path: str
) -> Iterator[str]:
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    names = [name for name, p in known.items() if p.kind in _NAMED]
    for key, value in node.items():
        where = f"{path}.{key}".lstrip(".")
        if key in _SPECIAL:
            continue
        if key in names:
            yield from _value_problems(value, known[key].annotation, where)
        elif not takes_any:
            yield f"{where} does not exist.{_hint(str(key), names, path)}"
            continue
        yield from _nested(value, nodes, where)
    if not node.get("_partial_"):
        for name in names:
            if known[name].default is inspect.Parameter.empty and name not in node:
                yield f"{path}.{name}".lstrip(".") + " is missing."


def _nested(value: Any, nodes: Mapping[str, Parameters], path: str) -> Iterator[str]:
    """Look into nodes: those that are known, those with a ``_target_``, and mere containers."""
    if isinstance(value, Mapping) and path in nodes:
        yield from _problems(value, nodes[path], nodes, path)
    elif isinstance(value, Mapping) and "_target_" in value:
        yield from _target_problems(value, nodes, path)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _nested(item, nodes, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _nested(item, nodes, f"{path}[{index}]")


def _target_problems(
    node: Mapping[str, Any], nodes: Mapping[str, Parameters], path: str
) -> Iterator[str]:
    try:
        known = parameters_of(get_object(str(node["_target_"])))
    except (ImportError, ValueError, TypeError) as error:
        yield f"{path}._target_ cannot be imported: {error}"
    else:
        yield from _problems(node, known, nodes, path)


def _value_problems(value: Any, annotation: Any, path: str) -> Iterator[str]:
    if value == "???":
        yield f"{path} is required. Set it with {path}=VALUE."
    elif not (isinstance(value, str) and "${" in value) and not fits(value, annotation):
        yield f"{path} must be {_describe(annotation)}, got {value!r}."


def fits(value: Any, annotation: Any) -> bool:
    """Tell whether a plain value fits an annotation; one that is not plain takes everything."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in get_args(annotation))
    if origin is Literal:
        return value in get_args(annotation)
    if origin in _CONTAINERS:
        return isinstance(value, _CONTAINERS[origin])
    if annotation is float:
        return type(value) in (int, float)
    return annotation not in _PLAIN or type(value) is annotation


def _describe(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, get_args(annotation)))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_describe(part) for part in get_args(annotation))
    return _WORDS.get(get_origin(annotation) or annotation) or str(annotation)


def _hint(key: str, names: Iterable[str], path: str) -> str:
    known = sorted(names)
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if nearest:
        return f" Did you mean {path + '.' if path else ''}{nearest[0]}?"
    return f" Known: {', '.join(known)}." if known else " Nothing can be set there."
