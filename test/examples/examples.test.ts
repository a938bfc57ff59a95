// The examples, run as a reader would run them.
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { expect, it } from 'vitest'

const root = join(import.meta.dirname, '../..')
const example = async (name: string, ...args: string[]): Promise<{ stdout: string; stderr: string }> =>
  promisify(execFile)(process.execPath, [join(root, 'examples', name, 'main.mjs'), ...args], { cwd: root })

it('allreduce prints the sum on every rank', async () => {
  const { stdout, stderr } = await example('allreduce')
  expect(stdout.trim().split('\n').sort()).toEqual(['0 10', '1 10', '2 10', '3 10'])
  expect(stderr).toBe('')
})

it('mapping prints ranks and the sums of their groups', async () => {
  const { stdout } = await example('mapping')
  expect(stdout).toContain('rank 13: node 1, tp 1 of [12,13,14,15], pp 1 of [5,13], cp 1 of [9,13]')
  expect(stdout).toContain('6 6 6 6 22 22 22 22 38 38 38 38 54 54 54 54')
})

it('generate writes text, names the adapter, and ends with the table', async () => {
  const { stdout, stderr } = await example('generate', 'JULIET:', '2', '30')
  expect(stdout).toContain('2 ranks on webgpu')
  expect(stdout).toContain('JULIET:')
  expect(stdout).toMatch(/rank +device +heads +kv heads +mlp columns +vocabulary +memory/)
  expect(stdout).toMatch(/text +30 tokens/)
  expect(stdout).toMatch(/in collectives +(\d+ %|not measured)/)
  expect(stderr).toBe('')
})

it('evaluate gives the loss of the model card', async () => {
  const { stdout } = await example('evaluate', join(root, 'test/fixtures/held-out.txt'), '2', '2')
  expect(stdout).toMatch(/^2 windows of 256 characters over 2 ranks: [01]\.\d{6} nats/)
})
