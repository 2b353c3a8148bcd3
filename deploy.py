"""Deploy a checkpoint: ``uv run deploy.py --help`` says how."""

from repblocks.cli.deploy import main

if __name__ == "__main__":
    main()
