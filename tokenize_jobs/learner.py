"""What learns: the tokenizer, its adversary, their optimizers and the moving average of the weights. One step a call.

Gradients are summed over the ranks after the last micro batch, in one collective for each network: ranks may hold
different numbers of images, and nothing has to match but the number of micro batches.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from data_specs.spec import Tokenizer
from tokenize_jobs.device import autocast, layout
from tokenize_jobs.losses import LPIPS, PatchDiscriminator, discriminator_loss, generator_losses
from tokenize_jobs.quantizer import all_sum
from tokenize_jobs.rqvae import RQVAE

Losses = dict[str, Tensor]


class Learner:
    """A tokenizer in training. `state_dict` holds all that a resumed run needs."""

    def __init__(self, model: RQVAE, part: Tokenizer, device: torch.device, dtype: torch.dtype, lpips: LPIPS | None):
        self.part, self.device, self.dtype, self.lpips = part, device, dtype, lpips
        self.model = model.to(device, memory_format=layout(device)).train()  # type: ignore[call-overload]
        self.critic = None if part.gan_start is None else PatchDiscriminator().to(device)
        networks = [self.model] if self.critic is None else [self.model, self.critic]
        self.optimizers = [torch.optim.Adam(net.parameters(), part.learning_rate, part.betas) for net in networks]
        self.average = None if part.ema is None else Average(self.model, part.ema)
        if part.compile:
            for module in (self.model.encoder, self.model.decoder, lpips):
                if module is not None:
                    module.compile()

    def step(self, micros: Sequence[Tensor], shares: Sequence[float], batch: int, step: int) -> tuple[Losses, Tensor]:
        """One optimizer step on this rank's micro batches [b, 3, H, W].

        shares: this rank's part of the images that all ranks have in the same micro batch; batch: images of the step
        over all ranks. Returns this rank's part of the batch's mean losses (to be summed over ranks) and codes.
        """
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        total: Losses = {}
        codes = []
        for images, share in zip(micros, shares, strict=True):
            losses, of_micro = self._accumulate(images, share, len(images) / batch, step)
            codes.append(of_micro)
            for name, loss in losses.items():
                total[name] = total.get(name, 0) + loss * (len(images) / batch)
        for optimizer in self.optimizers if self._critic_at(step) else self.optimizers[:1]:
            sum_gradients(optimizer)
            optimizer.step()
        if self.average:
            self.average.update(self.model, step)
        return total, torch.cat(codes)

    def _critic_at(self, step: int) -> PatchDiscriminator | None:
        """The adversary, from its start step on."""
        return self.critic if self.part.gan_start is not None and step >= self.part.gan_start else None

    def _accumulate(self, images: Tensor, share: float, weight: float, step: int) -> tuple[Losses, Tensor]:
        """Adds the gradients of one micro batch; returns its losses and codes."""
        critic = self._critic_at(step)
        if critic is not None:
            critic.requires_grad_(False)  # the tokenizer's loss passes through it but leaves nothing in it
        with autocast(self.device, self.dtype):
            reconstruction, commitment, codes = self.model(images)
            losses = generator_losses(
                images,
                reconstruction,
                commitment,
                kind=self.part.reconstruction,
                commitment_weight=self.part.commitment,
                lpips=self.lpips,
                lpips_weight=self.part.lpips_weight,
                discriminator=critic,
                gan_weight=self.part.gan_weight,
                last_layer=self.model.decoder.conv_out.weight,
                share=share,
            )
        (losses.pop("total") * weight).backward()
        if critic is not None:
            critic.requires_grad_(True)
            with autocast(self.device, self.dtype):
                losses["disc"] = discriminator_loss(critic, images, reconstruction)
            (losses["disc"] * weight).backward()
        losses["mse"] = (reconstruction.detach().float() - images).square().mean()
        return {name: loss.detach() for name, loss in losses.items()}, codes

    def set_rate(self, rate: float) -> None:
        """The learning rate of both networks."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """Weights, codebooks, moments and the moving average."""
        return {
            "model": self.model.state_dict(),
            "critic": self.critic.state_dict() if self.critic else {},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.average.tensors if self.average else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.model.load_state_dict(state["model"])
        if self.critic:
            self.critic.load_state_dict(state["critic"])
        for optimizer, of_optimizer in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(of_optimizer)
        if self.average:
            self.average.tensors = [tensor.to(self.device) for tensor in state["average"]]

    def result(self) -> RQVAE:
        """The tokenizer as it is to be used: the moving average where there is one."""
        model = copy.deepcopy(self.model)
        if self.average:
            self.average.write_to(model)
        return model.eval()


class Average:
    """Moving average of weights and codebooks; it starts short: decay min(decay, (1 + step) / (10 + step))."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.tensors = decay, [tensor.detach().clone() for tensor in _floats(model)]

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves towards the model after its step `step` (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.tensors, _floats(model), 1 - decay)

    @torch.no_grad()
    def write_to(self, model: nn.Module) -> None:
        """Puts the average in the place of a model's weights."""
        torch._foreach_copy_(_floats(model), self.tensors)


def _floats(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers of a model, each once."""
    return [t.detach() for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]


def sum_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Gradients of an optimizer's parameters summed over the ranks, in one collective."""
    if not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
        return
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    flat = all_sum(torch.cat([gradient.flatten() for gradient in gradients]))
    _copy_back(gradients, flat)


def _copy_back(gradients: Iterable[Tensor], flat: Tensor) -> None:
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
