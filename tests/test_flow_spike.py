"""A spike for docs/flux2.md: a narrow FLUX.2 takes the adapter's tokens in place of its text's.

It is trained and sampled with the clean-background rule for flow models. None of this is in the package.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from micro import micro_config, seeded

from imprint.adapter import ContentAdapter
from imprint.blending import blend_latents
from imprint.config import tokens_adapter

flux2 = pytest.importorskip("diffusers.models.transformers.transformer_flux2")

CELLS = 4  # of the latents, along a side: patches of 16 px
CHANNELS = 8  # of 128
CONTEXT = 24  # of 7680


def narrow_flux() -> torch.nn.Module:
    """diffusers' FLUX.2 with all its parts: two double and two single blocks of two heads."""
    torch.manual_seed(0)
    return flux2.Flux2Transformer2DModel(
        in_channels=CHANNELS,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=CONTEXT,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,  # as klein's
    )


def adapter() -> ContentAdapter:
    config = micro_config()
    made = ContentAdapter(tokens_adapter(config.encoder, layers=1, heads=2, output_width=CONTEXT))
    torch.nn.init.normal_(made.null_embedding)
    return made


def positions(latents: torch.Tensor, time: int = 0) -> torch.Tensor:
    """(B, C, h, w) -> (h * w, 4): FLUX.2's coordinates of picture (`time`), row, column and, for text, position."""
    height, width = latents.shape[2:]
    return torch.cartesian_prod(torch.tensor([time]), torch.arange(height), torch.arange(width), torch.tensor([0]))


def predict(
    model: torch.nn.Module,
    seen: torch.Tensor,
    time: torch.Tensor,
    context: torch.Tensor,
    reference: torch.Tensor | None = None,
) -> torch.Tensor:
    """Predict the velocity (B, C, h, w).

    seen: (B, C, h, w). time: (B,) in [0, 1]. context: (B, N, C'). reference: (B, C, h, w), a clean picture beside it,
    FLUX.2's own way of editing.
    """
    count = len(seen)
    tokens, places = seen.flatten(2).transpose(1, 2), positions(seen)
    if reference is not None:
        tokens = torch.cat([tokens, reference.flatten(2).transpose(1, 2)], 1)
        places = torch.cat([places, positions(reference, time=10)])
    words = torch.cartesian_prod(*[torch.tensor([0])] * 3, torch.arange(context.shape[1]))
    made = model(tokens, context, time, places.float(), words.float()).sample
    return made[:, : seen[0, 0].numel()].transpose(1, 2).unflatten(2, seen.shape[2:]).reshape(count, *seen.shape[1:])


def flow_loss(model, target, background, hole, context, generator) -> torch.Tensor:
    """x_t = (1 - t) x_0 + t eps, and the velocity eps - x_0 in the hole (Esser et al., arXiv 2403.03206, section 2)."""
    time = torch.randn(len(target), generator=generator).sigmoid()
    noise = torch.randn(target.shape, generator=generator)
    share = time[:, None, None, None]
    seen = blend_latents((1 - share) * target + share * noise, background, hole)
    error = F.mse_loss(predict(model, seen, time, context), noise - target, reduction="none") * hole
    return error.sum() / (hole.sum() * target.shape[1])


@torch.no_grad()
def sample(model, background, hole, context, noise, steps: int) -> torch.Tensor:
    """Euler from noise; outside the hole the model always sees the clean background.

    Here the rule needs no factor: a flow model's input is not scaled, unlike an epsilon model's.
    """
    times = torch.linspace(1, 0, steps + 1)
    latents = noise
    for now, then in itertools.pairwise(times):
        seen = blend_latents(latents, background, hole)
        latents = latents + (then - now) * predict(model, seen, now.expand(len(noise)), context)
    return blend_latents(latents, background, hole)


def scene() -> tuple[torch.Tensor, ...]:
    """Target, background with a hole of zeros, hole, and an object's tokens."""
    random = seeded(3)
    target = torch.randn(2, CHANNELS, CELLS, CELLS, generator=random)
    hole = torch.zeros(2, 1, CELLS, CELLS)
    hole[:, :, 1:3, 1:4] = 1
    return target, target * (1 - hole), hole, torch.randn(2, 1, 5, 32, generator=random)


def test_two_objects_are_learned_in_the_hole_and_drawn_there():
    """Overfitted to two pairs, the model draws the object whose tokens it is given, and not the other one."""
    model, tokens_to_context = narrow_flux(), adapter()
    target, background, hole, tokens = scene()
    background, hole = background[:1].expand(2, -1, -1, -1), hole[:1].expand(2, -1, -1, -1)
    target = blend_latents(target, background, hole)  # one place, two objects
    trained = [*model.parameters(), *tokens_to_context.parameters()]
    optimizer, random = torch.optim.AdamW(trained, lr=3e-3), seeded(1)
    losses = []
    for _ in range(200):
        loss = flow_loss(model, target, background, hole, tokens_to_context(tokens), random)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])

    noise = torch.randn(target.shape, generator=seeded(7))
    context = tokens_to_context(tokens).detach()
    drawn = sample(model, background, hole, context, noise, steps=8)
    assert torch.equal(torch.where(hole > 0, 0.0, drawn), torch.where(hole > 0, 0.0, background))
    right, wrong = (((drawn - other) * hole).square().mean() for other in (target, target.flip(0)))
    assert right < 0.5 * wrong
    swapped = sample(model, background, hole, context.flip(0), noise, steps=8)
    right, wrong = (((swapped - other) * hole).square().mean() for other in (target.flip(0), target))
    assert right < 0.5 * wrong


def test_the_background_reaches_the_hole():
    model, (_, background, hole, tokens) = narrow_flux(), scene()
    context, noise = adapter()(tokens), torch.randn(background.shape, generator=seeded(7))
    one, other = (sample(model, each, hole, context, noise, steps=2) for each in (background, background + 1))
    assert ((one - other) * hole).abs().max() > 1e-3


def test_a_reference_picture_beside_it_is_seen_and_costs_its_tokens():
    model, (target, background, _, tokens) = narrow_flux(), scene()
    context, time = adapter()(tokens), torch.full((2,), 0.5)
    with torch.no_grad():
        with_one, with_another = (predict(model, target, time, context, each) for each in (background, background + 1))
    assert with_one.shape == target.shape and (with_one - with_another).abs().max() > 1e-4


def test_true_shapes():
    """klein 4B: 3,876 million parameters; a matte of 8 x 8 values per cell adds 128 outputs to 128 channels."""
    with torch.device("meta"):
        model = flux2.Flux2Transformer2DModel(
            in_channels=128,
            out_channels=128 + 2 * 8**2,
            num_layers=5,
            num_single_layers=20,
            attention_head_dim=128,
            num_attention_heads=24,
            joint_attention_dim=7680,
            guidance_embeds=False,
        )
        places, words = torch.zeros(32 * 32, 4), torch.zeros(257, 4)
        made = model(torch.empty(1, 32 * 32, 128), torch.empty(1, 257, 7680), torch.zeros(1), places, words).sample
    assert round(sum(each.numel() for each in model.parameters()) / 1e6) == 3876 and made.shape == (1, 1024, 256)
