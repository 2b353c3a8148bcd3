"""The stem of a network trains in channels_last, where torch's own pointwise branch may crash."""

import subprocess
import sys
from pathlib import Path

import pytest

RUNS = Path(__file__).with_name("execution_stem_runs.py")


@pytest.mark.parametrize("execution", ["branchwise", "merged", "weight_space"])
def test_strided_blocks_of_few_channels(execution):
    done = subprocess.run(
        [sys.executable, str(RUNS), execution], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
