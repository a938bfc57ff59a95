// Host groups over shared memory: worker threads with and without the addon, and processes; values, arrays, splits, many small calls.
import { describe, expect, it } from 'vitest'
import { times } from '../support/effort.ts'
import { seed } from '../support/random.ts'
import { absent, KINDS, leftovers, run } from './harness.ts'

for (const kind of KINDS) {
  const reason = absent(kind)
  if (reason !== null) {
    it.skip(`${kind}: ${reason}`, () => {})
    continue
  }
  describe(kind, () => {
    for (const size of [1, 2, 3, 4]) {
      const start = seed()
      it(`${size} ranks: values of any kind (seed ${start})`, async () => {
        const results = await run<boolean>(kind, { size, scenario: 'values', data: { seed: start } })
        expect(results).toEqual(Array(size).fill(kind !== 'shm'))
      })

      it(`${size} ranks: arrays of every type (seed ${start})`, async () => {
        const results = await run<number>(kind, { size, scenario: 'arrays', data: { seed: start } })
        expect(results).toEqual(Array(size).fill(6 * 3 * 9))
      })

      it(`${size} ranks: several under way at once, and messages`, async () => {
        await run(kind, { size, scenario: 'overlapped' })
      })
    }

    it('arrays that take many rounds', async () => {
      await run(kind, { size: 3, scenario: 'arrays', data: { seed: seed(), lengths: [150_001] } })
    })

    it('groups split off groups', async () => {
      for (const size of [2, 5]) expect(await run(kind, { size, scenario: 'splits' })).toEqual(Array(size).fill(size))
    })

    const start = seed()
    const count = kind === 'thread, JavaScript' ? times(20_000, 5_000) : times(100_000, 20_000)
    it(`${count} small collectives over 4 ranks (seed ${start})`, async () => {
      const results = await run(kind, { size: 4, scenario: 'many', data: { count, seed: start }, timeoutMs: 60_000 })
      expect(results).toEqual([0, 0, 0, 0])
    })

    it('calls that differ, and refused arguments: an error on every rank, then in step again', async () => {
      const results = await run<{ codes: string[]; after: number }>(kind, { size: 3, scenario: 'mismatched' })
      for (const [rank, { codes, after }] of results.entries()) {
        expect(after).toBe(3)
        expect(codes.filter((_, i) => i % 2 === 0)).toEqual([
          'ERR_COLLECTIVE_MISMATCH',
          rank === 0 ? 'ERR_ARGUMENT' : 'ERR_COLLECTIVE_MISMATCH',
          'ERR_COLLECTIVE_MISMATCH',
          'ERR_COLLECTIVE_MISMATCH',
        ])
        expect(codes[1]).toMatch(/rank 0 called host\.barrier\(\), rank 1 called host\.allGather\(\)/)
      }
    })

    it('a split after one that did not come about', async () => {
      const results = await run<[string, number]>(kind, { size: 2, scenario: 'splitAgain' })
      expect(results).toEqual(Array(2).fill(['ERR_COLLECTIVE_MISMATCH', 2]))
    })

    it('the signal and the deadline of a call count before its turn', async () => {
      type Told = { ms: number; first: { code: string }; second: { code: string; message: string } }
      const queued = (how: string): Promise<Told[]> => run(kind, { size: 2, scenario: 'queued', data: { how } })
      const [[signal], [deadline, other]] = await Promise.all([queued('signal'), queued('deadline')])
      expect(signal).toMatchObject({ second: { code: 'RangeError', message: 'enough' }, first: { code: 'ERR_RANK_FAILED' } })
      expect(deadline).toMatchObject({ second: { code: 'ERR_TIMEOUT' }, first: { code: 'ERR_TIMEOUT' } })
      expect(other).toMatchObject({ code: 'ERR_TIMEOUT' })
      for (const { ms } of [signal!, deadline!]) expect(ms).toBeLessThan(1500)
    })

    it('more memory than there is: an error on every rank, at once', async () => {
      for (const { code, ms } of await run<{ code: string; ms: number }>(kind, { size: 2, scenario: 'tooMuch' })) {
        expect(['ERR_OUT_OF_MEMORY', 'ERR_RANK_FAILED', 'ERR_BACKEND_UNAVAILABLE']).toContain(code)
        expect(ms).toBeLessThan(2000)
      }
    })

    it('arrays of which only some lie in the memory of the group', async () => {
      for (const [first, second] of await run<[number, number]>(kind, { size: 2, scenario: 'elsewhere' }))
        expect([first, second]).toEqual([3, 6])
    })

    it('a group that is closed, and one split off a group that has ended', async () => {
      for (const { after, ended } of await run<{ after: { code: string; message: string }[]; ended: { code: string }[] }>(kind, {
        size: 2,
        scenario: 'closed',
      })) {
        for (const { code, message } of after)
          expect([code, message]).toEqual(['ERR_RANK_FAILED', expect.stringMatching(/has closed its part of this group/)])
        expect(ended.map(({ code }) => code)).toEqual(Array(3).fill('ERR_RANK_FAILED'))
      }
    })

    it('nothing is left behind', () => {
      expect(leftovers()).toEqual([])
    })
  })
}
