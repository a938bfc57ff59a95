// Checks that the doubles keep CUDA's rules. Arguments: the driver's double, what to check, a seed. Says `good` where all is well.
#include "check_faults.h"
#include "check_graphs.h"
#include "check_kernels.h"
#include "check_multicast.h"
#include "check_products.h"
#include "check_streams.h"

using namespace check;

int main(int argc, char** argv) {
  if (argc < 4) Wrong("arguments: library what seed");
  const char* const library = argv[1];
  const auto seed = static_cast<uint32_t>(std::strtoul(argv[3], nullptr, 10));
  Load(library);
  const std::string what = argv[2];
  if (what == "order") Order(seed);
  else if (what == "asynchrony") Asynchrony();
  else if (what == "null-stream") NullStream();
  else if (what == "kernels") Kernels();
  else if (what == "processes") Processes(library, argc > 4 ? argv[4] : nullptr);
  else if (what == "graphs") Graphs();
  else if (what == "faults") Faults();
  else if (what == "slack") Slack();
  else if (what == "multicast") Multicasts();
  else if (what == "unbound" || what == "read-multicast") NoMulticast(what);
  else if (what == "host") HostTouches();
  else if (what == "products") Products(std::string(library).substr(0, std::string(library).rfind('/')) + "/libcublasLt-double.so", seed);
  else if (what == "no-devices") NoDevices();
  else Lost(what.c_str());
  if (argc <= 4) std::printf("good\n");
  return 0;
}
