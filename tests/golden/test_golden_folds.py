"""Every block folds to the numbers that are stored, which only `refresh.py` may change."""

import copy

import pytest
from golden_folds import FOLDER, numbers, stored

from repblocks.blocks import CONV_BLOCKS
from repblocks.errors import UnknownNameError

STORED = stored()
CASES = [(name, case) for name, found in STORED.items() for case in found]


def differences(found, expected):
    """Name the tensors whose numbers differ, or which only one of the two has."""
    missing = found.keys() ^ expected.keys()
    close = {"rel": 1e-10, "abs": 1e-10}
    return sorted(missing) + [
        name
        for name in sorted(found.keys() & expected.keys())
        if found[name]["shape"] != expected[name]["shape"]
        or found[name]["values"] != pytest.approx(expected[name]["values"], **close)
        or any(found[name][k] != pytest.approx(expected[name][k], **close) for k in SUMS)
    ]


SUMS = ("sum", "projection")


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_fold_gives_the_stored_numbers(name, case):
    assert differences(numbers(name, case), STORED[name][case]) == []


def test_both_forms_are_stored_and_agree():
    for name, case in CASES:
        found = STORED[name][case]
        before = {"output": found["output before"]}
        assert differences({"output": found["output"]}, before) == [], (name, case)


def test_blocks_are_stored_and_small():
    assert "repvgg" in STORED
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 200_000


def test_a_block_that_is_gone_fails():
    with pytest.raises(UnknownNameError, match="gone"):
        numbers("gone", "add")


@pytest.mark.parametrize("key", ["shape", *SUMS, "values"])
def test_a_change_of_any_number_is_seen(key):
    name = next(iter(CONV_BLOCKS))
    expected = STORED[name]["square"]
    changed = copy.deepcopy(expected)
    number = changed["conv.weight"][key]
    changed["conv.weight"][key] = (
        [*number[:-1], number[-1] + 1e-9] if isinstance(number, list) else number + 1e-8
    )
    assert differences(changed, expected) == ["conv.weight"]
