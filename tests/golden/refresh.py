"""Write the stored numbers of all blocks anew: ``uv run python tests/golden/refresh.py``.

They are what a refactoring is judged by: refresh them only where a fold shall give other numbers,
and say so with the change.
"""

import json

from golden_folds import FOLDER, cases, numbers

from repblocks.blocks import CONV_BLOCKS, STAGE_BLOCKS
from repblocks.errors import ConfigurationError


def refresh() -> None:
    """Store every registered block, and forget those that are gone."""
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.json"):
        path.unlink()
    for name in (*CONV_BLOCKS, *STAGE_BLOCKS):
        (FOLDER / f"{name}.json").write_text(json.dumps(_all_cases(name), indent=1) + "\n")


def _all_cases(name: str) -> dict[str, object]:
    """Compute the cases that a block does not refuse."""
    found: dict[str, object] = {}
    for case in cases(name):
        try:
            found[case] = numbers(name, case)
        except ConfigurationError:
            continue
    return found


if __name__ == "__main__":
    refresh()
