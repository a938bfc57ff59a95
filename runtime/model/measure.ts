// Measured shares: how fast each rank decodes, timed on a short piece of the model, one rank after the other.
import type { Communicator } from '../comm/communicator.ts'
import { dtypeSize } from '../core/dtype.ts'
import { type Shape, sizeOf } from '../core/shape.ts'
import type { Device } from '../device/device.ts'
import type { LlamaConfig } from './config.ts'
import { Llama } from './llama.ts'
import type { Expected, TensorBytes, Weights } from './named-tensors.ts'
import { LOAD_TIMEOUT_MS } from './shards.ts'

/** The fastest of these counts; ranks take turns, so that what disturbs the machine for a while disturbs all. */
const ROUNDS = 5
/** Tokens between two waits for the device, so that the waits weigh little. */
const STEPS = 8
const VOCAB = 4096
/** Shares come in steps of this part of the fastest rank's, so that ranks that are equally fast get equal shares. */
const STEP = 1 / 16

/**
 * Shares in proportion to the ranks' speeds, alike on all ranks; collective. One rank of each device runs one layer and some rows of the
 * vocabulary by itself, unsplit, in the types of `weights` but with zeros for them: nothing is read but headers. Ranks on one device share
 * its speed evenly. A rank slower than 1/32 of the fastest gets 0.
 */
export async function measureShares(
  config: LlamaConfig,
  weights: Weights,
  { comm, device }: { comm: Communicator; device: Device },
): Promise<number[]> {
  const leader = await leaderOf(comm)
  const alone = (await comm.split({ color: leader === comm.rank ? comm.rank : null })) ?? undefined
  const piece = { ...config, layers: 1, vocabSize: Math.min(config.vocabSize, VOCAB) }
  using llama = alone && (await Llama.load(piece, zeros(weights), { comm: alone, device }, { capacity: STEPS, maxTokens: 1 }))
  let speed = 0
  for (let turn = 0; turn < ROUNDS * comm.size; turn++) {
    await comm.host.barrier({ timeoutMs: LOAD_TIMEOUT_MS })
    if (llama && turn % comm.size === comm.rank) speed = Math.max(speed, 1 / (await millisecondsOf(llama)))
  }
  alone?.destroy()
  const all = await comm.host.allGather({ leader, speed, deviceSize: comm.deviceSize }, { timeoutMs: LOAD_TIMEOUT_MS })
  const speeds = all.map(({ leader, deviceSize }) => (all[leader] as { speed: number }).speed / deviceSize)
  const fastest = Math.max(...speeds)
  return speeds.map((each) => Math.round(each / fastest / STEP) * STEP)
}

/** The first rank on this rank's device. */
async function leaderOf(comm: Communicator): Promise<number> {
  using note = await comm.allocate([1], { dtype: 'uint32', shared: true })
  if (comm.deviceRank === 0) note.set([comm.rank])
  await comm.barrier()
  return (await note.data())[0] as number
}

async function millisecondsOf(llama: Llama): Promise<number> {
  const start = performance.now()
  llama.truncate(0)
  for (let step = 0; step < STEPS; step++) {
    using logits = await llama.forward([0])
    if (step + 1 === STEPS) await logits.last()
  }
  return performance.now() - start
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
