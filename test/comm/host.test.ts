// HostComm among ranks of one thread: every method, isolation of values, splits, groups formed by id, errors.
import { describe, expect, it } from 'vitest'
import { createDeviceComm } from '../../runtime/comm/communicator.ts'
import type { HostComm, HostOp, Reducible } from '../../runtime/comm/host.ts'
import { createHostGroup, importHostGroup } from '../../runtime/comm/host-group.ts'
import { errorOf, sleep } from '../support/outcomes.ts'
import { Random, seed } from '../support/random.ts'

/** Runs `main` as each rank of a group formed by id. */
async function group<T>(size: number, main: (host: HostComm) => Promise<T>, timeoutMs = 5000): Promise<T[]> {
  const id = createHostGroup('local').export()
  return Promise.all(
    Array.from({ length: size }, async (_, rank) => {
      const host = await importHostGroup(id).connect({ size, rank, timeoutMs })
      return main(host)
    }),
  )
}

const start = seed()
const random = new Random(start)

for (const size of [1, 2, 5]) {
  describe(`${size} ranks (seed ${start})`, () => {
    it('rank, size, and the ranks sit in one process', async () => {
      const found = await group(size, async ({ rank, size: n, isSameProcess }) => [rank, n, isSameProcess])
      expect(found).toEqual(Array.from({ length: size }, (_, rank) => [rank, size, true]))
    })

    it('sync and barrier wait for the last', async () => {
      for (const wait of [
        (host: HostComm) => host.barrier(),
        (host: HostComm) => host.sync(),
        (host: HostComm) => host.sync({ blocking: false }),
      ]) {
        let entered = 0
        await group(size, async (host) => {
          await sleep(host.rank * 2)
          entered++
          await wait(host)
          expect(entered).toBe(size)
        })
      }
    })

    it('broadcast from every root: the value itself there, clones elsewhere', async () => {
      const values = Array.from({ length: size }, (_, rank) => ({
        rank,
        deep: { list: [1, 2n, 'three'], bytes: Uint8Array.of(rank) },
        map: new Map([[1, rank]]),
      }))
      for (let root = 0; root < size; root++) {
        const found = await group(size, async (host) => host.broadcast(values[host.rank]!, root === 0 ? {} : { root }))
        for (const [rank, value] of found.entries()) {
          expect(value).toEqual(values[root])
          if (rank === root) expect(value).toBe(values[root])
          else expect(value.deep).not.toBe(values[root]!.deep)
        }
        expect(new Set(found).size).toBe(size)
      }
    })

    it('allGather: every value in rank order, each rank with clones of its own', async () => {
      const values = Array.from({ length: size }, (_, rank) => ({ list: [rank, random.bits()] }))
      const found = await group(size, async (host) => {
        const all = await host.allGather(values[host.rank]!)
        await host.barrier()
        const copy = structuredClone(all)
        for (const value of all) value.list.push(-1)
        await host.barrier()
        return copy
      })
      for (const all of found) expect(all).toEqual(values)
    })

    it('a value counts as it is at the call', async () => {
      await group(size, async (host) => {
        const value = { rank: host.rank }
        const [sent, gathered, sum] = [
          host.broadcast(value, { root: size - 1 }),
          host.allGather(value),
          host.allReduce(Int32Array.of(value.rank)),
        ]
        value.rank = -1
        if (host.rank !== size - 1) expect(await sent).toEqual({ rank: size - 1 })
        expect(await gathered).toEqual(Array.from({ length: size }, (_, rank) => ({ rank })))
        expect(await sum).toEqual(Int32Array.of((size * (size - 1)) / 2))
      })
    })

    const ARRAYS = {
      Int32Array: () => Int32Array.from({ length: 9 }, () => random.bits()),
      Uint32Array: () => Uint32Array.from({ length: 9 }, () => random.bits()),
      Float32Array: () => random.floats(9, 100),
      Float64Array: () => Float64Array.from({ length: 9 }, () => random.normal()),
      BigInt64Array: () => BigInt64Array.from({ length: 9 }, () => (BigInt(random.bits()) << 32n) | BigInt(random.bits())),
      BigUint64Array: () => BigUint64Array.from({ length: 9 }, () => (BigInt(random.bits()) << 32n) | BigInt(random.bits())),
      number: () => random.normal(),
      bigint: () => BigInt(random.bits()) << 40n,
      empty: () => new Float32Array(0),
    } as Record<string, () => Reducible>

    for (const [name, make] of Object.entries(ARRAYS)) {
      it(`allReduce of ${name}`, async () => {
        const values = Array.from({ length: size }, make)
        for (const op of ['sum', 'min', 'max'] as const) {
          const found = await group(size, (host) => host.allReduce(values[host.rank] as Float32Array, op))
          const wanted = reduced(values, op)
          for (const value of found) expect(value, op).toEqual(wanted)
          if (typeof values[0] === 'object') expect(new Set([...found, ...values]).size, 'arrays of their own').toBe(2 * size)
        }
        const summed = await group(size, (host) => host.allReduce(values[host.rank] as Float32Array))
        expect(summed[0]).toEqual(reduced(values, 'sum'))
      })
    }

    it('allReduce: a NaN of any rank stays in min and max', async () => {
      for (let where = 0; where < size; where++) {
        for (const op of ['min', 'max'] as const) {
          const found = await group(size, async (host) => [
            await host.allReduce(host.rank === where ? Number.NaN : host.rank, op),
            ...(await host.allReduce(Float32Array.of(host.rank === where ? Number.NaN : 1, 2), op)),
          ])
          for (const value of found) expect(value).toEqual([Number.NaN, Number.NaN, 2])
        }
      }
    })

    it('split: equal colors, ordered by key and then by rank; null joins none', async () => {
      const colors = Array.from({ length: size }, () => [0, 7, null][random.int(3)] ?? null)
      const keys = Array.from({ length: size }, () => random.int(3) - 1)
      const found = await group(size, async (host) => {
        const part = await host.split({ color: colors[host.rank]!, key: keys[host.rank]! })
        return part && { rank: part.rank, members: await part.allGather(host.rank) }
      })
      for (const [rank, part] of found.entries()) {
        const color = colors[rank]
        if (color === null) expect(part).toBeNull()
        else {
          const members = colors.flatMap((c, r) => (c === color ? [r] : [])).sort((a, b) => keys[a]! - keys[b]! || a - b)
          expect(part).toEqual({ rank: members.indexOf(rank), members })
        }
      }
    })

    it('split of a split, beside the whole group', async () => {
      const found = await group(size, async (host) => {
        const half = await host.split({ color: host.rank % 2 })
        const backwards = await half!.split({ color: 0, key: -half!.rank })
        return [await backwards!.allGather(host.rank), await host.allReduce(1), await half!.allReduce(1)]
      })
      const half = (parity: number): number[] => Array.from({ length: size }, (_, r) => r).filter((r) => r % 2 === parity)
      for (const [rank, [order, all, part]] of found.entries()) {
        expect(order).toEqual(half(rank % 2).reverse())
        expect([all, part]).toEqual([size, half(rank % 2).length])
      }
    })
  })
}

/** Elementwise, ranks ascending, in the array's own arithmetic. */
function reduced(values: readonly Reducible[], op: HostOp): Reducible {
  const join = (a: number | bigint, b: number | bigint): number | bigint =>
    op === 'sum' ? (a as number) + (b as number) : a < b === (op === 'min') ? a : b
  if (typeof values[0] !== 'object') return (values as number[]).reduce((a, b) => join(a, b) as number)
  const out = (values[0] as Float64Array).slice()
  for (const value of values.slice(1) as Float64Array[]) for (let i = 0; i < out.length; i++) out[i] = join(out[i]!, value[i]!) as number
  return out
}

describe('errors', () => {
  it('calls that differ: ERR_COLLECTIVE_MISMATCH on every rank, then in step again', async () => {
    const CALLS: Record<string, ((host: HostComm) => Promise<unknown>)[]> = {
      operation: [(host) => host.barrier(), (host) => host.allGather(1)],
      root: [(host) => host.broadcast(1), (host) => host.broadcast(1, { root: 1 })],
      op: [(host) => host.allReduce(1, 'min'), (host) => host.allReduce(1, 'max')],
      type: [(host) => host.allReduce(1), (host) => host.allReduce(1n)],
      length: [(host) => host.allReduce(new Int32Array(2)), (host) => host.allReduce(new Int32Array(3))],
      array: [(host) => host.allReduce(new Int32Array(2)), (host) => host.allReduce(new Uint32Array(2))],
    }
    for (const [name, [usual, odd]] of Object.entries(CALLS)) {
      const errors = await group(3, async (host) => {
        const error = await errorOf((host.rank === 1 ? odd : usual)!(host))
        expect(await host.allReduce(host.rank)).toBe(3)
        return error
      })
      for (const error of errors) {
        expect(error.code, name).toBe('ERR_COLLECTIVE_MISMATCH')
        expect(error.message, name).toMatch(/rank \d called host\..* rank \d called host\./)
      }
    }
  })

  it('bad arguments of one rank: ERR_ARGUMENT there, ERR_COLLECTIVE_MISMATCH elsewhere', async () => {
    const BAD: Record<string, (host: HostComm) => Promise<unknown>> = {
      'an unknown op': (host) => host.allReduce(1, 'avg' as HostOp),
      'a string to add': (host) => host.allReduce('1' as unknown as number),
      'an array of bytes': (host) => host.allReduce(new Uint8Array(1) as unknown as Int32Array),
      'a root outside': (host) => host.broadcast(1, { root: 3 }),
      'a function to send': (host) => host.allGather(() => {}),
      'a color of no kind': (host) => host.split({ color: 0.5 }),
      'a key of no kind': (host) => host.split({ color: 0, key: Number.NaN }),
      'a deadline of no length': (host) => host.barrier({ timeoutMs: -1 }),
    }
    for (const [name, bad] of Object.entries(BAD)) {
      const errors = await group(3, (host) => errorOf(host.rank === 2 ? bad(host) : host.allGather(0)))
      expect(
        errors.map((error) => error.code),
        name,
      ).toEqual(['ERR_COLLECTIVE_MISMATCH', 'ERR_COLLECTIVE_MISMATCH', 'ERR_ARGUMENT'])
      expect(errors[0]?.cause, name).toBe(errors[2])
    }
  })

  it('a rank that does not come: ERR_TIMEOUT', async () => {
    const errors = await group(3, async (host) => (host.rank === 1 ? null : errorOf(host.barrier({ timeoutMs: 20 }))))
    for (const error of [errors[0], errors[2]]) expect(error).toMatchObject({ code: 'ERR_TIMEOUT', rank: 1 })
  })

  it('a rank that has closed its part: ERR_RANK_FAILED for what still needs it, and for itself', async () => {
    const errors = await group(3, async (host) => {
      await host.barrier()
      if (host.rank === 0) {
        await sleep(3)
        host.close()
      }
      return errorOf(host.barrier())
    })
    for (const error of errors)
      expect(error).toMatchObject({ code: 'ERR_RANK_FAILED', rank: 0, message: expect.stringContaining('closed') })
  })

  it('a device group needs WebGPU devices and a backend that is built', async () => {
    const errors = await group(1, async (host) => [
      await errorOf(createDeviceComm('smoke' as 'webgpu', { host, device: {} as never })),
      await errorOf(createDeviceComm('webgpu', { host: {} as HostComm, device: {} as never })),
      await errorOf(createDeviceComm('webgpu', { host, device: {} as never })),
    ])
    expect(errors[0]!.map((error) => error.code)).toEqual(['ERR_BACKEND_UNAVAILABLE', 'ERR_BACKEND_UNAVAILABLE', 'ERR_ARGUMENT'])
  })
})
