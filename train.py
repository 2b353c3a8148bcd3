"""Train a network: ``uv run train.py --help`` says how."""

from repblocks.cli.train import main

if __name__ == "__main__":
    main()
