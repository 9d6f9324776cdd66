"""Fine-tune a pre-trained point transformer.

    point-peft train                                              # linear probe and Point-PEFT, built-in data
    point-peft train --method point_peft --data path/to/modelnet40_ply_hdf5_2048
    point-peft train --task segmentation --augmentation segmentation --data path/to/shapenetpart
    point-peft train --task scene_segmentation --method linear lora --data path/to/rooms
    point-peft train --method lora --config '{"r": 16}' --learning_rate 1e-3
    PYTHONPATH=. point-peft train --method my_types:TokenScaleConfig       # a type of your own
    point-peft train --resume_from_checkpoint latest                       # continue a run that was stopped
    accelerate launch -m point_peft_hf train --method lora                 # with accelerate's options
    accelerate launch --num_processes 4 -m point_peft_hf train --sync_batch_norm

Several methods may be given; they are trained one after the other on the same data and shown in one table. The epoch
is chosen on a validation split that is cut from the training data; the test split is looked at once, at the end. All
arguments of transformers.TrainingArguments work as well (`--help_all` lists them).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..training import train_methods


def main(arguments: Sequence[str], prog: str) -> None:
    """Train the methods of a command line."""
    train_methods(arguments, __doc__, prog)
