// Opening devices by name: what each name gives, and how a name that leads nowhere is refused.
import { afterEach, describe, expect, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { Device } from '../../runtime/device/device.ts'
import { openDevice } from '../../runtime/device/open.ts'

function variable(name: string, value: string | undefined): void {
  if (value === undefined) delete process.env[name]
  else process.env[name] = value
}

const given = process.env.RANKMESH_ADAPTER
afterEach(() => variable('RANKMESH_ADAPTER', given))

async function works(device: Device): Promise<void> {
  const x = Tensor.from([1, 2, 3], { device })
  expect([...((await device.add(x, x).data()) as Float32Array)]).toEqual([2, 4, 6])
  device.dispose()
}

describe('names that open a device', () => {
  for (const name of ['webgpu', 'webgpu:0', 'webgpu:software', 'webgpu:SwiftShader', 'webgpu:']) {
    it(name, async () => {
      const device = await openDevice(name)
      expect(device.kind).toBe('webgpu')
      expect(device.name).toBe(name === 'webgpu' || name === 'webgpu:' ? 'webgpu:0' : name)
      expect(device.description.length).toBeGreaterThan(3)
      if (name === 'webgpu:software' || name === 'webgpu:SwiftShader') expect(device.software).toBe(true)
      await works(device)
    })
  }

  it('several at once, each on its own', async () => {
    const devices = await Promise.all(['webgpu', 'webgpu:software', 'webgpu'].map((name) => openDevice(name)))
    for (const device of devices) await works(device)
  })

  it('RANKMESH_ADAPTER stands in for the part behind the colon', async () => {
    variable('RANKMESH_ADAPTER', 'software')
    const device = await openDevice('webgpu')
    expect([device.name, device.software]).toEqual(['webgpu:software', true])
    await works(device)
    variable('RANKMESH_ADAPTER', 'no such adapter')
    await expect(openDevice('webgpu')).rejects.toMatchObject({ code: 'ERR_BACKEND_UNAVAILABLE' })
    await works(await openDevice('webgpu:0'))
  })
})

describe('names that do not', () => {
  it('an adapter nobody has: the message tells what was tried', async () => {
    await expect(openDevice('webgpu:GeForce 9999')).rejects.toMatchObject({
      code: 'ERR_BACKEND_UNAVAILABLE',
      message: expect.stringMatching(/"GeForce 9999"; tried: .*software Vulkan: .*SwiftShader/s),
    })
  })

  it('an index behind the last adapter', async () => {
    await expect(openDevice('webgpu:99')).rejects.toMatchObject({
      code: 'ERR_BACKEND_UNAVAILABLE',
      message: expect.stringMatching(/99.*tried: /s),
    })
  })

  it('a CUDA device that nobody has', async () => {
    await expect(openDevice('cuda:99')).rejects.toMatchObject({
      code: 'ERR_BACKEND_UNAVAILABLE',
      message: expect.stringMatching(/CUDA|cuda/),
    })
  })

  for (const name of ['tpu', '', 'WebGPU', 'gpu:0', ':0', 7, null, undefined]) {
    it(`no kind of device: ${JSON.stringify(name)}`, async () => {
      await expect(openDevice(name as string)).rejects.toMatchObject({
        code: 'ERR_ARGUMENT',
        message: expect.stringMatching(/Expected 'webgpu'.*for device but received/),
      })
    })
  }

  it('leave the next one to work', async () => {
    await expect(openDevice('webgpu:nothing')).rejects.toThrow()
    await works(await openDevice('webgpu'))
  })
})
