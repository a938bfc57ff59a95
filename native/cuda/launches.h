// What a command of the Device interface is on a CUDA device: kernels with their grids and arguments, products for cuBLASLt, copies. Host code
// without the driver.
#pragma once
#include <cstddef>
#include <cstdint>
#include <variant>
#include <vector>

#include "../engine/call.h"

namespace rankmesh::cuda {

/** What of a device decides how its commands run. */
struct Traits {
  int multiprocessors = 1;
  /** cuBLASLt is there: large products of one element type go to it. */
  bool cublaslt = false;
};

/** A kernel of ops_list.h. */
struct Launch {
  /** Of a static string: the same name is always the same pointer. */
  const char* kernel;
  unsigned grid[3];
  unsigned block;
  /** Dynamic shared memory; what kernels declare themselves is not counted. */
  unsigned shared_bytes;
  /** The kernel's one parameter, a struct, passed by value. At most 4 KiB. */
  std::vector<std::byte> arguments;
};

/**
 * y[t * pitch + o] = the sum over k of x[t * k + i] * w[o * k + i]: accumulated in float32 (never in TF32) and written as float32. x and w
 * are of `type`; all addresses and the bytes of all rows are multiples of 16. In cuBLASLt's terms, column by column: D [outs, tokens], leading
 * dimension pitch, = A^T B with A = w [k, outs] and B = x [k, tokens], leading dimensions k.
 */
struct Gemm {
  /** kF32, kBf16 or kF16. */
  engine::Type type;
  size_t tokens, k, outs;
  const void* x;
  const void* w;
  float* y;
  size_t pitch;
};

/** From device memory to device memory; they do not overlap. */
struct Copy {
  std::byte* to;
  const std::byte* from;
  size_t bytes;
};

using Step = std::variant<Launch, Gemm, Copy>;

/** Memory of the device for what the steps of one command hand on to each other; commands of one stream may share it. */
class Scratch {
 public:
  virtual ~Scratch() = default;
  /** Called once for a command at most. Aligned to 256 bytes. */
  virtual std::byte* Take(size_t bytes) = 0;
};

/**
 * The steps of a call of the ops kEmbedding to kGather but kMeet, to run in order on one stream; all of its pieces. Throws engine::BadCommand
 * for what no kernel does: more slices than fit the arguments of a kernel, more than 2^31 blocks.
 *
 * A row's or a token's bits do not depend on what travels with it, but for products (kMatmul): without cuBLASLt they change once, between 64
 * tokens and 65; with it, those of one element type change at 9 tokens, and from there on are cuBLASLt's.
 */
std::vector<Step> LaunchesOf(const engine::Call& call, const Traits& traits, Scratch& scratch);

}  // namespace rankmesh::cuda
