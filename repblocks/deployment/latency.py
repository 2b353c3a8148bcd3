"""How long each form takes: in turn, warm, with one thread and all, for one image and many."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from statistics import median, quantiles

import torch
from torch import Tensor

from repblocks.deployment.formats import Run
from repblocks.deployment.formats._program import silence
from repblocks.deployment.runtimes import Contender, has_compiler, torch_threads
from repblocks.folding.reference import Reference

BATCH_SIZES = (1, 32)
_LEAST_ROUNDS, _MOST_ROUNDS, _SECONDS = 5, 50, 20.0
# Above this ratio of p90 to median a timing tells of other work on the machine.
_UNSTEADY = 2.0

Setting = tuple[int, int]


@dataclass(frozen=True)
class Timing:
    """One form in one runtime and setting.

    Args:
        form: ``training form``, ``deployed form`` or the name of a written format.
        runtime: What ran it.
        threads: How many it might use.
        batch: Images at a time.
        median_ms: Of the runs, in milliseconds.
        p90_ms: What nine in ten runs do not exceed.
        verified: Whether what it gave there is what the training form gives, or, for a quantized
            form, whether it was accepted by its accuracy.
        quantized: Whether it is a quantized form.
        fastest: Whether it is the fastest verified one of its setting.
    """

    form: str
    runtime: str
    threads: int
    batch: int
    median_ms: float
    p90_ms: float
    verified: bool
    quantized: bool = False
    fastest: bool = False


@dataclass(frozen=True)
class Latency:
    """All that was timed, and what could not be.

    Args:
        timings: In the order of settings, then of forms.
        notes: What could not be timed, and why.
    """

    timings: tuple[Timing, ...]
    notes: tuple[str, ...] = ()

    def settings(self) -> Iterator[tuple[Setting, list[Timing]]]:
        """Give threads and images at a time with their timings."""
        for setting, timings in groupby(self.timings, key=lambda t: (t.threads, t.batch)):
            yield setting, list(timings)

    def fastest_forms(self) -> list[str]:
        """Name the fastest verified form of each setting, each once."""
        return list(dict.fromkeys(t.form for t in self.timings if t.fastest))


def time_in_turn(
    functions: Mapping[str, Callable[[], object]], seconds: float = _SECONDS
) -> dict[str, list[float]]:
    """Time functions one after the other, again and again, so that a busy machine slows all.

    Args:
        functions: By name; each is run twice before, to be warm.
        seconds: About how long to go on; there are at least five rounds.

    Returns:
        The milliseconds of each run.
    """
    for function in functions.values():
        function()
    start = time.perf_counter()
    for function in functions.values():
        function()
    one_round = time.perf_counter() - start
    rounds = min(max(int(seconds / max(one_round, 1e-9)), _LEAST_ROUNDS), _MOST_ROUNDS)
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            taken[name].append(1e3 * (time.perf_counter() - start))
    return taken


def measure_forms(
    contenders: Sequence[Contender],
    reference: Reference,
    *,
    quantized: Mapping[str, bool] | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float = _SECONDS,
) -> Latency:
    """Time forms of a network against each other.

    The threads of the process are the same afterwards.

    Args:
        contenders: What to time.
        reference: The training form on some images, which each form is compared with.
        quantized: Forms that are another function, and whether their accuracy was accepted.
        batch_sizes: Images at a time.
        seconds: About how long to time each setting.
    """
    notes = [] if has_compiler() else ["torch.compile was not timed: there is no C++ compiler."]
    timings: list[Timing] = []
    for threads in dict.fromkeys((1, num_cores())):
        with torch_threads(threads), torch.inference_mode(), silence():
            opened = _opened(contenders, threads, reference, notes)
            for batch in batch_sizes:
                images = _images(reference, batch)
                timings += _timed(opened, threads, images, seconds, quantized or {})
    notes += _unsteady(timings)
    return Latency(tuple(timings), tuple(dict.fromkeys(notes)))


def _unsteady(timings: Sequence[Timing]) -> Iterator[str]:
    """Say which timings are not to be relied on."""
    ratios = {timing: timing.p90_ms / timing.median_ms for timing in timings if timing.median_ms}
    found = [timing for timing, ratio in ratios.items() if ratio > _UNSTEADY]
    if found:
        worst = max(found, key=lambda timing: ratios[timing])
        yield (
            f"{len(found)} of {len(timings)} timings are unsteady: of {worst.form} in "
            f"{worst.runtime} (threads {worst.threads}, batch {worst.batch}) one run in ten takes "
            f"{ratios[worst]:.1f} times the median or more. Time again on a quiet machine before "
            "relying on what is the fastest."
        )


def num_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


Opened = list[tuple[Contender, Run, bool]]


def _opened(
    contenders: Sequence[Contender],
    threads: int,
    reference: Reference,
    notes: list[str],
) -> Opened:
    """Open each form and compare it; say which ones cannot be."""
    found: Opened = []
    for contender in contenders:
        try:
            run = contender.open(threads)
            scores = run(contender.given(reference.inputs[0]))
            is_same = reference.compare_output(scores).passed
        except Exception as error:  # noqa: BLE001 - runtimes and compilers have errors of their own
            why = str(error).strip().partition("\n")[0] or type(error).__name__
            notes.append(f"{contender.form} in {contender.runtime} was not timed: {why}")
            continue
        found.append((contender, run, is_same))
    return found


def _timed(
    opened: Opened,
    threads: int,
    images: Tensor,
    seconds: float,
    quantized: Mapping[str, bool],
) -> list[Timing]:
    calls = {
        str(number): partial(run, contender.given(images))
        for number, (contender, run, _) in enumerate(opened)
    }
    timings = [
        Timing(
            contender.form,
            contender.runtime,
            threads,
            len(images),
            median(taken),
            quantiles(taken, n=10, method="inclusive")[-1],
            quantized.get(contender.form, is_same),
            contender.form in quantized,
        )
        for (contender, _, is_same), taken in zip(
            opened, time_in_turn(calls, seconds).values(), strict=True
        )
    ]
    verified = [timing for timing in timings if timing.verified]
    best = min(verified, key=lambda timing: timing.median_ms, default=None)
    return [replace(timing, fastest=timing is best) for timing in timings]


def _images(reference: Reference, count: int) -> Tensor:
    images: Tensor = reference.inputs[0]
    return images[torch.arange(count) % len(images)].contiguous()
