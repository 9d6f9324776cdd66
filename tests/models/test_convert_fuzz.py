"""Damaged and foreign checkpoints by the thousand ways: what converts is the whole encoder, all else is our error."""

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import point_peft_hf
from point_peft_hf.models.convert import convert_checkpoint

FIELDS = {
    "point_mae": {"num_attention_heads": 6},
    "point_bert": {"num_attention_heads": 6},
    "point_gpt": {"num_attention_heads": 6},
    "point_m2ae": {"num_attention_heads": 6, "num_groups": [32, 16, 8], "group_sizes": [8, 4, 4]},
}
FILES = {
    "point_mae": ("point_mae_classifier", "point_mae_pretraining"),
    "point_bert": ("point_bert_encoder", "point_bert_pretraining"),
    "point_gpt": ("point_gpt_classifier", "point_gpt_pretraining"),
    "point_m2ae": ("point_m2ae_classifier", "point_m2ae_pretraining"),
}
ROOTS = ("encoder.", "reduce_dim.", "pos_embed.", "blocks.", "norm.", "cls_token", "cls_pos", "sos_pos", "h_encoder.")
WRAPPERS = ("MAE_encoder.", "transformer_q.", "GPT_Transformer.")
# Inside of PointGPT, but of no use to its encoder.
UNUSED = ("norm", "blocks.increase_dim", "blocks.cls_head_finetune")
PREFIXES = ("", "module.", "base_model.", "module.model.", "student.", "encoder.", "MAE_encoder.")
DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn)
RENAMES = (
    lambda name: name + "x",
    lambda name: "x" + name,
    lambda name: name.upper(),
    lambda name: name.replace(".1.", ".5."),
    lambda name: name.replace(".1.", ".01."),
    lambda name: name.replace("1", "١"),
    lambda name: name.rpartition(".")[0],
    lambda name: name.replace("attn.qkv", "attn.q"),
    lambda name: name.replace("blocks.blocks", "blocks"),
    lambda name: "module." + name,
)
# A handful, to stay fast; raise it to search longer.
EXAMPLES = 15
CHANGES = ("drop", "add", "add", "add", "copy", "rename", "reshape", "nan", "dtype", "swap", "scale")


def encoder_of(tensors):
    """What of a file without other prefixes is the encoder, by name without the prefix of pre-training."""
    tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    unused = UNUSED if any("sos_pos" in name for name in tensors) else ()
    wrapper = next((w for w in WRAPPERS if any(name.startswith(w) for name in tensors)), "")
    names = {name.removeprefix(wrapper): value for name, value in tensors.items() if name.startswith(wrapper)}
    return {name: value for name, value in names.items() if name.startswith(ROOTS) and not name.startswith(unused)}


def change(tensors, how, draw):
    """Change one tensor, or add one."""
    name = draw(st.sampled_from(sorted(tensors)))
    other = draw(st.sampled_from(sorted(tensors)))
    tensor = tensors[name]
    if how == "drop":
        del tensors[name]
    elif how == "add":
        leaf = draw(st.sampled_from(("gamma", "adapter.weight", "lora_A", "bias", "3.weight", "prompt")))
        tensors[f"{name.rpartition('.')[0]}.{leaf}".lstrip(".")] = torch.rand(tensor.shape)
    elif how == "copy":
        tensors[draw(st.sampled_from(RENAMES))(name)] = tensor.clone()
    elif how == "rename":
        del tensors[name]
        tensors[draw(st.sampled_from(RENAMES))(name)] = tensor
    elif how == "reshape":
        shape = tuple(tensor.shape)
        tensors[name] = torch.rand(
            draw(st.sampled_from(((), (1,), (0,), (*shape, 1), shape[1:], shape[::-1], (7, 7, 7))))
        )
    elif how == "nan" and tensor.is_floating_point() and tensor.numel():
        tensors[name] = tensor.clone()
        place = draw(st.integers(0, tensor.numel() - 1))
        tensors[name].view(-1)[place] = draw(st.sampled_from((torch.nan, torch.inf)))
    elif how == "dtype":
        tensors[name] = tensor.to(draw(st.sampled_from(DTYPES)))
    elif how == "swap":
        tensors[name], tensors[other] = tensors[other], tensors[name]
    elif how == "scale" and tensor.is_floating_point():
        tensors[name] = tensor * 2


def nested(state, draw):
    """The file around the tensors, as training scripts make them."""
    for key in draw(st.lists(st.sampled_from(("base_model", "state_dict", "model", "net", "ema", 3)), max_size=3)):
        state = {key: state, "epoch": 3, "optimizer": {"state": {0: torch.rand(2)}}}
    return state


def check_whole(original, tensors, model, targets):
    """All that the file has inside of the encoder is what the original had, and is in the model."""
    before, after = encoder_of(original), encoder_of(tensors)
    gone = {name for name in before.keys() - after.keys() if not name.endswith("num_batches_tracked")}
    # These two are for pre-training only; without them the file is that of an encoder.
    norms = ("h_encoder.encoder_norms.0.", "h_encoder.encoder_norms.1.")
    gone = {name for name in gone if not (name.startswith(norms) and model.base_model is model)}
    assert gone <= {"cls_token", "cls_pos"}
    assert not after.keys() - before.keys()
    state = {f"{model.base_model_prefix}.{key}": value for key, value in model.base_model.state_dict().items()}
    state |= model.state_dict()
    for name, tensor in after.items():
        assert tensor.dtype.is_floating_point or "num_batches" in name
        pieces = tensor.chunk(len(targets[name])) if len(targets[name]) > 1 else [tensor]
        for target, piece in zip(targets[name], pieces, strict=True):
            if target.startswith("stage_layernorms") and model.base_model is model:
                continue  # For pre-training only.
            value = state[target]
            assert torch.equal(value, piece.view_as(value).to(value.dtype)), name
            assert "num_batches" in name or value.isfinite().all()


@pytest.fixture(scope="module")
def mappings(tmp_path_factory):
    """By file, what the names of its encoder become; from a file as published."""
    from tests.models import conftest

    folder = tmp_path_factory.mktemp("published")
    found = {}
    for model_type, makers in FILES.items():
        for maker in makers:
            torch.save(getattr(conftest, maker)(), folder / "file.pth")
            report = convert_checkpoint(folder / "file.pth", folder / "out", model_type, FIELDS[model_type])
            found[maker] = {}
            for name, targets in report.loaded.items():
                wrapper = next((w for w in WRAPPERS if name.startswith(w)), "")
                found[maker][name.removeprefix(wrapper)] = targets
    return found


@pytest.mark.parametrize(
    ("model_type", "maker"), [(model_type, maker) for model_type, makers in FILES.items() for maker in makers]
)
@pytest.mark.filterwarnings("ignore")
def test_only_our_errors_and_never_a_wrong_model(model_type, maker, published, mappings, tmp_path):
    torch.manual_seed(0)
    original = getattr(published, maker)()
    outcomes = {"converted": 0, "refused": 0}

    @settings(
        max_examples=EXAMPLES,
        phases=(Phase.generate,),  # A smaller example takes longer to find than it is worth.
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def convert_changed(data):
        tensors = dict(original)
        for how in data.draw(st.lists(st.sampled_from(CHANGES), max_size=3)):
            change(tensors, how, data.draw)
        prefix = data.draw(st.sampled_from(PREFIXES))
        torch.save(nested({prefix + name: value for name, value in tensors.items()}, data.draw), tmp_path / "f.pth")
        try:
            report = convert_checkpoint(tmp_path / "f.pth", tmp_path / "out", model_type, FIELDS[model_type])
        except ValueError:
            outcomes["refused"] += 1
            return
        outcomes["converted"] += 1
        model = getattr(point_peft_hf, report.architecture).from_pretrained(tmp_path / "out")
        check_whole(original, tensors, model, mappings[maker])

    convert_changed()
    assert outcomes["converted"] > 0
    assert outcomes["refused"] > 0
