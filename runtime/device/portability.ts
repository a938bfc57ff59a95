// Whether a device answers portable operations with the bits that core/portable.ts defines: a driver's compiler may change arithmetic.
import { Tensor } from '../core/tensor.ts'
import { CpuDevice } from './cpu/device.ts'
import type { Device } from './device.ts'

const [TOKENS, HEADS, KV_HEADS, DIM, ROWS] = [3, 4, 2, 20, 7]
const WIDTH = (HEADS + 2 * KV_HEADS) * DIM

/** The first operation whose bits are others, by name; null where there is none. Takes some milliseconds. */
export async function unportable(device: Device): Promise<string | null> {
  const [expected, received] = (await Promise.all([answers(CpuDevice.open(null)), answers(device)])) as [Answers, Answers]
  for (const [name, bytes] of Object.entries(expected)) if (!bytes.every((byte, i) => byte === received[name]?.[i])) return name
  return null
}

type Answers = Record<string, Uint8Array>

/** What each operation makes of the same numbers. */
async function answers(device: Device): Promise<Answers> {
  let state = 1
  const random = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.fround(8 * (state / 2 ** 32) - 4)
  }
  const tensor = (...shape: [number, number]): Tensor =>
    Tensor.from(Float32Array.from({ length: shape[0] * shape[1] }, random), { shape, device })
  const cache = (): Tensor => tensor(ROWS, KV_HEADS * DIM)
  const tensors: Record<string, Tensor> = {
    x: tensor(TOKENS, WIDTH),
    table: tensor(ROWS, DIM),
    keys: cache(),
    values: cache(),
    w: tensor(9, WIDTH),
  }
  const { x, table, keys, values, w } = tensors as Record<'x' | 'table' | 'keys' | 'values' | 'w', Tensor>
  const shape = { keys, values, heads: HEADS, kvHeads: KV_HEADS, dim: DIM, start: ROWS - TOKENS }
  using gamma = Tensor.from(Float32Array.from({ length: WIDTH }, random), { shape: [WIDTH], device })
  using angles = table.reshape([ROWS, DIM / 2, 2])
  const q = device.ropeAppend(x, { ...shape, table: angles })
  const results = {
    ropeAppend: q,
    attention: device.attention(q, { ...shape, portable: true }),
    siluMul: device.siluMul(x, { portable: true }),
    rmsNorm: device.rmsNorm(x, gamma, { portable: true }),
    matmulTree: device.matmulTree(x, w, { block: 32, whole: true }),
  }
  const named = await Promise.all(Object.entries(results).map(async ([name, result]) => [name, await result.bytes()] as const))
  for (const each of [...Object.values(tensors), ...Object.values(results)]) each.dispose()
  return Object.fromEntries(named)
}
