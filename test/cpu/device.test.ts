// The CPU device: opening, and what all devices with an engine have: order, memory, times, an end.
import { describe, expect, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { CpuDevice } from '../../runtime/device/cpu/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { engineCases } from '../support/cases/engine.ts'
import { cpuDevices, reason } from '../support/cpu.ts'

const numbers = async (tensor: Tensor): Promise<number[]> => [...((await tensor.data()) as Float32Array)]

describe('opening', () => {
  it('by its name, native where the addon is', async () => {
    using device = await openDevice('cpu')
    expect([device.name, device.kind]).toEqual(['cpu', 'cpu'])
    expect(device.description).toBe(cpuDevices().at(reason === '' ? 0 : -1)?.name)
    expect(device.software).toBe(reason !== '')
    const x = Tensor.from([1, 2, 3], { device })
    expect(await numbers(device.add(x, x))).toEqual([2, 4, 6])
  })

  it('there are no kinds of it', async () => {
    await expect(openDevice('cpu:1')).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
  })

  it('with threads that stay on processors of their own', async () => {
    process.env.RANKMESH_PIN = '1'
    using device = (await openDevice('cpu')) as CpuDevice
    delete process.env.RANKMESH_PIN
    const ranks = Array.from({ length: 5 }, () => device.view()) // more than many machines have
    const sums = ranks.map((rank, r) => rank.add(Tensor.from([r], { device: rank }), Tensor.from([1], { device: rank })))
    expect((await Promise.all(sums.map(numbers))).flat()).toEqual([1, 2, 3, 4, 5])
  })
})

for (const { name, open } of cpuDevices()) engineCases(name, open)
