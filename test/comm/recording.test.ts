// Steps that are recorded and launched again: what they compute, what they read anew, what is refused, and the memory that they keep.
import { describe, expect, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { CpuDevice } from '../../runtime/device/cpu/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { reason } from '../support/cpu.ts'
import { codes, errorOf, outcomes } from '../support/outcomes.ts'
import { Random, seed } from '../support/random.ts'

const drawn = seed()

async function floats(tensor: Tensor): Promise<number[]> {
  return Array.from((await tensor.data()) as Float32Array)
}

describe.skipIf(reason)(`recordings${reason}`, () => {
  it.each([1, 2, 3, 5])(`%i ranks: a launch gives the bits of the step itself, for other inputs (seed ${drawn})`, async (ranks) => {
    using device = (await openDevice('cpu')) as CpuDevice
    const [rows, k, n] = [3, 96, 160]
    const found = await launch({ ranks, device }, async ({ rank, comm, device }: RankContext) => {
      const random = new Random(drawn + 31 * rank)
      const draw = (shape: number[]): Float32Array =>
        Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => random.uniform() - 0.5)
      using x = Tensor.empty([rows, k], { device })
      using w = Tensor.from(draw([n, k]), { shape: [n, k], device })
      using weight = Tensor.full([n], 1.5, { device })
      using residual = await comm.allocate([rows, n], { shared: true })
      using normed = await comm.allocate([rows, n], { shared: true })
      let gathered: Tensor | undefined
      const step = async (): Promise<void> => {
        using y = device.matmul(x, w)
        residual.setBytes(new Uint8Array(residual.byteLength))
        await comm.allReduceResidualBiasRMSNorm({ x: y, residual, weight, out: normed })
        using sum = await comm.allReduce(y)
        using scaled = device.add(sum, normed)
        gathered?.dispose()
        gathered = await comm.allGather(scaled, { dim: 0 })
      }
      const inputs = Array.from({ length: 4 }, () => draw([rows, k]))
      const plain: number[][] = []
      for (const input of inputs) {
        x.set(input)
        await step()
        plain.push([...(await floats(gathered as Tensor)), ...(await floats(residual))])
        // The others may still have to read the residual, which all share.
        await comm.barrier()
      }
      const before = comm.stats().collectives
      x.set(inputs[0] as Float32Array)
      using recording = await comm.record(step)
      const each = comm.stats().collectives - before
      const recorded: number[][] = [[...(await floats(gathered as Tensor)), ...(await floats(residual))]]
      for (const input of inputs.slice(1)) {
        x.set(input)
        await recording.launch()
        recorded.push([...(await floats(gathered as Tensor)), ...(await floats(residual))])
      }
      expect(recorded).toEqual(plain)
      expect(comm.stats().collectives - before).toBe(4 * each)
      gathered?.dispose()
      return recorded
    })
    for (const other of found) expect(other).toEqual(found[0])
  })

  it('many launches behind each other, unread, with other work between them', async () => {
    using device = (await openDevice('cpu')) as CpuDevice
    const sums = await launch({ ranks: 3, device }, async ({ comm, device }: RankContext) => {
      using one = Tensor.full([64], 1, { device })
      using total = Tensor.zeros([64], { device })
      using recording = await comm.record(async () => {
        using all = await comm.allReduce(one)
        device.add(total, all, { out: total })
      })
      for (let i = 0; i < 200; i++) {
        if (i % 3 === 0) device.add(total, one, { out: total })
        await recording.launch()
        if (i % 50 === 0) (await comm.allReduce(one)).dispose()
      }
      return (await floats(total))[63]
    })
    expect(sums).toEqual(Array(3).fill(3 * 201 + 67))
  })

  it('positions that lie in a tensor: the caches and the attention of each launch, and no further than they reach', async () => {
    using device = (await openDevice('cpu')) as CpuDevice
    const [heads, kvHeads, dim, capacity] = [4, 2, 8, 6]
    await launch({ ranks: 1, device }, async ({ comm, device }: RankContext) => {
      const random = new Random(drawn)
      const draw = (length: number): Float32Array => Float32Array.from({ length }, () => random.uniform() - 0.5)
      using table = Tensor.from(draw(capacity * dim), { shape: [capacity, dim / 2, 2], device })
      using qkv = Tensor.empty([1, (heads + 2 * kvHeads) * dim], { device })
      using position = Tensor.empty([1], { dtype: 'uint32', device })
      const caches = Array.from({ length: 4 }, () => Tensor.zeros([capacity, kvHeads * dim], { device }))
      const [keys, values, ownKeys, ownValues] = caches as [Tensor, Tensor, Tensor, Tensor]
      using out = Tensor.empty([1, heads * dim], { device })
      const run = (start: number | Tensor, cache: { keys: Tensor; values: Tensor }): void => {
        const shape = { heads, kvHeads, dim, start, ...cache }
        using q = device.ropeAppend(qkv, { ...shape, table })
        device.attention(q, { ...shape, out })
      }
      const inputs = Array.from({ length: capacity }, () => draw(qkv.size))
      const expected: number[][] = []
      for (const [at, input] of inputs.entries()) {
        qkv.set(input)
        run(at, { keys, values })
        expected.push(await floats(out))
      }
      const found: number[][] = []
      position.set([0])
      qkv.set(inputs[0] as Float32Array)
      using recording = await comm.record(async () => run(position, { keys: ownKeys, values: ownValues }))
      found.push(await floats(out))
      for (let at = 1; at < capacity; at++) {
        position.set([at])
        qkv.set(inputs[at] as Float32Array)
        await recording.launch()
        found.push(await floats(out))
      }
      expect(found).toEqual(expected)
      position.set([4_000_000_000])
      await recording.launch()
      expect(await floats(out)).toEqual(expected.at(-1))
      for (const cache of caches) cache.dispose()
    })
  })

  it('reading within a step, a step within a step, and a recording that was disposed of are refused', async () => {
    using device = (await openDevice('cpu')) as CpuDevice
    const found = await launch({ ranks: 2, device }, async ({ comm, device }: RankContext) => {
      using x = Tensor.full([8], 1, { device })
      const refused = [
        await errorOf(comm.record(async () => void (await x.data()))),
        await errorOf(comm.record(async () => void (await comm.record(async () => {})))),
      ]
      const recording = await comm.record(async () => (await comm.allReduce(x)).dispose())
      recording.dispose()
      recording.dispose()
      refused.push(await errorOf(recording.launch()))
      using sum = await comm.allReduce(x)
      return { codes: codes(refused), sum: (await floats(sum))[7] }
    })
    for (const { codes, sum } of found) {
      expect(sum).toBe(2)
      expect(codes[0]).toBe('ERR_ARGUMENT')
      expect(codes[1]).toMatch(/ERR_ARGUMENT|ERR_COLLECTIVE_MISMATCH/)
      expect(codes[2]).toMatch(/ERR_ARGUMENT|ERR_COLLECTIVE_MISMATCH/)
    }
  })

  it('a rank that fails within a step ends the group, and the device goes on', async () => {
    using device = (await openDevice('cpu')) as CpuDevice
    const { errors } = await outcomes({ ranks: 3, device }, async ({ comm, rank, device: own }) => {
      using x = Tensor.full([8], 1, { device: own })
      await comm.record(async () => {
        ;(await comm.allReduce(x)).dispose()
        if (rank === 1) throw new Error('on purpose')
        ;(await comm.allReduce(x)).dispose()
      })
    })
    expect(codes(errors).filter((code) => code === 'ERR_RANK_FAILED')).toHaveLength(2)
    const sums = await launch({ ranks: 3, device }, async ({ comm, device }) => {
      using x = Tensor.full([8], 1, { device })
      using y = await comm.allReduce(x)
      return (await floats(y))[0]
    })
    expect(sums).toEqual([3, 3, 3])
  })

  it('its memory is its own while it lives, and nobody else gets it; then all is given back', async () => {
    using device = (await openDevice('cpu')) as CpuDevice
    await launch({ ranks: 2, device }, async ({ comm, device: own }: RankContext) => {
      using x = Tensor.full([1000], 1, { device: own })
      await comm.barrier()
      const live = device.memory.liveBlocks
      let kept: Tensor | undefined
      const recording = await comm.record(async () => {
        using twice = own.add(x, x)
        kept = own.add(twice, x)
      })
      const others = Array.from({ length: 8 }, () => Tensor.full([1000], 7, { device: own }))
      for (let i = 0; i < 3; i++) await recording.launch()
      for (const other of others) expect(new Set(await floats(other))).toEqual(new Set([7]))
      expect(new Set(await floats(kept as Tensor))).toEqual(new Set([3]))
      for (const other of others) other.dispose()
      kept?.dispose()
      recording.dispose()
      await comm.barrier()
      expect(device.memory.liveBlocks).toBe(live)
      await comm.barrier()
    })
  })

  it('a device that is disposed of ends launches with ERR_DEVICE', async () => {
    const device = (await openDevice('cpu')) as CpuDevice
    const { errors } = await outcomes({ ranks: 2, device }, async ({ comm, device: own, rank }) => {
      using x = Tensor.full([8], 1, { device: own })
      const recording = await comm.record(async () => (await comm.allReduce(x)).dispose())
      await recording.launch()
      if (rank === 0) device.dispose()
      await recording.launch()
    })
    expect(codes(errors)).toEqual(['ERR_DEVICE', 'ERR_DEVICE'])
  })
})

it('groups that do not record say so', async () => {
  const found = await launch({ ranks: 2, devices: ['cpu', 'webgpu'] }, async ({ comm }: RankContext) => {
    const error = await errorOf(comm.record(async () => {}))
    return [comm.records, codes([error])[0]]
  })
  expect(found).toEqual(Array(2).fill([false, 'ERR_ARGUMENT']))
})
