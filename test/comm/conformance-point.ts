// Conformance of messages between two ranks: rings, order, pairs beside collectives; and of the fused norm between two layouts.
import { expect, it } from 'vitest'
import { ownedRows } from '../../runtime/comm/ownership.ts'
import { type DType, decode, dtypeSize, encode } from '../../runtime/core/dtype.ts'
import { type Shape, sizeOf } from '../../runtime/core/shape.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import { type Group, placed, STYLES } from './conformance.ts'

const DTYPES: readonly DType[] = ['float32', 'bfloat16', 'uint8', 'int64']
const SHAPES: readonly Shape[] = [[], [0], [1], [7], [3, 5], [4097]]

function messageCases(group: Group, brief: boolean): void {
  const P = group.ranks
  if (P === 1) {
    it.skip('send and recv: a group of one has no peer', () => {})
    return
  }
  const all = group.share({ shape: SHAPES, dtype: DTYPES, style: STYLES })
  const rows = brief ? all.slice(0, 4) : all
  it(`send and recv around the ring, by default and backwards: ${rows.length} cases`, async () => {
    const cases = rows.map(({ shape, dtype, style }) => {
      const bytes = Array.from({ length: P }, () =>
        Uint8Array.from({ length: sizeOf(shape) * dtypeSize(dtype) }, () => group.random.bits() & 255),
      )
      return { what: `[${shape}] ${dtype}, ${style}`, shape, dtype, style, bytes }
    })
    await group.each(cases, async (context, { shape, dtype, style, bytes }) => {
      const { comm, rank } = context
      const [before, after] = [(rank + P - 1) % P, (rank + 1) % P]
      using x = await placed(context, style, shape, dtype, bytes[rank]!)
      const [, from] = await Promise.all([comm.send(x.tensor), comm.recv(shape, dtype)])
      expect([from.shape, from.dtype]).toEqual([shape, dtype])
      expect(Buffer.compare(await from.bytes(), bytes[before]!)).toBe(0)
      const [back] = await Promise.all([comm.recv(shape, dtype, { src: after }), comm.send(x.tensor, { dst: before })])
      expect(Buffer.compare(await back.bytes(), bytes[after]!)).toBe(0)
      from.dispose()
      back.dispose()
    })
  })

  it('messages of a pair keep their order, beside collectives of the group and messages of others', async () => {
    await group.run(async ({ comm, device, rank }) => {
      const last = P - 1
      const wanted = [1, 2, 3, 4]
      if (rank === 0) {
        const sent = wanted.map(async (value) => {
          using x = Tensor.full([value], value, { device })
          await comm.send(x, { dst: last })
        })
        await Promise.all([...sent, comm.barrier()])
      } else if (rank === last) {
        const received = wanted.map((value) => comm.recv([value], 'float32', { src: 0 }))
        await comm.barrier()
        for (const [i, y] of (await Promise.all(received)).entries()) {
          expect([...((await y.data()) as Float32Array)]).toEqual(Array(i + 1).fill(i + 1))
          y.set(Array(i + 1).fill(9)) // its own memory
          y.dispose()
        }
      } else await comm.barrier()
    })
  })
}

/** RMSNorm of one row, in float64. */
function normed(row: readonly number[], weight: readonly number[], eps: number): number[] {
  const inverse = 1 / Math.sqrt(row.reduce((total, v) => total + v * v, 0) / row.length + eps)
  return row.map((v, j) => v * inverse * weight[j]!)
}

function reshardCases(group: Group): void {
  const P = group.ranks
  const inners = [1, 2, 4, P].filter((inner, i, list) => P % inner === 0 && list.indexOf(inner) === i)
  for (const inner of inners) {
    it(`allReduceResidualBiasRMSNormEx between groups of ${inner} and all, both ways`, async () => {
      const n = group.random.int(2) ? 12 : 5
      const tokens = Array.from({ length: P / inner }, (_, i) => (i === 1 ? 0 : group.random.int(6)))
      tokens[0] = 5
      const total = tokens.reduce((a, b) => a + b, 0)
      const draw = (rows: number): number[][] =>
        Array.from({ length: rows }, () => Array.from({ length: n }, () => group.random.int(9) - 4))
      const hidden = Array.from({ length: P }, () => draw(total))
      const residual = tokens.map((rows) => draw(Math.max(1, rows)))
      const [weight] = draw(1) as [number[]]
      const [bias] = draw(1) as [number[]]
      const owned = ownedRows(tokens, inner)
      for (const dtype of ['float32', 'bfloat16'] as const) {
        for (const back of [false, true]) {
          await group.run(async ({ comm, device, rank }) => {
            const block = (inner === P ? null : await comm.split({ color: Math.floor(rank / inner) }))!
            const own = Math.floor(rank / inner)
            using x = Tensor.from(hidden[rank]!.flat(), { shape: [total, n], dtype, device })
            using r = Tensor.from(residual[own]!.flat(), { shape: [residual[own]!.length, n], dtype, device })
            using w = Tensor.from(weight, { dtype, device })
            using b = Tensor.from(bias, { dtype, device })
            const groups = back ? { group0: null, group1: block } : { group0: block, group1: null }
            const y = await comm.allReduceResidualBiasRMSNormEx({
              hidden: x,
              residual: r,
              weight: w,
              bias: b,
              eps: 1e-5,
              localTokenNums: tokens,
              ...groups,
            })
            expect(y).toBe(x)
            const [found, kept] = [decode(dtype, await x.bytes()) as Float32Array, decode(dtype, await r.bytes()) as Float32Array]
            for (const [owner, { offset: start, first, last }] of owned.entries()) {
              const ofBlock = Math.floor(owner / inner)
              for (let local = first; local < last; local++) {
                const row = start + local
                const senders = hidden.filter((_, s) => back || Math.floor(s / inner) === ofBlock)
                const stream = residual[ofBlock]![local]!.map((v, j) => v + bias[j]! + senders.reduce((t, s) => t + s[row]![j]!, 0))
                const mine = !back || ofBlock === own
                const wanted = mine ? normed(stream, weight, 1e-5) : hidden[rank]![row]!
                for (const [j, value] of wanted.entries()) {
                  const allowed = (dtype === 'float32' ? 1e-5 : 0.02) * (1 + Math.abs(value))
                  expect(
                    Math.abs(found[row * n + j]! - value),
                    `row ${row}, column ${j}: ${found[row * n + j]}, not ${value}`,
                  ).toBeLessThan(allowed)
                }
                if (ofBlock !== own) continue
                const then = owner === rank ? decode(dtype, encode(dtype, stream)) : residual[own]![local]!
                expect([...kept.subarray(local * n, (local + 1) * n)].map(Number), `residual row ${local}`).toEqual([...then].map(Number))
              }
            }
          })
        }
      }
    })
  }
}

export function pointCases(group: Group, brief: boolean): void {
  messageCases(group, brief)
  if (group.ranks > 16) it.skip('allReduceResidualBiasRMSNormEx with 64 ranks: run with up to 16', () => {})
  else reshardCases(group)
}
