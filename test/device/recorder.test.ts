// What the recorder asks of the device: submits, maps, uploads into narrow views, buffers used again and not piled up.
import { afterAll, describe, expect, it } from 'vitest'
import type { DType } from '../../runtime/core/dtype.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { DeviceStats } from '../../runtime/device/webgpu/recorder.ts'
import { testDevice } from '../support/device.ts'
import { Random, seed } from '../support/random.ts'

const device = await testDevice()
afterAll(() => device.dispose())
const start = seed()
const random = new Random(start)

/** How the device's counters change over `work`. */
async function counted(work: () => Promise<unknown>): Promise<DeviceStats> {
  await device.sync()
  const before = device.stats
  await work()
  const changes = { ...device.stats }
  for (const key of Object.keys(changes) as (keyof DeviceStats)[]) changes[key] -= before[key]
  return changes
}

describe('reads', () => {
  it('of one tensor by several ranks are one copy, one submit, one map', async () => {
    const x = Tensor.from(random.floats(1000), { device })
    const ranks = Array.from({ length: 4 }, () => device.view())
    let got: Uint8Array[] = []
    const stats = await counted(async () => {
      got = await Promise.all(ranks.map((rank) => rank.read(x.storage, 0, 4000)))
    })
    expect(stats).toEqual({ submits: 1, maps: 1, dispatches: 0, bytesToDevice: 0, bytesToHost: 4000 })
    for (const bytes of got) expect(bytes).toEqual(got[0])
    ;(got[0] as Uint8Array).fill(0)
    expect(
      (got[1] as Uint8Array).some((byte) => byte !== 0),
      'each reader owns its bytes',
    ).toBe(true)
  })

  it('of several tensors in one turn are one submit and one map', async () => {
    const tensors = [3, 10, 1000].map((n) => Tensor.from(random.floats(n), { device }))
    const sums = tensors.map((x) => device.add(x, x))
    const stats = await counted(() => Promise.all(sums.map((sum) => sum.data())))
    expect(stats).toMatchObject({ submits: 1, maps: 1, bytesToHost: 4 * 1013 })
  })

  it('of any bytes of a storage', async () => {
    const bytes = Uint8Array.from({ length: 301 }, () => random.int(256))
    const x = Tensor.fromBytes(bytes, [301], 'uint8', device)
    for (let round = 0; round < 20; round++) {
      const [from, length] = [random.int(200), 1 + random.int(101)]
      expect(await x.narrow(0, from, length).bytes()).toEqual(bytes.slice(from, from + length))
    }
  })

  it('nothing recorded, nothing submitted', async () => {
    const stats = await counted(async () => {
      device.gpu.recorder.flush()
      device.gpu.recorder.flush()
    })
    expect(stats.submits).toBe(0)
  })
})

describe(`writes into narrow views (seed ${start})`, () => {
  for (const [dtype, size] of [
    ['uint8', 1],
    ['bfloat16', 2],
    ['float16', 2],
    ['float32', 4],
    ['int64', 8],
  ] as const) {
    it(`${dtype}: leave the bytes beside them alone`, async () => {
      for (let round = 0; round < 10; round++) {
        const n = 1 + random.int(40)
        const whole = Uint8Array.from({ length: n * size }, () => random.int(256))
        const x = Tensor.fromBytes(whole, [n], dtype as DType, device)
        const [from, length] = [random.int(n), 1 + random.int(n)]
        const part = x.narrow(0, from, Math.min(length, n - from))
        const bytes = Uint8Array.from({ length: part.byteLength }, () => random.int(256))
        device.write(part.storage, part.byteOffset, bytes)
        whole.set(bytes, from * size)
        expect(Buffer.compare(await x.bytes(), whole), `${part.byteLength} bytes at ${from * size} of ${n * size}`).toBe(0)
        x.dispose()
        part.dispose()
      }
    })
  }

  it('take a copy of the given bytes at once', async () => {
    const bytes = new Uint8Array(64).fill(1)
    const x = Tensor.fromBytes(bytes, [64], 'uint8', device)
    bytes.fill(2)
    expect([...(await x.bytes())].every((byte) => byte === 1)).toBe(true)
  })

  it('take bytes of shared memory, and of an offset in a larger array', async () => {
    const shared = new Uint8Array(new SharedArrayBuffer(40), 3, 21)
    shared.forEach((_, i) => {
      shared[i] = i
    })
    const x = Tensor.fromBytes(shared, [21], 'uint8', device)
    expect([...(await x.bytes())]).toEqual([...shared])
  })
})

describe('memory', () => {
  const pool = device.gpu.pool

  it('live buffers return to their number once all handles are given back', async () => {
    await device.sync()
    const [buffers, bytes] = [pool.liveBuffers, pool.liveBytes]
    const x = Tensor.from(random.floats(1000), { shape: [10, 100], device })
    const w = Tensor.from(random.floats(700), { shape: [7, 100], dtype: 'bfloat16', device })
    const y = device.matmul(x, w)
    const { values, indices } = device.topK(y, 3)
    const best = device.argmax(y)
    const reshaped = best.reshape([2, 5])
    const z = device.cast(y, 'float16')
    await z.data()
    expect(pool.liveBuffers).toBe(buffers + 7)
    for (const tensor of [x, w, y, values, indices, best, z]) tensor.dispose()
    expect(pool.liveBuffers).toBe(buffers + 1) // one handle is left on the indices of argmax
    reshaped.dispose()
    expect([pool.liveBuffers, pool.liveBytes]).toEqual([buffers, bytes])
  })

  it('operations that go through scratch memory give it back', async () => {
    await device.sync()
    const before = pool.liveBuffers
    const x = Tensor.from(random.floats(77), { shape: [7, 11], dtype: 'bfloat16', device })
    const weight = Tensor.from(random.floats(11), { dtype: 'bfloat16', device })
    const y = device.rmsNorm(x, weight) // rows of 11: widened, normed, packed
    const [a, b, c, d] = [x.narrow(0, 1, 2), x.narrow(0, 3, 2), y.narrow(0, 0, 3), y.narrow(0, 4, 3)]
    const sum = device.add(a, b) // unaligned parts
    device.copy(c, d) // one buffer
    c.set(new Array(33).fill(1)) // unaligned upload
    await y.data()
    expect(pool.liveBuffers).toBe(before + 4)
    for (const tensor of [x, weight, y, a, b, c, d, sum]) tensor.dispose()
    expect(pool.liveBuffers).toBe(before)
  })

  it('200 rounds of allocating and freeing need no more memory than a few', async () => {
    let created = 0
    const gpu = device.gpu.device
    const createBuffer = gpu.createBuffer
    gpu.createBuffer = function (this: GPUDevice, descriptor) {
      created++
      return createBuffer.call(this, descriptor)
    }
    try {
      for (let round = 0; round < 200; round++) {
        const x = Tensor.from(new Float32Array(5000).fill(round), { device })
        const y = device.add(x, x)
        if (round % 10 === 9) expect(((await y.data()) as Float32Array)[0]).toBe(2 * round)
        x.dispose()
        y.dispose()
      }
      expect(created).toBeLessThan(40)
      created = 0
      for (let round = 0; round < 200; round++) Tensor.empty([2 ** 21], { device }).dispose() // 8 MiB each, never read
      expect(created).toBeLessThan(60)
    } finally {
      gpu.createBuffer = createBuffer
    }
  })

  it('uploads are handed on before they pile up', async () => {
    const stats = await counted(async () => {
      const chunk = new Uint8Array(8 * 2 ** 20)
      for (let i = 0; i < 20; i++) Tensor.fromBytes(chunk, [chunk.length], 'uint8', device).dispose()
    })
    expect(stats.submits).toBeGreaterThanOrEqual(1)
    expect(stats.maps).toBe(0)
  })

  it('slices of a buffer begin at multiples of 256 and free it together', async () => {
    await device.sync()
    const before = pool.liveBuffers
    const storages = pool.allocateSlices(3, 100)
    expect(storages.map(({ offset, byteLength }) => [offset, byteLength])).toEqual([
      [0, 100],
      [256, 100],
      [512, 100],
    ])
    storages[1]?.release()
    storages[0]?.release()
    expect(pool.liveBuffers).toBe(before + 1)
    storages[2]?.release()
    expect(pool.liveBuffers).toBe(before)
    expect(() => storages[2]?.release()).toThrow(/released more often/)
  })
})
