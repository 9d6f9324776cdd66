"""Fine-tune with `transformers.Trainer`, to the same result as `examples/train.py` from the same seed.

    python examples/train_with_trainer.py --method point_peft --output_dir outputs_trainer

Model, batches, optimizer and learning-rate schedule are those of `point_peft_hf.training`; the loop, its checkpoints
and its logs are those of the Trainer. In one process and in full precision the adapters are the same to the bit.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, TrainingArguments, set_seed

from point_peft_hf import PointCloudProcessor, build_point_prior_bank
from point_peft_hf.data import get_augmentation
from point_peft_hf.io import save_adapter
from point_peft_hf.pretrained import DEFAULT_BACKBONE
from point_peft_hf.training import (
    ClassificationTask,
    FinetuneArguments,
    evaluation_loader,
    load_backbone,
    load_processor,
    load_task,
    parameter_groups,
    prepare_method,
    training_loader,
    warmup_cosine,
)
from point_peft_hf.training.methods import uses_bank


class PointCloudTrainer(Trainer):
    """A Trainer that takes its batches from given loaders.

    Args:
        train_loader: Batches to train on, from `training_loader`.
        eval_loader: Batches to evaluate on, from `evaluation_loader`.
        **kwargs: As for `Trainer`.
    """

    def __init__(self, *, train_loader: DataLoader, eval_loader: DataLoader, **kwargs):
        super().__init__(train_dataset=train_loader.dataset, eval_dataset=eval_loader.dataset, **kwargs)
        self.train_loader, self.eval_loader = train_loader, eval_loader

    def get_train_dataloader(self) -> DataLoader:
        """The batches to train on; the Trainer tells their sampler which epoch begins."""
        return self.accelerator.prepare(self.train_loader)

    def get_eval_dataloader(self, eval_dataset: object = None) -> DataLoader:
        """The batches to evaluate on."""
        return self.accelerator.prepare(self.eval_loader)


def parse_arguments() -> FinetuneArguments:
    """Read the arguments from the command line; `examples/train.py --help` says what they mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="point_peft")
    parser.add_argument("--model", default=DEFAULT_BACKBONE)
    parser.add_argument("--data", default="procedural")
    parser.add_argument("--output_dir", default="outputs_trainer")
    for name in ("epochs", "batch_size", "seed", "clouds_per_class"):
        parser.add_argument(f"--{name}", type=int, default=getattr(FinetuneArguments, name))
    for name in ("max_train_clouds", "max_test_clouds"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--learning_rate", type=float)
    args = FinetuneArguments(**vars(parser.parse_args()))
    args.check()
    if args.method == "full":
        raise ValueError("Full fine-tuning leaves no adapter to save. Use examples/train.py --method full.")
    return args


def make_trainer(args: FinetuneArguments, task: ClassificationTask, processor: PointCloudProcessor) -> Trainer:
    """Put together what `point_peft_hf.training.Finetuning` trains with."""
    set_seed(args.seed)
    model = prepare_method(args.method, load_backbone(args.model, task.class_names), **args.config)
    if uses_bank(model):
        build_point_prior_bank(model, evaluation_loader(task.train, processor, batch_size=args.batch_size))
    train_loader = training_loader(
        task.train,
        processor,
        get_augmentation(args.augmentation),
        batch_size=args.batch_size,
        seed=args.seed,
        num_processes=PartialState().num_processes,
    )
    steps = len(train_loader) // PartialState().num_processes * args.epochs
    warmup_steps = max(int(steps * args.warmup_share), 1)
    optimizer = torch.optim.AdamW(parameter_groups(model, args.weight_decay), lr=args.peak_learning_rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, steps, warmup_steps))
    metrics = task.metrics()

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        metrics.confusion.zero_()
        metrics.update(torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids))
        return metrics.compute()

    return PointCloudTrainer(
        model=model,
        train_loader=train_loader,
        eval_loader=evaluation_loader(task.validation, processor, batch_size=args.batch_size),
        optimizers=(optimizer, scheduler),
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(dim=-1),
        args=TrainingArguments(
            output_dir=str(Path(args.output_dir) / "checkpoints"),
            num_train_epochs=args.epochs,
            max_grad_norm=args.max_gradient_norm,
            seed=args.seed,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=args.keep_checkpoints,
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            label_names=["labels"],
            remove_unused_columns=False,
            ddp_find_unused_parameters=False,
            logging_steps=args.log_every_steps,
            report_to="none",
        ),
    )


def main() -> None:
    """Train, choose the epoch on the validation split, look at the test split once, save."""
    args = parse_arguments()
    task = load_task(
        args.data,
        clouds_per_class=args.clouds_per_class,
        max_train_clouds=args.max_train_clouds,
        max_test_clouds=args.max_test_clouds,
        seed=args.data_seed,
    )
    processor = load_processor(args.model, **args.processor_fields)
    trainer = make_trainer(args, task, processor)
    # The noise of dropout begins here, on each process another.
    set_seed(args.seed + trainer.args.process_index)
    trainer.train()
    trainer.eval_loader = evaluation_loader(task.test, processor, batch_size=args.batch_size)
    scores = trainer.evaluate(metric_key_prefix="test")
    if trainer.is_world_process_zero():
        save_adapter(trainer.accelerator.unwrap_model(trainer.model), args.output_dir, processor=processor)
        print(f"test accuracy {100 * scores['test_accuracy']:.1f} %. Saved to {args.output_dir}/.")


if __name__ == "__main__":
    try:
        main()
    except (ImportError, OSError, ValueError) as error:
        # What a person can mend needs no traceback.
        sys.exit(f"error: {error}")
