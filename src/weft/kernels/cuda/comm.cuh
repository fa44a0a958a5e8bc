// What the ranks share, and the one way in which they wait for each other.
//
// Every rank owns one allocation that all peers can write:
//
//   Header | mailbox of even epochs | mailbox of odd epochs
//
// Protocol ("payload is the flag"): an idle mailbox word holds kEmpty, a NaN that no sender
// ever writes. A receiver waits until none of the four words of a vector is kEmpty, so data
// and flag cannot be seen apart, whatever order the fabric delivers words in. The receiver
// puts kEmpty back before its kernel ends.
//
// Why two mailboxes suffice: a rank leaves call e only with a value that depends on every
// rank's input of call e, so every rank has by then entered call e and, kernels of one
// communicator being ordered, has left call e - 1 with its words put back. The mailbox
// written in call e + 1 is the one of call e - 1. Because nothing but the parity of the epoch
// is used, the counter may wrap.
#pragma once
#include "vector.cuh"

constexpr int kWorld = WEFT_WORLD;
constexpr int kMaxWorld = 8;
constexpr u32 kEmpty = 0xFFFFFFFFu;        // NaN in fp32, two NaNs in fp16 and bf16
constexpr u32 kEmptyStandIn = 0x7FFFFFFFu;  // NaNs as well: sent where the data is kEmpty

enum Step : u32 {
  kStepExchange = 1, kStepScatter = 2, kStepGather = 3, kStepBetweenNodes = 4,
  kStepDispatch = 5, kStepCombine = 6,
};

struct Header {
  u32 poison;              // 0, or 1 << 31 | step << 16 | bit mask of the missing ranks
  u32 reported;            // the fault has been written to the host
  u32 unused[30];
  u32 entered[32];         // entered[r]: the last epoch that rank r entered (diagnosis only)
  u32 epoch[kMaxBlocks];   // calls finished, one copy a block so that no block waits for another
};
constexpr u64 kHeaderBytes = 4096;
static_assert(sizeof(Header) <= kHeaderBytes, "the header outgrew its page");

struct Fault {  // pinned host memory
  u32 raised;
  u32 missing;
  u32 step;
  u32 epoch;
};

struct Comm {  // by value in every launch; mirrored in communicator.py
  u8* peer[kMaxWorld];  // peer[k]: allocation of rank (rank + k) % world, 0 if out of reach
  Fault* fault;
  u64 mailbox_bytes;
  u64 timeout_ns;
  u32 rank;
  u32 unused;
};

// ---- words on the fabric --------------------------------------------------------------------

__device__ __forceinline__ bool arrived(const Vec& vec) {
  return vec.w[0] != kEmpty && vec.w[1] != kEmpty && vec.w[2] != kEmpty && vec.w[3] != kEmpty;
}

__device__ __forceinline__ Vec sendable(Vec vec) {
#pragma unroll
  for (int i = 0; i < 4; ++i) vec.w[i] = vec.w[i] == kEmpty ? kEmptyStandIn : vec.w[i];
  return vec;
}

__device__ __forceinline__ void put_back(u8* slot) { fill(slot, kEmpty); }

// ---- faults -----------------------------------------------------------------------------------

// Tell the host and all peers, once. `waiting_for` is used where every rank has entered.
__device__ __noinline__ void raise_fault(const Comm& comm, u32 step, u32 epoch, u32 waiting_for) {
  Header* header = reinterpret_cast<Header*>(comm.peer[0]);
  u32 poison = peek_word(&header->poison);
  if (poison == 0) {
    u32 missing = 0;
    for (u32 s = 0; s < kWorld; ++s) {
      const u32 after = s >= comm.rank ? s - comm.rank : s + kWorld - comm.rank;
      if (after != 0 && comm.peer[after] != nullptr && static_cast<int>(peek_word(&header->entered[s]) - epoch) < 0) {
        missing |= 1u << s;
      }
    }
    poison = 0x80000000u | step << 16 | (missing != 0 ? missing : 1u << waiting_for);
    const u32 before = atomicCAS(&header->poison, 0u, poison);
    if (before != 0) poison = before;
  }
  if (atomicExch(&header->reported, 1u) != 0) return;
  for (u32 k = 1; k < kWorld; ++k) {
    if (comm.peer[k] == nullptr) continue;
    push_word(&reinterpret_cast<Header*>(comm.peer[k])->poison, poison);
  }
  Fault* fault = comm.fault;
  store_volatile(poison & 0xFFFFu, &fault->missing);
  store_volatile(poison >> 16 & 0x7FFFu, &fault->step);
  store_volatile(epoch, &fault->epoch);
  __threadfence_system();
  store_volatile(1u, &fault->raised);
}

__device__ __forceinline__ u32 block_of_grid() { return blockIdx.y * gridDim.x + blockIdx.x; }

// ---- one call -----------------------------------------------------------------------------------

struct Call {
  const Comm& comm;
  Header* header;
  u32 epoch;        // of this call
  u64 mailbox;      // offset of this call's mailbox in every allocation
  bool poisoned;

  // Programmatic dependent launch: everything before the wait may overlap the kernel before
  // us, so nothing before it touches memory. Look at `poisoned` only after the first loads of
  // the input have been issued: they then travel together with the loads of this constructor.
  __device__ __forceinline__ explicit Call(const Comm& shared) : comm(shared) {
    header = reinterpret_cast<Header*>(comm.peer[0]);
    wait_for_kernel_before();
    epoch = peek_word(&header->epoch[block_of_grid()]) + 1;
    poisoned = peek_word(&header->poison) != 0;
    let_next_kernel_start();
    mailbox = kHeaderBytes + (epoch & 1) * comm.mailbox_bytes;
  }

  // The rank `k` places after us, 0 <= k < kWorld.
  __device__ __forceinline__ u32 rank_after(u32 k) const {
    return comm.rank + k < kWorld ? comm.rank + k : comm.rank + k - kWorld;
  }

  // Slot number `slot` (16 bytes each) in our own mailbox.
  __device__ __forceinline__ u8* own_slot(u32 slot) const {
    return comm.peer[0] + mailbox + static_cast<u64>(slot) * 16;
  }

  // The same in the mailbox of the rank `k` places after us.
  __device__ __forceinline__ u8* slot_after(int k, u32 slot) const {
    return comm.peer[k] + mailbox + static_cast<u64>(slot) * 16;
  }

  // The same in the mailbox of a rank given by its number.
  __device__ __forceinline__ u8* slot_of_rank(u32 rank, u32 slot) const {
    return slot_after(rank >= comm.rank ? rank - comm.rank : rank + kWorld - comm.rank, slot);
  }

  // Put kEmpty back into the slots whose bit is set in `mask`.
  template <int kSlots>
  __device__ __forceinline__ void clear(const u32 (&slot)[kSlots], u32 mask) const {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      if (mask >> i & 1) put_back(own_slot(slot[i]));
    }
  }

  // For diagnosis: say that we are here. After the payload, off the critical path; by the first
  // thread, since a message may have only one vector.
  __device__ __forceinline__ void announce() const {
    if (block_of_grid() != 0 || threadIdx.x != 0) return;
#pragma unroll
    for (int k = 1; k < kWorld; ++k) {
      Header* peer = reinterpret_cast<Header*>(comm.peer[k]);
      if (peer != nullptr) push_word(&peer->entered[comm.rank], epoch);
    }
  }

  // Every thread of the block calls this last.
  __device__ __forceinline__ void finish() const {
    if (poisoned) raise_fault(comm, 0, epoch, comm.rank);
    __syncthreads();
    const u32 num_blocks = gridDim.y * gridDim.x;
    for (u32 b = block_of_grid() + threadIdx.x * num_blocks; b < kMaxBlocks;
         b += blockDim.x * num_blocks) {
      store_word(epoch, &header->epoch[b]);
    }
  }

  // Wait for the vectors whose bit is set in `pending`; value[i] is what came into slot[i], and
  // slot i was written by rank first_sender + i * sender_step. False: a rank is lost, and the
  // fault has been raised. `grace`: quarters of the time-out that senders may take longer.
  template <int kSlots>
  __device__ __forceinline__ bool wait(const u32 (&slot)[kSlots], Vec (&value)[kSlots], u32 pending,
                                       Step step, u32 first_sender = 0,
                                       u32 sender_step = 1, u32 grace = 0) const {
    u32 spins = 0;
    u64 deadline = 0;
    while (true) {
#pragma unroll
      for (int i = 0; i < kSlots; ++i) {
        if (pending >> i & 1) value[i] = peek(own_slot(slot[i]));
      }
#pragma unroll
      for (int i = 0; i < kSlots; ++i) {
        if ((pending >> i & 1) && arrived(value[i])) pending &= ~(1u << i);
      }
      if (pending == 0) return true;
      if (++spins % kSpinsPerClockRead != 0) continue;
      const u64 now = nanoseconds();
      if (deadline == 0) deadline = now + comm.timeout_ns + grace * (comm.timeout_ns / 4);
      if (now > deadline || peek_word(&header->poison) != 0) {
        raise_fault(comm, step, epoch, first_sender + (__ffs(pending) - 1) * sender_step);
        return false;
      }
    }
  }
};

// ---- sums ---------------------------------------------------------------------------------------

// Sum in rank (or node) order; our own vector takes its place among those received.
template <int kParts>
__device__ __forceinline__ Vec reduce_in_rank_order(const Vec& own, const Vec (&received)[kParts],
                                                    u32 rank) {
  float sum[kElements];
#pragma unroll
  for (int i = 0; i < kElements; ++i) sum[i] = 0.0f;
#pragma unroll
  for (int s = 0; s < kParts; ++s) {
    Vec vec = received[s];
#pragma unroll
    for (int i = 0; i < 4; ++i) vec.w[i] = s == rank ? own.w[i] : vec.w[i];
    accumulate(sum, vec);
  }
  return pack(sum);
}
