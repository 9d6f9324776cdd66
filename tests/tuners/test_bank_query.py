"""Where the query is read, the clouds' own entries, banks that change, and a look inside: in whole models."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

import point_peft_hf as pp
from point_peft_hf.models.layers import PointTransformerLayer
from point_peft_hf.slots import ReadoutSlot
from point_peft_hf.tokens import Cloud
from point_peft_hf.tuners.base import slots_by_name
from point_peft_hf.tuners.point_prior_prompt import layer as layer_module
from point_peft_hf.tuners.slot_layer import SlotLayer

TYPES = {"prompt": pp.PointPriorPromptConfig, "point_peft": pp.PointPeftConfig}
IDS = torch.tensor([0, 1, 2, 3])


@pytest.fixture(params=TYPES)
def make_config(request):
    def make(**fields):
        return TYPES[request.param](**{"num_prompt_tokens": 4, "init_weights": False, **fields})

    return make


def clouds(count=9):
    return torch.randn(count, 128, 3, generator=torch.Generator().manual_seed(7))


def give_bank(model, points=None, **options):
    points = clouds() if points is None else points
    batch = {"points": points, "labels": torch.arange(len(points)) % 5, "sample_ids": torch.arange(len(points))}
    return pp.build_point_prior_bank(model, [batch], progress=False, **options)


def bank_layer(model):
    return next(m for m in model.modules() if isinstance(m, SlotLayer) and getattr(m, "banks", None))


# -- A single pass ----------------------------------------------------------------------------------------------------


def captured_query(model, points, **inputs):
    """What the bank is asked with in a pass."""
    layer, got = bank_layer(model), []
    ask = layer._query
    layer._query = lambda *args: got.append(ask(*args)) or got[-1]
    try:
        model(points, **inputs)
    finally:
        del layer._query
    return got[0]


def tokens_query(backbone, points):
    """The mean over the tokens that enter the last stage, by hand."""
    encoder = backbone.base_model
    cloud = Cloud(points, points)
    return encoder.frozen_tokens(cloud, bank_stage(encoder).first_layer).patches.mean(dim=1)


def bank_stage(encoder):
    return next(slot.stage for slot in slots_by_name(encoder).values() if isinstance(slot, ReadoutSlot))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("adapters_on_all_blocks", [True, False])
def test_the_query_is_that_of_the_frozen_backbone(
    backbone, make_config, points, labels, train, adapters_on_all_blocks, training
):
    expected = tokens_query(backbone, points)
    assert expected.shape == (4, 48)
    last = backbone.config.num_hidden_layers - 1
    blocks = None if adapters_on_all_blocks else [last]
    model = get_peft_model(backbone, make_config(query="tokens", prompt_depth=None, layers_to_transform=blocks))
    give_bank(model)
    train(model)
    query = captured_query(model.train(training), points, labels=labels)
    torch.testing.assert_close(query, expected, rtol=1e-5, atol=1e-6)
    assert not query.requires_grad


def count_calls(*modules):
    calls = []
    for module in modules:
        module.register_forward_hook(lambda *args: calls.append(1))
    return calls


def test_a_single_pass_runs_every_block_once(make_backbone, points):
    backbone = make_backbone("point_bert")
    config = pp.PointPriorPromptConfig(num_prompt_tokens=4, query="tokens", modules_to_save=["classifier"])
    model = get_peft_model(backbone, config).train()
    give_bank(model)
    calls = count_calls(*backbone.point_bert.encoder.layers, backbone.point_bert.patch_embedding)
    captured_query(model, points)
    assert len(calls) == 3 + 1


def test_the_published_query_runs_every_block_twice_but_embeds_once(make_backbone, points):
    backbone = make_backbone("point_bert")
    config = pp.PointPriorPromptConfig(num_prompt_tokens=4, query="encoder", modules_to_save=["classifier"])
    model = get_peft_model(backbone, config)
    give_bank(model)
    calls = count_calls(*backbone.point_bert.encoder.layers, backbone.point_bert.patch_embedding)
    model.eval()(points)
    assert len(calls) == 2 * 3 + 1


def test_point_m2ae_shares_the_stages_before_the_last(make_backbone, points):
    backbone = make_backbone("point_m2ae", drop_path_rate=0.0)
    config = pp.PointPriorPromptConfig(num_prompt_tokens=4, query="tokens", prompt_depth=None, layers_to_transform=[3])
    model = get_peft_model(backbone, config).train()
    give_bank(model)
    calls = count_calls(*(layer for stage in backbone.point_m2ae.stages for layer in stage.layers))
    captured_query(model, points)
    assert len(calls) == 4


@pytest.mark.parametrize("where", ["blocks", "embedding"])
@pytest.mark.parametrize("query", ["encoder", "tokens"])
def test_other_adapters_do_not_reach_the_query(backbone, points, where, query):
    expected = backbone.frozen_features(points) if query == "encoder" else tokens_query(backbone, points)
    targets = ["q_proj", "fc1"] if where == "blocks" else ["first_linear2"]
    prompt = pp.PointPriorPromptConfig(num_prompt_tokens=4, query=query, prompt_depth=None)
    low_rank = LoraConfig(target_modules=targets, init_lora_weights=False)
    model = pp.add_adapters(backbone, {"prompt": prompt, "low_rank": low_rank})
    give_bank(model)
    torch.testing.assert_close(captured_query(model, points), expected, rtol=1e-4, atol=1e-5)


def test_a_bank_from_another_place(make_backbone, make_config):
    model = get_peft_model(make_backbone(), make_config())
    with pytest.raises(ValueError, match="built with query='encoder', but the adapter asks with query='tokens'"):
        pp.set_point_prior_bank(model, give_bank(make_backbone(), query="encoder"))
    with pytest.raises(ValueError, match="`query`='encoder', but the adapter .* query='tokens'"):
        give_bank(model, query="encoder")
    with pytest.raises(ValueError, match="`query` must be 'encoder' or 'tokens', got 'head'"):
        give_bank(make_backbone(), query="head")
    pp.set_point_prior_bank(model, give_bank(make_backbone()))


@pytest.mark.parametrize("fields", [{}, {"query": "encoder"}])
def test_banks_from_either_place_survive_a_file(
    backbone, backbone_name, make_backbone, make_config, points, logits, tmp_path, fields
):
    model = get_peft_model(backbone, make_config(prompt_depth=None, **fields))
    give_bank(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_backbone(backbone_name), tmp_path)
    assert torch.equal(logits(loaded, points), logits(model, points))


@pytest.mark.parametrize("fields", [{}, {"query": "encoder"}])
def test_queries_that_are_known_are_passed_in(backbone, make_config, points, logits, fields):
    model = get_peft_model(backbone, make_config(**fields))
    give_bank(model)
    expected = logits(model, points)
    known = backbone.precompute(points)
    (name,) = [name for name in known if not name.startswith("backbone.")]
    assert name == bank_layer(model).key("default") + ".query"
    calls = count_calls(*(m for m in backbone.modules() if isinstance(m, PointTransformerLayer)))
    with torch.no_grad():
        assert torch.equal(model(points, precomputed=known).logits, expected)
        assert len(calls) == backbone.config.num_hidden_layers
        # They are what the bank is asked with.
        assert not torch.allclose(model(points, precomputed={name: known[name].flip(0)}).logits, expected)
        with pytest.raises(ValueError, match=r"precomputed\['.*query'\].* must have shape .* got \(3, 48\)"):
            model(points, precomputed={name: known[name][:3]})


def test_two_adapters_ask_in_two_places(make_backbone, points, logits):
    alone, fields = [], {"num_prompt_tokens": 4, "prompt_depth": None, "init_weights": False, "modules_to_save": []}
    configs = {
        "encoder": pp.PointPriorPromptConfig(query="encoder", **fields),
        "tokens": pp.PointPriorPromptConfig(**fields),
    }
    model = pp.add_adapters(make_backbone(), configs)
    with pytest.raises(ValueError, match="ask their banks in different places"):
        give_bank(model)
    for name in configs:
        give_bank(model, adapter_name=name)
        pp.set_adapters(model, name)
        alone.append(logits(model, points))
    pp.set_adapters(model, list(configs))
    assert not any(torch.allclose(logits(model, points), other) for other in alone)


@pytest.mark.parametrize("fields", [{}, {"query": "encoder"}])
def test_compiled_as_one_graph(make_backbone, make_config, points, labels, logits, fields):
    model = get_peft_model(make_backbone(), make_config(leave_own_entry_out=True, **fields))
    give_bank(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled, points), logits(model, points), rtol=1e-4, atol=1e-5)
    compiled.train()(points, labels=labels, sample_ids=IDS).loss.backward()


# -- Own entries ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retrieval", ["top_k", "softmax"])
def test_a_cloud_in_training_does_not_see_its_own_entry(backbone, make_config, points, retrieval):
    """As if its entry were not in the bank: with a bank without the four clouds of the batch nothing else changes."""
    options = {"dropout": 0.0, "bank_dtype": "float32", "retrieval": retrieval, "leave_own_entry_out": True}
    model = get_peft_model(backbone, make_config(**options))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    bank = give_bank(model, torch.cat([points, clouds()]))
    model.eval()
    layer = bank_layer(model)
    layer.training = True
    with torch.no_grad():
        for row in range(4):
            # Of these clouds only one is in the bank at a time.
            kept = torch.tensor([row, *range(4, 13)])
            some = pp.PointPriorBank(bank.features[kept], bank.labels[kept], bank.sample_ids[kept])
            pp.set_point_prior_bank(model, some)
            left_out = model(points[row : row + 1], sample_ids=IDS[row : row + 1]).logits
            unknown = model(points[row : row + 1], sample_ids=torch.tensor([-1])).logits
            without = pp.PointPriorBank(bank.features[4:], bank.labels[4:], bank.sample_ids[4:])
            pp.set_point_prior_bank(model, without)
            expected = model(points[row : row + 1], sample_ids=IDS[row : row + 1]).logits
            torch.testing.assert_close(left_out, expected, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(unknown, expected, rtol=1e-5, atol=1e-6)


def test_predictions_see_all_entries(make_backbone, make_config, points, logits):
    model = get_peft_model(make_backbone(), make_config(leave_own_entry_out=True))
    give_bank(model, points)
    assert torch.equal(logits(model, points), model.eval()(points, sample_ids=IDS).logits)


@pytest.mark.parametrize(
    ("sample_ids", "got"),
    [(None, "none"), (torch.zeros(4), "torch.float32"), (torch.zeros(3).long(), r"shape \(3,\)")],
    ids=["none", "float", "short"],
)
@pytest.mark.parametrize("option", [{"leave_own_entry_out": True}, {"bank_update": "ema", "query": "encoder"}])
def test_clouds_that_are_not_known(backbone, make_config, points, labels, sample_ids, got, option):
    model = get_peft_model(backbone, make_config(**option)).train()
    give_bank(model)
    with pytest.raises(ValueError, match=f"`{next(iter(option))}`=.*{got}.* Pass `sample_ids`"):
        model(points, labels=labels, sample_ids=sample_ids)


def test_banks_without_what_an_option_needs(make_backbone):
    def attach(**fields):
        return get_peft_model(make_backbone(), pp.PointPriorPromptConfig(num_prompt_tokens=4, **fields))

    features, unknown, ids = F.normalize(torch.randn(3, 48), dim=-1), torch.full((3,), -1), torch.arange(3)
    for fields in ({"leave_own_entry_out": True}, {"bank_update": "ema", "query": "encoder"}):
        bank = pp.PointPriorBank(features, unknown, unknown, query=fields.get("query", "tokens"))
        with pytest.raises(ValueError, match="has no sample ids"):
            pp.set_point_prior_bank(attach(**fields), bank)
    ids = torch.tensor([0, 0, 1])
    with pytest.raises(ValueError, match="retrieves 2, besides the 2 of the cloud itself"):
        pp.set_point_prior_bank(attach(leave_own_entry_out=True), pp.PointPriorBank(features, unknown, ids))


def test_the_trainer_passes_the_clouds_numbers_on(make_backbone, make_config, tmp_path):
    generator = torch.Generator().manual_seed(0)
    data = [{"points": torch.randn(128, 3, generator=generator), "labels": i % 5, "sample_ids": i} for i in range(8)]
    model = get_peft_model(make_backbone(), make_config(leave_own_entry_out=True))
    pp.build_point_prior_bank(
        model, torch.utils.data.DataLoader(data, 4, collate_fn=pp.data.PointCloudCollator()), progress=False
    )
    arguments = TrainingArguments(str(tmp_path), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True)
    Trainer(model, arguments, train_dataset=data).train()


def test_a_backbone_that_is_being_trained(backbone, backbone_name, make_config, points, labels):
    model = get_peft_model(backbone, make_config())
    give_bank(model)
    weight = next(p for name, p in backbone.named_parameters() if name.endswith("fc1.weight"))
    weight.requires_grad_(True)
    with pytest.raises(ValueError, match="fc1.weight', a weight of the backbone, is being trained"):
        model.train()(points, labels=labels)
    model.eval()(points)


# -- Banks that change ------------------------------------------------------------------------------------------------


def stored(model):
    return copy.deepcopy(bank_layer(model).banks["default"])


@pytest.mark.parametrize("fields", [{}, {"query": "encoder"}])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_entries_move_towards_the_features_of_the_adapted_model(
    backbone, backbone_name, make_config, points, labels, fields, dtype, monkeypatch
):
    if not fields and backbone_name != "point_m2ae":
        pytest.skip("refused, see below")
    model = get_peft_model(backbone, make_config(bank_update="ema", bank_dtype=dtype, **fields))
    give_bank(model)
    ids = torch.tensor([2, 4, -1, 8])
    got = []
    monkeypatch.setattr(layer_module, "BANK_MOMENTUM", 0.75)
    update = layer_module.update_entries
    monkeypatch.setattr(layer_module, "update_entries", lambda bank, *args: got.append(args[0]) or update(bank, *args))
    before = stored(model)
    model.train()(points, labels=labels, sample_ids=ids).loss.backward()
    after = stored(model)
    moved = (after.features != before.features).any(dim=1).nonzero().flatten().tolist()
    assert moved == [2, 4, 8]
    (features,) = got
    old, scale = before.features.float(), before.scales
    old = old if scale is None else old * scale[:, None]
    expected = F.normalize(0.75 * old[[2, 4, 8]] + 0.25 * F.normalize(features[[0, 1, 3]], dim=-1), dim=-1)
    new = after.features.float() if after.scales is None else after.features.float() * after.scales[:, None]
    torch.testing.assert_close(new[[2, 4, 8]], expected, rtol=0, atol=1e-6 if dtype == "float32" else 1 / 254)


def test_a_bank_of_frozen_tokens_cannot_follow_the_model(make_backbone, make_config):
    with pytest.raises(ValueError, match="`bank_update`='ema' would change nothing: .* Set `query`='encoder'"):
        get_peft_model(make_backbone(), make_config(bank_update="ema"))
    # There are blocks that adapters change in front of the stage.
    get_peft_model(make_backbone("point_m2ae"), make_config(bank_update="ema", prompt_depth=None))


def test_small_steps_are_not_lost_in_int8(make_backbone, points, labels):
    fields = {"num_prompt_tokens": 4, "query": "encoder", "bank_update": "ema", "init_weights": False}
    ends = []
    for dtype in ("float32", "int8"):
        torch.manual_seed(0)
        model = get_peft_model(make_backbone(), pp.PointPriorPromptConfig(bank_dtype=dtype, **fields))
        give_bank(model, points)
        for _ in range(60):
            torch.manual_seed(3)
            model.train()(points, labels=labels, sample_ids=IDS)
        end = stored(model)
        ends.append(end.features.float() if end.scales is None else end.features.float() * end.scales[:, None])
    assert (ends[0] - ends[1]).abs().max() < 0.01


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_oldest_entries_are_replaced(make_backbone, make_config, points, labels, dtype, tmp_path):
    model = get_peft_model(make_backbone(), make_config(query="encoder", bank_update="queue", bank_dtype=dtype))
    give_bank(model, torch.cat([points, clouds(2)]))
    model.train()
    for expected_ids, ids in (
        ([7, 8, 1, 9, 4, 5], torch.tensor([7, 8, 1, 9])),
        ([0, -1, 1, 9, 3, 2], torch.tensor([3, 2, 0, -1])),
    ):
        model(points, labels=labels, sample_ids=ids)
        assert stored(model).sample_ids.tolist() == expected_ids
    # The label of a cloud that is in the bank already is known.
    assert stored(model).labels.tolist() == [-1, -1, 1, -1, -1, -1]
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_backbone(), tmp_path, is_trainable=True)
    assert int(bank_layer(loaded).banks["default"].oldest) == 2
    assert torch.equal(stored(loaded).features, stored(model).features)


@pytest.mark.parametrize("update", ["ema", "queue"])
def test_only_training_changes_a_bank(make_backbone, make_config, points, labels, update):
    model = get_peft_model(make_backbone(), make_config(query="encoder", bank_update=update))
    give_bank(model, points)
    before = stored(model)
    model.eval()(points, labels=labels, sample_ids=IDS)
    with torch.no_grad():
        model.train()(points, labels=labels, sample_ids=IDS)
    with model.disable_adapter():
        model(points, labels=labels, sample_ids=IDS)
    assert torch.equal(stored(model).features, before.features)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("update", ["ema", "queue"])
def test_gradient_checkpointing_updates_once(backbone, make_config, points, labels, update, use_reentrant):
    model = get_peft_model(backbone, make_config(query="encoder", bank_update=update)).train()
    give_bank(model, torch.cat([points, clouds()]))
    checkpointed = copy.deepcopy(model)
    checkpointed.prepare_model_for_gradient_checkpointing(checkpointed)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    for m in (model, checkpointed):
        torch.manual_seed(4)
        m(points, labels=labels, sample_ids=IDS).loss.backward()
    for (name, plain), again in zip(stored(model).named_buffers(), stored(checkpointed).buffers(), strict=True):
        torch.testing.assert_close(again.float(), plain.float(), rtol=1e-5, atol=1.0 if name == "features" else 1e-5)


# -- A look inside ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retrieval", ["top_k", "softmax"])
@pytest.mark.parametrize("query", ["encoder", "tokens"])
def test_what_prompts_were_drawn_from(backbone, make_config, points, retrieval, query):
    model = get_peft_model(backbone, make_config(retrieval=retrieval, query=query, num_prompt_tokens=5))
    bank = give_bank(model, torch.cat([clouds(), points]))
    report = pp.explain_retrieval(model, points)
    for name in ("indices", "sample_ids", "labels", "weights", "similarities"):
        assert getattr(report, name).shape == (4, 3)
    # Each cloud is in the bank, and most like itself, but for clouds that int8 cannot tell apart.
    for best, itself in zip(report.sample_ids[:, 0].tolist(), [9, 10, 11, 12], strict=True):
        assert best == itself or bank.features[best] @ bank.features[itself] > 0.999
    assert torch.equal(report.labels, bank.labels[report.indices])
    torch.testing.assert_close(report.similarities[:, 0], torch.ones(4), rtol=0, atol=0.02)
    assert bool((report.similarities.diff(dim=1) <= 0).all())
    total = report.weights.sum(dim=1)
    assert bool((total < 0.9).all()) if retrieval == "softmax" else torch.allclose(total, torch.ones(4))


def test_nothing_to_look_into(make_backbone, points):
    model = get_peft_model(make_backbone(), pp.PointPriorPromptConfig(num_prompt_tokens=4))
    with pytest.raises(ValueError, match="'default' has an empty bank"):
        pp.explain_retrieval(model, points)
    with pytest.raises(ValueError, match="Adapter 'typo' of this model uses a bank|'typo'"):
        pp.explain_retrieval(model, points, "typo")
    with pytest.raises(ValueError, match="No active adapter"):
        pp.explain_retrieval(make_backbone(), points)
