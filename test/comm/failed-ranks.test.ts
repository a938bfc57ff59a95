// Ranks that throw, return early, never come or are aborted, and devices that are lost: the others hear of it at once, and launch ends.
import { getEventListeners } from 'node:events'
import { afterAll, describe, expect, it } from 'vitest'
import { RankFailedError } from '../../runtime/core/errors.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { codes, errorOf, never, outcomes, sleep } from '../support/outcomes.ts'

const device = await testDevice()
afterAll(() => device.dispose())

const FAILED = 'ERR_RANK_FAILED'
const ones = (c: RankContext): Tensor => Tensor.full([8], 1, { device: c.device })
const reduce = (c: RankContext): Promise<Tensor> => c.comm.allReduce(ones(c))

describe('a rank that throws', () => {
  const THROWN: Record<string, unknown> = {
    'an Error': new TypeError('boom'),
    'a RankFailedError of its own': new RankFailedError('mine'),
    'a string': 'boom',
    undefined,
    null: null,
    'an object without a prototype': Object.create(null),
  }
  for (const [name, what] of Object.entries(THROWN)) {
    it(`${name}: peers' pending and later calls fail with ERR_RANK_FAILED, launch throws the thing itself`, async () => {
      const later: unknown[] = []
      const { errors, thrown, ms } = await outcomes({ ranks: 3, device }, async (c) => {
        await reduce(c)
        if (c.rank === 1) {
          await sleep(5)
          throw what
        }
        const pending = await errorOf(reduce(c))
        later.push(await errorOf(c.comm.barrier()), await errorOf(c.host.allGather(1)), await errorOf(c.comm.split({ color: 0 })))
        throw pending
      })
      expect(thrown).toEqual({ error: what })
      expect(thrown?.error).toBe(what)
      for (const error of [errors[0], errors[2], ...(later as Error[])]) {
        expect(error).toMatchObject({ name: 'RankFailedError', code: FAILED, rank: 1 })
        expect(error?.message).toMatch(/^Rank 1 failed: /)
        if (what !== undefined) expect(error?.cause).toBe(what)
      }
      expect(later).toHaveLength(6)
      expect(ms).toBeLessThan(1000)
    })
  }

  it('before any collective, at once or later', async () => {
    for (const wait of [false, true]) {
      const boom = new Error('boom')
      const { errors, thrown } = await outcomes({ ranks: 4, device }, async (c) => {
        if (c.rank === 2) {
          if (wait) await sleep(5)
          throw boom
        }
        await c.comm.barrier()
      })
      expect(thrown?.error).toBe(boom)
      expect(codes(errors)).toEqual([FAILED, FAILED, 'Error', FAILED])
    }
  })

  it('without being async', async () => {
    const boom = new Error('boom')
    const run = launch({ ranks: 2, device }, (c) => {
      if (c.rank === 0) throw boom
      return c.comm.barrier()
    })
    expect(await errorOf(run)).toBe(boom)
  })

  it('with a collective of its own under way: that fails too, on every rank', async () => {
    const boom = new Error('boom')
    let own: Promise<unknown> = Promise.resolve()
    const { errors, thrown } = await outcomes({ ranks: 3, device }, async (c) => {
      if (c.rank === 0) {
        own = errorOf(reduce(c))
        await sleep(5)
        throw boom
      }
      if (c.rank === 2) await sleep(10)
      await reduce(c)
    })
    expect(thrown?.error).toBe(boom)
    expect(codes(errors)).toEqual(['Error', FAILED, FAILED])
    expect(await own).toMatchObject({ code: FAILED, rank: 0 })
  })

  it('while peers have several collectives under way and await the first: nothing is left unhandled', async () => {
    const boom = new Error('boom')
    const { errors, thrown } = await outcomes({ ranks: 2, device }, async (c) => {
      if (c.rank === 0) {
        await sleep(5)
        throw boom
      }
      const [first, ...others] = [reduce(c), reduce(c), c.comm.barrier(), c.comm.allocate([4])]
      await first
      await Promise.all(others)
    })
    await sleep(5)
    expect(thrown?.error).toBe(boom)
    expect(codes(errors)).toEqual(['Error', FAILED])
  })

  it('in a sub-group: its group and the whole one fail, another sub-group goes on', async () => {
    const boom = new Error('boom')
    const { errors, thrown } = await outcomes({ ranks: 6, device }, async (c) => {
      const half = await c.comm.split({ color: c.rank % 2, key: -c.rank })
      if (c.rank === 3) {
        await sleep(5)
        throw boom
      }
      const nested = await half!.split({ color: 0 })
      if (c.rank % 2 === 0) {
        const sum = await nested!.allReduce(ones(c))
        await sleep(10)
        expect((await sum.data())[0]).toBe(3)
        expect((await (await half!.allReduce(ones(c))).data())[0]).toBe(3)
        expect(await errorOf(c.comm.barrier())).toMatchObject({ code: FAILED, rank: 3 })
      }
    })
    expect(thrown?.error).toBe(boom)
    expect(codes(errors)).toEqual([undefined, FAILED, undefined, 'Error', undefined, FAILED])
    expect(errors[1]?.rank).toBe(3)
  })
})

describe('a rank that returns early', () => {
  it('fails what the others still want of it', async () => {
    const { errors, thrown, ms } = await outcomes({ ranks: 3, device }, async (c) => {
      await reduce(c)
      if (c.rank === 0) return
      if (c.rank === 2) await sleep(5)
      await reduce(c)
    })
    expect(codes(errors)).toEqual([undefined, FAILED, FAILED])
    expect(errors[1]).toMatchObject({ rank: 0, message: expect.stringContaining('Rank 0 has returned') })
    expect(thrown?.error).toBe(errors[1])
    expect(ms).toBeLessThan(1000)
  })

  it('still takes part in what it has joined', async () => {
    let joined: Promise<Tensor> | undefined
    const sums = await launch({ ranks: 2, device }, async (c) => {
      if (c.rank === 0) {
        joined = reduce(c)
        return 0
      }
      await sleep(5)
      return (await (await reduce(c)).data())[3]
    })
    expect(sums).toEqual([0, 2])
    await joined
  })
})

describe('a rank that never arrives', () => {
  it('ERR_TIMEOUT names it and the last collectives; launch ends although that rank does not', async () => {
    const { errors, thrown, ms } = await outcomes({ ranks: 3, device, timeoutMs: 60 }, async (c) => {
      await reduce(c)
      await c.comm.barrier()
      if (c.rank === 1) await never()
      await c.comm.broadcast(ones(c), { src: 2 })
    })
    expect(codes(errors)).toEqual(['ERR_TIMEOUT', undefined, 'ERR_TIMEOUT'])
    expect(errors[0]).toMatchObject({ name: 'TimeoutError', rank: 1 })
    expect(errors[0]?.message).toMatch(/^Rank 1 did not arrive at #3 broadcast\(\[8\] float32, src 2\) within 60 ms/)
    expect(errors[0]?.message).toMatch(/rank 0: .*allReduce.*barrier.*broadcast.*; rank 1: .*allReduce\(.*#2 barrier\(\); rank 2: /)
    expect(thrown?.error).toBe(errors[0])
    expect(ms).toBeLessThan(3000)
  })

  it('two of them are both named; a deadline of one collective goes before that of the program', async () => {
    const { errors, ms } = await outcomes({ ranks: 4, device, timeoutMs: 10_000 }, async (c) => {
      if (c.rank % 2 === 1) await never()
      await c.comm.barrier({ timeoutMs: c.rank === 0 ? 5000 : 40 })
    })
    expect(errors[0]?.message).toContain('Ranks 1, 3 did not arrive at #1 barrier() within 40 ms')
    expect(errors[0]).toBe(errors[2])
    expect(ms).toBeLessThan(4000)
  })

  it('a rank that comes too late gets the same error, and the next collective is in step again', async () => {
    const errors = await launch({ ranks: 2, device, timeoutMs: 20 }, async (c) => {
      if (c.rank === 1) await sleep(60)
      const error = await errorOf(c.comm.barrier())
      await c.comm.barrier({ timeoutMs: 5000 })
      return error
    })
    expect(errors[0]?.code).toBe('ERR_TIMEOUT')
    expect(errors[1]).toBe(errors[0])
  })

  it('after the end of the program it takes part in nothing', async () => {
    let call: (() => Promise<unknown>) | undefined
    const { thrown } = await outcomes({ ranks: 2, device, timeoutMs: 20 }, async (c) => {
      if (c.rank === 0) return c.comm.barrier()
      call = () => c.comm.barrier()
      return never()
    })
    expect(thrown?.error).toMatchObject({ code: 'ERR_TIMEOUT' })
    expect(await errorOf(call!())).toMatchObject({ code: FAILED })
  })
})

describe('an AbortSignal', () => {
  const reason = new Error('enough')

  it('given to one collective: that rank gets the reason, its peers ERR_RANK_FAILED', async () => {
    const stop = new AbortController()
    const later: unknown[] = []
    const { errors, thrown } = await outcomes({ ranks: 3, device }, async (c) => {
      if (c.rank === 2) {
        await sleep(5)
        stop.abort(reason)
      }
      const error = await errorOf(c.comm.allReduce(ones(c), c.rank === 0 ? { signal: stop.signal } : {}))
      later.push(await errorOf(c.comm.barrier()))
      throw error
    })
    expect(errors[0]).toBe(reason)
    expect(codes(errors)).toEqual(['Error', FAILED, FAILED])
    expect(errors[1]).toMatchObject({ rank: 0, cause: reason })
    expect(later).toHaveLength(3)
    for (const error of later) expect(error).toMatchObject({ code: FAILED, rank: 0 })
    expect(thrown?.error).toBe(reason)
    expect(getEventListeners(stop.signal, 'abort')).toHaveLength(0)
  })

  it('that was aborted before, or is aborted after', async () => {
    const stop = new AbortController()
    const { errors } = await outcomes({ ranks: 2, device }, async (c) => {
      await c.comm.barrier({ signal: stop.signal })
      expect(getEventListeners(stop.signal, 'abort')).toHaveLength(0)
      await c.comm.barrier()
      stop.abort(reason)
      await c.comm.barrier()
      await c.comm.barrier(c.rank === 1 ? { signal: stop.signal } : {})
    })
    expect(codes(errors)).toEqual([FAILED, 'Error'])
    expect(errors[1]).toBe(reason)
  })

  it('of launch: pending collectives end, contexts hear of it, launch throws the reason', async () => {
    const stop = new AbortController()
    const heard: unknown[] = []
    setTimeout(() => stop.abort(reason), 10)
    const { errors, thrown, ms } = await outcomes({ ranks: 3, device, signal: stop.signal }, async (c) => {
      c.signal.addEventListener('abort', () => heard.push(c.signal.reason))
      if (c.rank === 0) await never()
      await c.comm.barrier()
    })
    expect(thrown?.error).toBe(reason)
    expect(heard).toEqual([reason, reason, reason])
    expect(codes(errors)).toEqual([undefined, FAILED, FAILED])
    expect(ms).toBeLessThan(1500)
    expect(getEventListeners(stop.signal, 'abort')).toHaveLength(0)
  })

  it('of launch, aborted before: no rank starts', async () => {
    let started = 0
    const early = new AbortController()
    early.abort(reason)
    expect(await errorOf(launch({ ranks: 2, device, signal: early.signal }, () => started++))).toBe(reason)
    const meanwhile = new AbortController()
    const run = launch({ ranks: 2, device: 'webgpu', signal: meanwhile.signal }, () => started++)
    meanwhile.abort(reason) // while the device is being opened
    expect(await errorOf(run)).toBe(reason)
    expect(started).toBe(0)
  })
})

describe('timers', () => {
  const timeouts = (): number => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length

  it('none is left that would keep the process alive', async () => {
    const before = timeouts()
    await launch({ ranks: 3, device }, (c) => reduce(c))
    await outcomes({ ranks: 3, device }, async (c) => {
      if (c.rank === 1) throw new Error('boom')
      await reduce(c)
    })
    await outcomes({ ranks: 2, device }, async (c) => (c.rank === 0 ? c.comm.barrier() : c.comm.allocate([4])))
    await outcomes({ ranks: 3, device }, async (c) => (c.rank === 0 ? undefined : c.comm.barrier()))
    expect(timeouts()).toBeLessThanOrEqual(before)
  })
})
