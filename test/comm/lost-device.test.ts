// A device that is disposed or lost under a running group: ERR_DEVICE on every rank, in pending and later calls, and no hang.
import { describe, expect, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import type { RankContext } from '../../runtime/scheduler/launch.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { codes, errorOf, outcomes, sleep } from '../support/outcomes.ts'

const ENDS: Record<string, (device: WebGpuDevice) => void> = {
  disposed: (device) => device.dispose(),
  lost: (device) => device.gpu.device.destroy(),
}

const ones = ({ device }: RankContext, n = 64): Tensor => Tensor.full([n], 1, { device })

for (const [how, end] of Object.entries(ENDS)) {
  describe(`a device that is ${how}`, () => {
    it('while its ranks wait for one another', async () => {
      const device = await testDevice()
      const { errors, thrown, ms } = await outcomes({ ranks: 4, device }, async (c) => {
        await c.comm.barrier()
        if (c.rank === 3) {
          await sleep(5)
          end(device)
          await sleep(20)
        }
        const pending = await errorOf(c.comm.barrier())
        expect((await errorOf(c.comm.allReduce({} as Tensor))).code).toBe('ERR_DEVICE')
        throw pending
      })
      expect(codes(errors)).toEqual(Array(4).fill('ERR_DEVICE'))
      expect(thrown?.error).toMatchObject({ code: 'ERR_DEVICE' })
      expect(ms).toBeLessThan(2000)
    })

    it('while its ranks read a result', async () => {
      const device = await testDevice()
      const { errors } = await outcomes({ ranks: 2, device }, async (c) => {
        const y = await c.comm.allReduce(ones(c, 100_000))
        if (c.rank === 0) setTimeout(() => end(device), 0)
        for (let i = 0; i < 100; i++) {
          await y.data()
          await c.comm.allReduce(ones(c))
        }
      })
      expect(codes(errors)).toEqual(['ERR_DEVICE', 'ERR_DEVICE'])
    })

    for (const when of ['before', 'during'] as const) {
      it(`one of two, ${when} an exchange: the ranks on the other hear of it too`, async () => {
        const [a, b] = [await testDevice(), await testDevice()]
        const live = a.gpu.pool.liveBuffers
        const { errors, thrown, ms } = await outcomes({ ranks: 4, devices: [a, b] }, async (c) => {
          using x = ones(c, 4096)
          const first = await c.comm.allReduce(x)
          await first.data()
          first.dispose()
          if (c.rank === 3) {
            if (when === 'before') end(b)
            await sleep(10)
          }
          const pending = c.comm.allReduce(x)
          if (when === 'during' && c.rank === 3) end(b)
          const error = await errorOf(pending)
          expect((await errorOf(c.comm.barrier())).code).toBe('ERR_DEVICE')
          throw error
        })
        expect(codes(errors)).toEqual(Array(4).fill('ERR_DEVICE'))
        expect(thrown?.error).toMatchObject({ code: 'ERR_DEVICE' })
        expect(ms).toBeLessThan(2000)
        expect(a.gpu.pool.liveBuffers, 'buffers left on the other device').toBe(live)
        expect(await launch({ ranks: 2, device: a }, async (c) => (await (await c.comm.allReduce(ones(c))).data())[0])).toEqual([2, 2])
        a.dispose()
        b.dispose()
      })
    }

    it('before the program: launch says so', async () => {
      const device = await testDevice()
      end(device)
      await sleep(20)
      let started = 0
      expect(await errorOf(launch({ ranks: 2, device }, () => started++))).toMatchObject({ code: 'ERR_DEVICE' })
      expect(started).toBe(0)
    })

    it('in a group split from the whole; a group on the other device goes on', async () => {
      const [a, b] = [await testDevice(), await testDevice()]
      const { errors } = await outcomes({ ranks: 4, devices: [a, b] }, async (c) => {
        const own = await c.comm.split({ color: c.rank >> 1 })
        if (c.rank === 3) {
          end(b)
          await sleep(20)
        }
        if (c.rank >= 2) throw await errorOf(own!.barrier())
        await sleep(30)
        expect((await (await own!.allReduce(ones(c))).data())[5]).toBe(2)
      })
      expect(codes(errors)).toEqual([undefined, undefined, 'ERR_DEVICE', 'ERR_DEVICE'])
      a.dispose()
    })
  })
}

describe('an allocation that a device does not allow', () => {
  it('ERR_OUT_OF_MEMORY on every rank; nothing is left over, and the group goes on', async () => {
    const [a, b] = [await testDevice(), await testDevice()]
    for (const devices of [[a], [a, b]]) {
      const held = (): number => a.gpu.pool.liveBuffers + b.gpu.pool.liveBuffers
      const before = held()
      const limit = a.gpu.device.limits.maxStorageBufferBindingSize
      await launch({ ranks: 4, devices }, async (c) => {
        const error = await errorOf(c.comm.allocate([Math.ceil(limit / 2)]))
        expect(error.code).toBe('ERR_OUT_OF_MEMORY')
        using x = ones(c)
        using y = await c.comm.allReduce(x)
        expect((await y.data())[0]).toBe(4)
      })
      expect(held()).toBe(before)
    }
    a.dispose()
    b.dispose()
  })
})
