// The CPU device by gpu.js: what opens it, which of its modes, the text of the bundled model, long sums, and weights of more than one call.
import { execFile } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { build } from 'esbuild'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import { CpuDevice } from '../../runtime/device/cpu/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { platform } from '../../runtime/device/webgpu/platform-browser.ts'
import { expectProduct } from '../support/block-samples.ts'
import { cpuDevices, overGpuJs, spoilt } from '../support/cpu.ts'
import { decode } from '../support/decoding.ts'
import { Random, seed } from '../support/random.ts'
import { sample } from '../support/tensors.ts'

const root = join(import.meta.dirname, '../..')
const [WEBASM, JAVASCRIPT] = ['CPU (gpu.js webasm, TypeScript loops)', 'CPU (gpu.js cpu, TypeScript loops)']

afterEach(() => vi.unstubAllGlobals())

describe('opening', () => {
  it('by its name, by WebAssembly', async () => {
    using device = await openDevice('cpu:gpu.js')
    expect([device.name, device.kind, device.description, device.software]).toEqual(['cpu:gpu.js', 'cpu', WEBASM, true])
    expect(cpuDevices().some(({ name }) => name === WEBASM || name === JAVASCRIPT)).toBe(true)
  })

  it('without WebAssembly, by JavaScript', async () => {
    vi.stubGlobal('WebAssembly', undefined)
    using device = await openDevice('cpu:gpu.js')
    expect(device.description).toBe(JAVASCRIPT)
    const y = device.matmul(Tensor.from([1, 2, 3], { shape: [1, 3], device }), Tensor.from([4, 5, 6, 1, 0, -1], { shape: [2, 3], device }))
    expect([...((await y.data()) as Float32Array)]).toEqual([32, -2])
  })

  it.each([
    ['do not compile', () => 'no kernel'],
    ['multiply wrongly', (source: string) => source.replaceAll('+=', '-=')],
    ['multiply four tokens wrongly', (source: string) => source.replace('[a, b, c, d]', '[a, b, d, c]')],
    ['end long sums', (source: string) => source.replaceAll('i < this.constants.k', 'i < Math.min(this.constants.k, 1000)')],
  ])('by JavaScript where kernels in WebAssembly %s', (_, spoil) => {
    using device = overGpuJs(spoilt(spoil))
    expect(device.description).toBe(JAVASCRIPT)
  })

  it('by nothing where neither mode multiplies: says why', () => {
    const { GPU } = spoilt((source) => source)
    const broken = class extends GPU {
      override createKernel(): never {
        throw new Error('no kernels today')
      }
    }
    expect(() => overGpuJs({ GPU: broken })).toThrow(
      expect.objectContaining({ code: 'ERR_BACKEND_UNAVAILABLE', message: expect.stringMatching(/neither.*no kernels today/) }),
    )
  })

  it('where it is not installed, says how to', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'rankmesh-gpu-js-'))
    try {
      const outfile = join(folder, 'open.mjs')
      const options = {
        bundle: true,
        format: 'esm',
        platform: 'node',
        target: 'es2022',
        packages: 'external',
        loader: { '.wgsl': 'text' },
      } as const
      await build({ ...options, entryPoints: [join(root, 'runtime/device/open.ts')], outfile, conditions: ['node'], logLevel: 'error' })
      const program = `const { openDevice } = await import(${JSON.stringify(outfile)})
        await openDevice('cpu:gpu.js').catch((error) => console.log(error.code, error.message))
        console.log((await openDevice('cpu')).kind)`
      const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', program], { cwd: folder })
      expect(stdout).toMatch(/^ERR_BACKEND_UNAVAILABLE .*npm install gpu\.js.*\ncpu\n$/)
    } finally {
      rmSync(folder, { recursive: true })
    }
  })

  it('in a page, says what there is', () => {
    expect(() => platform.gpuJs()).toThrow(expect.objectContaining({ code: 'ERR_BACKEND_UNAVAILABLE' }))
  })
})

describe.each(cpuDevices().filter(({ name }) => name.includes('gpu.js')))('$name', ({ open }) => {
  const start = seed()

  it(`long sums, and more weights and tokens than one call takes (seed ${start})`, async () => {
    const random = new Random(start)
    using device = open()
    for (const [t, k, n] of [
      [1, 100_003, 13],
      [5, 70_001, 9],
      [2, 2048, 515],
      [4, 1031, 1030],
      [131, 1500, 7],
    ] as const) {
      const [x, w, bias] = [sample(device, random, [t, k]), sample(device, random, [n, k]), sample(device, random, [n])]
      const all = await device.matmul(x.tensor, w.tensor, { bias: bias.tensor }).bytes()
      expectProduct(new Float32Array(all.slice().buffer), x.values, w.values, { t, k, n }, bias.values)
      // Outputs of a rank that has some of the rows of weights.
      const first = random.int(n)
      const part = (await device.matmul(x.tensor, w.tensor.narrow(0, first, n - first)).data()) as Float32Array
      const whole = (await device.matmul(x.tensor, w.tensor).data()) as Float32Array
      expect(part).toEqual(whole.filter((_, i) => i % n >= first))
    }
  })

  it.each([1, 2])("%i ranks write the bundled model's text, as loops do", async (ranks) => {
    const dir = join(root, 'examples/models/tiny-shakespeare')
    const [{ ids, greedy }] = JSON.parse(readFileSync(join(dir, 'golden.json'), 'utf8')).prompts as [{ ids: number[]; greedy: number[] }]
    using device = open()
    using loops = CpuDevice.open(null)
    const [written, expected] = [
      await decode(dir, ids, 24, Array(ranks).fill(device)),
      await decode(dir, ids, 24, Array(ranks).fill(loops)),
    ]
    for (const each of written) {
      expect(each.ids).toEqual(expected[0]?.ids)
      expect(each.ids).toEqual(greedy.slice(0, 24))
      expect(each.bits.equals(written[0]?.bits as Buffer)).toBe(true)
    }
  })
})
