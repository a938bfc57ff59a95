// Collectives that are not awaited one by one: they run in the order of the calls, and their operands may be disposed at once.
import { afterAll, describe, expect, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { sleep } from '../support/outcomes.ts'
import { Random, seed } from '../support/random.ts'

const [a, b] = [await testDevice(), await testDevice()]
afterAll(() => {
  a.dispose()
  b.dispose()
})

const PLACES = { 'one device': [a, a, a, a], 'two devices': [a, a, b, b], 'interleaved ranks': [a, b, a, b] }

for (const [name, devices] of Object.entries(PLACES)) {
  const start = seed()
  const random = new Random(start)

  describe(`${name} (seed ${start})`, () => {
    it('many under way, operands disposed after the call: every result is right', async () => {
      const before = [a.gpu.pool.liveBuffers, b.gpu.pool.liveBuffers]
      const delays = devices.map(() => random.int(4))
      await launch({ ranks: 4, devices }, async ({ comm, device, rank }) => {
        await sleep(delays[rank]!)
        const pending = Array.from({ length: 24 }, (_, i) => {
          using x = Tensor.full([500 + i], (rank + 1) * (i + 1), { device })
          const calls = [() => comm.allReduce(x), () => comm.broadcast(x, { src: i % 4 }), () => comm.allGather(x)]
          const result = calls[i % 3]!()
          using reused = Tensor.full([500 + i], -1, { device }) // may land in memory that x gave back
          void reused
          return result
        })
        for (const [i, result] of pending.entries()) {
          using y = await result
          const found = [...((await y.data()) as Float32Array)]
          const one = [10 * (i + 1), ((i % 4) + 1) * (i + 1)][i % 3]
          const wanted = i % 3 < 2 ? Array(500 + i).fill(one) : [1, 2, 3, 4].flatMap((k) => Array(500 + i).fill(k * (i + 1)))
          expect(found, `collective ${i}`).toEqual(wanted)
        }
      })
      expect([a.gpu.pool.liveBuffers, b.gpu.pool.liveBuffers]).toEqual(before)
    })

    it('a collective sees what the one before it wrote', async () => {
      await launch({ ranks: 4, devices }, async ({ comm, device, rank }) => {
        using residual = Tensor.zeros([2, 8], { device })
        using weight = Tensor.full([8], 1, { device })
        const copies: Promise<Tensor>[] = []
        for (let step = 0; step < 5; step++) {
          using x = Tensor.full([2, 8], rank + step, { device })
          comm.allReduceResidualBiasRMSNorm({ x, residual, weight }).then((y) => y.dispose())
          copies.push(comm.broadcast(residual, { src: (step + 1) % 4 }))
        }
        let sum = 0
        for (const [step, copy] of copies.entries()) {
          sum += 6 + 4 * step
          using y = await copy
          expect([...((await y.data()) as Float32Array)], `step ${step}`).toEqual(Array(16).fill(sum))
        }
      })
    })

    it('results may be awaited in any order', async () => {
      const orders = devices.map(() => Array.from({ length: 8 }, (_, i) => i).sort(() => random.uniform() - 0.5))
      await launch({ ranks: 4, devices }, async ({ comm, device, rank }) => {
        using x = Tensor.full([3], 1, { device })
        const pending = Array.from({ length: 8 }, () => comm.allReduce(x))
        for (const i of orders[rank]!) {
          using y = await pending[i]!
          expect((await y.data())[2]).toBe(4)
        }
      })
    })
  })
}
