// Every instruction that C++ has no word for, and every access to memory that is shared.
//
// The kernels touch shared memory, tensors and mailboxes through these functions alone, so that
// another file in place of this one runs them on a host, each access a step (tests/adversary).
#pragma once
#include "types.cuh"

constexpr int kMaxBlocks = 512;  // of a grid
constexpr u32 kSpinsPerClockRead = 256;
constexpr u32 kSpinsPerClockReadOfChunk = 16;
constexpr u32 kMinChunkVectors = 32;  // MIN_CHUNK_VECTORS of host_proxy.py

// ---- fp16 and bf16 ---------------------------------------------------------------------------

__device__ __forceinline__ float half_to_float(u16 bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

// Two neighbouring elements rounded to nearest even and packed.
__device__ __forceinline__ u32 pack_halves(float low, float high) {
  u32 packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ __forceinline__ u32 pack_bfloats(float low, float high) {
  u32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ __forceinline__ float reciprocal_square_root(float value) {
  float root;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(value));
  return root;
}

// ---- tensors: weak ------------------------------------------------------------------------------

template <typename Place>
__device__ __forceinline__ Vec load_vector(const Place* place) {
  Vec vec;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(vec.w[0]), "=r"(vec.w[1]), "=r"(vec.w[2]), "=r"(vec.w[3])
               : "l"(place));
  return vec;
}

template <typename Place>
__device__ __forceinline__ void store_vector(Place* place, const Vec& vec) {
  asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(place), "r"(vec.w[0]), "r"(vec.w[1]),
               "r"(vec.w[2]), "r"(vec.w[3])
               : "memory");
}

template <typename Word>
__device__ __forceinline__ Word load_volatile(const Word* place) {
  return *static_cast<const volatile Word*>(place);
}

template <typename Word>
__device__ __forceinline__ void store_volatile(Word value, Word* place) {
  *static_cast<volatile Word*>(place) = value;
}

// ---- words between ranks: relaxed, system scope; 32 bits stay whole, a vector need not ---------

__device__ __forceinline__ void push(u8* slot, const Vec& vec) {
  asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(slot), "r"(vec.w[0]),
               "r"(vec.w[1]), "r"(vec.w[2]), "r"(vec.w[3])
               : "memory");
}

__device__ __forceinline__ Vec peek(const u8* slot) {
  Vec vec;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(vec.w[0]), "=r"(vec.w[1]), "=r"(vec.w[2]), "=r"(vec.w[3])
               : "l"(slot)
               : "memory");
  return vec;
}

__device__ __forceinline__ void push_word(u32* word, u32 value) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

__device__ __forceinline__ u32 peek_word(const u32* word) {
  u32 value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}

__device__ __forceinline__ void push_flag(u8* flag, u32 value) {
  asm volatile("st.relaxed.sys.global.u8 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

__device__ __forceinline__ u32 acquire_flag(const u8* flag) {
  u32 value;
  asm volatile("ld.acquire.sys.global.u8 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

// ---- words of our own that the next kernel reads: weak -----------------------------------------

__device__ __forceinline__ void fill(u8* slot, u32 word) {
  asm volatile("st.global.v4.u32 [%0], {%1,%1,%1,%1};" ::"l"(slot), "r"(word) : "memory");
}

__device__ __forceinline__ void store_word(u32 value, u32* word) { *word = value; }

// ---- time and launches ---------------------------------------------------------------------------

__device__ __forceinline__ u64 nanoseconds() {
  u64 value;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(value));
  return value;
}

__device__ __forceinline__ void wait_for_kernel_before() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

__device__ __forceinline__ void let_next_kernel_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// ---- shared memory of a block and of a cluster ---------------------------------------------------

template <typename Word>
__device__ __forceinline__ void store_shared(Word value, Word* place) {
  *place = value;
}

template <typename Word>
__device__ __forceinline__ Word load_shared(const Word* place) {
  return *static_cast<const volatile Word*>(place);
}

__device__ __forceinline__ u32 shared_address(const void* pointer) {
  return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// The same shared variable in block `block` of the cluster.
__device__ __forceinline__ u32 in_block(u32 address, u32 block) {
  u32 remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(block));
  return remote;
}

__device__ __forceinline__ void barrier_init(u32 barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier));
}

__device__ __forceinline__ void show_barriers_to_cluster() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void meet_cluster() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

__device__ __forceinline__ void barrier_expect(u32 barrier, u32 num_bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
               "r"(num_bytes)
               : "memory");
}

// Store 4 bytes in another block of the cluster and count them at its barrier.
__device__ __forceinline__ void store_async(u32 place, u32 value, u32 barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(place),
      "r"(value), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ bool barrier_passed(u32 barrier, u32 parity) {
  u32 complete;
  asm volatile(
      "{\n\t.reg .pred p;\n\t"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
      "selp.u32 %0, 1, 0, p;\n\t}"
      : "=r"(complete)
      : "r"(barrier), "r"(parity)
      : "memory");
  return complete != 0;
}
