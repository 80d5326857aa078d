// The exported matrix-product kernels. One library per instruction-set level is built from this.
//
// Formats (numbers): 0 absent, 1 row-major f32, 2 row-major bf16, 3 row-major f16, 4 f32 panels,
// 5 bf16 panels. A stride counts elements between rows, or between panels. Activations: 0 none,
// 1 relu, 2 gelu, 3 gelu tanh, 4 silu, 5 quick gelu, 6 sigmoid, 7 tanh, 8 relu6, 9 hardswish. P = ceil(M / 16).
#include "few_rows.h"
#include "linear.h"
#include "linear_chain.h"
#include "linear_stored.h"
#include "matmul.h"

#if defined(__AMX_TILE__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

using namespace infopt;

// Asks the operating system for the tile registers, once per process before any kernel of an AMX
// library runs. Returns 0 on success and on every level that needs no permission.
INFOPT_EXPORT int64_t infopt_request_features(void) {
#if defined(__AMX_TILE__) && defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData);
#else
  return 0;
#endif
}

// infopt_pack_panels: row-major x[M][K] (any row format) to panels of either type.
// infopt_unpack_panels: panels to row-major.
//   pointers: x, y        numbers: M, K, x format, x stride, y format, y stride
//   tasks: P              scratch: 0
INFOPT_EXPORT void infopt_pack_panels(const infopt_call *call, int64_t first, int64_t last) {
  const int64_t *v = call->numbers;
  const Matrix x = {call->pointers[0], v[3], v[2]}, y = {call->pointers[1], v[5], v[4]};
  for (int64_t panel = first; panel < last; ++panel) pack_panel(x, y, v[0], v[1], panel);
}
INFOPT_EXPORT void infopt_unpack_panels(const infopt_call *call, int64_t first, int64_t last) {
  const int64_t *v = call->numbers;
  const Matrix x = {call->pointers[0], v[3], v[2]}, y = {call->pointers[1], v[5], v[4]};
  for (int64_t panel = first; panel < last; ++panel) unpack_panel(x, y, v[0], v[1], panel);
}

// infopt_linear_<panel type>_<weight type>: y = act(x wᵀ + bias) [* (x upᵀ + up_bias)]
//                                               [* multiplier] [+ residual]
//   pointers: x panels, w[N][K], up[N][K] or null, bias[N] or null, up_bias[N] or null,
//             multiplier or null, residual or null, y
//   numbers:  0 M, 1 N, 2 K, 3 weight row stride, 4 n_chunk, 5 panel_chunk, 6 activation,
//             7 bias format, 8 multiplier format, 9 its stride, 10 residual format, 11 its stride,
//             12 y format, 13 y stride, 14 x panel stride
//   tasks:    ceil(N / n_chunk) * ceil(P / panel_chunk)
//   scratch:  6144 * panel_chunk * (up ? 2 : 1) + 384 * (min(round_up(K, 32), 2048) + 32)
//   n_chunk is a multiple of 2 (of 48 for speed, of 96 with AMX). residual may be y itself.
#define INFOPT_LINEAR(name, Step, W)                                                        \
  INFOPT_EXPORT void infopt_linear_##name(const infopt_call *call, int64_t first, int64_t last) { \
    linear<Step, W>(call, first, last);                                                     \
  }
INFOPT_LINEAR(f32_f32, StepF32, float)
INFOPT_LINEAR(f32_bf16, StepF32, bf16)
INFOPT_LINEAR(f32_f16, StepF32, f16)
INFOPT_LINEAR(bf16_bf16, StepPairs, bf16)
INFOPT_LINEAR(bf16_f32, StepPairs, float)
#undef INFOPT_LINEAR

// infopt_linear_chain_<panel type>_<weight type>: products one after another, without anything
// between them in memory: x -> act(x wᵀ + bias) for each, then + residual. The second may be a gate:
// its result is multiplied by that of up1, which reads what the first gives, or x up0ᵀ
//   pointers: x, residual or null, y, up0 or null (like the first w), up1 or null (like the second
//             one, with its row stride), up_bias[N] or null, and for each product w[N][K],
//             bias[N] or null
//   numbers:  0 M, 1 K of the first, 2 how many products, 3 panel_chunk, 4 x format, 5 its stride,
//             6 y format, 7 its stride, 8 residual format, 9 its stride, 10 bias format,
//             11 where in scratch panels of the second product begin, 12 where those of infopt_linear
//             does, 13 row stride of up0, 14 where in scratch panels of x up0ᵀ begin; then for each
//             product: N, weight row stride, activation. All row formats
//   tasks:    ceil(P / panel_chunk)
//   scratch:  panel_chunk panels of the widest even operand, of the widest odd one, of x up0ᵀ, and
//             that of infopt_linear for the deepest product (each part a multiple of 64)
#define INFOPT_CHAIN(name, Step, W)                                                              \
  INFOPT_EXPORT void infopt_linear_chain_##name(const infopt_call *call, int64_t first,          \
                                                int64_t last) {                                  \
    linear_chain<Step, W>(call, first, last);                                                    \
  }
INFOPT_CHAIN(f32_f32, StepF32, float)
INFOPT_CHAIN(f32_f16, StepF32, f16)
INFOPT_CHAIN(bf16_bf16, StepPairs, bf16)
INFOPT_CHAIN(bf16_f32, StepPairs, float)
#undef INFOPT_CHAIN

// infopt_quantize_panels: row-major x[M][K] to panels of bytes with steps and zero points
// (byte_panels.h); y holds 64 * P * ceil(K / 4) + 128 * P bytes.
//   pointers: x, y        numbers: M, K, x format, x stride, rounding (RowRounding), and for
//   static ranges their step (a double) and zero point
//   tasks: P              scratch: 0
INFOPT_EXPORT void infopt_quantize_panels(const infopt_call *call, int64_t first, int64_t last) {
  const int64_t *v = call->numbers;
  const Matrix x = {call->pointers[0], v[3], v[2]};
  const BytePanels y = byte_panels(call->pointers[1], v[0], v[1]);
  const Rounding rounding = read_rounding(v[4], v + 5);
  const int64_t row_bytes = v[3] * (v[2] == kRowF32 ? 4 : 2);
  for (int64_t panel = first; panel < last; ++panel) {
    const Matrix rows = {(char *)x.data + panel * 16 * row_bytes, x.stride, x.format};
    quantize_panel(rows, y, v[0], v[1], panel, rounding);
  }
}

// infopt_linear_bytes: infopt_linear for int8 weights with a scale per row, on panels of bytes
//   pointers: as infopt_linear, then scales[N], up_scales[N] or null, and the sums of the rows'
//             integers likewise, all f32
//   numbers, tasks: as infopt_linear; the panel stride counts bytes; y format 6: panels
//             of bytes (as infopt_quantize_panels), numbers 23 and 24 their step and zero point,
//             pointer 14 factors of the features before they are rounded (f32, or null)
//   scratch:  as infopt_linear_stored_bytes: without a dot instruction rows are widened first
INFOPT_EXPORT void infopt_linear_bytes(const infopt_call *call, int64_t first, int64_t last) {
#ifdef INFOPT_AVX2
  linear_from<StepHalves, UnpackedRows<int16_t, 8>>(call, first, last);
#else
  linear<StepBytes, int8_t>(call, first, last);
#endif
}

// infopt_few_rows_<weight type>: the same for few tokens (M <= 8 or so), x row-major.
//   pointers, numbers: as above; 14 is the row stride of x, 15 its format; 5 is not used; all
//                      formats are row formats
//   tasks:    ceil(N / n_chunk)                 (n_chunk a multiple of 16)
//   scratch:  4 * M * (round_up(K, 32) + 32)
template <class W> static void few(const infopt_call *call, int64_t first, int64_t last) {
  few_rows<AlongF32<W>, W>(call, first, last);
}
INFOPT_EXPORT void infopt_few_rows_f32(const infopt_call *call, int64_t first, int64_t last) {
  few<float>(call, first, last);
}
INFOPT_EXPORT void infopt_few_rows_f16(const infopt_call *call, int64_t first, int64_t last) {
  few<f16>(call, first, last);
}
INFOPT_EXPORT void infopt_few_rows_bf16(const infopt_call *call, int64_t first, int64_t last) {
#if defined(__AVX512BF16__)
  if (call->numbers[15] == kRowBf16) return few_rows<AlongBf16, bf16>(call, first, last);
#endif
  few<bf16>(call, first, last);
}

// infopt_matmul_<type>: C[b] = alpha * A[b] B[b] + beta * D[b], A and B of that type.
//   pointers: A[M][K], B[K][N], D[M][N] or null, C[M][N]
//   numbers:  0 M, 1 N, 2 K, 3-5 batch sizes (1 where unused), 6 m_chunk, 7 n_chunk, then for
//             A (8-12), B (13-17), C (18-22), D (23-27): row stride, column stride, three batch
//             strides; 28 D format, 29 C format, 30 alpha, 31 beta (doubles). Columns of C and D
//             are contiguous; a row stride of 0 broadcasts D.
//   tasks:    batches * ceil(M / m_chunk) * ceil(N / n_chunk)
//   scratch:  4 * m_chunk * round_up(n_chunk, 16) + 64 * ceil(n_chunk / 16) * Q
//             + 384 * (Q + 32),  Q = min(round_up(K, 32), 2048)
#define INFOPT_MATMUL(name, Step, T)                                                        \
  INFOPT_EXPORT void infopt_matmul_##name(const infopt_call *call, int64_t first, int64_t last) { \
    matmul<Step, T>(call, first, last);                                                     \
  }
INFOPT_MATMUL(f32, StepF32, float)
INFOPT_MATMUL(f16, StepF32, f16)
INFOPT_MATMUL(bf16, StepPairs, bf16)
#undef INFOPT_MATMUL
