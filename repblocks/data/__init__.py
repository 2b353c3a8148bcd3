"""Images for training and validation, one Lightning data module a file."""

from repblocks.data._base import ImageDataModule as ImageDataModule
from repblocks.data.augmentation import Augmentation as Augmentation
from repblocks.data.cifar10 import CIFAR10DataModule as CIFAR10DataModule
from repblocks.data.cifar100 import CIFAR100DataModule as CIFAR100DataModule
from repblocks.data.fashion_mnist import FashionMNISTDataModule as FashionMNISTDataModule
from repblocks.data.image_folder import ImageFolderDataModule as ImageFolderDataModule
from repblocks.data.imagenet import ImageNetDataModule as ImageNetDataModule
from repblocks.data.mnist5k import MNIST5kDataModule as MNIST5kDataModule
from repblocks.data.preprocessing import evaluation_transform as evaluation_transform
from repblocks.data.synthetic import SyntheticDataModule as SyntheticDataModule
