"""Training: the glue between Lightning's loop, timm's optimizers and losses, and our data."""

from repblocks.training.checkpoint import Checkpoint as Checkpoint
from repblocks.training.checkpoint import load_weights as load_weights
from repblocks.training.checkpoint import read_checkpoint as read_checkpoint
from repblocks.training.classifier import ImageClassifier as ImageClassifier
from repblocks.training.config import DistillationConfig as DistillationConfig
from repblocks.training.config import MixConfig as MixConfig
from repblocks.training.config import OptimizerConfig as OptimizerConfig
from repblocks.training.config import RepOptimizerConfig as RepOptimizerConfig
from repblocks.training.config import ResolutionConfig as ResolutionConfig
from repblocks.training.config import SchedulerConfig as SchedulerConfig
from repblocks.training.config import TrainingConfig as TrainingConfig
from repblocks.training.evaluation import Evaluation as Evaluation
from repblocks.training.evaluation import validate as validate
from repblocks.training.fit import TrainingResult as TrainingResult
from repblocks.training.fit import train as train
from repblocks.training.kernel_decay import kernel_penalty as kernel_penalty
from repblocks.training.rep_optimizer import RepAdamW as RepAdamW
from repblocks.training.rep_optimizer import RepSGD as RepSGD
from repblocks.training.rep_optimizer import constants_of as constants_of
from repblocks.training.rep_optimizer import multipliers as multipliers
from repblocks.training.rep_optimizer import start_from_branches as start_from_branches
from repblocks.training.same_images import check_same_images as check_same_images
from repblocks.training.saving import newest_checkpoint as newest_checkpoint
