// One block of CUDA threads on one CPU thread: a fiber for each, which runs until it waits for others.
//
// Blocks run one after the other, and a block's threads, in an order that can be turned round or shuffled: what differs
// between orders is a race. Where they are shuffled, now and then a warp, or one thread, is held until no other can go
// on without it, so that these come as far ahead as barriers let them. Where nothing can go on, because threads wait at
// different barriers, the launch fails. Bulk copies, which no thread makes, land as late as that, or at any time.
// Pages that nobody may touch stand before every stack and after the dynamic shared memory.
#pragma once
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

namespace cuda_cpu {

constexpr int WARP = 32;
inline const size_t PAGE = (size_t)sysconf(_SC_PAGESIZE);
constexpr size_t MOST_ROUNDS = 16;  // from when those that were held went on to when the next are
constexpr size_t COPY_ROUNDS = 8;   // that a bulk copy takes on average, unless all wait for it
constexpr size_t STACK_BYTES = 64 * 1024;
inline const size_t STACK_ROOM = STACK_BYTES + PAGE;
constexpr size_t SHARED_LIMIT = 227 * 1024;
constexpr size_t SHARED_ROOM = 256 * 1024;  // in whole pages, be they of 64 KiB

enum class State { ready, at_block_barrier, at_warp_barrier, at_condition, done };

// 16 bytes on their way into shared memory, in a group that the thread waits for.
struct PendingCopy {
  void* shared;
  const void* global;
  int group;
};

// Operands for the tensor cores, or a barrier, in shared memory.
struct Written {
  void* shared;
  int bytes;
};

// A copy into shared memory that no thread makes; a barrier tells of its end.
struct BulkCopy {
  void* shared;
  const void* global;
  int bytes;
  uint64_t* barrier;
};

struct Fiber {
  jmp_buf point;        // where it goes on
  ucontext_t beginning;
  bool has_begun;
  uint3 index;          // threadIdx
  int number;           // in the block
  State state;
  const char* barrier;  // the source line at which it waits
  unsigned mask;        // the lanes that a warp barrier is for
  std::vector<PendingCopy> copies;  // that it has begun and not waited for; they end with the block
  int groups;                       // of copies that it has committed
  std::vector<Written> written;     // by it, and not fenced
  bool (*met)(const void*, unsigned);  // the condition that it waits for, of what and
  const void* what;
  unsigned value;
};

struct Block {
  dim3 grid, size;
  uint3 index;
  std::vector<Fiber> fibers;
  Fiber* current = nullptr;
  int alive = 0;
  std::vector<BulkCopy> bulk_copies;         // under way
  void (*land)(const BulkCopy&) = nullptr;  // ends one
  uint64_t serial = 0;  // counts blocks
  bool failed = false;
  jmp_buf scheduler;
  unsigned char* dynamic_shared = nullptr;
  std::vector<uint64_t> slots;           // a word of each thread, for shuffles
  std::vector<unsigned char> fragments;  // 64 bytes of each thread, for matrix instructions
  void (*body)(void*) = nullptr;
  void* arguments = nullptr;
};

inline Block block;
inline char* stacks = nullptr;
inline size_t stack_count = 0;
inline unsigned order = 0;  // 0 ascending, 1 descending, else the seed of a shuffle
inline char message[512];   // why the last launch failed

inline void give_way() {
  if (!_setjmp(block.current->point)) _longjmp(block.scheduler, 1);
}

inline void run_body() {
  block.body(block.arguments);
  block.current->state = State::done;
  block.alive--;
  _longjmp(block.scheduler, 1);
}

inline void resume(Fiber& fiber) {
  block.current = &fiber;
  if (_setjmp(block.scheduler)) return;
  if (fiber.has_begun) _longjmp(fiber.point, 1);
  fiber.has_begun = true;
  setcontext(&fiber.beginning);
}

inline void wait_for_block(const char* where) {
  block.current->state = State::at_block_barrier;
  block.current->barrier = where;
  give_way();
}

inline void wait_for_warp(unsigned mask, const char* where) {
  Fiber& me = *block.current;
  me.state = State::at_warp_barrier;
  me.barrier = where;
  me.mask = mask >> (me.number % WARP) & 1 ? mask : 0;  // a mask without the caller waits for ever
  give_way();
}

// Wait until met(what, value): conditions that other threads bring about.
inline void wait_until(bool (*met)(const void*, unsigned), const void* what, unsigned value, const char* where) {
  Fiber& me = *block.current;
  if (met(what, value)) return;
  me.state = State::at_condition;
  me.barrier = where;
  me.met = met, me.what = what, me.value = value;
  give_way();
}

// End the launch: a thread does what a GPU would punish.
template <class... A> [[noreturn]] void fail(const char* format, A... values) {
  const int length = snprintf(message, sizeof message, "thread %d of block (%u, %u, %u): ", block.current->number,
                              block.index.x, block.index.y, block.index.z);
  snprintf(message + length, sizeof message - length, format, values...);
  block.failed = true;
  _longjmp(block.scheduler, 1);
}

// Whether all threads alive wait at one and the same barrier of the block; lets them go on.
inline bool release_block() {
  const char* where = nullptr;
  int waiting = 0;
  for (auto& fiber : block.fibers) {
    if (fiber.state != State::at_block_barrier) continue;
    if (where && strcmp(where, fiber.barrier)) return false;
    where = fiber.barrier;
    waiting++;
  }
  if (!waiting || waiting != block.alive) return false;
  for (auto& fiber : block.fibers)
    if (fiber.state == State::at_block_barrier) fiber.state = State::ready;
  return true;
}

// Whether all lanes that one of this warp waits for wait at the same place; lets them go on.
inline bool release_warp(Fiber* lanes, int count) {
  for (int lane = 0; lane < count; lane++) {
    const Fiber& first = lanes[lane];
    if (first.state != State::at_warp_barrier || !first.mask) continue;
    bool all = true;
    for (int other = 0; other < count && all; other++) {
      const Fiber& fiber = lanes[other];
      if (first.mask >> other & 1)
        all = fiber.state == first.state && fiber.mask == first.mask && !strcmp(fiber.barrier, first.barrier);
    }
    if (!all) continue;
    const unsigned mask = first.mask;
    for (int other = 0; other < count; other++)
      if (mask >> other & 1) lanes[other].state = State::ready;
    return true;
  }
  return false;
}

inline bool release() {
  if (release_block()) return true;
  bool any = false;
  for (size_t first = 0; first < block.fibers.size(); first += WARP)
    any |= release_warp(&block.fibers[first], (int)std::min<size_t>(WARP, block.fibers.size() - first));
  for (auto& fiber : block.fibers)
    if (fiber.state == State::at_condition && fiber.met(fiber.what, fiber.value)) {
      fiber.state = State::ready;
      any = true;
    }
  return any;
}

inline int fail_at_barriers() {
  int length = snprintf(message, sizeof message, "threads of block (%u, %u, %u) wait for each other:", block.index.x,
                        block.index.y, block.index.z);
  const char* last = "";
  for (auto& fiber : block.fibers) {
    if (fiber.state == State::done || !strcmp(fiber.barrier, last) || length >= (int)sizeof message - 1) continue;
    last = fiber.barrier;
    length += snprintf(message + length, sizeof message - length, " thread %d at %s;", fiber.number, last);
  }
  return 1;
}

inline int fail_in_flight() {
  snprintf(message, sizeof message, "block (%u, %u, %u) ends before a bulk copy of %d bytes that it began",
           block.index.x, block.index.y, block.index.z, block.bulk_copies[0].bytes);
  return 1;
}

struct Random {
  uint64_t state;
  size_t below(size_t limit) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state % limit;
  }
};

// Threads that do not go on for now.
struct Held {
  int first = 0, count = 0;
  bool contains(int thread) const { return thread >= first && thread < first + count; }
};

inline Held hold(Random& random, size_t threads) {
  const bool is_warp = random.below(2);
  const int one = (int)random.below(threads);
  return is_warp ? Held{one / WARP * WARP, WARP} : Held{one, 1};
}

inline void land_one(size_t which) {
  const BulkCopy copy = block.bulk_copies[which];
  block.bulk_copies.erase(block.bulk_copies.begin() + which);
  block.land(copy);
}

inline int run_block() {
  std::vector<int> turns(block.fibers.size());
  for (size_t i = 0; i < turns.size(); i++) turns[i] = (int)(order == 1 ? turns.size() - 1 - i : i);
  Random random{order * 0x9E3779B97F4A7C15ull + 1};
  Held held;
  size_t rounds = 0;  // until others are
  while (block.alive) {
    for (size_t i = turns.size(); order > 1 && i > 1; i--) std::swap(turns[i - 1], turns[random.below(i)]);
    if (order > 1 && !held.count && rounds-- == 0) held = hold(random, turns.size());
    bool any = false;
    for (int i : turns) {
      if (block.fibers[i].state != State::ready || held.contains(i)) continue;
      resume(block.fibers[i]);
      if (block.failed) return 1;
      any = true;
    }
    any |= block.alive && release();
    const size_t copies = block.bulk_copies.size();
    if (!block.alive && copies) return fail_in_flight();
    const bool is_early = copies && order > 1 && random.below(COPY_ROUNDS) == 0;
    if (copies && (is_early || !any)) land_one(order > 1 ? random.below(copies) : order == 1 ? copies - 1 : 0);
    if (any || copies || !block.alive) continue;
    if (!held.count) return fail_at_barriers();
    held = {}, rounds = random.below(MOST_ROUNDS);
  }
  return 0;
}

inline void prepare_block(unsigned x, unsigned y, unsigned z, size_t shared) {
  block.index = {x, y, z};
  block.alive = (int)block.fibers.size();
  block.bulk_copies.clear();
  block.serial++;
  block.failed = false;
  memset(block.dynamic_shared, 0xFF, shared);  // NaN
  for (size_t i = 0; i < block.fibers.size(); i++) {
    Fiber& fiber = block.fibers[i];
    fiber.number = (int)i;
    fiber.state = State::ready;
    fiber.has_begun = false;
    fiber.copies.clear();
    fiber.written.clear();
    fiber.groups = 0;
    fiber.index = {(unsigned)(i % block.size.x), (unsigned)(i / block.size.x % block.size.y),
                   (unsigned)(i / block.size.x / block.size.y)};
    getcontext(&fiber.beginning);
    fiber.beginning.uc_stack.ss_sp = stacks + i * STACK_ROOM + PAGE;
    fiber.beginning.uc_stack.ss_size = STACK_BYTES;
    fiber.beginning.uc_link = nullptr;
    makecontext(&fiber.beginning, run_body, 0);
  }
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_const_t<A>*>(arguments[I])...);
}

inline char* map_pages(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? nullptr : (char*)memory;
}

inline bool make_stacks(size_t count) {
  if (count <= stack_count) return true;
  char* made = map_pages(count * STACK_ROOM);
  if (!made) return false;
  for (size_t i = 0; i < count; i++)
    if (mprotect(made + i * STACK_ROOM, PAGE, PROT_NONE)) return false;
  if (stacks) munmap(stacks, stack_count * STACK_ROOM);
  stacks = made;
  stack_count = count;
  return true;
}

// Dynamic shared memory of so many bytes, which end, but for an alignment of 128, where a page begins that is guarded.
inline char* shared_room = nullptr;  // address 0 of shared memory, as pointers into it become numbers
inline unsigned char* make_shared(size_t bytes) {
  if (!shared_room) shared_room = map_pages(SHARED_ROOM + PAGE);
  if (!shared_room || mprotect(shared_room + SHARED_ROOM, PAGE, PROT_NONE)) return nullptr;
  return (unsigned char*)shared_room + SHARED_ROOM - (bytes + 127) / 128 * 128;
}

// Numbers of blocks, in the order in which they run.
inline std::vector<size_t> order_of_blocks(size_t count) {
  std::vector<size_t> found(count);
  for (size_t i = 0; i < count; i++) found[i] = order == 1 ? count - 1 - i : i;
  Random random{order * 0x9E3779B97F4A7C15ull + 3};
  for (size_t i = count; order > 1 && i > 1; i--) std::swap(found[i - 1], found[random.below(i)]);
  return found;
}

// Run a kernel over its grid; 0 if all is well, else `message` says why not.
template <class... A>
int launch(void (*kernel)(A...), const unsigned* grid, const unsigned* size, size_t shared, void** arguments) {
  const size_t count = (size_t)size[0] * size[1] * size[2];
  if (count == 0 || count > 1024 || shared > SHARED_LIMIT) {
    snprintf(message, sizeof message, "a block of %zu threads with %zu bytes of shared memory", count, shared);
    return 2;
  }
  if (!grid[0] || !grid[1] || !grid[2]) {
    snprintf(message, sizeof message, "a grid of %u x %u x %u blocks", grid[0], grid[1], grid[2]);
    return 2;
  }
  block.dynamic_shared = make_shared(shared);
  if (!make_stacks(count) || !block.dynamic_shared) {
    snprintf(message, sizeof message, "no room for %zu threads and their shared memory", count);
    return 2;
  }
  struct Bound {
    void (*kernel)(A...);
    void** arguments;
  } bound{kernel, arguments};
  block.grid = {grid[0], grid[1], grid[2]};
  block.size = {size[0], size[1], size[2]};
  block.arguments = &bound;
  block.body = [](void* packed) {
    Bound* each = (Bound*)packed;
    call(each->kernel, each->arguments, std::index_sequence_for<A...>{});
  };
  const size_t lanes = (count + WARP - 1) / WARP * WARP;
  block.fibers.assign(count, Fiber{});
  block.slots.assign(lanes, 0);
  block.fragments.assign(64 * lanes, 0);
  for (size_t number : order_of_blocks((size_t)grid[0] * grid[1] * grid[2])) {
    const size_t rest = number / grid[0];
    prepare_block((unsigned)(number % grid[0]), (unsigned)(rest % grid[1]), (unsigned)(rest / grid[1]), shared);
    if (int failure = run_block()) return failure;
  }
  return 0;
}

}  // namespace cuda_cpu
