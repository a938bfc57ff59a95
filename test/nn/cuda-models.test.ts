// Tiny models of every family on emulated CUDA devices: transformers' logits and greedy ids, on one device, on two that reach each other, and
// beside a CPU; in tp-invariant mode the bits of one CPU rank. Kernels, streams, graphs and collectives are those of real devices.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import type { Device } from '../../runtime/device/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { control, cudaDevices, reason } from '../support/cuda.ts' // first
import { decode } from '../support/decoding.ts'
import { seed } from '../support/random.ts'
import { maxAbsDiff } from '../support/reference-ops.ts'

const folder = join(import.meta.dirname, '../fixtures/tiny-models')
const TOKENS = 20

const devices: Device[] = await Promise.all(cudaDevices().map(({ open }) => open()))
const cpu = await openDevice('cpu')
afterAll(() => {
  for (const device of [...devices, cpu]) device.dispose()
})
const [first, second] = devices as [Device, Device]
const KINDS: [kind: string, devices: readonly Device[], ranks: readonly number[]][] = [
  ['one device', [first], [1, 2, 4]],
  ['two devices', [first, second], [2, 4]],
  ['a device and a CPU', [first, cpu], [2]],
]

const start = seed()
let models = 0

describe.skipIf(reason !== '')(`tiny models on CUDA (seed ${start})${reason}`, () => {
  describe.each(readdirSync(folder))('%s', (name) => {
    const expected = JSON.parse(readFileSync(join(folder, name, 'expected.json'), 'utf8'))
    for (const [kind, on, counts] of KINDS) {
      // Of the numbers of ranks, another one in each run.
      it.each([counts[(start + models++) % counts.length] as number])(`%i ranks on ${kind}`, async (ranks) => {
        const placed = Array.from({ length: ranks }, (_, rank) => on[Math.floor((rank * on.length) / ranks)] as Device)
        const ended = await decode(join(folder, name), expected.promptIds, TOKENS, placed)
        for (const { first, ids, bits } of ended) {
          expect(maxAbsDiff(first, expected.lastLogits)).toBeLessThan(1e-4)
          expect(ids).toEqual(expected.greedyIds.slice(0, TOKENS))
          expect(bits.equals(ended[0]?.bits as Buffer)).toBe(true)
        }
        expect(control.counts().reports, 'complaints of the emulated devices').toBe(0)
      })
    }

    it('tp-invariant: the bits of one CPU rank, on all of them', async () => {
      const invariant = { deterministic: 'tp-invariant' } as const
      const of = (placed: Device[]) => decode(join(folder, name), expected.promptIds, 6, placed, invariant)
      const [one] = await of([cpu])
      for (const placed of [[first], [first, second, first], [cpu, first, second]]) {
        for (const { bits } of await of(placed)) expect(bits.equals(one?.bits as Buffer)).toBe(true)
      }
    })
  })

  it('use kernels of the devices', () => {
    expect(control.counts().kernels).toBeGreaterThan(1000)
  })
})
