// Lanes and reductions as threads under ThreadSanitizer; the control, with epochs that order nothing, must be caught.
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, describe, expect, it } from 'vitest'
import { Programs } from '../support/programs.ts'
import { seed } from '../support/random.ts'

const run = promisify(execFile)
const programs = new Programs('tsan', ['-std=c++20', '-O1', '-g', '-fsanitize=thread', '-pthread'])
afterAll(() => programs.remove())
const native = join(import.meta.dirname, '../../native')
const LANE = join(native, 'lane.cc')
const OTHERS = ['test/lane_stress.cc', 'combine.cc', 'reduce.cc'].map((name) => join(native, name))
const reason = programs.obstacle()

describe.skipIf(reason !== '')(`under ThreadSanitizer${reason}`, () => {
  it('reductions of 1 to 8 members have no races and are right', async () => {
    const program = await programs.build('stress', [], [LANE, ...OTHERS])
    for (const members of [1, 2, 3, 4, 8]) {
      const start = seed()
      const { stdout, stderr } = await run(program, [String(members), '600', String(start)])
      expect(stderr, `seed ${start}`).toBe('')
      expect(stdout).toBe(`${members} members, 600 reductions each\n`)
    }
  })

  it('control: without the order that epochs give, races are found', async () => {
    const program = await programs.build('planted', ['-DRANKMESH_PLANT_RACE'], [LANE, ...OTHERS])
    const failure = await run(program, ['3', '100', '1'], { maxBuffer: 2 ** 26 }).then(
      () => null,
      (error: { stderr: string }) => error.stderr,
    )
    expect(failure).toContain('WARNING: ThreadSanitizer: data race')
  })
})
