// Fibers: x86-64 by hand, others by ucontext (slower: it changes the signal mask).
#pragma once

#include "types.cuh"

constexpr u32 kStackBytes = 32768;

#if defined(__x86_64__)

struct Fiber {
  void* stack_pointer;
  u32 number;
};

// Save what a call must keep, change stacks, restore.
__attribute__((naked, noinline)) inline void switch_stacks(void**, void*) {
  asm("pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
      "movq %rsp, (%rdi)\n\tmovq %rsi, %rsp\n\t"
      "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\tret");
}

inline void switch_fiber(Fiber& from, Fiber& to) {
  switch_stacks(&from.stack_pointer, to.stack_pointer);
}

inline void prepare_fiber(Fiber& fiber, u8* stack, void (*entry)()) {
  const u64 colour = fiber.number * 17 % 64 * 64;  // stacks share no cache lines' sets
  const u64 end = (reinterpret_cast<u64>(stack) + kStackBytes - colour) & ~63ull;
  u64* top = reinterpret_cast<u64*>(end) - 7;
  top[0] = 0;  // where entry would return to; it never does
  *--top = reinterpret_cast<u64>(entry);
  for (u32 i = 0; i < 6; ++i) *--top = 0;
  fiber.stack_pointer = top;
}

#else

#include <ucontext.h>

struct Fiber {
  ucontext_t context;
  u32 number;
};

inline void switch_fiber(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

inline void prepare_fiber(Fiber& fiber, u8* stack, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

#endif
