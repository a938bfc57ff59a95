// Products of bfloat16 through oneDNN's matmul primitive; its own cache keeps the kernels that it makes for each size.
#include "rounded.h"

#ifdef RANKMESH_ONEDNN
#include <omp.h>

#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#endif

namespace rankmesh::cpu {

#ifdef RANKMESH_ONEDNN

namespace {

const dnnl::engine& Engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

/** What a thread reuses from product to product. */
struct Thread {
  dnnl::stream stream{Engine()};
  std::unique_ptr<std::byte[]> memory;
  size_t bytes = 0;

  /** oneDNN would share the work out over threads of its own; ranks are the threads here. */
  Thread() { omp_set_num_threads(1); }

  void* Take(size_t wanted) {
    if (wanted > bytes) {
      memory.reset();
      memory.reset(new std::byte[wanted]);
      bytes = wanted;
    }
    return memory.get();
  }
};

}  // namespace

bool CanMultiplyRounded() { return dnnl::get_effective_cpu_isa() >= dnnl::cpu_isa::avx512_core_bf16; }

bool MultiplyRounded(const RoundedProduct& product) {
  using dnnl::memory;
  thread_local Thread thread;
  const auto tokens = static_cast<memory::dim>(product.tokens), k = static_cast<memory::dim>(product.k), outs = static_cast<memory::dim>(product.outs);
  try {
    const memory::desc x({tokens, k}, memory::data_type::bf16, memory::format_tag::ab);
    const memory::desc w({k, outs}, memory::data_type::bf16, memory::format_tag::ba);
    const memory::desc bias({1, outs}, memory::data_type::f32, memory::format_tag::ab);
    const memory::desc y({tokens, outs}, memory::data_type::f32, memory::dims{static_cast<memory::dim>(product.pitch), 1});
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    using Matmul = dnnl::matmul;
#if DNNL_VERSION_MAJOR >= 3
    const auto plan = product.bias ? Matmul::primitive_desc(Engine(), x, w, bias, y, attributes) : Matmul::primitive_desc(Engine(), x, w, y, attributes);
#else
    const auto plan = product.bias ? Matmul::primitive_desc(Matmul::desc(x, w, bias, y), attributes, Engine())
                                   : Matmul::primitive_desc(Matmul::desc(x, w, y), attributes, Engine());
#endif
    const auto at = [](const memory::desc& desc, const void* data) { return memory(desc, Engine(), const_cast<void*>(data)); };
    std::unordered_map<int, memory> operands{{DNNL_ARG_SRC, at(x, product.x)},
                                             {DNNL_ARG_WEIGHTS, at(w, product.w)},
                                             {DNNL_ARG_DST, at(y, product.y)},
                                             {DNNL_ARG_SCRATCHPAD, at(plan.scratchpad_desc(), thread.Take(plan.scratchpad_desc().get_size()))}};
    if (product.bias) operands.emplace(DNNL_ARG_BIAS, at(bias, product.bias));
    Matmul(plan).execute(thread.stream, operands);
    thread.stream.wait();
    return true;
  } catch (const dnnl::error&) {
    return false;
  }
}

#else

bool CanMultiplyRounded() { return false; }
bool MultiplyRounded(const RoundedProduct&) { return false; }

#endif

}  // namespace rankmesh::cpu
