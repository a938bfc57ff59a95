// Calls with bad operands, by the code they are refused with; nothing may be queued or stay allocated.
import { beforeAll, describe, expect, it } from 'vitest'
import type { DType } from '../../../runtime/core/dtype.ts'
import type { ErrorCode } from '../../../runtime/core/errors.ts'
import type { Shape } from '../../../runtime/core/shape.ts'
import { Tensor } from '../../../runtime/core/tensor.ts'
import type { Device } from '../../../runtime/device/device.ts'

/** `other` is a device of the same kind; `state` tells what a refused call must leave as it was. */
export function refusalCases(device: Device, other: Device, state: () => unknown): void {
  const cache = new Map<string, Tensor>()
  /** A tensor of zeros, made once, so that a refused call is the only thing that could queue work. */
  function t(shape: Shape, dtype: DType = 'float32', on: Device = device): Tensor {
    const key = `${shape} ${dtype} ${on === device}`
    const known = cache.get(key) ?? Tensor.zeros(shape, { dtype, device: on })
    cache.set(key, known)
    return known
  }
  const gone = Tensor.zeros([4, 4], { device })
  gone.dispose()
  const frozen = Tensor.zeros([4, 4], { device })
  Object.assign(frozen.storage, { readOnly: true })

  const rope = { heads: 2, kvHeads: 1, dim: 4, start: 0 }
  const ropeParts = (): { table: Tensor; keys: Tensor; values: Tensor } => ({ table: t([8, 2, 2]), keys: t([8, 4]), values: t([8, 4]) })
  const attentionParts = (): { keys: Tensor; values: Tensor } => ({ keys: t([8, 4]), values: t([8, 4]) })
  const foreign = (shape: Shape, dtype?: DType): Tensor => t(shape, dtype, other)

  const SHAPE: Record<string, () => unknown> = {
    'add: other shape': () => device.add(t([4]), t([5])),
    'add: same size, other shape': () => device.add(t([4, 2]), t([2, 4])),
    'add: out of another shape': () => device.add(t([4]), t([4]), { out: t([5]) }),
    'matmul: k differs': () => device.matmul(t([2, 4]), t([3, 5])),
    'matmul: x not a matrix': () => device.matmul(t([4]), t([3, 4])),
    'matmul: w not a matrix': () => device.matmul(t([2, 4]), t([1, 3, 4])),
    'matmul: no columns': () => device.matmul(t([2, 0]), t([3, 0])),
    'matmul: bias of another length': () => device.matmul(t([2, 4]), t([3, 4]), { bias: t([4]) }),
    'matmul: out of another shape': () => device.matmul(t([2, 4]), t([3, 4]), { out: t([3, 2]) }),
    'rmsNorm: weight of another length': () => device.rmsNorm(t([2, 4]), t([2])),
    'rmsNorm: a scalar': () => device.rmsNorm(t([]), t([1])),
    'rmsNorm: out of another shape': () => device.rmsNorm(t([2, 4]), t([4]), { out: t([8]) }),
    'siluMul: odd width': () => device.siluMul(t([2, 5])),
    'siluMul: not a matrix': () => device.siluMul(t([8])),
    'siluMul: out of another shape': () => device.siluMul(t([2, 8]), { out: t([2, 8]) }),
    'softmax: a scalar': () => device.softmax(t([])),
    'softmax: out of another shape': () => device.softmax(t([2, 4]), { out: t([4, 2]) }),
    'argmax: empty rows': () => device.argmax(t([2, 0])),
    'argmax: out of another shape': () => device.argmax(t([2, 4]), { out: t([4], 'uint32') }),
    'argmax: out of the same size': () => device.argmax(t([2, 2, 4]), { out: t([4], 'uint32') }),
    'topK: a scalar': () => device.topK(t([]), 1),
    'embedding: ids not a list': () => device.embedding(t([2, 2], 'uint32'), t([8, 4])),
    'embedding: table not a matrix': () => device.embedding(t([2], 'uint32'), t([8])),
    'embedding: out of another shape': () => device.embedding(t([2], 'uint32'), t([8, 4]), { out: t([4, 2]) }),
    'cast: out of another shape': () => device.cast(t([4]), 'float16', { out: t([5], 'float16') }),
    'copy: another size': () => device.copy(t([4]), t([5])),
    'ropeAppend: x of another width': () => device.ropeAppend(t([2, 15]), { ...rope, ...ropeParts() }),
    'ropeAppend: table too short': () => device.ropeAppend(t([2, 16]), { ...rope, ...ropeParts(), table: t([1, 2, 2]) }),
    'ropeAppend: table of other heads': () => device.ropeAppend(t([2, 16]), { ...rope, ...ropeParts(), table: t([8, 4, 2]) }),
    'ropeAppend: past the cache': () => device.ropeAppend(t([2, 16]), { ...rope, ...ropeParts(), start: 7 }),
    'ropeAppend: values unlike keys': () => device.ropeAppend(t([2, 16]), { ...rope, ...ropeParts(), values: t([9, 4]) }),
    'attention: q of another width': () => device.attention(t([2, 7]), { ...rope, ...attentionParts() }),
    'attention: past the cache': () => device.attention(t([2, 8]), { ...rope, ...attentionParts(), start: 7 }),
    'attention: keys of other heads': () => device.attention(t([2, 8]), { ...rope, keys: t([8, 8]), values: t([8, 8]) }),
    'attention: head size no multiple of 4': () => device.attention(t([2, 12]), { ...rope, dim: 6, keys: t([8, 6]), values: t([8, 6]) }),
    'attention: head too wide': () => device.attention(t([2, 520]), { ...rope, dim: 260, keys: t([8, 260]), values: t([8, 260]) }),
  }

  const DTYPE: Record<string, () => unknown> = {
    'add: two types': () => device.add(t([4]), t([4], 'float16')),
    'add: a type it does not know': () => device.add(t([4], 'int8'), t([4], 'int8')),
    'add: out of another type': () => device.add(t([4]), t([4]), { out: t([4], 'bfloat16') }),
    'matmul: integers': () => device.matmul(t([2, 4], 'int32'), t([3, 4])),
    'matmul: weight of fp8': () => device.matmul(t([2, 4]), t([3, 4], 'float8_e4m3fn')),
    'matmul: bias of 16 bits': () => device.matmul(t([2, 4]), t([3, 4]), { bias: t([3], 'bfloat16') }),
    'matmul: out of 16 bits': () => device.matmul(t([2, 4]), t([3, 4]), { out: t([2, 3], 'float16') }),
    'rmsNorm: weight of another type': () => device.rmsNorm(t([2, 4]), t([4], 'bfloat16')),
    'rmsNorm: integers': () => device.rmsNorm(t([2, 4], 'int32'), t([4], 'int32')),
    'siluMul: integers': () => device.siluMul(t([2, 8], 'uint32')),
    'softmax: 16 bits': () => device.softmax(t([2, 4], 'float16')),
    'argmax: 16 bits': () => device.argmax(t([2, 4], 'bfloat16')),
    'argmax: out of another type': () => device.argmax(t([2, 4]), { out: t([2], 'int32') }),
    'topK: integers': () => device.topK(t([2, 4], 'int32'), 1),
    'embedding: signed ids': () => device.embedding(t([2], 'int32'), t([8, 4])),
    'embedding: table of integers': () => device.embedding(t([2], 'uint32'), t([8, 4], 'int32')),
    'embedding: to integers': () => device.embedding(t([2], 'uint32'), t([8, 4]), { dtype: 'int32' }),
    'cast: from integers': () => device.cast(t([4], 'int32'), 'float32'),
    'cast: to integers': () => device.cast(t([4]), 'uint8'),
    'cast: out of another type': () => device.cast(t([4]), 'float16', { out: t([4], 'bfloat16') }),
    'copy: another type': () => device.copy(t([4]), t([4], 'int32')),
    'ropeAppend: 16 bits': () => device.ropeAppend(t([2, 16], 'float16'), { ...rope, ...ropeParts() }),
    'ropeAppend: cache of 16 bits': () => device.ropeAppend(t([2, 16]), { ...rope, ...ropeParts(), keys: t([8, 4], 'bfloat16') }),
    'attention: q of 16 bits': () => device.attention(t([2, 8], 'bfloat16'), { ...rope, ...attentionParts() }),
    'attention: cache of 16 bits': () => device.attention(t([2, 8]), { ...rope, ...attentionParts(), values: t([8, 4], 'float16') }),
  }

  const ARGUMENT: Record<string, () => unknown> = {
    'topK: none': () => device.topK(t([2, 4]), 0),
    'topK: more than there are': () => device.topK(t([2, 4]), 5),
    'topK: half of one': () => device.topK(t([2, 4]), 1.5),
    'rmsNorm: negative eps': () => device.rmsNorm(t([2, 4]), t([4]), { eps: -1 }),
    'rmsNorm: eps not a number': () => device.rmsNorm(t([2, 4]), t([4]), { eps: Number.NaN }),
    'embedding: negative first': () => device.embedding(t([2], 'uint32'), t([8, 4]), { first: -1 }),
    'attention: heads not shared evenly': () =>
      device.attention(t([2, 12]), { ...rope, heads: 3, kvHeads: 2, keys: t([8, 8]), values: t([8, 8]) }),
    'attention: negative window': () => device.attention(t([2, 8]), { ...rope, ...attentionParts(), window: -1 }),
    'attention: scale not a number': () => device.attention(t([2, 8]), { ...rope, ...attentionParts(), scale: Number.NaN }),
    'attention: negative start': () => device.attention(t([2, 8]), { ...rope, ...attentionParts(), start: -1 }),
    'ropeAppend: odd head size': () => device.ropeAppend(t([2, 12]), { ...rope, ...ropeParts(), dim: 3 }),
    'ropeAppend: start of half a row': () => device.ropeAppend(t([2, 16]), { ...rope, ...ropeParts(), start: 0.5 }),
  }

  const DEVICE: Record<string, () => unknown> = {
    'add: disposed': () => device.add(gone, t([4, 4])),
    'add: second one elsewhere': () => device.add(t([4]), foreign([4])),
    'add: out elsewhere': () => device.add(t([4]), t([4]), { out: foreign([4]) }),
    'add: in host memory': () => device.add(t([4]), Tensor.zeros([4])),
    'add: out that nobody may write': () => device.add(t([4, 4]), t([4, 4]), { out: frozen }),
    'matmul: bias elsewhere': () => device.matmul(t([5, 6]), t([3, 6]), { bias: foreign([3]) }),
    'matmul: w disposed': () => device.matmul(t([2, 4]), gone),
    'matmul: out elsewhere': () => device.matmul(t([2, 6]), t([3, 6]), { out: foreign([2, 3]) }),
    'rmsNorm: weight elsewhere': () => device.rmsNorm(t([2, 5], 'bfloat16'), foreign([5], 'bfloat16')),
    'siluMul: disposed': () => device.siluMul(gone),
    'softmax: disposed': () => device.softmax(gone),
    'topK: elsewhere': () => device.topK(foreign([2, 4]), 1),
    'argmax: disposed': () => device.argmax(gone),
    'embedding: ids elsewhere': () => device.embedding(foreign([2], 'uint32'), t([8, 5])),
    'embedding: table elsewhere': () => device.embedding(t([2], 'uint32'), foreign([8, 5])),
    'cast: elsewhere': () => device.cast(foreign([4]), 'float16'),
    'copy: from elsewhere': () => device.copy(foreign([4]), t([4])),
    'copy: to elsewhere': () => device.copy(t([4]), foreign([4])),
    'copy: to what nobody may write': () => device.copy(t([4, 4]), frozen),
    'ropeAppend: values elsewhere': () => device.ropeAppend(t([2, 16]), { ...rope, ...ropeParts(), values: foreign([8, 4]) }),
    'ropeAppend: table elsewhere': () => device.ropeAppend(t([2, 16]), { ...rope, ...ropeParts(), table: foreign([8, 2, 2]) }),
    'attention: keys elsewhere': () => device.attention(t([2, 8]), { ...rope, ...attentionParts(), keys: foreign([8, 4]) }),
    'write: past the end': () => device.write(t([4]).storage, 8, new Uint8Array(12)),
    'write: what nobody may write': () => device.write(frozen.storage, 0, new Uint8Array(4)),
    'set: disposed': () => gone.set(new Array(16).fill(0)),
  }

  const cases: readonly [ErrorCode, Record<string, () => unknown>][] = [
    ['ERR_SHAPE', SHAPE],
    ['ERR_DTYPE', DTYPE],
    ['ERR_ARGUMENT', ARGUMENT],
    ['ERR_DEVICE', DEVICE],
  ]

  for (const [code, calls] of cases) {
    describe(code, () => {
      // First once, to make the operands.
      beforeAll(async () => {
        for (const call of Object.values(calls)) expect(call).toThrow()
        await device.sync()
      })

      for (const [name, call] of Object.entries(calls)) {
        it(name, () => {
          const before = state()
          expect(call).toThrow(expect.objectContaining({ code }))
          expect(state()).toEqual(before)
        })
      }
    })
  }

  it('reads of what was disposed, or is elsewhere, reject', async () => {
    await expect(gone.data()).rejects.toMatchObject({ code: 'ERR_DEVICE' })
    await expect(device.read(foreign([4]).storage, 0, 4)).rejects.toMatchObject({ code: 'ERR_DEVICE' })
  })

  it('the device works on after all these', async () => {
    expect([...((await device.add(t([4]), t([4])).data()) as Float32Array)]).toEqual([0, 0, 0, 0])
  })
}
