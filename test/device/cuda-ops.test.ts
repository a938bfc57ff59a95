// Every operation on a CUDA device, by its kernels under emulation: the cases that all devices pass. And the same without cuBLASLt.
import { afterAll, describe, it } from 'vitest'
import type { CudaDevice } from '../../runtime/device/cuda/device.ts'
import { attentionCases } from '../support/cases/attention.ts'
import { castCases } from '../support/cases/cast.ts'
import { contractCases } from '../support/cases/contracts.ts'
import { elementwiseCases } from '../support/cases/elementwise.ts'
import { embeddingCases } from '../support/cases/embedding.ts'
import { matmulCases } from '../support/cases/matmul.ts'
import { refusalCases } from '../support/cases/refusals.ts'
import { rmsNormCases } from '../support/cases/rms_norm.ts'
import { ropeCases } from '../support/cases/rope.ts'
import { softmaxCases } from '../support/cases/softmax.ts'
import { topKCases } from '../support/cases/top_k.ts'
import { treeCases } from '../support/cases/tree.ts'
import { cudaDevices, reason } from '../support/cuda.ts'
import { FLOATS } from '../support/tensors.ts'

/** Threads of a block that sum a row, at most. */
const LANES = 1024
const way = { name: 'as it is', run: <T>(work: () => Promise<T>): Promise<T> => work() }
const types = FLOATS.flatMap((x) => FLOATS.map((w) => [x, w] as const))
const tokens = [1, 2, 3, 4, 5, 8, 17]

if (reason) it.skip(`CUDA${reason}`, () => {})

const [first] = cudaDevices()
if (first) {
  const device = (await first.open()) as CudaDevice
  const other = (await first.open()) as CudaDevice
  describe(`${first.name}, ${device.description}`, () => {
    afterAll(() => {
      device.dispose()
      other.dispose()
    })
    elementwiseCases(device)
    embeddingCases(device)
    castCases(device)
    ropeCases(device)
    attentionCases(device, [way])
    softmaxCases(device, [way])
    topKCases(device, [way])
    rmsNormCases(device, LANES)
    matmulCases(device, [{ ...way, tokens, types }])
    treeCases(device)
    contractCases(device, LANES)
    refusalCases(device, other, () => ({ recorded: device.queue.recorded, live: device.memory.liveBlocks }))
  })
}
