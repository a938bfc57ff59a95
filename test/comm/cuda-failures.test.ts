// Ranks whose kernels wait for others that do not come: everybody hears of it within the deadline, and who it was; then a new group works at once.
import { afterAll, afterEach, describe, expect, it } from 'vitest'
import type { Communicator } from '../../runtime/comm/communicator.ts'
import { AllReduceFusionPattern } from '../../runtime/comm/fusion/patterns.ts'
import type { RankmeshError } from '../../runtime/core/errors.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { CudaDevice } from '../../runtime/device/cuda/device.ts'
import type { Device } from '../../runtime/device/device.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { control, cudaDevices, reason } from '../support/cuda.ts'
import { errorOf, sleep } from '../support/outcomes.ts'
import { seed } from '../support/random.ts'
import { overPeers } from './cuda-ranks.ts'

const [a, b] = (await Promise.all(cudaDevices().map(({ open }) => open()))) as [CudaDevice, CudaDevice]
afterAll(() => {
  for (const device of [a, b]) device?.dispose()
})
afterEach(() => control.plant('delay 1 0'))

type Ranks = { name: string; run<T>(main: (rank: { rank: number; comm: Communicator; device: Device }) => Promise<T>): Promise<T[]> }
const GROUPS: readonly Ranks[] = [
  { name: 'in one thread', run: (main) => launch({ ranks: 2, devices: [a, b] }, main) },
  { name: 'that share no thread', run: (main) => overPeers([a, b], main) },
  { name: 'that share no thread, over pinned memory', run: (main) => overPeers([a, b], main, { memory: 'pinned' }) },
]

const WIDTH = 100
const CALLS: Record<string, (comm: Communicator, device: Device, timeoutMs: number) => Promise<Tensor>> = {
  'allReduce by packets': (comm, device, timeoutMs) => comm.allReduce(Tensor.full([WIDTH], 1, { device }), { timeoutMs }),
  'allReduce of more': (comm, device, timeoutMs) => comm.allReduce(Tensor.full([40 * WIDTH], 1, { device }), { timeoutMs }),
  'allReduce in two steps': (comm, device, timeoutMs) =>
    comm.allReduce(Tensor.full([WIDTH], 1, { device }), { timeoutMs, algorithm: 'two-shot' }),
  'allReduce of maxima': (comm, device, timeoutMs) => comm.allReduce(Tensor.full([WIDTH], 1, { device }), { timeoutMs, op: 'max' }),
  'the fused norm': (comm, device, timeoutMs) => {
    const [x, residual] = [Tensor.full([2, WIDTH], 1, { device }), Tensor.full([2, WIDTH], 1, { device })]
    return comm.allReduceResidualBiasRMSNorm({ x, residual, weight: Tensor.full([WIDTH], 1, { device }) }, { timeoutMs })
  },
  allGather: (comm, device, timeoutMs) => comm.allGather(Tensor.full([WIDTH], 1, { device }), { timeoutMs }),
}

const LIMIT_MS = 400
/** Until it is taken back. */
const STALLED = 'delay 1 600000000'

describe.skipIf(reason !== '').each(GROUPS)(`ranks $name${reason}`, ({ run }) => {
  const works = (): Promise<unknown> =>
    run(async ({ comm, device, rank }) => {
      using x = Tensor.full([8], rank + 1, { device })
      using sum = await comm.allReduce(x)
      expect(await sum.data()).toEqual(new Float32Array(8).fill(3))
    })

  it.each(Object.keys(CALLS))('%s: a device that stalls is named by the rank that waits for it, and both ranks are told', async (name) => {
    const call = CALLS[name] as (typeof CALLS)[string]
    const told = await run(async ({ comm, device, rank }) => {
      const before = await call(comm, device, 20_000) // all is well at first
      await before.bytes()
      await comm.barrier()
      if (rank === 0) control.plant(STALLED)
      await comm.barrier()
      const result = await call(comm, device, LIMIT_MS)
      const error = await errorOf(result.bytes())
      const later = await errorOf(call(comm, device, 20_000))
      if (rank === 0) control.plant('delay 1 0') // this rank's limit is over: the other one may come, too late
      comm.destroy()
      return { error, later }
    })
    for (const [rank, { error, later }] of told.entries()) {
      expect(error, `rank ${rank}`).toMatchObject({ code: 'ERR_TIMEOUT', rank: 1 } satisfies Partial<RankmeshError>)
      expect(error.message).toContain('Rank 1 did not arrive in time')
      expect(['ERR_TIMEOUT', 'ERR_RANK_FAILED'], `rank ${rank}, later`).toContain(later.code)
    }
    await works()
  })

  it.each(Object.keys(CALLS))('control: %s with a device that is late, but not too late', async (name) => {
    const call = CALLS[name] as (typeof CALLS)[string]
    control.plant(`delay 1 ${100 * LIMIT_MS}`)
    await run(async ({ comm, device }) => {
      await (await call(comm, device, 100 * LIMIT_MS)).bytes()
    })
    control.plant('delay 1 0')
    await works()
  })

  it('a rank that does not call is named by all others', async () => {
    const told = await run(async ({ comm, device, rank }) => {
      if (rank === 1) {
        await sleep(3 * LIMIT_MS)
        return null
      }
      return errorOf(comm.allReduce(Tensor.full([WIDTH], 1, { device }), { timeoutMs: LIMIT_MS }))
    })
    expect(told[0]).toMatchObject({ code: 'ERR_TIMEOUT', rank: 1 })
    await works()
  })

  it('once a rank has heard of it, what the broken collective did not write can be read, and what it should have written cannot', async () => {
    const heard: Record<string, (comm: Communicator, broken: Tensor) => Promise<unknown>> = {
      'by a read': (_, broken) => errorOf(broken.bytes()),
      'by abort': async (comm) => comm.abort(new Error('enough')),
    }
    for (const [how, hear] of Object.entries(heard)) {
      const groups: Communicator[] = [] // nobody destroys them
      await run(async ({ comm, device, rank }) => {
        groups.push(comm)
        const before = Tensor.full([WIDTH], 7, { device })
        const sum = await comm.allReduce(before)
        const kept = await sum.bytes()
        await comm.barrier()
        if (rank === 0) control.plant(STALLED)
        await comm.barrier()
        const late = Tensor.full([WIDTH], 5, { device })
        const broken = await comm.allReduce(late, { timeoutMs: how === 'by abort' ? 600_000 : LIMIT_MS })
        const derived = device.add(broken, broken)
        if (rank === 1) return void (await errorOf(derived.bytes()))
        try {
          await hear(comm, broken)
          for (const [name, one, wanted] of [
            ['an operand', before, 7],
            ['a new one', Tensor.full([WIDTH], 3, { device }), 3],
            ['the operand', late, 5],
          ] as const) {
            expect(await one.data(), `${how}: ${name}`).toEqual(new Float32Array(WIDTH).fill(wanted))
          }
          expect(await sum.bytes(), `${how}: the sum before`).toEqual(kept)
          for (const one of [broken, derived]) expect(['ERR_TIMEOUT', 'ERR_RANK_FAILED'], how).toContain((await errorOf(one.bytes())).code)
        } finally {
          control.plant('delay 1 0')
        }
      })
      control.plant('delay 1 0')
      expect(groups.length).toBe(2)
      await works()
    }
  })

  it('abort ends what kernels wait for at once', async () => {
    const told = await run(async ({ comm, device, rank }) => {
      await comm.barrier()
      if (rank === 0) control.plant(STALLED)
      await comm.barrier()
      const result = await comm.allReduce(Tensor.full([WIDTH], 1, { device }), { timeoutMs: 600_000 })
      if (rank === 1) return null
      const reading = errorOf(result.bytes())
      await sleep(LIMIT_MS / 4)
      comm.abort(new Error('enough'))
      const error = await reading // long before 10 minutes
      control.plant('delay 1 0')
      return error
    })
    expect(told[0]).toMatchObject({ code: 'ERR_RANK_FAILED' })
    await works()
  })
})

const order = seed()
it.skipIf(reason !== '')(
  `calls of several groups that nobody awaits go to the devices in the order of the program (seed ${order})${reason}`,
  async () => {
    const delays = { seed: order, delayMs: 8 }
    const sums = await overPeers(
      [a, b],
      async ({ comm, device }) => {
        const other = (await comm.split({ color: 0 })) as Communicator
        const started: Promise<Tensor>[] = []
        for (let i = 0; i < 24; i++) {
          const [own, x] = [i % 2 ? other : comm, Tensor.full([1, WIDTH], i, { device })]
          const fused = async (): Promise<Tensor> =>
            (await own.allReduceFusion({ input: x, pattern: AllReduceFusionPattern.kAllReduce })).output as Tensor
          started.push(i % 3 === 0 ? fused() : own.allReduce(x))
          x.dispose()
        }
        const values = await Promise.all(started.map(async (result) => (await (await result).data())[0]))
        other.destroy()
        return values
      },
      { delays, timeoutMs: 3000 },
    )
    for (const values of sums) expect(values).toEqual(Array.from({ length: 24 }, (_, i) => 2 * i))
  },
)
