"""The task that a run's arguments ask for."""

from __future__ import annotations

from ..data.scenes import SceneProcessor
from ..scenes import SceneSegmentationTask, load_scene_task
from .arguments import PointCloudArguments
from .methods import load_processor
from .segmentation import SegmentationTask, load_segmentation_task
from .task import PROCEDURAL, ClassificationTask, load_task

Task = ClassificationTask | SegmentationTask | SceneSegmentationTask


def load_task_of(what: PointCloudArguments) -> Task:
    """Load the data of a run."""
    options = {
        "validation_fraction": what.validation_fraction,
        "max_train_clouds": what.max_train_clouds,
        "max_test_clouds": what.max_test_clouds,
        "skip_bad_files": what.skip_bad_files,
        "drop_invalid": what.drop_invalid,
        "layout": what.layout,
        "seed": what.split_seed,
    }
    if what.task == "scene_segmentation":
        size = load_processor(what.model, SceneProcessor, **what.processor_fields).voxel_size
        return load_scene_task(
            what.data,
            grid_size=size,
            weights=what.class_weights,
            validation_fraction=what.validation_fraction,
            max_train_scenes=what.max_train_clouds,
            max_test_scenes=what.max_test_clouds,
            seed=what.split_seed,
            **({} if what.data == PROCEDURAL else {"drop_invalid": what.drop_invalid}),
        )
    if what.task == "segmentation":
        return load_segmentation_task(what.data, **options)
    return load_task(what.data, clouds_per_class=what.clouds_per_class, corruption=what.corruption, **options)
