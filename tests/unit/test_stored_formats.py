"""Checkpoints in 8-bit floats give the tokens of transformers' model of the dequantised weights."""

from __future__ import annotations

import json
from math import nan

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from checkpoints import make_checkpoint, reference_greedy, reference_model
from unit.test_weights import stage_of
from weft.engine.llm import LLM
from weft.engine.request import SamplingParams
from weft.errors import FileFormatError, UserError
from weft.layers.float8_matrix import Float8Matrix, group_of
from weft.layers.matrix import Matrix
from weft.layers.shards import Piece
from weft.models.float8 import Float8Scales
from weft.models.weights import fill_dummy, load_weights
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.weight_formats import FORMATS

MOST = torch.finfo(torch.float8_e4m3fn).max
FORMS = {
    "fp8 blocks": {"quant_method": "fp8", "weight_block_size": [16, 32]},
    "fp8 tensor": {"quant_method": "fp8"},
    "compressed-tensors channel": {
        "quant_method": "compressed-tensors",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
            }
        },
        "ignore": ["lm_head"],
    },
    "modelopt": {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]},
}


def quantized(weight: torch.Tensor, form: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(stored, scales, what they mean) of a matrix."""
    rows, columns = weight.shape
    size = {"fp8 blocks": (16, 32), "compressed-tensors channel": (1, columns)}.get(
        form, (rows, columns)
    )
    places = [torch.arange(n) // s for n, s in zip(weight.shape, size, strict=True)]
    shape = [-(-n // s) for n, s in zip(weight.shape, size, strict=True)]
    scales = torch.zeros(shape)
    index = (places[0][:, None] * shape[1] + places[1]).flatten()
    scales.view(-1).scatter_reduce_(0, index, weight.abs().flatten() / MOST, "amax")
    spread = scales[places[0]][:, places[1]]
    stored = (weight / spread).to(torch.float8_e4m3fn)
    return stored, scales.reshape(()) if form == "modelopt" else scales, stored.float() * spread


def quantize(plain, directory, form):
    """The checkpoint ``plain`` stored in 8 bits in ``directory``; ``plain`` becomes what that means."""
    tensors, stored = load_file(plain / "model.safetensors"), {}
    name_of_scales = "weight_scale_inv" if form.startswith("fp8") else "weight_scale"
    for name, value in list(tensors.items()):
        if value.dim() == 2 and ".layers." in name and name.endswith("proj.weight"):
            stored[name], scales, tensors[name] = quantized(value, form)
            stored[name.replace("weight", name_of_scales)] = scales
            if form == "modelopt":
                stored[name.replace("weight", "input_scale")] = torch.tensor(0.5)
        else:
            stored[name] = value
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    directory.mkdir()
    save_file(stored, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = FORMS[form]
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def assert_same_shards(plain, stored, layout):
    """Every rank reads the same weights from both checkpoints."""
    for rank in range(layout.world_size):
        expected, found = (stage_of(load_spec(str(d)), layout, rank) for d in (plain, stored))
        load_weights(expected, plain)
        load_weights(found, stored)
        for one, other in zip(contents(expected), contents(found), strict=True):
            assert torch.equal(one, other)


def contents(stage):
    """What its matrices stand for, and all other parameters."""
    matrices = {
        name: module.part(slice(None))
        for name, module in stage.named_modules()
        if isinstance(module, Matrix | Float8Matrix)
    }
    inside = tuple(f"{name}." for name in matrices)
    others = [p for name, p in stage.named_parameters() if not name.startswith(inside)]
    return [*matrices.values(), *others]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["llama", "qwen3-moe", "deepseek-v3"])
def test_tokens_are_those_of_the_dequantised_model(family, form, tmp_path):
    plain = make_checkpoint(tmp_path / "plain", family)
    stored = quantize(plain, tmp_path / "stored", form)
    prompts = [[5, 6, 7, 8, 9], [11], list(range(3, 60))]
    with LLM(str(stored), dtype="float32", device="cpu") as llm:
        found = llm.generate(prompts, SamplingParams(max_tokens=24, ignore_eos=True))
    model = reference_model(plain)
    for prompt, completion in zip(prompts, found, strict=True):
        assert list(completion.token_ids) == reference_greedy(model, prompt, 24)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["tp2", "tp4", "tp2xpp2"])
def test_every_rank_holds_its_shard_of_the_dequantised_model(form, name, tmp_path):
    plain = make_checkpoint(tmp_path / "plain", "qwen3-moe")
    stored = quantize(plain, tmp_path / "stored", form)
    assert_same_shards(plain, stored, Layout.parse(name))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t, name: t.pop(name.replace("weight", "weight_scale_inv")),
            r"down_proj\.weight' is F8_E4M3 and has no '.*down_proj\.weight_scale_inv'",
        ),
        (
            lambda t, name: t[name.replace("weight", "weight_scale_inv")].view(-1)[-1:].fill_(nan),
            r"down_proj\.weight_scale_inv' holds NaN or infinity; use another checkpoint$",
        ),
        (
            lambda t, name: t.__setitem__(
                name, torch.full(t[name].shape, nan).to(torch.float8_e4m3fn)
            ),
            r"down_proj\.weight' holds NaN or infinity as .*; use another checkpoint$",
        ),
        (
            lambda t, name: t.__setitem__(
                name.replace("weight", "weight_scale_inv"), torch.ones(3, 7)
            ),
            "fits neither rows nor blocks",
        ),
        (
            lambda t, name: t.__setitem__(
                name.replace("weight", "weight_scale_inv"),
                t[name.replace("weight", "weight_scale_inv")].byte(),
            ),
            "not scales of 8-bit floats",
        ),
    ],
)
def test_what_is_wrong_with_a_matrix_or_its_scales_is_named(change, words, tmp_path):
    plain = make_checkpoint(tmp_path / "plain", "llama")
    stored = quantize(plain, tmp_path / "stored", "fp8 blocks")
    tensors = load_file(stored / "model.safetensors")
    change(tensors, "model.layers.1.mlp.down_proj.weight")
    save_file(tensors, stored / "model.safetensors", {"format": "pt"})
    with pytest.raises(FileFormatError, match=words) as caught:
        LLM(str(stored), device="cpu")
    assert "\n" not in str(caught.value)


def test_packed_experts_are_those_of_the_plain_checkpoint(tmp_path):
    """gpt-oss's own form; transformers' unpacking is the reference."""
    plain = make_checkpoint(tmp_path / "plain", "gpt-oss")
    stored = tmp_path / "stored"
    stored.mkdir()
    tensors, packed = load_file(plain / "model.safetensors"), {}
    for name, value in list(tensors.items()):
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            packed[name] = value
            continue
        experts, columns, rows = value.shape
        blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
        scales = torch.randint(118, 123, blocks.shape[:-1], dtype=torch.uint8)
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        tensors[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    save_file(packed, stored / "model.safetensors", {"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (stored / "config.json").write_text(json.dumps(config))
    for name in ("1", "tp2"):
        assert_same_shards(plain, stored, Layout.parse(name))
    del packed[next(name for name in packed if name.endswith("_scales"))]
    save_file(packed, stored / "model.safetensors", {"format": "pt"})
    with pytest.raises(FileFormatError, match=r"has no .*_scales"):
        LLM(str(stored), device="cpu")


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """What `weights_dtype` makes of a matrix: 8-bit floats with a scale a row."""
    scales = weight.abs().amax(dim=1, keepdim=True) / MOST
    return (weight / scales).to(torch.float8_e4m3fn).float() * scales


@pytest.mark.parametrize("family", ["llama", "qwen3-moe", "gpt-oss"])
def test_weights_dtype_rounds_while_loading(family, tmp_path):
    """The tokens are those of transformers' model of the rounded weights."""
    plain = make_checkpoint(tmp_path / "plain", family)
    prompts = [[5, 6, 7, 8, 9], list(range(3, 60))]
    with LLM(str(plain), dtype="float32", weights_dtype="float8_e4m3fn", device="cpu") as llm:
        found = llm.generate(prompts, SamplingParams(max_tokens=24, ignore_eos=True))
    tensors = load_file(plain / "model.safetensors")
    for name, value in tensors.items():
        if ".layers." in name and name.endswith("proj.weight"):
            tensors[name] = rounded(value)
        elif name.endswith("gate_up_proj"):
            both = torch.stack((value[:, :, ::2], value[:, :, 1::2])).transpose(2, 3)
            halves = torch.stack([torch.stack([rounded(w) for w in half]) for half in both])
            tensors[name] = torch.stack(tuple(halves.transpose(2, 3)), dim=3).flatten(2)
        elif name.endswith("down_proj"):
            tensors[name] = torch.stack([rounded(w.t()).t() for w in value]).contiguous()
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    model = reference_model(plain)
    for prompt, completion in zip(prompts, found, strict=True):
        assert list(completion.token_ids) == reference_greedy(model, prompt, 24)


@pytest.mark.parametrize("name", ["tp2", "tp4", "ep2"])
def test_rounded_weights_are_one_model_under_every_layout(name, tmp_path):
    """A rank's rounded shard is the shard of the rounded whole, read or made up."""
    plain = make_checkpoint(tmp_path / "plain", "qwen3-moe")
    spec = load_spec(str(plain)).stored_as("float8_e4m3fn")
    layout = Layout(tp=2, ep=2) if name == "ep2" else Layout.parse(name)
    for fill in (
        lambda stage: load_weights(stage, plain, rounds=True),
        lambda stage: fill_dummy(stage, 3),
    ):
        whole, parts = stage_of(spec, Layout(), 0), []
        fill(whole)
        for rank in range(layout.world_size):
            parts.append(stage_of(spec, layout, rank))
            fill(parts[-1])
        downs = [part.layers[0].attention.output.matrix.part(slice(None)) for part in parts]
        expected = whole.layers[0].attention.output.matrix.part(slice(None))
        assert torch.equal(torch.cat(downs, dim=1), expected)
        experts = [part.layers[0].mlp.experts.down for part in parts]
        assert all(isinstance(matrix, Float8Matrix) for matrix in experts)


def test_a_checkpoint_in_16_bits_is_rounded_only_when_asked(tmp_path):
    plain = make_checkpoint(tmp_path / "plain", "llama")
    stage = stage_of(load_spec(str(plain)).stored_as("float8_e4m3fn"), Layout(), 0)
    with pytest.raises(FileFormatError, match="do not belong together"):
        load_weights(stage, plain)


def test_a_format_says_fewer_blocks_than_the_file_has(tmp_path):
    """One scale a tensor by config.json, blocks in the file: refused, not taken for one scale."""
    plain = make_checkpoint(tmp_path / "plain", "llama")
    stored = quantize(plain, tmp_path / "stored", "fp8 blocks")
    config = json.loads((stored / "config.json").read_text())
    del config["quantization_config"]["weight_block_size"]
    (stored / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileFormatError, match=r"fits neither|other blocks"):
        LLM(str(stored), device="cpu")


def test_one_scale_is_never_taken_for_several(tmp_path):
    """The file has a scale for each 128 columns, the parameter one for all 256."""
    (tmp_path / "config.json").write_text("{}")
    stored = {"x.weight_scale": torch.tensor([[1.0, 2.0]])}
    scales = Float8Scales(tmp_path, dict.fromkeys(stored, tmp_path), stored.__getitem__)
    piece = Piece(source="x.weight", shape=(8, 256), dim=0, start=2, stop=5)
    assert scales.rows(piece, 128).tolist() == [[1.0] * 3, [2.0] * 3]
    with pytest.raises(FileFormatError, match="other blocks"):
        scales.rows(piece, 256)


@pytest.mark.parametrize(
    ("shape", "edges", "group"),
    [
        ((8, 256), [(0, 256)], 128),
        ((8, 192), [(192, 384)], 64),  # begins inside a block
        ((8, 64), [(24, 88)], 8),
    ],
)
def test_groups_of_a_shard_lie_inside_the_blocks(shape, edges, group):
    pieces = [
        Piece(source="x", shape=(8, 1024), dim=1, start=start, stop=stop) for start, stop in edges
    ]
    assert group_of(FORMATS["fp8_block"], shape, pieces) == group
    assert group_of(FORMATS["float8_e4m3fn"], shape, pieces) == shape[1]
    assert group_of(FORMATS["bfloat16"], shape, pieces) is None


def test_rounding_what_is_stored_in_another_format_is_refused(tmp_path):
    plain = make_checkpoint(tmp_path, "gpt-oss")
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (plain / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="leave it out"):
        LLM(str(plain), weights_dtype="float8_e4m3fn", weights="dummy", device="cpu")


def test_scales_cut_short_are_not_those_of_a_row(tmp_path):
    plain = make_checkpoint(tmp_path / "plain", "llama")
    stored = quantize(plain, tmp_path / "stored", "fp8 blocks")
    tensors = load_file(stored / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight_scale_inv"
    tensors[name] = tensors[name][:1].contiguous()
    save_file(tensors, stored / "model.safetensors", {"format": "pt"})
    with pytest.raises(FileFormatError, match="fits neither"):
        LLM(str(stored), device="cpu")


def test_the_option_hides_no_checkpoint_that_contradicts_its_config(tmp_path):
    plain = make_checkpoint(tmp_path / "plain", "llama")
    stored = quantize(plain, tmp_path / "stored", "fp8 blocks")
    tensors = load_file(stored / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    whole = dict(tensors)
    tensors[name] = load_file(plain / "model.safetensors")[name]
    del tensors[name.replace("weight", "weight_scale_inv")]
    save_file(tensors, stored / "model.safetensors", {"format": "pt"})
    with pytest.raises(FileFormatError, match="do not belong together"):
        LLM(str(stored), weights_dtype="float8_e4m3fn", device="cpu")
    save_file(whole, stored / "model.safetensors", {"format": "pt"})
    config = json.loads((stored / "config.json").read_text())
    del config["quantization_config"]
    (stored / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileFormatError, match="no quantization_config"):
        LLM(str(stored), weights_dtype="float8_e4m3fn", device="cpu")
