// Measured shares: how fast each rank decodes, timed on a short piece of the model while all ranks run it at once.
import type { Communicator } from '../comm/communicator.ts'
import { dtypeSize } from '../core/dtype.ts'
import { type Shape, sizeOf } from '../core/shape.ts'
import type { Device } from '../device/device.ts'
import type { LlamaConfig } from './config.ts'
import { Llama } from './llama.ts'
import type { Expected, TensorBytes, Weights } from './named-tensors.ts'

const ROUNDS = 4
/** Tokens between two waits for the device, so that the waits weigh little. */
const STEPS = 8
const VOCAB = 4096
/** Shares come in steps of this part of the fastest rank's, so that ranks that are equally fast get equal shares. */
const STEP = 1 / 16

/**
 * Shares in proportion to the ranks' speeds, alike on all ranks; collective. Each rank runs one layer and some rows of the vocabulary by
 * itself, unsplit, in the types of `weights` but with zeros for them: nothing is read but headers. Ranks on one device share its speed. A
 * rank slower than 1/32 of the fastest gets 0.
 */
export async function measureShares(
  config: LlamaConfig,
  weights: Weights,
  { comm, device }: { comm: Communicator; device: Device },
): Promise<number[]> {
  const alone = (await comm.split({ color: comm.rank })) as Communicator
  const piece = { ...config, layers: 1, vocabSize: Math.min(config.vocabSize, VOCAB) }
  using llama = await Llama.load(piece, zeros(weights), { comm: alone, device }, { capacity: STEPS, maxTokens: 1 })
  let best = Number.POSITIVE_INFINITY
  for (let round = 0; round < ROUNDS; round++) {
    await comm.host.barrier()
    const start = performance.now()
    llama.truncate(0)
    for (let step = 0; step < STEPS; step++) {
      using logits = await llama.forward([0])
      if (step + 1 === STEPS) await logits.last()
    }
    if (round > 0) best = Math.min(best, performance.now() - start) // the first one compiles kernels
  }
  const times = await comm.host.allGather(best)
  alone.destroy()
  const fastest = Math.min(...times)
  return times.map((time) => Math.round(fastest / time / STEP) * STEP)
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
