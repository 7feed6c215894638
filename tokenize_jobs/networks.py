"""The networks of a tokenizer's training: what they start from, and what a micro batch adds to their gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_specs import storage
from data_specs.records import TokenizerState
from data_specs.sections import Tokenizer
from data_specs.shape import CodeShape
from data_specs.spec import Spec
from tokenize_jobs.checkpoint import newest_state
from tokenize_jobs.device import autocast, training_layout
from tokenize_jobs.losses import (
    LPIPS,
    LPIPS_PACKAGE,
    PatchDiscriminator,
    discriminator_loss,
    generator_losses,
    load_lpips,
)
from tokenize_jobs.rqvae import RQVAE, RQVAEConfig
from tokenize_jobs.weights import CONFIG, load_tokenizer

Losses = dict[str, Tensor]


# ---- what it starts from -------------------------------------------------------------------------------------------
def config_of(spec: Spec) -> RQVAEConfig:
    """Return the model's configuration by the spec."""
    section = spec.tokenizer
    shape = spec.shape
    return RQVAEConfig(
        image_size=(shape.image_size, shape.image_size),
        grid=shape.grid,
        depth=shape.depth,
        codebook_size=shape.codebook_size,
        shared_codebook=section.shared_codebook,
        embed_dim=section.embed_dim,
        ch=section.channels,
        ch_mult=section.channel_multipliers,
        num_res_blocks=section.res_blocks,
        attn_resolutions=section.attention_sizes,
        z_channels=section.embed_dim,
        patch=section.patch,
        shortcut=section.shortcut,
        encoder=section.encoder,
        **_learning(spec),
    )


def _learning(spec: Spec) -> dict[str, Any]:
    """How the codebook learns: as the spec says also where the architecture comes from `init_from`."""
    section = spec.tokenizer
    return {
        "decay": section.decay,
        "commitment_weight": section.commitment,
        "restart_unused_codes": section.restart_unused,
    }


def initial_model(spec: Spec, root: str) -> RQVAE:
    """Return a new tokenizer, or that of `tokenizer.init_from`.

    Once there is a checkpoint, that tokenizer may be gone: the architecture is the checkpoint's then, as the weights
    will be.

    Raises:
        ValueError: its codes are not the spec's.
    """
    wanted = config_of(spec)
    source = spec.tokenizer.init_from
    if source is None:
        return RQVAE(wanted)
    uri = storage.join(root, source)
    if not storage.exists(storage.join(uri, CONFIG)):
        state = newest_state(storage.join(root, "tokenizer"))
        if state and isinstance(state.task, TokenizerState):
            return RQVAE(RQVAEConfig.from_json(state.task.config))
    model = load_tokenizer(uri, **_learning(spec))
    where = f"tokenizer.init_from {source}"
    remedy = "make shape agree with it"
    CodeShape.of(wanted).refuse_other(CodeShape.of(model.config), where, "the spec's", remedy)
    return model


def lpips_of(spec: Spec, root: str) -> LPIPS | None:
    """Return LPIPS with the weights that the spec names.

    Raises:
        ValueError, FileNotFoundError: they are not there.
    """
    weights = spec.tokenizer.lpips_weights
    if weights is None or weights == LPIPS_PACKAGE:
        return load_lpips(weights) if weights else None
    uri = storage.join(root, weights)
    return load_lpips(storage.local_copy(uri) if storage.stat(uri) else storage.local_folder(uri))


# ---- a micro batch -------------------------------------------------------------------------------------------------
class Networks(NamedTuple):
    """The tokenizer, its discriminator where the spec has one, and LPIPS where it has weights; how they are trained."""

    section: Tokenizer
    model: RQVAE
    discriminator: PatchDiscriminator | None
    lpips: LPIPS | None

    @classmethod
    def of(cls, section: Tokenizer, model: RQVAE, lpips: LPIPS | None) -> Networks:
        """Return what trains a tokenizer: itself, LPIPS and, where the section has one, a new discriminator."""
        return cls(section, model.train(), None if section.gan_start is None else PatchDiscriminator(), lpips)

    def to(self, device: torch.device) -> Networks:
        """Move all of them to a device."""
        self.model.to(device, memory_format=training_layout(device))  # type: ignore[call-overload]
        for network in filter(None, (self.discriminator, self.lpips)):
            network.to(device)
        return self

    @property
    def trained(self) -> list[nn.Module]:
        """Those that learn."""
        return [self.model] if self.discriminator is None else [self.model, self.discriminator]

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Return an Adam for each of those that learn."""
        section = self.section
        return [torch.optim.Adam(net.parameters(), section.learning_rate, section.betas) for net in self.trained]

    def add_gradients(
        self, images: Tensor, dtype: torch.dtype, adversarial: bool, share: float = 1.0, weight: float = 1.0
    ) -> tuple[Losses, Tensor]:
        """Add the gradients of one micro batch [b, 3, H, W]; return its losses and codes.

        Args:
            dtype: of autocast.
            adversarial: whether the discriminator takes part.
            share: how many of all ranks' images these are.
            weight: of its losses in the step.
        """
        discriminator = self.discriminator if adversarial else None
        if discriminator is not None:
            discriminator.requires_grad_(False)  # the tokenizer's loss passes through it but leaves nothing in it
        with autocast(images.device, dtype):
            reconstruction, commitment, codes = self.model(images)
            losses = generator_losses(
                self.section,
                images,
                reconstruction,
                commitment,
                self.model.decoder.conv_out.weight,
                lpips=self.lpips,
                discriminator=discriminator,
                share=share,
            )
        (losses.pop("total") * weight).backward()
        if discriminator is not None:
            discriminator.requires_grad_(True)
            with autocast(images.device, dtype):
                losses["disc"] = discriminator_loss(discriminator, images, reconstruction)
            (losses["disc"] * weight).backward()
        losses["mse"] = (reconstruction.detach().float() - images).square().mean()
        return {name: loss.detach() for name, loss in losses.items()}, codes
