// Stands in for src/weft/kernels/cuda/ptx.cuh, and for what CUDA C++ builds in.
#pragma once
#include "machine.h"
#include "types.cuh"

#include <cstring>

#define __device__
#define __global__
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static __attribute__((section("block_shared")))
#define threadIdx (machine_place->thread)
#define blockIdx (machine_place->block)
#define blockDim (machine_place->block_size)
#define gridDim (machine_place->grid_size)

extern "C" __attribute__((visibility("hidden"))) char __start_block_shared[];

// Small, so that the cases are about the protocol and not about counting.
constexpr int kMaxBlocks = 16;
constexpr u32 kSpinsPerClockRead = 2;
constexpr u32 kSpinsPerClockReadOfChunk = 2;
constexpr u32 kMinChunkVectors = 1;

// ---- built in -----------------------------------------------------------------------------------

inline float __uint_as_float(u32 bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline u32 __float_as_uint(float value) {
  u32 bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<u32>(bits)); }
inline int __ffs(u32 value) { return __builtin_ffs(static_cast<int>(value)); }
inline u32 atomicCAS(u32* place, u32 expected, u32 value) {
  return machine_exchange(place, value, true, expected);
}
inline u32 atomicExch(u32* place, u32 value) { return machine_exchange(place, value, false, 0); }
inline void __threadfence_system() { machine_fence(); }
inline void __syncthreads() { machine_meet_block(kSync, false); }
inline int __syncthreads_or(int predicate) { return machine_meet_block(kSyncOr, predicate != 0); }
inline int __syncthreads_count(int predicate) {
  return machine_meet_block(kSyncCount, predicate != 0);
}
inline void __syncwarp() { machine_meet_warp(0, 0); }
inline float __shfl_xor_sync(u32, float value, int lanes) {
  return __uint_as_float(machine_meet_warp(__float_as_uint(value), lanes));
}

// ---- fp16 and bf16 ------------------------------------------------------------------------------

inline float half_to_float(u16 bits) {
  const u32 sign = static_cast<u32>(bits & 0x8000) << 16, rest = bits & 0x7FFF;
  if (rest >= 0x7C00) return __uint_as_float(sign | 0x7F800000 | (rest & 0x3FF) << 13);
  const float size = static_cast<float>(rest & 0x3FF) * 0x1p-24f;  // a subnormal
  if (rest < 0x400) return __uint_as_float(sign | __float_as_uint(size));
  return __uint_as_float(sign | (rest << 13) + (112u << 23));
}
inline u32 to_half(float value) {
  const u32 bits = __float_as_uint(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7FFFFFFF;
  if (rest > 0x7F800000) return 0x7FFF;
  if (rest >= 0x477FF000) return sign | 0x7C00;  // 65520 and above round to infinity
  if (rest < 0x38800000) {                       // a subnormal: the sum rounds at 2^-24
    return sign | (__float_as_uint(__uint_as_float(rest) + 0.5f) - 0x3F000000);
  }
  return sign | ((rest + 0xFFF + (rest >> 13 & 1)) >> 13) - (112u << 10);
}
inline u32 pack_halves(float low, float high) { return to_half(high) << 16 | to_half(low); }
inline u32 to_bfloat(float value) {
  const u32 bits = __float_as_uint(value);
  return value != value ? 0x7FFF : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}
inline u32 pack_bfloats(float low, float high) { return to_bfloat(high) << 16 | to_bfloat(low); }
inline float reciprocal_square_root(float value) { return 1.0f / __builtin_sqrtf(value); }

// ---- memory -------------------------------------------------------------------------------------

template <typename Place>
inline Vec load_vector(const Place* place) {
  Vec vec;
  machine_load(place, &vec, 16, false);
  return vec;
}
template <typename Place>
inline void store_vector(Place* place, const Vec& vec) {
  machine_store(place, &vec, 16, false);
}
template <typename Word>
inline Word load_volatile(const Word* place) {
  Word value;
  machine_load(place, &value, sizeof(Word), false);
  return value;
}
template <typename Word>
inline void store_volatile(Word value, Word* place) {
  machine_store(place, &value, sizeof(Word), true);
}
inline void push(u8* slot, const Vec& vec) { machine_store(slot, &vec, 16, false); }
inline Vec peek(const u8* slot) {
  Vec vec;
  machine_load(slot, &vec, 16, true);
  return vec;
}
inline void push_word(u32* word, u32 value) { machine_store(word, &value, 4, true); }
inline u32 peek_word(const u32* word) {
  u32 value;
  machine_load(word, &value, 4, false);
  return value;
}
inline void push_flag(u8* flag, u32 value) { machine_store(flag, &value, 1, true); }
inline u32 acquire_flag(const u8* flag) { return machine_acquire_flag(flag); }
inline void fill(u8* slot, u32 word) {
  const Vec vec{{word, word, word, word}};
  machine_store(slot, &vec, 16, false);
}
inline void store_word(u32 value, u32* word) { machine_store(word, &value, 4, true); }

// ---- time and launches --------------------------------------------------------------------------

inline u64 nanoseconds() { return machine_nanoseconds(); }
inline void wait_for_kernel_before() { machine_wait_for_grid_before(); }
inline void let_next_kernel_start() { machine_let_next_grid_start(); }

// ---- shared memory of a block and of a cluster --------------------------------------------------

inline u32 offset_in_block(const void* pointer) {
  return static_cast<u32>(static_cast<const char*>(pointer) - __start_block_shared);
}
template <typename Word>
inline void store_shared(Word value, Word* place) {
  machine_shared(offset_in_block(place), &value, sizeof(Word), true);
}
template <typename Word>
inline Word load_shared(const Word* place) {
  Word value;
  machine_shared(offset_in_block(place), &value, sizeof(Word), false);
  return value;
}
inline u32 shared_address(const void* pointer) {
  return offset_in_block(pointer) | machine_block_of_cluster() << 16;
}
inline u32 in_block(u32 address, u32 block) { return (address & 0xFFFF) | block << 16; }
inline void barrier_init(u32 barrier) { machine_barrier_init(barrier); }
inline void show_barriers_to_cluster() {}
inline void meet_cluster() { machine_meet_cluster(); }
inline void barrier_expect(u32 barrier, u32 bytes) { machine_barrier_expect(barrier, bytes); }
inline void store_async(u32 place, u32 value, u32 barrier) {
  machine_store_async(place, value, barrier);
}
inline bool barrier_passed(u32 barrier, u32 parity) {
  return machine_barrier_passed(barrier, parity);
}

// ---- NVSHMEM: the two puts that hierarchical_nvshmem.cu calls --------------------------------------

#define put_of_nvshmem(threads) \
  _Z25nvshmemi_transfer_rma_nbiIL13threadgroup_t##threads##EL13nvshmemi_op_t1EEvPvS2_mi
extern "C" inline void put_of_nvshmem(0)(void* target, void* source, u64 size, int pe) {
  machine_put(target, source, size, pe);
}
extern "C" inline void put_of_nvshmem(3)(void* target, void* source, u64 size, int pe) {
  if (threadIdx.x == 0) machine_put(target, source, size, pe);  // it waits for no other thread
}

// ---- a kernel that the machine can start ----------------------------------------------------------

template <typename... Arguments>
struct Starter {
  template <u32... kPlaces>
  struct Places {};
  template <u32 kCount, u32... kPlaces>
  struct Count : Count<kCount - 1, kCount - 1, kPlaces...> {};
  template <u32... kPlaces>
  struct Count<0, kPlaces...> {
    using Type = Places<kPlaces...>;
  };
  template <typename T>
  struct Plain {
    using Type = T;
  };
  template <typename T>
  struct Plain<const T> {
    using Type = T;
  };
  template <u32... kPlaces>
  static void start(void (*kernel)(Arguments...), void* const* arguments, Places<kPlaces...>) {
    kernel(*static_cast<typename Plain<Arguments>::Type*>(arguments[kPlaces])...);
  }
};

template <typename... Arguments>
void start(void (*kernel)(Arguments...), void* const* arguments) {
  using S = Starter<Arguments...>;
  S::start(kernel, arguments, typename S::template Count<sizeof...(Arguments)>::Type{});
}

#define ADVERSARY_KERNEL(name)                                                      \
  extern "C" __attribute__((visibility("default"))) void run_##name(void** arguments) { \
    start(name, arguments);                                                         \
  }
