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
  return new Promise((resolve) => {
    execFile(process.execPath, [join(root, 'dist/cli.js'), ...args], (error, stdout, stderr) => {
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

  it('--quiet prints the text alone', async () => {
    const { stdout, stderr } = await rankmesh('generate', '--model', model, '--prompt', 'A', '--max-tokens', '3', '--quiet')
    expect(stdout).toMatch(/^A[\s\S]{3}\n$/)
    expect(stderr).toBe('')
  })

  it.each([
    [['generate'], 'ERR_ARGUMENT: Expected --model'],
    [['generate', '--model', model], 'ERR_ARGUMENT: Expected either --prompt'],
    [['generate', '--model', model, '--prompt', 'a', '--chat', 'b'], 'ERR_ARGUMENT: Expected either --prompt'],
    [['generate', '--model', model, '--prompt', 'a', '--ranks', 'two'], 'ERR_ARGUMENT: Expected a number for --ranks'],
    [['generate', '--model', model, '--prompt', 'a', '--ranks', '3'], 'ERR_ARGUMENT'],
    [['generate', '--model', model, '--chat', 'hello'], 'ERR_MODEL_FORMAT'],
    [['generate', '--model', join(root, 'nowhere'), '--prompt', 'a'], 'ERR_MODEL_FORMAT'],
    [['generate', '--model', model, '--prompt', 'a', '--device', 'tpu'], 'ERR_ARGUMENT'],
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

describe('rankmesh doctor', () => {
  it('says what there is, and why the rest is absent', async () => {
    const { code, stdout } = await rankmesh('doctor', '--json')
    expect(code).toBe(0)
    const findings = JSON.parse(stdout) as { name: string; found: boolean; detail: string }[]
    expect(findings.find(({ name }) => name === 'node')).toMatchObject({ found: true, detail: process.version })
    expect(findings.find(({ name }) => name === 'webgpu')?.found).toBe(true)
    for (const { found, detail } of findings) expect(found || detail.length > 10).toBe(true)
  })
})
