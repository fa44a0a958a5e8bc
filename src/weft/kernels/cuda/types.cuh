// Words and vectors: the types that the memory between ranks is made of.
//
// No CUDA header is included, so that NVRTC needs no include path.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

struct alignas(16) Vec {
  u32 w[4];
};
