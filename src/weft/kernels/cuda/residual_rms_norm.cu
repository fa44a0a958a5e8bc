// One-shot all-reduce + residual addition + RMSNorm in one kernel, and the same without the
// all-reduce for messages that another kernel has reduced.
//
//   sum      = all-reduce(input)            rounded to the element type
//   residual = residual + sum               rounded to the element type
//   output   = weight * rounded(residual / rms(residual))
//
// A cluster of 1 to 8 blocks handles one row at a time, one vector a thread, so that a short
// batch still spreads over several multiprocessors.
#include "comm.cuh"

constexpr int kMaxWarps = 64;  // of a cluster: 2048 vectors a row

struct Rows {
  Tensor input;
  Tensor residual;
  Tensor weight;
  Tensor output;
  u32 num_rows;
  u32 row_vectors;  // vectors of a row; the hidden size is a multiple of kElements
  float epsilon;
};

__device__ __forceinline__ u32 cluster_blocks() {
  u32 value;
  asm("mov.u32 %0, %cluster_nctarank;" : "=r"(value));
  return value;
}

__device__ __forceinline__ u32 block_in_cluster() {
  u32 value;
  asm("mov.u32 %0, %cluster_ctarank;" : "=r"(value));
  return value;
}

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

// The sum over all threads of the cluster, in a fixed order. Every warp writes its share into
// every block, so one barrier is enough; `turn` alternates the buffers from row to row.
__device__ __forceinline__ float sum_over_cluster(float value, u32 turn) {
  __shared__ float share[2][kMaxWarps];
  const u32 warps = blockDim.x / 32;
  const u32 lane = threadIdx.x % 32;
  value = sum_over_warp(value);
  const u32 blocks = cluster_blocks();
  if (lane < blocks) {
    const float* place = &share[turn % 2][block_in_cluster() * warps + threadIdx.x / 32];
    u32 address = static_cast<u32>(__cvta_generic_to_shared(place));
    asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(lane));
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
  }
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
  const volatile float* mine = share[turn % 2];
  float total = lane < blocks * warps ? mine[lane] : 0.0f;
  if (lane + 32 < blocks * warps) total += mine[lane + 32];
  return sum_over_warp(total);
}

// Add the reduced vector of this thread to the residual, normalise the row and store both.
__device__ __forceinline__ void add_and_normalise(const Rows& rows, u32 row, u32 column,
                                                  u32 turn, const Vec& sum, const Vec& residual,
                                                  const Vec& weight, bool complete) {
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
    if (complete) rows.residual.store(place, pack(value));
  }
  if (!complete) squares = __int_as_float(0x7FC00000);  // a row with a hole is no number at all
  const float mean = sum_over_cluster(squares, turn) / (rows.row_vectors * kElements);
  const float scale = rsqrtf(mean + rows.epsilon);
  if (!inside || !complete) return;
  float factor[kElements];
  unpack(weight, factor);
#pragma unroll
  for (int i = 0; i < kElements; ++i) value[i] = factor[i] * round_to_element(value[i] * scale);
  rows.output.store(place, pack(value));
}

// hidden: elements of a row.
__device__ __forceinline__ Rows rows_of(const void* input, void* residual, const void* weight,
                                        void* output, u32 num_rows, u32 hidden, float epsilon) {
  const u64 count = static_cast<u64>(num_rows) * hidden;
  return Rows{Tensor(input, count),
              Tensor(residual, count),
              Tensor(weight, hidden),
              Tensor(output, count),
              num_rows,
              hidden / kElements,
              epsilon};
}

extern "C" __global__ void __launch_bounds__(1024, 1) all_reduce_residual_rms_norm(
    const __grid_constant__ Comm comm, const void* input, void* residual, const void* weight,
    void* output, u32 num_rows, u32 hidden, float epsilon) {
  const Rows rows = rows_of(input, residual, weight, output, num_rows, hidden, epsilon);
  const Call call(comm);
  const u32 num_vectors = rows.num_rows * rows.row_vectors;
  const u32 column = block_in_cluster() * blockDim.x + threadIdx.x;
  const bool inside = column < rows.row_vectors;
  u32 turn = 0;
  for (u32 row = blockIdx.x / cluster_blocks(); row < rows.num_rows;
       row += gridDim.x / cluster_blocks(), ++turn) {
    const u32 index = row * rows.row_vectors + column;
    u32 slot[kWorld];
    u32 pending = 0;
    Vec own;
    Vec added;
    Vec weights;
    if (inside) own = sendable(rows.input.load(index));
#pragma unroll
    for (int k = 1; k < kWorld; ++k) {
      if (inside && !call.poisoned) {
        push(call.slot_after(k, comm.rank * num_vectors + index), own);
      }
    }
    if (turn == 0) call.announce();
    if (inside) {
      added = rows.residual.load(index);
      weights = rows.weight.load(column);
    }
#pragma unroll
    for (int s = 0; s < kWorld; ++s) {
      slot[s] = s * num_vectors + index;
      if (inside && s != comm.rank) pending |= 1u << s;
    }
    Vec received[kWorld];
    const bool complete = !call.poisoned && call.wait(slot, received, pending, kStepExchange);
    const Vec sum = reduce_in_rank_order(own, received, comm.rank);
    add_and_normalise(rows, row, column, turn, sum, added, weights, complete);
    if (complete) call.clear(slot, pending);
  }
  call.finish();
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    residual_rms_norm(const void* input, void* residual, const void* weight, void* output,
                      u32 num_rows, u32 hidden, float epsilon) {
  const Rows rows = rows_of(input, residual, weight, output, num_rows, hidden, epsilon);
  const u32 column = block_in_cluster() * blockDim.x + threadIdx.x;
  const bool inside = column < rows.row_vectors;
  wait_for_kernel_before();
  let_next_kernel_start();
  u32 turn = 0;
  for (u32 row = blockIdx.x / cluster_blocks(); row < rows.num_rows;
       row += gridDim.x / cluster_blocks(), ++turn) {
    const u64 index = static_cast<u64>(row) * rows.row_vectors + column;
    Vec sum;
    Vec added;
    Vec weights;
    if (inside) {
      sum = rows.input.load(index);
      added = rows.residual.load(index);
      weights = rows.weight.load(column);
    }
    add_and_normalise(rows, row, column, turn, sum, added, weights, true);
  }
}
