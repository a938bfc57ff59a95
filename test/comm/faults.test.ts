// Random faults in random programs: whatever one rank does, every program ends, in time and with the right error, and leaves no memory behind.
import { afterAll, describe, expect, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import type { RankContext } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { times } from '../support/effort.ts'
import { never, type Outcomes, outcomes, sleep } from '../support/outcomes.ts'
import { Random, seed } from '../support/random.ts'

const BATCHES = times(5, 2)
const PROGRAMS = 100
/** For the deadline of a rank that never calls; a late one comes well before. */
const TIMEOUT_MS = 1500

const [a, b] = [await testDevice(), await testDevice()]
const live = (): number => a.gpu.pool.liveBuffers + b.gpu.pool.liveBuffers
afterAll(() => {
  a.dispose()
  b.dispose()
})

type Step = (context: RankContext, x: Tensor) => Promise<unknown>

async function shared(results: Promise<Tensor | null>): Promise<void> {
  using y = await results
  if (y) await y.data()
}

const STEPS: Record<string, Step> = {
  allReduce: (c, x) => shared(c.comm.allReduce(x)),
  'allReduce unread': async (c, x) => (await c.comm.allReduce(x, { op: 'max' })).dispose(),
  allGather: (c, x) => shared(c.comm.allGather(x, { dim: 0 })),
  gather: (c, x) => shared(c.comm.gather(x, { dst: 1 })),
  reduceScatter: (c, x) => shared(c.comm.reduceScatter(x)),
  broadcast: (c, x) => shared(c.comm.broadcast(x, { src: 1 })),
  barrier: (c) => c.comm.barrier(),
  'host allGather': (c, x) => c.host.allGather(x.shape),
  async fused(c, x) {
    using residual = await c.comm.allocate(x.shape, { shared: true })
    if (c.comm.deviceRank === 0) residual.set(Array(residual.size).fill(0))
    using weight = Tensor.full([x.shape.at(-1)!], 1, { device: c.device })
    await shared(c.comm.allReduceResidualBiasRMSNorm({ x, residual, weight }))
  },
  async overlapping(c, x) {
    for (const y of await Promise.all([c.comm.allReduce(x), c.comm.allGather(x), c.comm.broadcast(x)])) y.dispose()
  },
}

const boom = new Error('boom')

interface Fault {
  /** In the place of a step. */
  act(c: RankContext, x: Tensor, step: Step): Promise<unknown>
  /** How launch may end: by code, or name of what was thrown; undefined where all is well. */
  codes: readonly (string | undefined)[]
}

const FAULTS: Record<string, Fault> = {
  throw: { act: () => Promise.reject(boom), codes: ['Error'] },
  'never call': { act: never, codes: ['ERR_TIMEOUT'] },
  'call late': {
    async act(c, x, step) {
      await sleep(8)
      await step(c, x)
    },
    codes: [undefined],
  },
  'wrong shape': {
    async act(c) {
      using x = Tensor.full([3], 1, { device: c.device })
      await c.comm.allReduce(x)
    },
    codes: ['ERR_COLLECTIVE_MISMATCH'],
  },
  'disposed tensor': {
    async act(c, x) {
      using other = x.share()
      other.dispose()
      await c.comm.allReduce(other)
    },
    codes: ['ERR_DEVICE'],
  },
  return: { act: async () => 'return', codes: ['ERR_RANK_FAILED'] },
  // In the place of a barrier it may come after the last rank: then nothing is aborted.
  abort: {
    async act(c) {
      const stop = new AbortController()
      setTimeout(() => stop.abort(boom), 1)
      await c.comm.barrier({ signal: stop.signal })
    },
    codes: ['Error', 'ERR_COLLECTIVE_MISMATCH', undefined],
  },
}

interface Program {
  ranks: number
  steps: string[]
  fault: string
  who: number
  at: number
}

function programOf(random: Random, faults: readonly string[]): Program {
  const names = Object.keys(STEPS)
  const length = 2 + random.int(4)
  const ranks = 2 + random.int(3)
  return {
    ranks,
    steps: Array.from({ length }, () => names[random.int(names.length)]!),
    fault: faults[random.int(faults.length)]!,
    who: random.int(ranks),
    at: random.int(length),
  }
}

function run({ ranks, steps, fault, who, at }: Program, devices: WebGpuDevice[]): Promise<Outcomes> {
  return outcomes({ ranks, devices, timeoutMs: TIMEOUT_MS }, async (c) => {
    for (const [i, name] of steps.entries()) {
      const step = STEPS[name] as Step
      const faulty = i === at && c.rank === who
      if (faulty && fault === 'never call') await never()
      using x = Tensor.full([4, 12], c.rank, { device: c.device })
      if (!faulty) await step(c, x)
      else if ((await FAULTS[fault]!.act(c, x, step)) === 'return') return
    }
  })
}

const start = seed()

describe(`random faults (seed ${start})`, () => {
  const random = new Random(start)
  const faults = Object.keys(FAULTS)

  for (let batch = 0; batch < BATCHES; batch++) {
    it(`batch ${batch}: ${PROGRAMS} programs at a time on the same devices`, async () => {
      const before = live()
      const programs = Array.from({ length: PROGRAMS }, () => programOf(random, faults))
      const ended = await Promise.all(programs.map((program) => run(program, random.int(2) ? [a] : [a, b])))
      for (const [i, { thrown, ms }] of ended.entries()) {
        const what = JSON.stringify(programs[i])
        const error = thrown?.error as { code?: string; name: string } | undefined
        const { fault } = programs[i]!
        const code = error && (error.code ?? error.name)
        expect(FAULTS[fault]!.codes, `${what}: ${error}`).toContain(code)
        if (fault === 'throw') expect(thrown?.error).toBe(boom)
        expect(ms, what).toBeLessThan(8000)
      }
      expect(live(), 'buffers held after all programs').toBe(before)
      const healthy = { ranks: 4, steps: Object.keys(STEPS), fault: 'none', who: -1, at: -1 }
      for (const devices of [[a], [a, b]]) expect((await run(healthy, devices)).thrown).toBeNull()
      expect(live()).toBe(before)
    })
  }

  it('a device disposed at a random moment: ERR_DEVICE, and no hang', async () => {
    for (let i = 0; i < 16; i++) {
      const own = [await testDevice(), ...(random.int(2) ? [await testDevice()] : [])]
      const program = programOf(random, ['none'])
      const pending = outcomes({ ranks: program.ranks, devices: own }, async (c) => {
        for (let round = 0; ; round++) {
          using x = Tensor.full([4, 12], c.rank, { device: c.device })
          if (round >= 2 * program.at && c.rank === program.who) setTimeout(() => own.at(-1)!.dispose(), random.int(3))
          for (const name of program.steps) await STEPS[name]!(c, x)
          await sleep(0)
        }
      })
      const { thrown, ms } = await pending
      expect(thrown?.error, JSON.stringify(program)).toMatchObject({ code: 'ERR_DEVICE' })
      expect(ms).toBeLessThan(5000)
      for (const device of own) device.dispose()
    }
  })
})

describe('memory', () => {
  it('a program that disposes its tensors leaves none', async () => {
    const before = live()
    for (const devices of [[a], [a, b]]) {
      const program = { ranks: 4, steps: Object.keys(STEPS), fault: 'none', who: -1, at: -1 }
      for (let i = 0; i < 5; i++) expect((await run(program, devices)).thrown).toBeNull()
    }
    expect(live()).toBe(before)
  })
})
