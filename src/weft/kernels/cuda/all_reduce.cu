// All-reduce among the GPUs of one NVLink domain.
//
// Sums run over the ranks in rank order in fp32 and are rounded once, by whichever rank
// reduces, so both kernels give the same bits on every rank. A thread handles one vector of
// every rank at a time; nothing but the arrival of that vector's parts holds it up.
#include "comm.cuh"

// One-shot push: every rank sends its whole message to every peer and sums what it gets.
// Mailbox: slot [sender][vector].
extern "C" __global__ void __launch_bounds__(1024, 1)
    one_shot(const __grid_constant__ Comm comm, const void* source, void* target,
             u64 num_elements) {
  const Tensor input(source, num_elements);
  const Tensor output(target, num_elements);
  const Call call(comm);
  const u32 num_vectors = input.num_vectors();
  const u32 first = blockIdx.x * blockDim.x + threadIdx.x;
  for (u32 index = first; index < num_vectors; index += gridDim.x * blockDim.x) {
    const Vec own = sendable(input.load(index));
    if (call.poisoned) break;
#pragma unroll
    for (int k = 1; k < kWorld; ++k) {
      push(call.slot_after(k, comm.rank * num_vectors + index), own);
    }
    if (index == first) call.announce();
    u32 slot[kWorld];
    u32 pending = 0;
#pragma unroll
    for (int s = 0; s < kWorld; ++s) {
      slot[s] = s * num_vectors + index;
      if (s != comm.rank) pending |= 1u << s;
    }
    Vec received[kWorld];
    if (!call.wait(slot, received, pending, kStepExchange)) break;
    output.store(index, reduce_in_rank_order(own, received, comm.rank));
    call.clear(slot, pending);
  }
  call.finish();
}

// Two-shot push: rank r owns the r-th part of the vectors, sums it and sends the sum to all.
// Mailbox: slot [sender][vector of our part], then slot [owner][vector of the owner's part].
extern "C" __global__ void __launch_bounds__(kWorld <= 4 ? 1024 : 512, 1)
    two_shot(const __grid_constant__ Comm comm, const void* source, void* target,
             u64 num_elements) {
  const Tensor input(source, num_elements);
  const Tensor output(target, num_elements);
  const Call call(comm);
  const u32 num_vectors = input.num_vectors();
  const u32 part = (num_vectors + kWorld - 1) / kWorld;
  const u32 gather = part * kWorld;
  const u32 first = blockIdx.x * blockDim.x + threadIdx.x;
  for (u32 index = first; index < part; index += gridDim.x * blockDim.x) {
    Vec outgoing[kWorld];  // [k]: for the rank k places after us; [0] is our own
    u32 place[kWorld];
#pragma unroll
    for (int k = 0; k < kWorld; ++k) {
      place[k] = call.rank_after(k) * part + index;
      if (place[k] < num_vectors) outgoing[k] = sendable(input.load(place[k]));
    }
    if (call.poisoned) break;
#pragma unroll
    for (int k = 1; k < kWorld; ++k) {
      if (place[k] < num_vectors) push(call.slot_after(k, comm.rank * part + index), outgoing[k]);
    }
    if (index == first) call.announce();
    u32 slot[kWorld];
    u32 scattered = 0;
    u32 gathered = 0;
#pragma unroll
    for (int s = 0; s < kWorld; ++s) {
      slot[s] = s * part + index;
      if (s == comm.rank) continue;
      if (place[0] < num_vectors) scattered |= 1u << s;
      if (slot[s] < num_vectors) gathered |= 1u << s;
    }
    Vec received[kWorld];
    if (!call.wait(slot, received, scattered, kStepScatter)) break;
    if (place[0] < num_vectors) {
      const Vec sum = sendable(reduce_in_rank_order(outgoing[0], received, comm.rank));
#pragma unroll
      for (int k = 1; k < kWorld; ++k) push(call.slot_after(k, gather + place[0]), sum);
      output.store(place[0], sum);
    }
    call.clear(slot, scattered);
#pragma unroll
    for (int s = 0; s < kWorld; ++s) slot[s] += gather;
    if (!call.wait(slot, received, gathered, kStepGather)) break;
#pragma unroll
    for (int s = 0; s < kWorld; ++s) {
      if (gathered >> s & 1) output.store(slot[s] - gather, received[s]);
    }
    call.clear(slot, gathered);
  }
  call.finish();
}
