// Tiny models of every family over 1 to 5 ranks of each kind of group: transformers' logits and greedy ids. docs/support.md lists what passes.
//   RANKMESH_UPDATE_DOCS=1 npx vitest run --project gpu test/nn/families     writes it anew
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import type { Device } from '../../runtime/device/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { decode } from '../support/decoding.ts'
import { testDevice } from '../support/device.ts'
import { expectDocument } from '../support/document.ts'
import { maxAbsDiff } from '../support/reference-ops.ts'

const folder = join(import.meta.dirname, '../fixtures/tiny-models')
const models = readdirSync(folder).map((name) => {
  const read = (file: string) => JSON.parse(readFileSync(join(folder, name, file), 'utf8'))
  return { name, config: read('config.json'), expected: read('expected.json') }
})

const [gpu, cpu] = [await testDevice(), await openDevice('cpu')] as const
afterAll(() => {
  gpu.dispose()
  cpu.dispose()
})

/** A software GPU is slow: fewer tokens there. */
const KINDS: { kind: string; devices: readonly Device[]; count: number }[] = [
  { kind: 'cpu', devices: [cpu], count: 40 },
  { kind: 'webgpu', devices: [gpu], count: 8 },
  { kind: 'webgpu, cpu', devices: [gpu, cpu], count: 8 },
]
const RANKS = [1, 2, 3, 4, 5]

/** By name and kind. */
const passed = new Map<string, number[]>()

describe.each(models)('$name', ({ name, expected }) => {
  for (const { kind, devices, count } of KINDS) {
    for (const ranks of RANKS.filter((ranks) => ranks >= devices.length)) {
      it(`${ranks} rank${ranks > 1 ? 's' : ''} on ${kind}`, async () => {
        const placed = Array.from({ length: ranks }, (_, rank) => devices[Math.floor((rank * devices.length) / ranks)] as Device)
        const ended = await decode(join(folder, name), expected.promptIds, count, placed)
        for (const { first, ids, bits } of ended) {
          expect(maxAbsDiff(first, expected.lastLogits)).toBeLessThan(1e-4)
          expect(ids).toEqual(expected.greedyIds.slice(0, count))
          expect(bits.equals(ended[0]?.bits as Buffer)).toBe(true)
        }
        passed.set(`${name} ${kind}`, [...(passed.get(`${name} ${kind}`) ?? []), ranks])
      })
    }
  }
})

it('docs/support.md lists what has passed', () => {
  const line = (cells: readonly unknown[]): string => `| ${cells.join(' | ')} |`
  const heads = ['model', 'family', 'heads over kv heads', 'weights', ...KINDS.map(({ kind }) => `ranks on ${kind}`)]
  const rows = models.map(({ name, config }) => [
    name,
    config.model_type,
    `${config.num_attention_heads}/${config.num_key_value_heads}`,
    config.torch_dtype ?? config.dtype,
    ...KINDS.map(({ kind }) => passed.get(`${name} ${kind}`)?.join(', ') ?? 'none'),
  ])
  expectDocument('support.md', 'models', [line(heads), line(heads.map(() => '---')), ...rows.map(line)].join('\n'))
})
