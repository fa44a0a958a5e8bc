"""Loading: sharded checkpoints, each rank's slices only, dummy weights under every layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from checkpoints import FAMILIES, make_checkpoint
from weft.comm.communicator import Communicator
from weft.engine.llm import LLM
from weft.engine.request import SamplingParams
from weft.errors import FileFormatError
from weft.layers.expert_exchange import LocalExperts
from weft.layers.linear import Placement
from weft.layers.residual_stream import ReplicatedStream
from weft.models import checkpoint as checkpoint_module
from weft.models import weights
from weft.models.decoder import DecoderStage, Streams
from weft.vocabulary.layout import Layout, valid_tp
from weft.vocabulary.model_source import find_model
from weft.vocabulary.model_spec import ModelSpec


def stage_of(spec: ModelSpec, layout: Layout, rank: int, dtype=torch.float32) -> DecoderStage:
    where = Placement(
        tp_rank=layout.tp_rank_of(rank),
        tp_size=layout.tp,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    alone = Communicator(kind="tp", ranks=(0,), rank=0, transport=None)
    layers = layout.layers_of_stages(spec.num_layers)[layout.stage_of(rank)]
    stream = ReplicatedStream(alone)
    experts = LocalExperts(range(spec.num_experts)) if spec.is_moe else None
    return DecoderStage(spec, layers, Streams(residual=stream, mlp=stream, experts=experts), where)


def test_sharded_and_single_file_checkpoints_are_the_same_model(tmp_path):
    single = make_checkpoint(tmp_path / "single", "qwen3")
    sharded = make_checkpoint(tmp_path / "sharded", "qwen3", shard_size="100KB")
    assert (sharded / "model.safetensors.index.json").is_file()
    sampling = SamplingParams(max_tokens=12, ignore_eos=True)
    answers = [LLM(str(path)).generate([[5, 6, 7]], sampling) for path in (single, sharded)]
    assert answers[0] == answers[1]


def test_a_rank_holds_its_shard_and_one_tensor_at_most(tmp_path, monkeypatch):
    """Bytes read at a time never exceed one parameter's own slice."""
    checkpoint = make_checkpoint(tmp_path, "llama")
    spec = find_model(str(checkpoint)).spec
    stage = stage_of(spec, Layout(tp=4), 2)
    largest = max(p.numel() for p in stage.parameters())
    read = []
    place = checkpoint_module.place

    def spy(parameter, piece, values):
        read.append(values.numel())
        place(parameter, piece, values)

    monkeypatch.setattr(checkpoint_module, "place", spy)
    weights.load_weights(stage, checkpoint)
    held = sum(p.numel() for p in stage.parameters())
    padding = 4 * -(-199 // 4) - 199
    assert max(read) <= largest
    assert held - 2 * padding * spec.hidden_size <= sum(read) <= held
    assert held < spec.num_parameters / 4 * 1.1


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_dummy_weights_are_one_model_under_every_layout(data):
    kv_heads = data.draw(st.sampled_from([1, 2, 4]))
    spec = ModelSpec(
        name="random",
        num_layers=data.draw(st.integers(1, 3)),
        hidden_size=16,
        num_heads=4,
        num_kv_heads=kv_heads,
        head_dim=4,
        intermediate_size=8,
        vocab_size=data.draw(st.integers(3, 40)),
        qkv_bias=data.draw(st.booleans()),
        tie_embeddings=data.draw(st.booleans()),
    )
    tp = data.draw(st.sampled_from(valid_tp(spec)))
    layout = Layout(tp=tp, pp=data.draw(st.integers(1, spec.num_layers)))
    seed = data.draw(st.integers(0, 99))
    whole = sources(stage_of(spec, Layout(), 0), seed)
    seen = set()
    for rank in range(layout.world_size):
        stage = stage_of(spec, layout, rank)
        weights.fill_dummy(stage, seed)
        for parameter in stage.parameters():
            for piece in parameter.pieces:
                length = piece.stop - piece.start
                ours = parameter.data.narrow(piece.dim, piece.at, length)
                expected = whole[piece.source].narrow(piece.dim, piece.start, length)
                assert torch.equal(ours, expected), piece
                seen.add(piece.source)
    assert seen == set(whole)


def sources(stage, seed):
    weights.fill_dummy(stage, seed)
    return {
        piece.source: parameter.data.narrow(piece.dim, piece.at, piece.stop - piece.start)
        for parameter in stage.parameters()
        for piece in parameter.pieces
    }


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_damaged_checkpoint_is_an_error_or_loads(data, tmp_path_factory):
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("model"), "llama-tied")
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 20))):
            content[data.draw(st.integers(0, 4000))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    stage = stage_of(find_model(str(checkpoint)).spec, Layout(), 0)
    try:
        weights.load_weights(stage, checkpoint)
    except FileFormatError as error:
        assert str(checkpoint) in str(error)  # noqa: PT017


@pytest.mark.parametrize("content", ["", "{}", '{"weight_map": 3}', "["])
def test_a_damaged_index(content, tmp_path):
    checkpoint = make_checkpoint(tmp_path, "llama", shard_size="100KB")
    (checkpoint / "model.safetensors.index.json").write_text(content)
    stage = stage_of(find_model(str(checkpoint)).spec, Layout(), 0)
    with pytest.raises(FileFormatError, match=r"index|weight_map"):
        weights.load_weights(stage, checkpoint)


def rewrite(checkpoint, change):
    """Save the checkpoint again with ``change`` made to its tensors."""
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def put(name, value):
    def change(tensors):
        tensors[name].view(-1)[7] = value

    return change


def add(name, shape=(64,)):
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


def cast(name, dtype):
    return lambda tensors: tensors.update({name: tensors[name].to(dtype)})


DOWN = "model.layers.3.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put(DOWN, torch.nan), [DOWN, "NaN or infinity"]),
        (put(DOWN, -torch.inf), [DOWN, "NaN or infinity"]),
        (put("model.norm.weight", torch.nan), ["model.norm.weight", "NaN or infinity"]),
        (cast(DOWN, torch.int8), [DOWN, "I8"]),
        (cast(DOWN, torch.float8_e4m3fn), [DOWN, "F8_E4M3"]),
        (add("model.layers.5.input_layernorm.weight"), ["model.layers.5", "does not read"]),
        (add("model.layers.3.self_attn.q_proj.bias"), ["q_proj.bias", "does not read"]),
        (add("model.layers.3.self_attn.q_norm.weight"), ["q_norm", "does not read"]),
        (lambda tensors: tensors.pop(DOWN), [DOWN, "has no tensor"]),
        (cast("lm_head.weight", torch.float64), []),
        (add("model.layers.0.self_attn.rotary_emb.inv_freq"), []),
    ],
)
def test_tensors_that_are_refused_by_name_and_those_that_are_not(change, words, tmp_path):
    checkpoint = make_checkpoint(tmp_path, "llama")
    rewrite(checkpoint, change)
    stage = stage_of(find_model(str(checkpoint)).spec, Layout(), 0)
    if not words:
        weights.load_weights(stage, checkpoint)
        return
    with pytest.raises(FileFormatError) as error:
        weights.load_weights(stage, checkpoint)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in [*words, str(checkpoint)])


def test_weights_that_overflow_in_the_chosen_type_are_refused(tmp_path):
    checkpoint = make_checkpoint(tmp_path, "llama")
    rewrite(checkpoint, put(DOWN, 1e5))
    spec = find_model(str(checkpoint)).spec
    weights.load_weights(stage_of(spec, Layout(), 0), checkpoint)
    with pytest.raises(FileFormatError, match=r"down_proj.* as float16; .*`dtype`"):
        weights.load_weights(stage_of(spec, Layout(), 0, torch.float16), checkpoint)


def test_a_large_sum_of_finite_weights_loads(tmp_path):
    checkpoint = make_checkpoint(tmp_path, "llama")
    rewrite(checkpoint, lambda tensors: tensors[DOWN].fill_(1000))
    spec = find_model(str(checkpoint)).spec
    weights.load_weights(stage_of(spec, Layout(), 0, torch.float16), checkpoint)


def test_a_tied_head_in_the_checkpoint_is_left_out(tmp_path):
    checkpoint = make_checkpoint(tmp_path, "llama-tied")
    rewrite(checkpoint, add("lm_head.weight", (199, 64)))
    weights.load_weights(stage_of(find_model(str(checkpoint)).spec, Layout(), 0), checkpoint)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_family_is_read_by_the_whole_model_alone(family, tmp_path):
    """Under any layout a rank knows which tensors the others read."""
    checkpoint = make_checkpoint(tmp_path, family)
    spec = find_model(str(checkpoint)).spec
    for rank in range(4):
        weights.load_weights(stage_of(spec, Layout(tp=2, pp=2), rank), checkpoint)


def test_a_file_that_the_index_names_and_is_not_there(tmp_path):
    checkpoint = make_checkpoint(tmp_path, "llama", shard_size="100KB")
    sorted(checkpoint.glob("*.safetensors"))[1].unlink()
    stage = stage_of(find_model(str(checkpoint)).spec, Layout(), 0)
    with pytest.raises(FileFormatError, match=r"names model-00002.*not there"):
        weights.load_weights(stage, checkpoint)


def test_a_tensor_in_two_files(tmp_path):
    checkpoint = make_checkpoint(tmp_path, "llama", shard_size="100KB")
    first, second, *_ = sorted(checkpoint.glob("*.safetensors"))
    twice = next(iter(load_file(first)))
    save_file(load_file(second) | {twice: load_file(first)[twice]}, second)
    stage = stage_of(find_model(str(checkpoint)).spec, Layout(), 0)
    with pytest.raises(FileFormatError, match=f"{twice}.* is in {first.name} and in {second.name}"):
        weights.load_weights(stage, checkpoint)
