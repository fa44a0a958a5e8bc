"""Model specs against transformers' configs, layouts, the schedule contract."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import FAMILIES, make_config
from weft.closed_form.schedule import closed_form
from weft.errors import LayoutError, ModelConfigError
from weft.tracing.dry_run import dry_run
from weft.vocabulary.families import BUILTIN_MODELS, spec_from_config
from weft.vocabulary.layout import Layout, valid_tp
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.workload import Workload

SCHEMA = json.loads((Path(__file__).parents[1] / "data" / "schedule.schema.json").read_text())

PUBLISHED_PARAMETERS = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "mixtral-8x7b": 46_702_792_704,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_263_168,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v2": 235_741_434_880,
    "deepseek-v3": 671_026_404_352,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "glm-4.5": 352_797_814_784,
    "glm-4.5-air": 106_852_245_504,
    "qwen3-next-80b-a3b": 79_674_391_296,
    "minimax-m2": 228_689_748_992,
    "llama-4-scout": 107_769_861_120,
    "llama-4-maverick": 400_711_848_960,
}


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_parameter_counts_are_the_published_ones(name):
    assert BUILTIN_MODELS[name].num_parameters == PUBLISHED_PARAMETERS[name]


@pytest.mark.parametrize("family", FAMILIES)
def test_parameter_count_equals_transformers(family, tmp_path):
    config = make_config(family)
    config.save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert load_spec(str(tmp_path)).num_parameters == model.num_parameters()


def test_old_and_new_spelling_of_a_config_mean_the_same():
    sizes = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "vocab_size": 100,
    }
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    old = {"torch_dtype": "float16", "rope_theta": 7.0, "rope_scaling": scaling}
    new = {"dtype": "float16", "rope_parameters": scaling | {"rope_theta": 7.0}}
    assert spec_from_config("m", sizes | old) == spec_from_config("m", sizes | new)


VALID = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 100,
}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": None}, "None"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"vocab_size": "many"}, "many"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_act": "mish"}, "mish"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "longrope"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor is 0.0"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": -1.0}}, "factor is -1.0"),
        ({"rope_scaling": {"rope_type": "linear"}}, "no field 'factor'"),
        ({"rope_theta": 0}, "theta is 0.0"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "full_attention"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"per_layer_config": {"0": {"hidden_size": 8}}}, "per_layer_config"),
        ({"torch_dtype": "int8"}, "int8"),
        ({"mlp_bias": "yes"}, "mlp_bias"),
        ({"model_type": "llama5"}, "nearest is llama"),
    ],
)
def test_wrong_configs_name_the_field(change, word):
    with pytest.raises(ModelConfigError, match=word):
        spec_from_config("m", VALID | change)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists), st.data())
def test_any_value_in_a_config_gives_a_spec_or_one_error(value, data):
    keys = [*VALID, "rope_scaling", "rope_theta", "rms_norm_eps", "mlp_bias", "eos_token_id"]
    key = data.draw(st.sampled_from(keys))
    try:
        spec_from_config("m", VALID | {key: value})
    except ModelConfigError as error:
        assert "\n" not in str(error).strip()  # noqa: PT017


degrees = st.integers(1, 6)


@given(tp=degrees, pp=degrees, dp=degrees, sp=st.booleans())
def test_groups_partition_the_ranks(tp, pp, dp, sp):
    layout = Layout(tp=tp, pp=pp, dp=dp, sp=tp if sp else 1)
    for kind in ("tp", "pp", "dp", "sp", "ep", "world"):
        groups = layout.groups(kind)
        assert sorted(rank for group in groups for rank in group) == list(range(tp * pp * dp))
    for rank in range(layout.world_size):
        place = {
            "stage": layout.stage_of(rank),
            "tp_rank": layout.tp_rank_of(rank),
            "replica": layout.replica_of(rank),
        }
        assert layout.rank_of(**place) == rank
        assert layout.group_of("tp", rank)[place["tp_rank"]] == rank
        assert layout.group_of("pp", rank)[place["stage"]] == rank
        assert layout.group_of("dp", rank)[place["replica"]] == rank


@given(tp=degrees, pp=degrees, dp=degrees)
def test_names_are_read_back(tp, pp, dp):
    layout = Layout(tp=tp, pp=pp, dp=dp)
    assert Layout.parse(layout.name) == layout


@given(st.integers(1, 12), st.integers(0, 130))
def test_every_layer_is_on_one_stage(pp, extra):
    stages = Layout(pp=pp).layers_of_stages(pp + extra)
    assert [layer for stage in stages for layer in stage] == list(range(pp + extra))
    assert max(map(len, stages)) - min(map(len, stages)) <= 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"tp": 0},
        {"tp": 4, "sp": 2},
        {"tp": 2, "ep": 3},
        {"tp": 2, "nodes": 3},
        {"tp": 4, "nodes": 2, "gpus_per_node": 4},
        {"pp": 2, "stage_layers": (1, 2, 3)},
    ],
)
def test_contradicting_layouts(wrong):
    with pytest.raises(LayoutError):
        Layout(**wrong)


def test_valid_tp_is_what_check_model_accepts():
    for name in ("llama-3.1-8b", "qwen2.5-0.5b", "llama-2-13b"):
        spec = BUILTIN_MODELS[name]
        for tp in range(1, spec.num_heads + 1):
            try:
                Layout(tp=tp).check_model(spec)
                accepted = True
            except LayoutError:
                accepted = False
            assert accepted == (tp in valid_tp(spec)), (name, tp)


@pytest.mark.parametrize("source", [closed_form, dry_run])
@pytest.mark.parametrize("layout", ["1", "tp2", "pp2", "tp2xpp2", "sp2"])
def test_json_follows_the_contract(source, layout):
    spec = BUILTIN_MODELS["llama-3.2-1b"]
    document = source(spec, Layout.parse(layout), Workload(decode_tokens=4)).to_dict()
    jsonschema.validate(document, SCHEMA)
    for row in document["collectives"]:
        assert row["volume_bytes"] == pytest.approx(
            row["count"] * row["message_bytes"] * row["correction"]
        )
