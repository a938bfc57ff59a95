// Collectives of CUDA ranks over NCCL: the conformance suite over doubles of CUDA and NCCL, and what becomes of ranks when NCCL fails, or one of them
// does not come.
import { afterAll, afterEach, describe, expect, it } from 'vitest'
import type { GroupHost } from '../../runtime/comm/host.ts'
import type { NcclComm } from '../../runtime/comm/nccl/comm.ts'
import type { NcclGroup } from '../../runtime/comm/nccl/group.ts'
import { StagedComm } from '../../runtime/comm/staged/comm.ts'
import type { NcclCommunicator } from '../../runtime/core/addon.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { CudaDevice } from '../../runtime/device/cuda/device.ts'
import { buildNccl } from '../native/nccl-double/build.ts'
import { errorOf, sleep } from '../support/outcomes.ts'
import { Random, seed } from '../support/random.ts'
import { allCases, type Group, groupOf, shareOf } from './conformance.ts'
import { inThread, type NcclRank, overWire } from './nccl-ranks.ts'

const DEVICES = 4
process.env.RANKMESH_CUDA_DOUBLE = `devices ${DEVICES}`
const { reason } = await import('../support/cuda.ts')
process.env.RANKMESH_NCCL_PATH = '/nowhere/libnccl.so.2'
const { openDevice } = await import('../../runtime/device/open.ts')
const devices = (await Promise.all(Array.from({ length: reason === '' ? DEVICES : 0 }, (_, i) => openDevice(`cuda:${i}`)))) as CudaDevice[]
afterAll(() => {
  for (const device of devices) device.dispose()
})
/** Without a library; once it has been loaded it stays. */
const absent = reason === '' ? await errorOf(inThread(devices.slice(0, 2), async () => null)) : null
if (reason === '') process.env.RANKMESH_NCCL_PATH = await buildNccl()

/** What the double is to do wrong: function:call:rank:what. */
function plant(fault: string): void {
  process.env.RANKMESH_NCCL_DOUBLE_FAULT = fault
}
afterEach(() => {
  delete process.env.RANKMESH_NCCL_DOUBLE_FAULT
})

/** NCCL rounds the sums of a fused norm to their type, as nothing else does: those of narrow types are tested apart, below. */
function wideSums(share: Group['share']): Group['share'] {
  return (factors) => share(factors).filter((row) => !('xType' in row) || row.xType === 'float32')
}

const WAYS = [
  { how: 'one thread', run: inThread },
  { how: 'a wire', run: overWire },
]

describe.skipIf(reason !== '')(`NCCL that is not there${reason}`, () => {
  it('says what was tried', () => {
    expect(absent?.code).toBe('ERR_BACKEND_UNAVAILABLE')
    expect(absent?.message).toMatch(/rank 0 has no NCCL: \/nowhere\/libnccl\.so\.2: cannot open .*RANKMESH_NCCL_PATH$/)
  })
})

describe.skipIf(reason !== '')(`NCCL${reason}`, () => {
  const dealing = seed()
  const groups = [
    { ranks: 2, run: inThread, how: 'one thread' },
    { ranks: 4, run: inThread, how: 'one thread' },
    { ranks: 3, run: overWire, how: 'a wire' },
  ]
  // The doubles take long, so each run takes another of these.
  const turn = new Random(dealing).int(groups.length)
  for (const { ranks, run, how } of [{ ranks: 1, run: inThread, how: 'one thread' }, groups[turn] as (typeof groups)[number]]) {
    const start = seed()
    describe(`${ranks} ranks, ${how} (seed ${start}, cases ${dealing})`, () => {
      const place = Array.from({ length: ranks }, (_, i) => i)
      const share = wideSums(shareOf(dealing, turn))
      const group = groupOf({ place, random: new Random(start), share }, (main) => run(devices.slice(0, ranks), main))
      allCases(group, ranks !== 2)
    })
  }

  it('says what joins its ranks, and takes no two on one device', async () => {
    const two = devices.slice(0, 2)
    const told = await inThread(two, async ({ nccl }) => nccl.describe())
    for (const text of told) expect(text).toMatch(/^2 ranks \(1 on .*, 1 on .*\): NCCL 2\.30\.7$/)
    const [first] = devices as [CudaDevice]
    const error = await errorOf(inThread([first, first], async () => null))
    expect(error.code).toBe('ERR_BACKEND_UNAVAILABLE')
    expect(error.message).toMatch(/ranks 0 and 1 share the device GPU-/)
  })

  it.each(['bfloat16', 'float16'] as const)('the fused norm of sums in %s, which are rounded once more', async (dtype) => {
    const start = seed()
    const [ranks, rows, n] = [3, 5, 130]
    await inThread(devices.slice(0, ranks), async ({ nccl, host, device, rank }) => {
      const random = new Random(start)
      const draw = (size: number): Float32Array => Float32Array.from({ length: size }, () => random.normal())
      const parts = Array.from({ length: ranks }, () => draw(rows * n))
      const [residual, gamma] = [draw(rows * n), draw(n)]
      const staged = await StagedComm.create(host as GroupHost, device)
      const found: Float32Array[][] = []
      for (const comm of [nccl, staged]) {
        using x = Tensor.from(parts[rank] as Float32Array, { shape: [rows, n], dtype, device })
        using before = Tensor.from(residual, { shape: [rows, n], device })
        using weight = Tensor.from(gamma, { shape: [n], device })
        using y = await comm.allReduceResidualBiasRMSNorm({ x, residual: before, weight })
        found.push([(await before.data()) as Float32Array, (await y.data()) as Float32Array])
      }
      const unit = dtype === 'bfloat16' ? 2 ** -9 : 2 ** -12
      for (const [i, values] of (found[0] as Float32Array[]).entries()) {
        for (const [at, value] of values.entries()) {
          const wanted = found[1]?.[i]?.[at] as number
          if (!(Math.abs(value - wanted) <= 16 * unit)) expect(value, `seed ${start}, rank ${rank}, element ${at}`).toBe(wanted)
        }
      }
    })
  })

  it('memory that NCCL is told of, and sums of scaled operands', async () => {
    const FLOAT32 = 7
    await inThread(devices.slice(0, 2), async ({ nccl, device, rank }) => {
      using x = Tensor.full([10], rank + 1, { device })
      await nccl.register(x)
      await nccl.register(x)
      using y = await nccl.allReduce(x)
      expect(((await y.data()) as Float32Array)[0]).toBe(3)
      await nccl.deregister(x)
      await nccl.deregister(x)
      const group = nccl.member.group as NcclGroup
      const native = group.natives[rank] as NcclCommunicator
      const scaled = native.createScaledSum(rank + 0.5, FLOAT32)
      expect(scaled).toBeGreaterThan(4)
      native.destroyScaledSum(scaled)
      expect(() => native.destroyScaledSum(77)).toThrow(/ncclRedOpDestroy of rank \d: invalid argument \(code 4\): .*no such reduction/)
      expect(native.failure()).toBeNull()
    })
  })

  it('calls of two groups that are under way together, over a wire', async () => {
    const found = await overWire(devices.slice(0, 3), async ({ nccl, rank, device }) => {
      const other = (await nccl.split({ color: 0, key: -rank })) as NcclComm
      using x = Tensor.full([1000], rank + 1, { device })
      const sums = Array.from({ length: 20 }, (_, i) => (i % 3 === 1 ? other : nccl).allReduce(x))
      const values = await Promise.all(sums.map(async (sum) => ((await (await sum).data()) as Float32Array)[999]))
      other.destroy()
      return values
    })
    for (const values of found) expect(values).toEqual(Array(20).fill(6))
  })
})

/** A sum that must come out right: what comes after a failure is none the worse. */
async function checkSum(run: typeof inThread, ranks: number): Promise<void> {
  delete process.env.RANKMESH_NCCL_DOUBLE_FAULT
  const sums = await run(devices.slice(0, ranks), async ({ nccl, device, rank }) => {
    using x = Tensor.full([7], rank + 1, { device })
    using y = await nccl.allReduce(x)
    return Array.from((await y.data()) as Float32Array)
  })
  expect(sums).toEqual(Array(ranks).fill(Array(7).fill((ranks * (ranks + 1)) / 2)))
}

/** Sums one after the other and reads the last; what it throws, and what a sum that comes later throws. */
async function sums({ nccl, device }: NcclRank, count: number): Promise<{ code: string; message: string; rank?: number; later: string }> {
  using x = Tensor.full([64], 1, { device })
  const error = await errorOf(
    (async () => {
      let y = x.share()
      for (let i = 0; i < count; i++) y = await nccl.allReduce(y)
      await y.data()
    })(),
  )
  const later = await errorOf(nccl.allReduce(x))
  return { code: error.code, message: error.message, ...(error.rank !== undefined && { rank: error.rank }), later: later.code }
}

describe.skipIf(reason !== '').each(WAYS)(`NCCL that fails, ranks joined by $how${reason}`, ({ run }) => {
  it('a call that fails: all ranks are told by whom and why, and a new group works at once', async () => {
    plant('ncclAllReduce:2:1:1')
    const found = await run(devices.slice(0, 3), (rank) => sums(rank, 3), 5000)
    for (const { code, message, rank, later } of found) {
      expect([code, later]).toEqual(['ERR_RANK_FAILED', 'ERR_RANK_FAILED'])
      expect(rank).toBe(1)
      expect(message).toContain('ncclAllReduce of rank')
      expect(message).toContain('unhandled cuda error (code 1): planted at ncclAllReduce of rank 1')
    }
    await checkSum(run, 3)
  })

  it('an error that shows while a collective is under way: no rank gets a result', async () => {
    plant('ncclAllReduce:2:1:async6')
    const found = await run(devices.slice(0, 3), (rank) => sums(rank, 2), 5000)
    for (const { code, message, later } of found) {
      expect([code, later]).toEqual(['ERR_RANK_FAILED', 'ERR_RANK_FAILED'])
      expect(message).toMatch(/remote process exited or there was a network error/)
    }
    await checkSum(run, 3)
  })

  it('a collective that does not end is given up at its deadline', async () => {
    plant('ncclAllReduce:1:1:stuck')
    const found = await run(devices.slice(0, 2), (rank) => sums(rank, 1), 700)
    for (const { code, message } of found) {
      expect(code).toBe('ERR_TIMEOUT')
      expect(message).toMatch(/allReduce of rank \d: still under way after 700 ms/)
    }
    await checkSum(run, 2)
  })

  it('a rank that cannot join: all are told why', async () => {
    plant('ncclCommInitRankConfig:1:1:2')
    const error = await errorOf(run(devices.slice(0, 2), async () => null, 3000))
    expect(error.code).toBe('ERR_RANK_FAILED')
    expect(error.message).toMatch(/ncclCommInitRankConfig of rank 1: unhandled system error \(code 2\): planted/)
    await checkSum(run, 2)
  })

  it('a group that cannot be split: it ends, for all', async () => {
    plant('ncclCommSplit:1:1:3')
    const codes = await run(
      devices.slice(0, 2),
      async ({ nccl }) => [(await errorOf(nccl.split({ color: 0 }))).code, (await errorOf(nccl.barrier())).code],
      3000,
    )
    expect(codes).toEqual([
      ['ERR_RANK_FAILED', 'ERR_RANK_FAILED'],
      ['ERR_RANK_FAILED', 'ERR_RANK_FAILED'],
    ])
    await checkSum(run, 2)
  })

  it('a rank that does not come to a collective, and ranks that come to different ones', async () => {
    const found = await run(
      devices.slice(0, 2),
      async ({ nccl, rank, device }) => {
        using x = Tensor.full([4], 1, { device })
        const mismatch = await errorOf(rank === 0 ? nccl.allReduce(x) : nccl.allGather(x))
        using y = await nccl.allReduce(x)
        const [sum] = (await y.data()) as Float32Array
        if (rank === 1) {
          await sleep(900)
          return [mismatch.code, sum, 'ERR_TIMEOUT']
        }
        return [mismatch.code, sum, (await errorOf(nccl.allReduce(x, { timeoutMs: 300 }))).code]
      },
      5000,
    )
    expect(found).toEqual(Array(2).fill(['ERR_COLLECTIVE_MISMATCH', 2, 'ERR_TIMEOUT']))
    await checkSum(run, 2)
  })

  it('an abort ends what is under way', async () => {
    plant('ncclAllReduce:1:1:stuck')
    const found = await run(devices.slice(0, 2), async ({ nccl, rank, device }) => {
      using x = Tensor.full([4], 1, { device })
      using y = await nccl.allReduce(x)
      const read = errorOf(y.data())
      await sleep(50)
      if (rank === 0) nccl.abort(new Error('enough'))
      const { code, message } = await read
      return [code, /Rank 0 aborted the group: enough/.test(message)]
    })
    expect(found).toEqual(Array(2).fill(['ERR_RANK_FAILED', true]))
    await checkSum(run, 2)
  })
})
