// Runs what onnx_products.py wrote, by onnxruntime-node: for each line "decode N" of its input, tokens a second.
// node onnx-products.mjs MODULE MODEL HIDDEN THREADS, where MODULE is onnxruntime-node's entry file.
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'

const [module, model, hidden, threads] = process.argv.slice(2)
const { InferenceSession, Tensor } = createRequire(import.meta.url)(module)
const session = await InferenceSession.create(model, {
  intraOpNumThreads: Number(threads),
  interOpNumThreads: 1,
  executionProviders: ['cpu'],
})
const x = new Tensor(
  'float32',
  Float32Array.from({ length: Number(hidden) }, () => Math.random() - 0.5),
  [1, Number(hidden)],
)
const step = () => session.run({ x })
await step()
console.log(JSON.stringify({ ready: true }))
for await (const line of createInterface({ input: process.stdin })) {
  const count = Number(line.split(' ')[1])
  for (let i = 0; i < 8; i++) await step()
  const start = performance.now()
  for (let i = 0; i < count; i++) await step()
  console.log(JSON.stringify({ rate: (1000 * count) / (performance.now() - start) }))
}
