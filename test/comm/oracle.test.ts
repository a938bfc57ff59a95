// A second, independent oracle: sums over ranks and RMSNorm written as gpu.js kernels, run by its `cpu` and `webasm` modes, against ours.
import { createRequire } from 'node:module'
import { afterAll, describe, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { Random, seed } from '../support/random.ts'
import { expectClose } from '../support/reference-ops.ts'

/** What is used of gpu.js, which has no types for its newer modes. */
interface Gpu {
  createKernel(source: (...args: never[]) => number): Kernel
  destroy(): Promise<void>
}
interface Kernel {
  setOutput(size: number[]): Kernel
  setConstants(constants: Record<string, number>): Kernel
  (...args: unknown[]): Float32Array | Float32Array[] | Promise<Float32Array | Float32Array[]>
}
interface Thread {
  thread: { x: number; y: number }
  constants: Record<string, number>
}

const { GPU } = createRequire(import.meta.url)('gpu.js') as { GPU: new (options: { mode: string }) => Gpu }
const device = await testDevice()
afterAll(() => device.dispose())

const start = seed()
const random = new Random(start)

/** An array of `rows` rows, as gpu.js takes matrices. */
function rowsOf(data: Float32Array, width: number): Float32Array[] {
  return Array.from({ length: data.length / width }, (_, i) => data.slice(i * width, (i + 1) * width))
}

function flat(result: Float32Array | Float32Array[]): Float32Array {
  return Array.isArray(result) ? Float32Array.from(result.flatMap((row) => [...row])) : result
}

describe.each(['cpu', 'webasm'])(`gpu.js in its %s mode (seed ${start})`, (mode) => {
  it.each([
    ['sum', 3, 1000],
    ['prod', 4, 257],
    ['min', 2, 4097],
    ['max', 8, 64],
    ['avg', 5, 7],
  ] as const)('%s over %i ranks of %i values', async (op, ranks, count) => {
    const gpu = new GPU({ mode })
    const operands = Array.from({ length: ranks }, () => random.floats(count))
    const kernel = gpu
      .createKernel(function reduce(this: Thread, x: number[][]) {
        let value = (x[0] as number[])[this.thread.x] as number
        for (let r = 1; r < (this.constants.ranks as number); r++) {
          const other = (x[r] as number[])[this.thread.x] as number
          if (this.constants.op === 0 || this.constants.op === 4) value = value + other
          if (this.constants.op === 1) value = value * other
          if (this.constants.op === 2) value = Math.min(value, other)
          if (this.constants.op === 3) value = Math.max(value, other)
        }
        if (this.constants.op === 4) value = value / (this.constants.ranks as number)
        return value
      } as never)
      .setConstants({ ranks, op: ['sum', 'prod', 'min', 'max', 'avg'].indexOf(op) })
      .setOutput([count])
    const expected = flat(await kernel(operands))
    await launch({ ranks, devices: [device] }, async ({ rank, comm, device }) => {
      const y = await comm.allReduce(Tensor.from(operands[rank] as Float32Array, { device }), { op })
      expectClose((await y.data()) as Float32Array, expected, { abs: 1e-6, rel: 1e-6 })
    })
    await gpu.destroy()
  })

  it.each([
    [1, 64, 2],
    [5, 1000, 3],
    [3, 4097, 1],
  ])('residual + sum, and its RMSNorm: %i rows of %i, %i ranks', async (rows, n, ranks) => {
    const gpu = new GPU({ mode })
    const partials = Array.from({ length: ranks }, () => random.floats(rows * n))
    const [residual, gamma] = [random.floats(rows * n), random.floats(n)]
    const stream = Float32Array.from(residual, (value, i) => partials.reduce((sum, partial) => sum + (partial[i] as number), value))
    const kernel = gpu
      .createKernel(function norm(this: Thread, x: number[][], w: number[]) {
        let squares = 0
        for (let i = 0; i < (this.constants.n as number); i++) {
          const value = (x[this.thread.y] as number[])[i] as number
          squares = squares + value * value
        }
        const scale = 1 / Math.sqrt(squares / (this.constants.n as number) + 0.00001)
        return ((x[this.thread.y] as number[])[this.thread.x] as number) * scale * (w[this.thread.x] as number)
      } as never)
      .setConstants({ n })
      .setOutput([n, rows])
    const expected = flat(await kernel(rowsOf(stream, n), gamma))
    await launch({ ranks, devices: [device] }, async ({ rank, comm, device }) => {
      const shape = [rows, n]
      const args = {
        x: Tensor.from(partials[rank] as Float32Array, { shape, device }),
        residual: Tensor.from(residual, { shape, device }),
        weight: Tensor.from(gamma, { device }),
      }
      const y = await comm.allReduceResidualBiasRMSNorm({ ...args, eps: 1e-5 })
      expectClose((await y.data()) as Float32Array, expected, { abs: 1e-4 })
    })
    await gpu.destroy()
  })
})
