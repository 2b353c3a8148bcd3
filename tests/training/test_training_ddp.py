"""Distributed training in real processes.

They are forked, so that they need not import everything again, and a process in which autograd has
started threads cannot be forked: the runs get a fresh one.
"""

import subprocess
import sys
from pathlib import Path


def test_two_processes_train_as_one():
    runs = Path(__file__).with_name("ddp_runs.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(runs)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
