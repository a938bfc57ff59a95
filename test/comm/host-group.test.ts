// Groups of ranks that find each other by an id: formed once all have joined, refused where they disagree.
import { describe, expect, it } from 'vitest'
import type { HostComm } from '../../runtime/comm/host.ts'
import { createHostGroup, importHostGroup } from '../../runtime/comm/host-group.ts'
import { errorOf } from '../support/outcomes.ts'

async function group<T>(size: number, main: (host: HostComm) => Promise<T>): Promise<T[]> {
  const id = createHostGroup('local').export()
  return Promise.all(Array.from({ length: size }, async (_, rank) => main(await importHostGroup(id).connect({ size, rank }))))
}

describe('forming a group', () => {
  it('the one who made the id joins like the others; ids are never alike', async () => {
    const made = createHostGroup('local')
    expect(made.export()).not.toEqual(createHostGroup('local').export())
    const other = importHostGroup(made.export())
    const [a, b] = await Promise.all([made.connect({ size: 2, rank: 1 }), other.connect({ size: 2, rank: 0 })])
    expect(await Promise.all([a.allGather('a'), b.allGather('b')])).toEqual([
      ['b', 'a'],
      ['b', 'a'],
    ])
  })

  it('two groups at a time keep apart', async () => {
    const sums = await Promise.all([group(2, (host) => host.allReduce(1)), group(3, (host) => host.allReduce(10))])
    expect(sums).toEqual([
      [2, 2],
      [30, 30, 30],
    ])
  })

  it('sizes that disagree: ERR_ARGUMENT on every rank, at once, and on those who come later', async () => {
    const id = createHostGroup('local').export()
    const join = (size: number, rank: number): Promise<Error & { code: string }> => errorOf(importHostGroup(id).connect({ size, rank }))
    const begin = performance.now()
    const errors = await Promise.all([join(3, 0), join(2, 1), join(3, 2)])
    expect(errors.map((error) => error.code)).toEqual(['ERR_ARGUMENT', 'ERR_ARGUMENT', 'ERR_ARGUMENT'])
    for (const error of errors) expect(error.message).toContain('has 3 ranks, but rank 1 joined with size 2')
    expect(performance.now() - begin).toBeLessThan(500)
  })

  it('one rank twice: ERR_ARGUMENT', async () => {
    const id = createHostGroup('local').export()
    const join = (): Promise<Error & { code: string }> => errorOf(importHostGroup(id).connect({ size: 2, rank: 0 }))
    for (const error of await Promise.all([join(), join()]))
      expect(error).toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringContaining('twice') })
  })

  it('a rank that never joins: ERR_TIMEOUT by the shortest deadline', async () => {
    const id = createHostGroup('local').export()
    const join = (rank: number, timeoutMs: number): Promise<Error> => errorOf(importHostGroup(id).connect({ size: 3, rank, timeoutMs }))
    const begin = performance.now()
    for (const error of await Promise.all([join(0, 5000), join(2, 20)])) expect(error).toMatchObject({ code: 'ERR_TIMEOUT', rank: 1 })
    expect(performance.now() - begin).toBeLessThan(1000)
  })

  it('bad arguments: ERR_ARGUMENT, or ERR_BACKEND_UNAVAILABLE for a backend that is not built', async () => {
    expect(() => createHostGroup('gloo' as 'local')).toThrow(expect.objectContaining({ code: 'ERR_BACKEND_UNAVAILABLE' }))
    expect(() => importHostGroup(Uint8Array.of(1, 2, 3))).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT' }))
    expect(() => importHostGroup('local:1' as unknown as Uint8Array)).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT' }))
    for (const bad of [
      { size: 0, rank: 0 },
      { size: 2, rank: 2 },
      { size: 1.5, rank: 0 },
      { size: 1, rank: -1 },
      { size: 1, rank: 0, timeoutMs: 0 },
    ]) {
      expect((await errorOf(createHostGroup('local').connect(bad))).code, JSON.stringify(bad)).toBe('ERR_ARGUMENT')
    }
  })
})
