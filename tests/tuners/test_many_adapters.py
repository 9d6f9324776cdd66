"""Several customers' adapters on one resident backbone."""

import torch
from peft import get_peft_model
from safetensors.torch import load_file

import point_peft_hf as pp


def size_in_memory(model) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def test_memory_grows_by_the_adapters_files(make_backbone, tmp_path):
    config = pp.PointPeftConfig(num_prompt_tokens=4)
    model = get_peft_model(make_backbone(), config)
    pp.build_point_prior_bank(model, [{"points": torch.randn(9, 128, 3)}], progress=False)
    model.save_pretrained(tmp_path)
    file_size = sum(t.numel() * t.element_size() for t in load_file(tmp_path / "adapter_model.safetensors").values())
    before = size_in_memory(model)
    for number in range(5):
        model.load_adapter(tmp_path, f"customer{number}")
    assert size_in_memory(model) - before == 5 * file_size


def test_a_customers_prediction_does_not_depend_on_the_others(make_backbone, points, logits):
    alone, model = [], None
    for number in range(3):
        torch.manual_seed(number)
        config = pp.PointPeftConfig(num_prompt_tokens=4, init_weights=False)
        single = get_peft_model(make_backbone(), config)
        alone.append(logits(single, points))
        torch.manual_seed(number)
        if model is None:
            model = get_peft_model(make_backbone(), config, adapter_name="0")
        else:
            model.add_adapter(str(number), pp.PointPeftConfig(num_prompt_tokens=4, init_weights=False))
    for number in (2, 0, 1, 0, 2):
        model.set_adapter(str(number))
        assert torch.equal(logits(model, points), alone[number])


def test_only_the_active_adapters_are_trained(make_backbone, type_case):
    model = type_case.attach(make_backbone(), adapter_name="first")
    model.add_adapter("second", type_case.config())
    parts = {name: [n for n, _ in model.named_parameters() if f".{name}." in n] for name in ("first", "second")}

    def trained():
        return [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    for active in ("first", "second", "first"):
        model.set_adapter(active)
        assert sorted(trained()) == sorted(parts[active])
    model.set_adapter("second", inference_mode=True)
    assert not trained()


def test_the_frozen_encoder_leaves_all_as_it_was(make_backbone, points):
    model = get_peft_model(make_backbone(), pp.PointPeftConfig(num_prompt_tokens=4), adapter_name="0")
    expected = model.frozen_features(points)
    model.add_adapter("1", pp.PointPeftConfig(num_prompt_tokens=4, init_weights=False))
    model.set_adapter("1")
    model.train()
    model.base_model.model.classifier.eval()
    before = [(module.training, getattr(module, "_disable_adapters", None)) for module in model.modules()]
    assert torch.equal(model.frozen_features(points), expected)
    with model.disable_adapter():
        assert torch.equal(model.frozen_features(points), expected)
    after = [(module.training, getattr(module, "_disable_adapters", None)) for module in model.modules()]
    assert after == before
