"""CIFAR-100: 60000 colour 32x32 images in 100 classes.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from torchvision import datasets

from repblocks.data.cifar10 import CIFAR10DataModule

_CLASS_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum
rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


class CIFAR100DataModule(CIFAR10DataModule):
    """The 50000 training images, and the 10000 of the test set, with their 100 fine labels.

    The arguments are those of ``CIFAR10DataModule``; ``root`` has ``cifar-100-python`` in it.
    """

    source = datasets.CIFAR100
    class_names = tuple(_CLASS_NAMES.split())
    # Of the 50000 training images.
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
