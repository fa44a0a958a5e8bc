// Token rows to the ranks that hold their experts (dispatch), partial sums back (combine).
//
// Every rank brings as many rows, R, and each row names its experts. An expert's number over
// `share` is the rank that holds it. A block handles row r of every rank: it sends our own and
// waits for the others', so that blocks wait for blocks of their own number alone.
//
// Dispatch. For each row a head goes to every rank: the row's choices, two a vector, numbered as
// that rank numbers its experts (`share`: none of them), each with kComes where the row follows.
// The row itself goes only to ranks with an expert of it, once. Rows lie where their rank and
// number say, so that nothing is counted or sorted and results do not depend on who came first;
// those that did not come are zeros. Since every rank hears a head from every rank, a rank leaves
// the call only after all have entered it, as comm.cuh demands of two mailboxes.
//
// Combine. The partial sum of a row goes back from each rank that got the row; its own rank adds
// them in rank order in fp32. Who owes what is known from the dispatch: nothing is sent for the
// other rows. So that here, too, nobody leaves before all have entered, the first block exchanges
// a token with every rank.
//
// Mailbox of a dispatch: slot [sender][row][head, then row]; of a combine: slot [sender] of the
// tokens, then [sender][row][vector].
#include "comm.cuh"

constexpr u32 kComes = 1u << 16;  // beside the number of an expert in a head

struct Dispatch {         // mirrored in exchange.py
  const Vec* rows;        // [R][row_vectors]
  const u64* experts;     // [R][chosen], of the whole model
  const u32* weights;     // [R][chosen], fp32
  Vec* rows_out;          // [ranks R][row_vectors]
  u64* experts_out;       // [ranks R][chosen], of this rank; `share`: none
  u32* weights_out;       // [ranks R][chosen]
  u32* passages;          // [R]: bit s: row r of rank s came here; bit 16 + d: ours went to rank d
  u32 num_rows, row_vectors, chosen, share;
};

struct Combine {          // mirrored in exchange.py
  const Vec* partial;     // [ranks R][row_vectors]
  const u32* passages;    // [R], of the dispatch
  Vec* rows_out;          // [R][row_vectors]
  u32 num_rows, row_vectors;
};

// Bit d: rank d has an expert of the row.
__device__ __forceinline__ u32 owners_of(const Dispatch& d, u32 row) {
  const u32* experts = reinterpret_cast<const u32*>(d.experts + static_cast<u64>(row) * d.chosen);
  u32 owners = 0;
#pragma unroll 8
  for (u32 i = 0; i < d.chosen; ++i) {
    const u32 expert = load_volatile(experts + 2 * i);  // numbers fit the lower half
#pragma unroll
    for (u32 rank = 0; rank < kWorld; ++rank) {
      owners |= (expert - rank * d.share < d.share ? 1u : 0u) << rank;
    }
  }
  return owners;
}

// Two choices of a row, as they stand in its tensors; nobody's where there are no more.
struct Choices {
  u32 expert[2], weight[2];

  __device__ __forceinline__ Choices(const Dispatch& d, u32 row, u32 part) {
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      const u64 place = static_cast<u64>(row) * d.chosen + 2 * part + i;
      const bool inside = 2 * part + i < d.chosen;
      expert[i] = inside ? load_volatile(reinterpret_cast<const u32*>(d.experts + place)) : ~0u;
      weight[i] = inside ? load_volatile(d.weights + place) : 0u;
    }
  }

  // As rank `owner` is told of them.
  __device__ __forceinline__ Vec head(const Dispatch& d, u32 owner, u32 owners) const {
    Vec vec;
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      const u32 local = expert[i] - owner * d.share;
      vec.w[2 * i] = (local < d.share ? local : d.share) | (owners >> owner & 1 ? kComes : 0);
      vec.w[2 * i + 1] = weight[i];
    }
    return sendable(vec);
  }
};

__device__ __forceinline__ void keep_head(const Dispatch& d, u32 row, u32 part, const Vec& head) {
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    if (2 * part + i >= d.chosen) continue;
    const u64 place = static_cast<u64>(row) * d.chosen + 2 * part + i;
    store_volatile(static_cast<u64>(head.w[2 * i] & (kComes - 1)), d.experts_out + place);
    store_volatile(head.w[2 * i + 1], d.weights_out + place);
  }
}

__device__ __forceinline__ u64 vector_of(u32 row, u32 row_vectors, u32 column) {
  return static_cast<u64>(row) * row_vectors + column;
}

// One row of ours: its heads to everybody, itself to its owners.
__device__ __forceinline__ void send_row(const Call& call, const Dispatch& d, u32 row, u32 owners,
                                         u32 heads) {
  const u32 rank = call.comm.rank, mine = rank * d.num_rows + row;
  const u32 slot = mine * (heads + d.row_vectors);
  if (threadIdx.x < heads) {
    const Choices choices(d, row, threadIdx.x);
#pragma unroll
    for (u32 k = 1; k < kWorld; ++k) {
      const u32 to = rank + k < kWorld ? rank + k : rank + k - kWorld;
      push(call.slot_after(k, slot + threadIdx.x), choices.head(d, to, owners));
    }
    keep_head(d, mine, threadIdx.x, choices.head(d, rank, owners));
  }
  for (u32 column = threadIdx.x; column < d.row_vectors; column += blockDim.x) {
    const Vec own = sendable(load_vector(d.rows + vector_of(row, d.row_vectors, column)));
#pragma unroll
    for (u32 k = 1; k < kWorld; ++k) {
      const u32 to = rank + k < kWorld ? rank + k : rank + k - kWorld;
      if (owners >> to & 1) push(call.slot_after(k, slot + heads + column), own);
    }
    store_vector(d.rows_out + vector_of(mine, d.row_vectors, column),
                 owners >> rank & 1 ? own : Vec{});
  }
}

// The same row of the other ranks. False: a rank is lost.
__device__ __forceinline__ bool receive_row(const Call& call, const Dispatch& d, u32 row,
                                            u32 owners, u32 heads) {
  const u32 rank = call.comm.rank, others = ((1u << kWorld) - 1) & ~(1u << rank);
  const u32 room = heads + d.row_vectors, part = threadIdx.x % heads;
  u32 slot[kWorld];
  u32 coming = 0;
#pragma unroll
  for (u32 s = 0; s < kWorld; ++s) slot[s] = (s * d.num_rows + row) * room + part;
  {
    Vec head[kWorld];
    if (!call.wait(slot, head, others, kStepDispatch)) return false;
#pragma unroll
    for (u32 s = 0; s < kWorld; ++s) {
      if (s == rank) continue;
      coming |= (head[s].w[0] & kComes ? 1u : 0u) << s;
      if (threadIdx.x < heads) keep_head(d, s * d.num_rows + row, part, head[s]);
    }
  }
  if (threadIdx.x == 0) store_word(coming | owners << 16, d.passages + row);
  for (u32 column = threadIdx.x; column < d.row_vectors; column += blockDim.x) {
#pragma unroll
    for (u32 s = 0; s < kWorld; ++s) slot[s] = (s * d.num_rows + row) * room + heads + column;
    Vec received[kWorld];
    if (!call.wait(slot, received, coming, kStepDispatch)) return false;
#pragma unroll
    for (u32 s = 0; s < kWorld; ++s) {
      if (s == rank) continue;
      store_vector(d.rows_out + vector_of(s * d.num_rows + row, d.row_vectors, column),
                   coming >> s & 1 ? received[s] : Vec{});
    }
    call.clear(slot, coming);
  }
  return true;
}

extern "C" __global__ void __launch_bounds__(512, 1)
    dispatch_rows(const __grid_constant__ Comm comm, const __grid_constant__ Dispatch d) {
  const Call call(comm);
  const u32 heads = (d.chosen + 1) / 2, others = ((1u << kWorld) - 1) & ~(1u << comm.rank);
  bool complete = !call.poisoned;
  for (u32 row = blockIdx.x; row < d.num_rows; row += gridDim.x) {
    if (complete) {
      const u32 owners = owners_of(d, row);
      send_row(call, d, row, owners, heads);
      if (row == blockIdx.x) call.announce();
      complete = receive_row(call, d, row, owners, heads);
    }
    __syncthreads();  // all threads have read the heads
    if (!complete || threadIdx.x >= heads) continue;
    u32 slot[kWorld];
#pragma unroll
    for (u32 s = 0; s < kWorld; ++s) {
      slot[s] = (s * d.num_rows + row) * (heads + d.row_vectors) + threadIdx.x;
    }
    call.clear(slot, others);
  }
  call.finish();
}

// Partial sums of one row of each rank that has sent it here, back to that rank.
__device__ __forceinline__ void return_row(const Call& call, const Combine& d, u32 row,
                                           u32 passage) {
  const u32 rank = call.comm.rank;
  for (u32 column = threadIdx.x; column < d.row_vectors; column += blockDim.x) {
#pragma unroll
    for (u32 k = 1; k < kWorld; ++k) {
      const u32 to = rank + k < kWorld ? rank + k : rank + k - kWorld;
      if ((passage >> to & 1) == 0) continue;
      const Vec* partial = d.partial + vector_of(to * d.num_rows + row, d.row_vectors, column);
      push(call.slot_after(k, kWorld + (rank * d.num_rows + row) * d.row_vectors + column),
           sendable(load_vector(partial)));
    }
  }
}

// What came back of one row of ours, added up. False: a rank is lost.
__device__ __forceinline__ bool add_row(const Call& call, const Combine& d, u32 row, u32 owners) {
  const u32 rank = call.comm.rank, away = owners & ~(1u << rank);
  for (u32 column = threadIdx.x; column < d.row_vectors; column += blockDim.x) {
    Vec own{};
    if (owners >> rank & 1) {
      own = load_vector(d.partial + vector_of(rank * d.num_rows + row, d.row_vectors, column));
    }
    u32 slot[kWorld];
    Vec received[kWorld];
#pragma unroll
    for (u32 s = 0; s < kWorld; ++s) {
      slot[s] = kWorld + (s * d.num_rows + row) * d.row_vectors + column;
      received[s] = Vec{};
    }
    if (!call.wait(slot, received, away, kStepCombine)) return false;
    store_vector(d.rows_out + vector_of(row, d.row_vectors, column),
                 reduce_in_rank_order(own, received, rank));
    call.clear(slot, away);
  }
  return true;
}

__device__ __forceinline__ void send_tokens(const Call& call) {
#pragma unroll
  for (u32 k = 1; k < kWorld; ++k) push(call.slot_after(k, call.comm.rank), Vec{});
}

__device__ __forceinline__ bool receive_tokens(const Call& call) {
  u32 slot[kWorld];
  Vec token[kWorld];
  const u32 others = ((1u << kWorld) - 1) & ~(1u << call.comm.rank);
#pragma unroll
  for (u32 s = 0; s < kWorld; ++s) slot[s] = s;
  if (!call.wait(slot, token, others, kStepCombine)) return false;
  call.clear(slot, others);
  return true;
}

extern "C" __global__ void __launch_bounds__(512, 1)
    combine_rows(const __grid_constant__ Comm comm, const __grid_constant__ Combine d) {
  const Call call(comm);
  const bool speaks = blockIdx.x == 0 && threadIdx.x == 0;
  bool complete = !call.poisoned;
  if (speaks && complete) send_tokens(call);
  for (u32 row = blockIdx.x; row < d.num_rows && complete; row += gridDim.x) {
    const u32 passage = load_volatile(d.passages + row);
    return_row(call, d, row, passage);
    if (row == blockIdx.x) {
      call.announce();
      if (speaks) complete = receive_tokens(call);
    }
    complete = complete && add_row(call, d, row, passage >> 16);
  }
  call.finish();
}
