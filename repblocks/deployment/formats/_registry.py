"""What an export format is, and the list of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from repblocks.deployment.formats._needs import missing
from repblocks.deployment.onnx_options import OnnxOptions
from repblocks.deployment.quantization.options import QuantizationConfig
from repblocks.errors import ConfigurationError, UnknownNameError

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Export:
    """What a format is asked to write.

    Args:
        model: The deployed network, in evaluation mode.
        example: ``(N, C, H, W)`` float32 with ``N >= 2``, normalised like the network's images.
        folder: Where to.
        calibration: Normalised batches like ``example`` that are typical of the network's images,
            for formats that quantize; empty if there are none.
        onnx: What ``model.onnx`` is to take.
        quantization: How those formats do it.
    """

    model: nn.Module
    example: Tensor
    folder: Path
    calibration: Sequence[Tensor] = ()
    onnx: OnnxOptions = field(default_factory=OnnxOptions)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)


def _all(_export: Export, batches: Sequence[Tensor]) -> Sequence[Tensor]:
    return batches


@dataclass(frozen=True)
class Format:
    """One way to write a deployed network into the artifact.

    Args:
        name: What the configuration calls it.
        file: The file or folder it writes, relative to the artifact.
        write: Writes it.
        read: Called with the folder and the network that was written, which only formats that
            hold nothing but weights may use; returns the written network as a callable, which
            takes and gives what the network does.
        extra: The extra of this package that brings what the format needs; empty if nothing more.
        executable: The file holds code or a pickle, which runs when it is opened.
        lossy: The file is another function, as quantized ones are; judged by its accuracy.
        more_files: Files that belong to ``file``.
        lacks: Says what this machine lacks besides packages; empty if nothing.
        inputs: Chooses the batches that the written form is compared on; given those that all
            forms are compared on.
        check: For a form that nothing on this machine runs, in the place of a comparison: checks
            what was written part by part, and raises VerificationError if it is not the network.
    """

    name: str
    file: str
    write: Callable[[Export], None]
    read: Callable[[Path, nn.Module], Run]
    extra: str = ""
    executable: bool = False
    lossy: bool = False
    more_files: tuple[str, ...] = ()
    lacks: Callable[[], str] = str
    inputs: Callable[[Export, Sequence[Tensor]], Sequence[Tensor]] = _all
    check: Callable[[Export], None] | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """All it writes."""
        return (self.file, *self.more_files)


#: Stands for each exact format without code that this machine can write; the fastest are kept.
AUTO = "auto"
_FORMATS: dict[str, Format] = {}


def register_format(new: Format) -> None:
    """Make a format known under its name."""
    _FORMATS[new.name] = new


def get_format(name: str) -> Format:
    """Look a format up.

    Raises:
        UnknownNameError: if there is no such format.
    """
    if name not in _FORMATS:
        raise UnknownNameError("export format", name, _FORMATS)
    return _FORMATS[name]


def check_formats(names: Sequence[str]) -> list[Format]:
    """Look up at least one format, each of which can be written here; :data:`AUTO` is several.

    Raises:
        ConfigurationError: if there is none, one is unknown, or something that one needs is absent.
    """
    if AUTO in names:
        others = [name for name in names if name != AUTO]
        names = [*dict.fromkeys([*filter(_is_automatic, _FORMATS), *others])]
    if not names:
        raise ConfigurationError(
            f"formats must name at least one export format, got none. Known: {', '.join(_FORMATS)}."
        )
    chosen = [get_format(name) for name in names]
    absent = [f"The format {form.name} {what}" for form in chosen if (what := _absent(form))]
    if absent:
        raise ConfigurationError("\n".join(absent))
    return chosen


def check_onnx(formats: Sequence[Format], options: OnnxOptions) -> None:
    """Check that there is a ``model.onnx`` where something is asked of it.

    Raises:
        ConfigurationError: if there is none.
    """
    names = [form.name for form in formats]
    if options != OnnxOptions() and "onnx" not in names:
        raise ConfigurationError(
            "onnx_export.dynamic_size and onnx_export.pixels are about the format onnx, not "
            f"among the formats: {', '.join(names)}. Add it, or leave them out."
        )


def _absent(form: Format) -> str:
    """Say what a format needs that is not here, and what brings it; empty if nothing."""
    return missing(form.extra) or form.lacks()


def _is_automatic(name: str) -> bool:
    form = _FORMATS[name]
    try:
        check_formats([name])
    except ConfigurationError:  # what it needs is not here
        return False
    return not (form.executable or form.lossy)


def quantizing_formats() -> list[Format]:
    """List the formats that quantize, hold no code and can be written here."""
    lossy = [form for form in _FORMATS.values() if form.lossy and not form.executable]
    return [form for form in lossy if not _absent(form)]


def list_formats() -> list[str]:
    """List the names of all formats in the order they were registered."""
    return list(_FORMATS)
