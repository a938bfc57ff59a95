// The CUDA device over a double of the driver: opening and reasons not to, memory that JavaScript does not see, order, failures, recorded steps.
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, afterEach, describe, expect, it } from 'vitest'
import type { CudaEngine } from '../../runtime/core/addon.ts'
import { addonReport, loadAddon } from '../../runtime/core/addon-node.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import { CudaDevice } from '../../runtime/device/cuda/device.ts'
import { OP, REDUCTION, TYPE } from '../../runtime/device/engine/commands.ts'
import { EngineDevice } from '../../runtime/device/engine/device.ts'
import type { EngineStorage } from '../../runtime/device/engine/memory.ts'
import { Queue } from '../../runtime/device/engine/queue.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { engineCases } from '../support/cases/engine.ts'
import { control, reason } from '../support/cuda.ts'
import { Random, seed } from '../support/random.ts'

const DEVICE = { code: 'ERR_DEVICE' }
const UNAVAILABLE = { code: 'ERR_BACKEND_UNAVAILABLE' }
const open = (index = 0): CudaDevice => CudaDevice.open(loadAddon(), index)
const numbers = async (tensor: Tensor): Promise<number[]> => [...((await tensor.data()) as Float32Array)]

async function works(device: CudaDevice): Promise<void> {
  const x = Tensor.from([1, 2, 3], { device })
  expect(await numbers(device.add(x, x))).toEqual([2, 4, 6])
}

if (reason) it.skip(`CUDA${reason}`, () => {})
else {
  engineCases('CUDA', open)

  describe('opening', () => {
    it('by name', async () => {
      for (const [name, index] of [
        ['cuda', 0],
        ['cuda:0', 0],
        ['cuda:1', 1],
      ] as const) {
        using device = (await openDevice(name)) as CudaDevice
        expect([device.kind, device.name, device.software]).toEqual(['cuda', `cuda:${index}`, false])
        expect(device.engine).toMatchObject({
          index,
          computeCapability: '9.0',
          uuid: expect.stringMatching(/^GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/),
        })
        expect(device.description).toContain('sm_90')
        await works(device)
      }
    })

    it('says what there is', () => {
      const devices = loadAddon()?.cudaDevices?.() ?? []
      expect(devices.map(({ index }) => index)).toEqual([0, 1])
      expect(new Set(devices.map(({ uuid }) => uuid)).size).toBe(2)
      expect(devices[0]?.memoryBytes).toBe(4 * 2 ** 30)
    })

    it('refuses what is not there', async () => {
      await expect(openDevice('cuda:7')).rejects.toMatchObject({ ...UNAVAILABLE, message: expect.stringContaining('the driver sees 2') })
      await expect(openDevice('cuda:first')).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
      expect(() => CudaDevice.open(null, 0)).toThrow(
        expect.objectContaining({ ...UNAVAILABLE, message: expect.stringContaining('build:native') }),
      )
    })

    const folder = mkdtempSync(join(tmpdir(), 'rankmesh-cuda-'))
    afterAll(() => rmSync(folder, { recursive: true }))
    const none = join(folder, 'none')
    const nonsense = join(folder, 'nonsense')
    writeFileSync(nonsense, 'these are no kernels')
    /** What a new process says: a driver is loaded once. */
    function inProcess(variables: NodeJS.ProcessEnv): { feature: unknown; error: string } {
      const script = `const addon = require(${JSON.stringify(addonReport().path)})
        let error
        try { addon.createCudaEngine(0) } catch (thrown) { error = thrown.message }
        process.stdout.write(JSON.stringify({ feature: addon.features().cuda, error }))`
      const env: NodeJS.ProcessEnv = { ...process.env, ...variables }
      delete env.RANKMESH_CUDA_DOUBLE_CONTROL
      return JSON.parse(execFileSync(process.execPath, ['-e', script], { env, encoding: 'utf8' }))
    }
    it.each([
      ['no library', { RANKMESH_CUDA_PATH: none }, /cannot be loaded: .*none/],
      ['a library that is no driver', { RANKMESH_CUDA_PATH: 'libm.so.6' }, /is no CUDA driver that can be used: it lacks cuInit/],
      ['an old driver', { RANKMESH_CUDA_DOUBLE: 'version 11080' }, /too old: it supports CUDA 11\.8, and 12\.0 is needed/],
      ['no device', { RANKMESH_CUDA_DOUBLE: 'devices 0' }, /sees no device/],
      ['a driver that does not start', { RANKMESH_CUDA_DOUBLE: 'fail cuInit 1 999; fail cuInit 2 999' }, /does not start: cuInit: .*\(999/],
      ['no kernels', { RANKMESH_CUDA_KERNELS: none }, /kernels are not built: .*none is not there/],
    ])('says so with %s', (_, variables, why) => {
      const { feature, error } = inProcess(variables)
      expect(feature).toEqual({ available: false, detail: expect.stringMatching(why) })
      expect(error).toMatch(why)
    })

    it("kernels that are none are refused with the driver's text", () => {
      expect(inProcess({ RANKMESH_CUDA_KERNELS: nonsense }).error).toMatch(/nonsense: CUDA_ERROR_INVALID_IMAGE/)
    })
  })

  const start = seed()
  const random = new Random(start)
  describe(`memory (seed ${start})`, () => {
    it('arrives and comes back whole, of all lengths, at all places', async () => {
      using device = open()
      const storage = device.allocate(9 * 2 ** 20 + 100)
      const plain = new Uint8Array(storage.byteLength)
      device.write(storage, 0, plain)
      for (const [at, length] of [
        [0, 1],
        [1, 3],
        [77, 1000],
        [5, 2 ** 20],
        [13, 2 ** 20 + 1],
        [3, 4 * 2 ** 20],
        [99, 9 * 2 ** 20],
      ] as const) {
        const bytes = Uint8Array.from({ length }, () => random.int(256))
        device.write(storage, at, bytes)
        plain.set(bytes, at)
        bytes.fill(0) // it was taken at the call
      }
      expect(Buffer.compare(await device.read(storage, 0, plain.length), plain)).toBe(0)
      expect(Buffer.compare(await device.read(storage, 13, 5000), plain.subarray(13, 5013))).toBe(0)
    })

    it('long writes come behind what other ranks do with the memory, and before what they do next', async () => {
      using device = open()
      const other = device.view()
      const n = 2 ** 19
      const x = Tensor.full([n], 1, { device })
      for (let round = 0; round < 5; round++) {
        const before = other.add(x, x)
        x.set(new Float32Array(n).fill(round + 2)) // 2 MiB
        const after = other.add(x, x)
        expect((await numbers(before)).every((value) => value === 2 * (round + 1))).toBe(true)
        expect((await numbers(after)).every((value) => value === 2 * (round + 2))).toBe(true)
      }
    })

    it('is given back by dispose, all of it, and what was pinned', async () => {
      const before = control.counts()
      const device = open()
      const view = device.view()
      const tensors = Array.from({ length: 5 }, (_, i) => Tensor.full([1000 * (i + 1)], i, { device: view }))
      await numbers(view.softmax(tensors[3] as Tensor))
      expect(control.counts().bytes).toBeGreaterThan(before.bytes)
      device.dispose()
      const { bytes, streams, events, reports } = control.counts()
      expect({ bytes, streams, events, reports }).toEqual({
        bytes: before.bytes,
        streams: before.streams,
        events: before.events,
        reports: before.reports,
      })
    })

    it('that is freed is used again where there is no other', async () => {
      control.plant('memory 268435456')
      using device = open()
      const part = 2 ** 26
      // Each size has blocks of its own, which are kept: together more than the device has.
      for (let i = 0; i < 8; i++) {
        const storage = device.allocate(part + i * 2 ** 20)
        device.write(storage, part - 4, Uint8Array.of(1, 2, 3, i))
        expect([...(await device.read(storage, part - 4, 4))]).toEqual([1, 2, 3, i])
        storage.release()
      }
      const held = [device.allocate(part), device.allocate(part), device.allocate(part)]
      expect(device.engine.freeBytes()).toBeLessThanOrEqual(part)
      expect(() => device.allocate(2 * part)).toThrow(
        expect.objectContaining({
          code: 'ERR_OUT_OF_MEMORY',
          cause: expect.objectContaining({ message: expect.stringContaining('CUDA_ERROR_OUT_OF_MEMORY') }),
        }),
      )
      for (const storage of held) storage.release()
      await works(device)
      control.plant('memory 4294967296')
    })

    it("of one engine is another's: on one device, and on two that reach each other", async () => {
      using first = open(0)
      const values = random.floats(100)
      const x = Tensor.from(values, { device: first })
      await first.sync()
      const { block } = x.storage as unknown as { block: { id: number } }
      const exported = first.engine.exportMemory(block.id)
      for (const index of [0, 1]) {
        using second = open(index)
        expect(second.engine.canAccessPeer(0)).toBe(true)
        const { id, byteLength } = second.engine.importMemory(exported)
        const theirs = second.memory.adopt(id, byteLength)
        expect(await second.read(theirs, 0, 400)).toEqual(new Uint8Array(values.buffer))
        theirs.release()
      }
      x.dispose()
      expect(() => first.engine.importMemory(new Uint8Array(7))).toThrow(RangeError)
      expect(() => first.engine.exportMemory(12345)).toThrow(RangeError)
    })

    it("of another device, let go while a kernel still runs, leaves this one's commands to this one", async () => {
      using first = open(0)
      using second = open(1)
      const tensors = (device: CudaDevice) => [Tensor.from([1, 2, 3], { device }), Tensor.from([0, 0, 0], { device })] as const
      const [x, twice] = tensors(first)
      const [y, other] = tensors(second)
      await Promise.all([first.sync(), second.sync()])
      const { allocations } = control.counts()
      const theirs = second.engine.allocate(4096)
      const here = first.engine.importMemory(second.engine.exportMemory(theirs.id))
      control.plant('delay 0 50000')
      first.add(x, x, { out: twice })
      const ran = first.sync()
      first.engine.free(here.id, null)
      second.engine.free(theirs.id, null)
      for (let i = 0; i < 2; i++) {
        await sleep(10)
        second.add(y, y, { out: other })
        await second.sync()
      }
      expect(control.counts().allocations).toBe(allocations + 1) // the first one has it still
      control.plant('delay 0 0')
      await ran
      while (control.counts().allocations > allocations) {
        await sleep(10)
        first.add(x, x, { out: twice })
        await first.sync()
      }
      expect(await numbers(twice)).toEqual([2, 4, 6])
    })

    it('can be filled and poked at once', async () => {
      using device = open()
      const x = Tensor.from(new Uint32Array(16), { device })
      await device.sync()
      const { block } = x.storage as unknown as { block: { id: number } }
      device.engine.fill(block.id, 4, 8, 0xff)
      device.engine.poke(block.id, 20, 0x89abcdef)
      expect([...((await x.data()) as Uint32Array).slice(0, 7)]).toEqual([0, 0xffffffff, 0xffffffff, 0, 0, 0x89abcdef, 0])
      expect(() => device.engine.poke(block.id, 62, 1)).toThrow(RangeError)
      expect(() => device.engine.fill(block.id, 0, 2 ** 20, 1)).toThrow(RangeError)
    })
  })

  describe(`large products (seed ${start})`, () => {
    it("are cuBLASLt's where it is there, and own kernels' where it is not or has no way", async () => {
      const [tokens, k, outs] = [96, 128, 80]
      const [x, w, bias] = [random.floats(tokens * k), random.floats(outs * k), random.floats(outs)]
      const products: Float32Array[] = []
      const kernels: number[] = []
      const library = process.env.RANKMESH_CUBLASLT_PATH
      for (const path of [library, '/nowhere/libcublasLt.so']) {
        process.env.RANKMESH_CUBLASLT_PATH = path
        using device = open()
        process.env.RANKMESH_CUBLASLT_PATH = library
        expect(device.description.includes('cuBLASLt')).toBe(path === library)
        const options = { dtype: 'bfloat16', device } as const
        const operands = [Tensor.from(x, { shape: [tokens, k], ...options }), Tensor.from(w, { shape: [outs, k], ...options })] as const
        const y = device.matmul(...operands, { bias: Tensor.from(bias, { device }) })
        await device.sync()
        const before = control.counts().kernels
        device.matmul(...operands, { out: y })
        device.matmul(...operands, { out: y, bias: Tensor.from(bias, { device }) })
        products.push((await y.data()) as Float32Array)
        kernels.push(control.counts().kernels - before)
      }
      const [theirs, own] = products as [Float32Array, Float32Array]
      const bound = k * 2 ** -24 * 16
      for (const [i, value] of own.entries()) expect(Math.abs(value - (theirs[i] as number))).toBeLessThan(bound)
      expect(new Set(own).size).toBeGreaterThan(tokens)
      expect(kernels[0]).not.toBe(kernels[1]) // other kernels have run
    })
  })

  describe(`recorded steps (seed ${start})`, () => {
    const n = 600

    /** View, tensors a and b, and what to do with them: copies, or sums, alone or shared out among all views. */
    type Step = [view: number, a: number, b: number, kind: number]
    const steps = (count: number): Step[] =>
      Array.from({ length: count }, () => [random.int(3), random.int(4), random.int(4), random.int(3)])

    function run(views: readonly CudaDevice[], tensors: readonly Tensor[], program: readonly Step[]): void {
      for (const [rank, a, b, kind] of program) {
        const view = views[rank] as CudaDevice
        const [x, y] = [tensors[a], tensors[b]] as [Tensor, Tensor]
        if (kind === 0) {
          if (a !== b) view.copy(x, y)
          continue
        }
        using sum = Tensor.empty([n], { device: view })
        if (kind === 1) {
          const operands = [x, y, sum].map(({ storage }) => ({ block: (storage as EngineStorage).block, offset: 0 }))
          const numbers = [1, n, n, 2, REDUCTION.sum, 1, TYPE.f32, TYPE.f32, 0, 1]
          const queues = views.map(({ queue }) => queue)
          Queue.meet(queues, OP.reduce, numbers, operands, [2])
        } else {
          view.add(x, y, { out: sum })
          view.rmsNorm(sum, x).dispose() // memory that comes and goes
        }
        view.copy(sum, y)
      }
    }

    function runPlain(plain: readonly Float32Array[], program: readonly Step[]): void {
      for (const [, a, b, kind] of program) {
        const [x, y] = [plain[a], plain[b]] as [Float32Array, Float32Array]
        for (let i = 0; i < n; i++) y[i] = kind === 0 ? (x[i] as number) : (x[i] as number) + (y[i] as number)
      }
    }

    it('run again and again, on what the memory holds each time, among other work', async () => {
      for (let round = 0; round < 4; round++) {
        using device = open()
        const views = [device, device.view(), device.view()]
        const plain = Array.from({ length: 4 }, () => random.floats(n))
        const tensors = plain.map((values) => Tensor.from(values, { device }))
        const recorded = steps(25)
        const tape = EngineDevice.startTape(views)
        run(views, tensors, recorded)
        const program = EngineDevice.endTape(views, tape)
        runPlain(plain, recorded)
        for (let launch = 0; launch < 5; launch++) {
          for (const [i, tensor] of tensors.entries()) {
            plain[i] = random.floats(n)
            tensor.set(plain[i] as Float32Array<ArrayBuffer>)
          }
          const between = steps(random.int(4))
          run(views, tensors, between)
          runPlain(plain, between)
          program.launch()
          runPlain(plain, recorded)
          if (launch % 2 === 0) expect(await tensors[launch % 4]?.data(), `round ${round}, launch ${launch}`).toEqual(plain[launch % 4])
        }
        if (round % 2 === 0) program.close()
        for (const [i, tensor] of tensors.entries()) expect(await tensor.data(), `tensor ${i}`).toEqual(plain[i])
        if (round === 1) {
          device.dispose()
          expect(() => program.close()).not.toThrow()
        }
      }
    })

    it('are one graph of the driver, which goes with them', async () => {
      using device = open()
      const { graphs } = control.counts()
      const x = Tensor.full([n], 1, { device })
      const tape = EngineDevice.startTape([device])
      for (let i = 0; i < 10; i++) device.add(x, x, { out: x })
      const program = EngineDevice.endTape([device], tape)
      expect(control.counts().graphs).toBe(graphs + 1)
      program.launch()
      expect(((await x.data()) as Float32Array)[0]).toBe(2 ** 20)
      program.close()
      await works(device)
      Tensor.zeros([1], { device })
      expect(control.counts().graphs).toBe(graphs)
    })

    it('that cannot be are refused, and the device works on', async () => {
      using device = open()
      const view = device.view()
      const [first, second] = [device.queue.progress.id, view.queue.progress.id]
      const part = (queue: number, ...words: number[]) => ({ queue, words: Float64Array.from(words), count: words.length })
      const { createProgram } = device.engine as Required<CudaEngine>
      expect(() => createProgram([part(first, OP.wait, second, 1), part(second, OP.wait, first, 1)])).toThrow(RangeError)
      expect(() => createProgram([part(first, OP.wait, second, 1)])).toThrow(RangeError)
      expect(() => createProgram([])).toThrow(TypeError)
      await works(device)
      await works(view)
    })
  })

  describe('failures', () => {
    afterEach(() => control.plant('forget'))

    it("a launch that fails fails every view from then on, with the driver's text; a new device works", async () => {
      using device = open()
      const view = device.view()
      await works(device)
      control.plant('fail cuLaunchKernel 1 701')
      const x = Tensor.from([1], { device })
      const y = device.add(x, x)
      await expect(y.data()).rejects.toMatchObject({
        ...DEVICE,
        message: expect.stringMatching(/rankmesh_add.*CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES/),
      })
      await expect(view.sync()).rejects.toMatchObject(DEVICE)
      expect(() => view.add(x, x)).toThrow(expect.objectContaining(DEVICE))
      expect(device.failure).toMatchObject(DEVICE)
      using next = open()
      await works(next)
    })

    it('a device that is lost while kernels run is one no more; opened anew it works, and nothing of it is left', async () => {
      const before = control.counts()
      const device = open(1)
      await works(device)
      control.plant('lose 1 3 700')
      const x = Tensor.from([1], { device })
      let y = x
      const work = async (): Promise<unknown> => {
        for (let i = 0; i < 40; i++) y = device.add(y, x)
        return y.data()
      }
      await expect(work()).rejects.toMatchObject({ ...DEVICE, message: expect.stringContaining('CUDA_ERROR_ILLEGAL_ADDRESS') })
      await expect(device.sync()).rejects.toMatchObject(DEVICE)
      device.dispose()
      const next = open(1)
      await works(next)
      next.dispose()
      expect(control.counts().bytes).toBe(before.bytes)
    })

    it.each(['cuMemAlloc', 'cuStreamCreate', 'cuModuleLoadData', 'cuDevicePrimaryCtxRetain', 'cuMemHostAlloc'])(
      'of %s while it opens: refused, then opened',
      async (call) => {
        control.plant(`fail ${call} 1 2`)
        let device: CudaDevice | undefined
        try {
          device = open(1)
          await works(device)
        } catch (error) {
          expect(error).toMatchObject({ code: expect.stringMatching(/^ERR_(BACKEND_UNAVAILABLE|OUT_OF_MEMORY|DEVICE)$/) })
          expect(error).toMatchObject({ cause: { message: expect.stringContaining('CUDA_ERROR_OUT_OF_MEMORY') } })
        }
        device?.dispose()
        control.plant('forget')
        using next = open(1)
        await works(next)
      },
    )

    it('commands that are none are refused, and the device works on', async () => {
      using device = open()
      const queue = device.engine.createQueue(-1)
      const { id } = device.engine.allocate(64)
      for (const words of [
        [OP.copy, 100, id, 0, id, 0],
        [OP.copy, 4, id + 1000, 0, id, 0],
        [99, 1],
        [OP.add, 4, 0, id, 2, id, 0, id, 16],
      ])
        expect(() => queue.submit(Float64Array.from(words), words.length)).toThrow(RangeError)
      expect(await queue.finish()).toBe(true)
      queue.close()
      expect(await queue.finish()).toBe(false)
      await works(device)
    })

    it('disposed at any moment: nobody waits for ever, nothing is touched that was freed', async () => {
      const { reports } = control.counts()
      for (let round = 0; round < 30; round++) {
        const device = open()
        const views = [device, device.view(), device.view()]
        const x = Tensor.from(random.floats(5000), { device })
        const waiting: Promise<unknown>[] = []
        for (let step = 0; step < random.int(40); step++) {
          const view = views[random.int(3)] as CudaDevice
          const y = view.add(x, x, random.int(3) === 0 ? { out: x } : {})
          if (random.int(4) === 0) waiting.push(y.data())
          if (y !== x && random.int(2) === 0) y.dispose()
          if (random.int(10) === 0) await new Promise((resolve) => setTimeout(resolve, random.int(3)))
        }
        device.dispose()
        for (const outcome of await Promise.allSettled(waiting))
          if (outcome.status === 'rejected') expect(outcome.reason).toMatchObject({ code: 'ERR_DEVICE' })
      }
      expect(control.counts().reports).toBe(reports)
    })
  })
}
