"""Fabrics: built-in numbers with sources, files there and back, damage, fitting, selection."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from weft.allreduce.algorithms import PROGRAMS
from weft.allreduce.cost import latency_us
from weft.allreduce.fitting import fit_fabric
from weft.allreduce.selection import BACKEND, MAX_BUCKET, bucket_of, select
from weft.bench.sizes import parse_sizes, size_text
from weft.errors import FileFormatError, UserError
from weft.fabric import MeasuredTable, load
from weft.fabric.builtin import BUILTIN_FABRICS
from weft.fabric.files import save, to_json
from weft.fabric.fingerprint import describe, fingerprint
from weft.fabric.local import ForeignFabricWarning, checked, default_path, local_fabric


@pytest.mark.parametrize("name", BUILTIN_FABRICS)
def test_every_built_in_number_has_a_source_and_an_uncertainty(name):
    fabric = load(name)
    assert fabric.name == name
    assert fabric.call_source
    for tier in (fabric.intra, fabric.inter):
        assert len(tier.latency_source) > 20
        assert len(tier.bandwidth_source) > 20
        assert 0 < tier.latency_uncertainty_us < tier.latency_us
        assert 0 < tier.bandwidth_uncertainty_gb_s < tier.bandwidth_gb_s
    assert all("H200" in table.source for table in fabric.tables)


def test_the_named_shapes():
    assert load("a100-slingshot11").gpus_per_node == 4
    assert load("a100-slingshot11").node_bandwidth_gb_s(4) == pytest.approx(4 * 23.5)
    assert load("gh200-ndr").gpus_per_node == 1
    assert load("ethernet-10g").nic_share(4, 4) == 0.25
    assert load("h100-nvlink-ndr400").nic_share(4, 4) == 1
    assert load("h200-nvlink").tier("inter") is load("h200-nvlink").inter


@pytest.mark.parametrize("name", BUILTIN_FABRICS)
def test_files_hold_everything(name, tmp_path):
    fabric = replace(load(name), fingerprint={"cpu": "x"})
    save(fabric, tmp_path / "f.json")
    assert load(tmp_path / "f.json") == fabric


def damaged(change):
    document = json.loads(json.dumps(to_json(load("h200-nvlink"))))
    change(document)
    return document


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema="weft.fabric/9"), "is not a fabric file"),
        (lambda d: d.update(colour="red"), "unknown key 'colour'"),
        (lambda d: d.pop("name"), "missing key 'name'"),
        (lambda d: d["intra"].pop("latency_us"), "intra: missing key 'latency_us'"),
        (lambda d: d["intra"].update(latency_us="1"), "latency_us is '1', must be float"),
        (lambda d: d["inter"].update(bandwidth_gb_s=-1), "must be above 0"),
        (lambda d: d["inter"].update(latency_uncertainty_us=-1), "must not be negative"),
        (lambda d: d["inter"].update(packet_factor=0.5), "at least 1"),
        (lambda d: d.update(intra=3), "'intra' must be an object"),
        (lambda d: d.update(gpus_per_node=0), "gpus_per_node must be at least 1"),
        (lambda d: d.update(gpus_per_node=True), "must be int"),
        (lambda d: d.update(nics_per_node=0), "nics_per_node must be at least 1"),
        (lambda d: d.update(call_us=-1), "call_us must not be negative"),
        (lambda d: d.update(tables={}), "'tables' must be a list"),
        (lambda d: d["tables"].append(7), "'table' must be an object"),
        (lambda d: d["tables"][0].update(bytes=["a"]), "'bytes' must be a list of numbers"),
        (lambda d: d["tables"][0]["bytes"].pop(), "9 sizes but 10 times"),
        (lambda d: d["tables"][0]["bytes"].reverse(), "ascending"),
        (lambda d: d["tables"][0]["latency_us"].__setitem__(0, 0), "above 0"),
        (lambda d: d["tables"][0].update(nodes=3), "do not divide"),
    ],
)
def test_damage_is_named(change, message, tmp_path):
    path = tmp_path / "f.json"
    path.write_text(json.dumps(damaged(change)))
    with pytest.raises(FileFormatError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\ud800"])
def test_what_is_no_fabric_file_is_refused(text, tmp_path):
    path = tmp_path / "f.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(FileFormatError, match=r"f\.json"):
        load(path)


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(FileFormatError, match="ethernet-10g"):
        load("infiniband")
    with pytest.raises(FileFormatError, match="cannot be read"):
        load(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        save(load("gh200-ndr"), tmp_path / "no" / "f.json")


def test_the_local_fabric_is_the_named_one_or_the_calibrated_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("WEFT_FABRIC", raising=False)
    assert local_fabric() is None
    monkeypatch.setenv("WEFT_FABRIC", "gh200-ndr")
    assert local_fabric() is load("gh200-ndr")
    monkeypatch.delenv("WEFT_FABRIC")
    default_path().parent.mkdir()
    save(replace(load("gh200-ndr"), fingerprint=fingerprint()), default_path())
    assert local_fabric().fingerprint == fingerprint()


def test_a_foreign_fabric_warns_with_both_fingerprints():
    foreign = replace(load("gh200-ndr"), fingerprint={"cpu": "Z80", "cores": "1", "gpus": "Voodoo"})
    with pytest.warns(ForeignFabricWarning, match="Z80 x 1, Voodoo") as caught:
        checked(foreign)
    assert describe(fingerprint()) in str(caught[0].message)
    assert checked(load("gh200-ndr")) is load("gh200-ndr")


def test_interpolation_holds_the_ends():
    table = MeasuredTable(
        algorithm="ring", ranks=2, dtype="float32", bytes=(100, 10000), latency_us=(1.0, 100.0), source=""
    )  # fmt: skip
    assert table.interpolate([1, 100, 1000, 10000]).tolist() == pytest.approx([1, 1, 10, 100])
    assert float(table.interpolate(20000)) == pytest.approx(200)
    single = replace(table, bytes=(100,), latency_us=(2.0,))
    assert float(single.interpolate(200)) == pytest.approx(4)


def synthetic(noise, seed=0):
    """Tables that a known fabric would give, with some noise."""
    truth = replace(
        load("a100-slingshot11"),
        call_us=7.0,
        intra=replace(load("a100-slingshot11").intra, packet_factor=1.0, latency_us=12.0, bandwidth_gb_s=3.0),
        inter=replace(load("a100-slingshot11").inter, packet_factor=1.0, latency_us=60.0, bandwidth_gb_s=0.8),
    )  # fmt: skip
    generator = np.random.default_rng(seed)
    sizes = tuple(4**power for power in range(5, 12))
    tables = [
        MeasuredTable(
            algorithm=name,
            ranks=ranks,
            nodes=nodes,
            dtype="float32",
            bytes=sizes,
            latency_us=tuple(
                latency_us(name, sizes, nodes, ranks // nodes, truth) * np.exp(noise * generator.standard_normal(7))
            ),
            source="",
        )
        for ranks, nodes in ((2, 1), (4, 1), (4, 2))
        for name in PROGRAMS
    ]  # fmt: skip
    return truth, tables


def test_fitting_finds_the_links_behind_the_measurements():
    truth, tables = synthetic(noise=0.05)
    fabric = fit_fabric("fit", tables, 4, {"cpu": "x"}, "made up")
    for name in ("intra", "inter"):
        found, wanted = fabric.tier(name), truth.tier(name)
        assert found.latency_us == pytest.approx(wanted.latency_us, rel=0.1)
        assert found.bandwidth_gb_s == pytest.approx(wanted.bandwidth_gb_s, rel=0.1)
        assert abs(found.latency_us - wanted.latency_us) < 4 * found.latency_uncertainty_us
        assert found.latency_uncertainty_us < 0.1 * found.latency_us
    assert fabric.call_us == pytest.approx(7.0, rel=0.5)
    assert len(fabric.tables) == len(tables)
    assert not fabric.uses_nccl


def test_fitting_predicts_what_it_did_not_see():
    truth, tables = synthetic(noise=0.03)
    fabric = fit_fabric("fit", tables, 4, None, "made up")
    sizes = [3000, 50_000, 700_000]
    for name in PROGRAMS:
        seen = latency_us(name, sizes, 2, 2, fabric)
        unseen = latency_us(name, sizes, 4, 2, fabric)
        assert np.median(np.abs(seen / latency_us(name, sizes, 2, 2, truth) - 1)) < 0.15
        assert np.median(np.abs(unseen / latency_us(name, sizes, 4, 2, truth) - 1)) < 0.15


def test_fitting_one_node_says_that_the_network_was_not_measured():
    _, tables = synthetic(noise=0.01)
    fabric = fit_fabric("fit", [table for table in tables if table.nodes == 1], 4, None, "made up")
    assert "not measured" in fabric.inter.latency_source
    assert fabric.inter.latency_uncertainty_us >= fabric.inter.latency_us
    with pytest.raises(FileFormatError, match="no measurement"):
        fit_fabric("fit", [], 4, None, "made up")


def test_selection_takes_the_fastest_measured_in_each_bucket():
    fabric = load("h200-nvlink")
    available = ("one_shot", "two_shot", "nccl")
    picked = select(
        fabric, ranks=4, nodes=1, dtype="bfloat16", available=available, default=((8, "ring"),)
    )
    assert picked.pick(8192) == "one_shot"
    assert picked.pick(512 * 1024) == "two_shot"
    assert picked.pick(2**30) == "nccl"
    any_dtype = select(fabric, ranks=4, nodes=1, dtype="float32", available=available, default=())
    assert any_dtype == picked


def test_selection_without_measurements_is_the_default_then_the_library():
    default = ((1024, "one_shot"), (4096, "two_shot"))
    picked = select(None, ranks=3, nodes=1, dtype="float32", available=PROGRAMS, default=default)
    sizes = (0, 1, 1024, 1025, 4096, 4097, 2**45)
    assert [picked.pick(size) for size in sizes] == [
        "one_shot", "one_shot", "one_shot", "two_shot", "two_shot", BACKEND, BACKEND
    ]  # fmt: skip
    other = select(
        load("h200-nvlink"), ranks=3, nodes=1, dtype="float32", available=PROGRAMS, default=default
    )
    assert other == picked
    assert [bucket_of(size) for size in (0, 1, 2, 3, 4, 5)] == [0, 0, 1, 2, 2, 3]
    assert bucket_of(2**60) == MAX_BUCKET


def test_sizes_are_read_as_people_write_them():
    assert parse_sizes("8K:64K") == [8192, 16384, 32768, 65536]
    assert parse_sizes("1000, 1M,8KiB") == [1000, 8192, 2**20]
    assert parse_sizes("3K:20K") == [3072, 6144, 12288]
    assert [size_text(size) for size in (8192, 1000, 2**20, 3 * 2**30)] == [
        "8K",
        "1000",
        "1M",
        "3G",
    ]
    for text in ("", "8Q", "0", "4M:1M", "1:2:3", "999G", "-4", "8K:"):
        with pytest.raises(UserError, match="`sizes`"):
            parse_sizes(text)
