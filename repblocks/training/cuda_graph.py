"""Replay the passes of a network from CUDA graphs: the GPU waits for no launch of a kernel.

A block with several branches launches many kernels, and a merged one many small ones. Launched one
by one they take longer than they run; replayed, a network takes what its kernels take.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from typing_extensions import override

from repblocks.errors import ConfigurationError
from repblocks.execution import launched_for_free

_Forward = Callable[[Tensor], Any]


class Replayed:
    """The forward pass of a network in training, replayed from a graph for images of one shape.

    The graph is captured at the first images, and again where their shape changes. It runs what ran
    then: what a network decides in Python stays as it was. Without gradients, or in evaluation, the
    network runs as ever. Running statistics and random numbers are left as they were by the passes
    before the capture.

    Args:
        model: On a GPU; its ``forward`` is replaced by this, until :meth:`stop`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._forward: _Forward = model.forward
        self._graphed: _Forward | None = None
        self._shape: torch.Size | None = None
        model.forward = self

    def __call__(self, images: Tensor) -> Any:
        """Run the network."""
        if not (self.model.training and torch.is_grad_enabled()):
            return self._forward(images)
        if self._graphed is None or images.shape != self._shape:
            self._graphed = None
            gc.collect()  # a graph is part of a cycle: its memory is free for the next
            self._graphed, self._shape = self._captured(images), images.shape
        return self._graphed(images)

    def stop(self) -> None:
        """Give the network its own forward pass back."""
        del self.model.forward  # that of its class is there again
        if self.model.forward != self._forward:
            self.model.forward = self._forward
        self._graphed = None

    def _captured(self, images: Tensor) -> _Forward:
        """Return what replays both passes.

        Raises:
            ConfigurationError: if the network cannot be captured.
        """
        before = [buffer.clone() for buffer in self.model.buffers()]
        self.model.forward = self._forward
        kind = images.device.type
        is_cast, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        casting = torch.autocast(kind, dtype, is_cast, cache_enabled=False)
        chance = torch.random.fork_rng([images.device] if images.is_cuda else [])
        try:
            with casting, chance, launched_for_free(), _beside_other_threads():
                torch.cuda.make_graphed_callables(
                    self.model, (images.clone(),), allow_unused_input=True
                )
            return self.model.forward
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError) as error:
            raise ConfigurationError(
                f"The passes of {type(self.model).__name__} cannot be captured in a CUDA graph: "
                f"{error} Set cuda_graph=false."
            ) from error
        finally:
            self.model.forward = self
            with torch.no_grad():
                for buffer, own in zip(self.model.buffers(), before, strict=True):
                    buffer.copy_(own)


@contextmanager
def _beside_other_threads() -> Iterator[None]:
    """Let other threads do what they like while a graph is captured.

    The loader pins the memory of the next batch in one. By default, torch forbids that to all
    threads: the capture would fail, and the loader with it.
    """
    graph: Any = torch.cuda.graph

    def own(*arguments: Any, **options: Any) -> Any:
        return graph(*arguments, **{**options, "capture_error_mode": "thread_local"})

    torch.cuda.graph = own  # type: ignore[assignment,misc] # make_graphed_callables calls it
    try:
        yield
    finally:
        torch.cuda.graph = graph  # type: ignore[misc]


class CudaGraph(pl.Callback):
    """Train the network of an ``ImageClassifier`` by replaying it.

    Args:
        compiled: Whether it is compiled, too, which has graphs of its own.
    """

    def __init__(self, *, compiled: bool = False) -> None:
        self._compiled = compiled
        self._replayed: Replayed | None = None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that this run can be replayed.

        Raises:
            ConfigurationError: if it cannot.
        """
        _check(trainer, compiled=self._compiled)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin."""
        self._replayed = Replayed(pl_module.get_submodule("model"))

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the network as it was."""
        if self._replayed is not None:
            self._replayed.stop()
            self._replayed = None

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave it so, too, where training fails: there is no teardown then."""
        self.teardown(trainer, pl_module, "fit")


def _check(trainer: pl.Trainer, *, compiled: bool) -> None:
    device, accumulated = trainer.strategy.root_device.type, trainer.accumulate_grad_batches
    rules: dict[str, tuple[bool, object]] = {
        "trainer.accelerator must be gpu, of CUDA": (device == "cuda", device),
        "compile must be false": (not compiled, compiled),
        "trainer.devices must be 1": (trainer.world_size == 1, trainer.world_size),
        # A gradient is memory of the graph, which the next pass overwrites.
        "trainer.accumulate_grad_batches must be 1": (accumulated == 1, accumulated),
    }
    wrong = [f"{what}, got {got}" for what, (is_right, got) in rules.items() if not is_right]
    if wrong:
        raise ConfigurationError(
            f"With cuda_graph=true, {'; '.join(wrong)}. Change that, or set cuda_graph=false."
        )
