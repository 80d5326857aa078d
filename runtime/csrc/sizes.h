// Evaluates a plan's size expressions: postfix code over the dims, integers as in Python.
#pragma once

#include <cstdint>
#include <vector>

namespace infopt __attribute__((visibility("hidden"))) {

enum Op : int64_t { CONST, DIM, SLOT, ADD, SUB, MUL, DIV, MOD, MAX, MIN, EQ, NE, LT, LE, GT, GE };

struct Sizes {
  std::vector<int64_t> code;    // CONST, DIM and SLOT are followed by their operand
  std::vector<int64_t> starts;  // where each slot's code begins; one more at the end

  // Fills `slots`; returns -1, or the slot that divides by zero or leaves 64 bits.
  int64_t evaluate(const int64_t *dims, int64_t *slots) const {
    const int64_t count = static_cast<int64_t>(starts.size()) - 1;
    for (int64_t slot = 0; slot < count; ++slot) {
      if (!evaluate_one(slot, dims, slots)) return slot;
    }
    return -1;
  }

 private:
  bool evaluate_one(int64_t slot, const int64_t *dims, int64_t *slots) const {
    int64_t stack[64];
    int depth = 0;
    const int64_t *token = code.data() + starts[slot];
    const int64_t *end = code.data() + starts[slot + 1];
    while (token < end) {
      const int64_t op = *token++;
      if (op <= SLOT) {
        const int64_t operand = *token++;
        stack[depth++] = op == CONST ? operand : op == DIM ? dims[operand] : slots[operand];
        continue;
      }
      const int64_t b = stack[--depth];
      if (!apply(op, stack[depth - 1], b, &stack[depth - 1])) return false;
    }
    slots[slot] = stack[0];
    return true;
  }

  static bool apply(int64_t op, int64_t a, int64_t b, int64_t *result) {
    switch (op) {
      case ADD: return !__builtin_add_overflow(a, b, result);
      case SUB: return !__builtin_sub_overflow(a, b, result);
      case MUL: return !__builtin_mul_overflow(a, b, result);
      case DIV:
      case MOD: {
        if (b == 0 || (b == -1 && a == INT64_MIN)) return false;
        const int64_t rest = a % b;
        const bool below = rest != 0 && (rest < 0) != (b < 0);  // C truncates, Python floors
        *result = op == DIV ? a / b - below : rest + (below ? b : 0);
        return true;
      }
      case MAX: *result = a > b ? a : b; return true;
      case MIN: *result = a < b ? a : b; return true;
      case EQ: *result = a == b; return true;
      case NE: *result = a != b; return true;
      case LT: *result = a < b; return true;
      case LE: *result = a <= b; return true;
      case GT: *result = a > b; return true;
      default: *result = a >= b; return true;
    }
  }
};

}  // namespace infopt
