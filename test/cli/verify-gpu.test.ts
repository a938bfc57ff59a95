// scripts/verify-gpu.mjs over the doubles of CUDA's libraries, as it runs on a machine with a GPU; a fault that it must find; no driver at all.
import { execFile } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { addonReport } from '../../runtime/core/addon-node.ts'
import { reason } from '../support/cuda.ts'
import { seed } from '../support/random.ts'

const program = join(import.meta.dirname, '../../scripts/verify-gpu.mjs')
const folder = mkdtempSync(join(tmpdir(), 'rankmesh-verify-gpu-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

interface Entry {
  part: number
  name: string
  status?: 'PASS' | 'FAIL' | 'SKIP'
  detail?: string
}

function verify(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<{ code: number; stdout: string }> {
  const variables = { ...process.env, ...(addonReport().path && { RANKMESH_ADDON: addonReport().path as string }), ...env }
  return new Promise((resolve) => {
    execFile(process.execPath, [program, '--quick', ...args], { env: variables }, (error, stdout) => {
      resolve({ code: error ? Number(error.code) : 0, stdout })
    })
  })
}

describe.skipIf(reason !== '')(`verify-gpu on emulated devices${reason}`, () => {
  const start = seed()

  it(`finds nothing wrong with operations, collectives and recorded steps (seed ${start})`, async () => {
    const file = join(folder, 'found.json')
    const { code, stdout } = await verify(['--only', '1,2,5', '--seed', `${start}`, '--json', file], {
      RANKMESH_CUDA_DOUBLE: `${process.env.RANKMESH_CUDA_DOUBLE};multicast 1`,
    })
    expect(code, stdout).toBe(0)
    const { entries, seed: told } = JSON.parse(readFileSync(file, 'utf8')) as { entries: Entry[]; seed: number }
    expect(told).toBe(start)
    const passed = (part: number): number => entries.filter((entry) => entry.part === part && entry.status === 'PASS').length
    expect(entries.filter(({ status }) => status !== 'PASS')).toEqual([])
    expect([passed(1), passed(2), passed(5)]).toEqual([37, 11, 6])
    expect(stdout).toContain('54 passed, 0 failed, 0 skipped')
  })

  it('says which checks failed where a launch fails, and goes on', async () => {
    const { code, stdout } = await verify(['--only', '1', '--seed', `${start}`], { RANKMESH_CUDA_DOUBLE: 'fail cuLaunchKernel 40 719' })
    expect(code, stdout).toBe(1)
    expect(stdout).toMatch(/ {2}PASS {2}write, read and copy/)
    expect(stdout).toMatch(/ {2}FAIL {2}.*CUDA_ERROR_LAUNCH_FAILED/)
    expect(stdout).toMatch(/ {2}PASS {2}own kernels: float32 by q4_0/) // by a device opened later
  })
})

describe('verify-gpu without a GPU', () => {
  it.each([
    // Without the addon nobody looks for a driver.
    ['no driver', { RANKMESH_CUDA_PATH: '/nowhere/libcuda.so' }, addonReport().path ? '/nowhere/libcuda.so' : 'npm run build:native'],
    ['no addon', { RANKMESH_ADDON: '/nowhere/rankmesh.node' }, 'npm run build:native'],
  ])('%s: tries nothing, says why, and ends with 2', async (_, env, why) => {
    const { code, stdout } = await verify([], env)
    expect(code).toBe(2)
    expect(stdout).toContain('Nothing was tried: ')
    expect(stdout).toContain(why)
    expect(stdout).not.toContain('PASS')
  })
})
