"""The CUDA sources: they compile for sm_90 without a GPU, and do not spill where it matters."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from weft.errors import EnvironmentUnavailable
from weft.kernels import nvrtc, nvshmem

pytest.importorskip("cuda.bindings", reason="needs cuda-bindings and nvidia-cuda-nvrtc")

ELEMENTS = {"fp32": 0, "fp16": 1, "bf16": 2}
KERNELS = {
    "all_reduce.cu": {"one_shot", "two_shot"},
    "exchange.cu": {"dispatch_rows", "combine_rows"},
    "residual_rms_norm.cu": {"all_reduce_residual_rms_norm", "residual_rms_norm"},
    "hierarchical.cu": {"hierarchical_direct", "hierarchical_doubling", "hierarchical_host"},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_CACHE_DIR", str(tmp_path))


def defines(ranks: int, element: str, nodes: int = 0) -> dict[str, int]:
    chosen = {"WEFT_WORLD": ranks, "WEFT_ELEMENT": ELEMENTS[element]}
    return {**chosen, "WEFT_NODES": nodes} if nodes else chosen


def report(source: str, chosen: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Kernel → (registers, bytes spilled), from the assembler's report."""
    _, log = nvrtc.compile_fresh(source, chosen, "sm_90", "--ptxas-options=-v")
    kernels = {}
    for text in log.split("Compiling entry function '")[1:]:
        registers = re.search(r"Used (\d+) registers", text)
        spilled = re.search(r"(\d+) bytes spill stores", text)
        assert registers is not None
        kernels[text.split("'")[0]] = (int(registers[1]), int(spilled[1]) if spilled else 0)
    return kernels


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("source", KERNELS)
def test_every_element_type_compiles_without_spills(source: str, element: str) -> None:
    nodes = 2 if source == "hierarchical.cu" else 0
    found = report(source, defines(4, element, nodes))
    assert set(found) == KERNELS[source]
    assert {name: spilled for name, (_, spilled) in found.items() if spilled} == {}


@pytest.mark.parametrize("ranks", [2, 3, 5, 8])
def test_every_group_size_compiles(ranks: int) -> None:
    for source in ("all_reduce.cu", "exchange.cu"):
        assert set(report(source, defines(ranks, "bf16"))) == KERNELS[source]


@pytest.mark.parametrize(("ranks", "nodes"), [(4, 4), (3, 3), (8, 2)])
def test_every_division_into_nodes_compiles(ranks: int, nodes: int) -> None:
    found = report("hierarchical.cu", defines(ranks, "bf16", nodes))
    assert set(found) == KERNELS["hierarchical.cu"]


def test_a_cubin_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = nvrtc.compile_source("all_reduce.cu", defines(2, "bf16"), "sm_90")
    assert first.startswith(b"\x7fELF")
    assert len(list((tmp_path / "kernels").iterdir())) == 1
    monkeypatch.setattr(nvrtc, "compile_fresh", None)
    assert nvrtc.compile_source("all_reduce.cu", defines(2, "bf16"), "sm_90") == first
    with pytest.raises(TypeError):
        nvrtc.compile_source("all_reduce.cu", defines(3, "bf16"), "sm_90")


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_CACHE_DIR", "/proc/nowhere")
    assert nvrtc.compile_source("all_reduce.cu", defines(2, "bf16"), "sm_90")


def test_a_refused_source_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "SOURCES", tmp_path)
    (tmp_path / "broken.cu").write_text("int main( {")
    with pytest.raises(EnvironmentUnavailable, match=r"cannot compile broken\.cu: .*error") as info:
        nvrtc.compile_source("broken.cu", {}, "sm_90")
    assert "\n" not in str(info.value)


def test_no_source_touches_multicast() -> None:
    for path in nvrtc.SOURCES.iterdir():
        assert "multimem" not in path.read_text()


def test_one_header_holds_the_assembly_and_the_shared_memory() -> None:
    """So that a host can run everything else (tests/adversary)."""
    for path in nvrtc.SOURCES.iterdir():
        if path.name != "ptx.cuh":
            assert not re.search(r"\basm\b|\bvolatile\b", path.read_text()), path.name


@pytest.mark.skipif(nvshmem.problem() is not None, reason=str(nvshmem.problem()))
@pytest.mark.parametrize("nodes", [2, 4])
def test_nvshmem_links(nodes: int) -> None:
    chosen = defines(4, "bf16", nodes)
    library = nvshmem.DeviceLibrary()
    cubin = nvrtc.compile_source("hierarchical_nvshmem.cu", chosen, "sm_90", library)
    for symbol in (b"hierarchical_nvshmem", b"nvshmemi_device_state_d", b"device_lib_version_d"):
        assert symbol in cubin


def test_nvshmem_kernels_compile_without_spills() -> None:
    flags = ("--relocatable-device-code=true", "--ptxas-options=-v")
    for nodes in (2, 4):
        chosen = defines(4, "bf16", nodes)
        cubin, log = nvrtc.compile_fresh("hierarchical_nvshmem.cu", chosen, "sm_90", *flags)
        assert cubin.startswith(b"\x7fELF")
        assert {int(n) for n in re.findall(r"(\d+) bytes spill stores", log)} == {0}


def test_a_library_that_cannot_be_linked_is_one_line() -> None:
    class Nothing:
        identity = "nothing"

        def link(self, relocatable: bytes, architecture: str) -> bytes:
            raise EnvironmentUnavailable(f"no linker for {architecture}")

    with pytest.raises(EnvironmentUnavailable, match="no linker for sm_90"):
        nvrtc.compile_source("hierarchical_nvshmem.cu", defines(2, "bf16", 2), "sm_90", Nothing())
