// The CUDA kernels of single operations, by the launches that commands become: on the CPU, where every CUDA thread is a fiber, plain and under
// AddressSanitizer, with planted faults that must be found; and through nvcc.
import { execFile, spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, describe, expect, it } from 'vitest'
import { Programs } from '../support/programs.ts'
import { seed } from '../support/random.ts'

const run = promisify(execFile)
const kernels = join(import.meta.dirname, '../../native/cuda')
const tests = join(import.meta.dirname, 'cuda')
const programs = new Programs('cuda-ops', ['-std=c++20', '-ffp-contract=off', '-DEMULATION_SWIFT', '-I', kernels, '-I', tests])
afterAll(() => programs.remove())

function build(name: string, flags: readonly string[]): Promise<string> {
  return programs.build(name, flags, [join(tests, 'ops_main.cc'), join(kernels, 'launches.cc')])
}

async function ends(program: string, ...given: (string | number)[]): Promise<{ status: number; output: string }> {
  return run(program, given.map(String), { maxBuffer: 2 ** 26 }).then(
    ({ stdout, stderr }) => ({ status: 0, output: stdout + stderr }),
    (error: { code: number; stdout: string; stderr: string }) => ({ status: error.code, output: error.stdout + error.stderr }),
  )
}

const PARTS = ['products', 'attention', 'rows', 'collectives'] as const
const PLAIN = ['-Og']
const notPlain = programs.obstacle(...PLAIN)
describe.skipIf(notPlain !== '')(`CUDA operations on the CPU${notPlain}`, () => {
  const program = notPlain === '' ? build('plain', PLAIN) : Promise.reject(new Error(notPlain))
  program.catch(() => {}) // told by the tests that await it

  it('give right results with all types, sizes and addresses, every kernel among them', async () => {
    const start = seed()
    const { status, output } = await ends(await program, 'all', start, 1)
    expect(output, `seed ${start}`).toMatch(/^\d+ calls\n$/)
    expect(status, `seed ${start}`).toBe(0)
  })

  it.each(PARTS)('control: a missing barrier is found in %s', async (what) => {
    const start = seed()
    const { status, output } = await ends(await program, what, start, 1, 'barrier=1')
    expect(status, `seed ${start}: ${output}`).toBe(1)
  })
})

const CHECKED = ['-O0', '-g1', '-fsanitize=address']
const notChecked = programs.obstacle(...CHECKED)
describe.skipIf(notChecked !== '')(`CUDA operations under AddressSanitizer${notChecked}`, () => {
  const start = seed()
  // Slow as it is, another part in each run.
  const part = PARTS[start % PARTS.length] as (typeof PARTS)[number]
  it(`${part} touch nothing outside`, async () => {
    const { status, output } = await ends(await build('checked', CHECKED), part, start, 1)
    expect(status, `seed ${start}: ${output}`).toBe(0)
  })
})

const { CUDA_HOME, CUDA_PATH } = process.env
const nvcc = [CUDA_HOME, CUDA_PATH]
  .flatMap((home) => (home ? [join(home, 'bin/nvcc')] : []))
  .concat('nvcc')
  .find((name) => spawnSync(name, ['--version']).status === 0)

it.skipIf(nvcc === undefined)(
  `CUDA operations through nvcc${nvcc === undefined ? ': skipped, no nvcc' : ''}, little optimised`,
  async () => {
    const flags = ['-std=c++17', '-Xcicc', '-O1', '-Xptxas', '-O0', '-arch=sm_80', '-I', kernels]
    await run(nvcc as string, [...flags, '-cubin', join(kernels, 'ops.cu'), '-o', join(programs.folder, 'ops.cubin')])
  },
)
