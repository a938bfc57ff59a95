// Order: commands of ranks that share memory run as if in the order of the calls, whatever lanes and lockstep make of them.
import { afterAll, describe, expect, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import { rangeOf } from '../../runtime/device/webgpu/launch.ts'
import { testDevice } from '../support/device.ts'
import { Random, seed } from '../support/random.ts'

const device = await testDevice()
afterAll(() => device.dispose())
const start = seed()
const random = new Random(start)
const ranks = Array.from({ length: 3 }, () => device.view()) as [WebGpuDevice, WebGpuDevice, WebGpuDevice]
const [first, second] = ranks

const numbers = async (tensor: Tensor): Promise<number[]> => [...((await tensor.data()) as Float32Array)]

/** Puts `count` commands of its own into a rank's lane. */
function busy(rank: WebGpuDevice, count: number): void {
  let x = Tensor.from([1, 2, 3, 4], { device: rank })
  for (let i = 1; i < count; i++) x = rank.add(x, x)
}

describe('one lane', () => {
  it('an upload into a buffer that earlier commands use comes after them', async () => {
    const x = Tensor.from([1, 2, 3, 4], { device })
    const twice = device.add(x, x)
    x.set([10, 20, 30, 40])
    const again = device.add(x, x)
    x.set([0, 0, 0, 0])
    expect(await numbers(twice)).toEqual([2, 4, 6, 8])
    expect(await numbers(again)).toEqual([20, 40, 60, 80])
    expect(await numbers(x)).toEqual([0, 0, 0, 0])
  })

  it('a read sees what was written before it, and nothing of what comes after', async () => {
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

  it(`a long random program gives what the same program gives in plain loops (seed ${start})`, async () => {
    const tensors = Array.from({ length: 6 }, () => Tensor.from(random.floats(8), { device }))
    const plain = await Promise.all(tensors.map(async (tensor) => (await tensor.data()) as Float32Array))
    for (let step = 0; step < 400; step++) {
      const [a, b, c] = [random.int(6), random.int(6), random.int(6)]
      const kind = random.int(4)
      const rank = ranks[random.int(3)] as WebGpuDevice
      const [x, y, z] = [tensors[a], tensors[b], tensors[c]] as [Tensor, Tensor, Tensor]
      const [p, q, r] = [plain[a], plain[b], plain[c]] as [Float32Array, Float32Array, Float32Array]
      if (kind === 0) {
        const values = random.floats(8)
        new Tensor(rank, retained(x), [8], 'float32').set(values)
        p.set(values)
      } else if (kind === 1) {
        rank.copy(x, y)
        q.set(p)
      } else if (kind === 2) {
        rank.copy(x.narrow(0, 1, 3), y.narrow(0, 4, 3))
        q.set(p.slice(1, 4), 4)
      } else {
        rank.add(x, y, { out: z })
        r.set(p.map((v, i) => Math.fround(v + (q[i] as number))))
      }
    }
    for (const [i, tensor] of tensors.entries()) expect(await tensor.data(), `tensor ${i}`).toEqual(plain[i])
  })
})

function retained(tensor: Tensor): Tensor['storage'] {
  tensor.storage.retain()
  return tensor.storage
}

describe('several lanes', () => {
  it('a rank reads what another uploaded behind many commands of its own', async () => {
    busy(first, 20)
    const x = Tensor.from([1, 2, 3, 4], { device: first })
    expect(await numbers(second.add(x, x))).toEqual([2, 4, 6, 8])
  })

  it('a rank reads what another computed behind many commands of its own', async () => {
    busy(first, 20)
    const x = first.add(Tensor.from([1, 2, 3, 4], { device: first }), Tensor.from([1, 1, 1, 1], { device: first }))
    const y = second.softmax(second.add(x, x))
    expect(await numbers(second.add(x, x))).toEqual([4, 6, 8, 10])
    expect((await numbers(y))[3]).toBeGreaterThan(0.8)
  })

  it('a rank overwrites what another has yet to read', async () => {
    const x = Tensor.from([1, 2, 3, 4], { device: first })
    busy(first, 20)
    const twice = first.add(x, x)
    second.copy(Tensor.from([9, 9, 9, 9], { device: second }), x)
    expect(await numbers(twice)).toEqual([2, 4, 6, 8])
    expect(await numbers(x)).toEqual([9, 9, 9, 9])
  })

  it('two ranks write the same place: the later call stays', async () => {
    const x = Tensor.zeros([4], { device })
    busy(first, 10)
    first.copy(Tensor.from([1, 1, 1, 1], { device: first }), x)
    second.copy(Tensor.from([2, 2, 2, 2], { device: second }), x)
    expect(await numbers(x)).toEqual([2, 2, 2, 2])
  })

  it('what joins the stream for all ranks comes behind what any lane holds for its bytes', async () => {
    const [x, y] = [Tensor.zeros([4], { device }), Tensor.zeros([4], { device })]
    await device.sync()
    busy(first, 5)
    first.copy(Tensor.from([1, 2, 3, 4], { device: first }), x)
    device.gpu.recorder.push({ kind: 'copy', from: rangeOf(device.gpu, x), to: rangeOf(device.gpu, y) })
    first.copy(Tensor.from([5, 6, 7, 8], { device: first }), x)
    expect(await numbers(y)).toEqual([1, 2, 3, 4])
    expect(await numbers(x)).toEqual([5, 6, 7, 8])
  })

  it('merging some ranks brings along those that they rely on', async () => {
    const [x, y] = [Tensor.from([1, 2, 3, 4], { device: first }), Tensor.zeros([4], { device })]
    busy(second, 10)
    const sum = second.add(x, x) // behind the upload in lockstep, so nothing is merged yet
    device.gpu.recorder.merge([second.lane])
    device.gpu.recorder.push({ kind: 'copy', from: rangeOf(device.gpu, sum), to: rangeOf(device.gpu, y) })
    expect(await numbers(y)).toEqual([2, 4, 6, 8])
  })

  it('parts of one storage do not wait for one another', async () => {
    const storages = device.gpu.pool.allocateSlices(2, 16)
    const tensors = storages.map((storage, r) => new Tensor(ranks[r] as WebGpuDevice, storage, [4], 'float32'))
    await device.sync()
    const before = device.stats.dispatches
    for (let step = 0; step < 5; step++) {
      for (const [r, tensor] of tensors.entries()) {
        if (step === 0) tensor.set([r, r, r, r])
        else (ranks[r] as WebGpuDevice).softmax(tensor, { out: tensor })
      }
    }
    expect(await numbers(tensors[0] as Tensor)).toEqual([0.25, 0.25, 0.25, 0.25])
    // An operand that is its own result is read from a copy, so ranks do not merge here; nothing else is added.
    expect(device.stats.dispatches - before).toBe(8)
  })

  it('a buffer freed in one lane and given to another carries nothing over', async () => {
    const x = Tensor.from(new Float32Array(4096).fill(1), { device: first })
    busy(first, 12)
    const kept = first.add(x, x)
    x.dispose() // the add above is not submitted yet
    const y = Tensor.from(new Float32Array(4096).fill(7), { device: second })
    const z = second.add(y, y)
    expect((await numbers(kept)).every((v) => v === 2)).toBe(true)
    expect((await numbers(z)).every((v) => v === 14)).toBe(true)
  })
})
