// Measured ranks: how fast each decodes, timed on a short piece of the model, one rank after the other.
import type { Communicator } from '../comm/communicator.ts'
import { blockLength, dtypeSize } from '../core/dtype.ts'
import { type Shape, sizeOf } from '../core/shape.ts'
import type { Device } from '../device/device.ts'
import type { MatrixTypes, RankSpeed } from '../scheduler/costs.ts'
import type { LlamaConfig } from './config.ts'
import { Llama } from './llama.ts'
import { matrixTypes } from './matrix-types.ts'
import type { Expected, TensorBytes, Weights } from './named-tensors.ts'
import { LOAD_TIMEOUT_MS } from './shards.ts'

/** The fastest of these counts; ranks take turns, so that what disturbs the machine for a while disturbs all. */
const ROUNDS = 5
/** Tokens between two waits for the device, so that the waits weigh little. */
const STEPS = 8
const VOCAB = 4096
/** Shares come in steps of this part of the fastest rank's, so that ranks that are equally fast get equal shares. */
const STEP = 1 / 16
/** Sums between two waits, to time one. */
const SUMS = 16

export interface MeasuredRanks {
  /** In proportion to the ranks' speeds. A rank slower than 1/32 of the fastest gets 0. */
  shares: number[]
  speeds: RankSpeed[]
  /** Seconds of one token's collectives. */
  collectiveSeconds: number
}

/** The shares of measureRanks. */
export async function measureShares(
  config: LlamaConfig,
  weights: Weights,
  context: { comm: Communicator; device: Device },
): Promise<number[]> {
  return (await measureRanks(config, weights, context)).shares
}

/**
 * How fast each rank is, alike on all ranks; collective. One rank of each device runs one layer and some rows of the vocabulary by itself,
 * unsplit, and then as little of a layer as there can be, in the types of `weights` but with zeros for them: nothing is read but headers. Ranks
 * on one device share its speed evenly.
 */
export async function measureRanks(
  config: LlamaConfig,
  weights: Weights,
  { comm, device }: { comm: Communicator; device: Device },
): Promise<MeasuredRanks> {
  const leader = await leaderOf(comm)
  const alone = (await comm.split({ color: leader === comm.rank ? comm.rank : null })) ?? undefined
  // Tied, so that a token reads all that the piece holds.
  const piece = { ...config, layers: 1, vocabSize: Math.min(config.vocabSize, VOCAB), tieEmbeddings: true }
  const load = (shape: LlamaConfig): Promise<Llama> | undefined =>
    alone && Llama.load(shape, zeros(weights), { comm: alone, device }, { capacity: STEPS, maxTokens: 1 })
  using whole = await load(piece)
  using thin = await load(await thinnest(piece, weights))
  let [wholeSeconds, thinSeconds] = [Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY]
  for (let turn = 0; turn < ROUNDS * comm.size; turn++) {
    await comm.host.barrier({ timeoutMs: LOAD_TIMEOUT_MS })
    if (!whole || !thin || turn % comm.size !== comm.rank) continue
    wholeSeconds = Math.min(wholeSeconds, await secondsOf(whole))
    thinSeconds = Math.min(thinSeconds, await secondsOf(thin))
  }
  const speed = whole && thin && speedOf(whole.plan.weightBytes(0), wholeSeconds, thin.plan.weightBytes(0), thinSeconds)
  alone?.destroy()
  const sum = await sumSeconds(comm, config.hiddenSize)
  const own = { leader, seconds: wholeSeconds, speed, sum, deviceSize: comm.deviceSize }
  const all = await comm.host.allGather(own, { timeoutMs: LOAD_TIMEOUT_MS })
  const measured = all.map(({ leader, deviceSize }) => {
    const { seconds, speed } = all[leader] as { seconds: number; speed: Required<RankSpeed> }
    const { bytesPerSecond, overhead } = speed
    return { rate: 1 / seconds / deviceSize, speed: { bytesPerSecond: bytesPerSecond / deviceSize, overhead: overhead * deviceSize } }
  })
  const fastest = Math.max(...measured.map(({ rate }) => rate))
  return {
    shares: measured.map(({ rate }) => Math.round(rate / fastest / STEP) * STEP),
    speeds: measured.map(({ speed }) => speed),
    // One before the first layer, two in each, and the gather of the logits.
    collectiveSeconds: (2 * config.layers + 2) * Math.max(...all.map(({ sum }) => sum)),
  }
}

/** The fewest heads and columns that make whole blocks, and one row of the vocabulary. */
async function thinnest(piece: LlamaConfig, weights: Weights): Promise<LlamaConfig> {
  const types = await matrixTypes(piece, weights)
  const [{ o, down }] = types.layers as [MatrixTypes['layers'][number]]
  const group = piece.heads / piece.kvHeads
  let kvHeads = 1
  while ((kvHeads * group * piece.headDim) % blockLength(o) !== 0 && kvHeads < piece.kvHeads) kvHeads++
  const intermediateSize = Math.min(piece.intermediateSize, Math.max(4, blockLength(down)))
  return { ...piece, heads: kvHeads * group, kvHeads, intermediateSize, vocabSize: 1 }
}

/** The line through two pieces' times: what a byte takes, and what each of the three components takes besides. */
function speedOf(bytes: number, seconds: number, thinBytes: number, thinSeconds: number): Required<RankSpeed> {
  const more = seconds - thinSeconds
  if (!(more > 0 && bytes > thinBytes)) return { bytesPerSecond: bytes / seconds, overhead: 0 }
  const perByte = more / (bytes - thinBytes)
  return { bytesPerSecond: 1 / perByte, overhead: Math.max(0, thinSeconds - thinBytes * perByte) / 3 }
}

/** Seconds of the sum of one token's hidden states over all ranks. */
async function sumSeconds(comm: Communicator, hidden: number): Promise<number> {
  using x = await comm.allocate([1, hidden])
  using out = await comm.allocate([1, hidden])
  x.set(new Float32Array(hidden))
  const run = async (count: number): Promise<number> => {
    await comm.host.barrier({ timeoutMs: LOAD_TIMEOUT_MS })
    const start = performance.now()
    for (let i = 0; i < count; i++) await comm.allReduce(x, { out })
    await out.data()
    return (performance.now() - start) / 1000 / count
  }
  await run(1)
  return await run(SUMS)
}

/** The first rank on this rank's device. */
async function leaderOf(comm: Communicator): Promise<number> {
  using note = await comm.allocate([1], { dtype: 'uint32', shared: true })
  if (comm.deviceRank === 0) note.set([comm.rank])
  await comm.barrier()
  return (await note.data())[0] as number
}

/** Seconds of one token. */
async function secondsOf(llama: Llama): Promise<number> {
  const start = performance.now()
  llama.truncate(0)
  for (let step = 0; step < STEPS; step++) {
    using logits = await llama.forward([0])
    if (step + 1 === STEPS) await logits.last()
  }
  return (performance.now() - start) / 1000 / STEPS
}

/** Tensors of the types that `weights` has, of any shape that is asked for, all zero. */
function zeros(weights: Weights): Weights {
  const make = async (name: string, shape: Shape): Promise<TensorBytes> => {
    const { dtype } = await weights.info(name)
    return { dtype, shape, bytes: new Uint8Array(sizeOf(shape) * dtypeSize(dtype)) }
  }
  return {
    bytesRead: 0,
    names: () => weights.names(),
    has: (name) => weights.has(name),
    info: (name, { dtype }: Expected = {}) => weights.info(name, dtype === undefined ? {} : { dtype }),
    read: async (name, { shape }: Expected = {}) => make(name, shape ?? (await weights.info(name)).shape),
    readSlice: async (name, dim, _, length, { shape }: Expected = {}) =>
      make(name, (shape ?? (await weights.info(name)).shape).with(dim, length)),
    close: () => weights.close(),
  }
}
