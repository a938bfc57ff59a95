// Native all-reduces between threads and between processes: every kind, op and size against sums made here, in the order of ranks.
import { describe, expect, it } from 'vitest'
import { ARRIVED, ELSEWHERE, MISMATCHED, type ReducibleArray } from '../../runtime/core/addon.ts'
import { Random, seed } from '../support/random.ts'
import { BLOCK, layoutOf, SLOTS } from './member.mjs'
import { addon, reason, runMembers, type Step } from './members.ts'

const KINDS = [Int32Array, Uint32Array, BigInt64Array, BigUint64Array, Float32Array, Float64Array] as const
type Kind = (typeof KINDS)[number]

function randomArray(random: Random, Kind: Kind, length: number): ReducibleArray {
  const array = new Kind(length)
  for (let i = 0; i < length; i++) {
    if (array instanceof BigInt64Array || array instanceof BigUint64Array) array[i] = (BigInt(random.bits()) << 32n) | BigInt(random.bits())
    else if (array instanceof Float32Array || array instanceof Float64Array) {
      const special = [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, -0, 0, 1e-42]
      array[i] = random.int(20) ? random.normal() * 10 ** (random.int(12) - 6) : (special[random.int(special.length)] as number)
    } else array[i] = random.bits()
  }
  return array
}

/** Elementwise in the order of ranks; the typed array rounds or wraps each step. */
function expected(arrays: readonly ReducibleArray[], op: number): ReducibleArray {
  const result = (arrays[0] as Float64Array).slice()
  for (const next of arrays.slice(1) as Float64Array[])
    for (let i = 0; i < result.length; i++) {
      const [a, b] = [result[i]!, next[i]!]
      if (op === 0) result[i] = a + b
      else result[i] = (op === 1 ? b < a : b > a) || Number.isNaN(b) ? b : a
    }
  return result
}

const bytesOf = ({ buffer, byteOffset, byteLength }: ReducibleArray): Buffer => Buffer.from(buffer, byteOffset, byteLength)

/** Alike but for the payloads of NaNs, which no reference here can know. */
function same(a: ReducibleArray, b: ReducibleArray): boolean {
  return a.length === b.length && (a as Float64Array).every((value, i) => Object.is(value, (b as Float64Array)[i]))
}

describe.skipIf(!addon)(`reductions in shared memory${reason}`, () => {
  for (const how of ['threads', 'processes'] as const)
    for (const size of [1, 2, 3, 4])
      it(`${size} ${how}: all kinds, ops and sizes, in place and not`, { timeout: 120_000 }, async () => {
        const start = seed()
        const random = new Random(start)
        const steps: Step[][] = Array.from({ length: size }, () => [])
        const tasks: { Kind: Kind; length: number; op: 0 | 1 | 2; at: number | undefined }[] = []
        for (const Kind of KINDS)
          for (const op of [0, 1, 2] as const)
            for (const at of [undefined, 8 * random.int(100)]) {
              const several = Math.ceil((SLOTS * 2.5) / Kind.BYTES_PER_ELEMENT) + random.int(1000)
              for (const length of [0, 1, 2 * random.int(20) + 1, random.int(5000), several]) tasks.push({ Kind, length, op, at })
            }
        for (const [signature, { Kind, length, op, at }] of tasks.sort(() => random.uniform() - 0.5).entries())
          for (const own of steps) {
            const microseconds = [0, 20, 1000][random.int(3)] as number
            own.push({ array: randomArray(random, Kind, length), op, signature, microseconds, ...(at !== undefined && { at }) })
          }
        const answers = await runMembers(how, steps, layoutOf(size).byteLength)
        for (const [i, { Kind, length, op, at }] of tasks.entries()) {
          const name = `seed ${start}, step ${i}: ${Kind.name}[${length}] op ${op} ${at === undefined ? 'carried' : `at ${at}`}`
          const want = expected(
            steps.map((own) => own[i]!.array),
            op,
          )
          for (const own of answers) {
            expect(own[i]!.result, name).toBe(ARRIVED)
            expect(same(own[i]!.array, want), name).toBe(true)
            expect(bytesOf(own[i]!.array).equals(bytesOf(answers[0]![i]!.array)), `${name}, bits of all ranks`).toBe(true)
            expect(own[i]!.epoch, name).toBe(answers[0]![i]!.epoch)
          }
        }
      })

  for (const how of ['threads', 'processes'] as const)
    it(`3 ${how}: what does not fit together is told to all, touches nothing, and the lane goes on`, async () => {
      const start = seed()
      const random = new Random(start)
      const base = (array: ReducibleArray): Step => ({ array, op: 0, signature: 5, microseconds: 100 })
      const float = (n = 100): ReducibleArray => randomArray(random, Float32Array, n)
      const odd: [number, (own: Step) => Step][] = [
        [MISMATCHED, (own) => ({ ...own, signature: 6 })],
        [MISMATCHED, (own) => ({ ...own, op: 1 })],
        [MISMATCHED, (own) => ({ ...own, array: float(101) })],
        [MISMATCHED, (own) => ({ ...own, array: randomArray(random, Int32Array, 100) })],
        [ELSEWHERE, (own) => ({ ...own, at: 64 })],
      ]
      const steps: Step[][] = [[], [], []]
      const wants: number[] = []
      for (const [result, change] of odd) {
        const one = random.int(3)
        for (const [rank, own] of steps.entries()) {
          const step = base(float())
          own.push(rank === one ? change(step) : step, base(float()))
        }
        wants.push(result, ARRIVED)
      }
      // All in place, one of them 64 bytes on.
      for (const [rank, own] of steps.entries()) own.push({ ...base(float()), at: rank === 1 ? 64 : 0 }, base(float()))
      wants.push(ELSEWHERE, ARRIVED)
      const answers = await runMembers(how, steps, layoutOf(3).byteLength)
      for (const [i, want] of wants.entries())
        for (const [rank, own] of answers.entries()) {
          expect(own[i]!.result, `seed ${start}, step ${i}, rank ${rank}`).toBe(want)
          const untouched = steps[rank]![i]!.array
          const sum = (): ReducibleArray =>
            expected(
              steps.map((all) => all[i]!.array),
              0,
            )
          expect(same(own[i]!.array, want === ARRIVED ? sum() : untouched), `seed ${start}, step ${i}, rank ${rank}`).toBe(true)
        }
    })

  it('the reference tells a wrong order of ranks: float sums depend on it', () => {
    const parts = [Float32Array.of(1e8), Float32Array.of(1), Float32Array.of(-1e8)]
    expect(expected(parts, 0)[0]).not.toBe(expected([parts[0]!, parts[2]!, parts[1]!], 0)[0])
    expect(BLOCK).toBeGreaterThan(SLOTS * 3 + 8000)
  })

  it('sumFloat32 adds in order, also into one of the parts', () => {
    const start = seed()
    const random = new Random(start)
    for (let round = 0; round < 50; round++) {
      const n = random.int(3000)
      const parts = Array.from({ length: 1 + random.int(6) }, () => randomArray(random, Float32Array, n) as Float32Array)
      const want = expected(parts, 0)
      const out = round % 2 ? new Float32Array(n) : (parts[random.int(parts.length)] as Float32Array)
      addon!.sumFloat32(parts, out)
      expect(same(out, want), `seed ${start}, round ${round}`).toBe(true)
    }
  })
})
