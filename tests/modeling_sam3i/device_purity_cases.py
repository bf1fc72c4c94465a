# SPDX-License-Identifier: Apache-2.0
"""On an accelerator no operation mixes devices, and the host waits a few times a call, however many rows there are."""

import pytest
import torch
from stand_in_device import StandInDevice, set_up, waits
from transformers import Sam3Model

from sam3i import load_instruction_adapter, save_adapter
from sam3i.modeling_sam3i.configuration_sam3i import Sam3IConfig
from sam3i.modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
from sam3i.modeling_sam3i.video import InstructionFeatures, follow_instructions
from sam3i.processing.post_processing import segment_rows

ROWS = 3
ONE_LAYER = {
    "text_config": {"num_hidden_layers": 1},
    "detr_encoder_config": {"num_layers": 1},
    "detr_decoder_config": {"num_layers": 2},  # earlier layers are matched as well
}


@pytest.fixture(autouse=True)
def device():
    set_up()
    with StandInDevice():
        yield "standin"


@pytest.fixture
def small_config(tiny_sam3_config):
    """The tiny SAM3 with fewer layers: every operation of the device passes through Python."""
    values = tiny_sam3_config.to_dict()
    return type(tiny_sam3_config).from_dict(values | {part: values[part] | new for part, new in ONE_LAYER.items()})


@pytest.fixture(params=["cascade", "selective"])
def model(request, small_config, train_adapters):
    torch.manual_seed(0)
    settings = {"model_type": "sam3i", "adapter_design": request.param, "selector_queries": 4, "adapter_dim": 8}
    config = Sam3IConfig.from_dict(small_config.to_dict() | settings)
    return train_adapters(Sam3IForInstructionSegmentation(config), scale=0.1).eval().to("standin")


def inputs_of(rows: int = ROWS, boxes: bool = False) -> dict[str, torch.Tensor]:
    """Rows of all three levels on one image, on the device."""
    generator = torch.Generator().manual_seed(rows)
    inputs = {
        "pixel_values": torch.randn(1, 3, 56, 56, generator=generator),
        "input_ids": torch.randint(1, 61, (rows, 20), generator=generator),
        "attention_mask": (torch.arange(20) < torch.arange(5, 5 + rows)[:, None]).long(),
        "instruction_levels": torch.arange(rows) % 3,
        "image_ids": torch.zeros(rows, dtype=torch.long),
    }
    if boxes:
        inputs["input_boxes"] = torch.rand(rows, 2, 4, generator=generator) * 0.3 + 0.3
        inputs["input_boxes_labels"] = torch.tensor([[1, -10]] * rows)
    return {name: tensor.to("standin") for name, tensor in inputs.items()}


def labels_of(rows: int = ROWS) -> list[dict[str, torch.Tensor]]:
    """One row with no target, one with masks of another size."""
    sizes = [(40, 50), (56, 56), (40, 50)]
    return [
        {
            "masks": (torch.rand(row % 3, *sizes[row % 3]) > 0.5).to("standin"),
            "boxes": (torch.rand(row % 3, 4) * 0.3 + 0.3).to("standin"),
        }
        for row in range(rows)
    ]


def waits_of(call, *args, **kwargs) -> int:
    waits.clear()
    call(*args, **kwargs)
    return sum(waits.values())


@pytest.fixture
def stock_waits(small_config) -> int:
    """What stock needs for one forward pass of three rows."""
    stock, inputs = Sam3Model(small_config).eval().to("standin"), inputs_of()
    names = ("input_ids", "attention_mask")
    pixels = inputs["pixel_values"].expand(ROWS, -1, -1, -1)
    with torch.no_grad():
        return waits_of(stock, pixel_values=pixels, **{name: inputs[name] for name in names})


def test_the_device_counts_and_refuses():
    tensor = torch.arange(3.0).to("standin")
    waits.clear()
    assert tensor.sum().item() == 3 and len(tensor[tensor > 0]) == 2 and tensor.tolist() == [0, 1, 2]
    assert sum(waits.values()) == 3
    with pytest.raises(RuntimeError, match="mixes devices"):
        tensor + torch.ones(3)


def test_forward_waits_no_more_than_stock(model, stock_waits):
    with torch.no_grad():
        few, many = (waits_of(model, **inputs_of(rows, boxes=True)) for rows in (ROWS, 2 * ROWS))
    assert few == many <= stock_waits


def test_segment_waits_as_often_for_many_rows_as_for_few(model, stock_waits):
    few, many = (waits_of(model.segment, threshold=0.0, **inputs_of(rows)) for rows in (ROWS, 2 * ROWS))
    assert few == many <= stock_waits + 4


def test_loss_waits_once_and_the_backward_pass_never(model, stock_waits):
    model.train()
    model.freeze_stock()
    forward = waits_of(model, **inputs_of())
    few = waits_of(model, **inputs_of(), labels=labels_of())
    waits.clear()
    loss = model(**inputs_of(2 * ROWS), labels=labels_of(2 * ROWS)).loss
    assert few == sum(waits.values()) == forward + 1 <= stock_waits + 2
    assert waits_of(loss.backward) == 0
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert trained and all(weight.grad.device.type == "standin" for weight in trained)


def test_a_fixed_level_reads_no_level(model):
    inputs = inputs_of()
    with torch.no_grad():
        chosen = waits_of(model, **inputs)
        model.set_level("complex")
        del inputs["instruction_levels"], inputs["image_ids"]
        assert waits_of(model, **inputs) == chosen - 1


def test_a_router_costs_one_more_wait(model):
    inputs = inputs_of()
    with torch.no_grad():
        told = waits_of(model, **inputs)
        inputs["instruction_levels"] = torch.full((ROWS,), -1).to("standin")
        assert waits_of(model, **inputs) <= told + 3  # the choice, and the mask of the text read for it


def test_post_processing_stays_on_the_device_and_waits_three_times_at_most(model):
    found = []
    for rows in (ROWS, 2 * ROWS):
        with torch.no_grad():
            outputs = model(**inputs_of(rows))
        found.append(waits_of(segment_rows, outputs, 0.0, 0.5, [(40, 50)] * rows, max_overlap=0.8))
        for row in segment_rows(outputs, 0.0, 0.5, [(40, 50)] * rows):
            assert {row[name].device.type for name in ("scores", "boxes", "masks")} == {"standin"}
    assert found[0] == found[1] <= 3


def test_peft_on_stock_waits_no_more_than_stock(model, stock_waits, small_config, tmp_path):
    save_adapter(model.cpu(), tmp_path, "org/sam3")
    stock = Sam3Model(small_config).eval()
    tuned = load_instruction_adapter(stock, tmp_path).to("standin")
    with torch.no_grad():
        few, many = (waits_of(tuned, **inputs_of(rows)) for rows in (ROWS, 2 * ROWS))
    assert few == many <= stock_waits


def test_the_detector_of_a_clip_follows_instructions_there(model, small_config):
    from transformers import Sam3VideoConfig, Sam3VideoModel

    config = Sam3VideoConfig(detector_config=small_config)
    video = follow_instructions(Sam3VideoModel(config).eval().to("standin"), model)
    inputs = inputs_of(1)
    ids, mask, levels = (inputs[name] for name in ("input_ids", "attention_mask", "instruction_levels"))
    with torch.no_grad():
        text = model.get_text_features(ids, mask, levels, return_dict=True)
        features = InstructionFeatures(text.pooler_output, levels, text.word_embeds)
        vision = model.get_vision_features(inputs["pixel_values"])
        outputs = video.detector_model(vision_embeds=vision, text_embeds=features, attention_mask=mask)
    assert outputs.pred_masks.device.type == "standin"
