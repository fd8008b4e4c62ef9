// Twins of kernels/hopper.cuh, after the PTX ISA: mbarrier, bulk copies, fence.proxy.async, wgmma and its descriptors.
//
// Threads write shared memory through the generic proxy, wgmma reads it through the asynchronous one. That one has its
// own copy of shared memory here. It gets what a thread wrote (store_operand, copy_async) when that thread fences, what
// bulk copies bring, and nothing else: what no fence made visible is NaN, or what lay there before.
//
// Multiplication is as late, and as early, as a GPU may be: operands are read when all threads of the warpgroup have
// come, and again when the first and the last has waited for them, and must be the same. Accumulators are NaN between.
#pragma once
#include <deque>
#include <memory>

#include "ptx_cpu.hpp"

namespace cuda_cpu {

constexpr int WARPGROUP = 128, M = 64, K = 16;  // threads; rows of a and depth of one instruction
constexpr int A_WHILE = 8;                      // turns of other threads while products are waited for

// Addresses of shared memory count from the room's beginning, which 1024 divides.
inline uint32_t shared_address(const void* pointer) {
  const int64_t address = (const char*)pointer - shared_room;
  if ((const unsigned char*)pointer < block.dynamic_shared || address >= (int64_t)SHARED_ROOM)
    fail("an address outside dynamic shared memory");
  return (uint32_t)address;
}

// ---- mbarrier -------------------------------------------------------------------------------------------------------

struct Phases {  // what an mbarrier's 8 bytes are
  uint64_t mark : 16, expected : 12, pending : 12, phase : 1;
  int64_t bytes : 23;  // that bulk copies are to bring before the phase ends
  static constexpr uint64_t MARK = 0x6d62, MOST = (1 << 12) - 1;
};
static_assert(sizeof(Phases) == 8);

inline Phases* phases_of(uint64_t* barrier, const char* what) {
  Phases* found = (Phases*)barrier;
  if (shared_address(barrier) % 8 || found->mark != Phases::MARK) fail("%s of what is no mbarrier", what);
  return found;
}

inline void end_phase(Phases* of) {
  if (of->pending || of->bytes) return;
  of->pending = of->expected;
  of->phase ^= 1;
}

inline void arrive(uint64_t* barrier, int bytes = 0) {
  Phases* of = phases_of(barrier, "barrier_arrive");
  if (!of->pending) fail("barrier_arrive more often than the barrier expects");
  of->bytes += bytes;
  of->pending--;
  end_phase(of);
}

inline void wait_for_phase(uint64_t* barrier, unsigned phase, const char* where) {
  // The phase that goes on has the other parity. The one before the first counts as over.
  const auto is_over = [](const void* of, unsigned parity) { return ((const Phases*)of)->phase != parity; };
  wait_until(is_over, phases_of(barrier, "barrier_wait"), phase & 1, where);
}

// ---- the block's state, anew for each -------------------------------------------------------------------------------

// What tells one kind of wgmma from another: its columns, whether b's lie side by side, what elements are.
struct Kind {
  int columns;
  bool is_transposed;
  float (*value)(uint16_t bits);
  bool operator==(const Kind& other) const {
    return columns == other.columns && is_transposed == other.is_transposed && value == other.value;
  }
};

template <class T> float value_of(uint16_t bits) { return (float)cuda_cpu_bits<T>(bits); }

// A wgmma of a warpgroup.
struct Multiplication {
  uint64_t a, b;
  Kind kind;
  unsigned arrived = 0, left = 0;  // threads that came to it, and that have its result
  std::vector<uint16_t> operands;  // a [64, 16], then b [columns, 16]
  std::vector<float> values;
};

struct Accumulator {
  float* registers;
  int columns, pending;
  std::vector<float> values;
};

struct Thread {
  struct Begun {
    size_t number;
    float* registers;
    int group;
  };
  std::deque<Begun> begun;
  std::vector<Accumulator> accumulators;  // in the hands of tensor cores
  size_t issued = 0;
  int groups = 0;
  bool is_fenced = false;
};

struct Hopper {
  uint64_t serial = 0;  // of the block that all this is about
  std::vector<unsigned char> seen;  // shared memory as the asynchronous proxy sees it
  std::vector<Thread> threads;
  std::vector<std::deque<std::unique_ptr<Multiplication>>> warpgroups;
  struct Meeting {
    unsigned arrived, over;
  } meetings[16];
};

inline Hopper& hopper() {
  static Hopper state;
  if (state.serial != block.serial) {
    state.serial = block.serial;
    state.seen.assign(SHARED_ROOM, 0xFF);
    state.threads.assign(block.fibers.size(), Thread{});
    state.warpgroups.clear();
    state.warpgroups.resize((block.fibers.size() + WARPGROUP - 1) / WARPGROUP);
    memset(state.meetings, 0, sizeof state.meetings);
  }
  return state;
}

inline Thread& this_thread() { return hopper().threads[block.current->number]; }

// bar.sync of so many threads, whichever come.
inline void meet(int id, unsigned count, const char* where) {
  Hopper::Meeting& meeting = hopper().meetings[id];
  const unsigned before = meeting.over;
  if (++meeting.arrived == count) {
    meeting.arrived = 0;
    meeting.over++;
    return;
  }
  const auto is_over = [](const void* over, unsigned before) { return *(const unsigned*)over != before; };
  wait_until(is_over, &meeting.over, before, where);
}

inline void fence_writes() {
  Hopper& state = hopper();
  for (const Written& each : block.current->written)
    memcpy(&state.seen[shared_address(each.shared)], each.shared, each.bytes);
  block.current->written.clear();
}

// ---- bulk copies ----------------------------------------------------------------------------------------------------

inline void land(const BulkCopy& copy) {
  memcpy(copy.shared, copy.global, copy.bytes);
  memcpy(&hopper().seen[shared_address(copy.shared)], copy.shared, copy.bytes);
  Phases* of = (Phases*)copy.barrier;
  of->bytes -= copy.bytes;
  end_phase(of);
}

// Nothing is where bytes will be until they land.
inline void begin_bulk_copy(void* shared, const void* global, int bytes, uint64_t* barrier) {
  phases_of(barrier, "copy_bulk");
  Hopper& state = hopper();
  const uint32_t to = shared_address(shared), end = to + (uint32_t)bytes;
  if (((const Phases*)&state.seen[shared_address(barrier)])->mark != Phases::MARK)
    fail("copy_bulk with a barrier that nobody fenced (fence_operands) since barrier_init");
  if (to % 16 || (uintptr_t)global % 16 || bytes <= 0 || bytes % 16)
    fail("copy_bulk of %d bytes from %p to %u: 16 must divide all of these", bytes, global, to);
  if (end > SHARED_ROOM) fail("copy_bulk of %d bytes to %u, past the end of shared memory", bytes, to);
  memset(shared, 0xFF, bytes);
  memset(&state.seen[to], 0xFF, bytes);
  block.bulk_copies.push_back({shared, global, bytes, barrier});
  block.land = land;
}

// ---- wgmma ----------------------------------------------------------------------------------------------------------

// A descriptor: bits 0-13 the start address, 16-29 and 32-45 the byte offsets of the leading and the stride dimension,
// all of them divided by 16; 49-51 the base offset, 62-63 the swizzle mode. With 128-byte swizzle eight rows of 128
// bytes make a pattern of 1024, at a multiple of 1024; patterns lie the stride apart. Address bits 4-6 are changed by
// bits 7-9.
struct Descriptor {
  uint64_t bits;
  uint32_t start, leading, stride;

  explicit Descriptor(uint64_t bits)
      : bits(bits), start((uint32_t)(bits & 0x3fff) << 4), leading((uint32_t)(bits >> 16 & 0x3fff) << 4),
        stride((uint32_t)(bits >> 32 & 0x3fff) << 4) {
    const int mode = (int)(bits >> 62);
    if (bits & 0x3ff1c000c000c000) fail("descriptor %016llx has bits that mean nothing", (long long)bits);
    if (mode != 1) fail("descriptor %016llx: the shim knows 128-byte swizzle (1), not %d", (long long)bits, mode);
    if ((bits >> 49 & 7) || (start >> 7 & 7) || stride % 1024)
      fail("descriptor %016llx: patterns of 128-byte swizzle begin at multiples of 1024", (long long)bits);
  }

  // Eight elements, of which the address is this before it is swizzled.
  const unsigned char* eight(uint32_t plain) const {
    const uint32_t at = plain ^ (plain >> 7 & 7) << 4;
    if (at < shared_address(block.dynamic_shared) || at + 16 > SHARED_ROOM)
      fail("descriptor %016llx: what it tells of lies outside shared memory", (long long)bits);
    return &hopper().seen[at];
  }
};

// Reads rows of 16 elements, K-major. The leading offset counts for nothing.
inline void read_operand(const Descriptor& of, int rows, uint16_t* to) {
  if (of.start % 128 + 2 * K > 128) fail("descriptor %016llx: rows have 128 bytes", (long long)of.bits);
  for (int row = 0; row < rows; row++)
    for (int half = 0; half < 2; half++)
      memcpy(to + row * K + half * 8, of.eight(of.start + row / 8 * of.stride + row % 8 * 128 + half * 16), 16);
}

// Reads 16 rows of elements that belong side by side in as many columns, 64 of them in a pattern; patterns with further
// columns lie the leading offset apart.
inline void read_transposed(const Descriptor& of, int columns, uint16_t* to) {
  if (of.start % 1024 || of.leading % 1024)
    fail("descriptor %016llx: patterns of 128-byte swizzle begin at multiples of 1024", (long long)of.bits);
  for (int k = 0; k < K; k++)
    for (int column = 0; column < columns; column += 8) {
      uint16_t eight[8];
      const uint32_t pattern = of.start + column / 64 * of.leading + k / 8 * of.stride;
      memcpy(eight, of.eight(pattern + k % 8 * 128 + column % 64 * 2), 16);
      for (int i = 0; i < 8; i++) to[(column + i) * K + k] = eight[i];
    }
}

inline std::vector<uint16_t> read_operands(const Multiplication& of) {
  std::vector<uint16_t> found((M + of.kind.columns) * K);
  read_operand(Descriptor(of.a), M, found.data());
  (of.kind.is_transposed ? read_transposed : read_operand)(Descriptor(of.b), of.kind.columns, found.data() + M * K);
  return found;
}

// Takes accumulators out of the thread's hands.
inline void lend(float* registers, int columns) {
  Thread& me = this_thread();
  for (auto& each : me.accumulators)
    if (each.registers == registers) {
      if (each.columns != columns) fail("wgmma of another shape on accumulators that are in use");
      each.pending++;
      return;
    }
  if (!me.is_fenced) fail("wgmma on registers that the thread had, without wgmma_fence");
  me.accumulators.push_back({registers, columns, 1, std::vector<float>(registers, registers + columns / 2)});
  std::fill(registers, registers + columns / 2, NAN);
}

inline void begin_wgmma(float* registers, const Kind& kind, uint64_t a, uint64_t b, const char* where) {
  Hopper& state = hopper();
  Thread& me = this_thread();
  lend(registers, kind.columns);
  auto& all = state.warpgroups[block.current->number / WARPGROUP];
  const size_t number = me.issued++;
  me.begun.push_back({number, registers, me.groups});
  if (number == all.size()) {
    all.push_back(std::make_unique<Multiplication>());
    all[number]->a = a, all[number]->b = b, all[number]->kind = kind;
  }
  Multiplication& of = *all[number];
  if (of.a != a || of.b != b || !(of.kind == kind))
    fail("wgmma with other operands than other threads of its warpgroup");
  of.arrived++;
  wait_until([](const void* count, unsigned all) { return *(const unsigned*)count == all; }, &of.arrived, WARPGROUP,
             where);
  if (of.operands.empty()) of.operands = read_operands(of);
}

// Adds a product to what it was begun with: element i of a thread is row 16 · warp + lane / 4 + 8 · (i / 2 % 2), column
// 8 · (i / 4) + lane % 4 · 2 + i % 2.
inline void end_wgmma(const Thread::Begun& begun) {
  Multiplication& of = *hopper().warpgroups[block.current->number / WARPGROUP][begun.number];
  const bool is_first = of.values.empty(), is_last = ++of.left == WARPGROUP;
  if ((is_first || is_last) && of.operands != read_operands(of)) fail("operands of wgmma changed while it ran");
  if (is_first)
    for (uint16_t bits : of.operands) of.values.push_back(of.kind.value(bits));
  auto& lent = this_thread().accumulators;
  size_t at = 0;
  while (lent[at].registers != begun.registers) at++;
  const int thread = block.current->number % WARPGROUP;
  for (int i = 0; i < of.kind.columns / 2; i++) {
    const int row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + thread % 4 * 2 + i % 2;
    const float *a = &of.values[row * K], *b = &of.values[(M + column) * K];
    float sum = 0;
    for (int k = 0; k < K; k++) sum += a[k] * b[k];
    lent[at].values[i] += sum;
  }
  if (is_last) of = Multiplication{};
  if (--lent[at].pending) return;
  std::copy(lent[at].values.begin(), lent[at].values.end(), begun.registers);
  lent.erase(lent.begin() + at);
  this_thread().is_fenced = false;
}

// All lanes of a warp wait at once, for a while in which others go on.
inline void wait_for_wgmma(int left) {
  Thread& me = this_thread();
  for (int i = 0; i < A_WHILE; i++) wait_for_warp(~0u, "wgmma_wait");
  while (!me.begun.empty() && me.begun.front().group < me.groups - left) {
    end_wgmma(me.begun.front());
    me.begun.pop_front();
  }
  wait_for_warp(~0u, "wgmma_wait");
}

}  // namespace cuda_cpu

inline uint32_t shared_address(const void* pointer) { return cuda_cpu::shared_address(pointer); }

inline void barrier_init(uint64_t* barrier, int arrivals) {
  using cuda_cpu::Phases;
  if (cuda_cpu::shared_address(barrier) % 8) cuda_cpu::fail("an mbarrier that 8 does not divide");
  const uint64_t count = arrivals;
  if (count == 0 || count > Phases::MOST) cuda_cpu::fail("an mbarrier of %d arrivals", arrivals);
  *(Phases*)barrier = {Phases::MARK, count, count, 0, 0};
  cuda_cpu::block.current->written.push_back({barrier, sizeof *barrier});
}
inline void barrier_arrive(uint64_t* barrier) { cuda_cpu::arrive(barrier); }
inline void barrier_arrive_expecting(uint64_t* barrier, int bytes) { cuda_cpu::arrive(barrier, bytes); }
inline void barrier_wait(uint64_t* barrier, unsigned phase) {
  cuda_cpu::wait_for_phase(barrier, phase, "barrier_wait");
}
template <int ID, int COUNT> void sync_threads() { cuda_cpu::meet(ID, COUNT, "sync_threads"); }

template <int COUNT> void give_registers() {}
template <int COUNT> void take_registers() {}

inline void copy_bulk(void* shared, const void* global, int bytes, uint64_t* barrier) {
  cuda_cpu::begin_bulk_copy(shared, global, bytes, barrier);
}
inline void store_operand(void* shared, uint4 value) {
  memcpy(shared, &value, 16);
  cuda_cpu::block.current->written.push_back({shared, 16});
}
inline void fence_operands() { cuda_cpu::fence_writes(); }

inline void wgmma_fence() { cuda_cpu::this_thread().is_fenced = true; }
template <int COUNT> void wgmma_fence(float (&)[COUNT]) { wgmma_fence(); }
inline void wgmma_commit() { cuda_cpu::this_thread().groups++; }
template <int LEFT, int COUNT> void wgmma_wait(float (&)[COUNT]) { cuda_cpu::wait_for_wgmma(LEFT); }
inline void store_matrices(void* row, const uint32_t (&r)[4]) {
  using namespace cuda_cpu;
  memcpy(fragment(lane(), 0), r, 16);
  wait_for_warp(~0u, "stmatrix");
  const int matrix = lane() / 8;
  for (int column = 0; column < 8; column += 2)
    memcpy((char*)row + 2 * column, fragment(lane() % 8 * 4 + column / 2, 4 * matrix), 4);
  block.current->written.push_back({row, 16});
  wait_for_warp(~0u, "stmatrix");
}

template <class T, int COUNT> void wgmma(float (&d)[COUNT], uint64_t a, uint64_t b) {
  cuda_cpu::begin_wgmma(d, {2 * COUNT, false, cuda_cpu::value_of<T>}, a, b, "wgmma");
}
template <class T, int COUNT> void wgmma_transposed(float (&d)[COUNT], uint64_t a, uint64_t b) {
  cuda_cpu::begin_wgmma(d, {2 * COUNT, true, cuda_cpu::value_of<T>}, a, b, "wgmma");
}
template <class T, int COUNT> void first_wgmma(float (&d)[COUNT], uint64_t a, uint64_t b) {
  for (float& each : d) each = 0;
  wgmma<T>(d, a, b);
}
