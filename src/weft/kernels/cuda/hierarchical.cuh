// All-reduce over WEFT_NODES nodes in one kernel: reduce-scatter inside the node, an exchange
// between the GPUs of the same place on all nodes, all-gather inside the node.
//
// Rank = node * kLocal + place. Sums run in rank order inside a node and are rounded to the
// element type before they cross to other nodes; there they run in node order (direct) or over
// the fixed tree of recursive doubling, so the bits are the same on all ranks.
#pragma once
#include "comm.cuh"
#include "link.cuh"

constexpr int kLocal = kWorld / kNodes;
static_assert(kLocal * kNodes == kWorld, "every node has the same number of ranks");

// Mailbox: [sender in the node][part], [owner in the node][part], then what Link needs.
template <typename Link>
__device__ __forceinline__ void hierarchical(const Comm& comm, const typename Link::Record& record,
                                             const Tensor& input, const Tensor& output) {
  const Call call(comm);
  const u32 node = comm.rank / kLocal;
  const u32 place = comm.rank % kLocal;
  const u32 num_vectors = input.num_vectors();
  const u32 part = (num_vectors + kLocal - 1) / kLocal;
  const u32 gather = part * kLocal;
  const Link link(call, record, node, place, part, 2 * gather);
  const u32 num_tiles = (part + blockDim.x - 1) / blockDim.x;
  // A thread that has lost a rank goes through all tiles: exchange() may be a barrier.
  bool complete = true;
  for (u32 tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    const u32 index = tile * blockDim.x + threadIdx.x;
    const bool mine = index < part && place * part + index < num_vectors;
    Vec own;
    Vec outgoing[kLocal];
#pragma unroll
    for (int p = 0; p < kLocal; ++p) {
      const u32 vector = p * part + index;
      if (index < part && vector < num_vectors) outgoing[p] = sendable(input.load(vector));
    }
    if (mine) own = sendable(input.load(place * part + index));
    complete = complete && !call.poisoned;
#pragma unroll
    for (int p = 0; p < kLocal; ++p) {
      if (complete && p != place && index < part && p * part + index < num_vectors) {
        push(call.slot_of_rank(node * kLocal + p, place * part + index), outgoing[p]);
      }
    }
    if (complete && tile == blockIdx.x) call.announce();
    u32 slot[kLocal];
    u32 scattered = 0;
    u32 gathered = 0;
#pragma unroll
    for (int s = 0; s < kLocal; ++s) {
      slot[s] = s * part + index;
      if (s == place || index >= part) continue;
      if (mine) scattered |= 1u << s;
      if (slot[s] < num_vectors) gathered |= 1u << s;
    }
    Vec received[kLocal];
    complete = complete && call.wait(slot, received, scattered, kStepScatter, node * kLocal);
    Vec sum = sendable(reduce_in_rank_order(own, received, place));
    if (complete) call.clear(slot, scattered);
    complete = link.exchange(sum, tile, index, mine, complete);
    if (mine && complete) {
#pragma unroll
      for (int p = 0; p < kLocal; ++p) {
        if (p != place) push(call.slot_of_rank(node * kLocal + p, gather + place * part + index), sum);
      }
      output.store(place * part + index, sum);
    }
#pragma unroll
    for (int s = 0; s < kLocal; ++s) slot[s] += gather;
    // They wait for other nodes and name who is missing there: with more patience than theirs.
    complete = complete && call.wait(slot, received, gathered, kStepGather, node * kLocal, 1, 2);
    if (!complete) continue;
#pragma unroll
    for (int s = 0; s < kLocal; ++s) {
      if (gathered >> s & 1) output.store(slot[s] - gather, received[s]);
    }
    call.clear(slot, gathered);
  }
  call.finish();
}

#define WEFT_HIERARCHICAL(name, link)                                                            \
  extern "C" __global__ void __launch_bounds__(512, 1)                                           \
      name(const __grid_constant__ Comm comm, const __grid_constant__ link::Record record,       \
           const void* input, void* output, u64 num_elements) {                                  \
    hierarchical<link>(comm, record, Tensor(input, num_elements), Tensor(output, num_elements)); \
  }
