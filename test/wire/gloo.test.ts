// GlooWire among processes: bytes of every length, reductions in the order of ranks, and failures that name the rank at fault.
import { type ChildProcess, fork } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { rmSync } from 'node:fs'
import { dirname } from 'node:path'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { StoreServer } from '../../runtime/comm/wire/store-server-node.ts'
import { addonReport, loadAddon } from '../../runtime/core/addon-node.ts'
import { bundle } from '../support/bundle.ts'
import { seed } from '../support/random.ts'
import type { Ending, Job } from './gloo-rank.ts'

const gloo = loadAddon()?.features().gloo
const skip = gloo?.available ? undefined : (gloo?.detail ?? `no addon: ${addonReport().command}`)
const maybe = skip ? describe.skip : describe

let program: string
let server: StoreServer
const children: ChildProcess[] = []

beforeAll(async () => {
  if (!skip) program = await bundle('test/wire/gloo-rank.ts')
})
afterAll(() => {
  if (program) rmSync(dirname(program), { recursive: true, force: true })
})
afterEach(async () => {
  for (const child of children.splice(0)) child.kill('SIGKILL')
  await server?.close()
})

interface Outcome extends Partial<Ending> {
  code: number | null
  signal: NodeJS.Signals | null
  /** Milliseconds between a rank's telling how it ended and its process's end. */
  exitMs: number
}

/** Runs a scenario, one process for each rank of `ranks`; what each told, and how its process ended. */
async function run(
  scenario: string,
  size: number,
  options: { timeoutMs?: number; ranks?: readonly number[]; seed?: number; nodes?: number[][] } = {},
): Promise<Outcome[]> {
  const { timeoutMs = 30_000, ranks = Array.from({ length: size }, (_, rank) => rank) } = options
  const token = randomBytes(16).toString('hex')
  server = await StoreServer.listen({ token, size, rank: size })
  const one = (rank: number): Promise<Outcome> => {
    const job: Job = {
      scenario,
      rank,
      size,
      port: server.port,
      token,
      seed: options.seed ?? 0,
      timeoutMs,
      ...(options.nodes && { nodes: options.nodes }),
    }
    const child = fork(program, [JSON.stringify(job)], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
    children.push(child)
    return new Promise((resolve) => {
      let told: Ending | undefined
      let at = performance.now()
      child.on('message', (ending) => {
        told = ending as Ending
        at = performance.now()
      })
      child.on('exit', (code, signal) => resolve({ ...told, code, signal, exitMs: performance.now() - at }))
    })
  }
  return Promise.all(ranks.map(one))
}

const well = (result: unknown) => expect.objectContaining({ result, code: 0, signal: null })

maybe(`gloo${skip ? ` (skipped: ${skip})` : ''}`, () => {
  for (const size of [2, 3]) {
    it(`${size} ranks exchange bytes of every length, on all lanes at once`, async () => {
      const value = seed()
      const outcomes = await run('rounds', size, { seed: value })
      expect(outcomes, `seed ${value}`).toEqual(outcomes.map(() => well('ok')))
      for (const { exitMs } of outcomes) expect(exitMs).toBeLessThan(7000)
    })

    it(`${size} ranks reduce every kind of number in the order of ranks`, async () => {
      const value = seed()
      const outcomes = await run('reductions', size, { seed: value })
      expect(outcomes, `seed ${value}`).toEqual(outcomes.map(() => well(111)))
    })
  }

  it('splits, in a new order; the whole goes on', async () => {
    const value = seed()
    const outcomes = await run('split', 4, { seed: value })
    expect(outcomes, `seed ${value}`).toEqual(
      [
        [2, 0],
        [3, 1],
        [2, 0],
        [3, 1],
      ].map(well),
    )
  })

  it('one rank alone is a group', async () => {
    expect(await run('rounds', 1)).toEqual([well('ok')])
  })

  it('a rank that does not arrive is named, with what it did last', async () => {
    const [first, silent, third] = await run('silent', 3)
    for (const outcome of [first!, third!]) {
      expect(outcome.error).toMatchObject({ code: 'ERR_TIMEOUT', rank: 1 })
      expect(outcome.error!.message).toMatch(
        /^Rank 1 did not arrive at second\(\) within 700 ms\. .*rank 1: #0 first\(\), #1 something else\(\)/,
      )
      expect(outcome.ms).toBeLessThan(3000)
    }
    expect(silent!.result).toBe('silent')
  })

  it('a rank that never connects is named', async () => {
    const outcomes = await run('rounds', 3, { ranks: [0, 2], timeoutMs: 1500 })
    for (const { error, ms } of outcomes) {
      expect(error).toMatchObject({ code: 'ERR_TIMEOUT', rank: 1, message: expect.stringContaining('Rank 1 did not arrive at connect') })
      expect(ms).toBeLessThan(4000)
    }
  })

  for (const scenario of ['killed', 'killed while others do something else']) {
    it(`a rank that is ${scenario} is named by all others within 2 s`, async () => {
      const start = performance.now()
      const outcomes = await run(scenario, 3)
      expect(outcomes[1]).toMatchObject({ signal: 'SIGKILL' })
      for (const { error, code } of [outcomes[0]!, outcomes[2]!]) {
        expect(error).toMatchObject({ code: 'ERR_RANK_FAILED', rank: 1 })
        expect(code).toBe(0)
      }
      expect(performance.now() - start).toBeLessThan(10_000)
      const spread = outcomes[0]!.ms! - outcomes[2]!.ms!
      expect(Math.abs(spread)).toBeLessThan(2000)
    })
  }

  it('a rank that leaves completes what it has joined; what it has not fails for the others', async () => {
    const [first, left] = await run('left', 2)
    expect(left).toEqual(well(2))
    expect(first!.error).toMatchObject({ code: 'ERR_RANK_FAILED', rank: 1, message: expect.stringMatching(/Rank 1 has left .*alone\(\)/) })
    expect(first!.ms).toBeLessThan(5000)
  })

  it('a rank that is told to stop takes the others with it', async () => {
    const outcomes = await run('aborted', 3)
    expect(outcomes[1]!.error).toMatchObject({ message: 'enough' })
    expect(outcomes[2]!.error).toMatchObject({ code: 'ERR_RANK_FAILED', rank: 1, message: expect.stringContaining('enough') })
  })

  it('a rank in a thread that is terminated while it waits is named, and its process lives on', async () => {
    const [first, terminated] = await run('terminated', 2)
    expect(terminated).toEqual(well('alive'))
    expect(terminated!.ms).toBeLessThan(5000)
    expect(first!.error).toMatchObject({ code: 'ERR_RANK_FAILED', rank: 1 })
  })

  it('different calls are told apart, on all ranks', async () => {
    for (const { error } of await run('mismatch', 2)) {
      expect(error).toMatchObject({
        code: 'ERR_COLLECTIVE_MISMATCH',
        message: expect.stringMatching(/rank 0: #0 allReduce\(a\); rank 1: #0 allReduce\(b\)/),
      })
    }
  })

  describe('with shared memory inside nodes', () => {
    for (const nodes of [
      [
        [0, 2],
        [1, 3],
      ],
      [[0], [1, 2]],
    ]) {
      it(`ranks of nodes ${JSON.stringify(nodes)} exchange bytes of every length, on all lanes at once`, async () => {
        const value = seed()
        const outcomes = await run('rounds', nodes.flat().length, { seed: value, nodes })
        expect(outcomes, `seed ${value}`).toEqual(outcomes.map(() => well('ok')))
      })
    }

    for (const [who, nodes] of Object.entries({
      leader: [
        [0, 2],
        [1, 3],
      ],
      rank: [
        [0, 1],
        [2, 3],
      ],
    })) {
      it(`a ${who} that is killed is named by all ranks of all nodes within 2 s`, async () => {
        const outcomes = await run('killed', 4, { nodes })
        const others = outcomes.filter(({ rank }) => rank !== undefined)
        expect(others).toHaveLength(3)
        for (const { error } of others) expect(error).toMatchObject({ code: 'ERR_RANK_FAILED', rank: 1 })
        const times = others.map(({ ms }) => ms as number)
        expect(Math.max(...times) - Math.min(...times)).toBeLessThan(2000)
      })
    }
  })
})
