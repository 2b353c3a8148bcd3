"""The top-level keys of both commands; groups below them are checked against their ``_target_``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Node = dict[str, Any]


@dataclass(frozen=True)
class TrainConfig:
    """What ``train.py`` is told; ``configs/train.yaml`` says what each key does."""

    mode: Literal["train", "validate"]
    seed: int
    output: str | None
    ckpt_path: str | None
    init_from: str | None
    expand: bool
    deploy: bool
    formats: list[str]
    label_smoothing: float
    loss: Literal["cross_entropy", "binary_cross_entropy"]
    auxiliary_weight: float
    ema_decay: float | None
    ema_warmup: bool
    channels_last: bool
    compile: bool
    cuda_graph: bool
    execution: Literal["auto", "branchwise", "merged", "weight_space", "int8"]
    freeze_norms: bool
    anneal_share: float
    kernel_decay: float
    adaptive_clip: float | None
    repeated_augmentation: int
    non_finite_patience: int
    checkpoint_every_n_steps: int | None
    keep_step_checkpoints: int
    onnx_export: Node
    mix: Node
    distillation: Node
    resolution: Node
    data: Node
    model: Node
    block: Node
    optimizer: Node
    scheduler: Node
    trainer: Node
    callbacks: Node
    logger: Node
    quantization: Node | None = None


@dataclass(frozen=True)
class DeployConfig:
    """What ``deploy.py`` is told; ``configs/deploy.yaml`` says what each key does."""

    ckpt_path: str | None
    output: str | None
    formats: list[str]
    deploy_shortcut: Literal["add", "expand"] | None
    latency: bool
    explain: bool
    onnx_export: Node
    data: Node
    block: Node
    quantization: Node | None = None
    model: Node | None = None
    onnx: str | None = None
    onnx_shape: list[int] | dict[str, list[int]] | None = None


@dataclass(frozen=True)
class LoggerConfig:
    """What is written beside ``metrics.csv``."""

    tensorboard: bool
