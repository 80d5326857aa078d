// Launches of GPU kernels, one after the other, from plain words. The driver's launch function is
// handed over as a pointer, so nothing here needs a driver or its headers.
#pragma once

#include <cstdint>
#include <cstring>

namespace infopt __attribute__((visibility("hidden"))) {

// cuLaunchKernel and hipModuleLaunchKernel alike.
typedef int (*LaunchFunction)(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                              unsigned block_x, unsigned block_y, unsigned block_z,
                              unsigned shared_bytes, void *stream, void **parameters,
                              void **extra);

enum ArgumentKind { POINTER = 0, INT32 = 1, INT64 = 2, FLOAT32 = 3 };
constexpr int64_t MOST_PARAMETERS = 256;
constexpr int64_t NOT_LAUNCHED = 1 << 20;  // our own error, beyond all of the driver's

// Words of one launch: function, threads, shared bytes, three grid slots, null pointers at the
// end, number of arguments; then (kind, buffer, slot) of each. `address(buffer, slot)` gives a
// pointer. Moves `word` past the launch and returns the driver's status.
template <class Address>
int launch(const int64_t *&word, const int64_t *slots, void *const *functions,
           LaunchFunction launch_kernel, void *stream, Address address) {
  const int64_t function = word[0], threads = word[1], shared = word[2];
  const int64_t grid[3] = {slots[word[3]], slots[word[4]], slots[word[5]]};
  const int64_t absent = word[6], count = word[7];
  const int64_t *argument = word + 8;
  word = argument + 3 * count;
  if (grid[0] <= 0 || grid[1] <= 0 || grid[2] <= 0) return 0;
  if (count + absent > MOST_PARAMETERS) return NOT_LAUNCHED;
  if (grid[0] > INT32_MAX || grid[1] > 65535 || grid[2] > 65535) return NOT_LAUNCHED;
  uint64_t values[MOST_PARAMETERS] = {};
  void *parameters[MOST_PARAMETERS];
  for (int64_t i = 0; i < count + absent; ++i) parameters[i] = &values[i];
  for (int64_t i = 0; i < count; ++i, argument += 3) {
    const int64_t value = slots[argument[2]];
    if (argument[0] == POINTER) {
      values[i] = reinterpret_cast<uint64_t>(address(argument[1], argument[2]));
    } else if (argument[0] == FLOAT32) {
      double wide;
      memcpy(&wide, &value, sizeof(wide));
      const float narrow = static_cast<float>(wide);
      memcpy(&values[i], &narrow, sizeof(narrow));
    } else {  // little-endian: the first bytes of 64 are those of 32
      if (argument[0] == INT32 && value != static_cast<int32_t>(value)) return NOT_LAUNCHED;
      memcpy(&values[i], &value, sizeof(value));
    }
  }
  return launch_kernel(functions[function], static_cast<unsigned>(grid[0]),
                       static_cast<unsigned>(grid[1]), static_cast<unsigned>(grid[2]),
                       static_cast<unsigned>(threads), 1, 1, static_cast<unsigned>(shared), stream,
                       parameters, nullptr);
}

}  // namespace infopt
