// What every DeviceComm must do, written once and run over a list of kinds of group; a new backend is one more line in that list.
import { describe, it } from 'vitest'
import { type DType, dtypeSize } from '../../runtime/core/dtype.ts'
import { type Shape, sizeOf } from '../../runtime/core/shape.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { Device } from '../../runtime/device/device.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { drawn } from '../support/effort.ts'
import type { MemoryWire } from '../support/memory-wire.ts'
import { launchOver } from '../support/over-wire.ts'
import { type Factors, pairwise, type Row } from '../support/pairwise.ts'
import { Random, seed } from '../support/random.ts'
import { fusedCases } from './conformance-fused.ts'
import { groupCases } from './conformance-groups.ts'
import { moveCases } from './conformance-move.ts'
import { pointCases } from './conformance-point.ts'
import { reduceCases } from './conformance-reduce.ts'
import { vectorCases } from './conformance-vector.ts'

export interface GroupKind {
  name: string
  devices: readonly Device[]
  /** The device of each rank, as an index; or why there is no such group. */
  place(ranks: number): number[] | string
  /** The wires that join such a number of ranks, each a site of its own; absent: ranks of one thread. */
  join?(ranks: number): readonly MemoryWire[]
  /** Few cases of each kind. */
  brief?: boolean
  /** So many of the numbers of ranks, in each run others; absent: all. */
  some?: number
  /** Buffers held on all devices, where the backend can tell: nothing may be left over. */
  live?(): number
}

/**
 * A group under test: a kind with a number of ranks. Its ranks may be in threads and processes, each of which then runs every case: what a
 * body of a rank learns of other ranks it returns, as data.
 */
export interface Group {
  ranks: number
  place: readonly number[]
  random: Random
  run<T>(main: (context: RankContext) => Promise<T>): Promise<T[]>
  /** This group's share of pairwise cases over `factors`: every third; the groups of a kind share them out, so each kind runs all. */
  share<F extends Factors>(factors: F): Row<F>[]
  /** Runs `body` for each case, all in one program; results by case, then by rank. */
  each<C extends { what: string }, T>(cases: readonly C[], body: (context: RankContext, one: C) => Promise<T>): Promise<T[][]>
}

/** How an operand lies in memory: a slice of its group's buffer, on its own, inside another tensor at an odd element. */
export type Style = 'symmetric' | 'separate' | 'narrow'
export const STYLES: readonly Style[] = ['symmetric', 'separate', 'narrow']

const SHARES = 3
const RANKS = [1, 2, 3, 4, 8, 16, 64]

export function conformance(kinds: readonly GroupKind[]): void {
  for (const kind of kinds) {
    describe(kind.name, () => {
      const dealing = seed()
      const there = RANKS.filter((ranks) => typeof kind.place(ranks) !== 'string')
      const taken = drawn(there, kind.some ?? there.length, dealing)
      for (const [turn, ranks] of RANKS.filter((ranks) => !there.includes(ranks) || taken.includes(ranks)).entries()) {
        const place = kind.place(ranks)
        if (typeof place === 'string') {
          it.skip(`${ranks} ranks: ${place}`, () => {})
          continue
        }
        const start = seed()
        describe(`${ranks} ranks (seed ${start}, cases ${dealing})`, () => {
          const group = groupOf({ place, random: new Random(start), share: shareOf(dealing, turn) }, runOn(kind, place))
          allCases(group, kind.brief ?? ranks === 64)
        })
      }
    })
  }
}

/** Everything a group is tested with. */
export function allCases(group: Group, brief: boolean): void {
  reduceCases(group, brief)
  moveCases(group, brief)
  fusedCases(group, brief)
  vectorCases(group, brief)
  pointCases(group, brief)
  groupCases(group)
}

/** The `turn`-th share of pairwise cases, the same for the same `dealing`. */
export function shareOf(dealing: number, turn: number): Group['share'] {
  return (factors) => pairwise(factors, new Random(dealing)).filter((_, i) => (i + turn) % SHARES === 0)
}

export function groupOf({ place, random, share }: Pick<Group, 'place' | 'random' | 'share'>, run: Group['run']): Group {
  return {
    ranks: place.length,
    place,
    random,
    share,
    run,
    async each(cases, body) {
      const byRank = await run(async (context) => {
        const results = []
        for (const one of cases) {
          try {
            results.push(await body(context, one))
          } catch (error) {
            throw new Error(`${one.what}, rank ${context.rank}: ${error instanceof Error ? error.message : error}`, { cause: error })
          }
        }
        return results
      })
      return cases.map((_, i) => byRank.map((results) => results[i]!))
    },
  }
}

/** Runs a program for all ranks of such a group, in this thread. */
function runOn(kind: GroupKind, place: readonly number[]): Group['run'] {
  const devices = place.map((index) => kind.devices[index] as Device)
  const options = { ranks: place.length, devices, timeoutMs: 20_000 }
  return async (main) => {
    const before = kind.live?.()
    const results = await (kind.join ? launchOver(kind.join(place.length), options, main) : launch(options, main))
    const after = kind.live?.()
    if (before !== after) throw new Error(`${after} buffers are held after the program, ${before} before it`)
    return results
  }
}

/** What poisoned memory holds; as a float of any width a small negative number or NaN, never what a sum gives. */
export const POISON = 0xad
const PAD = 3

/** A tensor with these bytes, and how to see that nothing around it was written. */
export interface Placed extends Disposable {
  tensor: Tensor
  /** Throws unless the bytes before and behind the tensor are still poison. */
  checkSurroundings(): Promise<void>
}

/** Collective for 'symmetric': all ranks call it. */
export async function placed({ comm, device }: RankContext, style: Style, shape: Shape, dtype: DType, bytes: Uint8Array): Promise<Placed> {
  const size = sizeOf(shape)
  if (style === 'narrow') {
    const width = dtypeSize(dtype)
    const all = new Uint8Array(bytes.byteLength + 2 * PAD * width).fill(POISON)
    all.set(bytes, PAD * width)
    const base = Tensor.fromBytes(all, [size + 2 * PAD], dtype, device)
    using flat = base.narrow(0, PAD, size)
    const tensor = flat.reshape(shape)
    return {
      tensor,
      async checkSurroundings() {
        const now = await base.bytes()
        const around = [...now.subarray(0, PAD * width), ...now.subarray(PAD * width + bytes.byteLength)]
        if (!around.every((byte) => byte === POISON)) throw new Error(`bytes around a narrow view were written: ${around}`)
      },
      [Symbol.dispose]() {
        tensor.dispose()
        base.dispose()
      },
    }
  }
  const tensor = style === 'symmetric' ? await comm.allocate(shape, { dtype }) : Tensor.empty(shape, { dtype, device })
  if (size > 0) device.write(tensor.storage, tensor.byteOffset, bytes)
  return { tensor, checkSurroundings: async () => {}, [Symbol.dispose]: () => tensor.dispose() }
}

export function poison(byteLength: number): Uint8Array {
  return new Uint8Array(byteLength).fill(POISON)
}
