// CPU and WebGPU devices beside each other: tensors move between them, and the tree gives both the same bits.
import { afterAll, describe, expect, it } from 'vitest'
import { DTYPES } from '../../runtime/core/dtype.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import { cpuDevices } from '../support/cpu.ts'
import { testDevice } from '../support/device.ts'
import { Random, seed } from '../support/random.ts'
import { FLOATS } from '../support/tensors.ts'

const gpu = await testDevice()
afterAll(() => gpu.dispose())
const start = seed()
const random = new Random(start)
const inOrder = gpu.software ? '' : ': skipped, a GPU may round a product and its sum once'

for (const { name, open } of cpuDevices()) {
  describe(`${name} (seed ${start})`, () => {
    const cpu = open()
    afterAll(() => cpu.dispose())

    it('tensors of every type move there and back, parts of storages too', async () => {
      for (const dtype of DTYPES) {
        const bytes = Uint8Array.from({ length: 8 * 37 }, () => random.int(256))
        const size = Tensor.empty([1], { dtype }).byteLength
        using x = Tensor.fromBytes(bytes, [bytes.length / size], dtype, cpu)
        using there = await x.to(gpu)
        using part = there.narrow(0, 1, there.size - 2)
        using back = await part.to(cpu)
        expect([there.device, back.device, back.dtype]).toEqual([gpu, cpu, dtype])
        expect(await there.bytes(), dtype).toEqual(bytes)
        expect(await back.bytes(), dtype).toEqual(bytes.slice(size, -size))
      }
    })

    it('computes with what the GPU computed, and the other way round', async () => {
      const x = Tensor.from([1, 2, 3, 4], { device: gpu })
      const twice = await gpu.add(x, x).to(cpu)
      const thrice = await cpu.add(twice, await x.to(cpu)).to(gpu)
      expect([...((await gpu.add(thrice, x).data()) as Float32Array)]).toEqual([4, 8, 12, 16])
    })

    it.skipIf(inOrder)(`matmulTree has the bits of the WebGPU device${inOrder}`, async () => {
      for (const dtype of FLOATS) {
        for (const element of FLOATS) {
          const [tokens, k, outs] = [1 + random.int(9), 4 * (1 + random.int(60)), 1 + random.int(40)]
          const x = Tensor.from(random.floats(tokens * k), { shape: [tokens, k], dtype: element })
          const w = Tensor.from(random.floats(outs * k), { shape: [outs, k], dtype })
          const bias = Tensor.from(random.floats(outs))
          for (const options of [
            { block: 32, first: random.int(9) },
            { block: 16, whole: true },
            { block: 12, whole: true, bias },
          ]) {
            const product = async (device: typeof gpu | typeof cpu): Promise<string> => {
              const own = options.bias ? { ...options, bias: await options.bias.to(device) } : options
              return Buffer.from(await device.matmulTree(await x.to(device), await w.to(device), own).bytes()).toString('hex')
            }
            expect(await product(cpu), `${element} by ${dtype}, ${tokens} x ${k} x ${outs}`).toBe(await product(gpu))
          }
        }
      }
    })
  })
}
