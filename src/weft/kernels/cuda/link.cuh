// How a partial sum reaches the other nodes: one interface, three transports.
//
//   exchange(vec, tile, index, mine, complete)
//
// is called by all threads of a block with the vector `index` of their part (`mine`: there is
// one) and leaves the sum over all nodes in `vec`. `complete` false: this thread has already
// lost a rank. Returns whether `vec` is the sum.
#pragma once
#include "comm.cuh"

constexpr int kNodes = WEFT_NODES;
constexpr int kPlaces = kWorld / kNodes;  // ranks of a node

struct Nothing {
  u64 unused;
};

__device__ __forceinline__ Vec add(const Vec& a, const Vec& b) {
  float sum[kElements];
  unpack(a, sum);
  accumulate(sum, b);
  return sendable(pack(sum));
}

// ---- direct exchange over peer memory: one hop, kNodes - 1 messages --------------------------
// Slots from `base`: [node][part].
struct DirectPeerLink {
  using Record = Nothing;
  const Call& call;
  u32 node, place, part, base;

  __device__ __forceinline__ DirectPeerLink(const Call& shared, const Record&, u32 node_,
                                            u32 place_, u32 part_, u32 base_)
      : call(shared), node(node_), place(place_), part(part_), base(base_) {}

  __device__ __forceinline__ bool exchange(Vec& vec, u32, u32 index, bool mine,
                                           bool complete) const {
    if (!complete) return false;
    u32 slot[kNodes];
    u32 pending = 0;
#pragma unroll
    for (int n = 0; n < kNodes; ++n) {
      slot[n] = base + n * part + index;
      if (!mine || n == node) continue;
      push(call.slot_of_rank(n * kPlaces + place, base + node * part + index), vec);
      pending |= 1u << n;
    }
    Vec received[kNodes];
    if (!call.wait(slot, received, pending, kStepBetweenNodes, place, kPlaces)) return false;
    vec = sendable(reduce_in_rank_order(vec, received, node));
    call.clear(slot, pending);
    return true;
  }
};

// ---- recursive doubling over peer memory: log2(kNodes) hops, one message each ----------------
// Nodes above the largest power of two first fold into a partner below it and get the result
// from it at the end. Slots from `base`: [round][part], then one for each end of the fold.
struct DoublingPeerLink {
  using Record = Nothing;
  static constexpr int kRounds = kNodes >= 8 ? 3 : kNodes >= 4 ? 2 : kNodes >= 2 ? 1 : 0;
  static constexpr int kPaired = 1 << kRounds;
  const Call& call;
  u32 node, place, part, base;

  __device__ __forceinline__ DoublingPeerLink(const Call& shared, const Record&, u32 node_,
                                              u32 place_, u32 part_, u32 base_)
      : call(shared), node(node_), place(place_), part(part_), base(base_) {}

  __device__ __forceinline__ void send(u32 to, u32 round, u32 index, const Vec& vec) const {
    push(call.slot_of_rank(to * kPlaces + place, base + round * part + index), vec);
  }

  __device__ __forceinline__ bool receive(u32 from, u32 round, u32 index, Vec& vec) const {
    const u32 slot[1] = {base + round * part + index};
    Vec received[1];
    if (!call.wait(slot, received, 1u, kStepBetweenNodes, from * kPlaces + place)) return false;
    call.clear(slot, 1u);
    vec = received[0];
    return true;
  }

  __device__ __forceinline__ bool exchange(Vec& vec, u32, u32 index, bool mine,
                                           bool complete) const {
    if (!complete || !mine) return complete;
    if (node >= kPaired) {
      send(node - kPaired, kRounds, index, vec);
      return receive(node - kPaired, kRounds + 1, index, vec);
    }
    const bool folded = node + kPaired < kNodes;
    Vec other;
    if (folded) {
      if (!receive(node + kPaired, kRounds, index, other)) return false;
      vec = add(vec, other);
    }
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const u32 partner = node ^ 1u << round;
      send(partner, round, index, vec);
      if (!receive(partner, round, index, other)) return false;
      vec = add(vec, other);
    }
    if (folded) send(node + kPaired, kRounds + 1, index, vec);
    return true;
  }
};

// ---- pinned host memory and a proxy process that moves it between hosts -----------------------
// One tile (the vectors of one block at a time) is one chunk. A flag is 0 while its chunk is
// idle and 1 while it is on its way; who consumes the chunk puts the 0 back. Like the mailboxes
// of the GPUs there are two sets, by the parity of the epoch.
struct HostLinkRecord {  // mirrored in host_link.py
  u8* outbox;            // [parity][part]
  u8* inbox;             // [parity][node][part]
  u8* out_flag;          // [parity][chunk]
  u8* in_flag;           // [parity][node][chunk]
  u64* shape;            // [parity]: epoch << 32 | vectors of a chunk / kMinChunkVectors << 26 | of the part
  u32* entered;          // [node]: an epoch that our counterpart there said it had entered
  u64 part_bytes;        // room for one part
  u32 max_chunks;
  u32 unused;
};

struct HostLink {
  using Record = HostLinkRecord;
  const Call& call;
  const Record& record;
  u32 node, place, part, parity;

  __device__ __forceinline__ HostLink(const Call& shared, const Record& host, u32 node_, u32 place_,
                                      u32 part_, u32)
      : call(shared),
        record(host),
        node(node_),
        place(place_),
        part(part_),
        parity(shared.epoch & 1) {
    // After a fault nothing is announced or written: proxies may still send what was before.
    if (blockIdx.x != 0 || threadIdx.x != 0 || call.poisoned) return;
    store_volatile(static_cast<u64>(call.epoch) << 32 | blockDim.x / kMinChunkVectors << 26 | part,
                   record.shape + parity);
  }

  __device__ __forceinline__ u8* inbox(u32 from, u32 index) const {
    return record.inbox + (parity * kNodes + from) * record.part_bytes +
           static_cast<u64>(index) * 16;
  }

  __device__ __forceinline__ u8* in_flag(u32 from, u32 tile) const {
    return record.in_flag + (parity * kNodes + from) * record.max_chunks + tile;
  }

  // Until the chunk of node `from` is here; one thread of the block calls this.
  __device__ __forceinline__ bool wait_for_chunk(u32 from, u32 tile) const {
    u32 spins = 0;
    u64 deadline = 0;
    while (true) {
      if (acquire_flag(in_flag(from, tile)) != 0) return true;
      if (++spins % kSpinsPerClockReadOfChunk != 0) continue;
      const u64 now = nanoseconds();
      if (deadline == 0) deadline = now + call.comm.timeout_ns;
      // A counterpart that is there itself waits for another rank of its node. Whoever misses
      // that rank poisons us within moments; only then name the counterpart.
      const bool entered = static_cast<int>(peek_word(record.entered + from) - call.epoch) >= 0;
      if (now > deadline + (entered ? call.comm.timeout_ns / 4 : 0) || peek_word(&call.header->poison) != 0) {
        raise_fault(call.comm, kStepBetweenNodes, call.epoch, from * kPlaces + place);
        return false;
      }
    }
  }

  __device__ __forceinline__ bool exchange(Vec& vec, u32 tile, u32 index, bool mine,
                                           bool complete) const {
    if (mine && complete) push(record.outbox + parity * record.part_bytes + static_cast<u64>(index) * 16, vec);
    if (__syncthreads_or(!complete)) return false;
    if (threadIdx.x == 0) {
      __threadfence_system();
      push_flag(record.out_flag + parity * record.max_chunks + tile, 1);
    }
    bool here = true;
    if (threadIdx.x < kNodes && threadIdx.x != node) here = wait_for_chunk(threadIdx.x, tile);
    if (__syncthreads_or(!here)) return false;
    float sum[kElements];
#pragma unroll
    for (int i = 0; i < kElements; ++i) sum[i] = 0.0f;
#pragma unroll
    for (int n = 0; n < kNodes; ++n) {
      if (mine) accumulate(sum, n == node ? vec : peek(inbox(n, index)));
    }
    vec = sendable(pack(sum));
    __syncthreads();
    if (threadIdx.x < kNodes && threadIdx.x != node) push_flag(in_flag(threadIdx.x, tile), 0);
    return true;
  }
};
