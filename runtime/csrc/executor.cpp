// The native executor: a program (fixed), its contexts (one per call in flight), and the run of
// consecutive steps in one call. Everything is handed over as plain int64 words.

#include <cstdlib>
#include <cstring>
#include <vector>

#include "arena.h"
#include "call.h"
#include "launch.h"
#include "pool.h"
#include "sizes.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace infopt {
namespace {

constexpr int64_t ARENA = 0;       // kind of a buffer placed in the arena; others are external
constexpr int64_t NO_BUFFER = -1;  // a null pointer

struct Step {
  infopt_kernel kernel;
  int64_t tasks, scratch;            // slots; scratch -1: none
  int64_t first_pointer, first_number;
  bool can_fail;
};

struct Pointer {
  int64_t buffer, offset;  // offset: slot
};

struct Program {
  Sizes sizes;
  int64_t slots;
  std::vector<int64_t> kinds, bytes;  // per buffer: kind, slot of its size
  std::vector<int64_t> arena;         // the buffers placed in the arena
  std::vector<Lifetime> lives;        // of those
  std::vector<Step> steps;
  std::vector<Pointer> pointers;      // of all steps, one after the other
  std::vector<int64_t> numbers;       // slots, likewise
};

struct Context {
  const Program *program;
  int threads;
  std::vector<int64_t> slots, numbers, offsets, starts;  // starts: of arena buffers, by buffer
  std::vector<char *> bases;                             // per buffer, the arena at the end
  std::vector<void *> pointers;
  int64_t arena_bytes, scratch_stride;
  bool stale;  // sizes changed: all pointers are to be made again
  int32_t error;
};

// Reads words one after the other.
struct Reader {
  const int64_t *word;
  int64_t next() { return *word++; }
  std::vector<int64_t> list() {
    const int64_t count = next();
    std::vector<int64_t> values(word, word + count);
    word += count;
    return values;
  }
};

char *address(const Context &context, const Pointer &pointer) {
  if (pointer.buffer == NO_BUFFER) return nullptr;
  const Program &program = *context.program;
  const bool in_arena = program.kinds[pointer.buffer] == ARENA;
  char *base = in_arena ? context.bases.back() : context.bases[pointer.buffer];
  return base + context.starts[pointer.buffer] + context.slots[pointer.offset];
}

// Makes the pointers whose buffer moved since the last run.
void rebase(Context &context, void *const *bases) {
  const Program &program = *context.program;
  const size_t size = context.bases.size() * sizeof(char *);
  if (!context.stale && memcmp(bases, context.bases.data(), size) == 0) return;
  std::vector<char> moved(context.bases.size());
  for (size_t i = 0; i < moved.size(); ++i) {
    moved[i] = context.stale || bases[i] != context.bases[i];
  }
  memcpy(context.bases.data(), bases, size);
  for (size_t i = 0; i < program.pointers.size(); ++i) {
    const int64_t buffer = program.pointers[i].buffer;
    if (buffer == NO_BUFFER) continue;
    if (program.kinds[buffer] == ARENA ? moved.back() : moved[buffer]) {
      context.pointers[i] = address(context, program.pointers[i]);
    }
  }
  context.stale = false;
}

void run_step(Context &context, const Step &step, Pool *pool, char *scratch) {
  const int64_t tasks = context.slots[step.tasks];
  if (tasks <= 0) return;
  void *const *pointers = context.pointers.data() + step.first_pointer;
  const int64_t *numbers = context.numbers.data() + step.first_number;
  if (pool != nullptr && tasks > 1) {
    pool->run({step.kernel, pointers, numbers, scratch, context.scratch_stride, tasks},
              context.threads);
  } else {
    const infopt_call call{pointers, numbers, scratch};
    step.kernel(&call, 0, tasks);
  }
}

}  // namespace
}  // namespace infopt

using namespace infopt;

// Words: the code of all expressions, their starts; kinds, byte slots of the buffers; per arena
// buffer its first and last step; then per step: kernel index, tasks, scratch, can_fail, the list
// of (buffer, offset slot) pairs, the list of number slots.
EXPORT void *infopt_program_new(const int64_t *words, void *const *kernels) {
  Program *program = new Program;
  Reader reader{words};
  program->sizes.code = reader.list();
  program->sizes.starts = reader.list();
  program->slots = static_cast<int64_t>(program->sizes.starts.size()) - 1;
  program->kinds = reader.list();
  program->bytes = reader.list();
  const std::vector<int64_t> lives = reader.list();
  for (size_t i = 0, next = 0; i < program->kinds.size(); ++i) {
    if (program->kinds[i] != ARENA) continue;
    program->arena.push_back(static_cast<int64_t>(i));
    program->lives.push_back({lives[next], lives[next + 1]});
    next += 2;
  }
  for (int64_t remaining = reader.next(); remaining > 0; --remaining) {
    Step step;
    step.kernel = reinterpret_cast<infopt_kernel>(kernels[reader.next()]);
    step.tasks = reader.next();
    step.scratch = reader.next();
    step.can_fail = reader.next() != 0;
    step.first_pointer = static_cast<int64_t>(program->pointers.size());
    step.first_number = static_cast<int64_t>(program->numbers.size());
    const std::vector<int64_t> pairs = reader.list();
    for (size_t i = 0; i < pairs.size(); i += 2) {
      program->pointers.push_back({pairs[i], pairs[i + 1]});
    }
    if (step.can_fail) program->pointers.push_back({NO_BUFFER, 0});
    const std::vector<int64_t> numbers = reader.list();
    program->numbers.insert(program->numbers.end(), numbers.begin(), numbers.end());
    program->steps.push_back(step);
  }
  return program;
}

EXPORT void infopt_program_free(void *program) { delete static_cast<Program *>(program); }

EXPORT void *infopt_context_new(const void *handle, int64_t threads) {
  const Program *program = static_cast<const Program *>(handle);
  Context *context = new Context;
  context->program = program;
  context->threads = static_cast<int>(threads);
  context->slots.resize(program->slots);
  context->numbers.resize(program->numbers.size());
  context->starts.resize(program->kinds.size());
  context->bases.resize(program->kinds.size() + 1);
  context->pointers.resize(program->pointers.size());
  context->arena_bytes = context->scratch_stride = 0;
  context->stale = true;
  context->error = 0;
  for (size_t i = 0; i < program->steps.size(); ++i) {
    if (!program->steps[i].can_fail) continue;
    const size_t end = i + 1 < program->steps.size() ? program->steps[i + 1].first_pointer
                                                     : program->pointers.size();
    context->pointers[end - 1] = &context->error;
  }
  return context;
}

EXPORT void infopt_context_free(void *context) { delete static_cast<Context *>(context); }

EXPORT const int64_t *infopt_context_slots(const void *context) {
  return static_cast<const Context *>(context)->slots.data();
}

// Where each arena buffer begins, in the order of the buffers; others 0.
EXPORT const int64_t *infopt_context_starts(const void *context) {
  return static_cast<const Context *>(context)->starts.data();
}

// Evaluates all sizes for `dims` and places the arena. Returns the bytes the arena needs, scratch
// included, or -1 - slot when that slot cannot be evaluated or is a negative size.
EXPORT int64_t infopt_context_resize(void *handle, const int64_t *dims) {
  Context &context = *static_cast<Context *>(handle);
  const Program &program = *context.program;
  context.stale = true;
  const int64_t failed = program.sizes.evaluate(dims, context.slots.data());
  if (failed >= 0) return -1 - failed;
  for (int64_t slot : program.bytes) {
    if (context.slots[slot] < 0 || context.slots[slot] > INT64_MAX / 2) return -1 - slot;
  }
  for (size_t i = 0; i < program.numbers.size(); ++i) {
    context.numbers[i] = context.slots[program.numbers[i]];
  }
  std::vector<int64_t> bytes;
  for (int64_t buffer : program.arena) bytes.push_back(context.slots[program.bytes[buffer]]);
  context.arena_bytes = place(program.lives, bytes, &context.offsets);
  for (size_t i = 0; i < program.arena.size(); ++i) {
    context.starts[program.arena[i]] = context.offsets[i];
  }
  context.scratch_stride = 0;
  for (const Step &step : program.steps) {
    if (step.scratch < 0) continue;
    const int64_t scratch = context.slots[step.scratch];
    if (scratch < 0) return -1 - step.scratch;
    if (scratch > context.scratch_stride) context.scratch_stride = scratch;
  }
  context.scratch_stride = aligned(context.scratch_stride);
  return context.arena_bytes + context.scratch_stride * context.threads;
}

// Runs steps [first, last). bases: the address of each buffer (the arena's: ignored), and last the
// arena, 64-byte aligned. times, if not null, gets the time of each step in nanoseconds.
// Returns 0, or 1 + the step whose kernel reported an error.
EXPORT int64_t infopt_context_run(void *handle, int64_t first, int64_t last, void *const *bases,
                                  int64_t *times) {
  Context &context = *static_cast<Context *>(handle);
  rebase(context, bases);
  char *scratch = context.bases.back() + context.arena_bytes;
  // When another call holds the pool, this one runs on its own thread: nobody waits for anybody.
  Pool *pool = context.threads > 1 ? Pool::get() : nullptr;
  if (pool != nullptr && !pool->try_enter()) pool = nullptr;
  int64_t failed = 0;
  for (int64_t i = first; i < last; ++i) {
    const Step &step = context.program->steps[i];
    const int64_t begin = times != nullptr ? nanoseconds() : 0;
    if (step.can_fail) context.error = 0;
    run_step(context, step, pool, scratch);
    if (times != nullptr) times[i] = nanoseconds() - begin;
    if (step.can_fail && context.error != 0) {
      failed = i + 1;
      break;
    }
  }
  if (pool != nullptr) pool->leave();
  return failed;
}

// Launches `count` GPU kernels whose words follow each other (launch.h). bases as for a run, here
// of device memory. Returns 0, or the launch's number << 32 | the driver's status.
EXPORT int64_t infopt_context_launch(void *handle, const int64_t *words, int64_t count,
                                     void *const *bases, void *const *functions,
                                     infopt::LaunchFunction launch_kernel, void *stream) {
  const Context &context = *static_cast<const Context *>(handle);
  const Program &program = *context.program;
  const int64_t arena = static_cast<int64_t>(program.kinds.size());
  const auto address = [&](int64_t buffer, int64_t slot) {
    const bool in_arena = program.kinds[buffer] == ARENA;
    char *base = static_cast<char *>(bases[in_arena ? arena : buffer]);
    return base + context.starts[buffer] + context.slots[slot];
  };
  for (int64_t i = 0; i < count; ++i) {
    const int64_t status = launch(words, context.slots.data(), functions, launch_kernel, stream,
                                  address);
    if (status != 0) return i << 32 | status;
  }
  return 0;
}

// Changes whenever the words or the functions above do.
EXPORT int64_t infopt_executor_version() { return 1; }
