// Steps of ranks that NCCL joins, recorded and launched again: against float64, among direct calls, and ended before the communicators whose calls
// their graphs hold. The double of NCCL complains where that is not so.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, afterEach, describe, expect, it } from 'vitest'
import type { NcclComm } from '../../runtime/comm/nccl/comm.ts'
import type { NcclGroup } from '../../runtime/comm/nccl/group.ts'
import type { Recording } from '../../runtime/comm/recording.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { CudaDevice } from '../../runtime/device/cuda/device.ts'
import { readConfig } from '../../runtime/model/generate.ts'
import { Llama } from '../../runtime/model/llama.ts'
import { Sampler } from '../../runtime/model/sampling.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { openWeights } from '../../runtime/model/weights.ts'
import { buildNccl } from '../native/nccl-double/build.ts'
import { errorOf, sleep } from '../support/outcomes.ts'
import { Random, seed } from '../support/random.ts'
import { maxAbsDiff } from '../support/reference-ops.ts'
import { inThread, type NcclRank, overWire } from './nccl-ranks.ts'

const DEVICES = 3
const start = seed()
/** The newest, and the oldest whose calls graphs can hold: that one blocks. */
const VERSION = ['23007', '21104'][start % 2] as string
process.env.RANKMESH_NCCL_DOUBLE_VERSION = VERSION
process.env.RANKMESH_CUDA_DOUBLE = `devices ${DEVICES}`
const { control, reason } = await import('../support/cuda.ts')
if (reason === '') process.env.RANKMESH_NCCL_PATH = await buildNccl()
const { openDevice } = await import('../../runtime/device/open.ts')
const devices = (await Promise.all(Array.from({ length: reason === '' ? DEVICES : 0 }, (_, i) => openDevice(`cuda:${i}`)))) as CudaDevice[]
const { graphs } = control.counts()

/** Communicators of the double that this process has: each maps a segment. */
function communicators(): number {
  return readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .filter((line) => line.includes('nccl-double-')).length
}

async function becomes(what: () => number, wanted: number): Promise<void> {
  for (let i = 0; i < 3000 && what() !== wanted; i++) await sleep(10)
  expect(what()).toBe(wanted)
}

/** What the double is to do wrong: function:call:rank:what. */
function plant(fault: string): void {
  process.env.RANKMESH_NCCL_DOUBLE_FAULT = fault
}
afterEach(() => {
  delete process.env.RANKMESH_NCCL_DOUBLE_FAULT
})
afterAll(() => {
  for (const device of devices) device.dispose()
})

/** As inThread, and the communicators end with the ranks. */
function inThreadToTheEnd<T>(on: readonly CudaDevice[], main: (rank: NcclRank) => Promise<T>, timeoutMs = 20_000): Promise<T[]> {
  const ended = async (rank: NcclRank): Promise<T> => {
    try {
      return await main(rank)
    } finally {
      ;(rank.nccl.member.group as NcclGroup).natives[rank.rank]?.close(timeoutMs)
    }
  }
  return inThread(on, ended, timeoutMs)
}

const WAYS = [
  { how: 'one thread', run: inThreadToTheEnd },
  { how: 'a wire', run: overWire },
]
const EPS = 1e-5

/** A step of all that the float64 reference below knows, on operands of `rows` by `n`. */
class Step {
  readonly x: Tensor
  readonly residual: Tensor
  readonly weight: Tensor
  readonly norm: Tensor
  readonly sum: Tensor
  readonly all: Tensor
  readonly rank: NcclRank
  readonly rows: number
  readonly n: number

  constructor(rank: NcclRank, weight: Float32Array, rows: number, n: number) {
    const { device } = rank
    this.rank = rank
    this.rows = rows
    this.n = n
    this.weight = Tensor.from(weight, { device })
    const [x, residual, norm, sum] = Array.from({ length: 4 }, () => Tensor.empty([rows, n], { device })) as [
      Tensor,
      Tensor,
      Tensor,
      Tensor,
    ]
    Object.assign(this, { x, residual, norm, sum })
    this.x = x
    this.residual = residual
    this.norm = norm
    this.sum = sum
    this.all = Tensor.empty([rows, n * rank.size], { device })
  }

  run = async (): Promise<void> => {
    const { nccl, device } = this.rank
    const { x, residual, weight, norm, sum, all } = this
    await nccl.allReduceResidualBiasRMSNorm({ x, residual, weight, out: norm, eps: EPS })
    using doubled = device.add(norm, x)
    await nccl.allReduce(doubled, { out: sum })
    using wide = await nccl.allGather(norm)
    device.copy(wide, all)
  }

  /** Sets the operands anew: `parts` by rank. */
  set(parts: readonly Float32Array[], residual: Float32Array): void {
    this.x.set(parts[this.rank.rank] as Float32Array<ArrayBuffer>)
    this.residual.set(residual as Float32Array<ArrayBuffer>)
  }

  async check(parts: readonly Float32Array[], residual: Float32Array, weight: Float32Array, about: string): Promise<void> {
    const { rows, n } = this
    const { size } = this.rank
    const total = Array.from(residual, (value, i) => parts.reduce((sum, part) => sum + (part[i] as number), value))
    const norm = total.map((value, i) => {
      const row = total.slice(Math.floor(i / n) * n, (Math.floor(i / n) + 1) * n)
      return (value / Math.sqrt(row.reduce((sum, v) => sum + v * v, 0) / n + EPS)) * (weight[i % n] as number)
    })
    const sum = norm.map((value, i) => parts.reduce((all, part) => all + (part[i] as number), size * value))
    const all = Array.from({ length: rows * n * size }, (_, i) => norm[Math.floor(i / (n * size)) * n + (i % n)] as number)
    const wanted = { residual: total, norm, sum, all }
    for (const name of Object.keys(wanted) as (keyof typeof wanted)[]) {
      const found = (await this[name].data()) as Float32Array
      const wrong = wanted[name].findIndex((value, i) => !(Math.abs((found[i] as number) - value) <= 2e-5 * (1 + Math.abs(value))))
      expect(wrong < 0 ? null : [found[wrong], wanted[name][wrong]], `${about}, ${name} at ${wrong} of rank ${this.rank.rank}`).toBeNull()
    }
  }

  [Symbol.dispose](): void {
    for (const tensor of [this.x, this.residual, this.weight, this.norm, this.sum, this.all]) tensor.dispose()
  }
}

/** Recordings that a test leaves. */
const left: Recording[] = []

/** A recorded sum of ones: what it gives, and what it is launched by, until the test is over. */
async function recordedSum({ device }: NcclRank, over: NcclComm): Promise<{ x: Tensor; sum: Tensor; recording: Recording }> {
  const x = Tensor.full([50], 1, { device })
  const sum = Tensor.zeros([50], { device })
  const recording = await over.record(async () => void (await over.allReduce(x, { out: sum })))
  left.push(recording)
  return { x, sum, recording }
}

async function first(tensor: Tensor): Promise<number> {
  return ((await tensor.data()) as Float32Array)[0] as number
}

describe.skipIf(reason !== '').each(WAYS)(
  `recorded steps over NCCL, ranks joined by $how (version ${VERSION}, seed ${start})${reason}`,
  ({ run }) => {
    afterEach(async () => {
      // A communicator that graphs held when it was to end never goes.
      await becomes(communicators, 0)
      for (const recording of left.splice(0)) recording.dispose()
      expect(control.counts().reports, 'complaints of the doubles').toBe(0)
    })

    /** A sum that comes out right: a new group works at once. */
    async function works(): Promise<void> {
      delete process.env.RANKMESH_NCCL_DOUBLE_FAULT
      const sums = await run(devices.slice(0, 2), async ({ nccl, device, rank }) => {
        using x = Tensor.full([7], rank + 1, { device })
        using y = await nccl.allReduce(x)
        return first(y)
      })
      expect(sums).toEqual([3, 3])
    }

    it.each([2, 3])(
      '%i ranks: sums, fused norms and gathers of other operands each time, among the same calls unrecorded',
      async (ranks) => {
        await run(devices.slice(0, ranks), async (rank) => {
          const { nccl } = rank
          const [rows, n] = [3, 130]
          const random = new Random(start)
          const weight = random.floats(n)
          using step = new Step(rank, weight, rows, n)
          expect(nccl.records).toBe(true)
          const before = nccl.stats().collectives
          let recording: Recording | undefined
          for (let round = 0; round < 8; round++) {
            const parts = Array.from({ length: ranks }, () => random.floats(rows * n))
            const residual = random.floats(rows * n)
            step.set(parts, residual)
            if (round % 3 === 2) await step.run()
            else if (recording) await recording.launch()
            else recording = await nccl.record(step.run)
            // What is launched before a read need not have ended.
            if (round % 2 === 0) await step.check(parts, residual, weight, `round ${round}`)
            else await nccl.barrier()
          }
          expect(nccl.stats().collectives - before).toBe(8 * 3)
          recording?.dispose()
          await expect(recording?.launch()).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
        })
        await works()
      },
    )

    it('many launches behind each other, of two recordings and with direct calls between them, unread', async () => {
      const found = await run(devices, async (rank) => {
        const { nccl, device } = rank
        using one = Tensor.full([64], 1, { device })
        using total = Tensor.zeros([64], { device })
        const added = async (times: number): Promise<void> => {
          for (let i = 0; i < times; i++) {
            using all = await nccl.allReduce(one)
            device.add(total, all, { out: total })
          }
        }
        using once = await nccl.record(() => added(1))
        using thrice = await nccl.record(() => added(3))
        for (let i = 0; i < 20; i++) {
          await once.launch()
          if (i % 3 === 0) await added(1)
          await thrice.launch()
        }
        return first(total)
      })
      expect(found).toEqual(Array(3).fill(3 * (4 + 20 * 4 + 7)))
    })

    it('broadcasts, parts of sums and what is dealt out, too', async () => {
      await run(devices, async ({ nccl, device, rank, size }) => {
        using x = Tensor.empty([6, 5], { device })
        using ways = Tensor.zeros([3, 10], { device })
        const random = new Random(start)
        const step = async (): Promise<void> => {
          using spread = await nccl.broadcast(x, { src: 1 })
          using part = await nccl.reduceScatter(x, { dim: 0 })
          using dealt = await nccl.allToAll(x, { splits: [1, 2, 3] })
          using mine = dealt.narrow(0, 0, 2)
          for (const [i, tensor] of [spread.narrow(0, 0, 2), part, mine].entries()) {
            using place = ways.narrow(0, i, 1)
            device.copy(tensor.reshape([1, 10]), place)
          }
        }
        let recording: Recording | undefined
        for (let round = 0; round < 3; round++) {
          const parts = Array.from({ length: size }, () => random.floats(30))
          x.set(parts[rank] as Float32Array<ArrayBuffer>)
          if (recording) await recording.launch()
          else recording = await nccl.record(step)
          const found = (await ways.data()) as Float32Array
          const from = [0, 5, 15][rank] as number
          // Of rank 0 come rank + 1 rows, then those of rank 1.
          const dealt = parts.flatMap((part) => Array.from(part.slice(from, from + 5 * (rank + 1)))).slice(0, 10)
          const sum = Array.from({ length: 10 }, (_, i) => parts.reduce((all, part) => all + (part[10 * rank + i] as number), 0))
          const wanted = [...Array.from((parts[1] as Float32Array).slice(0, 10)), ...sum, ...dealt]
          expect(maxAbsDiff(found, Float32Array.from(wanted)), `round ${round}`).toBeLessThan(1e-5)
        }
        recording?.dispose()
      })
    })

    it('a group that is left with a live recording lets go of NCCL, and the recording says that it has ended', async () => {
      await run(devices, async (rank) => {
        const { nccl } = rank
        const half = (await nccl.split({ color: 0, key: -rank.rank })) as NcclComm
        const { x, sum, recording } = await recordedSum(rank, half)
        // One of the whole group that holds calls of both.
        const both = await nccl.record(async () => {
          using other = await half.allReduce(x)
          await nccl.allReduce(other, { out: sum })
        })
        left.push(both)
        await recording.launch()
        await both.launch()
        expect(await first(sum)).toBe(9)
        await nccl.barrier()
        for (let i = 0; i < 5; i++) await recording.launch() // left under way
        half.destroy()
        expect((await errorOf(recording.launch())).code).toBe('ERR_ARGUMENT')
        const error = await errorOf(both.launch())
        expect(error.code).toMatch(/ERR_ARGUMENT|ERR_RANK_FAILED/)
        expect(error.message).toMatch(/a group that has ended \(NCCL's communicator of rank \d has ended: this rank has left it\)/)
        expect(await first(sum)).toBe(3)
      }).catch((error) => {
        // Over a wire a rank that could not do its part ends the group.
        expect(run, error.message).toBe(overWire)
        expect(error.message).toMatch(/a group that has ended/)
      })
      await works()
    })

    it('a recording that was disposed of holds nothing, whatever is launched of it', async () => {
      await run(devices.slice(0, 2), async (rank) => {
        const half = (await rank.nccl.split({ color: 0 })) as NcclComm
        const { recording } = await recordedSum(rank, half)
        await recording.launch()
        recording.dispose()
        half.destroy()
        await rank.nccl.barrier()
      })
      await works()
    })

    it('an abort with a live recording, and with one that is under way and would not end', async () => {
      for (const fault of ['', 'ncclAllReduce:2:1:stuck']) {
        plant(fault)
        const found = await run(devices, async (rank) => {
          const { sum, recording } = await recordedSum(rank, rank.nccl)
          for (let i = 0; i < (fault === '' ? 1 : 3); i++) await recording.launch()
          const read = fault === '' ? sum.data().then(() => null) : errorOf(sum.data())
          if (fault === '') await read
          await rank.nccl.barrier()
          await sleep(30)
          if (rank.rank === 2) rank.nccl.abort(new Error('enough'))
          const codes = [(await read)?.code, (await errorOf(recording.launch())).code]
          // Before anybody leaves the group; over a wire ranks that do not wait for it learn of its end then.
          if (run !== overWire || fault !== '') await becomes(communicators, 0)
          return codes
        })
        expect(found).toEqual(Array(3).fill([fault === '' ? undefined : 'ERR_RANK_FAILED', 'ERR_RANK_FAILED']))
        await works()
      }
    })

    it('a launch that does not end is given up at the deadline of its collectives', async () => {
      plant('ncclAllReduce:2:1:stuck')
      const found = await run(
        devices.slice(0, 2),
        async (rank) => {
          const { sum, recording } = await recordedSum(rank, rank.nccl)
          await recording.launch()
          const { code, message } = await errorOf(sum.data())
          expect(message).toMatch(/a recorded step of rank \d: still under way after 700 ms/)
          await becomes(communicators, 0)
          return code
        },
        700,
      )
      expect(found).toEqual(['ERR_TIMEOUT', 'ERR_TIMEOUT'])
      await works()
    })

    it('a call that fails while it is captured ends the group for all ranks, and nothing is left', async () => {
      plant('ncclAllReduce:2:1:1')
      const found = await run(
        devices,
        async (rank) => {
          // Over a wire others may have captured theirs, and hear of it later.
          const recording = (async () => (await recordedSum(rank, rank.nccl)).recording.launch())()
          const { code, message } = await errorOf(recording)
          expect(message).toContain('planted at ncclAllReduce of rank 1')
          return [code, (await errorOf(rank.nccl.barrier())).code]
        },
        5000,
      )
      expect(found).toEqual(Array(3).fill(['ERR_RANK_FAILED', 'ERR_RANK_FAILED']))
      await works()
    })

    it('ranks that launch different recordings, or record different steps, are told; then the group goes on', async () => {
      const found = await run(devices.slice(0, 2), async (rank) => {
        const { nccl } = rank
        const one = await recordedSum(rank, nccl)
        const two = await recordedSum(rank, nccl)
        const launched = await errorOf((rank.rank === 0 ? one : two).recording.launch())
        const recorded = await errorOf(
          nccl.record(async () => void (await (rank.rank === 0 ? nccl.allReduce(one.x) : nccl.allGather(one.x)))),
        )
        await two.recording.launch()
        return [launched.code, recorded.code, await first(two.sum)]
      })
      expect(found).toEqual(Array(2).fill(['ERR_COLLECTIVE_MISMATCH', 'ERR_COLLECTIVE_MISMATCH', 2]))
    })

    it('what NCCL does not have goes through host memory, and is refused within a step', async () => {
      const failed = await run(devices.slice(0, 2), async ({ nccl, device }) => {
        using x = Tensor.full([4], 1, { device })
        const { code } = await errorOf(nccl.record(async () => void (await nccl.allReduce(x, { op: 'max' }))))
        return code
      }).catch(({ code }) => [code, code])
      expect(failed).toEqual(Array(2).fill(expect.stringMatching(/^ERR_ARGUMENT$/)))
      await works()
    })
  },
)

describe.skipIf(reason !== '')(`models over NCCL${reason}`, () => {
  const folder = join(import.meta.dirname, '../fixtures/tiny-models/llama-gqa')

  it.each(WAYS)('decode by recordings, ranks joined by $how', async ({ run }) => {
    const expected = JSON.parse(readFileSync(join(folder, 'expected.json'), 'utf8'))
    const count = 12
    const before = control.counts().graphs
    const files = fileFolder(folder)
    await run(devices.slice(0, 2), async (context) => {
      const weights = await openWeights(files)
      const options = { capacity: expected.promptIds.length + count }
      using llama = await Llama.load(await readConfig(files), weights, context, options).finally(() => weights.close())
      const sampler = new Sampler()
      const ids: number[] = []
      while (ids.length < count) {
        using logits = await llama.forward(ids.length === 0 ? expected.promptIds : ids.slice(-1))
        ids.push(sampler.next(await logits.last()))
      }
      expect(ids).toEqual(expected.greedyIds.slice(0, count))
      expect(control.counts().graphs, 'recordings').toBeGreaterThan(before)
      await context.nccl.barrier()
    })
  })

  it('leaves no graphs, and no complaints of the devices', async () => {
    for (const device of devices) {
      await device.sync()
      Tensor.zeros([1], { device }).dispose()
    }
    await becomes(() => control.counts().graphs, graphs)
    expect(control.counts().reports).toBe(0)
  })
})
