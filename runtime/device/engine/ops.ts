// The compute operations of a device with an engine: each checks its operands, then records one command.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import { type Shape, sizeOf } from '../../core/shape.ts'
import { Tensor } from '../../core/tensor.ts'
import { expectDType, expectShape } from '../checks.ts'
import type { Attention, Product, RmsNorm, RopeAppend, SiluMul, TreeProduct } from '../device.ts'
import * as check from '../operands.ts'
import { OP, ROUNDING, TYPE } from './commands.ts'
import type { EngineDevice } from './device.ts'
import { engineStorage, writableStorage } from './memory.ts'
import type { Operand } from './queue.ts'

export function embedding(
  device: EngineDevice,
  ids: Tensor,
  table: Tensor,
  { first = 0, dtype = 'float32', out }: { first?: number; dtype?: DType; out?: Tensor } = {},
): Tensor {
  const { tokens, n, rows, weight, element } = check.checkEmbedding(ids, table, first, out?.dtype ?? dtype)
  const y = result(device, [ids, table], out, [tokens, n], out?.dtype ?? dtype)
  if (y.size > 0) record(device, OP.embedding, [tokens, n, rows, first, TYPE[weight], TYPE[element]], [ids, table, y], [2])
  return y
}

export function matmul(device: EngineDevice, x: Tensor, w: Tensor, options: Product = {}): Tensor {
  const { bias, out, activations = 'none' } = options
  const { tokens, k, outs, element, weight, shape, column } = check.checkMatmul(x, w, options)
  const y = result(device, bias ? [x, w, bias] : [x, w], out, shape, 'float32')
  const sizes = [tokens, k, outs, shape[1] as number, column, ROUNDING[activations]]
  const numbers = [...sizes, TYPE[element], TYPE[weight], Number(bias !== undefined)]
  if (tokens > 0 && outs > 0) record(device, OP.matmul, numbers, [x, w, bias ?? x, y], [3])
  return y
}

export function matmulTree(device: EngineDevice, x: Tensor, w: Tensor, options: TreeProduct): Tensor {
  const { block, first = 0, whole = false, bias, out } = options
  const { tokens, k, outs, element, weight, shape, column } = check.checkTree(x, w, options)
  const y = result(device, bias ? [x, w, bias] : [x, w], out, shape, 'float32')
  const sizes = [tokens, k, outs, block, first, whole ? (shape[1] as number) : outs, column]
  const numbers = [...sizes, TYPE[element], TYPE[weight], Number(bias !== undefined), Number(whole)]
  if (tokens > 0 && outs > 0) record(device, OP.matmulTree, numbers, [x, w, bias ?? x, y], [3])
  return y
}

export function ropeAppend(device: EngineDevice, x: Tensor, options: RopeAppend): Tensor {
  const { table, keys, values, heads, kvHeads, dim, out } = options
  const { tokens, start, position, limit } = check.checkRope(x, options)
  for (const cache of [keys, values]) writableStorage(device.memory, cache.storage)
  const y = result(device, position ? [x, table, position] : [x, table], out, [tokens, heads * dim], 'float32')
  const numbers = [tokens, heads, kvHeads, dim, start, limit, Number(position !== undefined)]
  if (tokens > 0) record(device, OP.rope, numbers, [x, table, y, keys, values, position ?? x], [2, 3, 4])
  return y
}

export function attention(device: EngineDevice, q: Tensor, options: Attention): Tensor {
  const { keys, values, heads, kvHeads, dim, window = 0, scale = 1 / Math.sqrt(dim), portable = false, out } = options
  const { tokens, start, position, limit } = check.checkAttention(q, options, window, scale)
  const y = result(device, position ? [q, keys, values, position] : [q, keys, values], out, [tokens, heads * dim], 'float32')
  const numbers = [tokens, heads, kvHeads, dim, start, window, limit, scale, Number(position !== undefined), Number(portable)]
  if (tokens > 0) record(device, OP.attention, numbers, [q, keys, values, y, position ?? q], [3])
  return y
}

export function siluMul(device: EngineDevice, x: Tensor, { portable = false, out }: SiluMul = {}): Tensor {
  const { rows, n, element } = check.checkSiluMul(x)
  const y = result(device, [x], out, [rows, n], x.dtype)
  if (y.size > 0) record(device, OP.siluMul, [rows, n, TYPE[element], Number(portable)], [x, y], [1])
  return y
}

export function rmsNorm(
  device: EngineDevice,
  x: Tensor,
  weight: Tensor,
  { eps = 1e-6, zeroCentered = false, portable = false, out }: RmsNorm = {},
): Tensor {
  const { rows, n, element } = check.checkRmsNorm(x, weight, eps)
  const y = result(device, [x, weight], out, x.shape, x.dtype)
  const numbers = [rows, n, TYPE[element], eps, Number(zeroCentered), Number(portable)]
  if (y.size > 0) record(device, OP.rmsNorm, numbers, [x, weight, y], [2], IN_PLACE)
  return y
}

export function add(device: EngineDevice, a: Tensor, b: Tensor, { out }: { out?: Tensor } = {}): Tensor {
  const element = check.checkAdd(a, b)
  const y = result(device, [a, b], out, a.shape, a.dtype)
  if (y.size > 0) record(device, OP.add, [a.size, TYPE[element]], [a, b, y], [2], IN_PLACE)
  return y
}

export function softmax(device: EngineDevice, x: Tensor, { out }: { out?: Tensor } = {}): Tensor {
  const n = check.checkSoftmax(x)
  const y = result(device, [x], out, x.shape, 'float32')
  if (y.size > 0) record(device, OP.softmax, [x.size / n, n], [x, y], [1], IN_PLACE)
  return y
}

export function topK(device: EngineDevice, x: Tensor, k: number, outIndices?: Tensor): { values: Tensor; indices: Tensor } {
  const { rows, n } = check.checkTopK(x, k)
  const shape = [...x.shape.slice(0, -1), k]
  const indices = result(device, [x], outIndices, shape, 'uint32')
  const values = Tensor.empty(shape, { device })
  if (rows > 0) record(device, OP.topK, [rows, n, k], [x, values, indices], [1, 2])
  return { values, indices }
}

export function cast(device: EngineDevice, x: Tensor, dtype: DType, { out }: { out?: Tensor } = {}): Tensor {
  const { from, to } = check.checkCast(x, dtype)
  const y = result(device, [x], out, x.shape, dtype)
  if (y.size > 0) record(device, OP.cast, [x.size, TYPE[from], TYPE[to]], [x, y], [1], IN_PLACE)
  return y
}

export function copy(device: EngineDevice, from: Tensor, to: Tensor): void {
  check.checkCopy(from, to)
  checkUsable(device, [from])
  writableStorage(device.memory, to.storage)
  if (from.byteLength > 0) device.queue.record(OP.copy, [from.byteLength], [operandOf(device, from), operandOf(device, to)], [1])
}

/** The op may write exactly where it reads. */
const IN_PLACE = true

/** Records a command. An operand that shares bytes with a written one is read from a copy, unless the two are the same and the op allows it. */
function record(
  device: EngineDevice,
  op: number,
  numbers: readonly number[],
  tensors: readonly Tensor[],
  written: readonly number[],
  inPlace = false,
): void {
  const operands: Operand[] = []
  for (let i = 0; i < tensors.length; i++) operands.push(operandOf(device, tensors[i] as Tensor))
  let copies: { release(): void }[] | undefined
  for (let i = 0; i < tensors.length; i++) {
    const tensor = tensors[i] as Tensor
    if (written.includes(i) || !clashes(tensor, tensors, written, inPlace)) continue
    const copy = device.storage(tensor.byteLength)
    copies = [...(copies ?? []), copy]
    const moved = { block: copy.block, offset: 0 }
    device.queue.record(OP.copy, [tensor.byteLength], [operands[i] as Operand, moved], [1])
    operands[i] = moved
  }
  device.queue.record(op, numbers, operands, written)
  if (copies) for (const copy of copies) copy.release()
}

function clashes(read: Tensor, tensors: readonly Tensor[], written: readonly number[], inPlace: boolean): boolean {
  for (let i = 0; i < written.length; i++) if (clash(read, tensors[written[i] as number] as Tensor, inPlace)) return true
  return false
}

function clash(read: Tensor, write: Tensor, inPlace: boolean): boolean {
  if (read.storage !== write.storage) return false
  const same = read.byteOffset === write.byteOffset && read.byteLength === write.byteLength
  if (same && inPlace) return false
  return read.byteOffset < write.byteOffset + write.byteLength && write.byteOffset < read.byteOffset + read.byteLength
}

function operandOf(device: EngineDevice, tensor: Tensor): Operand {
  return { block: engineStorage(device.memory, tensor.storage).block, offset: tensor.byteOffset }
}

/** `out` where it fits, else a new tensor. The last check of an operation: behind it nothing fails, so nothing is queued in vain. */
function result(device: EngineDevice, operands: readonly Tensor[], out: Tensor | undefined, shape: Shape, dtype: DType): Tensor {
  checkUsable(device, operands)
  if (!out) return new Tensor(device, device.allocate(sizeOf(shape) * dtypeSize(dtype)), shape, dtype)
  expectShape(out, shape, 'out')
  expectDType(out, dtype, 'out')
  writableStorage(device.memory, out.storage)
  return out
}

/** @throws ERR_DEVICE for a tensor that was disposed or is elsewhere, and on a device that is no more. */
function checkUsable(device: EngineDevice, operands: readonly Tensor[]): void {
  if (device.failure) throw device.failure
  for (const tensor of operands) engineStorage(device.memory, tensor.storage)
}
