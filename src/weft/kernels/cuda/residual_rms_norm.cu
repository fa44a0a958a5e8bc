// One-shot all-reduce + residual addition + RMSNorm in one kernel, and the same without the
// all-reduce for messages that another kernel has reduced.
//
//   sum      = all-reduce(input)            rounded to the element type
//   residual = residual + sum               rounded to the element type
//   output   = weight * rounded(residual / rms(residual))
//
// A cluster of 1 to 8 blocks handles one row at a time, one vector a thread, so that a short
// batch still spreads over several multiprocessors. Grid: (blocks of a cluster, rows at a time), so
// gridDim.x is the size of a cluster and blockIdx.x the place in it.
// All pointers are multiples of 16 and rows are whole vectors: no masked paths, short code.
#include "comm.cuh"

constexpr int kMaxWarps = 64;  // of a cluster: 2048 vectors a row

struct Rows {
  const Vec* input;
  const Vec* residual;
  Vec* residual_out;  // may be the residual itself
  const Vec* weight;
  Vec* output;
  u32 num_rows;
  u32 row_vectors;  // vectors of a row; the hidden size is a multiple of kElements
  float per_element;  // 1 / hidden
  float epsilon;
};

__device__ __forceinline__ float round_to_element(float value) {
#if WEFT_ELEMENT == 0
  return value;
#else
  return to_float(static_cast<u16>(pack_pair(value, 0.0f)));
#endif
}

__device__ __forceinline__ float sum_over_warp(float value) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(~0u, value, lane);
  return value;
}

// Sums over all threads of a cluster, in a fixed order. Every warp stores its share into every
// block together with its count (st.async), so nothing waits for the stores to other GPUs that
// are still under way, as a barrier with release semantics would. `turn` numbers the sums.
struct ClusterSum {
  float (&share)[2][kMaxWarps];
  u64 (&arrived)[2];

  // Before anything else, by all threads.
  __device__ __forceinline__ void prepare() const {
    if (gridDim.x == 1) return;
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2; ++i) barrier_init(shared_address(&arrived[i]));
      show_barriers_to_cluster();
    }
    meet_cluster();
  }

  // call: of which the sum is a part, if any.
  __device__ __forceinline__ float over(float value, u32 turn, const Call* call) const {
    const u32 shares = gridDim.x * (blockDim.x / 32);
    const u32 lane = threadIdx.x % 32;
    value = sum_over_warp(value);
    if (gridDim.x == 1) {
      if (lane == 0) store_shared(value, &share[turn % 2][threadIdx.x / 32]);
      __syncthreads();
    }
    const bool complete = gridDim.x == 1 || exchange(value, turn, shares, call);
    const float* mine = share[turn % 2];
    float total = lane < shares ? load_shared(mine + lane) : 0.0f;
    if (lane + 32 < shares) total += load_shared(mine + lane + 32);
    if (!complete) total = __int_as_float(0x7FC00000);
    return sum_over_warp(total);
  }

  __device__ __forceinline__ static u64 patience_ns(const Call* call) {
    return 1000000000 + (call != nullptr ? 2 * call->comm.timeout_ns : 0);
  }

  __device__ __forceinline__ bool exchange(float value, u32 turn, u32 shares,
                                           const Call* call) const {
    const u32 lane = threadIdx.x % 32;
    const u32 barrier = shared_address(&arrived[turn % 2]);
    if (threadIdx.x == 0) barrier_expect(barrier, shares * 4);
    if (lane < gridDim.x) {
      const u32 warp = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
      const u32 place = in_block(shared_address(&share[turn % 2][warp]), lane);
      store_async(place, __float_as_uint(value), in_block(barrier, lane));
    }
    u64 deadline = 0;
    for (u32 spins = 1;; ++spins) {
      if (barrier_passed(barrier, turn / 2 % 2)) return true;
      if (spins % kSpinsPerClockRead != 0) continue;
      // Every warp comes here, after it has given up on a rank at the latest. A block must not
      // end before: the others store into its memory.
      if (deadline == 0) deadline = nanoseconds() + patience_ns(call);
      if (nanoseconds() <= deadline) continue;
      if (call != nullptr) raise_fault(call->comm, kStepExchange, call->epoch, call->comm.rank);
      return false;
    }
  }
};

// Add the reduced vector of this thread to the residual, normalise the row and store both.
__device__ __forceinline__ void add_and_normalise(const Rows& rows, const ClusterSum& sums,
                                                  u32 row, u32 column, u32 turn, const Vec& sum,
                                                  const Vec& residual, const Vec& weight,
                                                  bool complete, const Call* call) {
  const bool inside = column < rows.row_vectors;
  const u64 place = static_cast<u64>(row) * rows.row_vectors + column;
  float value[kElements];
  float squares = 0.0f;
  if (inside) {
    float added[kElements];
    unpack(sum, value);
    unpack(residual, added);
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      value[i] = round_to_element(added[i] + value[i]);
      squares += value[i] * value[i];
    }
    if (complete) store_vector(rows.residual_out + place, pack(value));
  }
  if (!complete) squares = __int_as_float(0x7FC00000);  // a row with a hole is no number at all
  const float mean = sums.over(squares, turn, call) * rows.per_element;
  const float scale = reciprocal_square_root(mean + rows.epsilon);
  if (!inside || !complete) return;
  float factor[kElements];
  unpack(weight, factor);
#pragma unroll
  for (int i = 0; i < kElements; ++i) value[i] = factor[i] * round_to_element(value[i] * scale);
  store_vector(rows.output + place, pack(value));
}

extern "C" __global__ void __launch_bounds__(1024, 1) all_reduce_residual_rms_norm(
    const __grid_constant__ Comm comm, const __grid_constant__ Rows rows) {
  __shared__ float share[2][kMaxWarps];
  __shared__ u64 arrived_shares[2];
  const ClusterSum sums{share, arrived_shares};
  sums.prepare();
  const Call call(comm);
  const u32 num_vectors = rows.num_rows * rows.row_vectors;
  const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
  const bool inside = column < rows.row_vectors;
  u32 turn = 0;
  for (u32 row = blockIdx.y; row < rows.num_rows; row += gridDim.y, ++turn) {
    const u32 index = row * rows.row_vectors + column;
    u32 slot[kWorld];
    u32 pending = 0;
    Vec own;
    Vec added;
    Vec weights;
    if (inside) own = sendable(load_vector(rows.input + index));
#pragma unroll
    for (int k = 1; k < kWorld; ++k) {
      if (inside && !call.poisoned) {
        push(call.slot_after(k, comm.rank * num_vectors + index), own);
      }
    }
    if (turn == 0) call.announce();
    if (inside) {
      added = load_vector(rows.residual + index);
      weights = load_vector(rows.weight + column);
    }
#pragma unroll
    for (int s = 0; s < kWorld; ++s) {
      slot[s] = s * num_vectors + index;
      if (inside && s != comm.rank) pending |= 1u << s;
    }
    Vec received[kWorld];
    const bool complete = !call.poisoned && call.wait(slot, received, pending, kStepExchange);
    __syncwarp();  // lanes leave the wait one by one; shuffles of a split warp cost 0.9 us
    const Vec sum = reduce_in_rank_order(own, received, comm.rank);
    if (complete) call.clear(slot, pending);
    add_and_normalise(rows, sums, row, column, turn, sum, added, weights, complete, &call);
  }
  call.finish();
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    residual_rms_norm(const __grid_constant__ Rows rows) {
  const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
  const bool inside = column < rows.row_vectors;
  __shared__ float share[2][kMaxWarps];
  __shared__ u64 arrived_shares[2];
  const ClusterSum sums{share, arrived_shares};
  sums.prepare();
  wait_for_kernel_before();
  let_next_kernel_start();
  u32 turn = 0;
  for (u32 row = blockIdx.y; row < rows.num_rows; row += gridDim.y, ++turn) {
    const u64 index = static_cast<u64>(row) * rows.row_vectors + column;
    Vec sum;
    Vec added;
    Vec weights;
    if (inside) {
      sum = load_vector(rows.input + index);
      added = load_vector(rows.residual + index);
      weights = load_vector(rows.weight + column);
    }
    add_and_normalise(rows, sums, row, column, turn, sum, added, weights, true, nullptr);
  }
}
