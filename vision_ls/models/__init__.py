"""The classifiers of the paper, one file a family, and one door to them: `build_model`."""

from __future__ import annotations

from vision_ls.models.alexnet import AlexNet
from vision_ls.models.base import ImageModel, ImageShape, ModelConfig, ModelName
from vision_ls.models.fully_connected import FullyConnected
from vision_ls.models.inception import InceptionV4
from vision_ls.models.resnet import ResNet
from vision_ls.models.small_cnn import SmallCNN

__all__ = ["ImageModel", "ImageShape", "ModelConfig", "ModelName", "build_model"]


def build_model(config: ModelConfig, classes: int, image_shape: ImageShape) -> ImageModel:
    """The classifier that `config` names, with freshly drawn weights (PyTorch's global generator).

    classes: rows of the last layer, at least 2. image_shape: channels, height and width of what it will be given, after
    augmentation. Raises ValueError for a shape that the model cannot take.
    """
    if classes < 2:
        raise ValueError(f"a classifier needs at least 2 classes, not {classes}")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape must be channels, height and width, all positive, not {image_shape}")
    match config.name:
        case "mnist_teacher" | "mnist_student":
            return FullyConnected(config, classes, image_shape)
        case "alexnet":
            return AlexNet(config, classes, image_shape)
        case "resnet20" | "resnet56":
            return ResNet(config, classes, image_shape)
        case "inception_v4":
            return InceptionV4(config, classes, image_shape)
        case "small_cnn":
            return SmallCNN(config, classes, image_shape)
