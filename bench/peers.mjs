// Matrix products against other libraries on the same adapter: gpu.js in its WebGPU mode, onnxruntime-node's WebGPU provider.
import { createRequire } from 'node:module'
import { openDevice, Tensor } from 'rankmesh'
import { adapterLine, check, median, randomFloats, row, verdict } from './harness.mjs'

export const about =
  'matmul 1024^3 and matvec 4096x4096 float32, against gpu.js (which uploads each time) and onnxruntime-node (faster than both)'

const require = createRequire(import.meta.url)
const CASES = [
  { name: 'matvec 4096x4096', tokens: 1, k: 4096, outs: 4096, rounds: 7 },
  { name: 'matmul 1024^3', tokens: 1024, k: 1024, outs: 1024, rounds: 3 },
]

/** Each contender makes, for operands x [tokens, k] and w [outs, k], a function that computes x w^T and returns the numbers. */
const CONTENDERS = {
  async rankmesh() {
    const device = await openDevice('webgpu')
    adapterLine(device)
    return async (x, w, { tokens, k, outs }) => {
      const xs = Tensor.from(x, { shape: [tokens, k], device })
      const ws = Tensor.from(w, { shape: [outs, k], device })
      await device.sync()
      return async () => {
        const y = device.matmul(xs, ws)
        const data = await y.data()
        y.dispose()
        return data
      }
    }
  },
  async 'gpu.js'() {
    const { GPU, input } = require('gpu.js')
    const { create, globals } = await import('webgpu')
    Object.assign(globalThis, globals)
    Object.defineProperty(globalThis, 'navigator', { value: { gpu: create([]) }, configurable: true })
    const gpu = new GPU({ mode: 'webgpu' })
    return async (x, w, { tokens, k, outs }) => {
      const kernel = gpu
        .createKernel(function product(a, b) {
          let sum = 0
          for (let i = 0; i < this.constants.k; i++) sum += a[this.thread.y][i] * b[this.thread.x][i]
          return sum
        })
        .setConstants({ k })
        .setOutput([outs, tokens])
      const [a, b] = [input(x, [k, tokens]), input(w, [k, outs])]
      return async () => {
        const rows = await kernel(a, b)
        return rows.length === 1 ? rows[0] : Float32Array.from({ length: tokens * outs }, (_, i) => rows[Math.floor(i / outs)][i % outs])
      }
    }
  },
  async 'onnxruntime-node'() {
    const ort = require('onnxruntime-node')
    return async (x, w, { tokens, k, outs }) => {
      const transposed = new Float32Array(w.length)
      for (let o = 0; o < outs; o++) for (let i = 0; i < k; i++) transposed[i * outs + o] = w[o * k + i]
      const session = await ort.InferenceSession.create(matmulModel(transposed, k, outs), { executionProviders: ['webgpu'] })
      const feeds = { a: new ort.Tensor('float32', x, [tokens, k]) }
      return async () => (await session.run(feeds)).c.data
    }
  },
}

export async function run() {
  const makers = {}
  for (const [name, open] of Object.entries(CONTENDERS)) {
    try {
      makers[name] = await open()
    } catch (error) {
      console.log(`${name} is left out: ${String(error.message).split('\n')[0]}`)
      if (name === 'onnxruntime-node') console.log('  (npm install --no-save --ignore-scripts onnxruntime-node)')
    }
  }
  const widths = [18, 18, 12, 14, 8]
  row(['case', '', 'ms', 'of rankmesh', ''], widths)
  for (const shape of CASES) {
    const { tokens, k, outs, rounds } = shape
    const [x, w] = [randomFloats(tokens * k), randomFloats(outs * k)]
    const runs = {}
    let reference
    for (const [name, make] of Object.entries(makers)) {
      try {
        runs[name] = await make(x, w, shape)
        const answer = await runs[name]()
        reference ??= answer
        check(name, answer, reference, 1e-2)
      } catch (error) {
        delete runs[name]
        console.log(`${name} is left out of ${shape.name}: ${String(error.message).split('\n')[0]}`)
      }
    }
    const times = Object.fromEntries(Object.keys(runs).map((name) => [name, []]))
    for (let round = 0; round < rounds; round++) {
      for (const [name, once] of Object.entries(runs)) {
        const start = performance.now()
        await once()
        times[name].push(performance.now() - start)
      }
    }
    const ours = median(times.rankmesh)
    for (const [name, list] of Object.entries(times)) {
      const ratio = median(list) / ours
      row([shape.name, name, median(list).toFixed(1), `${ratio.toFixed(1)}x`, name === 'rankmesh' ? '' : verdict(ratio > 1)], widths)
    }
  }
  process.exit(0) // the other libraries leave handles open
}

/** An ONNX model of one MatMul node, c = a b, with b [k, outs] as an initializer; written by hand: a few fields of a protobuf. */
function matmulModel(b, k, outs) {
  const varint = (n) => (n < 128 ? [n] : [(n & 127) | 128, ...varint(n >>> 7)])
  const field = (id, bytes) => Buffer.concat([Buffer.from([...varint((id << 3) | 2), ...varint(bytes.length)]), Buffer.from(bytes)])
  const text = (id, value) => field(id, Buffer.from(value))
  const number = (id, value) => Buffer.from([...varint(id << 3), ...varint(value)])
  const value = (id, name) => field(id, Buffer.concat([text(1, name), field(2, field(1, number(1, 1)))]))
  const node = Buffer.concat([text(1, 'a'), text(1, 'b'), text(2, 'c'), text(4, 'MatMul')])
  const weights = Buffer.concat([number(1, k), number(1, outs), number(2, 1), text(8, 'b'), field(9, new Uint8Array(b.buffer))])
  const graph = Buffer.concat([field(1, node), text(2, 'g'), field(5, weights), value(11, 'a'), value(12, 'c')])
  return Buffer.concat([number(1, 8), field(7, graph), field(8, number(2, 17))])
}
