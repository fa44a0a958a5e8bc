// All-reduce among the GPUs of one NVLink domain.
//
// Sums run over the ranks in rank order in fp32 and are rounded once, by whichever rank
// reduces, so all kernels here give the same bits on every rank.
#include "comm.cuh"

// One-shot push: every rank sends its whole message to every peer and sums what it gets.
// Mailbox: slot [sender][vector].
template <int kUnroll>
__device__ __forceinline__ void one_shot(const Comm& comm, const Tensor& input,
                                         const Tensor& output) {
  Call call(comm);
  const u32 num_vectors = input.num_vectors();
  const u32 stride = gridDim.x * blockDim.x;
  const u32 first = blockIdx.x * blockDim.x + threadIdx.x;
  bool lost = false;
  for (u32 base = first; base < num_vectors && !lost; base += stride * kUnroll) {
    Vec own[kUnroll];
    u32 slot[kUnroll * kWorld];
    u32 pending = 0;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const u32 index = base + u * stride;
      if (index < num_vectors) own[u] = sendable(input.load(index));
    }
    if (call.poisoned) break;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const u32 index = base + u * stride;
      if (index < num_vectors) {
#pragma unroll
        for (int k = 1; k < kWorld; ++k) {
          push(call.slot_after(k, comm.rank * num_vectors + index), own[u]);
        }
      }
#pragma unroll
      for (int s = 0; s < kWorld; ++s) {
        slot[u * kWorld + s] = s * num_vectors + index;
        if (index < num_vectors && s != comm.rank) pending |= 1u << (u * kWorld + s);
      }
    }
    if (base == first) call.announce();
    Vec received[kUnroll * kWorld];
    lost = !call.wait(slot, received, pending, kStepExchange, sender_of_slot);
    if (lost) break;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const u32 index = base + u * stride;
      if (index < num_vectors) {
        output.store(index, reduce_in_rank_order<kUnroll>(own[u], received, u, comm.rank));
      }
    }
    call.clear(slot, pending);
  }
  call.finish();
}

// Two-shot push: rank r owns the r-th part of the vectors, sums it and sends the sum to all.
// Mailbox: slot [sender][vector of our part], then slot [owner][vector of the owner's part].
template <int kUnroll>
__device__ __forceinline__ void two_shot(const Comm& comm, const Tensor& input,
                                         const Tensor& output) {
  Call call(comm);
  const u32 num_vectors = input.num_vectors();
  const u32 part = (num_vectors + kWorld - 1) / kWorld;
  const u32 gather = part * kWorld;
  const u32 stride = gridDim.x * blockDim.x;
  const u32 first = blockIdx.x * blockDim.x + threadIdx.x;
  bool lost = false;
  for (u32 base = first; base < part && !lost; base += stride * kUnroll) {
    Vec own[kUnroll];
    u32 slot[kUnroll * kWorld];
    u32 scattered = 0;
    u32 gathered = 0;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const u32 index = base + u * stride;
      Vec outgoing[kWorld];  // [k]: for the rank k places after us; [0] is our own
#pragma unroll
      for (int k = 0; k < kWorld; ++k) {
        const u32 owner = comm.rank + k < kWorld ? comm.rank + k : comm.rank + k - kWorld;
        const u32 place = owner * part + index;
        if (index < part && place < num_vectors) outgoing[k] = sendable(input.load(place));
      }
      own[u] = outgoing[0];
      if (call.poisoned) break;
#pragma unroll
      for (int k = 1; k < kWorld; ++k) {
        const u32 owner = comm.rank + k < kWorld ? comm.rank + k : comm.rank + k - kWorld;
        const u32 place = owner * part + index;
        if (index < part && place < num_vectors) {
          push(call.slot_after(k, comm.rank * part + index), outgoing[k]);
        }
      }
#pragma unroll
      for (int s = 0; s < kWorld; ++s) {
        slot[u * kWorld + s] = s * part + index;
        if (index >= part || s == comm.rank) continue;
        if (comm.rank * part + index < num_vectors) scattered |= 1u << (u * kWorld + s);
        if (s * part + index < num_vectors) gathered |= 1u << (u * kWorld + s);
      }
    }
    if (call.poisoned) break;
    if (base == first) call.announce();
    Vec received[kUnroll * kWorld];
    lost = !call.wait(slot, received, scattered, kStepScatter, sender_of_slot);
    if (lost) break;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const u32 place = comm.rank * part + base + u * stride;
      if (base + u * stride < part && place < num_vectors) {
        const Vec sum =
            sendable(reduce_in_rank_order<kUnroll>(own[u], received, u, comm.rank));
#pragma unroll
        for (int k = 1; k < kWorld; ++k) push(call.slot_after(k, gather + place), sum);
        output.store(place, sum);
      }
    }
    call.clear(slot, scattered);
#pragma unroll
    for (int i = 0; i < kUnroll * kWorld; ++i) slot[i] += gather;
    lost = !call.wait(slot, received, gathered, kStepGather, sender_of_slot);
    if (lost) break;
#pragma unroll
    for (int i = 0; i < kUnroll * kWorld; ++i) {
      if (gathered >> i & 1) output.store(slot[i] - gather, received[i]);
    }
    call.clear(slot, gathered);
  }
  call.finish();
}

#define WEFT_KERNEL(algorithm, unroll, max_threads)                                             \
  extern "C" __global__ void __launch_bounds__(max_threads, 1) algorithm##_u##unroll(              \
      const __grid_constant__ Comm comm, const void* input, void* output, u64 num_elements) {   \
    algorithm<unroll>(comm, Tensor(input, num_elements), Tensor(output, num_elements));         \
  }

WEFT_KERNEL(one_shot, 1, 1024)
#if WEFT_WORLD <= 4
WEFT_KERNEL(two_shot, 1, 1024)
WEFT_KERNEL(one_shot, 2, 1024)
WEFT_KERNEL(two_shot, 2, 512)
#else
WEFT_KERNEL(two_shot, 1, 512)
#endif
#if WEFT_WORLD <= 2
WEFT_KERNEL(one_shot, 4, 512)
#endif
