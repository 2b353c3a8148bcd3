"""All wrong keys are found at once, each with its path and the nearest right one."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from repblocks.cli.checking import check, fits, parameters_of
from repblocks.errors import ConfigurationError


@dataclass
class Inner:
    size: int = 1
    rate: float | None = None


@dataclass
class Top:
    seed: int
    kind: Literal["a", "b"]
    inner: dict[str, Any]
    names: list[str]


def wrong(settings: dict[str, Any]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        check(settings, parameters_of(Top), {"inner.known": parameters_of(Inner)})
    return str(caught.value)


GOOD: dict[str, Any] = {"seed": 1, "kind": "a", "inner": {}, "names": []}


def test_what_is_right_passes():
    target = {"_target_": f"{__name__}.Inner", "size": "${seed}", "rate": 1}
    check({**GOOD, "inner": {"deep": [target]}}, parameters_of(Top), {})


def test_all_mistakes_are_in_one_message():
    inner = {"deep": [{"_target_": f"{__name__}.Inner", "sise": 2}], "known": {"rat": 1}}
    message = wrong({"seeed": 1, "kind": "c", "inner": inner, "names": 3, "seed": True})
    assert message.splitlines() == [
        "The configuration has 6 mistakes:",
        "  - seeed does not exist. Did you mean seed?",
        "  - kind must be a or b, got 'c'.",
        "  - inner.deep[0].sise does not exist. Did you mean inner.deep[0].size?",
        "  - inner.known.rat does not exist. Did you mean inner.known.rate?",
        "  - names must be a list, got 3.",
        "  - seed must be an integer, got True.",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "???"}, "seed is required. Set it with seed=VALUE."),
        ({"zzz": 1}, "zzz does not exist. Known: inner, kind, names, seed."),
        ({"inner": {"x": {"_target_": "no.such"}}}, "inner.x._target_ cannot be imported: "),
        ({"inner": None}, "inner must be a group of keys, got None."),
    ],
)
def test_one_mistake(change, message):
    text = wrong({**GOOD, **change})
    assert text.startswith("The configuration has 1 mistake:")
    assert message in text


def test_missing_keys_and_partial_nodes():
    assert "seed is missing." in wrong({key: GOOD[key] for key in ("kind", "inner", "names")})
    node = {"_target_": f"{__name__}.Top", "_partial_": True}
    check({**GOOD, "inner": {"x": node}}, parameters_of(Top), {})
    assert "inner.x.seed is missing." in wrong({**GOOD, "inner": {"x": {**node, "_partial_": 0}}})


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, float, True),
        (True, float, False),
        (1.0, int, False),
        (None, int | None, True),
        ({}, Mapping[str, int] | None, True),
        ("x", Mapping[str, int], False),
        ("x", inspect.Parameter, True),
    ],
)
def test_fits(value, annotation, expected):
    assert fits(value, annotation) is expected
