// Tests of the kernels of single operations on the CPU, by the launches that commands become. Arguments: products, attention, rows, collectives or all;
// seed; rounds; what is planted: barrier=K.
#include "ops_attention.h"
#include "ops_collectives.h"
#include "ops_products.h"
#include "ops_rows.h"

int main(int argc, char** argv) {
  if (argc < 4) test::Wrong("arguments: what seed rounds [planted]");
  const std::string what = argv[1], plant = argc > 4 ? argv[4] : "";
  test::Random random(static_cast<uint32_t>(std::strtoul(argv[2], nullptr, 10)));
  const int rounds = std::atoi(argv[3]);
  if (plant.rfind("barrier=", 0) == 0) emulation::planted.barrier = std::atoi(plant.c_str() + 8);
  test::ops::Device device(random);
  for (int round = 0; round < rounds; round++) {
    device.Change(random);
    if (what == "products" || what == "all") test::ops::CheckProducts(device, random);
    if (what == "attention" || what == "all") test::ops::CheckAttentions(device, random);
    if (what == "rows" || what == "all") test::ops::CheckRows(device, random);
    if (what == "collectives" || what == "all") test::ops::CheckCollectives(device, random);
  }
  for (const auto& name : device.Unseen()) {
    if (what == "all") std::printf("not run: %s\n", name.c_str());
  }
  std::printf("%d calls\n", device.calls);
  return 0;
}
