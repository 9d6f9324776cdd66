"""Fine-tune a pre-trained point transformer.

    accelerate launch examples/train.py                                    # linear probe and Point-PEFT, built-in data
    accelerate launch examples/train.py --method point_peft --data path/to/modelnet40_ply_hdf5_2048
    accelerate launch examples/train.py --task segmentation --augmentation segmentation --data path/to/shapenetpart
    accelerate launch examples/train.py --method lora --config '{"r": 16}' --learning_rate 1e-3
    PYTHONPATH=. accelerate launch examples/train.py --method my_types:TokenScaleConfig    # a type of your own
    accelerate launch examples/train.py --resume_from_checkpoint latest    # continue a run that was stopped
    accelerate launch --config_file examples/accelerate_configs/multi_gpu.yaml examples/train.py --sync_batch_norm

Several methods may be given; they are trained one after the other on the same data and shown in one table. The epoch
is chosen on a validation split that is cut from the training data; the test split is looked at once, at the end. All
arguments of transformers.TrainingArguments work as well.
"""

import sys

from point_peft_hf.training import TrainingStopped, train_methods

if __name__ == "__main__":
    try:
        train_methods(description=__doc__)
    except (ImportError, OSError, ValueError, TrainingStopped) as error:
        # What a person can mend needs no traceback.
        sys.exit(f"error: {error}")
