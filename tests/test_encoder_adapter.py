import dataclasses

import pytest
import torch
import torch.nn.functional as F
from micro import micro_config, seeded
from torch import nn

from imprint.adapter import ContentAdapter
from imprint.config import AdapterConfig, dinov2, dinov3, tokens_adapter
from imprint.encoder import IDEncoder, hub_name
from imprint.errors import ImprintError

CLIP = dataclasses.replace(dinov2(width=32, layers=1, heads=2, image_size=28), kind="clip")
REGISTERS = dinov2(width=32, layers=1, heads=2, image_size=28, register_tokens=4)
SWIGLU = dinov2(width=32, layers=1, heads=2, image_size=28, swiglu=True)
PLAIN = micro_config().encoder
DINOV3 = dinov3(width=32, layers=2, heads=2, image_size=32)
GATED = dinov3(width=32, layers=2, heads=2, image_size=32, swiglu=True)


def conv_adapter() -> AdapterConfig:
    return dataclasses.replace(tokens_adapter(PLAIN, 2, 2, 48), kind="conv", output_tokens=3)


def pixels(count: int = 2, side: int = 28) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=seeded())


@pytest.mark.parametrize("config", [PLAIN, REGISTERS, SWIGLU, CLIP, DINOV3, GATED])
def test_output_is_cls_and_patches(config):
    tokens = IDEncoder(config).eval()(pixels(side=config.image_size))
    assert tokens.shape == (2, 5, 32) == (2, config.tokens, config.width)
    # The last LayerNorm has been applied: at its initial weights every token has mean 0 and variance 1.
    assert tokens.mean(-1).abs().max() < 1e-4 and (tokens.var(-1, unbiased=False) - 1).abs().max() < 0.05


def test_register_tokens_are_left_out():
    for config in (REGISTERS, DINOV3):
        encoder, seen = IDEncoder(config).eval(), pixels(side=config.image_size)
        everything = encoder.backbone(seen).last_hidden_state
        assert everything.shape[1] == 9
        assert torch.equal(encoder(seen), everything[:, [0, 5, 6, 7, 8]])


def test_dinov3_sees_in_training_what_it_sees_afterwards():
    """The library would scale its positions at random."""
    encoder = IDEncoder(DINOV3)
    seen = pixels(side=32)
    assert torch.equal(encoder.train()(seen), encoder.eval()(seen))


def test_dinov3_asks_for_a_library_that_has_it(monkeypatch):
    import transformers

    found = type(transformers).__getattr__
    only_others = lambda module, name: found(module, "" if name == "DINOv3ViTModel" else name)  # noqa: E731
    monkeypatch.setattr(type(transformers), "__getattr__", only_others)
    monkeypatch.delattr(transformers, "DINOv3ViTModel", raising=False)
    with pytest.raises(ImprintError, match=f"transformers {transformers.__version__}.*4.56 or newer; update"):
        IDEncoder(DINOV3)


@pytest.mark.parametrize(
    ("config", "mlp"), [(DINOV3, {"up_proj", "down_proj"}), (GATED, {"gate_proj", "up_proj", "down_proj"})]
)
def test_dinov3_s_tensors_have_the_names_of_the_hub_s_files(config, mlp):
    """As in facebook/dinov3-vit*16-pretrain-lvd1689m, and in ComfyUI's model."""
    outer = {"embeddings.cls_token", "embeddings.mask_token", "embeddings.register_tokens", "norm.weight", "norm.bias"}
    outer |= {"embeddings.patch_embeddings.weight", "embeddings.patch_embeddings.bias"}
    layers = [f"{part}.{kind}" for part in ("norm1", "norm2") for kind in ("weight", "bias")]
    layers += [f"attention.{part}_proj.{kind}" for part in "qkvo" for kind in ("weight", "bias")]
    layers += [f"mlp.{part}.{kind}" for part in mlp for kind in ("weight", "bias")]
    layers += ["layer_scale1.lambda1", "layer_scale2.lambda1"]
    layers.remove("attention.k_proj.bias")
    encoder = IDEncoder(config)
    named = encoder.hub_state_dict()
    assert set(named) == outer | {f"layer.{number}.{name}" for number in (0, 1) for name in layers}
    torch.manual_seed(1)
    other = IDEncoder(config)
    other.load_hub_state_dict(named)
    seen = pixels(side=32)
    assert torch.equal(other.eval()(seen), encoder.eval()(seen))


def test_the_cls_token_alone_is_the_first_of_all():
    for config in (PLAIN, REGISTERS, CLIP):
        torch.manual_seed(0)
        every = IDEncoder(config).eval()
        alone = IDEncoder(dataclasses.replace(config, output="cls")).eval()
        alone.load_hub_state_dict(every.hub_state_dict())
        assert alone.config.tokens == 1
        assert torch.allclose(alone(pixels()), every(pixels())[:, :1], atol=1e-6)


def test_clip_s_cls_token_is_the_library_s_own():
    torch.manual_seed(0)
    encoder = IDEncoder(CLIP).eval()
    assert torch.allclose(encoder(pixels())[:, 0], encoder.backbone(pixels()).pooler_output, atol=1e-6)


def test_clip_s_tensors_have_the_names_of_the_hub_s_files():
    """As in openai/clip-vit-large-patch14."""
    names = set(IDEncoder(CLIP).hub_state_dict())
    assert len(names) == 23 and all(name.startswith("vision_model.") for name in names)
    assert {
        "vision_model.embeddings.class_embedding",
        "vision_model.embeddings.position_embedding.weight",
        "vision_model.pre_layrnorm.weight",
        "vision_model.encoder.layers.0.self_attn.q_proj.weight",
        "vision_model.encoder.layers.0.mlp.fc2.bias",
        "vision_model.post_layernorm.bias",
    } <= names


BLOCK_NAMES = set(
    """
    norm1.weight norm1.bias attention.attention.query.weight attention.attention.query.bias
    attention.attention.key.weight attention.attention.key.bias attention.attention.value.weight
    attention.attention.value.bias attention.output.dense.weight attention.output.dense.bias layer_scale1.lambda1
    norm2.weight norm2.bias layer_scale2.lambda1
""".split()
)
MLP = {"mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"}
SWIGLU_MLP = {"mlp.weights_in.weight", "mlp.weights_in.bias", "mlp.weights_out.weight", "mlp.weights_out.bias"}
OUTER_NAMES = set(
    """
    embeddings.cls_token embeddings.mask_token embeddings.position_embeddings
    embeddings.patch_embeddings.projection.weight embeddings.patch_embeddings.projection.bias layernorm.weight
    layernorm.bias
""".split()
)


@pytest.mark.parametrize(
    ("config", "outer", "mlp"),
    [
        (PLAIN, OUTER_NAMES, MLP),
        (REGISTERS, OUTER_NAMES | {"embeddings.register_tokens"}, MLP),
        (SWIGLU, OUTER_NAMES, SWIGLU_MLP),
    ],
)
def test_tensors_have_the_names_of_the_hub_s_files(config, outer, mlp):
    """As in facebook/dinov2-* and facebook/dinov2-with-registers-*, regardless of their names in this transformers
    version.
    """
    names = set(IDEncoder(config).hub_state_dict())
    assert names == outer | {f"encoder.layer.0.{name}" for name in BLOCK_NAMES | mlp}


def test_names_of_transformers_4_and_5_are_the_same():
    old = "encoder.layer.3.attention.attention.key.weight"
    assert hub_name("encoder.layer.3.attention.k_proj.weight") == old
    assert hub_name(old) == old
    assert hub_name("encoder.layer.0.attention.o_proj.bias") == "encoder.layer.0.attention.output.dense.bias"


def test_swiglu_s_hub_tensor_holds_the_gate_and_then_the_input():
    """As the hub's files store it, and as ComfyUI reads it: w_out(silu(x1) * x2)."""
    torch.manual_seed(0)
    encoder = IDEncoder(SWIGLU).eval()
    tensors = {name.split("mlp.")[1]: tensor for name, tensor in encoder.hub_state_dict().items() if "mlp." in name}
    x = torch.randn(2, 5, 32)
    x1, x2 = F.linear(x, tensors["weights_in.weight"], tensors["weights_in.bias"]).chunk(2, -1)
    expected = F.linear(F.silu(x1) * x2, tensors["weights_out.weight"], tensors["weights_out.bias"])
    mlp = next(module for name, module in encoder.named_modules() if name.endswith("mlp"))
    assert torch.allclose(mlp(x), expected, atol=1e-6)


@pytest.mark.parametrize("config", [PLAIN, REGISTERS, SWIGLU, CLIP])
def test_hub_tensors_load_strictly(config):
    torch.manual_seed(1)
    source, target = IDEncoder(config).eval(), IDEncoder(config).eval()
    assert not torch.equal(source(pixels()), target(pixels()))
    tensors = source.hub_state_dict()
    target.load_hub_state_dict(tensors)
    assert torch.equal(source(pixels()), target(pixels()))
    lacking = {name: tensor for name, tensor in tensors.items() if "query" not in name and "q_proj" not in name}
    with pytest.raises(KeyError):
        target.load_hub_state_dict(lacking)


def test_position_embeddings_have_the_input_s_own_size():
    """Nothing is interpolated at inference."""
    assert IDEncoder(PLAIN).hub_state_dict()["embeddings.position_embeddings"].shape == (1, 5, 32)


@pytest.mark.parametrize(("config", "tokens"), [(tokens_adapter(PLAIN, 2, 2, 48), 5), (conv_adapter(), 3)])
def test_adapter_shapes_and_views_side_by_side(config, tokens):
    torch.manual_seed(0)
    adapter = ContentAdapter(config).eval()
    views = torch.randn(2, 3, 5, 32)
    context = adapter(views)
    assert context.shape == (2, 3 * tokens, 48)
    for view in range(3):  # every view is adapted on its own, and stands in its place
        one = adapter(views[:, view : view + 1])
        assert torch.allclose(context[:, view * tokens : (view + 1) * tokens], one, atol=1e-5)


def test_conv_mixes_over_tokens_and_not_over_width():
    adapter = ContentAdapter(conv_adapter())
    assert adapter.reduce.weight.shape == (3, 5, 1)


def test_every_layer_comes_from_the_operations():
    made = []

    class Operations:
        @staticmethod
        def Linear(*args, **factory):
            made.append("Linear")
            return nn.Linear(*args, **factory)

        @staticmethod
        def LayerNorm(*args, **factory):
            made.append("LayerNorm")
            return nn.LayerNorm(*args, **factory)

        @staticmethod
        def Conv1d(*args, **factory):
            made.append("Conv1d")
            return nn.Conv1d(*args, **factory)

    adapter = ContentAdapter(conv_adapter(), Operations, dtype=torch.bfloat16)
    layers = [module for module in adapter.modules() if isinstance(module, (nn.Linear, nn.LayerNorm, nn.Conv1d))]
    assert len(made) == len(layers) == 1 + 2 * 6 + 2
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.bfloat16} == {adapter.dtype}
    assert set(adapter.state_dict()) == set(ContentAdapter(conv_adapter()).state_dict())


def test_a_block_is_pre_norm_attention_and_mlp():
    """Compared with torch's own attention with the same weights."""
    torch.manual_seed(0)
    block = ContentAdapter(tokens_adapter(PLAIN, 1, 2, 48)).blocks[0].eval()
    x = torch.randn(2, 5, 32)
    attention = nn.MultiheadAttention(32, 2, batch_first=True)
    attention.load_state_dict(
        {
            "in_proj_weight": block.qkv.weight,
            "in_proj_bias": block.qkv.bias,
            "out_proj.weight": block.out.weight,
            "out_proj.bias": block.out.bias,
        }
    )
    y = block.norm1(x)
    expected = x + attention(y, y, y, need_weights=False)[0]
    expected = expected + block.fc2(F.gelu(block.fc1(block.norm2(expected))))
    assert torch.allclose(block(x), expected, atol=1e-5)


def test_strength_runs_from_no_object_to_the_object():
    adapter = ContentAdapter(tokens_adapter(PLAIN, 1, 2, 48))
    nn.init.normal_(adapter.null_embedding)
    context = torch.randn(2, 10, 48)
    null = adapter.null_context(context)
    assert null.shape == context.shape and torch.equal(null[0, 0], null[1, 9])
    assert torch.equal(adapter.scale(context, 0), null)
    assert torch.equal(adapter.scale(context, 1), context)
    assert torch.allclose(adapter.scale(context, 0.5), (null + context) / 2, atol=1e-6)
    assert torch.allclose(adapter.scale(context, 1.5), context + 0.5 * (context - null), atol=1e-5)
    assert adapter.null_context(context.half()).dtype == torch.float16


def test_gradients_reach_every_parameter_that_makes_the_context():
    adapter = ContentAdapter(conv_adapter())
    adapter(torch.randn(1, 2, 5, 32)).square().sum().backward()
    without = {name for name, parameter in adapter.named_parameters() if parameter.grad is None}
    assert without == {"null_embedding"}


def test_impossible_sizes():
    with pytest.raises(ImprintError, match="use 'conv'"):
        dataclasses.replace(tokens_adapter(PLAIN, 1, 2, 48), output_tokens=3)
    with pytest.raises(ImprintError, match="not a multiple of its 3 heads"):
        tokens_adapter(PLAIN, 1, 3, 48)
