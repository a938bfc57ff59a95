// The built package as a user gets it: imported as ESM and by require, the browser bundle free of Node, nothing on standard error.
import { execFile } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { describe, expect, it } from 'vitest'

const run = promisify(execFile)
const root = join(import.meta.dirname, '../..')

const node = (...args: string[]): Promise<{ stdout: string; stderr: string }> => run(process.execPath, args, { cwd: root })

describe('the package', () => {
  it('imports as ESM, and ends by itself with nothing on standard error', async () => {
    const { stdout, stderr } = await node(
      '--input-type=module',
      '-e',
      "import * as r from 'rankmesh'; console.log(typeof r.launch, typeof r.Tensor.full)",
    )
    expect(stdout).toBe('function function\n')
    expect(stderr).toBe('')
  })

  it('has no top-level await, so that require() of it works where Node allows it', async () => {
    const { stdout } = await node('--experimental-require-module', '-e', "console.log(typeof require('rankmesh').launch)")
    expect(stdout).toBe('function\n')
  })

  it('works without the webgpu package: importing is free, opening a device says what to install', async () => {
    const script =
      "import { register } from 'node:module'; register('data:text/javascript,' + encodeURIComponent(`export async function resolve(s, c, n) { if (s === 'webgpu') throw new Error('absent'); return n(s, c) }`)); const { openDevice } = await import('rankmesh'); await openDevice('webgpu').catch((e) => console.log(e.code, e.message))"
    const { stdout } = await node('--input-type=module', '-e', script)
    expect(stdout).toMatch(/^ERR_BACKEND_UNAVAILABLE .*npm install webgpu/)
  })

  it('the browser bundle asks for nothing of Node', async () => {
    const text = await readFile(join(root, 'dist/browser.js'), 'utf8')
    expect(text).not.toMatch(/from\s*["']node:/)
    expect(text).not.toMatch(/import\(["']node:/)
    expect(text).not.toMatch(/from\s*["'](webgpu|@huggingface)/)
    expect(text).not.toMatch(/\bprocess\.(env|dlopen|platform)/)
  })

  it('packs what it needs and nothing else', async () => {
    const cache = await mkdtemp(join(tmpdir(), 'rankmesh-pack-'))
    const { stdout } = await run('npm', ['pack', '--dry-run', '--json', '--ignore-scripts', '--cache', cache], {
      cwd: root,
      shell: process.platform === 'win32',
    })
    await rm(cache, { recursive: true })
    const [{ files }] = JSON.parse(stdout) as [{ files: { path: string }[] }]
    const paths = files.map(({ path }) => path)
    for (const needed of ['dist/index.js', 'dist/browser.js', 'dist/cli.js', 'shaders/all_reduce.wgsl', 'LICENSE', 'NOTICE', 'README.md']) {
      expect(paths).toContain(needed)
    }
    expect(paths.filter((path) => /^(test|examples|bench|runtime|node_modules)\//.test(path))).toEqual([])
  })

  it('runs no install script', async () => {
    const { scripts } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8'))
    for (const name of ['preinstall', 'install', 'postinstall', 'prepare']) expect(scripts[name]).toBeUndefined()
  })
})
