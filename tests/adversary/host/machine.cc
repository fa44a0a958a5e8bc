// Several GPUs on one host thread: threads of kernels as fibers, a memory that delays stores and
// lets loads return old values, and a scheduler that takes the choices of an adversary.
//
// What it may do, and what it must not, is written in docs/all-reduce-proof.md.
#include "machine.h"
#include "case.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "fiber.h"

namespace {

constexpr u32 kNone = ~0u;
constexpr u32 kEmpty = 0xFFFFFFFFu;
constexpr u32 kForbidden = 0xFFFFFFFE;    // owner of words that nobody may write
constexpr u32 kFaultRecord = 0xFFFFFFFD;  // owner of what a kernel tells its host
constexpr u32 kSeen = 16;       // words whose last read a thread remembers
constexpr u32 kSharedBytes = 4096;
constexpr u32 kMaxStuck = 400;  // leaps of the clock in which nothing has moved

struct Random {
  u64 state;
  u32 next() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return static_cast<u32>(state >> 32);
  }
  u32 below(u32 bound) { return static_cast<u32>(static_cast<u64>(next()) * bound >> 32); }
  bool one_in(u32 chances) { return below(chances) == 0; }
};

enum class State : u8 { kReady, kPolls, kMeets, kWaitsForGrid, kDone };

struct Seen {
  u32 word = kNone, time = 0;
};

struct Thread {
  Place place;
  Fiber fiber;
  State state;
  u32 rank, grid, block, in_list;
  u32 floor;  // loads may return what a word held at this time or later
  u32 budget;
  u32 poll_line, poll_version, polls_elsewhere, stamp;
  u32 met;  // result of a meeting
  Seen seen[kSeen];
};

struct Barrier {
  u32 offset, pending, phase;
  int bytes;
};

struct Block {
  u32 grid, x, y, rank, cluster;
  std::vector<u32> threads;
  u32 live, arrived, generation, any, count;
  Meeting meeting;
  u32 warp_arrived[32];
  std::vector<u32> warp_value;
  u8 shared[kSharedBytes];
  std::vector<Barrier> barriers;
  bool triggered;
};

struct Cluster {
  std::vector<u32> blocks;
  u32 arrived, total;
};

struct Grid {
  u32 rank, number, started, ended, triggered, live_threads, in_flight;
  bool complete;
  const Launch* launch;
};

struct Flight {  // a store on its way
  enum Kind : u8 { kStore, kAsync, kPut } kind;
  bool held, at_once;
  u16 mask;  // bytes of the line
  u32 line, thread, block, generation, grid, rank;
  u64 number;
  u8 bytes[16];
  u32 target_block, offset, barrier;  // kAsync
  u64 target, source, size;           // kPut: in bytes of memory
};

struct Word {
  u32 changed, before, owner;
  u16 pending, senders;  // stores on their way; ranks that have sent since there were none
};

struct Node {
  u32 thread, stamp, next;
};

class Machine {
 public:
  void run(const Case& given, Outcome& result);

  void load(const void* place, void* value, u32 size, bool poll);
  void store(void* place, const void* value, u32 size, bool at_once);
  u32 exchange(u32* place, u32 value, bool compare, u32 expected);
  void acquire() { now_->floor = clock_; }
  void fence();
  u32 acquire_flag(const u8* flag);
  u32 meet_block(Meeting meeting, bool predicate);
  u32 meet_warp(u32 value, u32 lane_mask);
  void meet_cluster();
  void shared(u32 offset, void* value, u32 size, bool write);
  u32 block_of_cluster() const { return block().x; }
  Barrier& barrier_at(u32 address);
  void barrier_init(u32 barrier);
  void barrier_expect(u32 barrier, u32 num_bytes);
  void store_async(u32 place, u32 value, u32 barrier);
  bool barrier_passed(u32 barrier, u32 parity);
  void wait_for_grid_before();
  void let_next_grid_start();
  u64 nanoseconds() {
    point();
    return now_ns_;
  }
  void put(void* target, const void* source, u64 size, u32 pe);

 private:
  // scheduling
  void point() {
    Thread& thread = *now_;
    if (++ops_[thread.rank] == lost_after_ && thread.rank == given_->lost_rank) lose(thread.rank);
    if (dead_[thread.rank] || --thread.budget == 0 || failed_) leave();
  }
  void leave() { switch_fiber(now_->fiber, main_); }
  void lose(u32 rank);
  void loop();
  void new_phase();
  void run_thread();
  bool open_blocks();
  bool open_blocks_of(u32 rank);
  void open_block(u32 grid, u32 x, u32 y, u32 cluster);
  void ready(u32 number);
  void not_ready(Thread& thread, State state);
  void end_thread();
  static void enter_fiber();
  void meet(u32& arrived, u32 total, const std::vector<u32>& members);
  void close_meeting(Block& block);
  void check_grid(u32 grid);
  bool grid_before_complete(const Grid& grid) const;
  void wake_polling();
  void wake_polling_of(const Block& block);
  bool stuck();
  bool all_done() const;
  u32 step_outside(u32 which);
  void notice(u64 begin, u64 end);
  void fail(const char* text, ...);

  // memory
  u64 offset_of(const void* place) const { return static_cast<const u8*>(place) - given_->memory; }
  u32 load_word(u32 word);
  const Flight* own_store(u32 word) const;
  bool ordered_before(const Flight& one, const Flight& other) const;
  void deliver_any();
  void deliver(u32 at, u32 words);
  void deliver_word(u32 at, u32 nibble);
  void deliver_async(u32 at);
  void deliver_put(u32 at);
  void remove(u32 at);
  void apply(u32 word, u32 value, u32 rank);
  void maybe_poll(u32 line);
  Block& block() const { return *const_cast<Block*>(&blocks_[now_->block]); }

  const Case* given_;
  Outcome* result_;
  Random random_;
  Fiber main_;
  Thread* now_ = nullptr;
  bool failed_, emptied_ = false;
  u32 clock_;
  u64 now_ns_;
  u64 lost_after_;
  u64 number_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<std::unique_ptr<u8[]>> stacks_;
  std::vector<u32> free_, ready_;
  std::deque<Block> blocks_;
  u32 num_blocks_;
  std::vector<Cluster> clusters_;
  std::vector<Grid> grids_;
  std::vector<std::vector<u32>> grids_of_;
  std::vector<u32> next_block_, resident_;
  std::vector<Flight> flights_;
  std::vector<Word> words_;
  std::vector<u32> versions_, watchers_;
  std::vector<Node> nodes_;
  std::vector<u64> ops_;
  std::vector<bool> dead_;
  std::vector<u32> shadow_;
  // personality of the adversary, and its mood
  u32 deliver_bias_, longest_run_, stale_one_in_, hold_one_in_, favoured_, slow_, phase_left_, outside_one_in_;
  bool alone_ = false;
  u32 stuck_, clock_when_stuck_;

  friend Machine& machine();
};

Machine& machine() {
  static Machine one;
  return one;
}

void Machine::fail(const char* text, ...) {
  if (failed_) return;
  failed_ = true;
  result_->failed = 1;
  va_list list;
  va_start(list, text);
  vsnprintf(result_->message, sizeof result_->message, text, list);
  va_end(list);
}

// ---- memory -------------------------------------------------------------------------------------

const Flight* Machine::own_store(u32 word) const {
  const Flight* latest = nullptr;
  const Block& mine = blocks_[now_->block];
  for (const Flight& flight : flights_) {
    if (flight.kind != Flight::kStore || flight.line != word / 4) continue;
    if ((flight.mask >> (word % 4 * 4) & 15) == 0) continue;
    if (flight.block != now_->block) continue;
    const bool ours = flight.thread == now_->fiber.number || flight.generation < mine.generation;
    if (ours && (latest == nullptr || flight.number > latest->number)) latest = &flight;
  }
  return latest;
}

u32 merged(u32 old, const Flight& flight, u32 nibble) {
  u32 value = old;
  for (u32 i = 0; i < 4; ++i) {
    if (flight.mask >> (nibble * 4 + i) & 1) {
      reinterpret_cast<u8*>(&value)[i] = flight.bytes[nibble * 4 + i];
    }
  }
  return value;
}

// The word as this thread may see it: the latest value, or the one before where nothing that the
// thread has read or waited for rules that out.
u32 Machine::load_word(u32 word) {
  const Word& here = words_[word];
  const u32 latest = reinterpret_cast<const u32*>(given_->memory)[word];
  if (here.pending != 0 && (here.senders >> now_->rank & 1)) {
    if (const Flight* own = own_store(word)) return merged(latest, *own, word % 4);
  }
  Thread& thread = *now_;
  if (here.changed <= thread.floor) return latest;
  Seen& seen = thread.seen[word % kSeen];
  if (seen.word == word && seen.time >= here.changed) return latest;
  if (random_.one_in(stale_one_in_)) {
    ++result_->stale_loads;
    return here.before;
  }
  if (seen.word != word && seen.word != kNone && seen.time > thread.floor) thread.floor = seen.time;
  seen = {word, clock_};
  return latest;
}

void Machine::load(const void* place, void* value, u32 size, bool poll) {
  point();
  const u64 offset = offset_of(place);
  if (offset + size > given_->num_bytes) {
    fail("rank %u loads from outside its memory", now_->rank);
    leave();
  }
  if (size < 4) {
    const u32 word = load_word(offset / 4);
    std::memcpy(value, reinterpret_cast<const u8*>(&word) + offset % 4, size);
    return;
  }
  u32 order[4] = {0, 1, 2, 3};
  const u32 count = size / 4;
  if (count == 4) {
    for (u32 i = 3; i > 0; --i) std::swap(order[i], order[random_.below(i + 1)]);
  }
  const u32 apart = count == 4 && poll ? random_.below(8) : kNone;  // the adversary steps in between
  for (u32 i = 0; i < count; ++i) {
    if (i == apart && i != 0) point();
    static_cast<u32*>(value)[order[i]] = load_word(offset / 4 + order[i]);
  }
  if (poll) maybe_poll(offset / 16);
}

void Machine::store(void* place, const void* value, u32 size, bool at_once) {
  point();
  const u64 offset = offset_of(place);
  if (offset + size > given_->num_bytes || offset % size != 0) {
    fail("rank %u stores outside its memory", now_->rank);
    leave();
  }
  Flight flight{};
  flight.kind = Flight::kStore;
  flight.held = random_.one_in(hold_one_in_);
  flight.at_once = at_once;
  flight.line = offset / 16;
  flight.mask = static_cast<u16>(((1u << size) - 1) << offset % 16);
  flight.thread = now_->fiber.number;
  flight.block = now_->block;
  flight.generation = block().generation;
  flight.grid = now_->grid;
  flight.rank = now_->rank;
  flight.number = ++number_;
  std::memcpy(flight.bytes + offset % 16, value, size);
  for (u32 nibble = 0; nibble < 4; ++nibble) {
    if ((flight.mask >> nibble * 4 & 15) == 0) continue;
    Word& word = words_[flight.line * 4 + nibble];
    word.senders = (word.pending++ != 0 ? word.senders : 0) | 1u << flight.rank;
  }
  ++grids_[now_->grid].in_flight;
  now_->polls_elsewhere = 0;
  now_->poll_line = kNone;
  flights_.push_back(flight);
}

bool Machine::ordered_before(const Flight& one, const Flight& other) const {
  if (one.number >= other.number || one.block != other.block) return false;
  return one.thread == other.thread || one.generation < other.generation;
}

void Machine::apply(u32 word, u32 value, u32 rank) {
  Word& here = words_[word];
  u32& memory = reinterpret_cast<u32*>(given_->memory)[word];
  if (here.owner == kForbidden) fail("rank %u writes where nobody may", rank);
  if (here.owner < kFaultRecord) {
    if (rank != here.owner && memory != kEmpty) {
      fail("rank %u overwrites a word of rank %u before it is put back", rank, here.owner);
    }
    if (rank == here.owner && (value != kEmpty || memory == kEmpty)) {
      fail("rank %u puts back a word that has not come", rank);
    }
  }
  if (here.owner == kFaultRecord && word % 4 == 0 && (&memory)[1] == 0) {
    fail("the host of rank %u hears of a fault before it can read it", rank);
  }
  here.before = memory;
  memory = value;
  here.changed = ++clock_;
  ++result_->deliveries;
  const u32 line = word / 4;
  ++versions_[line];
  for (u32 node = watchers_[line]; node != kNone; node = nodes_[node].next) {
    Thread& thread = *threads_[nodes_[node].thread];
    if (thread.state == State::kPolls && thread.stamp == nodes_[node].stamp) {
      ready(nodes_[node].thread);
    }
  }
  watchers_[line] = kNone;
}

void Machine::deliver_word(u32 at, u32 nibble) {
  const u32 word = flights_[at].line * 4 + nibble;
  if (words_[word].pending > 1) {
    for (u32 i = 0; i < flights_.size(); ++i) {
      const Flight& other = flights_[i];
      if (other.kind == Flight::kStore && other.line == flights_[at].line &&
          (other.mask >> nibble * 4 & 15) && ordered_before(other, flights_[at])) {
        deliver_word(i, nibble);  // coherence: stores of a thread to a word stay in order
        emptied_ |= flights_[i].mask == 0;
        i = kNone;
        if (words_[word].pending == 1) break;
      }
    }
  }
  Flight& flight = flights_[at];
  apply(word, merged(reinterpret_cast<u32*>(given_->memory)[word], flight, nibble), flight.rank);
  flight.mask &= ~(15u << nibble * 4);
  --words_[word].pending;
}

void Machine::remove(u32 at) {
  const u32 grid = flights_[at].grid;
  const bool put = flights_[at].kind == Flight::kPut;
  flights_[at] = flights_.back();
  flights_.pop_back();
  if (put) return;
  if (--grids_[grid].in_flight == 0) check_grid(grid);
}

void Machine::deliver(u32 at, u32 words) {
  for (u32 nibble = 0; nibble < 4; ++nibble) {
    if ((words >> nibble & 1) && (flights_[at].mask >> nibble * 4 & 15)) deliver_word(at, nibble);
  }
}

void Machine::deliver_any() {
  u32 at = random_.below(flights_.size());
  for (u32 i = 0; i < 4 && flights_[at].held && !random_.one_in(16); ++i) {
    at = random_.below(flights_.size());
  }
  if (flights_[at].kind == Flight::kAsync) return deliver_async(at);
  if (flights_[at].kind == Flight::kPut) return deliver_put(at);
  deliver(at, flights_[at].at_once || random_.one_in(2) ? 15 : 1 + random_.below(15));
  if (!emptied_) {
    if (flights_[at].mask == 0) remove(at);
    return;
  }
  emptied_ = false;
  for (u32 i = flights_.size(); i-- > 0;) {
    if (flights_[i].kind == Flight::kStore && flights_[i].mask == 0) remove(i);
  }
}

void Machine::fence() {
  point();
  const Block& mine = block();
  for (u32 i = 0; i < flights_.size();) {
    const Flight& flight = flights_[i];
    const bool ours = flight.thread == now_->fiber.number || flight.generation < mine.generation;
    if (flight.kind == Flight::kStore && flight.block == now_->block && ours) deliver(i, 15);
    if (flights_[i].kind == Flight::kStore && flights_[i].mask == 0) {
      remove(i);
      i = 0;
    } else {
      ++i;
    }
  }
  now_->floor = clock_;
}

u32 Machine::exchange(u32* place, u32 value, bool compare, u32 expected) {
  point();
  const u32 word = offset_of(place) / 4;
  const u32 old = *place;
  if (!compare || old == expected) apply(word, value, now_->rank);
  return old;
}

u32 Machine::acquire_flag(const u8* flag) {
  point();
  const u64 offset = offset_of(flag);
  const u32 word = load_word(offset / 4);
  const u32 latest = reinterpret_cast<const u32*>(given_->memory)[offset / 4];
  // What was there before the word changed was seen with all that was stored before that.
  const u32 time = word == latest ? clock_ : words_[offset / 4].changed - 1;
  if (time > now_->floor) now_->floor = time;
  maybe_poll(offset / 16);
  return reinterpret_cast<const u8*>(&word)[offset % 4];
}

void Machine::put(void* target, const void* source, u64 size, u32 pe) {
  point();
  Flight flight{};
  flight.kind = Flight::kPut;
  flight.held = random_.one_in(hold_one_in_);
  flight.thread = now_->fiber.number;
  flight.block = now_->block;
  flight.grid = now_->grid;
  flight.rank = now_->rank;
  flight.number = ++number_;
  flight.target = offset_of(target) + (pe - u64{now_->rank}) * given_->heap_bytes;
  flight.source = offset_of(source);
  flight.size = size;  // the end of the kernel does not wait for it
  flights_.push_back(flight);
}

// Some of the words of a put: they are read from the source only now.
void Machine::deliver_put(u32 at) {
  Flight& flight = flights_[at];
  const u32 words = flight.size / 4, count = 1 + random_.below(words);
  for (u32 i = 0; i < count; ++i) {  // from either end, so that the rest stays one range
    const bool front = random_.one_in(2);
    const u64 offset = front ? 0 : flight.size - 4;
    const u32 value = *reinterpret_cast<const u32*>(given_->memory + flight.source + offset);
    apply((flight.target + offset) / 4, value, flight.rank);
    flight.size -= 4;
    if (front) flight.target += 4, flight.source += 4;
  }
  if (flight.size == 0) remove(at);
}

// ---- threads that wait ----------------------------------------------------------------------------

void Machine::ready(u32 number) {
  Thread& thread = *threads_[number];
  thread.state = State::kReady;
  thread.in_list = ready_.size();
  ready_.push_back(number);
}

void Machine::not_ready(Thread& thread, State state) {
  thread.state = state;
  const u32 last = ready_.back();
  ready_[thread.in_list] = last;
  threads_[last]->in_list = thread.in_list;
  ready_.pop_back();
}

// A thread that looks twice at a line in which nothing has changed rests until something does.
void Machine::maybe_poll(u32 line) {
  Thread& thread = *now_;
  if (thread.poll_line != line) {
    if (thread.poll_line == kNone || ++thread.polls_elsewhere > 8) {
      thread.poll_line = line;
      thread.poll_version = versions_[line];
      thread.polls_elsewhere = 0;
    }
    return;
  }
  thread.polls_elsewhere = 0;
  if (thread.poll_version != versions_[line]) {
    thread.poll_version = versions_[line];
    return;
  }
  thread.poll_line = kNone;
  nodes_.push_back({thread.fiber.number, ++thread.stamp, watchers_[line]});
  watchers_[line] = nodes_.size() - 1;
  // What was read may be old: then what it waits for has come already, and nothing wakes it.
  for (u32 i = 0; i < 4; ++i) {
    if (words_[line * 4 + i].changed > thread.floor) {
      const Seen& seen = thread.seen[(line * 4 + i) % kSeen];
      if (seen.word != line * 4 + i || seen.time < words_[line * 4 + i].changed) return;
    }
  }
  not_ready(thread, State::kPolls);
  leave();
}

void Machine::wake_polling() {
  for (u32 i = 0; i < threads_.size(); ++i) {
    if (threads_[i]->state == State::kPolls) ready(i);
  }
}

void Machine::wake_polling_of(const Block& block) {
  for (u32 number : block.threads) {
    if (threads_[number]->state == State::kPolls) ready(number);
  }
}

void Machine::close_meeting(Block& block) {
  block.arrived = 0;
  ++block.generation;
  u32 floor = 0;
  for (u32 number : block.threads) {
    if (threads_[number]->state == State::kMeets && threads_[number]->floor > floor) {
      floor = threads_[number]->floor;
    }
  }
  const u32 result = block.meeting == kSyncCount ? block.count : block.any;
  for (u32 number : block.threads) {
    Thread& thread = *threads_[number];
    if (thread.state != State::kMeets) continue;
    thread.floor = floor;
    thread.met = result;
    ready(number);
  }
  block.any = block.count = 0;
}

u32 Machine::meet_block(Meeting meeting, bool predicate) {
  point();
  Block& mine = block();
  if (mine.arrived != 0 && mine.meeting != meeting) {
    fail("threads of block %u of rank %u meet at two different barriers", mine.x, mine.rank);
    leave();
  }
  mine.meeting = meeting;
  mine.any |= predicate;
  mine.count += predicate;
  not_ready(*now_, State::kMeets);
  if (++mine.arrived == mine.live) close_meeting(mine);
  leave();
  return now_->met;
}

// All 32 lanes; the value of the lane whose number differs by `lane_mask`.
u32 Machine::meet_warp(u32 value, u32 lane_mask) {
  Block& mine = block();
  const u32 thread = now_->place.thread.x, warp = thread / 32;
  const u32 lanes = now_->place.block_size.x - warp * 32 < 32 ? now_->place.block_size.x - warp * 32 : 32;
  mine.warp_value[thread] = value;
  if (++mine.warp_arrived[warp] < lanes) {
    not_ready(*now_, State::kMeets);
    leave();
    return now_->met;
  }
  mine.warp_arrived[warp] = 0;
  for (u32 lane = 0; lane < lanes; ++lane) {
    const u32 number = mine.threads[warp * 32 + lane];
    threads_[number]->met = mine.warp_value[warp * 32 + (lane ^ lane_mask)];
    if (&*threads_[number] != now_) ready(number);
  }
  return now_->met;
}

void Machine::meet_cluster() {
  point();
  Cluster& cluster = clusters_[block().cluster];
  not_ready(*now_, State::kMeets);
  if (++cluster.arrived == cluster.total) {
    cluster.arrived = 0;
    for (u32 number : cluster.blocks) {
      for (u32 thread : blocks_[number].threads) ready(thread);
    }
  }
  leave();
}

// ---- shared memory ----------------------------------------------------------------------------------

void Machine::shared(u32 offset, void* value, u32 size, bool write) {
  point();
  u8* place = block().shared + offset;
  std::memcpy(write ? static_cast<void*>(place) : value, write ? value : static_cast<void*>(place), size);
}

Barrier& Machine::barrier_at(u32 address) {
  Block& target = blocks_[clusters_[block().cluster].blocks[address >> 16]];
  for (Barrier& barrier : target.barriers) {
    if (barrier.offset == (address & 0xFFFF)) return barrier;
  }
  target.barriers.push_back({address & 0xFFFF, 1, 0, 0});
  return target.barriers.back();
}

void Machine::barrier_init(u32 address) {
  point();
  barrier_at(address) = {address & 0xFFFF, 1, 0, 0};
}

bool settle(Barrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return false;
  barrier.pending = 1;
  ++barrier.phase;
  return true;
}

void Machine::barrier_expect(u32 address, u32 num_bytes) {
  point();
  Barrier& barrier = barrier_at(address);
  if (barrier.pending == 0) fail("more threads arrive at a barrier than it has room for");
  barrier.bytes += num_bytes;
  --barrier.pending;
  if (settle(barrier)) wake_polling_of(block());
}

void Machine::store_async(u32 place, u32 value, u32 barrier) {
  point();
  Flight flight{};
  flight.kind = Flight::kAsync;
  flight.held = random_.one_in(hold_one_in_);
  flight.block = now_->block;
  flight.grid = now_->grid;
  flight.rank = now_->rank;
  flight.target_block = clusters_[block().cluster].blocks[place >> 16];
  flight.offset = place & 0xFFFF;
  flight.barrier = barrier;
  std::memcpy(flight.bytes, &value, 4);
  ++grids_[now_->grid].in_flight;
  flights_.push_back(flight);
}

void Machine::deliver_async(u32 at) {
  const Flight flight = flights_[at];
  Block& target = blocks_[flight.target_block];
  if (target.live == 0) fail("a store into a block of rank %u that has ended", flight.rank);
  std::memcpy(target.shared + flight.offset, flight.bytes, 4);
  for (Barrier& barrier : target.barriers) {
    if (barrier.offset != (flight.barrier & 0xFFFF)) continue;
    barrier.bytes -= 4;
    if (settle(barrier)) wake_polling_of(target);
  }
  remove(at);
}

bool Machine::barrier_passed(u32 address, u32 parity) {
  point();
  Barrier& barrier = barrier_at(address);
  if ((barrier.phase & 1) != parity) return true;
  if (random_.one_in(2)) return false;
  ++now_->stamp;
  not_ready(*now_, State::kPolls);
  leave();
  return (barrier_at(address).phase & 1) != parity;
}

// ---- launches ---------------------------------------------------------------------------------------

bool Machine::grid_before_complete(const Grid& grid) const {
  return grid.number == 0 || grids_[grids_of_[grid.rank][grid.number - 1]].complete;
}

void Machine::wait_for_grid_before() {
  point();
  if (!grid_before_complete(grids_[now_->grid])) {
    not_ready(*now_, State::kWaitsForGrid);
    leave();
  }
  now_->floor = clock_;
}

void Machine::let_next_grid_start() {
  point();
  if (block().triggered) return;
  block().triggered = true;
  ++grids_[now_->grid].triggered;
}

void Machine::check_grid(u32 number) {
  Grid& grid = grids_[number];
  const u32 blocks = grid.launch->blocks_x * grid.launch->blocks_y;
  if (grid.complete || grid.ended != blocks || grid.in_flight != 0) return;
  grid.complete = true;
  if (grid.number + 1 == grids_of_[grid.rank].size()) return;
  const u32 next = grids_of_[grid.rank][grid.number + 1];
  for (u32 i = 0; i < threads_.size(); ++i) {
    if (threads_[i]->state == State::kWaitsForGrid && threads_[i]->grid == next) ready(i);
  }
}

void Machine::enter_fiber() {
  Machine& self = machine();
  self.grids_[self.now_->grid].launch->kernel(
      const_cast<void**>(self.grids_[self.now_->grid].launch->arguments));
  self.end_thread();
}

void Machine::end_thread() {
  Block& mine = block();
  Grid& grid = grids_[now_->grid];
  not_ready(*now_, State::kDone);
  free_.push_back(now_->fiber.number);
  --mine.live;
  if (mine.live != 0 && mine.arrived == mine.live) close_meeting(mine);
  if (mine.live == 0) {
    if (!mine.triggered) ++grid.triggered;
    mine.triggered = true;
    ++grid.ended;
    --resident_[grid.rank];
    check_grid(now_->grid);
  }
  leave();
}

void Machine::open_block(u32 number, u32 x, u32 y, u32 cluster) {
  if (num_blocks_ == blocks_.size()) blocks_.emplace_back();
  const u32 at = num_blocks_++;
  Block& fresh = blocks_[at];
  const Grid& grid = grids_[number];
  const Launch& launch = *grid.launch;
  fresh.grid = number, fresh.x = x, fresh.y = y, fresh.rank = grid.rank, fresh.cluster = cluster;
  fresh.live = launch.threads;
  fresh.arrived = fresh.generation = fresh.any = fresh.count = 0;
  fresh.triggered = false;
  std::memset(fresh.warp_arrived, 0, sizeof fresh.warp_arrived);
  fresh.warp_value.assign((launch.threads + 31) / 32 * 32, 0);
  std::memset(fresh.shared, 0xA5, sizeof fresh.shared);
  fresh.barriers.clear();
  fresh.threads.clear();
  clusters_[cluster].blocks.push_back(at);
  clusters_[cluster].total += launch.threads;
  for (u32 t = 0; t < launch.threads; ++t) {
    if (free_.empty()) {
      threads_.push_back(std::make_unique<Thread>());
      stacks_.push_back(std::make_unique<u8[]>(kStackBytes));
      threads_.back()->fiber.number = threads_.size() - 1;
      free_.push_back(threads_.size() - 1);
    }
    const u32 slot = free_.back();
    free_.pop_back();
    Thread& thread = *threads_[slot];
    prepare_fiber(thread.fiber, stacks_[slot].get(), &Machine::enter_fiber);
    thread.place = {{t, 0, 0}, {x, y, 0}, {launch.threads, 1, 1}, {launch.blocks_x, launch.blocks_y, 1}};
    thread.rank = grid.rank, thread.grid = number, thread.block = at;
    thread.floor = clock_;
    thread.poll_line = kNone;
    thread.polls_elsewhere = 0;
    for (Seen& seen : thread.seen) seen = Seen{};
    fresh.threads.push_back(slot);
    ready(slot);
  }
  ++resident_[grid.rank];
}

// Blocks start in the order of their numbers, those of a cluster together, when there is room.
bool Machine::open_blocks_of(u32 rank) {
  if (dead_[rank]) return false;
  for (u32 number : grids_of_[rank]) {
    Grid& grid = grids_[number];
    const Launch& launch = *grid.launch;
    const u32 blocks = launch.blocks_x * launch.blocks_y;
    if (grid.started == blocks) continue;
    if (grid.number != 0) {
      const Grid& before = grids_[grids_of_[rank][grid.number - 1]];
      const u32 all = before.launch->blocks_x * before.launch->blocks_y;
      if (!(before.complete || (given_->overlap && before.triggered == all))) return false;
    }
    const u32 together = launch.cluster ? launch.blocks_x : 1;
    if (resident_[rank] != 0 && resident_[rank] + together > given_->streams[rank].room) return false;
    clusters_.emplace_back();
    for (u32 i = 0; i < together; ++i, ++grid.started) {
      open_block(number, grid.started % launch.blocks_x, grid.started / launch.blocks_x, clusters_.size() - 1);
    }
    return true;
  }
  return false;
}

bool Machine::open_blocks() {
  const u32 first = random_.below(given_->num_ranks);
  for (u32 i = 0; i < given_->num_ranks; ++i) {
    if (open_blocks_of((first + i) % given_->num_ranks)) return true;
  }
  return false;
}

// ---- the adversary ------------------------------------------------------------------------------------

void Machine::lose(u32 rank) {
  dead_[rank] = true;
  alone_ = random_.one_in(2);  // its processes end with it, or later
  result_->lost = 1;
  for (u32 i = flights_.size(); i-- > 0;) {  // what it had sent arrives or not
    if (flights_[i].rank != rank || !random_.one_in(2)) continue;
    for (u32 nibble = 0; nibble < 4; ++nibble) {
      if (flights_[i].mask >> nibble * 4 & 15) --words_[flights_[i].line * 4 + nibble].pending;
    }
    remove(i);
  }
}

void Machine::new_phase() {
  static constexpr u32 kBias[] = {4, 26, 90, 128, 200, 250};
  static constexpr u32 kRun[] = {1, 1, 4, 16, 64, 400};
  static constexpr u32 kHold[] = {1, 2, 5, 20, 1000000};
  static constexpr u32 kStale[] = {2, 3, 8, 1000000};
  deliver_bias_ = kBias[random_.below(6)];
  longest_run_ = kRun[random_.below(6)];
  hold_one_in_ = kHold[random_.below(5)];
  outside_one_in_ = given_->num_outside != 0 ? 2 << random_.below(7) : 0;
  stale_one_in_ = kStale[random_.below(4)];
  favoured_ = random_.one_in(2) ? random_.below(given_->num_ranks) : kNone;
  slow_ = random_.one_in(2) ? random_.below(given_->num_ranks) : kNone;
  phase_left_ = 20 + random_.below(600);
  if (random_.one_in(4)) wake_polling();
  if (given_->clock == 2 && random_.one_in(6)) {
    now_ns_ += given_->timeout_ns / 4 + random_.next() % given_->timeout_ns;
    wake_polling();
  }
}

void Machine::run_thread() {
  u32 number = ready_[random_.below(ready_.size())];
  for (u32 i = 0; i < 6; ++i) {
    const u32 rank = threads_[number]->rank;
    if (favoured_ != kNone ? rank == favoured_ : rank != slow_) break;
    number = ready_[random_.below(ready_.size())];
  }
  Thread& thread = *threads_[number];
  if (dead_[thread.rank]) return not_ready(thread, State::kDone);
  thread.budget = 1 + (longest_run_ > 1 ? random_.below(longest_run_) : 0);
  now_ = &thread;
  machine_place = &thread.place;
  ++result_->steps;
  switch_fiber(main_, thread.fiber);
}

bool Machine::all_done() const {
  for (u32 rank = 0; rank < given_->num_ranks; ++rank) {
    if (dead_[rank] || grids_of_[rank].empty()) continue;
    if (!grids_[grids_of_[rank].back()].complete) return false;
  }
  return true;
}

void Machine::notice(u64 begin, u64 end) {
  for (u64 word = begin / 4; word < end / 4; ++word) {
    const u32 value = reinterpret_cast<const u32*>(given_->memory)[word];
    if (value == shadow_[word]) continue;
    reinterpret_cast<u32*>(given_->memory)[word] = shadow_[word];
    apply(word, value, kNone);
  }
}

u32 Machine::step_outside(u32 which) {
  const Outside& outside = given_->outside[which];
  if (dead_[outside.rank] && alone_) return 0;
  std::memcpy(shadow_.data() + outside.begin / 4, given_->memory + outside.begin, outside.end - outside.begin);
  const u32 moved = outside.step(which);
  notice(outside.begin, outside.end);
  return moved;
}

// Nothing can go on: look again, then let time pass.
bool Machine::stuck() {
  if (clock_ != clock_when_stuck_) {
    clock_when_stuck_ = clock_;
    stuck_ = 0;
    wake_polling();
    return true;
  }
  if (++stuck_ > kMaxStuck) {
    fail("the clock has run and still nobody can go on");
    return false;
  }
  if (given_->clock == 0 && stuck_ > 8) {
    u32 polling = 0, meeting = 0, rank = kNone;
    for (const auto& thread : threads_) {
      polling += thread->state == State::kPolls;
      meeting += thread->state == State::kMeets;
      if (thread->state == State::kPolls) rank = thread->rank;
    }
    fail("nobody can go on: %u threads poll (one of rank %d), %u are at a barrier", polling,
         static_cast<int>(rank), meeting);
    return false;
  }
  if (given_->clock != 0) {
    now_ns_ += given_->timeout_ns / 64;
    for (const auto& thread : threads_) thread->floor = clock_;  // nothing stays unseen so long
  }
  wake_polling();
  return true;
}

void Machine::loop() {
  while (!failed_ && !(all_done() && flights_.empty())) {
    if (phase_left_-- == 0) new_phase();
    if (given_->num_outside != 0 && random_.one_in(outside_one_in_)) step_outside(random_.below(given_->num_outside));
    if (ready_.empty() || random_.one_in(16)) {
      if (open_blocks()) continue;
    }
    if (!ready_.empty() && (flights_.empty() || random_.below(256) >= deliver_bias_)) {
      run_thread();
      continue;
    }
    if (!flights_.empty()) {
      deliver_any();
      continue;
    }
    bool moved = false;
    const u32 first = given_->num_outside != 0 ? random_.below(given_->num_outside) : 0;
    for (u32 i = 0; i < given_->num_outside && !moved; ++i) {
      moved = step_outside((first + i) % given_->num_outside) != 0;
    }
    if (!moved && !stuck()) return;
  }
}

void Machine::run(const Case& given, Outcome& result) {
  given_ = &given;
  result_ = &result;
  random_.state = given.seed * 0x9E3779B97F4A7C15u + 0x1234567;
  for (u32 i = 0; i < 8; ++i) random_.next();
  failed_ = false;
  clock_ = 1;
  now_ns_ = 1000;
  lost_after_ = given.lost_rank < given.num_ranks ? given.lost_after : 0;
  number_ = 0;
  stuck_ = clock_when_stuck_ = 0;
  ready_.clear();
  free_.clear();
  for (u32 i = threads_.size(); i-- > 0;) {
    threads_[i]->state = State::kDone;
    free_.push_back(i);
  }
  num_blocks_ = 0;
  clusters_.clear();
  grids_.clear();
  flights_.clear();
  nodes_.clear();
  const u32 ranks = given.num_ranks;
  grids_of_.assign(ranks, {});
  resident_.assign(ranks, 0);
  ops_.assign(ranks, 0);
  dead_.assign(ranks, false);
  words_.assign(given.num_bytes / 4, Word{0, 0, kNone, 0, 0});
  versions_.assign(given.num_bytes / 16, 0);
  watchers_.assign(given.num_bytes / 16, kNone);
  shadow_.resize(given.num_bytes / 4);
  for (u32 i = 0; i < given.num_regions; ++i) {
    const Region& region = given.regions[i];
    for (u64 word = region.begin / 4; word < region.end / 4; ++word) words_[word].owner = region.owner;
  }
  for (u32 rank = 0; rank < ranks; ++rank) {
    for (u32 i = 0; i < given.streams[rank].num_launches; ++i) {
      grids_of_[rank].push_back(grids_.size());
      grids_.push_back(Grid{rank, i, 0, 0, 0, 0, 0, false, given.streams[rank].launches + i});
    }
  }
  new_phase();
  loop();
}

}  // namespace

Place* machine_place;

void machine_load(const void* place, void* value, u32 size, bool poll) {
  machine().load(place, value, size, poll);
}
void machine_store(void* place, const void* value, u32 size, bool at_once) {
  machine().store(place, value, size, at_once);
}
u32 machine_exchange(u32* place, u32 value, bool compare, u32 expected) {
  return machine().exchange(place, value, compare, expected);
}
void machine_acquire() { machine().acquire(); }
void machine_fence() { machine().fence(); }
u32 machine_acquire_flag(const u8* flag) { return machine().acquire_flag(flag); }
u32 machine_meet_block(Meeting meeting, bool predicate) {
  return machine().meet_block(meeting, predicate);
}
u32 machine_meet_warp(u32 value, u32 lane_mask) { return machine().meet_warp(value, lane_mask); }
void machine_meet_cluster() { machine().meet_cluster(); }
void machine_shared(u32 offset, void* value, u32 size, bool store) {
  machine().shared(offset, value, size, store);
}
u32 machine_block_of_cluster() { return machine().block_of_cluster(); }
void machine_barrier_init(u32 barrier) { machine().barrier_init(barrier); }
void machine_barrier_expect(u32 barrier, u32 num_bytes) {
  machine().barrier_expect(barrier, num_bytes);
}
void machine_store_async(u32 place, u32 value, u32 barrier) {
  machine().store_async(place, value, barrier);
}
bool machine_barrier_passed(u32 barrier, u32 parity) {
  return machine().barrier_passed(barrier, parity);
}
void machine_wait_for_grid_before() { machine().wait_for_grid_before(); }
void machine_let_next_grid_start() { machine().let_next_grid_start(); }
u64 machine_nanoseconds() { return machine().nanoseconds(); }
void machine_put(void* target, const void* source, u64 size, u32 pe) {
  machine().put(target, source, size, pe);
}

extern "C" __attribute__((visibility("default"))) void run_case(const Case* given, Outcome* outcome) {
  static std::vector<u8> before, after;
  before.assign(given->memory, given->memory + given->num_bytes);
  *outcome = Outcome{};
  for (u32 i = 0; i < given->schedules && !outcome->failed; ++i) {
    Case one = *given;
    one.seed += static_cast<u64>(i) << 40;
    if (i != 0) std::memcpy(given->memory, before.data(), given->num_bytes);
    machine().run(one, *outcome);
    if (i == 0) after.assign(given->memory, given->memory + given->num_bytes);
    if (outcome->failed || std::memcmp(given->memory, after.data(), given->num_bytes) == 0) continue;
    outcome->failed = 1;
    snprintf(outcome->message, sizeof outcome->message, "schedule %u ends otherwise than the first", i);
  }
}
