// Lanes and reductions as threads under ThreadSanitizer; the control, with epochs that order nothing, must be caught.
import { execFile, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, describe, expect, it } from 'vitest'
import { seed } from '../support/random.ts'

const run = promisify(execFile)
const folder = mkdtempSync(join(tmpdir(), 'rankmesh-tsan-'))
afterAll(() => rmSync(folder, { recursive: true }))
const native = join(import.meta.dirname, '../../native')
const SOURCES = ['test/lane_stress.cc', 'lane.cc', 'combine.cc', 'reduce.cc'].map((name) => join(native, name))
const compiler = process.env.CXX ?? 'c++'
const SANITIZED = ['-std=c++20', '-O1', '-g', '-fsanitize=thread', '-pthread']

/** Why programs with the sanitizer cannot be built or run here; empty where they can. */
function obstacle(): string {
  const source = join(folder, 'try.cc')
  writeFileSync(source, 'int main() { return 0; }\n')
  const built = spawnSync(compiler, [...SANITIZED, source, '-o', join(folder, 'try')], { encoding: 'utf8' })
  if (built.error) return `: skipped, no compiler ${compiler}`
  if (built.status !== 0) return `: skipped, -fsanitize=thread does not build: ${built.stderr.trim().split('\n').at(-1)}`
  const ran = spawnSync(join(folder, 'try'), { encoding: 'utf8' })
  return ran.status === 0 ? '' : `: skipped, programs under the sanitizer do not run: ${ran.stderr.trim().split('\n')[0]}`
}

const reason = obstacle()

async function build(name: string, ...flags: string[]): Promise<string> {
  const program = join(folder, name)
  await run(compiler, [...SANITIZED, ...flags, ...SOURCES, '-o', program])
  return program
}

describe.skipIf(reason !== '')(`under ThreadSanitizer${reason}`, () => {
  it('reductions of 1 to 8 members have no races and are right', async () => {
    const program = await build('stress')
    for (const members of [1, 2, 3, 4, 8]) {
      const start = seed()
      const { stdout, stderr } = await run(program, [String(members), '600', String(start)])
      expect(stderr, `seed ${start}`).toBe('')
      expect(stdout).toBe(`${members} members, 600 reductions each\n`)
    }
  })

  it('control: without the order that epochs give, races are found', async () => {
    const program = await build('planted', '-DRANKMESH_PLANT_RACE')
    const failure = await run(program, ['3', '600', '1'], { maxBuffer: 2 ** 26 }).then(
      () => null,
      (error: { stderr: string }) => error.stderr,
    )
    expect(failure).toContain('WARNING: ThreadSanitizer: data race')
  })
})
