// argmax as every device has it: the best of one.
import type { Tensor } from '../core/tensor.ts'
import { expectShape } from './checks.ts'

/** Where the largest of each row of x is, the first of equals. `topK` writes the indices into `out` where it is given one. */
export function argmaxBy(
  topK: (x: Tensor, k: number, out?: Tensor) => { values: Tensor; indices: Tensor },
  x: Tensor,
  { out }: { out?: Tensor } = {},
): Tensor {
  const shape = x.shape.slice(0, -1)
  if (out) expectShape(out, shape, 'out')
  using column = out?.reshape([...shape, 1])
  const best = topK(x, 1, column)
  best.values.dispose()
  if (out) return out
  using indices = best.indices
  return indices.reshape(shape)
}
