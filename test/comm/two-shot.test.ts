// One-shot and two-shot over three and four devices: the same bits, the sum within rounding, the waits and bytes each declares.
import { afterAll, describe, expect, it, vi } from 'vitest'
import { ALGORITHMS, type AlgorithmName } from '../../runtime/comm/algorithms.ts'
import type { DType } from '../../runtime/core/dtype.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import { openDevice } from '../../runtime/device/open.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { Random, seed } from '../support/random.ts'
import * as reference from '../support/reference-ops.ts'

const devices: WebGpuDevice[] = []
for (let i = 0; i < 4; i++) devices.push((await openDevice('webgpu')) as WebGpuDevice)
afterAll(() => {
  for (const device of devices) device.dispose()
})

const start = seed()
const random = new Random(start)
const hex = async (tensor: Tensor): Promise<string> => Buffer.from(await tensor.bytes()).toString('hex')

const GROUPS: [string, WebGpuDevice[], number][] = [
  ['3 ranks on 3 devices', devices.slice(0, 3), 3],
  ['7 ranks on 3 devices', devices.slice(0, 3), 7],
  ['4 ranks on 4 devices', devices, 4],
  ['4 ranks on 2 devices', devices.slice(0, 2), 4],
]

describe.each(GROUPS)(`%s (seed ${start})`, (_, on, ranks) => {
  const run = async (
    operands: readonly Float32Array[],
    dtype: DType,
    algorithm: AlgorithmName,
    outs = false,
  ): Promise<{ bits: string[]; data: Float32Array }> => {
    const results = await launch({ ranks, devices: on }, async ({ rank, comm, device }) => {
      const x = Tensor.from(operands[rank] as Float32Array, { dtype, device })
      const out = outs ? Tensor.full([x.size], Number.NaN, { dtype, device }) : undefined
      const y = await comm.allReduce(x, { algorithm, out })
      return { bits: await hex(y), data: (await y.data()) as Float32Array }
    })
    return { bits: results.map(({ bits }) => bits), data: (results[0] as { data: Float32Array }).data }
  }

  it.each([1, 13, 1000, 4097])('allReduce of %i values: the bits of one-shot, on every rank', async (count) => {
    for (const dtype of ['float32', 'bfloat16', 'float16'] as const) {
      if (Math.ceil(count / 4) < on.length) continue // fewer pieces than devices: refused, see below
      const operands = Array.from({ length: ranks }, () => random.floats(count))
      const one = await run(operands, dtype, 'one-shot')
      for (const outs of [false, true]) {
        const two = await run(operands, dtype, 'two-shot', outs)
        expect(new Set([...one.bits, ...two.bits]).size).toBe(1)
      }
      if (dtype === 'float32') reference.expectClose(one.data, reference.allReduce(operands, 'sum'), { abs: 1e-5 })
    }
  })

  it.each([
    [4, 64, true],
    [9, 1000, false],
    [5, 7, true],
  ])('the fused norm of %i rows of %i: residual and result', async (rows, n, shared) => {
    const partials = Array.from({ length: ranks }, () => random.floats(rows * n))
    const [stream, gamma, bias] = [random.floats(rows * n), random.floats(n), random.floats(n)]
    const fused = (dtype: DType, algorithm: AlgorithmName): Promise<string[]> =>
      launch({ ranks, devices: on }, async ({ rank, comm, device }) => {
        const options = { shape: [rows, n], dtype, device }
        const residual = shared ? await comm.allocate([rows, n], { dtype, shared: true }) : Tensor.empty([rows, n], { dtype, device })
        if (!shared || comm.deviceRank === 0) residual.set(stream)
        await comm.barrier()
        const x = Tensor.from(partials[rank] as Float32Array, options)
        const [weight, plus] = [Tensor.from(gamma, { dtype, device }), Tensor.from(bias, { dtype, device })]
        const y = await comm.allReduceResidualBiasRMSNorm({ x, residual, weight, bias: plus, algorithm })
        return `${await hex(y)} ${await hex(residual)}`
      })
    for (const dtype of ['float32', 'bfloat16'] as const) {
      expect(new Set([...(await fused(dtype, 'one-shot')), ...(await fused(dtype, 'two-shot'))]).size).toBe(1)
    }
  })
})

it('costs what it declares: waits, and bytes each way', async () => {
  const count = 4000
  const measured = async (algorithm: AlgorithmName): Promise<Record<'maps' | 'bytesToHost' | 'bytesToDevice', number>[]> => {
    const before = devices.map((device) => device.stats)
    await launch({ ranks: 4, devices }, async ({ comm, device }) => {
      const x = await comm.allocate([count])
      const y = await comm.allReduce(x, { algorithm })
      await device.sync() // what was uploaded for the last step counts too
      y.dispose()
    })
    return devices.map(({ stats }, i) => ({
      maps: stats.maps - (before[i]?.maps as number) - 1,
      bytesToHost: stats.bytesToHost - (before[i]?.bytesToHost as number) - 4,
      bytesToDevice: stats.bytesToDevice - (before[i]?.bytesToDevice as number),
    }))
  }
  const call = { collective: 'allReduce', count, dtype: 'float32', pieces: count / 4, ranksPerDevice: [1, 1, 1, 1] } as const
  for (const algorithm of ALGORITHMS.filter(({ refuses }) => refuses(call) === null)) {
    const { steps, bytesToHost, bytesToDevice } = algorithm.cost(call)
    for (const device of await measured(algorithm.name)) expect(device).toEqual({ maps: steps, bytesToHost, bytesToDevice })
  }
})

it('refuses an algorithm that cannot run, or that ranks do not agree on', async () => {
  const refused = (algorithm: string, ranks = 3): Promise<unknown> =>
    launch({ ranks, devices: ranks === 3 ? devices.slice(0, 3) : devices.slice(0, 1) }, ({ comm, device }) =>
      comm.allReduce(Tensor.full([4], 1, { device }), { algorithm: algorithm as AlgorithmName }),
    )
  await expect(refused('two-shot')).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringContaining('1 pieces') })
  await expect(refused('one-shot', 2)).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringContaining('one device') })
  await expect(refused('ring')).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
  const mixed = launch({ ranks: 3, devices: devices.slice(0, 3) }, ({ rank, comm, device }) =>
    comm.allReduce(Tensor.full([64], 1, { device }), { algorithm: rank === 1 ? 'one-shot' : 'two-shot' }),
  )
  await expect(mixed).rejects.toMatchObject({ code: 'ERR_COLLECTIVE_MISMATCH' })
})

it('RANKMESH_DEBUG=comm says what was chosen and why; nothing is said without it', async () => {
  const said: string[] = []
  const log = vi.spyOn(console, 'error').mockImplementation((line: string) => void said.push(line))
  const run = (): Promise<string[]> =>
    launch({ ranks: 3, devices: devices.slice(0, 3) }, async ({ comm, device }) => {
      await comm.allReduce(Tensor.full([1000], 1, { device }))
      return comm.describe()
    })
  try {
    await run()
    expect(said).toEqual([])
    process.env.RANKMESH_DEBUG = 'comm'
    const [line] = await run()
    expect(said[0]).toBe(`rankmesh: ${line}`)
    expect(line).toMatch(/^3 ranks \(1 on .+, 1 on .+, 1 on .+\): reductions one-shot or two-shot/)
    expect(said.at(-1)).toMatch(
      /^rankmesh: allReduce of 1000 float32 over 1\+1\+1 ranks: one-shot, 1 step, 8000 bytes into a device .* against two-shot/,
    )
  } finally {
    delete process.env.RANKMESH_DEBUG
    log.mockRestore()
  }
})

it('tune screens the bits, then agrees on figures that every rank holds', async () => {
  const reports = await launch({ ranks: 3, devices: devices.slice(0, 3) }, async ({ comm }) => [await comm.tune(), await comm.tune()])
  for (const [first, again] of reports) {
    expect(first).toEqual((reports[0] as (typeof reports)[number])[0])
    expect(again).toEqual(first) // kept for groups of the same make
    expect(first).toMatchObject({ bitsEqual: true })
    expect(first?.stepBytes).toBeGreaterThan(0)
  }
})
