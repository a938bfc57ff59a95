// Failures of the collectives over parts and of messages: disagreement, arguments one rank refuses, peers that are gone; ends of a group.
import { afterAll, describe, expect, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { codes, errorOf, outcomes, sleep } from '../support/outcomes.ts'

const [a, b] = [await testDevice(), await testDevice()]
afterAll(() => {
  a.dispose()
  b.dispose()
})

const MISMATCH = 'ERR_COLLECTIVE_MISMATCH'
const FAILED = 'ERR_RANK_FAILED'
type Call = (context: RankContext, x: Tensor) => Promise<unknown>

/** Every call is right on ranks 0 and 2; on rank 1 it is `bad`. x is [6, 4] on all ranks. */
const REFUSED: Record<string, { good: Call; bad: Call; code: string; others?: string }> = {
  'allGatherV with sizes that are not its own': {
    good: ({ comm }, x) => comm.allGatherV(x, { sizes: [6, 5, 6] }),
    bad: ({ comm }, x) => comm.allGatherV(x, { sizes: [6, 5, 6] }),
    code: 'ERR_SHAPE',
  },
  'allGatherV along a dimension that is not there': {
    good: ({ comm }, x) => comm.allGatherV(x),
    bad: ({ comm }, x) => comm.allGatherV(x, { dim: 2 }),
    code: 'ERR_SHAPE',
  },
  'allGatherV of an empty list': {
    good: ({ comm }, x) => comm.allGatherV([x]),
    bad: ({ comm }) => comm.allGatherV([]),
    code: 'ERR_ARGUMENT',
  },
  'allGatherV of something else': {
    good: ({ comm }, x) => comm.allGatherV(x),
    bad: ({ comm }) => comm.allGatherV(null as never),
    code: 'ERR_ARGUMENT',
  },
  'reduceScatterV with too few sizes': {
    good: ({ comm }, x) => comm.reduceScatterV(x, { dim: 0, sizes: [3, 2, 1] }),
    bad: ({ comm }, x) => comm.reduceScatterV(x, { dim: 0, sizes: [3, 3] }),
    code: 'ERR_ARGUMENT',
  },
  'reduceScatterV with a wrong sum': {
    good: ({ comm }, x) => comm.reduceScatterV(x, { dim: 0, sizes: [3, 2, 1] }),
    bad: ({ comm }, x) => comm.reduceScatterV(x, { dim: 0, sizes: [3, 2, 2] }),
    code: 'ERR_SHAPE',
  },
  'reduce to nobody': {
    good: ({ comm }, x) => comm.reduce(x),
    bad: ({ comm }, x) => comm.reduce(x, { dst: 3 }),
    code: 'ERR_ARGUMENT',
  },
  'scatter without a tensor on src': {
    good: ({ comm }, x) => comm.scatter(x, { src: 1 }),
    bad: ({ comm }) => comm.scatter(null, { src: 1 }),
    code: 'ERR_ARGUMENT',
  },
  'scatter of an extent that does not divide': {
    good: ({ comm }) => comm.scatter(null, { src: 1, dim: 1 }),
    bad: ({ comm }, x) => comm.scatter(x, { src: 1, dim: 1 }),
    code: 'ERR_SHAPE',
  },
  'allToAll with splits of another sum': {
    good: ({ comm }, x) => comm.allToAll(x),
    bad: ({ comm }, x) => comm.allToAll(x, { splits: [1, 2, 4] }),
    code: 'ERR_SHAPE',
  },
  'allGather2D over the end of the buffer': {
    good: ({ comm }, x) => comm.allGather2D(x, { pitch: 12, stride: 4, width: 4, height: 2 }),
    bad: ({ comm }, x) => comm.allGather2D(x, { pitch: 12, stride: 4, width: 4, height: 3 }),
    code: 'ERR_SHAPE',
  },
  'allGather2D with blocks that overlap': {
    good: ({ comm }, x) => comm.allGather2D(x, { pitch: 12, stride: 4, width: 4, height: 2 }),
    bad: ({ comm }, x) => comm.allGather2D(x, { pitch: 8, stride: 4, width: 4, height: 2 }),
    code: 'ERR_ARGUMENT',
  },
  'the fused norm between groups, without a residual': {
    good: ({ comm }, x) => comm.allReduceResidualBiasRMSNormEx({ ...norm(x), localTokenNums: [6] }),
    bad: ({ comm }, x) => comm.allReduceResidualBiasRMSNormEx({ ...norm(x), localTokenNums: [6], residual: null as never }),
    code: 'ERR_ARGUMENT',
  },
  'a registered tensor that is none': {
    good: ({ comm }, x) => comm.register(x),
    bad: ({ comm }) => comm.register(undefined as never),
    code: 'ERR_ARGUMENT',
  },
}

const made: Tensor[] = []
function norm(x: Tensor) {
  const like = { device: x.device }
  const [residual, weight] = [Tensor.full([6, 4], 1, like), Tensor.full([4], 1, like)]
  made.push(residual, weight)
  return { hidden: x, residual, weight, group0: null, group1: null }
}

for (const [name, { good, bad, code }] of Object.entries(REFUSED)) {
  it(`${name}, on one rank: that rank hears why, the others that it could not take part, and all go on`, async () => {
    await launch({ ranks: 3, devices: [a, b] }, async (context) => {
      using x = Tensor.full([6, 4], 1, { device: context.device })
      const error = await errorOf((context.rank === 1 ? bad : good)(context, x))
      expect(error.code, error.message).toBe(context.rank === 1 ? code : MISMATCH)
      await context.comm.barrier()
      for (const tensor of made.splice(0)) tensor.dispose()
    })
  })
}

it('sizes, extents and expected splits that differ: all ranks hear of it', async () => {
  const CALLS: Call[] = [
    ({ comm, rank }, x) => comm.allGatherV(x, rank === 1 ? { sizes: [6, 6, 6] } : {}),
    ({ comm, rank }, x) => comm.reduceScatterV(x, { dim: 0, sizes: rank === 1 ? [1, 2, 3] : [3, 2, 1] }),
    ({ comm, rank }, x) => comm.scatter(x, { src: Number(rank === 1) }),
    ({ comm, rank }, x) => comm.allToAll(x, { outputSplits: rank === 1 ? [2, 1, 3] : [2, 2, 2] }),
    ({ comm, rank }, x) => comm.allGather2D(x, { pitch: 12, stride: 4, width: rank === 1 ? 3 : 4, height: 2 }),
    ({ comm, rank }, x) => comm.broadcast(x, { inPlace: rank === 1 }),
    ({ comm, rank }, x) => comm.reduce(x, { dst: Number(rank === 1) }),
  ]
  await launch({ ranks: 3, devices: [a, b] }, async (context) => {
    using x = Tensor.full([6, 4], 1, { device: context.device })
    for (const call of CALLS) expect((await errorOf(call(context, x))).code).toBe(MISMATCH)
  })
})

it('in place needs memory of its own: a shared result is refused', async () => {
  await launch({ ranks: 2, device: a }, async ({ comm, device }) => {
    using x = Tensor.full([4], 1, { device })
    using y = await comm.allReduce(x)
    expect((await errorOf(comm.broadcast(y, { inPlace: true }))).code).toMatch(/ERR_DEVICE|MISMATCH/)
    expect((await errorOf(comm.allGather2D(y, { pitch: 2, stride: 2, width: 2, height: 1 }))).code).toMatch(/ERR_DEVICE|MISMATCH/)
  })
})

describe('send and recv', () => {
  const x = ({ device }: RankContext): Tensor => Tensor.full([3], 1, { device })

  it('another shape or dtype on one side: both hear of it, and the pair goes on', async () => {
    await launch({ ranks: 2, devices: [a, b] }, async (context) => {
      const { comm, rank } = context
      using own = x(context)
      for (const [shape, dtype] of [
        [[4], 'float32'],
        [[3], 'float16'],
      ] as const) {
        const error = await errorOf(rank === 0 ? comm.send(own) : comm.recv(shape, dtype))
        expect([error.code, error.message]).toEqual([MISMATCH, expect.stringContaining('send(0 → 1')])
      }
      if (rank === 0) await comm.send(own)
      else (await comm.recv([3], 'float32')).dispose()
    })
  })

  it('refused on one side: the other hears why', async () => {
    await launch({ ranks: 2, device: a }, async ({ comm, rank }) => {
      const error = await errorOf(rank === 0 ? comm.send(null as never) : comm.recv([3], 'float32'))
      expect(error.code).toBe(rank === 0 ? 'ERR_ARGUMENT' : MISMATCH)
    })
    await launch({ ranks: 2, device: a }, async (context) => {
      using own = x(context)
      const { comm, rank } = context
      const error = await errorOf(rank === 0 ? comm.send(own) : comm.recv([-3], 'float32'))
      expect(error.code).toBe(rank === 0 ? MISMATCH : 'ERR_SHAPE')
    })
  })

  it('no peer, or the rank itself', async () => {
    await launch({ ranks: 2, device: a }, async (context) => {
      using own = x(context)
      for (const peer of [2, -1, 0.5, context.rank]) {
        expect((await errorOf(context.comm.send(own, { dst: peer }))).code).toBe('ERR_ARGUMENT')
        expect((await errorOf(context.comm.recv([3], 'float32', { src: peer }))).code).toBe('ERR_ARGUMENT')
      }
    })
    await launch({ ranks: 1, device: a }, async (context) => {
      using own = x(context)
      expect((await errorOf(context.comm.send(own))).code).toBe('ERR_ARGUMENT')
    })
  })

  it('a peer that throws, returns, or does not come', async () => {
    const boom = new Error('boom')
    for (const how of ['throws', 'returns'] as const) {
      const { errors, ms } = await outcomes({ ranks: 3, device: a }, async (context) => {
        if (context.rank === 1) {
          await sleep(5)
          if (how === 'throws') throw boom
          return
        }
        if (context.rank === 0) await context.comm.recv([3], 'float32', { src: 1 })
        else {
          using own = x(context)
          await context.comm.send(own, { dst: 1 })
        }
      })
      expect(codes(errors)).toEqual([FAILED, how === 'throws' ? 'Error' : undefined, FAILED])
      expect(errors[0]).toMatchObject({ rank: 1 })
      expect(ms).toBeLessThan(1500)
    }
    await launch({ ranks: 2, device: a }, async ({ comm, rank }) => {
      if (rank === 0) expect((await errorOf(comm.recv([3], 'float32', { timeoutMs: 20 }))).code).toBe('ERR_TIMEOUT')
      await comm.barrier()
    })
  })
})

it('a device that is lost while ranks wait for messages: ERR_DEVICE, also where the peer is on another device', async () => {
  const [c, d] = [await testDevice(), await testDevice()]
  const { errors, ms } = await outcomes({ ranks: 3, devices: [c, d] }, async ({ comm, rank }) => {
    if (rank === 2) {
      await sleep(5)
      d.gpu.device.destroy()
      await sleep(50)
      return
    }
    await comm.recv([3], 'float32', { src: 2 })
  })
  expect(codes(errors)).toEqual(['ERR_DEVICE', 'ERR_DEVICE', undefined])
  expect(ms).toBeLessThan(1500)
  c.dispose()
  d.dispose()
})

describe('the end of a group', () => {
  it('abort: what all ranks wait for and call later fails, naming the rank; other groups go on', async () => {
    await launch({ ranks: 3, devices: [a, b] }, async (context) => {
      const { comm, rank, device } = context
      const all = (await comm.split({ color: 0 }))!
      using own = Tensor.full([3], 1, { device })
      if (rank === 1) {
        await sleep(5)
        all.abort(new Error('enough'))
      } else {
        const waits = rank === 0 ? all.allReduce(own) : all.recv([3], 'float32', { src: 1 })
        expect(await errorOf(waits)).toMatchObject({ code: FAILED, rank: 1, message: expect.stringContaining('enough') })
      }
      await comm.barrier()
      expect(await errorOf(all.barrier())).toMatchObject({ code: FAILED, rank: 1 })
      expect(await errorOf(all.send(own))).toMatchObject({ code: FAILED, rank: 1 })
      using y = await comm.allReduce(own)
      expect([...((await y.data()) as Float32Array)]).toEqual([3, 3, 3])
    })
  })

  it('destroy: later calls are refused, peers hear that the rank is gone, tensors stay', async () => {
    await launch({ ranks: 2, device: a }, async ({ comm, rank }) => {
      const all = (await comm.split({ color: 0 }))!
      using own = await all.allocate([3])
      own.set([1, 2, 3])
      if (rank === 0) {
        all.destroy()
        all.destroy()
        const calls = [
          all.allReduce(own),
          all.send(own),
          all.recv([3], 'float32'),
          all.allGatherV(own),
          all.barrier(),
          all.split({ color: 0 }),
        ]
        expect(codes(await Promise.all(calls.map(errorOf)))).toEqual(Array(6).fill('ERR_ARGUMENT'))
      } else {
        expect(await errorOf(all.recv([3], 'float32', { src: 0 }))).toMatchObject({ code: FAILED, rank: 0 })
        expect(await errorOf(all.allReduce(own))).toMatchObject({ code: FAILED, rank: 0 })
      }
      await comm.barrier()
      expect([...((await own.data()) as Float32Array)]).toEqual([1, 2, 3])
    })
  })
})

it('register, deregister, free, query and prepareCommunicationBufferForModel', async () => {
  await launch({ ranks: 2, device: a }, async ({ comm }) => {
    const x = await comm.allocate([4])
    await comm.register(x)
    await comm.deregister(x)
    comm.free(x)
    expect(x.disposed).toBe(true)
    expect(comm.query('hasAllGather2D')).toBe(true)
    expect(() => comm.query('speed' as never)).toThrow('hasAllGather2D')
    expect(() => comm.free(3 as never)).toThrow('Tensor')
    const seen: unknown[] = []
    const module = { prepareCommunication: (own: unknown) => void seen.push(own) }
    expect(await comm.prepareCommunicationBufferForModel([module, {}])).toBe(1)
    expect(await comm.prepareCommunicationBufferForModel({ modules: () => [module, module] })).toBe(2)
    expect(seen).toEqual([comm, comm, comm])
    expect((await errorOf(comm.prepareCommunicationBufferForModel(3 as never))).code).toBe('ERR_ARGUMENT')
  })
})
