// What Python hands to the machine and gets back; mirrored in machine.py.
#pragma once

#include "types.cuh"

struct Launch {
  void (*kernel)(void**);
  void* arguments[6];
  u32 blocks_x, blocks_y, threads, cluster;  // cluster: blocks_x start together
};

struct Region {  // words that hold kEmpty while idle; everybody but `owner` only fills idle ones
  u64 begin, end;
  u32 owner, unused;
};

struct Stream {
  const Launch* launches;
  u32 num_launches;
  u32 room;  // blocks that are on the GPU at once
};

struct Outside {  // a process beside the GPUs: one step of it; 0: nothing to do, 1: it moved
  u32 (*step)(u32 which);
  u64 begin, end;  // what it may write
  u32 rank, unused;  // whose process it is
};

struct Case {
  u8* memory;
  u64 num_bytes;
  const Stream* streams;
  const Region* regions;
  const Outside* outside;
  u32 num_ranks, num_regions, num_outside;
  u32 overlap;
  u64 seed;
  u64 timeout_ns;
  u32 lost_rank;  // it dies at its lost_after-th step; num_ranks: nobody
  u32 clock;      // 0 stands still, 1 moves when nothing else does, 2 leaps at any time
  u64 lost_after;
  u32 schedules;  // how often to run it, each time otherwise; all must end with the same memory
  u32 unused;
  u64 heap_bytes;  // from the memory for puts of one rank to that of the next
};

struct Outcome {
  u64 steps, stale_loads, deliveries;
  u32 lost, failed;
  char message[400];
};
