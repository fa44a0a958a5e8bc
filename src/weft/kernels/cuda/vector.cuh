// Sixteen bytes of a tensor: loads, stores, conversion to fp32 and back.
//
// The element type is chosen by WEFT_ELEMENT (0 fp32, 1 fp16, 2 bf16) when compiling.
#pragma once
#include "ptx.cuh"

#if WEFT_ELEMENT == 0
using Bits = u32;
#else
using Bits = u16;
#endif

constexpr int kElementBytes = sizeof(Bits);
constexpr int kElements = 16 / kElementBytes;  // elements of one vector

// ---- one element --------------------------------------------------------------------------

__device__ __forceinline__ float to_float(Bits bits) {
#if WEFT_ELEMENT == 0
  return __uint_as_float(bits);
#elif WEFT_ELEMENT == 1
  return half_to_float(bits);
#else
  return __uint_as_float(static_cast<u32>(bits) << 16);
#endif
}

// Two neighbouring elements rounded to nearest even and packed (fp32: see pack below).
__device__ __forceinline__ u32 pack_pair(float low, float high) {
#if WEFT_ELEMENT == 1
  return pack_halves(low, high);
#else
  return pack_bfloats(low, high);
#endif
}

// ---- one vector ---------------------------------------------------------------------------

__device__ __forceinline__ void unpack(const Vec& vec, float (&value)[kElements]) {
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
#if WEFT_ELEMENT == 0
    value[i] = to_float(vec.w[i]);
#else
    value[i] = to_float(static_cast<u16>(vec.w[i / 2] >> (16 * (i % 2))));
#endif
  }
}

__device__ __forceinline__ Vec pack(const float (&value)[kElements]) {
  Vec vec;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#if WEFT_ELEMENT == 0
    vec.w[i] = __float_as_uint(value[i]);
#else
    vec.w[i] = pack_pair(value[2 * i], value[2 * i + 1]);
#endif
  }
  return vec;
}

__device__ __forceinline__ void accumulate(float (&sum)[kElements], const Vec& vec) {
  float value[kElements];
  unpack(vec, value);
#pragma unroll
  for (int i = 0; i < kElements; ++i) sum[i] += value[i];
}

// ---- a tensor of any length and alignment, read and written 16 bytes at a time ---------------

struct Tensor {
  u8* data;
  u64 num_elements;
  bool aligned;  // data is a multiple of 16

  __device__ __forceinline__ Tensor(const void* pointer, u64 count)
      : data(static_cast<u8*>(const_cast<void*>(pointer))),
        num_elements(count),
        aligned((reinterpret_cast<u64>(pointer) & 15) == 0) {}

  __device__ __forceinline__ u64 num_vectors() const {
    return (num_elements + kElements - 1) / kElements;
  }

  __device__ __forceinline__ bool whole(u64 index) const {
    return aligned && (index + 1) * kElements <= num_elements;
  }

  // Vector `index`; elements past the end read as zero.
  __device__ __forceinline__ Vec load(u64 index) const {
    if (whole(index)) return load_vector(data + index * 16);
    u64 half[2] = {0, 0};
#pragma unroll 1
    for (int i = 0; i < kElements; ++i) {  // rare: short code matters more than speed
      const u64 element = index * kElements + i;
      if (element >= num_elements) break;
      const u64 bits = load_volatile(reinterpret_cast<const Bits*>(data) + element);
      const u64 shifted = bits << (8 * kElementBytes * i % 64);
      half[0] |= i * 2 < kElements ? shifted : 0;
      half[1] |= i * 2 < kElements ? 0 : shifted;
    }
    return Vec{{static_cast<u32>(half[0]), static_cast<u32>(half[0] >> 32),
                static_cast<u32>(half[1]), static_cast<u32>(half[1] >> 32)}};
  }

  // Elements past the end are not written.
  __device__ __forceinline__ void store(u64 index, const Vec& vec) const {
    if (whole(index)) {
      store_vector(data + index * 16, vec);
      return;
    }
    const u64 low = static_cast<u64>(vec.w[1]) << 32 | vec.w[0];
    const u64 high = static_cast<u64>(vec.w[3]) << 32 | vec.w[2];
#pragma unroll 1
    for (int i = 0; i < kElements; ++i) {
      const u64 element = index * kElements + i;
      if (element >= num_elements) break;
      const u64 half = i * 2 < kElements ? low : high;
      store_volatile(static_cast<Bits>(half >> (8 * kElementBytes * i % 64)),
                     reinterpret_cast<Bits*>(data) + element);
    }
  }
};
