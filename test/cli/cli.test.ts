// The rankmesh command as a user runs it: the built file, in a process of its own.
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'

const root = join(import.meta.dirname, '../..')
const model = join(root, 'examples/models/tiny-shakespeare')

interface Outcome {
  code: number
  stdout: string
  stderr: string
}

function rankmesh(...args: string[]): Promise<Outcome> {
  return rankmeshWith({}, ...args)
}

function rankmeshWith(env: NodeJS.ProcessEnv, ...args: string[]): Promise<Outcome> {
  return new Promise((resolve) => {
    execFile(process.execPath, [join(root, 'dist/cli.js'), ...args], { env: { ...process.env, ...env } }, (error, stdout, stderr) => {
      resolve({ code: error ? Number(error.code) : 0, stdout, stderr })
    })
  })
}

describe('rankmesh generate', () => {
  it('writes the text to standard output and everything else to standard error', async () => {
    const one = await rankmesh('generate', '--model', model, '--prompt', 'ROMEO:', '--max-tokens', '20')
    const four = await rankmesh('generate', '--model', model, '--ranks', '4', '--prompt', 'ROMEO:', '--max-tokens', '20')
    expect(one.code).toBe(0)
    expect(one.stdout).toMatch(/^ROMEO:[\s\S]{20}\n$/)
    expect(four.stdout).toBe(one.stdout)
    expect(four.stderr).toMatch(/rank +device +heads/)
    expect(four.stderr).toMatch(/10 collectives \(9 fused\)/)
    expect(four.stderr).toMatch(/1 submit, 1 map/)
    expect(four.stderr).toMatch(/^Group: 4 ranks \(4 on .+\): reductions on-device\.$/m)
  })

  it('ranks in threads write the same text, once', async () => {
    const args = ['generate', '--model', model, '--ranks', '2', '--prompt', 'ROMEO:', '--max-tokens', '20']
    const [local, thread] = [await rankmesh(...args), await rankmesh(...args, '--placement', 'thread')]
    expect([thread.code, thread.stdout]).toEqual([0, local.stdout])
    expect(thread.stderr).toMatch(/^Group: 2 ranks \(.*worker threads/m)
    expect(thread.stderr.match(/^Device /gm)).toHaveLength(1)
  })

  it('--quiet prints the text alone', async () => {
    const { stdout, stderr } = await rankmesh('generate', '--model', model, '--prompt', 'A', '--max-tokens', '3', '--quiet')
    expect(stdout).toMatch(/^A[\s\S]{3}\n$/)
    expect(stderr).toBe('')
  })

  it('reads a GGUF file', async () => {
    const file = join(root, 'test/fixtures/tiny-gguf/q4_k_m.gguf')
    const args = ['generate', '--model', file, '--prompt', 'ROMEO:', '--max-tokens', '5']
    const [one, two] = [await rankmesh(...args), await rankmesh(...args, '--ranks', '2')]
    expect([one.code, two.code]).toEqual([0, 0])
    expect(one.stdout).toMatch(/^ROMEO:./)
    expect(two.stdout).toBe(one.stdout)
  })

  it.each([
    [['generate'], 'ERR_ARGUMENT: Expected --model'],
    [['generate', '--model', model], 'ERR_ARGUMENT: Expected either --prompt'],
    [['generate', '--model', model, '--prompt', 'a', '--chat', 'b'], 'ERR_ARGUMENT: Expected either --prompt'],
    [['generate', '--model', model, '--prompt', 'a', '--ranks', 'two'], 'ERR_ARGUMENT: Expected a number for --ranks'],
    [['generate', '--model', model, '--prompt', 'a', '--ranks', '3', '--shares', '1,2'], 'each of the 3 ranks for shares'],
    [['generate', '--model', model, '--prompt', 'a', '--shares', '1,x'], 'ERR_ARGUMENT: Expected a number for --shares'],
    [['generate', '--model', model, '--chat', 'hello'], 'ERR_MODEL_FORMAT'],
    [['generate', '--model', join(root, 'nowhere'), '--prompt', 'a'], 'ERR_MODEL_FORMAT'],
    [['generate', '--model', model, '--prompt', 'a', '--device', 'tpu'], 'ERR_ARGUMENT'],
    [['generate', '--model', model, '--prompt', 'a', '--placement', 'cloud'], 'for placement but received "cloud"'],
  ])('%j fails with one line: %s', async (args, message) => {
    const { code, stderr } = await rankmesh(...args)
    expect(code).toBe(1)
    expect(stderr).toContain(message)
    expect(
      stderr
        .trimEnd()
        .split('\n')
        .filter((line) => !/^(Device|Group)/.test(line)),
    ).toHaveLength(1)
  })

  it.each([[['frobnicate']], [['generate', '--modle', 'x']], [[]]])('%j is a usage error', async (args) => {
    expect((await rankmesh(...args)).code).toBe(2)
  })
})

interface Finding {
  name: string
  found: boolean
  detail: string
  failed?: true
  code?: string
  milliseconds?: number
}

/** What doctor prints as JSON under these variables, by name, and its exit code. */
async function doctor(env: NodeJS.ProcessEnv = {}): Promise<{ code: number; findings: Record<string, Finding> }> {
  const { code, stdout, stderr } = await rankmeshWith(env, 'doctor', '--json')
  expect(stderr).toBe('')
  const list = JSON.parse(stdout) as Finding[]
  return { code, findings: Object.fromEntries(list.map((finding) => [finding.name, finding])) }
}

describe('rankmesh doctor', () => {
  it('says what there is, and why the rest is absent; what is there works', async () => {
    const { code, findings } = await doctor()
    expect(code).toBe(0)
    expect(findings.node).toMatchObject({ found: true, detail: process.version })
    expect(findings.webgpu).toMatchObject({ found: true, detail: expect.stringMatching(/; features: .*; largest buffer \d+ MiB$/) })
    expect(findings.launcher).toMatchObject({ found: false, detail: expect.stringContaining('by none') })
    expect(findings.memory?.detail).toMatch(/^[\d.]+ [GM]iB, [\d.]+ [GM]iB free$/)
    if (process.platform === 'linux') expect(findings['/dev/shm']?.detail).toMatch(/^[\d.]+ [GM]iB, [\d.]+ [GM]iB free$/)
    for (const placement of ['local', 'thread']) {
      expect(findings[`self-test:${placement}`]).toMatchObject({ found: true, milliseconds: expect.any(Number) })
    }
    for (const { found, detail, failed } of Object.values(findings))
      expect([found || detail.length > 10, failed]).toEqual([true, undefined])
  })

  it('processes work with the addon; without it they are absent, which is no failure', async () => {
    const { findings } = await doctor()
    const [addon, test] = [findings.addon as Finding, findings['self-test:process'] as Finding]
    if (addon.found) {
      expect(findings['addon:shm']).toMatchObject({ detail: expect.any(String) })
      if (findings['addon:shm']?.found) expect(test.found).toBe(true)
    }
    const off = await doctor({ RANKMESH_ADDON: 'off' })
    expect(off.code).toBe(0)
    expect(off.findings.addon).toMatchObject({
      found: false,
      detail: expect.stringMatching(/RANKMESH_ADDON=off: not loaded, as asked for/),
    })
    expect(off.findings['self-test:process']).toMatchObject({ found: false, code: 'ERR_BACKEND_UNAVAILABLE' })
  })

  it('says which launcher variables it sees, and fails where they cannot be', async () => {
    const there = await doctor({ RANK: '1', WORLD_SIZE: '2', MASTER_ADDR: 'head', MASTER_PORT: '4711' })
    expect(there.code).toBe(0)
    expect(there.findings.launcher).toMatchObject({
      found: true,
      detail: 'torchrun: rank 1 of 2, ? of ? on this node, master head:4711; from WORLD_SIZE, RANK, MASTER_ADDR, MASTER_PORT',
    })
    expect(there.findings['self-test:thread']).toMatchObject({ found: false, detail: expect.stringContaining('not tried') })
    expect(there.findings['self-test:local']?.found).toBe(true)
    const bad = await doctor({ RANK: '2', WORLD_SIZE: '2' })
    expect(bad.code).toBe(1)
    expect(bad.findings.launcher).toMatchObject({ found: false, failed: true, code: 'ERR_ARGUMENT' })
  })

  it('fails where sums are wrong', async () => {
    const tamper = `const { structuredClone } = globalThis
      globalThis.structuredClone = (value) => {
        const copy = structuredClone(value)
        if (copy instanceof Float32Array) copy[7] += 1
        return copy
      }`
    const env = { NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(tamper)}` }
    const { code, findings } = await doctor(env)
    expect(code).toBe(1)
    expect(findings['self-test:local']).toMatchObject({ found: false, failed: true, detail: 'wrong sums on ranks 0: 1,1: 1' })
    const { stdout } = await rankmeshWith(env, 'doctor')
    expect(stdout).toMatch(/^BAD {2}self-test:local +wrong sums on ranks 0: 1,1: 1 \(\d+ ms\)$/m)
    expect(stdout).toMatch(/^yes {2}webgpu /m)
  })
})
