// Ranks that die, throw, freeze, leave, or are strangers: the right typed error on every survivor, in time, and a new group at once.
import { describe, expect, it } from 'vitest'
import { createHostGroup } from '../../runtime/comm/host-group.ts'
import { times } from '../support/effort.ts'
import { Random, seed } from '../support/random.ts'
import { absent, KINDS, type Kind, leftovers, run, start } from './harness.ts'
import { sleep } from './scenarios.ts'

const TIMES = times(50, 10)
/** A dead peer is noticed within this time on one machine. */
const NOTICED_MS = 2000

const shm = absent('shm')

describe.skipIf(shm !== null)(`processes${shm === null ? '' : `: ${shm}`}`, () => {
  const began = seed()
  it(`killed at a random moment, ${TIMES} times (seed ${began})`, async () => {
    const random = new Random(began)
    const late: number[] = []
    for (let i = 0; i < TIMES; i++) {
      const size = 2 + random.int(2)
      const who = random.int(size)
      const { outcomes, joined, processes } = start('shm', { size, scenario: 'endless', timeoutMs: 30_000 })
      await joined
      const delay = random.int(60)
      await sleep(delay)
      const killed = performance.now()
      processes[who]?.kill('SIGKILL')
      const found = await outcomes
      late.push(performance.now() - killed)
      found.forEach((outcome, rank) => {
        const error = 'error' in outcome ? outcome.error : { code: 'none', message: '' }
        if (rank === who) expect(error.code).toBe('DIED')
        else
          expect(error, `round ${i}, rank ${rank}, killed ${who} after ${delay} ms`).toMatchObject({ code: 'ERR_RANK_FAILED', rank: who })
      })
    }
    late.sort((a, b) => a - b)
    console.log(`noticed after ${late[TIMES / 2]?.toFixed(0)} ms (median), ${late.at(-1)?.toFixed(0)} ms (slowest)`)
    expect(leftovers()).toEqual([])
  })

  it('stopped: ERR_TIMEOUT that names it, and what each was doing last; it hears the same when it goes on', async () => {
    const { outcomes, joined, processes } = start('shm', { size: 3, scenario: 'endless', timeoutMs: 700 })
    await joined
    await sleep(50)
    processes[1]?.kill('SIGSTOP')
    await sleep(1500)
    processes[1]?.kill('SIGCONT')
    for (const outcome of await outcomes) {
      expect(outcome).toMatchObject({ error: { code: 'ERR_TIMEOUT', rank: 1 } })
      expect((outcome as { error: { message: string } }).error.message).toMatch(
        /Rank 1 did not arrive at host\.all.* within 700 ms\. Last collectives: rank 0: .*rank 1: #/,
      )
    }
  })
})

for (const kind of KINDS) {
  const reason = absent(kind)
  if (reason !== null) {
    it.skip(`${kind}: ${reason}`, () => {})
    continue
  }
  describe(kind, () => {
    const errorsOf = async (options: Parameters<typeof start>[1]) =>
      (await start(kind, options).outcomes).map((outcome) =>
        'error' in outcome ? outcome.error : { code: 'none', message: '', afterMs: 0 },
      )

    it(`a rank that throws${kind.startsWith('thread') ? `, ${TIMES} times` : ''}: ERR_RANK_FAILED with what it threw on all others`, async () => {
      for (let i = 0; i < (kind.startsWith('thread') ? TIMES : 3); i++) {
        const who = i % 3
        const errors = await errorsOf({ size: 3, scenario: 'waiting', data: { who, how: 'throw', after: i } })
        errors.forEach((error, rank) => {
          if (rank === who) expect(error.message).toBe('on purpose')
          else expect(error).toMatchObject({ code: 'ERR_RANK_FAILED', rank: who, message: `Rank ${who} failed: Error: on purpose` })
          expect(error.afterMs).toBeLessThan(NOTICED_MS)
        })
      }
      expect(await run(kind, { size: 2, scenario: 'splits' })).toEqual([2, 2])
    })

    it('a rank that leaves: ERR_RANK_FAILED for what still needs it', async () => {
      const [first, second, third] = await errorsOf({ size: 3, scenario: 'waiting', data: { who: 2, how: 'leave' } })
      for (const error of [first, second])
        expect(error).toMatchObject({ code: 'ERR_RANK_FAILED', rank: 2, message: expect.stringMatching(/left the group/) })
      expect(third?.code).toBe('none')
    })

    it('a rank that does nothing for a while: ERR_TIMEOUT on all, itself included', async () => {
      const errors = await errorsOf({ size: 3, scenario: 'waiting', data: { who: 0, how: 'freeze', timeoutMs: 500 } })
      for (const error of errors) {
        expect(error).toMatchObject({ code: 'ERR_TIMEOUT', rank: 0 })
        expect(error.message).toMatch(
          /Rank 0 did not arrive at host\.allReduce\(sum, Int32Array\[3\]\) within 500 ms\. Last collectives: rank 0: .*host\.barrier\(\)/,
        )
      }
    })

    it('an AbortSignal: its reason there, ERR_RANK_FAILED elsewhere', async () => {
      const errors = await errorsOf({ size: 3, scenario: 'waiting', data: { who: 1, how: 'abort', after: 0 } })
      expect(errors[1]?.message).toBe('told to stop')
      for (const rank of [0, 2])
        expect(errors[rank]).toMatchObject({ code: 'ERR_RANK_FAILED', rank: 1, message: expect.stringMatching(/told to stop/) })
    })

    it('an abort is one event on each rank, with the last 256 calls of all', async () => {
      const { outcomes } = start(kind, { size: 3, scenario: 'event' })
      for (const [rank, outcome] of (await outcomes).entries()) {
        if (rank === 1) continue
        const { code, events } = (outcome as { value: { code: string; events: unknown[] } }).value
        expect(code).toBe('ERR_RANK_FAILED')
        expect(events).toHaveLength(1)
        expect(events[0]).toMatchObject({ message: expect.stringMatching(/Rank 1 failed: on purpose/), members: [0, 1, 2] })
        const { calls } = events[0] as { calls: [number, string][] }
        for (const [index, [count, last]] of calls.entries()) {
          expect(count).toBe(256)
          expect(last).toMatch(
            index === 1 ? /#299 host\.allReduce\(sum, Int32Array\[299\]\)/ : /host\.(barrier\(\)|allReduce\(sum, Int32Array\[299\]\))/,
          )
        }
      }
    })

    it('a rank that never starts: ERR_TIMEOUT that names it', async () => {
      // The two that start must do so within it, or they are missing to each other.
      const timeoutMs = kind === 'shm' ? 2500 : 700
      const errors = await errorsOf({ size: 3, ranks: [{ rank: 0 }, { rank: 2 }], scenario: 'splits', timeoutMs })
      for (const error of errors) expect(error).toMatchObject({ code: 'ERR_TIMEOUT', rank: 1 })
      const alone = await errorsOf({ size: 3, ranks: [{ rank: 2 }], scenario: 'splits', timeoutMs: 300 })
      expect(alone).toMatchObject([{ code: 'ERR_TIMEOUT', rank: 0 }])
    })

    it('a wrong world size, a rank twice: ERR_ARGUMENT on every rank', async () => {
      const sizes = await errorsOf({ size: 2, ranks: [{ rank: 0 }, { rank: 1, size: 3 }], scenario: 'splits' })
      for (const error of sizes)
        expect(error).toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringMatching(/2 ranks.*joined with size 3/) })
      for (const twice of [0, 1]) {
        const errors = await errorsOf({
          size: 3,
          ranks: [{ rank: twice }, { rank: twice }, { rank: 1 - twice }],
          scenario: 'splits',
          timeoutMs: 3000,
        })
        const found = errors.map(({ code }) => code)
        // A rank that comes when those who led have given up finds nobody.
        if (twice === 0 && found[2] === 'ERR_TIMEOUT') found.pop()
        expect([...new Set(found)], `rank ${twice} twice`).toEqual(['ERR_ARGUMENT'])
        expect(errors[0]?.message).toMatch(new RegExp(`Rank ${twice} joined this group twice`))
      }
    })

    it('nothing is left behind', () => expect(leftovers()).toEqual([]))
  })
}

it('an id that is none, a backend that is none', async () => {
  const kind: Kind = 'thread, JavaScript'
  for (const id of ['', 'thread:', 'shm:../../etc/passwd', 'local', 'shm:a b']) {
    const [outcome] = await start(kind, { size: 1, scenario: 'splits', group: new TextEncoder().encode(id) }).outcomes
    expect(outcome).toMatchObject({ error: { code: 'ERR_ARGUMENT' } })
  }
  expect(() => createHostGroup('pigeon' as 'local')).toThrow(/pigeon/)
})
