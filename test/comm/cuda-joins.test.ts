// Products, minima, maxima and means over peers' memory, and reductions of integers: by kernels, with the bits that host memory gives.
import { afterAll, describe, expect, it } from 'vitest'
import type { ReduceOp } from '../../runtime/comm/device-comm.ts'
import { StagedComm } from '../../runtime/comm/staged/comm.ts'
import { type DType, decode, encode } from '../../runtime/core/dtype.ts'
import type { Tensor } from '../../runtime/core/tensor.ts'
import type { CudaDevice } from '../../runtime/device/cuda/device.ts'
import { cudaDevices, reason } from '../support/cuda.ts'
import { pairwise } from '../support/pairwise.ts'
import { Random, seed } from '../support/random.ts'
import { placed, poison, STYLES } from './conformance.ts'
import { type CudaRank, overPeers, SMALL } from './cuda-ranks.ts'

const [a, b] = (await Promise.all(cudaDevices().map(({ open }) => open()))) as [CudaDevice, CudaDevice]
afterAll(() => {
  for (const device of [a, b]) device?.dispose()
})

const start = seed()
const many = 3 + new Random(start).int(6)
const GROUPS = [
  { name: 'one rank', place: [0] },
  { name: 'two ranks on two devices', place: [0, 1] },
  { name: 'three ranks, over pinned memory', place: [0, 1, 0], memory: 'pinned' as const },
  { name: `${many} ranks`, place: Array.from({ length: many }, (_, rank) => rank % 2) },
]

const DTYPES: readonly DType[] = ['float32', 'bfloat16', 'float16', 'int32', 'uint32']
const OPS: readonly ReduceOp[] = ['sum', 'prod', 'min', 'max', 'avg']
/** The largest goes in pieces: see SMALL. */
const FACTORS = {
  dtype: DTYPES,
  op: OPS,
  size: [0, 1, 7, 1000, 4099, SMALL.dataBytes / 2 + 333],
  style: STYLES,
  out: ['none', 'separate', 'narrow', 'in place'] as const,
  algorithm: [undefined, 'one-shot', 'two-shot'] as const,
}
const cases = pairwise(FACTORS, new Random(start)).filter(({ op, dtype }) => op !== 'avg' || !dtype.includes('int'))

const SPECIAL = [Number.NaN, 0, -0, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 2 ** -140, -(2 ** -126), 65504, -3e38, 2 ** -24]

/** Floats among which there are all that are easily got wrong. */
function draw(random: Random, dtype: DType, size: number): Uint8Array {
  const float = (): number => (random.int(3) === 0 ? (SPECIAL[random.int(SPECIAL.length)] as number) : random.normal() * 2 ** random.int(9))
  const value = dtype === 'int32' ? () => random.bits() | 0 : dtype === 'uint32' ? () => random.bits() : float
  return encode(dtype, Array.from({ length: size }, value))
}

/** The numbers of a tensor; every NaN is one, and 0 is not -0. */
async function numbersOf(y: Tensor): Promise<number[]> {
  return Array.from(decode(y.dtype, await y.bytes()) as Float32Array)
}

function checkAlike(found: readonly number[], wanted: readonly number[], what: string): void {
  expect(found.length, what).toBe(wanted.length)
  const at = found.findIndex((value, i) => !Object.is(value, wanted[i]))
  if (at >= 0) throw new Error(`${what}, element ${at} of ${found.length}: ${found[at]} instead of ${wanted[at]}`)
}

type Found = [what: string, numbers: number[]]

describe.skipIf(reason !== '').each(GROUPS)(`$name (seed ${start})${reason}`, ({ place, memory }) => {
  const ranks = place.length
  /** Runs `main` for all ranks in the group of the kernels, and in one through host memory: they find the same. */
  const both = (main: (rank: CudaRank, comm: StagedComm) => Promise<Found[]>): Promise<unknown> =>
    overPeers(
      place.map((index) => [a, b][index] as CudaDevice),
      async (rank) => {
        const host = await rank.host.split({ color: 0 })
        const staged = await StagedComm.create(host as never, rank.device)
        const [found, wanted] = [await main(rank, rank.peers), await main(rank, staged)]
        for (const [i, [what, numbers]] of found.entries()) checkAlike(numbers, (wanted[i] as Found)[1], `${what}, rank ${rank.rank}`)
        expect(rank.peers.stats().crossings).toBe(0)
        if (ranks > 1) expect(staged.stats().crossings).toBeGreaterThan(0)
        staged.destroy()
      },
      memory && { memory },
    )

  it(`allReduce: ${cases.length} cases`, async () => {
    const random = new Random(start)
    const bytes = cases.map(({ dtype, size }) => place.map(() => draw(random, dtype, size)))
    await both(async (context, comm) => {
      const found: Found[] = []
      for (const [i, { dtype, op, size, style, out, algorithm }] of cases.entries()) {
        const own = bytes[i]![context.rank]!
        // One rank has no choice, and few elements cannot be shared out.
        const way = ranks === 1 || (size < 64 && algorithm === 'two-shot') ? undefined : algorithm
        using x = await placed(context, style, [size], dtype, own)
        const apart = out === 'separate' || out === 'narrow' ? await placed(context, out, [size], dtype, poison(own.byteLength)) : null
        const to = out === 'in place' ? x.tensor : apart?.tensor
        const y = await comm.allReduce(x.tensor, { op, ...(to && { out: to }), ...(comm === context.peers && way && { algorithm: way }) })
        const what = `${op} of ${size} ${dtype}, ${style}, out ${out}, ${way ?? 'any way'}`
        found.push([what, await numbersOf(y)])
        if (out !== 'in place') expect(Buffer.compare(await x.tensor.bytes(), own), `${what}: the operand`).toBe(0)
        await Promise.all([x.checkSurroundings(), apart?.checkSurroundings()])
        y.dispose()
      }
      return found
    })
  })

  it('reduce, reduceScatter and reduceScatterV, of every type by every reduction', async () => {
    const random = new Random(start)
    const sizes = Array.from({ length: ranks }, (_, rank) => (rank === 0 ? 4 * ranks + 1 : 1))
    const every = DTYPES.flatMap((dtype) => OPS.filter((op) => op !== 'avg' || !dtype.includes('int')).map((op) => ({ dtype, op })))
    const bytes = every.map(({ dtype }) => place.map(() => draw(random, dtype, 15 * ranks)))
    await both(async (context, comm) => {
      const found: Found[] = []
      for (const [i, { dtype, op }] of every.entries()) {
        using x = await placed(context, 'narrow', [3, 5 * ranks], dtype, bytes[i]![context.rank]!)
        const whole = await comm.reduce(x.tensor, { op, dst: ranks - 1 })
        expect(whole === null).toBe(context.rank < ranks - 1)
        const results = {
          reduce: whole,
          reduceScatter: await comm.reduceScatter(x.tensor, { op }),
          reduceScatterV: await comm.reduceScatterV(x.tensor, { op, sizes }),
        }
        for (const [name, y] of Object.entries(results)) {
          if (y) found.push([`${name} by ${op} of ${dtype}`, await numbersOf(y)])
          y?.dispose()
        }
        await x.checkSurroundings()
      }
      return found
    })
  })
})
