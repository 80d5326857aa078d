// Exports: kernels over rows: layer_norm, rms_norm, group_norm, softmax, embedding, embedding_norm,
// rotary, copy, row_index, row_starts, unpack_rows. Dtypes are numbers, the codes of element.h:
// 0 f32, 1 bf16, 2 f16, 3 f64, 4 int64, 5 int32, 6 int16, 7 int8, 8 uint8, 9 bool. Row kernels take 0 to 2 unless said otherwise.
// Strides count elements; the last dimension of rows is contiguous. R is the rows of one task,
// chosen by the caller; 16 where the output is in token panels (f32 or bf16).
#include "copy.h"
#include "embedding.h"
#include "group_norm.h"
#include "norm.h"
#include "rotary.h"
#include "softmax.h"

namespace infopt {

static void norm(const infopt_call *call, int64_t first_task, int64_t last_task, bool rms,
                 const NormBytes *bytes = nullptr) {
  const int64_t *n = call->numbers;
  NormShape s;
  s.rows = n[0], s.width = n[1], s.out_stride = n[5], s.eps = as_double(n[7]), s.panels = n[8];
  s.weight_element = n[11], s.out_element = n[12];
  s.rms = rms, s.round_first = rms && n[15], s.one_plus_weight = rms && n[16];
  const SummedRows values = {pointer<void>(call, 0), pointer<void>(call, 1), pointer<void>(call, 5),
                             s.width, n[3], n[4], n[6], n[9], n[10], n[13]};
  normalize_rows(s, first_task * n[2], least(s.rows, last_task * n[2]), pointer<void>(call, 2),
                 pointer<void>(call, 3), pointer<void>(call, 4),
                 static_cast<float *>(call->scratch), values, bytes);
}

}  // namespace infopt

// infopt_layer_norm: out = (z - mean) * rsqrt(variance + eps) * weight + bias, z = x + residual.
// infopt_rms_norm:   out = z * rsqrt(mean(z^2) + eps) * weight
//   pointers  x, residual|null, weight|null, bias|null (null for rms_norm), out, sum|null
//   numbers   0 rows M  1 width N >= 1  2 R  row strides: 3 x  4 residual  5 out  6 sum
//             7 eps (a double)  8 1: out is in token panels [M, N], out's stride is ignored
//             dtypes: 9 x  10 residual  11 weight and bias  12 out  13 sum   14 unused, 0
//             rms_norm: 15 round z * rsqrt(..) to out's dtype before the weight (transformers)
//                       16 the factor is 1 + weight (Gemma)
//             z is rounded to the sum's dtype (13), kept or not
//   tasks     ceil(M / R)        scratch   72 * roundup(N, 16) bytes
INFOPT_EXPORT void infopt_layer_norm(const infopt_call *call, int64_t first, int64_t last) {
  infopt::norm(call, first, last, false);
}
INFOPT_EXPORT void infopt_rms_norm(const infopt_call *call, int64_t first, int64_t last) {
  infopt::norm(call, first, last, true);
}

// infopt_layer_norm_bytes: the same with the results rounded to bytes as well, in panels
//   pointers  as infopt_layer_norm, then factors of the columns of what is
//             rounded (f32, or null), then the panels (byte_panels.h)
//   numbers   as infopt_layer_norm; out is f32 or null, R a multiple of 16; 14 how rows become bytes
//             (RowRounding)  15, 16 step (a double) and zero point of a static range
//   tasks, scratch  as infopt_layer_norm
INFOPT_EXPORT void infopt_layer_norm_bytes(const infopt_call *call, int64_t first, int64_t last) {
  using namespace infopt;
  const int64_t *n = call->numbers;
  const NormBytes bytes = {byte_panels(call->pointers[7], n[0], n[1]),
                           read_rounding(n[14], n + 15), pointer<float>(call, 6)};
  norm(call, first, last, false, &bytes);
}

// infopt_group_norm: out = (x - mean) * rsqrt(variance + eps) * weight[channel] + bias[channel]
//   pointers  x, weight|null, bias|null, out   x and out contiguous, of one dtype
//   numbers   0 channels of a group  1 elements of a channel  2 groups of a batch entry
//             3 eps (a double)  4 dtype of x  5 dtype of weight and bias
//   tasks     one per group of a batch entry    scratch   none
INFOPT_EXPORT void infopt_group_norm(const infopt_call *call, int64_t first, int64_t last) {
  using namespace infopt;
  const int64_t *n = call->numbers;
  const GroupNorm norm = {n[0], n[1], n[2], n[5], as_double(n[3]), pointer<void>(call, 1),
                          pointer<void>(call, 2)};
  with_float_type(n[4], [&](auto type) {
    using T = decltype(type);
    for (int64_t group = first; group < last; ++group) {
      const int64_t at = group * n[0] * n[1];
      norm.run(group, pointer<T>(call, 0) + at, pointer<T>(call, 3) + at);
    }
  });
}

// infopt_softmax: out = softmax(x * scale + mask) along the last of four dimensions, or its log.
//   pointers  x, mask|null, out
//   numbers   0 sizes A, B, C of the outer dimensions  3 width N >= 1  4 R
//             strides: 5 x of A, B, C   8 mask of A, B, C, N (0: broadcast; N: 0 or 1)
//             12 out of A, B, C   dtypes: 15 x  16 mask (9 bool: true keeps)  17 out
//             18 1: logarithm  19 scale (a double)
//   tasks     ceil(A * B * C / R)    scratch   4 * roundup(N, 16) bytes
INFOPT_EXPORT void infopt_softmax(const infopt_call *call, int64_t first, int64_t last) {
  using namespace infopt;
  const int64_t *n = call->numbers;
  SoftmaxShape s;
  for (int i = 0; i < 3; ++i)
    s.sizes[i] = n[i], s.x_stride[i] = n[5 + i], s.out_stride[i] = n[12 + i];
  for (int i = 0; i < 4; ++i) s.mask_stride[i] = n[8 + i];
  s.width = n[3], s.x_element = n[15], s.mask_element = n[16], s.out_element = n[17];
  s.logarithm = n[18], s.scale = float(as_double(n[19]));
  const int64_t end = least(s.sizes[0] * s.sizes[1] * s.sizes[2], last * n[4]);
  for (int64_t row = first * n[4]; row < end; ++row) {
    const int64_t c = row % s.sizes[2], b = row / s.sizes[2] % s.sizes[1],
                  a = row / s.sizes[2] / s.sizes[1];
    const auto index = [&](const int64_t *stride) {
      return a * stride[0] + b * stride[1] + c * stride[2];
    };
    const void *mask = pointer<void>(call, 1);
    softmax_row(s, at(pointer<const void>(call, 0), s.x_element, index(s.x_stride)),
                mask ? at(mask, s.mask_element, index(s.mask_stride)) : nullptr,
                at(pointer<void>(call, 2), s.out_element, index(s.out_stride)),
                static_cast<float *>(call->scratch));
  }
}

// infopt_embedding: out[i] = table[ids[i]]
//   pointers  ids, table, out, error: one int32, set to 1 if an id is out of range (row: zeros)
//   numbers   0 ids M  1 width N  2 R  3 table rows  4 table row stride  5 out row stride
//             dtypes: 6 ids (int64 or int32)  7 table  8 out
//   tasks     ceil(M / R)        scratch   none
INFOPT_EXPORT void infopt_embedding(const infopt_call *call, int64_t first, int64_t last) {
  using namespace infopt;
  const int64_t *n = call->numbers;
  const EmbeddingTable table = {pointer<void>(call, 0), pointer<void>(call, 1), n[6], n[3], n[4],
                                n[7]};
  const int64_t end = least(n[0], last * n[2]);
  for (int64_t i = first * n[2]; i < end; ++i) {
    const void *row = table.row(i);
    if (!row) report(pointer<int32_t>(call, 3));
    copy_row(row, n[7], at(pointer<void>(call, 2), n[8], i * n[5]), n[8], n[1]);
  }
}

// infopt_embedding_norm: layer_norm(t0[ids0] + t1[ids1] + t2[ids2]) of tokens [B, T]
//   pointers  ids0|null, ids1|null, ids2|null, t0, t1|null, t2|null, weight|null, bias|null, out,
//             error (as embedding's). A table without ids takes the token's position 0..T-1.
//   numbers   0 batches B  1 tokens T  2 width N >= 1  3 R  4 out row stride  5 eps (a double)
//             6 1: out is in token panels [B*T, N]  dtypes: 7 tables and their sum
//             8 weight and bias  9 out   per table t, at 10 + 5t: ids' dtype, ids' strides of
//             batch and token, table rows, table row stride
//   tasks     ceil(B * T / R)    scratch   72 * roundup(N, 16) bytes
INFOPT_EXPORT void infopt_embedding_norm(const infopt_call *call, int64_t first, int64_t last) {
  using namespace infopt;
  const int64_t *n = call->numbers;
  NormShape s = {};
  s.rows = n[0] * n[1], s.width = n[2], s.out_stride = n[4], s.eps = as_double(n[5]);
  s.panels = n[6], s.weight_element = n[8], s.out_element = n[9];
  EmbeddedRows values;
  values.tokens = n[1], values.width = n[2], values.element = n[7];
  values.error = pointer<int32_t>(call, 9);
  for (int t = 0; t < EmbeddedRows::kTables; ++t) {
    const int64_t *m = n + 10 + 5 * t;
    values.table[t] = {pointer<void>(call, t), pointer<void>(call, 3 + t), m[0], m[3], m[4], n[7]};
    values.batch_stride[t] = m[1], values.token_stride[t] = m[2];
  }
  normalize_rows(s, first * n[3], least(s.rows, last * n[3]), pointer<void>(call, 6),
                 pointer<void>(call, 7), pointer<void>(call, 8),
                 static_cast<float *>(call->scratch), values);
}

// infopt_rotary: y = x * cos + rotate(x) * sin for the heads of q, and of k at the same tokens
//   pointers  q, k|null, cos, sin, q_out, k_out|null        q_out may be q, and k_out k
//   numbers   0 batches B  1 tokens T  2 depth D (features are contiguous)  3 rotated, even
//             4 1: pairs are interleaved (2i, 2i+1), else halves
//             5 1: tables have rotated/2 columns, else rotated
//             6 tables' strides of batch, token (the same for cos and sin)
//             8 dtype of q and k   9 dtype of cos and sin   10 R tokens of one task
//             11 heads of q, 12 q strides of batch, head, token, 15 q_out strides
//             18 heads of k, 19 k strides, 22 k_out strides
//   tasks     ceil(B * T / R)    scratch   8 * roundup(rotated, 16) bytes
INFOPT_EXPORT void infopt_rotary(const infopt_call *call, int64_t first, int64_t last) {
  using namespace infopt;
  const int64_t *n = call->numbers;
  RotaryShape s;
  s.batches = n[0], s.tokens = n[1], s.depth = n[2], s.rotated = n[3];
  s.interleaved = n[4], s.per_pair = n[5], s.table[0] = n[6], s.table[1] = n[7];
  s.element = n[8], s.table_element = n[9];
  const RotaryHeads q = {n[11], {n[12], n[13], n[14]}, {n[15], n[16], n[17]}};
  const RotaryHeads k = {n[18], {n[19], n[20], n[21]}, {n[22], n[23], n[24]}};
  float *cosines = static_cast<float *>(call->scratch);
  float *sines = cosines + round_up(s.rotated, 16);
  const int64_t end = least(s.batches * s.tokens, last * n[10]);
  for (int64_t row = first * n[10]; row < end; ++row) {
    const int64_t batch = row / s.tokens, token = row % s.tokens;
    const int64_t angle = batch * s.table[0] + token * s.table[1];
    load_angles(s, at(pointer<void>(call, 2), s.table_element, angle),
                at(pointer<void>(call, 3), s.table_element, angle), cosines, sines);
    rotate_heads(s, q, batch, token, cosines, sines, pointer<void>(call, 0),
                 pointer<void>(call, 4));
    if (pointer<void>(call, 1))
      rotate_heads(s, k, batch, token, cosines, sines, pointer<void>(call, 1),
                   pointer<void>(call, 5));
  }
}

// infopt_copy: out = x cast to out's dtype, element by element (all ten dtypes)
//   pointers  x, out
//   numbers   0 dimensions (0..6)  1 dtype of x  2 dtype of out  3 tasks, any number >= 1
//             4 six sizes  10 six strides of x (0: broadcast)  16 six strides of out
//   tasks     numbers[3]; one per 64 KiB of output or so      scratch   none
//   Casts are torch's on this machine's CPU: a float outside the range of int64 or int32 gives the
//   least integer; int16 and int8 are the low bits of the int32, uint8 of the int64; bool: x != 0.
INFOPT_EXPORT void infopt_copy(const infopt_call *call, int64_t first, int64_t last) {
  using namespace infopt;
  const int64_t *n = call->numbers;
  CopyShape s(n[0], n[1], n[2], n + 4, n + 10, n + 16);
  s.run(pointer<char>(call, 0), pointer<char>(call, 1), first, last, n[3]);
}

// infopt_row_index: the positions of the true bytes of mask[N] in order, 0 in what is left of out.
//   pointers  mask (bool), out (int64)    numbers  0 N  1 rows of out    tasks  1
INFOPT_EXPORT void infopt_row_index(const infopt_call *call, int64_t, int64_t) {
  using namespace infopt;
  const uint8_t *mask = pointer<uint8_t>(call, 0);
  int64_t *out = pointer<int64_t>(call, 1), count = 0;
  const int64_t rows = call->numbers[1];
  for (int64_t i = 0; i < call->numbers[0] && count < rows; ++i) {
    out[count] = i;
    count += mask[i] != 0;
  }
  for (; count < rows; ++count) out[count] = 0;
}

// infopt_row_starts: out[b] = true bytes in the rows of mask[B, T] before row b, b = 0 to B.
//   pointers  mask (bool), out (int64)    numbers  0 B  1 T    tasks  1
INFOPT_EXPORT void infopt_row_starts(const infopt_call *call, int64_t, int64_t) {
  using namespace infopt;
  const uint8_t *mask = pointer<uint8_t>(call, 0);
  int64_t *out = pointer<int64_t>(call, 1), count = 0;
  const int64_t width = call->numbers[1];
  out[0] = 0;
  for (int64_t b = 0; b < call->numbers[0]; ++b) {
    for (int64_t t = 0; t < width; ++t) count += mask[b * width + t] != 0;
    out[b + 1] = count;
  }
}

// infopt_unpack_rows: the rows of x at the true places of mask[B, T] in order, zeros elsewhere.
//   pointers  x [N, W], mask (bool), starts (int64 [B + 1]), out [B, T, W]
//   numbers   0 B  1 T  2 bytes of a row    tasks  B
INFOPT_EXPORT void infopt_unpack_rows(const infopt_call *call, int64_t first, int64_t last) {
  using namespace infopt;
  const int64_t width = call->numbers[1], bytes = call->numbers[2];
  for (int64_t b = first; b < last; ++b) {
    const char *x = pointer<char>(call, 0) + pointer<int64_t>(call, 2)[b] * bytes;
    const uint8_t *mask = pointer<uint8_t>(call, 1) + b * width;
    char *out = pointer<char>(call, 3) + b * width * bytes;
    for (int64_t t = 0; t < width; ++t, out += bytes) {
      if (mask[t]) {
        memcpy(out, x, size_t(bytes));
        x += bytes;
      } else {
        memset(out, 0, size_t(bytes));
      }
    }
  }
}
