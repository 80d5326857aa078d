// Exports: linear layers of groups of rows, each group with a weight of its own.
#include "grouped.h"

using namespace infopt;

#if defined(__AVX512BF16__)
using AlongPairs = AlongBf16;
#else
using AlongPairs = AlongF32<bf16>;
#endif

// infopt_pack_groups_<type>: rows of x to panels (f32, for bf16 bf16), each group's from a panel of
// its own on; groups of at most `few` rows are left out
//   pointers: x[M][K], ends i32 [G], panels
//   numbers:  0 M, 1 K, 2 G, 3 few, 4 stride of x, 5 stride of a panel
//   tasks:    ceil(M / 16) + G, as many as there may be panels
//   scratch:  0
// infopt_grouped_linear_<type>: y[r] = x[r] w[g]ᵀ for the rows r of group g, 0 for rows of none
//   pointers: panels, x[M][K], w[G][N][K], ends i32 [G] (rising), y[M][N]
//   numbers:  0 M, 1 N, 2 K, 3 G, 4-6 strides of w (the second or the third is 1), 7 n_chunk,
//             8 panel_chunk, 9 few (0 to 8: groups of so many rows are not in panels), 10 stride
//             of x, 11 of y, 12 of a panel, 13 tasks
//   tasks:    any number: so many equal shares of the work that `ends` leaves
//   scratch:  of infopt_linear or, where the last stride of w is not 1, infopt_matmul with a
//             m_chunk of 16 * panel_chunk; at least that of infopt_few_rows
#define INFOPT_GROUPED(name, Step, Along, T)                                                      \
  INFOPT_EXPORT void infopt_pack_groups_##name(const infopt_call *call, int64_t first,            \
                                               int64_t last) {                                    \
    pack_groups<T, Step::Panel>(call, first, last);                                               \
  }                                                                                               \
  INFOPT_EXPORT void infopt_grouped_linear_##name(const infopt_call *call, int64_t first,         \
                                                  int64_t last) {                                 \
    grouped_linear<Step, Along, T>(call, first, last);                                            \
  }
INFOPT_GROUPED(f32, StepF32, AlongF32<float>, float)
INFOPT_GROUPED(f16, StepF32, AlongF32<f16>, f16)
INFOPT_GROUPED(bf16, StepPairs, AlongPairs, bf16)
#undef INFOPT_GROUPED
