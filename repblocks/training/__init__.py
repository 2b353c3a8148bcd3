"""Training: the glue between Lightning's loop, timm's optimizers and losses, and our data."""

from repblocks.training.checkpoint import Checkpoint as Checkpoint
from repblocks.training.checkpoint import load_weights as load_weights
from repblocks.training.checkpoint import read_checkpoint as read_checkpoint
from repblocks.training.classifier import ImageClassifier as ImageClassifier
from repblocks.training.config import MixConfig as MixConfig
from repblocks.training.config import OptimizerConfig as OptimizerConfig
from repblocks.training.config import SchedulerConfig as SchedulerConfig
from repblocks.training.config import TrainingConfig as TrainingConfig
from repblocks.training.evaluation import Evaluation as Evaluation
from repblocks.training.evaluation import validate as validate
from repblocks.training.fit import TrainingResult as TrainingResult
from repblocks.training.fit import train as train
from repblocks.training.same_images import check_same_images as check_same_images
from repblocks.training.saving import newest_checkpoint as newest_checkpoint
