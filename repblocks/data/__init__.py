"""Images for training and validation, one Lightning data module a file."""

from repblocks.data._base import ImageDataModule as ImageDataModule
from repblocks.data.augmentation import Augmentation as Augmentation
from repblocks.data.mnist5k import MNIST5kDataModule as MNIST5kDataModule
from repblocks.data.preprocessing import evaluation_transform as evaluation_transform
from repblocks.data.synthetic import SyntheticDataModule as SyntheticDataModule
