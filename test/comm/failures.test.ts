// Calls that do not match, and bad arguments of one rank: every rank gets a typed error at once, and the group can go on.
import { afterAll, describe, expect, it } from 'vitest'
import { hostMemory } from '../../runtime/core/storage.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { errorOf, sleep } from '../support/outcomes.ts'
import { Random, seed } from '../support/random.ts'

const [device, other] = [await testDevice(), await testDevice()]
const start = seed()
const random = new Random(start)
afterAll(() => {
  device.dispose()
  other.dispose()
})

type Call = (context: RankContext) => Promise<unknown>

const x = ({ device }: RankContext, shape = [8], dtype: Tensor['dtype'] = 'float32'): Tensor => Tensor.full(shape, 1, { dtype, device })

function norm(context: RankContext, options: object = {}): Promise<Tensor> {
  const residual = x(context, [2, 8])
  return context.comm.allReduceResidualBiasRMSNorm({ x: x(context, [2, 8]), residual, weight: x(context, [8]), ...options })
}

/** All ranks make the call `usual`, one makes `odd`, in a random order; then the group must still work. Errors by rank, and the odd rank. */
async function disagree(
  usual: Call,
  odd: Call,
  ranks = 3,
): Promise<{ errors: (Error & { code: string; rank?: number })[]; who: number; ms: number }> {
  const who = random.int(ranks)
  const delays = Array.from({ length: ranks }, () => random.int(3) * 3)
  const begin = performance.now()
  const errors = await launch({ ranks, devices: random.int(2) ? [device] : [device, other], timeoutMs: 10_000 }, async (context) => {
    await sleep(delays[context.rank]!)
    const error = await errorOf((context.rank === who ? odd : usual)(context))
    using one = x(context)
    using sum = await context.comm.allReduce(one)
    expect((await sum.data())[7], 'the collective after it').toBe(ranks)
    return error
  })
  return { errors: errors as (Error & { code: string })[], who, ms: performance.now() - begin }
}

const reduce: Call = (c) => c.comm.allReduce(x(c))

const MISMATCHES: Record<string, { usual: Call; odd: Call; texts: [string, string] }> = {
  operation: { usual: reduce, odd: (c) => c.comm.allGather(x(c)), texts: ['allReduce(sum, [8] float32)', 'allGather([8] float32'] },
  'operation, device and host': { usual: reduce, odd: (c) => c.host.barrier(), texts: ['allReduce(', 'host.barrier()'] },
  op: { usual: reduce, odd: (c) => c.comm.allReduce(x(c), { op: 'max' }), texts: ['allReduce(sum', 'allReduce(max'] },
  shape: { usual: reduce, odd: (c) => c.comm.allReduce(x(c, [2, 4])), texts: ['[8] float32', '[2, 4] float32'] },
  size: { usual: reduce, odd: (c) => c.comm.allReduce(x(c, [9])), texts: ['[8] float32', '[9] float32'] },
  dtype: { usual: reduce, odd: (c) => c.comm.allReduce(x(c, [8], 'float16')), texts: ['[8] float32', '[8] float16'] },
  'presence of out': { usual: reduce, odd: (c) => c.comm.allReduce(x(c), { out: x(c) }), texts: ['float32)', 'float32, out)'] },
  'root of broadcast': { usual: (c) => c.comm.broadcast(x(c)), odd: (c) => c.comm.broadcast(x(c), { src: 1 }), texts: ['src 0', 'src 1'] },
  'root of gather': { usual: (c) => c.comm.gather(x(c)), odd: (c) => c.comm.gather(x(c), { dst: 2 }), texts: ['dst 0', 'dst 2'] },
  dimension: {
    usual: (c) => c.comm.allGather(x(c, [3, 3]), { dim: 0 }),
    odd: (c) => c.comm.allGather(x(c, [3, 3]), { dim: 1 }),
    texts: ['dim 0', 'dim 1'],
  },
  'presence of a bias': { usual: norm, odd: (c) => norm(c, { bias: x(c, [8]) }), texts: ['eps 0.000001)', 'eps 0.000001, bias)'] },
  eps: { usual: norm, odd: (c) => norm(c, { eps: 1e-5 }), texts: ['eps 0.000001', 'eps 0.00001'] },
  'zero-centered weights': { usual: norm, odd: (c) => norm(c, { zeroCentered: true }), texts: ['eps 0.000001)', 'zeroCentered'] },
  'memory to allocate': {
    usual: (c) => c.comm.allocate([4]),
    odd: (c) => c.comm.allocate([4], { shared: true }),
    texts: ['allocate([4] float32)', 'shared'],
  },
}

describe(`ranks that disagree (seed ${start})`, () => {
  for (const [name, { usual, odd, texts }] of Object.entries(MISMATCHES)) {
    it(`in the ${name}: everybody gets ERR_COLLECTIVE_MISMATCH with both calls and ranks`, async () => {
      const { errors, who, ms } = await disagree(usual, odd)
      for (const error of errors) {
        expect([error.name, error.code]).toEqual(['CollectiveMismatchError', 'ERR_COLLECTIVE_MISMATCH'])
        for (const text of texts) expect(error.message).toContain(text)
        expect(error.message).toContain(`rank ${who} called`)
        expect(error.message).toMatch(/rank (\d) called .* rank (\d) called /)
      }
      expect(ms).toBeLessThan(1000)
    })
  }

  it('in the order: both collectives fail', async () => {
    const errors = await launch({ ranks: 2, device, timeoutMs: 10_000 }, async (context) => {
      const calls = [reduce, (c: RankContext) => c.comm.barrier()]
      if (context.rank === 1) calls.reverse()
      return [await errorOf(calls[0]!(context)), await errorOf(calls[1]!(context))]
    })
    for (const error of errors.flat()) expect(error.code).toBe('ERR_COLLECTIVE_MISMATCH')
  })
})

async function disposed(context: RankContext): Promise<Tensor> {
  const tensor = x(context)
  tensor.dispose()
  return tensor
}

/** A result that the ranks of a device share, and so may not be written. */
const shared = (context: RankContext, shape: number[]): Promise<Tensor> => context.comm.broadcast(x(context, shape))

const REFUSALS: Record<string, { usual: Call; odd: Call; code: string; text: RegExp }> = {
  'a disposed tensor': { usual: reduce, odd: async (c) => c.comm.allReduce(await disposed(c)), code: 'ERR_DEVICE', text: /disposed/ },
  'a tensor in host memory': {
    usual: reduce,
    odd: (c) => c.comm.allReduce(Tensor.full([8], 1, { device: hostMemory })),
    code: 'ERR_DEVICE',
    text: /x on webgpu.* but it is on cpu/,
  },
  'a tensor of another device': {
    usual: reduce,
    odd: (c) => c.comm.allReduce(Tensor.full([8], 1, { device: (c.device as typeof device).gpu === device.gpu ? other : device })),
    code: 'ERR_DEVICE',
    text: /to\(device\)/,
  },
  'no tensor': {
    usual: reduce,
    odd: (c) => c.comm.allReduce(undefined as unknown as Tensor),
    code: 'ERR_ARGUMENT',
    text: /a Tensor for x/,
  },
  'no arguments': { usual: norm, odd: (c) => c.comm.allReduceResidualBiasRMSNorm(undefined as never), code: 'ERR_ARGUMENT', text: /for x/ },
  'an unknown op': { usual: reduce, odd: (c) => c.comm.allReduce(x(c), { op: 'median' as 'sum' }), code: 'ERR_ARGUMENT', text: /"median"/ },
  'a dtype without sums': { usual: reduce, odd: (c) => c.comm.allReduce(x(c, [8], 'uint8')), code: 'ERR_DTYPE', text: /uint8/ },
  'an out of another shape': { usual: reduce, odd: (c) => c.comm.allReduce(x(c), { out: x(c, [4]) }), code: 'ERR_SHAPE', text: /\[4\]/ },
  'an out of another dtype': {
    usual: (c) => c.comm.allReduce(x(c), { out: x(c) }),
    odd: (c) => c.comm.allReduce(x(c), { out: x(c, [8], 'int32') }),
    code: 'ERR_DTYPE',
    text: /int32/,
  },
  'a dimension that is not there': {
    usual: (c) => c.comm.allGather(x(c)),
    odd: (c) => c.comm.allGather(x(c), { dim: 1 }),
    code: 'ERR_SHAPE',
    text: /dim/,
  },
  'a size that does not divide': {
    usual: (c) => c.comm.reduceScatter(x(c, [9])),
    odd: (c) => c.comm.reduceScatter(x(c, [8])),
    code: 'ERR_SHAPE',
    text: /multiple of the group's 3 ranks/,
  },
  'a root outside the group': {
    usual: (c) => c.comm.broadcast(x(c)),
    odd: (c) => c.comm.broadcast(x(c), { src: 3 }),
    code: 'ERR_ARGUMENT',
    text: /src/,
  },
  'a weight of another length': { usual: norm, odd: (c) => norm(c, { weight: x(c, [7]) }), code: 'ERR_SHAPE', text: /weight/ },
  'a bias of another dtype': {
    usual: (c) => norm(c, { bias: x(c) }),
    odd: (c) => norm(c, { bias: x(c, [8], 'float16') }),
    code: 'ERR_DTYPE',
    text: /bias/,
  },
  'no residual': { usual: norm, odd: (c) => norm(c, { residual: undefined }), code: 'ERR_ARGUMENT', text: /residual/ },
  'a negative eps': { usual: norm, odd: (c) => norm(c, { eps: -1 }), code: 'ERR_ARGUMENT', text: /eps/ },
  'a deadline of no length': {
    usual: (c) => c.comm.barrier(),
    odd: (c) => c.comm.barrier({ timeoutMs: 0 }),
    code: 'ERR_ARGUMENT',
    text: /timeoutMs/,
  },
  'no shape to allocate': { usual: (c) => c.comm.allocate([4]), odd: (c) => c.comm.allocate(4 as never), code: 'ERR_SHAPE', text: /shape/ },
  'a color that is none': {
    usual: (c) => c.comm.split({ color: 0 }),
    odd: (c) => c.comm.split({ color: -1 }),
    code: 'ERR_ARGUMENT',
    text: /color/,
  },
}

describe(`one rank with bad arguments (seed ${start})`, () => {
  for (const [name, { usual, odd, code, text }] of Object.entries(REFUSALS)) {
    it(`${name}: that rank gets ${code}, the others ERR_COLLECTIVE_MISMATCH with the reason`, async () => {
      const { errors, who, ms } = await disagree(usual, odd)
      const own = errors[who]!
      expect(own.code).toBe(code)
      expect(own.message).toMatch(text)
      for (const [rank, error] of errors.entries()) {
        if (rank === who) continue
        expect([error.code, error.rank, error.cause]).toEqual(['ERR_COLLECTIVE_MISMATCH', who, own])
        expect(error.message).toContain(`Rank ${who} could not take part in`)
        expect(error.message).toContain(own.message)
      }
      expect(ms).toBeLessThan(1000)
    })
  }

  it('what a rank itself got wrong is what launch throws, whichever rank heard of it first', async () => {
    for (let who = 0; who < 3; who++) {
      const run = launch({ ranks: 3, device }, async (c) => c.comm.allReduce(c.rank === who ? await disposed(c) : x(c)))
      expect((await errorOf(run)).code).toBe('ERR_DEVICE')
    }
  })

  it('the same mistake on all ranks is the same error on all of them', async () => {
    const { errors } = await disagree(
      (c) => c.comm.allReduce(x(c, [8], 'int32'), { op: 'avg' }),
      (c) => c.comm.allReduce(x(c, [8], 'int32'), { op: 'avg' }),
    )
    expect(errors.map((error) => error.code)).toEqual(['ERR_DTYPE', 'ERR_DTYPE', 'ERR_DTYPE'])
  })
})

describe('the result that the ranks of a device share', () => {
  const WRITES: Record<string, (c: RankContext, y: Tensor) => unknown> = {
    set: (_, y) => y.set(Array(16).fill(0)),
    'set of a view': (_, y) => y.narrow(0, 0, 1).set(Array(8).fill(0)),
    'an operation into it': (c, y) => c.device.add(x(c, [2, 8]), x(c, [2, 8]), { out: y }),
    'a copy onto it': (c, y) => c.device.copy(x(c, [2, 8]), y),
    'a collective into it': (c, y) => c.comm.allReduce(x(c, [2, 8]), { out: y }),
    'a view of it as residual': (c, y) => norm(c, { residual: y.reshape([2, 8]) }),
    'a norm into it': (c, y) => norm(c, { out: y }),
  }
  for (const [name, write] of Object.entries(WRITES)) {
    it(`refuses ${name} with ERR_DEVICE`, async () => {
      await launch({ ranks: 2, device }, async (c) => {
        for (const y of [await c.comm.allReduce(x(c, [2, 8])), await c.comm.allGather(x(c, [1, 8]), { dim: 0 }), await shared(c, [2, 8])]) {
          const error = await errorOf((async () => write(c, y))())
          expect(error.code).toBe('ERR_DEVICE')
          expect(error.message).toContain('copy it before writing')
        }
      })
    })
  }
})
