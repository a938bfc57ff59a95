// Files that processes hand each other: to their own user alone, and with a reason where there is none.
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, describe, expect, it } from 'vitest'
import { Programs } from '../support/programs.ts'

const run = promisify(execFile)
const native = join(import.meta.dirname, '../../native/cuda')
const programs = new Programs('handover', ['-std=c++20', '-O1', '-g', '-fsanitize=address,undefined', '-pthread', '-I', native])
afterAll(() => programs.remove())
const missing = process.platform === 'linux' ? programs.obstacle() : ': skipped, for Linux'

describe.skipIf(missing !== '')(`files of other processes${missing}`, () => {
  it('are handed over to the same user, and every refusal says why', async () => {
    const program = await programs.build('check', [], [join(import.meta.dirname, 'handover/check.cc'), join(native, 'handover.cc')])
    const { stdout, stderr } = await run(program, [], { timeout: 60_000 })
    expect(stderr).toBe('')
    const lines = stdout.trim().split('\n')
    expect(lines.filter((line) => !line.startsWith('another user'))).toEqual([
      'a file: the file',
      'no file: the process that has it does not hand it over: there is no file 0',
      'after askers that make no sense: the file',
      ...Array(10).fill('among signals: the file'),
      'nobody: the process that has it cannot be asked for it: Connection refused',
      'no desk: the process that has it could open no socket to hand it over',
      'a stopped process: the process that has it has not handed it over: Resource temporarily unavailable',
      'a process that has ended: the process that has it cannot be asked for it: Connection refused',
    ])
    if (process.getuid?.() === 0)
      expect(lines).toContainEqual(expect.stringMatching(/^another user: the process that was to hand it over is another user's/))
    else console.warn('not tried as another user: that takes root')
  })
})
