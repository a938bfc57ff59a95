// Order, memory, times and the end of a device whose commands an engine runs: of commands of one rank and of several.
import { afterAll, describe, expect, it } from 'vitest'
import { Tensor } from '../../../runtime/core/tensor.ts'
import type { EngineDevice } from '../../../runtime/device/engine/device.ts'
import { Random, seed } from '../random.ts'

const start = seed()
const random = new Random(start)
const numbers = async (tensor: Tensor): Promise<number[]> => [...((await tensor.data()) as Float32Array)]

export function engineCases(name: string, open: () => EngineDevice): void {
  describe(`order on ${name} (seed ${start})`, () => {
    const device = open()
    afterAll(() => device.dispose())
    const ranks = [device.view(), device.view(), device.view()] as const
    const [first, second] = ranks

    /** Work that keeps a rank's queue busy for a while. */
    function busy(rank: EngineDevice, count: number): void {
      const w = Tensor.full([64, 512], 0.001, { device: rank })
      for (let i = 0; i < count; i++) rank.matmul(Tensor.full([8, 512], 1, { device: rank }), w).dispose()
    }

    it('a read sees what was written before it, and nothing of what comes after', async () => {
      busy(device, 20)
      const x = Tensor.from([1, 2, 3, 4], { device })
      const before = x.data()
      x.set([5, 6, 7, 8])
      const between = x.data()
      device.add(x, x, { out: x })
      const after = x.data()
      expect((await Promise.all([before, between, after])).map((data) => [...(data as Float32Array)])).toEqual([
        [1, 2, 3, 4],
        [5, 6, 7, 8],
        [10, 12, 14, 16],
      ])
    })

    it('an upload into memory that earlier commands use comes after them', async () => {
      const x = Tensor.from([1, 2, 3, 4], { device })
      busy(device, 20)
      const twice = device.add(x, x)
      x.set([10, 20, 30, 40])
      const again = device.add(x, x)
      x.set([0, 0, 0, 0])
      expect([await numbers(twice), await numbers(again), await numbers(x)]).toEqual([
        [2, 4, 6, 8],
        [20, 40, 60, 80],
        [0, 0, 0, 0],
      ])
    })

    it('a rank reads what another computes, and overwrites what another has yet to read', async () => {
      busy(first, 20)
      const x = first.add(Tensor.from([1, 2, 3, 4], { device: first }), Tensor.from([1, 1, 1, 1], { device: first }))
      const y = second.add(x, x)
      busy(first, 20)
      const z = first.add(x, x)
      second.copy(Tensor.from([9, 9, 9, 9], { device: second }), x)
      expect(await numbers(y)).toEqual([4, 6, 8, 10])
      expect(await numbers(z)).toEqual([4, 6, 8, 10])
      expect(await numbers(x)).toEqual([9, 9, 9, 9])
    })

    it('memory freed by one rank and used by another carries nothing over', async () => {
      for (let round = 0; round < 20; round++) {
        const x = Tensor.from(new Float32Array(4096).fill(1), { device: first })
        busy(first, 3)
        const kept = first.add(x, x)
        x.dispose()
        const y = Tensor.from(new Float32Array(4096).fill(7), { device: second })
        const z = second.add(y, y)
        expect((await numbers(kept)).every((v) => v === 2)).toBe(true)
        expect((await numbers(z)).every((v) => v === 14)).toBe(true)
        for (const tensor of [kept, y, z]) tensor.dispose()
      }
    })

    it('ranks that take turns on one tensor do not wait for one another in a circle', async () => {
      const x = Tensor.zeros([4], { device })
      const one = Tensor.full([4], 1, { device })
      for (let step = 0; step < 600; step++) (ranks[step % 3] as EngineDevice).add(x, one, { out: x })
      expect(await numbers(x)).toEqual([600, 600, 600, 600])
    })

    it('a long random program gives what the same program gives in plain loops', async () => {
      const tensors = Array.from({ length: 6 }, () => Tensor.from(random.floats(8), { device }))
      const plain = await Promise.all(tensors.map(async (tensor) => (await tensor.data()) as Float32Array))
      for (let step = 0; step < 1000; step++) {
        const [a, b, c] = [random.int(6), random.int(6), random.int(6)]
        const rank = ranks[random.int(3)] as EngineDevice
        const [x, y, z] = [tensors[a], tensors[b], tensors[c]] as [Tensor, Tensor, Tensor]
        const [p, q, r] = [plain[a], plain[b], plain[c]] as [Float32Array, Float32Array, Float32Array]
        const kind = random.int(5)
        if (kind === 0) {
          const values = random.floats(8)
          rank.write(x.storage, 0, new Uint8Array(values.buffer))
          p.set(values)
        } else if (kind === 1) {
          rank.copy(x, y)
          q.set(p)
        } else if (kind === 2) {
          rank.copy(x.narrow(0, 1, 3), y.narrow(0, 4, 3))
          q.set(p.slice(1, 4), 4)
        } else if (kind === 3) {
          rank.add(x, y, { out: z })
          r.set(p.map((v, i) => Math.fround(v + (q[i] as number))))
        } else if (step % 10 === 0) {
          expect(new Float32Array((await rank.read(x.storage, 0, 32)).buffer), `step ${step}`).toEqual(p)
        }
      }
      for (const [i, tensor] of tensors.entries()) expect(await tensor.data(), `tensor ${i}`).toEqual(plain[i])
    })
  })

  describe(`memory, times and the end on ${name}`, () => {
    it('moves tensors between host memory, devices and views', async () => {
      using device = open()
      using other = open()
      const view = device.view()
      const values = random.floats(1000)
      const host = Tensor.from(values, { dtype: 'bfloat16' })
      const back = await (await (await (await host.to(device)).to(view)).to(other)).bytes()
      expect(back).toEqual(await host.bytes())
    })

    it('gives all memory back', async () => {
      using device = open()
      for (let round = 0; round < 3; round++) {
        using x = Tensor.from(random.floats(3000), { shape: [3, 1000], device })
        using y = device.softmax(x)
        device.add(x, y, { out: x })
        using z = device.matmul(x, y)
        expect((await z.data()).length).toBe(9)
      }
      expect(device.memory.liveBlocks).toBe(0)
    })

    it('says so where there is not enough', () => {
      using device = open()
      expect(() => device.allocate(2 ** 45)).toThrow(expect.objectContaining({ code: 'ERR_OUT_OF_MEMORY' }))
    })

    it('times kernels by op and types', async () => {
      using device = open()
      const [x, w] = [Tensor.full([2, 64], 1, { device }), Tensor.full([32, 64], 1, { dtype: 'bfloat16', device })]
      const times = await device.profile(async () => {
        for (let i = 0; i < 3; i++) device.softmax(device.matmul(x, w))
      })
      expect(times.map(({ kernel, runs }) => [kernel, runs]).sort()).toEqual([
        ['matmul f32 bf16', 3],
        ['softmax', 3],
      ])
      for (const { nanoseconds } of times) expect(nanoseconds).toBeGreaterThan(0)
    })

    it('disposed: what is under way and what comes later fails, for every view; another device works', async () => {
      const device = open()
      const view = device.view()
      const x = Tensor.full([64, 512], 1, { device: view })
      let y = x
      for (let i = 0; i < 200; i++) y = view.add(y, x)
      const reading = y.data()
      const waiting = view.sync()
      device.dispose()
      device.dispose()
      // Loops have run what was handed over when the device ends, native queues have not.
      for (const pending of [reading, waiting]) await expect(pending).rejects.toMatchObject({ code: 'ERR_DEVICE' })
      expect(() => view.add(x, x)).toThrow(expect.objectContaining({ code: 'ERR_DEVICE' }))
      expect(() => Tensor.zeros([1], { device })).toThrow(expect.objectContaining({ code: 'ERR_DEVICE' }))
      await expect(x.data()).rejects.toMatchObject({ code: 'ERR_DEVICE' })
      x.dispose()
      using next = open()
      expect(await numbers(next.add(Tensor.from([1], { device: next }), Tensor.from([2], { device: next })))).toEqual([3])
    })
  })
}
