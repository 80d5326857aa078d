// Exports: low-rank adapters of rows, each row with one of its own or none.
#include "adapters.h"

using namespace infopt;

#if defined(__AVX512BF16__)
using AlongPairs = AlongBf16;
#else
using AlongPairs = AlongF32<bf16>;
#endif

// infopt_adapter_linear_<type>: y[r] += (x[r] a[s]ᵀ) b[s] where row r has slot s; ranks[s] rows of
// a[s] and b[s] count. A slot that there is not, as -1, leaves the row as it is
//   pointers: x[M][K], a[S][R][K], b[S][R][N], ranks i64 [S], slots i64 [M / each], y[M][N]
//   numbers:  0 M, 1 K, 2 N, 3 R, 4 S, 5 each (neighbouring rows that share a slot number),
//             6 stride of x, 7 of y
//   tasks:    M
//   scratch:  32 * (roundup(K, 32) + 32 + roundup(R, 16))
#define INFOPT_ADAPTERS(name, Along, T)                                                         \
  INFOPT_EXPORT void infopt_adapter_linear_##name(const infopt_call *call, int64_t first,       \
                                                  int64_t last) {                               \
    adapter_linear<Along, T>(call, first, last);                                                \
  }
INFOPT_ADAPTERS(f32, AlongF32<float>, float)
INFOPT_ADAPTERS(f16, AlongF32<f16>, f16)
INFOPT_ADAPTERS(bf16, AlongPairs, bf16)
#undef INFOPT_ADAPTERS
