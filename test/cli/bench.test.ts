// `rankmesh bench`: its figures add up, every collective is checked, wrong results are found and told, and the drawing is one.
import { execFile } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { COLLECTIVES } from '../../runtime/cli/bench-collectives.ts'
import { type BenchOp, elementOf, fusedOf, reducedOf, wrongOf } from '../../runtime/cli/bench-values.ts'
import { plotSvg } from '../../runtime/cli/plot.ts'
import { type DType, decode, encode } from '../../runtime/core/dtype.ts'
import type { RankContext } from '../../runtime/scheduler/launch.ts'
import { seed } from '../support/random.ts'

const command = join(import.meta.dirname, '../../dist/cli.js')
const folder = mkdtempSync(join(tmpdir(), 'rankmesh-bench-'))
afterAll(() => rmSync(folder, { recursive: true }))

interface Outcome {
  code: number
  stdout: string
  stderr: string
}

function bench(args: string[], env: NodeJS.ProcessEnv = {}): Promise<Outcome> {
  return new Promise((resolve) => {
    execFile(process.execPath, [command, 'bench', ...args], { env: { ...process.env, ...env } }, (error, stdout, stderr) => {
      resolve({ code: error ? Number(error.code) : 0, stdout, stderr })
    })
  })
}

interface Report {
  collective: string
  ranks: number
  placement: string
  seed: number
  group: string
  rows: {
    bytes: number
    count: number
    dtype: string
    op: string
    microseconds: { median: number; min: number }
    algbw: number
    busbw: number
    errors: number | null
  }[]
}

const QUICK = ['--iters', '3', '--warmup', '1', '--json']

async function report(...args: string[]): Promise<Report> {
  const { code, stdout, stderr } = await bench([...args, ...QUICK])
  expect([code, stderr]).toEqual([0, ''])
  return JSON.parse(stdout) as Report
}

/** Bus bandwidth over algorithm bandwidth as nccl-tests has it, for 3 ranks; and whether the size is that of all ranks' parts. */
const CONVENTIONS: Record<string, [factor: number, parts: boolean]> = {
  'all-reduce': [4 / 3, false],
  'all-gather': [2 / 3, true],
  'reduce-scatter': [2 / 3, true],
  broadcast: [1, false],
  reduce: [1, false],
  'all-to-all': [2 / 3, true],
  fused: [4 / 3, false],
  'host-all-reduce': [4 / 3, false],
  'host-all-gather': [2 / 3, true],
  'host-broadcast': [1, false],
}

describe('figures', () => {
  for (const [name, [factor, parts]] of Object.entries(CONVENTIONS)) {
    it(`${name}: sizes, counts and bandwidths in the conventions of nccl-tests, results right`, async () => {
      const { collective, ranks, placement, rows } = await report(name, '--ranks', '3', '--max-bytes', '64K', '--factor', '16')
      expect([collective, ranks, placement]).toEqual([name, 3, 'local'])
      expect(rows.map(({ count }) => count)).toEqual(parts ? [1, 10, 170, 2730] : [2, 32, 512, 8192])
      for (const { bytes, count, dtype, microseconds, algbw, busbw, errors } of rows) {
        expect([bytes, dtype, errors]).toEqual([count * 4 * (parts ? 3 : 1), 'float32', 0])
        expect(microseconds.min).toBeGreaterThan(0)
        expect(microseconds.median).toBeGreaterThanOrEqual(microseconds.min)
        expect(algbw).toBeCloseTo(bytes / (microseconds.median * 1000), 12)
        expect(busbw / algbw).toBeCloseTo(factor, 9)
      }
    })
  }

  it('there is a convention for each collective', () =>
    expect(Object.keys(CONVENTIONS).sort()).toEqual(
      Object.keys(COLLECTIVES)
        .filter((name) => name !== 'host-barrier')
        .sort(),
    ))

  it('other dtypes, operators and sizes', async () => {
    const cases: [string, DType, BenchOp][] = [
      ['all-reduce', 'bfloat16', 'avg'],
      ['reduce-scatter', 'float16', 'max'],
      ['reduce', 'int32', 'min'],
      ['fused', 'bfloat16', 'sum'],
      ['fused', 'float16', 'sum'],
      ['host-all-reduce', 'uint32', 'sum'],
    ]
    for (const [name, dtype, op] of cases) {
      const args = ['--ranks', '4', '--dtype', dtype, '--op', op, '--min-bytes', '40000', '--max-bytes', '40000']
      const { rows } = await report(name, ...args)
      expect(rows).toMatchObject([{ dtype, op, errors: 0 }])
    }
  })

  it('a barrier has one line and no bytes; one rank moves nothing', async () => {
    expect((await report('host-barrier', '--ranks', '3')).rows).toMatchObject([{ bytes: 0, busbw: 0, errors: 0 }])
    expect((await report('all-reduce', '--ranks', '1', '--max-bytes', '8')).rows).toMatchObject([{ bytes: 8, busbw: 0, errors: 0 }])
  })

  it('ranks in threads', async () => {
    const { placement, rows } = await report('all-reduce', '--placement', 'thread', '--max-bytes', '4K', '--factor', '512')
    expect([placement, rows.map(({ errors }) => errors)]).toEqual(['thread', [0, 0]])
    const host = await report('host-all-gather', '--backend', 'thread', '--ranks', '3', '--max-bytes', '4K', '--factor', '512')
    expect([host.placement, host.rows.map(({ errors }) => errors)]).toEqual(['thread', [0, 0]])
    expect(host.group).toContain('worker threads')
  })

  it('the table says what it shows', async () => {
    const { code, stdout } = await bench(['all-reduce', '--max-bytes', '16', '--iters', '1', '--no-verify'])
    expect(code).toBe(0)
    expect(stdout).toMatch(/^# all-reduce, 2 ranks, placement local, seed \d+$/m)
    expect(stdout).toMatch(/^ *size +count +type +redop +median +min +algbw +busbw +errors$/m)
    expect(stdout).toMatch(/^ *16 +4 +float32 +sum( +[\d.e-]+){4} +N\/A$/m)
  })
})

describe('wrong results', () => {
  it('are counted, and make the exit code 1', async () => {
    const tamper = `const { structuredClone } = globalThis
      globalThis.structuredClone = (value) => {
        const copy = structuredClone(value)
        if (copy instanceof Float32Array && copy.length > 1) copy[1] *= 1.001
        return copy
      }`
    const NODE_OPTIONS = `--import=data:text/javascript,${encodeURIComponent(tamper)}`
    const { code, stdout } = await bench(['host-all-reduce', '--max-bytes', '16', ...QUICK], { NODE_OPTIONS })
    expect(code).toBe(1)
    for (const { errors } of (JSON.parse(stdout) as Report).rows) expect(errors).toBe(2) // one on each rank
  })

  it('of each collective over host memory are found', async () => {
    const of = (host: object): RankContext => ({ rank: 1, size: 2, host }) as unknown as RankContext
    const sizing = { seed: seed(), count: 5, dtype: 'int32', op: 'sum' } as const
    const mine = (rank: number): Int32Array => Int32Array.from({ length: 5 }, (_, i) => elementOf(sizing.seed, rank, i, 'int32'))
    const wrong = async (name: string, right: Int32Array | Int32Array[]): Promise<number[]> => {
      const { check } = await COLLECTIVES[name]!.prepare(of({}), sizing)
      const first = await check(right)
      const part = Array.isArray(right) ? right[1]! : right
      part[4]! += 1
      return [first, await check(right), await check(Array.isArray(right) ? right.slice(1) : right.slice(1))]
    }
    const sum = mine(0).map((x, i) => x + mine(1)[i]!)
    expect((await wrong('host-all-reduce', sum)).slice(0, 2)).toEqual([0, 1])
    expect((await wrong('host-broadcast', mine(0))).slice(0, 2)).toEqual([0, 1])
    const gathered = await wrong('host-all-gather', [mine(0), mine(1)])
    expect(gathered.slice(0, 2)).toEqual([0, 1])
    expect(gathered[2]).toBeGreaterThan(1)
  })

  const start = seed()
  it.each(['float32', 'bfloat16', 'float16'] as const)(
    `%s: a right sum is within the bounds, a slightly wrong one is not (seed ${start})`,
    (dtype) => {
      const key = { seed: start, ranks: 5, count: 512, dtype, op: 'sum' as const }
      const reference = reducedOf(key)
      const right = decode(dtype, encode(dtype, Float32Array.from(reference.exact))) as Float32Array
      expect(wrongOf(right, reference)).toBe(0)
      const step = { float32: 2 ** -17, bfloat16: 2 ** -5, float16: 2 ** -8 }[dtype]
      const off = right.map((x, i) => (i % 2 ? x : x + step * 5))
      expect(wrongOf(off, reference)).toBeGreaterThan(200)
      expect(
        wrongOf(
          right.map(() => Number.NaN),
          reference,
        ),
      ).toBe(512)
      expect(wrongOf(right.subarray(1), reference)).toBeGreaterThan(400)
      const { residual, normed } = fusedOf(key, 128, 1e-6)
      const factor = { float32: 1 + 2 ** -12, bfloat16: 1.25, float16: 1 + 2 ** -5 }[dtype]
      for (const one of [residual, normed]) {
        const found = decode(dtype, encode(dtype, Float32Array.from(one.exact))) as Float32Array
        expect(wrongOf(found, one)).toBe(0)
        expect(
          wrongOf(
            found.map((x) => x * factor),
            one,
          ),
        ).toBeGreaterThan(400)
      }
    },
  )

  it(`operands differ between ranks and seeds, and every dtype holds them exactly (seed ${start})`, () => {
    for (const dtype of ['float32', 'bfloat16', 'float16', 'int32', 'uint32'] as const) {
      const of = (s: number, rank: number): number[] => Array.from({ length: 256 }, (_, i) => elementOf(s, rank, i, dtype))
      const one = of(start, 0)
      expect([...decode(dtype, encode(dtype, one))].map(Number)).toEqual(one)
      for (const other of [of(start, 1), of(start + 1, 0)]) {
        expect(other.filter((x, i) => x === one[i]).length).toBeLessThan(32)
      }
    }
  })
})

describe('refused', () => {
  it.each([
    [[], 'Expected one of all-reduce'],
    [['all-recude'], 'received "all-recude"'],
    [['all-reduce', 'fused'], 'received "all-reduce fused"'],
    [['all-reduce', '--ranks', '65'], '[1, 64] for --ranks'],
    [['all-reduce', '--dtype', 'float64'], 'for --dtype but received "float64"'],
    [['fused', '--dtype', 'int32'], 'for --dtype but received "int32"'],
    [['all-reduce', '--dtype', 'int32', '--op', 'avg'], '--op avg is for floats'],
    [['all-gather', '--op', 'max'], 'for --op but received "max"'],
    [['all-reduce', '--max-bytes', '16T'], '--max-bytes but received "16T"'],
    [['all-reduce', '--min-bytes', '32M'], '--min-bytes 32M is more than'],
    [['all-reduce', '--factor', '1'], 'above 1 and at most 1024 for --factor'],
    [['all-reduce', '--iters', '0'], 'for --iters'],
    [['all-reduce', '--backend', 'shm'], 'Expected webgpu for --backend'],
    [['host-barrier', '--backend', 'mpi'], 'for --backend but received "mpi"'],
    [['host-barrier', '--backend', 'thread', '--placement', 'local'], '--backend thread is --placement thread'],
    [['all-reduce', '--placement', 'cloud'], 'placement'],
  ])('%j: %s', async (args, message) => {
    const { code, stdout, stderr } = await bench(args)
    expect([code, stdout]).toEqual([1, ''])
    expect(stderr).toContain('ERR_ARGUMENT')
    expect(stderr).toContain(message)
  })

  it('an unknown option is a usage error', async () => expect((await bench(['all-reduce', '--fast'])).code).toBe(2))
})

describe('the drawing', () => {
  it('is written by --svg, with a mark for each size in each panel', async () => {
    const path = join(folder, 'plot.svg')
    await report('host-all-reduce', '--max-bytes', '64K', '--factor', '8', '--svg', path)
    const text = readFileSync(path, 'utf8')
    expect(text).toMatch(/^<svg xmlns="http:\/\/www\.w3\.org\/2000\/svg"[\s\S]*<\/svg>\n$/)
    expect(text.match(/<circle /g)).toHaveLength(2 * 5)
    expect(text).not.toMatch(/NaN|undefined|Infinity|https?:(?!\/\/www\.w3\.org)/)
  })

  it('places a point by the logarithm of its size, and escapes its texts', () => {
    const points = [10, 12, 14].map((power) => ({ bytes: 2 ** power, microseconds: 100, busbw: 10 ** (power - 12) }))
    const text = plotSvg({ title: 'a < b & c', subtitle: '<i>', points })
    expect(text).toContain('a &lt; b &amp; c')
    expect(text).not.toContain('<i>')
    const centres = [...text.matchAll(/<circle cx="([\d.]+)" cy="([\d.]+)"/g)].slice(0, 3).map(([, x, y]) => [Number(x), Number(y)])
    const [first, second, third] = centres as [number[], number[], number[]]
    expect(second[0]! - first[0]!).toBeCloseTo(third[0]! - second[0]!, 0)
    expect(first[1]! - second[1]!).toBeCloseTo(second[1]! - third[1]!, 0)
    expect(third[1]!).toBeLessThan(first[1]!)
  })

  it('of nothing says so', () => {
    const text = plotSvg({ title: 'barrier', subtitle: '', points: [{ bytes: 0, microseconds: 5, busbw: 0 }] })
    expect(text.match(/nothing to draw/g)).toHaveLength(2)
  })
})
