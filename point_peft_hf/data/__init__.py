"""Files to arrays to batches: readers, the processor, augmentation, data sets and few-shot folds."""

from .augmentation import AUGMENTATIONS, get_augmentation
from .collator import PointCloudCollator
from .corruptions import CORRUPTIONS, corrupt
from .dataset import PointCloudDataset, from_hf_dataset
from .errors import PointCloudError
from .layouts import LAYOUTS, load_dataset
from .layouts_releases import read_few_shot_fold
from .part_files import read_labelled_cloud
from .procedural import (
    ALL_CLASSES,
    ASSEMBLY,
    BASE_CLASSES,
    HELD_OUT_CLASSES,
    ProceduralShapes,
    ScanCorruption,
    sample_shape,
)
from .processing import PointCloudProcessor, register_processor
from .readers import READERS, read_point_cloud, write_point_cloud
from .splits import few_shot_fold, stratified_split

__all__ = [
    "ALL_CLASSES",
    "ASSEMBLY",
    "BASE_CLASSES",
    "HELD_OUT_CLASSES",
    "ProceduralShapes",
    "ScanCorruption",
    "sample_shape",
    "AUGMENTATIONS",
    "CORRUPTIONS",
    "LAYOUTS",
    "READERS",
    "PointCloudCollator",
    "PointCloudDataset",
    "PointCloudError",
    "PointCloudProcessor",
    "corrupt",
    "few_shot_fold",
    "from_hf_dataset",
    "get_augmentation",
    "load_dataset",
    "read_few_shot_fold",
    "read_labelled_cloud",
    "read_point_cloud",
    "register_processor",
    "stratified_split",
    "write_point_cloud",
]
