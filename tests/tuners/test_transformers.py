"""transformers' and Accelerate's ways of using an adapter."""

import inspect
import json

import pytest
import torch
import transformers
from accelerate import Accelerator
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import point_peft_hf as pp


class Clouds(Dataset):
    def __init__(self, size: int = 8):
        generator = torch.Generator().manual_seed(0)
        self.points = torch.randn(size, 128, 3, generator=generator)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> dict:
        return {"points": self.points[index], "labels": index % 5}


# -- The mixin of transformers' models --------------------------------------------------------------------------------


def test_add_save_and_load_adapter(backbone, make_backbone, backbone_name, type_case, points, logits, train, tmp_path):
    before = logits(backbone, points)
    backbone.add_adapter(type_case.config(), "mine")
    train(backbone, steps=1)
    expected = logits(backbone, points)
    backbone.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not (tmp_path / "model.safetensors").exists()

    loaded = make_backbone(backbone_name)
    loaded.load_adapter(str(tmp_path), "again")
    assert loaded.active_adapters() == ["again"]
    assert torch.equal(logits(loaded, points), expected)
    # The same file for PEFT.
    assert torch.equal(logits(PeftModel.from_pretrained(make_backbone(backbone_name), tmp_path), points), expected)

    loaded.disable_adapters()
    assert torch.equal(logits(loaded, points), before)
    loaded.enable_adapters()
    assert torch.equal(logits(loaded, points), expected)
    loaded.delete_adapter("again")
    assert torch.equal(logits(loaded, points), before)


def test_from_pretrained_of_an_adapter_folder(make_backbone, backbone_name, type_case, points, logits, tmp_path):
    make_backbone(backbone_name).save_pretrained(tmp_path / "backbone")
    model_class = pp.AutoModelForPointCloudClassification
    backbone = model_class.from_pretrained(tmp_path / "backbone")
    model = type_case.attach(backbone, init_weights=False)
    model.save_pretrained(tmp_path / "adapter")
    loaded = type(make_backbone(backbone_name)).from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded, points), logits(model, points))


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="transformers looked in subfolders on the Hub only"
)
def test_subfolder(make_backbone, type_case, points, logits, tmp_path):
    model = type_case.attach(make_backbone(), init_weights=False)
    model.save_pretrained(tmp_path / "inner")
    loaded = make_backbone()
    loaded.load_adapter(str(tmp_path), adapter_kwargs={"subfolder": "inner"})
    assert torch.equal(logits(loaded, points), logits(model, points))


def test_several_types_through_the_mixin(make_backbone, points, logits):
    model = make_backbone()
    model.add_adapter(pp.GeometryAdapterConfig(init_weights=False), "geometry")
    model.add_adapter(LoraConfig(r=2, init_lora_weights=False), "low_rank")
    pp.set_adapters(model, ["geometry", "low_rank"])
    both = logits(model, points)
    model.set_adapter("geometry")
    assert not torch.allclose(logits(model, points), both)
    model.set_adapter(["geometry", "low_rank"])
    assert torch.equal(logits(model, points), both)
    with pytest.raises(ValueError, match="typo"):
        model.set_adapter("typo")


# -- Trainer ----------------------------------------------------------------------------------------------------------


def arguments(folder, **options) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        eval_strategy="epoch",
        save_strategy="epoch",
        learning_rate=1e-3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        **options,
    )


def accuracy(prediction) -> dict:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def trainer(model, folder, **options) -> Trainer:
    return Trainer(
        model,
        arguments(folder, **options),
        train_dataset=Clouds(),
        eval_dataset=Clouds(4),
        compute_metrics=accuracy,
    )


def test_trainer(make_backbone, type_case, points, logits, tmp_path):
    run = trainer(
        type_case.attach(make_backbone()),
        tmp_path / "run",
        num_train_epochs=2,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
    )
    assert run.label_names == ["labels"]
    run.train()
    metrics = run.evaluate()
    assert 0 <= metrics["eval_accuracy"] <= 1
    assert metrics["eval_loss"] > 0
    # A checkpoint holds the adapter only.
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        files = {path.name for path in checkpoint.iterdir()}
        assert {"adapter_model.safetensors", "adapter_config.json", "trainer_state.json"} <= files
        assert "model.safetensors" not in files
    best = json.loads((checkpoint / "trainer_state.json").read_text())["best_model_checkpoint"]
    if best is not None:
        loaded = PeftModel.from_pretrained(make_backbone(), best)
        assert torch.equal(logits(loaded, points), logits(run.model, points))


def test_trainer_resumes_to_the_same_weights(make_backbone, tmp_path):
    def model():
        torch.manual_seed(0)
        return get_peft_model(make_backbone(), pp.PointPeftConfig(num_prompt_tokens=4))

    whole = trainer(model(), tmp_path / "whole", num_train_epochs=2)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    resumed = trainer(model(), tmp_path / "resumed", num_train_epochs=2)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == whole.state.global_step == 4
    for (name, expected), found in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


def test_trainer_divides_the_loss_by_the_steps_that_it_accumulates(make_backbone, tmp_path):
    def losses(steps):
        torch.manual_seed(0)
        model = get_peft_model(make_backbone(), pp.GeometryAdapterConfig())
        options = {"learning_rate": 0.0, "max_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True}
        options |= {"logging_steps": 1, "max_grad_norm": 1e9, "seed": 0, "output_dir": str(tmp_path / str(steps))}
        options |= {"per_device_train_batch_size": 8 // steps, "gradient_accumulation_steps": steps}
        run = Trainer(model, TrainingArguments(**options), train_dataset=Clouds())
        run.train()
        return run.state.log_history[0]["loss"]

    # The head's BatchNorm sees other batches, so they are not equal; not divided it would be four times as much.
    assert losses(4) < 2 * losses(1)


def test_trainer_saves_mixed_adapters_one_by_one(make_backbone, points, logits, tmp_path):
    model = pp.add_adapters(make_backbone(), {"geometry": pp.GeometryAdapterConfig(), "low_rank": LoraConfig(r=2)})
    before = logits(model, points)
    run = Trainer(
        model,
        TrainingArguments(output_dir=str(tmp_path), max_steps=1, save_strategy="no", report_to=[], use_cpu=True),
        train_dataset=Clouds(),
    )
    run.train()
    assert not torch.allclose(logits(model, points), before)
    pp.save_adapters(model, tmp_path / "adapters")
    loaded = make_backbone()
    pp.load_adapters(loaded, tmp_path / "adapters")
    assert torch.equal(logits(loaded, points), logits(model, points))


# -- Accelerate -------------------------------------------------------------------------------------------------------


def test_accelerate(make_backbone, type_case, points, labels, logits, tmp_path):
    accelerator = Accelerator(cpu=True)
    model = type_case.attach(make_backbone())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    model.train()
    accelerator.backward(model(points, labels=labels).loss)
    optimizer.step()
    unwrapped = accelerator.unwrap_model(model)
    assert type(unwrapped) is PeftModel
    unwrapped.save_pretrained(tmp_path, save_function=accelerator.save, state_dict=accelerator.get_state_dict(model))
    loaded = PeftModel.from_pretrained(make_backbone(), tmp_path)
    assert torch.equal(logits(loaded, points), logits(unwrapped, points))


# -- torch.compile ----------------------------------------------------------------------------------------------------


def compile_whole(model):
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def quiet_model(make_backbone, case):
    """A model without what is drawn at random, which a compiled one draws in another order."""
    quiet = {"dropout": 0.0, "local_drop_path": 0.0, "prompt_dropout": 0.0}
    known = inspect.signature(type(case.config())).parameters
    fields = {name: value for name, value in quiet.items() if name in known}
    backbone = make_backbone(drop_path_rate=0.0, classifier_dropout=0.0, num_hidden_layers=1)
    return case.attach(backbone, init_weights=False, **fields)


@torch.no_grad()
def test_compiles_without_graph_breaks(make_backbone, type_case, points):
    model = quiet_model(make_backbone, type_case).eval()
    torch.testing.assert_close(compile_whole(model)(points).logits, model(points).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["point_peft+bank"], indirect=True)
def test_trains_compiled_without_graph_breaks(make_backbone, case, points, labels):
    model = quiet_model(make_backbone, case).train()
    compiled = compile_whole(model)
    compiled(points, labels=labels).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    model(points, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)
