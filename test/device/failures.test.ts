// Failures of the device: memory that is not there, refused commands, loss and disposal reach whoever waits, and leave the rest working.
import { afterAll, describe, expect, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import { adoptDevice, openDevice } from '../../runtime/device/open.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import { rangeOf } from '../../runtime/device/webgpu/launch.ts'
import { testDevice } from '../support/device.ts'
import { faulty, rawDevice } from '../support/injected.ts'

const device = await testDevice()
afterAll(() => device.dispose())

const adopt = (raw: GPUDevice): WebGpuDevice => adoptDevice(raw, { name: 'webgpu:test', software: true }) as WebGpuDevice
const MEMORY = { code: 'ERR_OUT_OF_MEMORY' }
const DEVICE = { code: 'ERR_DEVICE' }
const outOfMemory = (): GPUError => new GPUOutOfMemoryError('simulated')

/** That the device computes. */
async function works(on: WebGpuDevice): Promise<void> {
  const x = Tensor.from([1, 2, 3], { device: on })
  expect([...((await on.add(x, x).data()) as Float32Array)]).toEqual([2, 4, 6])
}

/** Records a copy from behind the end of a buffer. */
function recordNonsense(on: WebGpuDevice): void {
  const range = rangeOf(on.gpu, Tensor.zeros([64], { device: on }))
  const to = rangeOf(on.gpu, Tensor.zeros([64], { device: on }))
  on.sink.record({ kind: 'copy', from: { ...range, offset: 2 ** 20 }, to })
}

describe('memory', () => {
  it('a buffer larger than the device allows is refused at the call', async () => {
    const limit = device.gpu.device.limits.maxStorageBufferBindingSize
    expect(() => Tensor.empty([limit / 4 + 1], { device })).toThrow(expect.objectContaining(MEMORY))
    await works(device)
  })

  it('a failed allocation fails the reads that wait, and later work succeeds', async () => {
    let failing = false
    const raw = await rawDevice()
    const mine = adopt(
      faulty(raw, {
        scope: (filter) => {
          if (!failing || filter !== 'out-of-memory') return undefined
          failing = false
          return outOfMemory()
        },
      }),
    )
    await works(mine)
    const fine = Tensor.from([1, 2, 3], { device: mine })
    failing = true
    const missing = Tensor.empty([300_000], { device: mine })
    const reads = [mine.add(missing, missing).data(), fine.data()]
    for (const outcome of await Promise.allSettled(reads)) expect(outcome).toMatchObject({ status: 'rejected', reason: MEMORY })
    const { buffer } = rangeOf(mine.gpu, missing)
    missing.dispose()
    await works(mine)
    await works(mine)
    expect(rangeOf(mine.gpu, Tensor.empty([300_000], { device: mine })).buffer, 'what failed is not used again').not.toBe(buffer)
    mine.dispose()
    raw.destroy()
  })

  it('a failed allocation that nobody waits for is told by the next read', async () => {
    let failing = true
    const raw = await rawDevice()
    const mine = adopt(faulty(raw, { scope: () => (failing ? outOfMemory() : undefined) }))
    const x = Tensor.empty([4], { device: mine })
    failing = false
    await new Promise((resolve) => setTimeout(resolve, 20))
    await expect(x.data()).rejects.toMatchObject(MEMORY)
    await works(mine)
    mine.dispose()
    raw.destroy()
  })

  it('a submit for which there is no memory fails its reads', async () => {
    let failing = false
    const raw = await rawDevice()
    const mine = adopt(faulty(raw, { scope: (filter) => (failing && filter === 'out-of-memory' ? outOfMemory() : undefined) }))
    const x = Tensor.from([1, 2, 3], { device: mine })
    await x.data()
    failing = true
    const read = x.data()
    await expect(read).rejects.toMatchObject(MEMORY)
    failing = false
    await works(mine)
    mine.dispose()
    raw.destroy()
  })
})

describe('refused commands', () => {
  it('fail the read that waits with the reason, and later work succeeds', async () => {
    recordNonsense(device)
    const x = Tensor.from([1, 2, 3], { device })
    await expect(x.data()).rejects.toThrow(expect.objectContaining({ ...DEVICE, message: expect.stringMatching(/refused.*cop/is) }))
    await works(device)
  })

  it('that nobody waited for are told by the next read', async () => {
    recordNonsense(device)
    device.gpu.recorder.flush()
    await new Promise((resolve) => setTimeout(resolve, 50))
    await expect(device.sync()).rejects.toMatchObject(DEVICE)
    await works(device)
  })

  it('a call that throws fails the read that waits, and later work succeeds', async () => {
    let failing = false
    const raw = await rawDevice()
    const mine = adopt(
      faulty(raw, {
        call: (method) => {
          if (failing && method === 'createCommandEncoder') throw new RangeError('simulated')
        },
      }),
    )
    const x = Tensor.from([1, 2, 3], { device: mine })
    failing = true
    await expect(x.data()).rejects.toMatchObject(MEMORY)
    failing = false
    await works(mine)
    mine.dispose()
    raw.destroy()
  })
})

describe('loss and disposal', () => {
  /** Every kind of call fails with ERR_DEVICE. */
  async function isDead(on: WebGpuDevice, x: Tensor): Promise<void> {
    expect(on.failure).toMatchObject(DEVICE)
    expect(() => on.add(x, x)).toThrow(expect.objectContaining(DEVICE))
    expect(() => on.copy(x, x)).toThrow(expect.objectContaining(DEVICE))
    expect(() => Tensor.zeros([4], { device: on })).toThrow(expect.objectContaining(DEVICE))
    expect(() => x.set([1, 2, 3])).toThrow(expect.objectContaining(DEVICE))
    await expect(x.data()).rejects.toMatchObject(DEVICE)
    await expect(on.sync()).rejects.toMatchObject(DEVICE)
    x.dispose()
  }

  it('dispose fails what waits and every later call, of every view', async () => {
    const mine = (await openDevice('webgpu')) as WebGpuDevice
    const view = mine.view()
    const x = Tensor.from([1, 2, 3], { device: mine })
    await x.data()
    const told: unknown[] = []
    mine.gpu.onFailure((error) => void told.push(error))
    const waiting = [x.data(), view.read(x.storage, 0, 4), mine.sync()]
    const submitted = x.data()
    mine.gpu.recorder.flush()
    mine.dispose()
    for (const outcome of await Promise.allSettled([...waiting, submitted])) {
      expect(outcome).toMatchObject({ status: 'rejected', reason: DEVICE })
    }
    await isDead(view, x.share())
    await isDead(mine, x)
    mine.dispose()
    mine[Symbol.dispose]()
    expect(told).toEqual([mine.failure])
    expect(String(mine.failure)).toMatch(/disposed/)
  })

  it('open, dispose, open again', async () => {
    for (let round = 0; round < 3; round++) {
      const mine = (await openDevice('webgpu')) as WebGpuDevice
      await works(mine)
      mine.dispose()
    }
    await works(device)
  })

  it("an injected device's loss fails what waits and every later call", async () => {
    const raw = await rawDevice()
    const mine = adopt(raw)
    const x = Tensor.from([1, 2, 3], { device: mine })
    await x.data()
    const waiting = [x.data(), mine.add(x, x).data()]
    mine.gpu.recorder.flush()
    const later = x.data()
    raw.destroy()
    for (const outcome of await Promise.allSettled([...waiting, later])) {
      expect(outcome).toMatchObject({ status: 'rejected', reason: DEVICE })
    }
    await raw.lost
    await isDead(mine, x)
    await works(device)
  })

  it('an injected device works, and goes on working after dispose', async () => {
    const raw = await rawDevice()
    const mine = adopt(raw)
    expect([mine.name, mine.software, mine.kind]).toEqual(['webgpu:test', true, 'webgpu'])
    await works(mine)
    const x = Tensor.from([1, 2, 3], { device: mine })
    const waiting = x.data()
    mine.dispose()
    await expect(waiting).rejects.toMatchObject(DEVICE)
    await isDead(mine, x)
    let lost = false
    void raw.lost.then(() => {
      lost = true
    })
    const again = adopt(raw)
    await works(again)
    again.dispose()
    expect(lost).toBe(false)
    raw.destroy()
  })

  it("errors of an injected device's owner stay the owner's", async () => {
    const raw = await rawDevice()
    const mine = adopt(raw)
    const seen: string[] = []
    raw.addEventListener('uncapturederror', (event) => {
      event.preventDefault()
      seen.push((event as GPUUncapturedErrorEvent).error.message)
    })
    const read = Tensor.from([1, 2, 3], { device: mine }).data()
    raw.createBuffer({ size: 4, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.STORAGE })
    expect([...((await read) as Float32Array)]).toEqual([1, 2, 3])
    await mine.sync()
    expect(seen.length).toBe(1)
    mine.dispose()
    raw.destroy()
  })
})
