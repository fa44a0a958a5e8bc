// All-reduce over nodes with GPU-initiated puts of NVSHMEM between them. Linked against the
// installed libnvshmem_device.a; the one function of it that we call is declared here by the
// name that it has in that library, so that no header of NVSHMEM (and of C++) is needed.
#include "hierarchical.cuh"

// template <scope 3: block, 0: thread; operation 1: put>
// void nvshmemi_transfer_rma_nbi(void* symmetric target, void* source, size_t bytes, int pe)
extern "C" __device__ void _Z25nvshmemi_transfer_rma_nbiIL13threadgroup_t3EL13nvshmemi_op_t1EEvPvS2_mi(
    void*, void*, u64, int);
extern "C" __device__ void _Z25nvshmemi_transfer_rma_nbiIL13threadgroup_t0EL13nvshmemi_op_t1EEvPvS2_mi(
    void*, void*, u64, int);

__device__ __forceinline__ void put_by_block(u8* target, u8* source, u64 bytes, u32 pe) {
  _Z25nvshmemi_transfer_rma_nbiIL13threadgroup_t3EL13nvshmemi_op_t1EEvPvS2_mi(target, source, bytes,
                                                                              pe);
}

__device__ __forceinline__ void put_by_thread(u8* target, u8* source, u64 bytes, u32 pe) {
  _Z25nvshmemi_transfer_rma_nbiIL13threadgroup_t0EL13nvshmemi_op_t1EEvPvS2_mi(target, source, bytes,
                                                                              pe);
}

// Symmetric memory of every rank: words | outbox [parity][part] | inbox [parity][node][part].
// The payload is the flag, as in the mailboxes of the node: whatever order the network writes
// in, a word is there or idle, and nothing is asked of it but that 4 aligned bytes stay whole.
// The parity argument of comm.cuh covers inbox and outbox: nobody answers what has not come.
struct ShmemRecord {  // mirrored in nvshmem.py
  u8* heap;           // our own, at the same symmetric address everywhere
  u8* direct[kMaxWorld];  // [node]: the counterpart's by load and store, 0: only by put
  u64 part_bytes;         // room for one part
  u32 pe[kMaxWorld];      // [node]: the counterpart's number in NVSHMEM
};
constexpr u64 kShmemWords = 4096;  // u32 entered[32], u32 epoch[parity]

struct ShmemLink {
  using Record = ShmemRecord;
  const Call& call;
  const Record& record;
  u32 node, place, part, parity;
  bool staged;  // some counterpart is reached by put alone: an outbox is its source

  __device__ __forceinline__ ShmemLink(const Call& shared, const Record& memory, u32 node_,
                                       u32 place_, u32 part_, u32)
      : call(shared),
        record(memory),
        node(node_),
        place(place_),
        part(part_),
        parity(shared.epoch & 1),
        staged(false) {
#pragma unroll
    for (int n = 0; n < kNodes; ++n) staged |= n != node && record.direct[n] == nullptr;
    say_that_we_entered();
  }

  // For diagnosis: the last warp of the grid tells every counterpart the epoch.
  __device__ __forceinline__ void say_that_we_entered() const {
    const u32 n = blockDim.x - 1 - threadIdx.x;
    if (blockIdx.x + 1 != gridDim.x || n >= kNodes || n == node) return;
    const u64 place_of_word = node * 4;
    if (record.direct[n] != nullptr) {
      push_word(reinterpret_cast<u32*>(record.direct[n] + place_of_word), call.epoch);
      return;
    }
    u8* source = record.heap + 128 + parity * 4;
    push_word(reinterpret_cast<u32*>(source), call.epoch);
    __threadfence_system();
    put_by_thread(record.heap + place_of_word, source, 4, record.pe[n]);
  }

  __device__ __forceinline__ u64 outbox(u32 index) const {
    return kShmemWords + parity * record.part_bytes + static_cast<u64>(index) * 16;
  }

  __device__ __forceinline__ u64 inbox(u32 from, u32 index) const {
    return kShmemWords + (2 + parity * kNodes + from) * record.part_bytes +
           static_cast<u64>(index) * 16;
  }

  // All threads of the block; they hold neighbouring vectors from `index` of thread 0 on.
  __device__ __forceinline__ bool put_tile(const Vec& vec, u32 index, bool mine,
                                           bool complete) const {
    if (mine && complete) push(record.heap + outbox(index), vec);
    __threadfence_system();
    if (__syncthreads_or(!complete)) return false;
    const u32 count = __syncthreads_count(mine);
    const u32 first = index - threadIdx.x;
    for (int n = 0; n < kNodes && count != 0; ++n) {
      if (n == node || record.direct[n] != nullptr) continue;
      put_by_block(record.heap + inbox(node, first), record.heap + outbox(first), count * 16,
                   record.pe[n]);
      __syncthreads();
    }
    return true;
  }

  __device__ __forceinline__ bool wait(Vec (&received)[kNodes], u32 index, u32 pending) const {
    u32 spins = 0;
    u64 deadline = 0;
    while (true) {
#pragma unroll
      for (int n = 0; n < kNodes; ++n) {
        if (pending >> n & 1) received[n] = peek(record.heap + inbox(n, index));
      }
#pragma unroll
      for (int n = 0; n < kNodes; ++n) {
        if ((pending >> n & 1) && arrived(received[n])) pending &= ~(1u << n);
      }
      if (pending == 0) return true;
      if (++spins % kSpinsPerClockRead != 0) continue;
      const u64 now = nanoseconds();
      if (deadline == 0) deadline = now + call.comm.timeout_ns;
      // As for HostLink: a counterpart that is there itself waits for another rank of its node.
      const u32 from = __ffs(pending) - 1;
      const u32 last = peek_word(reinterpret_cast<const u32*>(record.heap) + from);
      const bool entered = static_cast<int>(last - call.epoch) >= 0;
      if (now > deadline + (entered ? call.comm.timeout_ns / 4 : 0) || peek_word(&call.header->poison) != 0) {
        raise_fault(call.comm, kStepBetweenNodes, call.epoch, from * kPlaces + place);
        return false;
      }
    }
  }

  __device__ __forceinline__ bool exchange(Vec& vec, u32, u32 index, bool mine,
                                           bool complete) const {
    if (staged && !put_tile(vec, index, mine, complete)) return false;
    if (!complete) return false;
    u32 pending = 0;
#pragma unroll
    for (int n = 0; n < kNodes; ++n) {
      if (!mine || n == node) continue;
      if (record.direct[n] != nullptr) push(record.direct[n] + inbox(node, index), vec);
      pending |= 1u << n;
    }
    Vec received[kNodes];
    if (!wait(received, index, pending)) return false;
    vec = sendable(reduce_in_rank_order(vec, received, node));
#pragma unroll
    for (int n = 0; n < kNodes; ++n) {
      if (pending >> n & 1) put_back(record.heap + inbox(n, index));
    }
    return true;
  }
};

WEFT_HIERARCHICAL(hierarchical_nvshmem, ShmemLink)
