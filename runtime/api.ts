// What both entries export: every public name, by floor.

export { ABORT_CHANNEL, type AbortEvent } from './comm/abort.ts'
export {
  ALGORITHMS,
  type Algorithm,
  type AlgorithmCost,
  type AlgorithmName,
  chooseAlgorithm,
  type ReductionCall,
} from './comm/algorithms.ts'
export { Communicator, createDeviceComm, type DeviceBackend, type GroupOptions } from './comm/communicator.ts'
export type {
  AllReduceOptions,
  AllToAllOptions,
  CommStats,
  DeviceComm,
  FusedNorm,
  FusedNormEx,
  GatherVOptions,
  Pitched,
  ReduceOp,
  ScatterVOptions,
  TreeCut,
  TuneReport,
} from './comm/device-comm.ts'
export type { CommunicatingModel, CommunicatingModule, DispatchedExperts, DispatchedLogits, DispatchOptions } from './comm/expert.ts'
export type { MoeAllReduceFusion, MoeFinalizeAllReduceFusion } from './comm/fusion/moe.ts'
export type { AllReduceFusion, FusionNorm, FusionOutputs, FusionResult } from './comm/fusion/options.ts'
export { AllReduceFusionPattern } from './comm/fusion/patterns.ts'
export {
  computeFp4SwizzledLayoutSfSize,
  fp4ScaleBytes,
  fp4ScaleOffset,
  type PackedScales,
  packedScaleOffset,
  packedScales,
  QuantizationSFLayout,
} from './comm/fusion/scale-layout.ts'
export {
  AllReduceFusionWorkspace,
  createAllReduceFusionWorkspace,
  type FusionProblemSize,
  type FusionWorkspaceMetadata,
  type FusionWorkspaceOptions,
} from './comm/fusion/workspace.ts'
export type { HostComm, HostOp } from './comm/host.ts'
export { createHostGroup, type HostBackend, type HostGroup, importHostGroup } from './comm/host-group.ts'
export { type OwnedRows, ownedRows } from './comm/ownership.ts'
export {
  decodeBfloat16,
  decodeFloat16,
  decodeFp4e2m1,
  decodeFp8e4m3,
  decodeFp8e5m2,
  decodeUe8m0,
  encodeBfloat16,
  encodeFloat16,
  encodeFp4e2m1,
  encodeFp8e4m3,
  encodeFp8e5m2,
  encodeUe8m0,
} from './core/codecs.ts'
export { DTYPES, type DType, decode, dtypeSize, encode, type TensorData } from './core/dtype.ts'
export {
  ArgumentError,
  BackendUnavailableError,
  CollectiveMismatchError,
  DeviceError,
  DTypeError,
  type ErrorCode,
  ModelFormatError,
  OutOfMemoryError,
  RankFailedError,
  RankmeshError,
  ShapeError,
  TimeoutError,
} from './core/errors.ts'
export type { Shape } from './core/shape.ts'
export { hostMemory, type Storage, type TensorDevice } from './core/storage.ts'
export { Tensor, type TensorOptions } from './core/tensor.ts'
export type { Activations, Attention, Device, KernelTime, RopeAppend, TreeProduct } from './device/device.ts'
export { adoptDevice, openDevice } from './device/open.ts'
export { type LlamaConfig, parseConfig, ropeFrequencies } from './model/config.ts'
export { StreamDetokenizer } from './model/detokenizer.ts'
export { type GeneratedToken, type GenerateOptions, LanguageModel, type LoadOptions, readConfig } from './model/generate.ts'
export { Llama, type LlamaOptions, Logits } from './model/llama.ts'
export { matrixTypes } from './model/matrix-types.ts'
export { type MeasuredRanks, measureRanks, measureShares } from './model/measure.ts'
export { formatReport } from './model/report.ts'
export { type RankReport, type RunOptions, type RunReport, runModel } from './model/run.ts'
export { Sampler, type SamplerOptions } from './model/sampling.ts'
export type { ByteSource, ModelFolder } from './model/source.ts'
export { fetchFolder } from './model/source-fetch.ts'
export { type ChatMessage, Tokenizer } from './model/tokenizer.ts'
export { openWeights, type Weights } from './model/weights.ts'
export { type HeadShape, type KvCache, ParallelAttention } from './nn/attention.ts'
export { type BlockCut, blockCut, ColumnParallelLinear, RowParallelLinear } from './nn/linear.ts'
export { ParallelMlp } from './nn/mlp.ts'
export { type Norm, Partial } from './nn/partial.ts'
export { VocabParallelEmbedding, VocabParallelHead } from './nn/vocab.ts'
export { type BufferSpec, Workspace } from './nn/workspace.ts'
export { type LaunchOptions, launch, type RankContext } from './scheduler/launch.ts'
export { Mapping, type MappingOptions } from './scheduler/mapping.ts'
export { type MemoryGiven, rankMemory } from './scheduler/memory.ts'
export {
  type LayerShard,
  type MatrixTypes,
  type ModelShape,
  type PlanOptions,
  plan,
  type RankShard,
  type RankSpeed,
  type ShardPlan,
  type Span,
} from './scheduler/plan.ts'
