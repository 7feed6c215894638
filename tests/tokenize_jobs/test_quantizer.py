"""Residual quantization, and codebooks that learn the same on any number of ranks."""

from pathlib import Path

import pytest
import ranks
import torch
from safetensors.torch import load_file
from torch import Tensor
from uneven import learn

from tokenize_jobs.quantizer import Codebook, ResidualQuantizer, codebook_health, count_codes


def quantizer(seed: int = 0, **options: object) -> ResidualQuantizer:
    torch.manual_seed(seed)
    return ResidualQuantizer(**{"num_rows": 16, "channels": 4, "depth": 2, **options})


def test_codes_are_the_nearest_rows_of_what_is_left() -> None:
    model = quantizer(shared_codebook=False).eval()
    latents = torch.randn(2, 3, 5, 4)
    quantized, loss, codes = model(latents)
    left, losses = latents.clone(), []
    for depth, book in enumerate(model.codebooks):
        assert torch.equal(codes[..., depth], torch.cdist(left, book.weight[:-1]).argmin(-1))
        left = left - book.weight[codes[..., depth]]
        losses.append(left.square().mean())
    torch.testing.assert_close(quantized, latents - left)
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    torch.testing.assert_close(model.decode(codes), latents - left)


def test_equal_rows_give_the_first_and_padding_is_never_chosen() -> None:
    book = Codebook(4, 2, decay=0.99, restart_unused_codes=True)
    book.weight[:] = torch.tensor([[1.0, 1], [3, 3], [1, 1], [3, 3], [0, 0]])
    assert book.nearest(torch.tensor([[0.0, 0], [1, 1], [9, 9]])).tolist() == [0, 0, 1]


def test_folded_positions_are_one_vector_by_row_column_channel() -> None:
    model = quantizer(fold=(2, 1))
    latents = torch.arange(4 * 3 * 4.0).reshape(1, 4, 3, 4)
    folded = model.to_code_shape(latents)
    assert folded.shape == (1, 2, 3, 8)
    assert folded[0, 1, 2].tolist() == latents[0, 2:4, 2].flatten().tolist()
    assert torch.equal(model.to_latent_shape(folded), latents)
    assert model.encode(latents).shape == (1, 2, 3, 2)


@pytest.mark.parametrize("shared_codebook", [True, False])
def test_moving_averages_follow_the_batch(shared_codebook: bool) -> None:
    """Against the formulas written out, without restarts; a shared codebook has moved before the next depth."""
    model = quantizer(shared_codebook=shared_codebook, restart_unused_codes=False).train()
    books = [model.codebooks[0]] if shared_codebook else list(model.codebooks)
    for book in books:
        book.cluster_size_ema.fill_(2.0)
    states = [(book.weight[:-1].clone(), torch.full((16,), 2.0), book.embed_ema.clone()) for book in books]
    vectors = torch.randn(40, 4)
    model(vectors.view(1, 5, 8, 4))
    left = vectors.clone()
    for depth in range(2):
        weight, sizes, sums = states[0 if shared_codebook else depth]
        one_hot = torch.nn.functional.one_hot(torch.cdist(left, weight).argmin(1), 16).float()
        left = left - one_hot @ weight
        sizes.mul_(0.99).add_(0.01 * one_hot.sum(0))
        sums.mul_(0.99).add_(0.01 * one_hot.t() @ (left + one_hot @ weight))
        weight.copy_(sums / (sizes.sum() * (sizes + 1e-5) / (sizes.sum() + 16e-5))[:, None])
    for book, (weight, sizes, sums) in zip(books, states, strict=True):
        torch.testing.assert_close(book.weight[:-1], weight)
        torch.testing.assert_close(book.cluster_size_ema, sizes)
        torch.testing.assert_close(book.embed_ema, sums)


def test_unused_rows_restart_from_vectors_of_the_batch() -> None:
    model = quantizer(depth=1).train()
    book = model.codebooks[0]
    book.cluster_size_ema[:] = torch.tensor([50.0] * 10 + [0.5] * 6)
    vectors = torch.randn(64, 4)
    model(vectors.view(1, 8, 8, 4))
    assert model.restarts.tolist() == [6]
    assert book.cluster_size_ema[10:].tolist() == [1.0] * 6
    assert all((row == vectors).all(1).any() for row in book.embed_ema[10:])
    assert len(torch.unique(book.embed_ema[10:], dim=0)) == 6


def test_restarts_from_fewer_vectors_than_rows_differ_by_noise() -> None:
    model = quantizer(depth=1).train()
    vectors = torch.randn(3, 4)
    model(vectors.view(1, 1, 3, 4))
    rows = model.codebooks[0].embed_ema
    assert torch.cdist(rows, vectors).min(1).values.max() < 0.02
    assert len(torch.unique(rows, dim=0)) == 16


def test_restored_random_state_draws_the_same() -> None:
    latents, states = torch.randn(1, 4, 4, 4), []
    for _ in range(2):
        model = quantizer().train()
        torch.manual_seed(7)
        model(latents)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_nothing_is_learned_in_eval_mode_or_by_encode() -> None:
    model = quantizer().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.encode(torch.randn(1, 4, 4, 4))
    model.eval()(torch.randn(1, 4, 4, 4))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"shared_codebook": False}], ids=["shared", "own"])
def test_two_ranks_with_unequal_batches_learn_what_one_learns(tmp_path: Path, options: dict) -> None:
    """Shares of 3 and 1, 4 and 0, 0 and 4 images: nothing hangs, and the codebooks are those of one rank."""
    from safetensors.torch import save_file

    torch.manual_seed(1)
    save_file({f"step{i}": torch.randn(4, 2, 2, 4) for i in range(3)}, tmp_path / "batches.safetensors")
    for world in (1, 2):
        ranks.run(world, learn, tmp_path, options)
    files = ("world1rank0", "world2rank0", "world2rank1")
    one, first, second = (load_file(tmp_path / f"{name}.safetensors") for name in files)
    for name in one:
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], one[name])


def gradient_of(model: ResidualQuantizer, latents: Tensor, upstream: Tensor) -> Tensor:
    latents = latents.clone().requires_grad_()
    model(latents)[0].backward(upstream)
    assert latents.grad is not None
    return latents.grad


def test_gradients_pass_straight() -> None:
    latents, upstream = torch.randn(1, 2, 2, 4), torch.randn(1, 2, 2, 4)
    assert torch.equal(gradient_of(quantizer().eval(), latents, upstream), upstream)


def test_codebook_health() -> None:
    codes = torch.tensor([[0, 0], [1, 0], [2, 0], [3, 0]])
    usage, perplexity = codebook_health(count_codes(codes, 8))
    assert usage == [0.5, 0.125]
    assert perplexity == pytest.approx([4.0, 1.0])
