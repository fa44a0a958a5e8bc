"""Faults to plant in the kernels' real source, each as it could be made by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

from adversary.cases import LEAPS, PATIENT
from adversary.machine import Patch
from adversary.world import Shape

THREE = Shape(ranks=3, nodes=1)
FUSED = ("all_reduce_residual_rms_norm",)
NODES = Shape(ranks=3, nodes=3)
PAIRS = Shape(ranks=4, nodes=2)
HOST = ("hierarchical_host",)
SHMEM = ("hierarchical_nvshmem",)
OUT = ("dispatch_rows",)
BACK = ("combine_rows",)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong, where, and which cases can show it.

    first_case: of those tried; one in thousands shows a rare race, so they begin near one.
    """

    name: str
    patch: Patch
    kernels: tuple[str, ...] = ("one_shot", "two_shot")
    shape: Shape = field(default=THREE)
    lose: bool = False
    clock: int = PATIENT
    first_case: int = 0


FAULTS = (
    Fault(
        name="one mailbox instead of two",
        patch=("comm.cuh", "kHeaderBytes + (epoch & 1) * comm.mailbox_bytes;", "kHeaderBytes;"),
    ),
    Fault(
        name="the idle word is not put back",
        patch=("comm.cuh", "put_back(u8* slot) { fill(slot, kEmpty); }", "put_back(u8*) {}"),
    ),
    Fault(
        name="arrived looks at one word of four",
        patch=(
            "comm.cuh",
            " && vec.w[1] != kEmpty && vec.w[2] != kEmpty && vec.w[3] != kEmpty",
            "",
        ),
    ),
    Fault(
        name="arrived leaves out the third word",
        patch=("comm.cuh", " && vec.w[2] != kEmpty", ""),
    ),
    Fault(
        name="the epoch advances before the block has read it",
        patch=(
            "comm.cuh",
            "    __syncthreads();\n    const u32 num_blocks",
            "    const u32 num_blocks",
        ),
    ),
    Fault(
        name="no wait for the kernel before",
        patch=("comm.cuh", "    wait_for_kernel_before();\n", ""),
    ),
    Fault(
        name="the epoch advances only for the blocks of this grid",
        patch=("comm.cuh", "b < kMaxBlocks;", "b < num_blocks;"),
    ),
    Fault(
        name="a dropped tail",
        patch=(
            "vector.cuh",
            "return (num_elements + kElements - 1) / kElements;",
            "return num_elements / kElements;",
        ),
    ),
    Fault(
        name="a part that is rounded down",
        patch=("all_reduce.cu", "(num_vectors + kWorld - 1) / kWorld", "num_vectors / kWorld"),
        kernels=("two_shot",),
    ),
    Fault(
        name="elements past the end are written",
        patch=(
            "vector.cuh",
            "      if (element >= num_elements) break;\n      const u64 half",
            "      const u64 half",
        ),
    ),
    Fault(
        name="an idle word is sent as data",
        patch=("all_reduce.cu", "const Vec own = sendable(", "const Vec own = ("),
        kernels=("one_shot",),
    ),
    Fault(
        name="the sum begins with the own values",
        patch=(
            "comm.cuh",
            "vec.w[i] = s == rank ? own.w[i] : vec.w[i];\n    accumulate(sum, vec);\n  }\n  return pack(sum);",
            """vec.w[i] = s == rank ? own.w[i] : vec.w[i];
    if (s != rank) accumulate(sum, vec);
  }
  accumulate(sum, own);
  return pack(sum);""",
        ),
        shape=Shape(ranks=3, dtype="float32"),
    ),
    Fault(
        name="put back before it has come",
        patch=(
            "all_reduce.cu",
            "    if (!call.wait(slot, received, pending, kStepExchange)) break;",
            """    call.clear(slot, pending);
    if (!call.wait(slot, received, pending, kStepExchange)) break;""",
        ),
        kernels=("one_shot",),
    ),
    Fault(
        name="a lost rank's part is summed all the same",
        patch=(
            "all_reduce.cu",
            "if (!call.wait(slot, received, pending, kStepExchange)) break;",
            "call.wait(slot, received, pending, kStepExchange);",
        ),
        kernels=("one_shot",),
        lose=True,
    ),
    Fault(
        name="the host hears of a fault before it can read it",
        patch=(
            "comm.cuh",
            "  __threadfence_system();\n  store_volatile(1u, &fault->raised);",
            "  store_volatile(1u, &fault->raised);",
        ),
        lose=True,
    ),
    Fault(
        name="the missing ranks are those that came",
        patch=("comm.cuh", "- epoch) < 0)", "- epoch) >= 0)"),
        lose=True,
    ),
    Fault(
        name="a cluster waits no longer than for itself",
        patch=("residual_rms_norm.cu", "(call != nullptr ? 2 * call->comm.timeout_ns : 0)", "0"),
        kernels=FUSED,
        lose=True,
    ),
    Fault(
        name="one buffer for the sums of a cluster",
        patch=("residual_rms_norm.cu", "&share[turn % 2][warp]", "&share[0][warp]"),
        kernels=FUSED,
    ),
    Fault(
        name="a barrier's phase is not that of its turn",
        patch=("residual_rms_norm.cu", "turn / 2 % 2)) return true", "turn % 2)) return true"),
        kernels=FUSED,
    ),
    Fault(
        name="the sums of a block are read before they are there",
        patch=(
            "residual_rms_norm.cu",
            "      __syncthreads();\n    }\n    const bool complete",
            "    }\n    const bool complete",
        ),
        kernels=FUSED,
    ),
    Fault(
        name="rounds of recursive doubling share a slot",
        patch=("link.cuh", "base + round * part + index};", "base + index};"),
        kernels=("hierarchical_doubling",),
        shape=NODES,
    ),
    Fault(
        name="nodes write where the gather is",
        patch=("hierarchical.cuh", "part, 2 * gather);", "part, gather);"),
        kernels=("hierarchical_direct",),
        shape=Shape(ranks=4, nodes=2),
    ),
    Fault(
        name="what a node got is not put back",
        patch=("link.cuh", "    call.clear(slot, pending);\n    return true;", "    return true;"),
        kernels=("hierarchical_direct",),
        shape=NODES,
    ),
    Fault(
        name="a chunk's flag is on its way before the chunk",
        patch=("link.cuh", "      __threadfence_system();\n      push_flag", "      push_flag"),
        kernels=HOST,
        shape=NODES,
    ),
    Fault(
        name="a chunk is not given back",
        patch=("link.cuh", "push_flag(in_flag(threadIdx.x, tile), 0);", ";"),
        kernels=HOST,
        shape=NODES,
    ),
    Fault(
        name="one set of chunks instead of two",
        patch=("link.cuh", "parity(shared.epoch & 1)", "parity(0)"),
        kernels=HOST,
        shape=NODES,
    ),
    Fault(
        name="a proxy marks a chunk of which a part is there",
        patch=(
            "host_proxy.py",
            "got // chunk_bytes if got < size else -(-size // chunk_bytes)",
            "-(-got // chunk_bytes)",
        ),
        kernels=HOST,
        shape=NODES,
    ),
    Fault(
        name="a proxy does not put the flag of a chunk back",
        patch=("host_proxy.py", "        flags[first : first + count] = bytes(count)\n", ""),
        kernels=HOST,
        shape=NODES,
    ),
    Fault(
        name="a proxy sends a younger call first",
        patch=("host_proxy.py", "parity = oldest()", "parity = int(words[0] == seen[0])"),
        kernels=HOST,
        shape=PAIRS,
    ),
    Fault(
        name="who has given up writes where a proxy still reads",
        patch=(
            "link.cuh",
            "if (mine && complete) push(record.outbox",
            "if (mine) push(record.outbox",
        ),
        kernels=HOST,
        shape=PAIRS,
        clock=LEAPS,
        first_case=5000,
    ),
    Fault(
        name="who hears of a fault leaves the others at a barrier",
        patch=(
            "hierarchical.cuh",
            "    complete = complete && !call.poisoned;\n",
            "    if (call.poisoned) break;\n",
        ),
        kernels=SHMEM,
        shape=Shape(ranks=8, nodes=2),
        clock=LEAPS,
    ),
    Fault(
        name="only the first thread tells of a fault that it heard of",
        patch=(
            "comm.cuh",
            "if (poisoned) raise_fault",
            "if (poisoned && threadIdx.x == 0) raise_fault",
        ),
        kernels=("one_shot",),
        shape=Shape(ranks=6, dtype="float32"),
        clock=LEAPS,
        first_case=3500,
    ),
    Fault(
        name="who waits for another node is named",
        patch=("hierarchical.cuh", "node * kLocal, 1, 2)", "node * kLocal)"),
        kernels=(*HOST, *SHMEM),
        shape=PAIRS,
        lose=True,
    ),
    Fault(
        name="a put before its source is there",
        patch=(
            "hierarchical_nvshmem.cu",
            "    __threadfence_system();\n    if (__syncthreads_or",
            "    if (__syncthreads_or",
        ),
        kernels=SHMEM,
        shape=NODES,
    ),
    Fault(
        name="a put before all threads have written",
        patch=(
            "hierarchical_nvshmem.cu",
            "    const u32 count = __syncthreads_count(mine);",
            "    const u32 count = mine ? blockDim.x - threadIdx.x : 0;",
        ),
        kernels=SHMEM,
        shape=NODES,
    ),
    Fault(
        name="what came by put is not put back",
        patch=("hierarchical_nvshmem.cu", "put_back(record.heap + inbox(n, index));", ";"),
        kernels=SHMEM,
        shape=NODES,
    ),
    Fault(
        name="one inbox for puts instead of two",
        patch=("hierarchical_nvshmem.cu", "parity(shared.epoch & 1)", "parity(0)"),
        kernels=SHMEM,
        shape=NODES,
    ),
    Fault(
        name="who has no row to give back is not waited for",
        patch=("exchange.cu", "speaks = blockIdx.x == 0 && threadIdx.x == 0;", "speaks = false;"),
        kernels=BACK,
    ),
    Fault(
        name="a row is lost where the last choice alone wants it",
        patch=(
            "exchange.cu",
            "i < d.chosen; ++i) {\n    const u32 expert",
            "i + 1 < d.chosen; ++i) {\n    const u32 expert",
        ),
        kernels=OUT,
    ),
    Fault(
        name="a head does not say that its row comes",
        patch=(
            "exchange.cu",
            "(owners >> owner & 1 ? kComes : 0)",
            "(i == 0 && owners >> owner & 1 && local < d.share ? kComes : 0)",
        ),
        kernels=OUT,
    ),
    Fault(
        name="heads are put back while threads of the block still read them",
        patch=("exchange.cu", "    __syncthreads();  // all threads have read the heads\n", ""),
        kernels=OUT,
    ),
    Fault(
        name="a head is not put back",
        patch=(
            "exchange.cu",
            "    call.clear(slot, others);\n  }\n  call.finish();",
            "  }\n  call.finish();",
        ),
        kernels=OUT,
    ),
    Fault(
        name="a row that came is not put back",
        patch=("exchange.cu", "    call.clear(slot, coming);\n", ""),
        kernels=OUT,
    ),
    Fault(
        name="rows lie over the heads before them",
        patch=(
            "exchange.cu",
            "slot[s] = (s * d.num_rows + row) * room + heads + column;",
            "slot[s] = (s * d.num_rows + row) * room + column;",
        ),
        kernels=OUT,
    ),
    Fault(
        name="a row that is on its way counts as one that came",
        patch=(
            "exchange.cu",
            "if (!call.wait(slot, received, coming, kStepDispatch)) return false;",
            "for (u32 s = 0; s < kWorld; ++s) received[s] = peek(call.own_slot(slot[s]));",
        ),
        kernels=OUT,
    ),
    Fault(
        name="choices past the last are kept",
        patch=("exchange.cu", "    if (2 * part + i >= d.chosen) continue;\n", ""),
        kernels=OUT,
    ),
    Fault(
        name="experts keep the numbers that they have in the model",
        patch=("exchange.cu", "expert[i] - owner * d.share", "expert[i]"),
        kernels=OUT,
    ),
    Fault(
        name="an idle word is sent as a row",
        patch=(
            "exchange.cu",
            "const Vec own = sendable(load_vector(d.rows",
            "const Vec own = (load_vector(d.rows",
        ),
        kernels=OUT,
    ),
    Fault(
        name="an idle word is sent as a weight",
        patch=("exchange.cu", "    return sendable(vec);", "    return vec;"),
        kernels=OUT,
    ),
    Fault(
        name="what a lost rank did not send is kept",
        patch=(
            "exchange.cu",
            "if (!call.wait(slot, head, others, kStepDispatch)) return false;",
            "call.wait(slot, head, others, kStepDispatch);",
        ),
        kernels=OUT,
        lose=True,
    ),
    Fault(
        name="rows without an expert here are not zeros",
        patch=("exchange.cu", "coming >> s & 1 ? received[s] : Vec{});", "received[s]);"),
        kernels=OUT,
    ),
    Fault(
        name="a sum counts experts that are not here",
        patch=("exchange.cu", "    if (owners >> rank & 1) {\n      own", "    {\n      own"),
        kernels=BACK,
    ),
    Fault(
        name="a sum goes back from where its row did not come",
        patch=(
            "exchange.cu",
            "if ((passage >> to & 1) == 0) continue;",
            "if ((passage >> 16 + to & 1) == 0) continue;",
        ),
        kernels=BACK,
    ),
    Fault(
        name="a sum that came back is not put back",
        patch=("exchange.cu", "    call.clear(slot, away);\n", ""),
        kernels=BACK,
    ),
    Fault(
        name="a token is not put back",
        patch=("exchange.cu", "  call.clear(slot, others);\n  return true;", "  return true;"),
        kernels=BACK,
    ),
    Fault(
        name="sums lie over the tokens",
        patch=("exchange.cu", "slot[s] = kWorld + (s * d.num_rows", "slot[s] = (s * d.num_rows"),
        kernels=BACK,
    ),
    Fault(
        name="sums of a lost rank are added",
        patch=(
            "exchange.cu",
            "if (!call.wait(slot, received, away, kStepCombine)) return false;",
            "call.wait(slot, received, away, kStepCombine);",
        ),
        kernels=BACK,
        lose=True,
    ),
)
