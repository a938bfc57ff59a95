// prelude/narrow: the quotient is the nearest float32 however the device divides; e4m3 and e2m1 codes of all float16 values.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, expect, it } from 'vitest'
import { decodeFloat16, encodeFp4e2m1, encodeFp8e4m3 } from '../../runtime/core/codecs.ts'
import { testDevice } from '../support/device.ts'
import { Random, seed } from '../support/random.ts'

const device = await testDevice()
afterAll(() => device.dispose())
const start = seed()
const random = new Random(start)
const narrow = readFileSync(join(import.meta.dirname, '../../shaders/prelude/narrow.wgsl'), 'utf8')

/** Runs `y[i] = body` for the words of x, `per` words to a result. */
async function compute(x: Uint32Array<ArrayBuffer>, per: number, body: string, text = narrow): Promise<Uint32Array> {
  const { device: gpu } = device.gpu
  const count = x.length / per
  const code = `${text}
    @group(0) @binding(0) var<storage, read> x: array<u32>;
    @group(0) @binding(1) var<storage, read_write> y: array<u32>;
    @compute @workgroup_size(64)
    fn main(@builtin(global_invocation_id) id: vec3u) {
      let i = id.x;
      if (i < ${count}u) {
        y[i] = ${body};
      }
    }`
  const pipeline = gpu.createComputePipeline({ layout: 'auto', compute: { module: gpu.createShaderModule({ code }) } })
  const make = (size: number, usage: number): GPUBuffer => gpu.createBuffer({ size, usage })
  const from = make(x.byteLength, GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST)
  const to = make(count * 4, GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC)
  const read = make(count * 4, GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST)
  gpu.queue.writeBuffer(from, 0, x)
  const encoder = gpu.createCommandEncoder()
  const pass = encoder.beginComputePass()
  pass.setPipeline(pipeline)
  const entries = [from, to].map((buffer, binding) => ({ binding, resource: { buffer } }))
  pass.setBindGroup(0, gpu.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries }))
  pass.dispatchWorkgroups(Math.ceil(count / 64))
  pass.end()
  encoder.copyBufferToBuffer(to, 0, read, 0, count * 4)
  gpu.queue.submit([encoder.finish()])
  await read.mapAsync(GPUMapMode.READ)
  const result = new Uint32Array(read.getMappedRange().slice(0))
  for (const buffer of [from, to, read]) buffer.destroy()
  return result
}

it.each([-3, -2, -1, 0, 1, 2, 3])('quotients are nearest where the division is %i steps off', async (off) => {
  const pairs = 2 ** 17
  const bits = new Uint32Array(2 * pairs)
  for (let i = 0; i < pairs; i++) {
    // Now and then mantissas at their ends, or equal; exponents that keep the quotient normal.
    const [ma, mb] = [random.bits(), random.bits()].map((m) => [m, m, m, 0, 0x7fffff, m | 0x7ffff0][m >>> 29] ?? m)
    bits[2 * i] = ((80 + random.int(90)) << 23) | (ma! & 0x7fffff)
    bits[2 * i + 1] = ((80 + random.int(90)) << 23) | ((i % 16 === 0 ? ma! : mb!) & 0x7fffff)
  }
  const steps = `q = u32(i32(q) + ${off}); var r = i32(`
  const text = narrow.replace('var r = i32(', steps)
  expect(text).toContain(steps)
  const found = await compute(bits, 2, 'quotient(x[2u * i], x[2u * i + 1u])', text)
  const values = new Float32Array(bits.buffer)
  const wanted = new Uint32Array(Float32Array.from({ length: pairs }, (_, i) => values[2 * i]! / values[2 * i + 1]!).buffer)
  const wrong = found.findIndex((word, i) => word !== wanted[i])
  expect(wrong, `seed ${start}: ${values[2 * wrong]} / ${values[2 * wrong + 1]}`).toBe(-1)
})

it('quotients at the ends: nothing, infinity, NaN, overflow, underflow', async () => {
  const x = Float32Array.of(0, 448, Infinity, 448, 1e-40, 448, 3e38, 1e-3, 1e-30, 1e30, 0.875, 448)
  const found = new Float32Array((await compute(new Uint32Array(x.buffer), 2, 'quotient(x[2u * i], x[2u * i + 1u])')).buffer)
  expect([...found]).toEqual([0, Infinity, 0, Infinity, 0, Math.fround(0.875 / 448)])
})

it('e4m3 and e2m1 codes of every float16, and of its float32 neighbours', async () => {
  const values = decodeFloat16(Uint16Array.from({ length: 65536 }, (_, i) => i))
  const words = new Uint32Array(values.buffer)
  for (const step of [-1, 0, 1]) {
    const x = words.map((word) => ((word & 0x7fffffff) === 0 || (word & 0x7f800000) === 0x7f800000 ? word : word + step))
    const floats = new Float32Array(x.buffer)
    const spread = 'vec4f(bitcast<f32>(x[i]), 0.0, 0.0, 0.0)'
    const fp8 = await compute(x, 1, `pack_e4m3(magnitudes(${spread}), ${spread})`)
    const fp4 = await compute(x, 1, `pack_e2m1(magnitudes(${spread}), ${spread})`)
    for (let i = 0; i < 65536; i++) {
      const nan = Number.isNaN(floats[i]!) ? 0x7f | ((x[i]! >>> 24) & 0x80) : encodeFp8e4m3(floats[i]!)
      if (fp8[i] !== nan || fp4[i] !== encodeFp4e2m1(floats[i]!)) {
        throw new Error(`${floats[i]}: e4m3 ${fp8[i]}, expected ${nan}; e2m1 ${fp4[i]}, expected ${encodeFp4e2m1(floats[i]!)}`)
      }
    }
  }
})
