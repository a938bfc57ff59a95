// Products by every kernel against float64: the cases of every device, on the WebGPU one.
import { afterAll } from 'vitest'
import { matmulCases } from '../support/cases/matmul.ts'
import { testDevice } from '../support/device.ts'
import { FLOATS } from '../support/tensors.ts'
import { type ProductWay, tuned } from '../support/ways.ts'

const device = await testDevice()
afterAll(() => device.dispose())

const ALL = FLOATS.flatMap((x) => FLOATS.map((w) => [x, w] as const))
/** For the kernel that software adapters take half a second to compile. */
const SOME: ProductWay['types'] = [
  ['float32', 'float32'],
  ['float32', 'bfloat16'],
  ['bfloat16', 'float16'],
  ['float16', 'float32'],
]
const alone = tuned(device, { tiled: true, matvecLanes: 1, row: 64 })
const shared = tuned(device, { tiled: true, matvecLanes: 16, row: 256 })

// The ways a product can take, by the kernel they lead to.
matmulCases(device, [
  { name: 'matmul', run: tuned(device, { tiled: false }), tokens: [1, 3, 4, 5, 8, 17], types: ALL },
  { name: 'matvec, 1 lane a row', run: alone, tokens: [1, 3, 4], types: ALL },
  { name: 'matvec, 16 lanes a row', run: shared, tokens: [1, 4], types: ALL },
  { name: 'matmul_tiled', run: shared, tokens: [5, 64, 65], types: SOME },
])
