// Processes: a program that never disposes its device ends by itself, quietly; the garbage collector may take everything but a tensor.
import { spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { build } from 'esbuild'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'

const ROOT = join(import.meta.dirname, '../..')
let folder: string

beforeAll(() => {
  const cache = join(ROOT, 'node_modules', '.cache')
  mkdirSync(cache, { recursive: true })
  folder = mkdtempSync(join(cache, 'exit-test-'))
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

interface Ending {
  code: number | null
  signal: NodeJS.Signals | null
  stdout: string
  stderr: string
  seconds: number
}

/** Bundles a program that may import from runtime/ and runs it to its end. */
async function run(name: string, program: string, flags: readonly string[] = []): Promise<Ending> {
  const entry = join(folder, `${name}.ts`)
  const outfile = join(folder, `${name}.mjs`)
  const imports = `import { openDevice } from '${ROOT}/runtime/device/open.ts'\nimport { Tensor } from '${ROOT}/runtime/core/tensor.ts'\n`
  writeFileSync(entry, imports + program)
  await build({
    entryPoints: [entry],
    outfile,
    bundle: true,
    format: 'esm',
    target: 'es2022',
    platform: 'node',
    packages: 'external',
    loader: { '.wgsl': 'text' },
    logLevel: 'silent',
  })
  const start = performance.now()
  const child = spawn(process.execPath, [...flags, outfile], { cwd: ROOT, timeout: 30_000 })
  const ending: Ending = { code: null, signal: null, stdout: '', stderr: '', seconds: 0 }
  child.stdout.on('data', (text) => {
    ending.stdout += text
  })
  child.stderr.on('data', (text) => {
    ending.stderr += text
  })
  return new Promise((resolve) => {
    child.on('close', (code, signal) => resolve({ ...ending, code, signal, seconds: (performance.now() - start) / 1000 }))
  })
}

/** That a program ended by itself, in seconds, with this code and nothing to say on stderr. */
function expectQuiet(ending: Ending, stdout: string, code = 0): void {
  expect(ending).toMatchObject({ code, signal: null, stderr: '', stdout })
  expect(ending.seconds).toBeLessThan(10)
}

describe('a program ends by itself', () => {
  it('after it computed and did not dispose', async () => {
    const ending = await run(
      'computes',
      `const device = await openDevice('webgpu')
      const x = Tensor.from([1, 2, 3], { device })
      console.log([...await device.add(x, x).data()].join())`,
    )
    expectQuiet(ending, '2,4,6\n')
  })

  it('with work recorded that nobody reads', async () => {
    const ending = await run(
      'unread',
      `const device = await openDevice('webgpu')
      let x = Tensor.from(new Float32Array(100000), { device })
      for (let i = 0; i < 50; i++) x = device.add(x, x)
      device.gpu.recorder.flush()
      globalThis.kept = [device, x]
      console.log('done')`,
    )
    expectQuiet(ending, 'done\n')
  })

  it('with a read that it does not await: the read still arrives', async () => {
    const ending = await run(
      'pending',
      `const device = await openDevice('webgpu')
      const x = Tensor.from([1, 2, 3], { device })
      x.data().then((data) => console.log([...data].join()))`,
    )
    expectQuiet(ending, '1,2,3\n')
  })

  it('by process.exit with work under way', async () => {
    const ending = await run(
      'exits',
      `const device = await openDevice('webgpu')
      const w = Tensor.zeros([512, 512], { device })
      void device.matmul(w, w).data()
      device.gpu.recorder.flush()
      setTimeout(() => process.exit(3), 5)`,
    )
    expectQuiet(ending, '', 3)
  })

  it('after dispose, with several devices', async () => {
    const ending = await run(
      'disposes',
      `for (let i = 0; i < 3; i++) {
        const device = await openDevice(i === 1 ? 'webgpu:software' : 'webgpu')
        const x = Tensor.from([i], { device })
        console.log([...await x.data()].join())
        if (i !== 2) device.dispose()
      }`,
    )
    expectQuiet(ending, '0\n1\n2\n')
  })
})

describe('the garbage collector', () => {
  it('may take everything but a tensor', async () => {
    const ending = await run(
      'keeps-tensor',
      `async function make() {
        const device = await openDevice('webgpu')
        const x = Tensor.from([1, 2, 3], { device })
        return device.add(x, x)
      }
      const sum = await make()
      for (let i = 0; i < 20; i++) {
        globalThis.gc()
        await new Promise((resolve) => setTimeout(resolve, 5))
      }
      console.log([...await sum.data()].join())`,
      ['--expose-gc'],
    )
    expectQuiet(ending, '2,4,6\n')
  })

  it('may take everything but a pending read', async () => {
    const ending = await run(
      'keeps-read',
      `async function make() {
        const device = await openDevice('webgpu')
        const w = Tensor.full([256, 256], 1, { device })
        return { read: device.matmul(w, w).data() }
      }
      const { read } = await make()
      for (let i = 0; i < 20; i++) {
        globalThis.gc()
        await new Promise((resolve) => setTimeout(resolve, 1))
      }
      console.log((await read)[0])`,
      ['--expose-gc'],
    )
    expectQuiet(ending, '256\n')
  })

  it('may take whole devices, used and unused', async () => {
    const ending = await run(
      'keeps-nothing',
      `async function use(i) {
        const device = await openDevice('webgpu')
        if (i % 3 === 0) return
        const x = Tensor.from([i], { device })
        await device.add(x, x).data()
        if (i % 3 === 1) device.dispose()
      }
      for (let i = 0; i < 12; i++) {
        await use(i)
        globalThis.gc()
        await new Promise((resolve) => setTimeout(resolve, 5))
        globalThis.gc()
      }
      console.log('done')`,
      ['--expose-gc'],
    )
    expectQuiet(ending, 'done\n')
  })
})
