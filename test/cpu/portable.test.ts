// Portable operations have the bits of the loops on every kind of processor, and e^x is what it should be.
import { afterAll, describe, expect, it } from 'vitest'
import { EXP_HIGHEST, EXP_LOWEST, exp } from '../../runtime/core/portable.ts'
import { portableCases } from '../support/cases/portable.ts'
import { cpuDevices, reason } from '../support/cpu.ts'
import { Random, seed } from '../support/random.ts'

const devices = cpuDevices()
  .slice(0, -1)
  .map(({ open }) => open())
afterAll(() => {
  for (const device of devices) device.dispose()
})
if (reason !== '') it.skip(`the native kernels${reason}`, () => {})

for (const device of devices) portableCases(device)

const start = seed()
describe(`e^x (seed ${start})`, () => {
  it('is within 2 ULP, and monotonous where it ends', () => {
    const random = new Random(start)
    for (let i = 0; i < 200_000; i++) {
      const x = Math.fround(EXP_LOWEST + random.uniform() * (EXP_HIGHEST - EXP_LOWEST))
      const right = Math.exp(x)
      const ulp = 2 ** (Math.floor(Math.log2(right)) - 23)
      expect(Math.abs(exp(x) - right)).toBeLessThanOrEqual(2 * ulp)
    }
    expect(exp(EXP_LOWEST)).toBeGreaterThanOrEqual(2 ** -126)
    expect(exp(EXP_HIGHEST)).toBeLessThan(2 ** 128)
    expect([exp(Math.fround(-87.331)), exp(Number.NEGATIVE_INFINITY)]).toEqual([0, 0])
    expect([exp(Math.fround(88.7229)), exp(Number.POSITIVE_INFINITY)]).toEqual([Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY])
    expect(exp(Number.NaN)).toBeNaN()
    expect(exp(0)).toBe(1)
  })
})
