"""What it costs to start: the imports, and the help of the command line.

    uv run benchmarks/start_up.py

Each command runs in a process of its own, in turn; ratios are to ``import torch``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from _interleaved import print_table, time_interleaved

ROOT = Path(__file__).parent.parent
COMMANDS = {
    "import torch": ["-c", "import torch"],
    "import repblocks": ["-c", "import repblocks"],
    "import repblocks.algebra": ["-c", "import repblocks.algebra"],
    "import repblocks.blocks": ["-c", "import repblocks.blocks"],
    "train.py --help": ["train.py", "--help"],
}


def main() -> None:
    """Print the table."""

    def run(arguments: list[str]) -> None:
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)

    functions = {name: lambda a=arguments: run(a) for name, arguments in COMMANDS.items()}
    times = time_interleaved(functions, rounds=5, repeats=1)
    rows = [
        [name, f"{spent / 1000:.2f}", f"{spent / times['import torch']:.2f}"]
        for name, spent in times.items()
    ]
    print_table("Start-up, warm file cache", ["command", "seconds", "ratio"], rows)


if __name__ == "__main__":
    main()
