// Every kernel that a group of up to 8 ranks runs, for one element type: -DELEMENT=Bfloat16 and the like.
#include "all_reduce.cuh"
#include "fused_norm.cuh"

namespace rankmesh::cuda {

template __global__ void AllReduce<ELEMENT, 8, Algorithm::kOneShot>(const SumArgs);
template __global__ void AllReduce<ELEMENT, 8, Algorithm::kTwoShot>(const SumArgs);
template __global__ void AllReduce<ELEMENT, 8, Algorithm::kLamport>(const SumArgs);
template __global__ void AllReduceNorm<ELEMENT, 8, Algorithm::kOneShot, false>(const NormArgs);
template __global__ void AllReduceNorm<ELEMENT, 8, Algorithm::kTwoShot, false>(const NormArgs);
template __global__ void AllReduceNorm<ELEMENT, 8, Algorithm::kLamport, false>(const NormArgs);
template __global__ void AllReduceNorm<ELEMENT, 8, Algorithm::kOneShot, true>(const NormArgs);
template __global__ void AllReduceNorm<ELEMENT, 8, Algorithm::kTwoShot, true>(const NormArgs);
template __global__ void AllReduceNorm<ELEMENT, 8, Algorithm::kLamport, true>(const NormArgs);

}  // namespace rankmesh::cuda
