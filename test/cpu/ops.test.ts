// Every operation on the CPU, by native kernels of each kind, by gpu.js and by loops: the cases that the WebGPU device passes too.
import { afterAll, describe, it } from 'vitest'
import type { CpuDevice } from '../../runtime/device/cpu/device.ts'
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
import { cpuDevices, reason } from '../support/cpu.ts'
import { FLOATS } from '../support/tensors.ts'

/** Lanes of the native kernels' sums. */
const LANES = 16
const way = { name: 'as it is', run: <T>(work: () => Promise<T>): Promise<T> => work() }
const types = FLOATS.flatMap((x) => FLOATS.map((w) => [x, w] as const))
const tokens = [1, 2, 3, 4, 5, 8, 17]

if (reason) it.skip(`native kernels${reason}`, () => {})

for (const { name, open } of cpuDevices()) {
  describe(name, () => {
    const device: CpuDevice = open()
    const other = open()
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
    matmulCases(device, [{ ...way, tokens, types, oneByOne: name.includes('webasm') }])
    treeCases(device)
    contractCases(device, LANES)
    refusalCases(device, other, () => ({ recorded: device.queue.recorded, live: device.memory.liveBlocks }))
  })
}
