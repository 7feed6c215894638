"""The model against the golden tensors, the released names and counts, and its own plain loss."""

import json
import math
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from train import kernels
from train.model import DnDTransformer, TransformerConfig
from train.sampling import sample_codes

GOLDEN = ["transformer_1head_uncond", "transformer_2head_cfg"]
TINY = TransformerConfig(4, 2, 32, 19, (3, 5), (1, 3), num_classes=4, class_dropout=0.1)


def load_golden(path):
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = TransformerConfig.from_released(json.loads(file.metadata()["config"]))
    weights = {key.removeprefix("state_dict."): t for key, t in tensors.items() if key.startswith("state_dict.")}
    transformer = DnDTransformer(config)
    transformer.load_state_dict(weights)
    return transformer, tensors


def randomised(config):
    torch.manual_seed(0)
    transformer = DnDTransformer(config).eval()
    for output in transformer.output:
        torch.nn.init.normal_(output.weight, std=0.3)
    codes = torch.randint(config.codebook_size, (3, config.num_positions, config.depth))
    return transformer, codes, torch.tensor([0, 1, config.num_classes])


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_and_loss_are_the_golden_ones(shared, name):
    transformer, golden = load_golden(shared / f"reference/{name}.safetensors")
    transformer.eval()
    logits = transformer(golden["codes"], golden["cond"])
    torch.testing.assert_close(logits.transpose(1, 2), golden["logits"], atol=1e-4, rtol=0)
    loss = transformer(golden["codes"], golden["cond"], return_loss=True)
    torch.testing.assert_close(loss.mean().reshape(1), golden["loss"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_gradients_are_the_golden_ones(shared, name, share):
    transformer, golden = load_golden(shared / f"reference/{name}.safetensors")
    object.__setattr__(transformer.config, "activation_checkpointing", share)
    transformer.train()  # the golden configs have no dropout
    transformer(golden["codes"], golden["cond"], return_loss=True).mean().backward()
    gradients = {f"grad.{key}": parameter.grad for key, parameter in transformer.named_parameters()}
    pinned = {key: tensor for key, tensor in golden.items() if key.startswith("grad.")}
    assert pinned
    torch.testing.assert_close({key: gradients[key] for key in pinned}, pinned, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "entry", ["imagenet_16x16x2_XXL", "imagenet_16x16x2_XXXL", "text_image_24x24x1_XXL", "arxiv_image_16x16x8_XXL"]
)
def test_released_names_shapes_and_counts(shared, entry):
    released = json.loads((shared / "reference/released_transformers.json").read_text())[entry]
    with torch.device("meta"):
        transformer = DnDTransformer(TransformerConfig.from_released(released))
    assert {key: list(t.shape) for key, t in transformer.state_dict().items()} == released["state_dict"]
    assert sum(p.numel() for p in transformer.parameters()) == released["parameters"]


def test_first_loss_is_that_of_a_uniform_guess():
    transformer = DnDTransformer(TINY)
    codes = torch.randint(19, (2, 15, 2))
    loss = transformer(codes, torch.tensor([0, 4]), return_loss=True)
    torch.testing.assert_close(loss, torch.full((2,), math.log(19)))


@pytest.mark.parametrize("chunk", [19, 19 * 7, 2**25])
def test_chunked_loss_and_gradient_are_the_plain_ones(monkeypatch, chunk):
    monkeypatch.setattr(kernels, "LOSS_CHUNK", chunk)
    transformer, codes, classes = randomised(TINY)
    weights = torch.tensor([0.7, 1.9])
    loss = transformer(codes, classes, return_loss=True)
    got = torch.autograd.grad((loss * weights).sum(), list(transformer.parameters()))
    logits = transformer(codes, classes)
    plain = F.cross_entropy(logits.flatten(0, 2), codes.flatten(), reduction="none").view_as(codes).mean((0, 1))
    wanted = torch.autograd.grad((plain * weights).sum(), list(transformer.parameters()))
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-4)


def test_a_position_sees_only_what_comes_before_it():
    transformer, codes, classes = randomised(TINY)
    before = transformer(codes, classes)
    changed = codes.clone()
    changed[:, 6, 0] = (changed[:, 6, 0] + 1) % 19
    different = (transformer(changed, classes) != before).any(-1).any(0)  # [L, D]
    assert not different[:6].any() and not different[6, 0] and different[6, 1] and different[7:].all()


def test_bfloat16_stays_close_to_float32():
    transformer, codes, classes = randomised(TINY)
    wanted = transformer(codes, classes, return_loss=True)
    got = transformer.bfloat16()(codes, classes, return_loss=True)
    torch.testing.assert_close(got, wanted, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("change", [{"num_heads": 3}, {"head_layers": (1, 2)}, {"head_layers": (3, 1)}, {"dim": 20}])
def test_impossible_shapes_are_refused(change):
    with pytest.raises(ValueError):
        TransformerConfig(**{**TINY.__dict__, **change})


def test_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="GPT-XXL"):
        TransformerConfig.from_released({"preset": "GPT-XXM"})


@pytest.mark.parametrize(("heads", "seen"), [("dnd", True), ("vertical", True), ("parallel", False)])
def test_which_heads_see_the_codes_before_them(heads: Literal["dnd", "vertical", "parallel"], seen: bool) -> None:
    model = random_model(heads)
    codes = torch.randint(16, (2, 4, 3), generator=torch.Generator().manual_seed(1))
    changed = codes.clone()
    changed[:, 2, 0] = (codes[:, 2, 0] + 1) % 16
    classes = torch.zeros(2, dtype=torch.int64)
    difference = (model(codes, classes) - model(changed, classes)).abs().amax(dim=(0, 3))  # [L, D]
    assert bool(difference[2, 1] > 1e-4) is bool(difference[2, 2] > 1e-4) is seen
    assert difference[2, 0] == 0 and difference[:2].max() == 0  # nothing looks at itself or ahead
    assert difference[3].min() > 1e-4  # later positions see it


@pytest.mark.parametrize("heads", ["dnd", "vertical", "parallel"])
def test_greedy_samples_are_the_likeliest_codes_of_each_arm(heads: Literal["dnd", "vertical", "parallel"]) -> None:
    model = random_model(heads)
    codes = sample_codes(model, [0, 0], temperature=0)
    assert isinstance(codes, torch.Tensor)
    assert torch.equal(model(codes, torch.zeros(2, dtype=torch.int64)).argmax(-1), codes)


def random_model(heads: Literal["dnd", "vertical", "parallel"]) -> DnDTransformer:
    torch.manual_seed(0)
    config = TransformerConfig(3, 2, 16, 16, (2, 2), (0, 1, 2), heads=heads)
    model = DnDTransformer(config).eval()
    for output in model.output:
        torch.nn.init.normal_(output.weight, std=1.0)
    for table in (model.tok_embeddings, model.cls_embedding.embedding_table):
        torch.nn.init.normal_(table.weight, std=1.0)
    return model
