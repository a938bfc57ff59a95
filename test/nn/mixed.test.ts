// Groups of unlike devices, in uneven plans: the float64 reference's logits, PyTorch's golden text, the same bits on every rank; in tp-invariant
// mode those of one rank on a device of either kind. A real model too.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, describe, expect, it, vi } from 'vitest'
import type { Device } from '../../runtime/device/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import { decode } from '../support/decoding.ts'
import { testDevice } from '../support/device.ts'
import { loadReference } from '../support/reference-llama.ts'
import { maxAbsDiff } from '../support/reference-ops.ts'
import { smollm2Folder } from '../support/smollm2.ts'
import { expectGreedy, shortest } from '../support/smollm2-run.ts'

const dir = join(import.meta.dirname, '../../examples/models/tiny-shakespeare')
const [{ ids: prompt, greedy }] = JSON.parse(readFileSync(join(dir, 'golden.json'), 'utf8')).prompts as [
  { ids: number[]; greedy: number[] },
]
const expected = loadReference(dir).forward(prompt).at(-1) as Float64Array
const COUNT = 24

const [gpu, other, cpu] = [await testDevice(), await testDevice(), await openDevice('cpu')] as const
afterAll(() => {
  for (const device of [gpu, other, cpu]) device.dispose()
})

const GROUPS = [
  { name: 'webgpu, cpu', devices: [gpu, cpu] },
  { name: 'webgpu, webgpu, cpu', devices: [gpu, other, cpu] },
  { name: 'two ranks on webgpu, one on cpu', devices: [gpu, gpu, cpu] },
]

const invariant = { deterministic: 'tp-invariant' } as const
const [one] = await decode(dir, prompt, 8, [cpu], invariant)

it('tp-invariant: one rank has the same bits on a GPU as on the CPU, which without it differ', async () => {
  expect(maxAbsDiff(one?.first as Float32Array, expected)).toBeLessThan(1e-4)
  const [onGpu] = await decode(dir, prompt, 8, [gpu], invariant)
  expect(onGpu?.bits.equals(one?.bits as Buffer)).toBe(true)
  const [plain, plainOnGpu] = await Promise.all([cpu, gpu].map(async (device) => (await decode(dir, prompt, 8, [device], {}))[0]?.bits))
  expect(plainOnGpu?.equals(plain as Buffer)).toBe(false)
})

describe.each(GROUPS)('$name', ({ devices }) => {
  const ranks = devices.length
  it.each<[string, number[] | undefined]>([
    ['even shares', undefined],
    ['uneven shares', ranks === 2 ? [0.8, 0.2] : [0.7, 0.2, 0.1]],
    ['a cpu rank without heads', ranks === 2 ? [0.98, 0.02] : [0.6, 0.38, 0.02]],
    ['a webgpu rank without heads', ranks === 2 ? [0.02, 0.98] : [0.02, 0.38, 0.6]],
  ])('%s: the logits, the text, the same bits on all ranks', async (name, shares) => {
    const ended = await decode(dir, prompt, COUNT, devices, { shares })
    for (const { first, ids, bits } of ended) {
      expect(maxAbsDiff(first, expected)).toBeLessThan(1e-4)
      expect(ids).toEqual(greedy.slice(0, COUNT))
      expect(bits.equals(ended[0]?.bits as Buffer)).toBe(true)
    }
    for (const layer of [0, 1, 2, 3]) expect(ended.reduce((sum, { heads }) => sum + (heads[layer] as number), 0)).toBe(8)
    if (name.includes('without')) expect(ended.at(name.startsWith('a cpu') ? -1 : 0)?.heads).toEqual([0, 0, 0, 0])
  })

  it.each<[string, number[] | undefined]>([
    ['even shares', undefined],
    ['uneven shares', ranks === 2 ? [0.8, 0.2] : [0.7, 0.2, 0.1]],
    ['a cpu rank without heads', ranks === 2 ? [0.98, 0.02] : [0.6, 0.38, 0.02]],
    ['a webgpu rank that holds nothing', ranks === 2 ? [0, 1] : [0, 1, 2]],
  ])('tp-invariant, %s: the bits of one rank', async (_, shares) => {
    for (const each of await decode(dir, prompt, 8, devices, { ...invariant, shares })) {
      expect(each.ids).toEqual(greedy.slice(0, 8))
      expect(each.bits.equals(one?.bits as Buffer)).toBe(true)
    }
  })
})

it('tp-invariant refuses a device that changes arithmetic beside one of another kind, on all ranks, and takes it alone', async () => {
  const { siluMul } = WebGpuDevice.prototype
  const changed = vi.spyOn(WebGpuDevice.prototype, 'siluMul').mockImplementation(function (this: WebGpuDevice, x, { out } = {}) {
    return siluMul.call(this, x, out ? { out } : {})
  })
  try {
    const told = decode(dir, prompt, 2, [cpu, gpu], invariant)
    await expect(told).rejects.toMatchObject({ code: 'ERR_BACKEND_UNAVAILABLE', message: expect.stringContaining('Rank 1') })
    await expect(told).rejects.toThrow('siluMul')
    expect((await decode(dir, prompt, 2, [gpu, gpu], invariant)).length).toBe(2)
  } finally {
    changed.mockRestore()
  }
})

const families = join(import.meta.dirname, '../fixtures/tiny-models')
describe.each(readdirSync(families))('%s', (name) => {
  it('tp-invariant: the bits of one CPU rank on a GPU, and on both kinds together', async () => {
    const { promptIds } = JSON.parse(readFileSync(join(families, name, 'expected.json'), 'utf8'))
    const of = (devices: Device[]) => decode(join(families, name), promptIds, 4, devices, invariant)
    const [alone] = await of([cpu])
    for (const devices of [[gpu], [gpu, cpu, gpu]]) {
      for (const { bits } of await of(devices)) expect(bits.equals(alone?.bits as Buffer)).toBe(true)
    }
  })
})

// 9 heads over 3 kv heads: 2 ranks take turns at the odd one, of 4 ranks one has none in each layer.
const smollm2 = await smollm2Folder()
describe.skipIf(!smollm2)(`SmolLM2-135M-Instruct${smollm2 ? '' : ': skipped, its files are not there'}`, () => {
  const { dir, expected } = smollm2 ?? { dir: '', expected: { greedy: [] } as never }
  it.each([1, 2, 3, 4])('%i cpu ranks give the expected ids', async (ranks) => {
    await expectGreedy(dir, shortest(expected).slice(0, ranks === 3 ? 2 : 1), ranks, 12, { devices: [cpu] }) // a plain prompt, then a chat
  })

  // A software GPU is slow: the plain prompt only, and the small shares on the GPU.
  it.each([
    [2, [1, 4]],
    [3, [1, 4, 4]],
    [4, undefined],
  ])('%i ranks on webgpu and cpu give the expected ids', async (ranks, shares) => {
    await expectGreedy(dir, shortest(expected).slice(0, 1), ranks, 3, { devices: [gpu, cpu], shares })
  })
})
