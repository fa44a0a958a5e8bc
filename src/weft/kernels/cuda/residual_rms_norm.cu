// One-shot all-reduce + residual addition + RMSNorm in one kernel, and the same without the
// all-reduce for messages that another kernel reduces.
//
//   sum      = all-reduce(input)            rounded to the element type
//   residual = residual + sum               rounded to the element type
//   output   = weight * rounded(residual / rms(residual))
//
// These are the roundings of the separate operations, so both ways give the same bits.
// One block handles one row at a time; a row is kept in registers.
#include "comm.cuh"

__device__ __forceinline__ float round_to_element(float value) {
#if WEFT_ELEMENT == 0
  return value;
#else
  return to_float(static_cast<u16>(pack_pair(value, 0.0f)));
#endif
}

__device__ __forceinline__ float sum_over_block(float value) {
  __shared__ float warp_sum[32];
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(~0u, value, lane);
  if (threadIdx.x % 32 == 0) warp_sum[threadIdx.x / 32] = value;
  __syncthreads();
  const u32 num_warps = blockDim.x / 32;
  value = threadIdx.x % 32 < num_warps ? warp_sum[threadIdx.x % 32] : 0.0f;
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(~0u, value, lane);
  __syncthreads();  // warp_sum may be written again
  return value;
}

struct Rows {
  Tensor input;
  Tensor residual;
  Tensor weight;
  Tensor output;
  u32 num_rows;
  u32 row_vectors;  // vectors of a row; the hidden size is a multiple of kElements
  float epsilon;
};

// sum[v] holds the reduced vectors of this thread; column v is threadIdx.x + v * blockDim.x.
template <int kColumns>
__device__ __forceinline__ void add_and_normalise(const Rows& rows, u32 row,
                                                  const Vec (&sum)[kColumns],
                                                  const Vec (&residual)[kColumns],
                                                  const Vec (&weight)[kColumns]) {
  float value[kColumns][kElements];
  float squares = 0.0f;
#pragma unroll
  for (int v = 0; v < kColumns; ++v) {
    const u32 column = threadIdx.x + v * blockDim.x;
    if (column >= rows.row_vectors) continue;
    float added[kElements];
    unpack(sum[v], value[v]);
    unpack(residual[v], added);
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      value[v][i] = round_to_element(added[i] + value[v][i]);
      squares += value[v][i] * value[v][i];
    }
    rows.residual.store(row * rows.row_vectors + column, pack(value[v]));
  }
  const float mean = sum_over_block(squares) / (rows.row_vectors * kElements);
  const float scale = rsqrtf(mean + rows.epsilon);
#pragma unroll
  for (int v = 0; v < kColumns; ++v) {
    const u32 column = threadIdx.x + v * blockDim.x;
    if (column >= rows.row_vectors) continue;
    float factor[kElements];
    unpack(weight[v], factor);
#pragma unroll
    for (int i = 0; i < kElements; ++i) value[v][i] = factor[i] * round_to_element(value[v][i] * scale);
    rows.output.store(row * rows.row_vectors + column, pack(value[v]));
  }
}

template <int kColumns>
__device__ __forceinline__ void load_row(const Tensor& tensor, u32 row, u32 row_vectors,
                                         Vec (&vec)[kColumns]) {
#pragma unroll
  for (int v = 0; v < kColumns; ++v) {
    const u32 column = threadIdx.x + v * blockDim.x;
    if (column < row_vectors) vec[v] = tensor.load(static_cast<u64>(row) * row_vectors + column);
  }
}

template <int kColumns>
__device__ __forceinline__ void reduce_and_normalise(const Comm& comm, const Rows& rows) {
  Call call(comm);
  const u32 num_vectors = rows.num_rows * rows.row_vectors;
  for (u32 row = blockIdx.x; row < rows.num_rows; row += gridDim.x) {
    Vec own[kColumns];
    load_row<kColumns>(rows.input, row, rows.row_vectors, own);
    if (call.poisoned) break;
    u32 slot[kColumns * kWorld];
    u32 pending = 0;
#pragma unroll
    for (int v = 0; v < kColumns; ++v) {
      const u32 column = threadIdx.x + v * blockDim.x;
      const u32 index = row * rows.row_vectors + column;
      own[v] = sendable(own[v]);
#pragma unroll
      for (int k = 1; k < kWorld; ++k) {
        if (column < rows.row_vectors) {
          push(call.slot_after(k, comm.rank * num_vectors + index), own[v]);
        }
      }
#pragma unroll
      for (int s = 0; s < kWorld; ++s) {
        slot[v * kWorld + s] = s * num_vectors + index;
        if (column < rows.row_vectors && s != comm.rank) pending |= 1u << (v * kWorld + s);
      }
    }
    if (row == blockIdx.x) call.announce();
    Vec residual[kColumns];
    Vec weight[kColumns];
    load_row<kColumns>(rows.residual, row, rows.row_vectors, residual);
    load_row<kColumns>(rows.weight, 0, rows.row_vectors, weight);
    Vec received[kColumns * kWorld];
    const bool complete = call.wait(slot, received, pending, kStepExchange, sender_of_slot);
    if (__syncthreads_or(!complete)) break;
    Vec sum[kColumns];
#pragma unroll
    for (int v = 0; v < kColumns; ++v) {
      sum[v] = reduce_in_rank_order<kColumns>(own[v], received, v, comm.rank);
    }
    call.clear(slot, pending);
    add_and_normalise<kColumns>(rows, row, sum, residual, weight);
  }
  call.finish();
}

template <int kColumns>
__device__ __forceinline__ void only_normalise(const Rows& rows) {
  wait_for_kernel_before();
  let_next_kernel_start();
  for (u32 row = blockIdx.x; row < rows.num_rows; row += gridDim.x) {
    Vec sum[kColumns];
    Vec residual[kColumns];
    Vec weight[kColumns];
    load_row<kColumns>(rows.input, row, rows.row_vectors, sum);
    load_row<kColumns>(rows.residual, row, rows.row_vectors, residual);
    load_row<kColumns>(rows.weight, 0, rows.row_vectors, weight);
    add_and_normalise<kColumns>(rows, row, sum, residual, weight);
  }
}

// hidden: elements of a row.
__device__ __forceinline__ Rows rows_of(const void* input, void* residual, const void* weight,
                                        void* output, u32 num_rows, u32 hidden, float epsilon) {
  const u64 count = static_cast<u64>(num_rows) * hidden;
  return Rows{Tensor(input, count),  Tensor(residual, count),
              Tensor(weight, hidden), Tensor(output, count),
              num_rows,              hidden / kElements,
              epsilon};
}

#define WEFT_FUSED_KERNEL(columns, max_threads)                                                  \
  extern "C" __global__ void __launch_bounds__(max_threads, 1)                                   \
      all_reduce_residual_rms_norm_u##columns(                                                   \
          const __grid_constant__ Comm comm, const void* input, void* residual,                  \
          const void* weight, void* output, u32 num_rows, u32 hidden, float epsilon) {           \
    reduce_and_normalise<columns>(                                                               \
        comm, rows_of(input, residual, weight, output, num_rows, hidden, epsilon));              \
  }

#define WEFT_NORM_KERNEL(columns, max_threads)                                                   \
  extern "C" __global__ void __launch_bounds__(max_threads, 1)                                   \
      residual_rms_norm_u##columns(const void* input, void* residual, const void* weight,        \
                                   void* output, u32 num_rows, u32 hidden, float epsilon) {      \
    only_normalise<columns>(                                                                     \
        rows_of(input, residual, weight, output, num_rows, hidden, epsilon));                    \
  }

WEFT_FUSED_KERNEL(1, 1024)
WEFT_FUSED_KERNEL(2, 512)
WEFT_NORM_KERNEL(1, 1024)
WEFT_NORM_KERNEL(4, 512)
