// Exports: linear layers whose weights are kept in groups.
#include "group_sparse_few.h"

using namespace infopt;

// infopt_group_sparse_<panel type>_<value type>: infopt_linear of weights kept in groups
//   pointers  as infopt_linear, w being the values [ceil(N / 8)][kept][8][width], up null; 8: columns
//             int32 [ceil(N / 8)][kept], of which group, rising. width: 2 in bf16, 1 in others
//   numbers   as infopt_linear, but 3 is `kept`; n_chunk is a multiple of 8
//   tasks, scratch: as infopt_linear
#define INFOPT_GROUP_SPARSE(name, Step, W)                                                       \
  INFOPT_EXPORT void infopt_group_sparse_##name(const infopt_call *call, int64_t first,          \
                                                int64_t last) {                                  \
    linear_from<Step, GroupRows<Step, W>>(call, first, last);                                    \
  }
INFOPT_GROUP_SPARSE(f32_f32, StepF32, float)
INFOPT_GROUP_SPARSE(f32_f16, StepF32, f16)
INFOPT_GROUP_SPARSE(bf16_bf16, StepPairs, bf16)
#undef INFOPT_GROUP_SPARSE

// infopt_group_sparse_few_<value type>: the same for few tokens (M <= 8 or so), x row-major.
//   pointers, numbers: as above; 14 is the row stride of x, 15 its format, that of the values; 5 is
//                      not used; all formats are row formats
//   tasks, scratch:    as infopt_few_rows
#define INFOPT_GROUP_SPARSE_FEW(name, Across, W)                                                 \
  INFOPT_EXPORT void infopt_group_sparse_few_##name(const infopt_call *call, int64_t first,      \
                                                    int64_t last) {                              \
    few_groups<Across, W>(call, first, last);                                                    \
  }
INFOPT_GROUP_SPARSE_FEW(f32, AcrossF32<float>, float)
INFOPT_GROUP_SPARSE_FEW(f16, AcrossF32<f16>, f16)
INFOPT_GROUP_SPARSE_FEW(bf16, AcrossBf16, bf16)
#undef INFOPT_GROUP_SPARSE_FEW
