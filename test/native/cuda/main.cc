// Tests of the CUDA kernels on the CPU. Arguments: sums, joins, norms, experts, gathers or faults; seed; rounds; what is planted: barrier=K, relaxed or hasty.
#include "experts.h"
#include "faults.h"
#include "gathers.h"
#include "sums.h"

int main(int argc, char** argv) {
  if (argc < 4) test::Wrong("arguments: what seed rounds [planted]");
  const std::string what = argv[1], plant = argc > 4 ? argv[4] : "";
  test::Random random(static_cast<uint32_t>(std::strtoul(argv[2], nullptr, 10)));
  const int rounds = std::atoi(argv[3]);
  if (plant.rfind("barrier=", 0) == 0) emulation::planted.barrier = std::atoi(plant.c_str() + 8);
  emulation::planted.relaxed = plant == "relaxed";
  emulation::planted.hasty = plant == "hasty";
  emulation::planted.unfenced = plant == "unfenced";
  if (what == "sums" || what == "joins") test::sums::Check(random, rounds, what == "joins");
  if (what == "norms") test::norms::Check(random, rounds);
  if (what == "experts") test::experts::Check(random, rounds);
  if (what == "gathers") test::gathers::Check(random, rounds);
  if (what == "faults") test::faults::Check(random);
  return 0;
}
