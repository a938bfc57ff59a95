// The CUDA kernels: on the CPU, where every CUDA thread is a fiber, plain and under the sanitizers, with planted faults that must be found; and
// through nvcc for the GPUs they are for.
import { execFile, spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, describe, expect, it } from 'vitest'
import { times } from '../support/effort.ts'
import { Programs } from '../support/programs.ts'
import { seed } from '../support/random.ts'

const run = promisify(execFile)
const kernels = join(import.meta.dirname, '../../native/cuda')
const tests = join(import.meta.dirname, 'cuda')
const programs = new Programs('cuda', ['-std=c++20', '-O1', '-ffp-contract=off', '-I', kernels, '-I', tests])
afterAll(() => programs.remove())

interface Ended {
  status: number
  output: string
}

class Program {
  /** Why it cannot be built or run here; empty where it can. */
  readonly obstacle: string
  readonly #built: Promise<string> | undefined

  constructor(name: string, ...flags: string[]) {
    this.obstacle = programs.obstacle(...flags)
    if (this.obstacle !== '') return
    this.#built = programs.build(name, flags, [join(tests, 'main.cc')])
    this.#built.catch(() => {}) // told by the tests that await it
  }

  /** How it ends, and what it says. */
  async run(what: string, rounds: number, start: number, planted = ''): Promise<Ended> {
    const env = { ...process.env, TSAN_OPTIONS: 'halt_on_error=1:atexit_sleep_ms=0' }
    return run(await (this.#built as Promise<string>), [what, String(start), String(rounds), planted], { env, maxBuffer: 2 ** 26 }).then(
      ({ stdout, stderr }) => ({ status: 0, output: stdout + stderr }),
      (error: { code: number; stdout: string; stderr: string }) => ({ status: error.code, output: error.stdout + error.stderr }),
    )
  }

  async passes(what: string, rounds: number, said: RegExp): Promise<void> {
    const start = seed()
    const { status, output } = await this.run(what, rounds, start)
    expect(output, `seed ${start}, status ${status}`).toMatch(said)
    expect(status, `seed ${start}: ${output}`).toBe(0)
  }
}

const SUMS = /^\d+ sums\n$/
const JOINS = /^\d+ reductions\n$/
const NORMS = /^\d+ fused norms\n$/
const EXPERTS = /^\d+ sums of experts\n$/
const GATHERS = /^\d+ gathers\n$/
const FAULTS = /^faults of 6 ways\n$/

const plain = new Program('plain')
describe.skipIf(plain.obstacle !== '')(`CUDA kernels on the CPU${plain.obstacle}`, () => {
  it('all-reduces of 1 to 16 ranks give the sums in rank order, in all ways, from call to call', () =>
    plain.passes('sums', times(3, 1), SUMS))
  it('products, minima, maxima and means, and those of integers, are joined in the same order', () =>
    plain.passes('joins', times(3, 1), JOINS))
  it('fused norms give the same right bits in all ways, with all quantisers', () => plain.passes('norms', 3, NORMS))
  it('sums of experts are the fused norms of their sums', () => plain.passes('experts', 3, EXPERTS))
  it('gathers bring all rows side by side', () => plain.passes('gathers', 3, GATHERS))
  it('a rank that does not come is named, and an alarm ends all waits', () => plain.passes('faults', 1, FAULTS))

  it.each(['barrier=2', 'barrier=3', 'hasty'])('control: %s is found by wrong results', async (planted) => {
    for (const what of ['sums', 'joins', 'norms', 'experts', 'gathers']) {
      const start = seed()
      const { status, output } = await plain.run(what, 1, start, planted)
      expect(status, `${what}, seed ${start}: ${output}`).toBe(1)
    }
  })

  it('control: sums that are handed on by a multicast and not fenced are found', async () => {
    const start = seed()
    const { status, output } = await plain.run('sums', 4, start, 'unfenced')
    expect(output, `seed ${start}`).toContain('two-shot')
    expect(status).toBe(1)
  })
})

const threads = new Program('threads', '-g1', '-fsanitize=thread')
describe.skipIf(threads.obstacle !== '')(`CUDA kernels under ThreadSanitizer${threads.obstacle}`, () => {
  it('sums have no races', () => threads.passes('sums', 1, SUMS))
  it('nor have other reductions', () => threads.passes('joins', 1, JOINS))
  it('fused norms have no races', () => threads.passes('norms', 1, NORMS))
  it('sums of experts have no races', () => threads.passes('experts', 1, EXPERTS))
  it('gathers have no races', () => threads.passes('gathers', 1, GATHERS))
  it('nor have calls that are broken off', () => threads.passes('faults', 1, FAULTS))

  it.each(['barrier=2', 'barrier=3', 'hasty', 'relaxed'])('control: %s is found as a race', async (planted) => {
    const { output } = await threads.run('norms', 1, seed(), planted)
    expect(output).toContain('WARNING: ThreadSanitizer: data race')
  })
})

const memory = new Program('memory', '-g1', '-fsanitize=address')
describe.skipIf(memory.obstacle !== '')(`CUDA kernels under AddressSanitizer${memory.obstacle}`, () => {
  it('sums touch nothing outside', () => memory.passes('sums', 1, SUMS))
  it('nor do other reductions', () => memory.passes('joins', 1, JOINS))
  it('fused norms touch nothing outside', () => memory.passes('norms', 2, NORMS))
  it('sums of experts touch nothing outside', () => memory.passes('experts', 2, EXPERTS))
  it('gathers touch nothing outside', () => memory.passes('gathers', 2, GATHERS))
  it('nor do calls that are broken off', () => memory.passes('faults', 1, FAULTS))
})

const { CUDA_HOME, CUDA_PATH } = process.env
const nvcc = [CUDA_HOME, CUDA_PATH]
  .flatMap((home) => (home ? [join(home, 'bin/nvcc')] : []))
  .concat('nvcc')
  .find((name) => spawnSync(name, ['--version']).status === 0)

/** Compiles every kernel, little optimised, since that takes longest. */
async function compile(type: string, element: string, target: number): Promise<void> {
  const flags = ['-std=c++20', '-Xcicc', '-O1', `-arch=sm_${target}`, `-DTYPE=${type}`, `-DELEMENT=${element}`, '-I', kernels]
  await run(nvcc as string, [...flags, '-cubin', join(tests, 'kernels.cu'), '-o', join(programs.folder, `${target}.cubin`)])
}

// The oldest and the newest; the build compiles all of them for all.
const TARGETS: [type: string, element: string, target: number][] = [
  ['bf16', 'Bfloat16', 80],
  ['f16', 'Float16', 100],
]
describe.skipIf(nvcc === undefined)(`CUDA kernels through nvcc${nvcc === undefined ? ': skipped, no nvcc' : ''}`, () => {
  const compiled = TARGETS.map((of) => (nvcc === undefined ? undefined : compile(...of)))
  for (const each of compiled) each?.catch(() => {}) // told by the tests that await it
  it.each(TARGETS.map((of, i) => [...of, i] as const))('%s, %s for sm_%i', (_type, _element, _target, i) => compiled[i])
})
