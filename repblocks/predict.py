"""``python -m repblocks.predict ARTIFACT image.jpg``: say what is in images.

Prints the labels and probabilities of each image, or a line of JSON. Exit code 2 if an image could
not be read or a mistake was made, otherwise 0.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from repblocks.errors import DataError, RepblocksError, printable

if TYPE_CHECKING:
    from repblocks.deployment.classifying import Prediction


def main(arguments: Sequence[str] | None = None) -> int:
    """Classify the images that the command line names.

    Args:
        arguments: The command line; that of the process by default.

    Returns:
        The exit code.
    """
    wanted = _parser().parse_args(arguments)
    try:
        return _predict(wanted)
    except BrokenPipeError:  # whoever read the lines has enough of them
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("Stopped by Ctrl-C.\n")
        return 130
    except (RepblocksError, OSError) as error:
        sys.stderr.write(printable(f"{error}\n", keep="\n"))
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="repblocks-predict", description="Classify images with an artifact of deploy.py."
    )
    parser.add_argument("artifact", type=Path, help="the folder that deploy.py wrote")
    parser.add_argument("images", type=Path, nargs="+", help="image files, or folders of them")
    parser.add_argument("--form", help="the written form to run, as onnx; default: the best here")
    parser.add_argument("--top", type=_positive, default=5, help="classes of each image (5)")
    parser.add_argument("--batch-size", type=_positive, default=32, help="images at once (32)")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each image")
    parser.add_argument("--trust", action="store_true", help="run forms that hold code, too")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _predict(wanted: argparse.Namespace) -> int:
    # torch and timm take seconds to load, and --help does without them.
    from repblocks.deployment.classifying import Classifier, find_images

    paths = find_images(wanted.images)
    classifier = Classifier(wanted.artifact, wanted.form, trust=wanted.trust)
    show: Callable[[Path, list[Prediction]], str] = _as_json if wanted.json else _as_text
    num_broken = 0
    found = classifier.classify(paths, top=wanted.top, batch_size=wanted.batch_size)
    for path, result in _progress(found, len(paths)):
        if isinstance(result, DataError):
            num_broken += 1
            sys.stderr.write(printable(str(result)) + "\n")
        else:
            sys.stdout.write(show(path, result) + "\n")
    sys.stdout.flush()
    return 2 if num_broken else 0


def _progress(results: Iterable[Any], total: int) -> Iterable[Any]:
    """Show a bar where lines go elsewhere and somebody watches."""
    console = Console(stderr=True)
    if sys.stdout.isatty() or not console.is_terminal:
        return results
    return _tracked(results, total, console)


def _tracked(results: Iterable[Any], total: int, console: Console) -> Iterator[Any]:
    # The lines must not go where the bar is.
    with Progress(console=console, transient=True, redirect_stdout=False) as progress:
        yield from progress.track(results, total, description="Classifying")


def _as_json(path: Path, predictions: list[Prediction]) -> str:
    return json.dumps({"file": str(path), "predictions": [asdict(one) for one in predictions]})


def _as_text(path: Path, predictions: list[Prediction]) -> str:
    """Give a line; what is no printable character of a label cannot steer a terminal."""
    shown = "  ".join(f"{one.label} {one.probability:.2%}" for one in predictions)
    return printable(f"{path}: {shown}")


if __name__ == "__main__":
    sys.exit(main())
