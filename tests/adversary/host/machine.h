// What a kernel that runs on the host asks of the machine: every call is a step that the
// scheduler may put any other step before.
#pragma once

#include "types.cuh"

struct Index {
  u32 x, y, z;
};

struct Place {  // of the thread that runs now
  Index thread, block, block_size, grid_size;
};

extern "C" {
extern Place* machine_place;

// Global memory. `size` bytes (1, 2, 4, 8 or 16): words of 32 bits move one by one.
void machine_load(const void* place, void* value, u32 size, bool poll);
void machine_store(void* place, const void* value, u32 size, bool at_once);
u32 machine_exchange(u32* place, u32 value, bool compare, u32 expected);
void machine_acquire();
void machine_fence();
u32 machine_acquire_flag(const u8* flag);

// Threads of a block, a warp, a cluster.
enum Meeting : u32 { kSync = 1, kSyncOr = 2, kSyncCount = 3 };
u32 machine_meet_block(Meeting meeting, bool predicate);
u32 machine_meet_warp(u32 value, u32 lane_mask);
void machine_meet_cluster();

// Shared memory: offsets, with the block of the cluster above bit 16.
void machine_shared(u32 offset, void* value, u32 size, bool store);
u32 machine_block_of_cluster();
void machine_barrier_init(u32 barrier);
void machine_barrier_expect(u32 barrier, u32 num_bytes);
void machine_store_async(u32 place, u32 value, u32 barrier);
bool machine_barrier_passed(u32 barrier, u32 parity);

// Launches and time.
void machine_wait_for_grid_before();
void machine_let_next_grid_start();
u64 machine_nanoseconds();

// A one-sided put of the network: `size` bytes, read and written at any later time. `target` is
// the address that the word of rank `pe` has here.
void machine_put(void* target, const void* source, u64 size, u32 pe);
}
